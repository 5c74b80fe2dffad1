//! Takes a graph's ops apart into steps. A fused op becomes several: on a CPU a barrier is cheap and a round trip stays in cache.

mod experts;
mod heads;
mod pairs;
mod recurrent;

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use fusec::ir::{Attention, Epilogue, Format, Graph, Matmul, NodeId, Norm, Op, Results, Role, Rope, Type};
use fusec::ir::{Value, WeightRef};

use super::blocks::coded_floats;
use super::pack::{Recipe, WeightSource, vector};
use super::step::{
    Angles, AttentionStep, Buffer, BufferShape, CacheShape, Destination, HeadsStep, Ids, Map, MatmulStep, NormStep,
    RopeStep, RouteStep, Step,
};
use super::tail::tail_of;

/// Steps under construction.
pub(crate) struct Lowering<'a> {
    pub body: Vec<Step>,
    pub tail: Vec<Step>,
    pub shapes: Vec<BufferShape>,
    pub caches: Vec<CacheShape>,
    pub recipes: Vec<Recipe>,
    pub logits: Buffer,
    pub vocabulary: Option<usize>,
    graph: &'a Graph,
    source: &'a dyn WeightSource,
    context: usize,
    homes: HashMap<Value, Home>,
    /// The rotations met so far.
    angles: Vec<(Rope, Angles)>,
    recipe_numbers: HashMap<Recipe, usize>,
    /// Activations in 16 bits, by what they are of.
    coded: HashMap<Buffer, Buffer>,
    /// The copies, in the tail, of what the body made.
    gathered: HashMap<Buffer, Buffer>,
    in_tail: bool,
}

/// Where a value is.
#[derive(Clone, Copy)]
enum Home {
    Buffer(Buffer),
    Cache(usize),
    Ids(Ids),
}

impl<'a> Lowering<'a> {
    /// The steps of a graph.
    pub fn of(graph: &'a Graph, source: &'a dyn WeightSource, context: usize) -> Result<Lowering<'a>> {
        let mut lowering = Lowering {
            body: Vec::new(),
            tail: Vec::new(),
            shapes: Vec::new(),
            caches: Vec::new(),
            recipes: Vec::new(),
            logits: 0,
            vocabulary: None,
            graph,
            source,
            context,
            homes: HashMap::new(),
            angles: Vec::new(),
            recipe_numbers: HashMap::new(),
            coded: HashMap::new(),
            gathered: HashMap::new(),
            in_tail: false,
        };
        let tail = tail_of(graph);
        let order = graph.ordered();
        let (last, first): (Vec<NodeId>, Vec<NodeId>) = order.into_iter().partition(|node| tail.contains(node));
        for node in first {
            lowering.node(node).with_context(|| lowering.describe(node))?;
        }
        lowering.in_tail = true;
        for node in last {
            lowering.node(node).with_context(|| lowering.describe(node))?;
        }
        let logits = lowering.buffer(graph.outputs[0]).context("the graph's first output, its logits")?;
        lowering.logits = lowering.here(logits);
        Ok(lowering)
    }

    fn describe(&self, node: NodeId) -> String {
        let layer = self.graph.node(node).layer.map_or(String::new(), |layer| format!(" of layer {layer}"));
        format!("op {:?}{layer}, on the CPU", self.graph.op(node).name())
    }

    fn node(&mut self, node: NodeId) -> Result<()> {
        let graph = self.graph;
        match graph.op(node) {
            Op::Input(name) => {
                let ids = match name.as_str() {
                    "tokens" => Ids::Tokens,
                    "positions" => Ids::Positions,
                    _ => bail!("input {name:?}: the step is given `tokens` and `positions` only"),
                };
                self.homes.insert(node.result(0), Home::Ids(ids));
            }
            // Read where they are used.
            Op::Weight(_) => {}
            // The logits' user samples.
            Op::Sample => {}
            Op::State(state) => self.state(node, state)?,
            Op::Reshape => {
                let x = self.operand(node, Role::X)?;
                let home = *self.homes.get(&x).context("the operand is no activation")?;
                self.homes.insert(node.result(0), home);
            }
            Op::Embedding => self.embedding(node)?,
            Op::Matmul(matmul) => self.matmul(node, matmul)?,
            Op::Norm(norm) => {
                let x = self.operand(node, Role::X)?;
                let norm = self.norm(node, norm, x, Role::NormWeight, Role::NormBias)?;
                self.heads(x, Some(norm), None, node.result(0))?;
            }
            Op::Rope(rope) => {
                let x = self.operand(node, Role::X)?;
                let angles = self.rope(rope, self.heads_of(x)?.1, node)?;
                self.heads(x, None, Some(angles), node.result(0))?;
            }
            Op::KvAppend => {
                let cache = self.cache(self.operand(node, Role::Cache)?)?;
                self.positions(node)?;
                self.append(self.operand(node, Role::X)?, None, None, cache)?;
                self.homes.insert(node.result(0), Home::Cache(cache));
            }
            Op::Attention(attention) => self.attention(node, attention)?,
            Op::Add | Op::Mul | Op::Glu | Op::Decay => self.pair(node)?,
            Op::Route(route) => {
                let x = self.input(self.operand(node, Role::X)?)?;
                let out = self.new_buffer(2 * route.top_k);
                for result in 0..2 {
                    self.homes.insert(node.result(result), Home::Buffer(out));
                }
                let bias = match route.bias {
                    true => self.constant(self.operand(node, Role::ChoiceBias)?, self.shapes[x].size)?,
                    false => Box::default(),
                };
                let scales = match route.expert_scale {
                    true => self.constant(self.operand(node, Role::ExpertScale)?, self.shapes[x].size)?,
                    false => Box::default(),
                };
                self.push(Step::Route(RouteStep { route: route.clone(), bias, scales, x, out }));
            }
            Op::Experts(experts) => self.experts(node, experts)?,
            Op::HeadProduct => self.head_product(node)?,
            Op::Concat => self.concat(node)?,
            Op::Conv(_) => self.conv(node)?,
            Op::Recall(_) => self.recall(node)?,
            Op::Activation(activation) => self.map(node, Map::Activation(*activation))?,
            Op::Function(function) => self.map(node, Map::Function(*function))?,
            Op::Scale(factor) => self.map(node, Map::Scale(*factor))?,
            Op::Softcap(cap) => self.map(node, Map::Softcap(*cap))?,
            Op::Clamp(limit) => self.map(node, Map::Clamp(*limit))?,
        }
        Ok(())
    }

    fn embedding(&mut self, node: NodeId) -> Result<()> {
        let ids = match self.homes.get(&self.operand(node, Role::Ids)?) {
            Some(Home::Ids(ids)) => *ids,
            _ => bail!("the ids are no input of the step"),
        };
        let table = self.operand(node, Role::Table)?;
        let [rows, columns] = self.sizes(table)?;
        match ids {
            Ids::Tokens => self.vocabulary = Some(self.vocabulary.map_or(rows, |least| least.min(rows))),
            Ids::Positions => ensure!(
                rows >= self.context,
                "a context of {} positions is beyond the {rows} that the model has learned; ask for at most {rows}",
                self.context
            ),
        }
        let table = self.matrix(&[table], &[rows], columns, false, false)?;
        let out = self.result(node.result(0));
        self.push(Step::Embed { ids, table, out });
        Ok(())
    }

    fn matmul(&mut self, node: NodeId, matmul: &Matmul) -> Result<()> {
        let x_value = self.operand(node, Role::X)?;
        let mut x = self.input(x_value)?;
        let columns = self.shapes[x].size;
        if let Some(norm) = &matmul.norm {
            let norm = self.norm(node, norm, x_value, Role::NormWeight, Role::NormBias)?;
            let normed = self.new_buffer(columns);
            let (heads, dim) = self.heads_of(x_value)?;
            self.push(Step::Heads(HeadsStep {
                x,
                heads,
                dim,
                norm: Some(norm),
                angles: None,
                to: Destination::Buffer(normed),
            }));
            x = normed;
        }
        let count = matmul.biases.len();
        let weights: Vec<Value> = (0..count).map(|i| self.operand(node, Role::Weight(i))).collect::<Result<_>>()?;
        let biases = (0..count)
            .map(|i| match matmul.biases[i] {
                true => self.operand(node, Role::Bias(i)).map(Some),
                false => Ok(None),
            })
            .collect::<Result<Vec<_>>>()?;
        let gated = matches!(matmul.epilogue, Epilogue::Gate(_));
        ensure!(!gated || count == 2, "a gate takes two weights, not {count}");
        ensure!(!matmul.residual || gated || count == 1, "a residual is added to one product, and there are {count}");
        let outs = (0..if gated { 1 } else { count }).map(|i| self.result(node.result(i))).collect();
        let residual = match matmul.residual {
            true => Some(self.input(self.operand(node, Role::Residual)?)?),
            false => None,
        };
        self.product(x, columns, &weights, &biases, matmul.transposed, matmul.epilogue, residual, outs)
    }

    #[allow(clippy::too_many_arguments)]
    fn product(
        &mut self,
        x: Buffer,
        columns: usize,
        weights: &[Value],
        biases: &[Option<Value>],
        transposed: bool,
        epilogue: Epilogue,
        residual: Option<Buffer>,
        outs: Vec<Buffer>,
    ) -> Result<()> {
        let mut rows = Vec::with_capacity(weights.len());
        for &weight in weights {
            let [a, b] = self.sizes(weight)?;
            let (out, inner) = if transposed { (b, a) } else { (a, b) };
            ensure!(inner == columns, "the weight has {inner} columns, its operand {columns}");
            rows.push(out);
        }
        let gated = matches!(epilogue, Epilogue::Gate(_));
        ensure!(!gated || rows[0] == rows[1], "the gate has {} rows, what it gates {}", rows[0], rows[1]);
        let matrix = self.matrix(weights, &rows, columns, transposed, gated)?;
        let biases = biases
            .iter()
            .zip(&rows)
            .map(|(bias, &rows)| bias.map_or(Ok(Box::default()), |bias| self.constant(bias, rows)))
            .collect::<Result<_>>()?;
        let coded = self.coded(x, &[matrix]);
        self.push(Step::Matmul(MatmulStep { x, coded, matrix, outs, biases, epilogue, residual }));
        Ok(())
    }

    fn attention(&mut self, node: NodeId, attention: &Attention) -> Result<()> {
        let graph = self.graph;
        self.positions(node)?;
        let mut q = self.operand(node, Role::Q)?;
        let [heads, dim] = self.sizes(q)?;
        let keys = self.cache(self.operand(node, Role::KeyCache)?)?;
        let values = match attention.latent {
            Some(_) => keys,
            None => self.cache(self.operand(node, Role::ValueCache)?)?,
        };
        let (kv_heads, value_dim) = (self.caches[keys].heads, attention.latent.unwrap_or(self.caches[values].dim));
        ensure!(
            kv_heads > 0
                && heads % kv_heads == 0
                && self.caches[values].heads == kv_heads
                && self.caches[keys].dim == dim,
            "{heads} query heads of {dim} do not go with {kv_heads} key heads of {} and {} value heads",
            self.caches[keys].dim,
            self.caches[values].heads
        );
        let angles = match &attention.rope {
            Some(rope) => Some(self.rope(rope, dim, node)?),
            None => None,
        };
        let head_norm = |this: &Self, norm: &Option<Norm>, x: Value, role: Role| -> Result<Option<NormStep>> {
            norm.as_ref().map(|norm| this.norm(node, norm, x, role, role)).transpose()
        };
        let mut q_buffer = self.input(q)?;
        if attention.append {
            let (k, v) = (self.operand(node, Role::K)?, self.operand(node, Role::V)?);
            let k_norm = head_norm(self, &attention.k_norm, k, Role::KNormWeight)?;
            self.append(k, k_norm, angles, keys)?;
            self.append(v, None, None, values)?;
            self.homes.insert(node.result(1), Home::Cache(keys));
            self.homes.insert(node.result(2), Home::Cache(values));
        }
        if attention.q_norm.is_some() || angles.is_some() {
            let norm = head_norm(self, &attention.q_norm, q, Role::QNormWeight)?;
            let prepared = self.new_buffer(heads * dim);
            self.push(Step::Heads(HeadsStep {
                x: q_buffer,
                heads,
                dim,
                norm,
                angles,
                to: Destination::Buffer(prepared),
            }));
            q_buffer = prepared;
        }
        let sinks = match attention.sinks {
            true => self.constant(self.operand(node, Role::Sinks)?, heads)?,
            false => Box::default(),
        };
        q = node.result(0);
        let out = if attention.proj.is_some() { self.new_buffer(heads * value_dim) } else { self.result(q) };
        self.push(Step::Attention(AttentionStep {
            q: q_buffer,
            keys,
            values,
            heads,
            kv_heads,
            dim,
            value_dim,
            scale: attention.scale,
            window: attention.window,
            softcap: attention.softcap,
            sinks,
            latent: attention.latent.is_some(),
            out,
        }));
        let Some(proj) = attention.proj else { return Ok(()) };
        let weight = self.operand(node, Role::ProjWeight)?;
        let bias = proj.bias.then(|| graph.operand(node, Role::ProjBias)).flatten();
        let residual = match proj.residual {
            true => Some(self.input(self.operand(node, Role::Residual)?)?),
            false => None,
        };
        let result = self.result(q);
        self.product(
            out,
            heads * value_dim,
            &[weight],
            &[bias],
            proj.transposed,
            Epilogue::None,
            residual,
            vec![result],
        )
    }

    /// Norm, rotation or both of each head of `x`, into a new value.
    fn heads(&mut self, x: Value, norm: Option<NormStep>, angles: Option<Angles>, result: Value) -> Result<()> {
        let (heads, dim) = self.heads_of(x)?;
        let x = self.input(x)?;
        let out = self.result(result);
        self.push(Step::Heads(HeadsStep { x, heads, dim, norm, angles, to: Destination::Buffer(out) }));
        Ok(())
    }

    /// The same into a cache, at each token's position.
    fn append(&mut self, x: Value, norm: Option<NormStep>, angles: Option<Angles>, cache: usize) -> Result<()> {
        let (heads, dim) = self.heads_of(x)?;
        let shape = &self.caches[cache];
        ensure!(
            (heads, dim) == (shape.heads, shape.dim),
            "{heads} heads of {dim} do not go into cache {:?} of {} heads of {}",
            shape.name,
            shape.heads,
            shape.dim
        );
        let x = self.input(x)?;
        self.push(Step::Heads(HeadsStep { x, heads, dim, norm, angles, to: Destination::Cache(cache) }));
        Ok(())
    }

    fn map(&mut self, node: NodeId, map: Map) -> Result<()> {
        let x = self.input(self.operand(node, Role::X)?)?;
        let out = self.result(node.result(0));
        self.push(Step::Map { map, x, out });
        Ok(())
    }

    fn norm(&self, node: NodeId, norm: &Norm, x: Value, weight: Role, bias: Role) -> Result<NormStep> {
        let size = self.graph.type_of(x).last_size().context("a norm over a symbolic axis")?;
        let part = |present: bool, role: Role| match present {
            true => self.constant(self.operand(node, role)?, size),
            false => Ok(Box::default()),
        };
        let mut scaled = part(norm.weight, weight)?;
        scaled.iter_mut().for_each(|weight| *weight += norm.offset);
        ensure!(!norm.bias || weight != bias, "a norm of q or k has no bias");
        Ok(NormStep { kind: norm.kind, eps: norm.eps, weight: scaled, bias: part(norm.bias, bias)? })
    }

    /// The buffer of angles of a rotation, filled once per step whatever the number of its users.
    fn rope(&mut self, rope: &Rope, head_dim: usize, node: NodeId) -> Result<Angles> {
        self.positions(node)?;
        ensure!(
            rope.dim.is_multiple_of(2) && rope.dim <= head_dim,
            "a rotation of {} values in heads of {head_dim}: it takes an even number, at most all",
            rope.dim
        );
        if let Some((_, angles)) = self.angles.iter().find(|(known, _)| known == rope) {
            return Ok(*angles);
        }
        let (frequencies, magnitude) = rope.frequencies();
        let angles = Angles { buffer: self.new_buffer(rope.dim), interleaved: rope.interleaved };
        self.push(Step::Angles { rope: RopeStep { frequencies, magnitude }, out: angles.buffer });
        self.angles.push((rope.clone(), angles));
        Ok(angles)
    }

    fn matrix(
        &mut self,
        weights: &[Value],
        rows: &[usize],
        columns: usize,
        transposed: bool,
        paired: bool,
    ) -> Result<usize> {
        let formats = weights.iter().map(|&weight| self.held(weight, transposed)).collect::<Result<Vec<Format>>>()?;
        let names = weights.iter().map(|&weight| self.weight_ref(weight)).collect::<Result<Vec<_>>>()?;
        Ok(self.packed(Recipe { names, rows: rows.to_vec(), columns, formats, transposed, paired }))
    }

    /// How the arena holds a weight: as the graph has it. Blocks that the source does not give as rows are widened, and rounded to bf16.
    fn held(&self, weight: Value, transposed: bool) -> Result<Format> {
        let format = self.graph.type_of(weight).format;
        ensure!(format != Format::I32, "a matrix of i32");
        if format.block().0 == 1 {
            return Ok(format);
        }
        let given = if transposed { None } else { self.source.raw_format(&self.weight_ref(weight)?)? };
        Ok(if given == Some(format) { format } else { Format::BF16 })
    }

    /// `x` in 16 bits, where one of the matrices asks for it.
    fn coded(&mut self, x: Buffer, matrices: &[usize]) -> Option<Buffer> {
        let asked = matrices.iter().any(|&matrix| self.recipes[matrix].has_blocks());
        let known = self.coded.get(&x).copied();
        if !asked || known.is_some() {
            return known.filter(|_| asked);
        }
        let out = self.new_buffer(coded_floats(self.shapes[x].size));
        self.push(Step::Code { x, out });
        self.coded.insert(x, out);
        Some(out)
    }

    /// The number of a matrix; equal ones share one.
    fn packed(&mut self, recipe: Recipe) -> usize {
        let next = self.recipes.len();
        let number = *self.recipe_numbers.entry(recipe.clone()).or_insert(next);
        if number == next {
            self.recipes.push(recipe);
        }
        number
    }

    fn constant(&self, value: Value, size: usize) -> Result<Box<[f32]>> {
        let name = self.weight_ref(value)?;
        let shape: Vec<usize> = self.graph.type_of(value).fixed_sizes().collect();
        ensure!(shape.iter().product::<usize>() == size, "weight {name} is {shape:?} where {size} values are needed");
        vector(&name, &shape, self.source)
    }

    fn weight_ref(&self, value: Value) -> Result<WeightRef> {
        match self.graph.op(value.node) {
            Op::Weight(name) => Ok(name.clone()),
            other => bail!("{other} stands where only a weight of the checkpoint can"),
        }
    }

    fn operand(&self, node: NodeId, role: Role) -> Result<Value> {
        self.graph.operand(node, role).with_context(|| format!("operand {role:?} is missing"))
    }

    fn positions(&self, node: NodeId) -> Result<()> {
        let positions = self.operand(node, Role::Positions)?;
        ensure!(
            matches!(self.homes.get(&positions), Some(Home::Ids(Ids::Positions))),
            "the positions are not the input `positions`"
        );
        Ok(())
    }

    fn cache(&self, value: Value) -> Result<usize> {
        match self.homes.get(&value) {
            Some(Home::Cache(cache)) => Ok(*cache),
            _ => bail!("{} stands where only a cache can", self.graph.op(value.node)),
        }
    }

    fn buffer(&self, value: Value) -> Result<Buffer> {
        match self.homes.get(&value) {
            Some(Home::Buffer(buffer)) => Ok(*buffer),
            _ => bail!("{} stands where only an activation can", self.graph.op(value.node)),
        }
    }

    /// The buffer of an operand, in the part that is being lowered.
    fn input(&mut self, value: Value) -> Result<Buffer> {
        let buffer = self.buffer(value)?;
        Ok(self.here(buffer))
    }

    /// In the tail, a copy of the rows that are wanted.
    fn here(&mut self, buffer: Buffer) -> Buffer {
        if !self.in_tail || self.shapes[buffer].tail {
            return buffer;
        }
        if let Some(&copy) = self.gathered.get(&buffer) {
            return copy;
        }
        let copy = self.new_buffer(self.shapes[buffer].size);
        self.push(Step::Gather { x: buffer, out: copy });
        self.gathered.insert(buffer, copy);
        copy
    }

    fn result(&mut self, value: Value) -> Buffer {
        let buffer = self.new_buffer(self.graph.type_of(value).row_size());
        self.homes.insert(value, Home::Buffer(buffer));
        buffer
    }

    fn new_buffer(&mut self, size: usize) -> Buffer {
        self.shapes.push(BufferShape { size, tail: self.in_tail });
        self.shapes.len() - 1
    }

    fn push(&mut self, step: Step) {
        if self.in_tail { self.tail.push(step) } else { self.body.push(step) }
    }

    /// How many rows of the last axis a token has, and how long they are.
    fn heads_of(&self, value: Value) -> Result<(usize, usize)> {
        let ty: &Type = self.graph.type_of(value);
        let dim = ty.last_size().filter(|&dim| dim > 0).context("a symbolic or empty last axis")?;
        Ok((ty.row_size() / dim, dim))
    }

    fn sizes<const N: usize>(&self, value: Value) -> Result<[usize; N]> {
        let ty = self.graph.type_of(value);
        let sizes: Vec<usize> = ty.fixed_sizes().collect();
        sizes.try_into().ok().with_context(|| format!("{ty} where {N} known sizes are needed"))
    }
}
