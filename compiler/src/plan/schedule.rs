//! From the fused graph to launches: each node becomes the kernels of its family, each value a place.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};

use super::arena::{Lifetime, place};
use super::spec::{
    AttentionSpec, ElementKind, KernelSpec, MatmulSpec, MatvecSpec, NormSpec, RopeSpec, RopeTable, Splits, Storage,
    Tiles,
};
use super::{Arg, Cache, Io, Kernel, Launch, Part, Plan, Recipe, Step, StepKind, WeightBuffer};
use crate::ir::{Attention, Epilogue, Graph, Matmul, NodeId, Norm, NormKind, Op, Results, Role, Type, Value};

/// Blocks a kernel is spread over: the multiprocessors of the largest part in reach. Fewer of them take turns.
const MULTIPROCESSORS: usize = 132;

/// What to plan for.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanOptions {
    /// Batches to decode: powers of two up to 8.
    pub batches: Vec<usize>,
    /// Chunk lengths of prompts: multiples of 8 above 8.
    pub prompts: Vec<usize>,
}

impl Default for PlanOptions {
    fn default() -> PlanOptions {
        PlanOptions { batches: vec![1, 2, 4], prompts: vec![32, 128, 512] }
    }
}

/// Plans a verified graph.
///
/// # Errors
/// A batch or a chunk that no kernel serves, or an op form that none computes (named).
pub fn plan(graph: &Graph, options: &PlanOptions) -> Result<Plan> {
    let mut planner = Planner::new(graph)?;
    let (body, head) = (planner.body.clone(), planner.head.clone());
    for &batch in &options.batches {
        ensure!(matches!(batch, 1 | 2 | 4 | 8), "batch {batch} is not one of 1, 2, 4 and 8");
        let mut builder = Builder::new(&mut planner, Rows { count: batch, prompt: false });
        builder.nodes(&body, true)?;
        builder.nodes(&head, true)?;
        builder.end(StepKind::Decode { batch });
        builder.finish();
    }
    for &rows in &options.prompts {
        ensure!(rows > 8 && rows.is_multiple_of(8), "a prompt chunk of {rows} rows is not a multiple of 8 above 8");
        let mut builder = Builder::new(&mut planner, Rows { count: rows, prompt: true });
        builder.nodes(&body, true)?;
        builder.end(StepKind::Prompt { rows });
        builder.nodes(&head, false)?;
        builder.end(StepKind::Score { rows });
        builder.last_row_only();
        builder.nodes(&head, true)?;
        builder.end(StepKind::Last { rows });
        builder.finish();
    }
    Ok(planner.into_plan(graph))
}

/// What all steps share.
struct Planner<'g> {
    graph: &'g Graph,
    /// Nodes up to the last layer, in order.
    body: Vec<NodeId>,
    /// Nodes behind the last layer.
    head: Vec<NodeId>,
    weights: Vec<WeightBuffer>,
    recipes: HashMap<Recipe, usize>,
    caches: Vec<Cache>,
    kernels: Vec<Kernel>,
    steps: Vec<Step>,
    arena_bytes: usize,
}

impl<'g> Planner<'g> {
    fn new(graph: &'g Graph) -> Result<Planner<'g>> {
        let order: Vec<NodeId> = graph.ordered();
        let last_layer = order.iter().rposition(|&node| graph.node(node).layer.is_some());
        let split = last_layer.map_or(0, |position| position + 1);
        ensure!(split > 0, "the graph {:?} has no layers", graph.name);
        // What the head does not need of a layer (caches) may be ordered behind it: a node is the head's if it depends on no later layer node.
        let (body, head) = order.split_at(split);
        Ok(Planner {
            graph,
            body: body.to_vec(),
            head: head.to_vec(),
            weights: Vec::new(),
            recipes: HashMap::new(),
            caches: Vec::new(),
            kernels: Vec::new(),
            steps: Vec::new(),
            arena_bytes: 0,
        })
    }

    fn weight(&mut self, recipe: Recipe) -> usize {
        if let Some(&known) = self.recipes.get(&recipe) {
            return known;
        }
        let (name, bytes) = (recipe.tensors().join("+"), recipe.bytes());
        self.weights.push(WeightBuffer { name, bytes, recipe: recipe.clone() });
        self.recipes.insert(recipe, self.weights.len() - 1);
        self.weights.len() - 1
    }

    fn cache(&mut self, name: &str, ty: &Type) -> Result<usize> {
        if let Some(known) = self.caches.iter().position(|cache| cache.name == name) {
            return Ok(known);
        }
        let sizes: Vec<usize> = ty.fixed_sizes().collect();
        let [heads, head_dim] = sizes[..] else { bail!("cache {name} is {ty}, not [C, heads, head_dim]") };
        self.caches.push(Cache { name: name.into(), heads, padded: head_dim.div_ceil(8) * 8 });
        Ok(self.caches.len() - 1)
    }

    fn kernel(&mut self, spec: KernelSpec) -> usize {
        if let Some(known) = self.kernels.iter().position(|kernel| kernel.spec == spec) {
            return known;
        }
        let name = spec.name();
        let same = self.kernels.iter().filter(|kernel| kernel.spec.name() == name).count();
        let name = if same == 0 { name } else { format!("{name}_{}", same + 1) };
        let (threads, shared_bytes) = (spec.threads() as u32, spec.shared_bytes() as u32);
        self.kernels.push(Kernel { name, spec, threads, shared_bytes });
        self.kernels.len() - 1
    }

    fn into_plan(self, graph: &Graph) -> Plan {
        let layers =
            graph.node_ids().iter().filter_map(|&node| graph.node(node).layer).max().map_or(0, |last| last + 1);
        let decode = self.steps.iter().find(|step| matches!(step.kind, StepKind::Decode { .. }));
        let kernels_per_layer = (0..layers)
            .map(|layer| {
                decode.map_or(0, |step| step.launches.iter().filter(|launch| launch.layer == Some(layer)).count())
            })
            .max()
            .unwrap_or(0);
        let vocabulary = graph.outputs.first().map_or(0, |&logits| graph.type_of(logits).row_size());
        Plan {
            name: graph.name.clone(),
            vocabulary,
            layers,
            kernels_per_layer,
            edges_per_layer: kernels_per_layer,
            arena_bytes: self.arena_bytes,
            weights: self.weights,
            caches: self.caches,
            kernels: self.kernels,
            steps: self.steps,
        }
    }
}

/// How many rows a step has, and which of the two sets of buffers they come from.
#[derive(Clone, Copy)]
struct Rows {
    count: usize,
    prompt: bool,
}

/// Where a value is.
#[derive(Clone, Copy)]
struct Place {
    arg: Source,
    storage: Storage,
}

/// An argument before buffers have offsets.
#[derive(Clone, Copy, PartialEq)]
enum Source {
    Ready(Arg),
    /// Buffer `.0`, from byte `.1` on.
    Buffer(usize, usize),
}

/// The launches of one step (or of two that share their buffers).
struct Builder<'p, 'g> {
    planner: &'p mut Planner<'g>,
    rows: Rows,
    /// The first row in use: the head of a prompt step takes the last row only.
    first_row: usize,
    places: HashMap<Value, Place>,
    buffers: Vec<Lifetime>,
    launches: Vec<Pending>,
    /// The steps so far: kind, the launch behind the last of them, the buffer of its logits.
    ends: Vec<(StepKind, usize, Option<usize>)>,
    logits: Option<usize>,
}

struct Pending {
    kernel: usize,
    grid: [u32; 3],
    args: Vec<Source>,
    node: String,
    layer: Option<usize>,
    weight_bytes: usize,
}

impl<'p, 'g> Builder<'p, 'g> {
    fn new(planner: &'p mut Planner<'g>, rows: Rows) -> Builder<'p, 'g> {
        Builder {
            planner,
            rows,
            first_row: 0,
            places: HashMap::new(),
            buffers: Vec::new(),
            launches: Vec::new(),
            ends: Vec::new(),
            logits: None,
        }
    }

    fn graph(&self) -> &'g Graph {
        self.planner.graph
    }

    /// From here on the step has one row: the last.
    fn last_row_only(&mut self) {
        self.first_row = self.rows.count - 1;
        let offset = self.first_row;
        let graph = self.graph();
        for (value, place) in &mut self.places {
            if let Source::Buffer(_, at) = &mut place.arg {
                *at += offset * graph.type_of(*value).row_size() * place.storage.bytes();
            }
        }
        self.rows.count = 1;
    }

    /// Few rows: weights are streamed once and the fused kernels apply.
    fn few(&self) -> bool {
        self.rows.count <= 8
    }

    fn nodes(&mut self, nodes: &[NodeId], sample: bool) -> Result<()> {
        for &node in nodes {
            let op = self.graph().op(node).clone();
            let before = self.launches.len();
            match &op {
                Op::Input(_) | Op::Weight(_) => {}
                Op::State(name) => {
                    let cache = self.planner.cache(name, self.graph().type_of(node.result(0)))?;
                    self.set(node.result(0), Source::Ready(Arg::Cache(cache)), Storage::BF16);
                }
                Op::Embedding => self.embedding(node)?,
                Op::Matmul(matmul) => self.matmul(node, matmul, sample)?,
                Op::Norm(norm) => self.norm(node, norm)?,
                Op::Rope(_) | Op::KvAppend => self.positional(node, &op)?,
                Op::Attention(attention) => self.attention(node, attention)?,
                Op::Add => self.elementwise(node, ElementKind::Add)?,
                Op::Mul => self.elementwise(node, ElementKind::Mul)?,
                Op::Activation(activation) => self.elementwise(node, ElementKind::Activate(*activation))?,
                Op::Scale(factor) => self.elementwise(node, ElementKind::Scale(*factor))?,
                Op::Softcap(cap) => self.elementwise(node, ElementKind::Softcap(*cap))?,
                Op::Reshape => {
                    let from = self.place(node, Role::X)?;
                    self.places.insert(node.result(0), from);
                }
                Op::Sample if sample => self.sample(node, None)?,
                Op::Sample => {}
            }
            let layer = self.graph().node(node).layer;
            for launch in &mut self.launches[before..] {
                launch.node = op.name();
                launch.layer = layer;
            }
        }
        Ok(())
    }

    /// What was launched since the last end is a step.
    fn end(&mut self, kind: StepKind) {
        self.ends.push((kind, self.launches.len(), self.logits.take()));
    }

    /// Gives every buffer its place and hands the steps over. Steps of one builder share buffers: a head follows its body.
    fn finish(self) {
        let (offsets, size) = place(&self.buffers);
        let resolve = |source: &Source| match source {
            Source::Ready(arg) => *arg,
            Source::Buffer(buffer, offset) => Arg::Arena(offsets[*buffer] + offset),
        };
        self.planner.arena_bytes = self.planner.arena_bytes.max(size);
        let mut launches = self.launches.into_iter().map(|launch| Launch {
            kernel: launch.kernel,
            grid: launch.grid,
            args: launch.args.iter().map(resolve).collect(),
            node: launch.node,
            layer: launch.layer,
            weight_bytes: launch.weight_bytes,
        });
        let mut begin = 0;
        for (kind, end, logits) in self.ends {
            let launches = launches.by_ref().take(end - begin).collect();
            let logits = logits.map(|buffer| offsets[buffer]);
            self.planner.steps.push(Step { kind, launches, logits });
            begin = end;
        }
    }

    fn set(&mut self, value: Value, arg: Source, storage: Storage) {
        self.places.insert(value, Place { arg, storage });
    }

    fn operand(&self, node: NodeId, role: Role) -> Result<Value> {
        self.graph()
            .operand(node, role)
            .with_context(|| format!("{} has no operand {role:?}", self.graph().op(node).name()))
    }

    fn place(&self, node: NodeId, role: Role) -> Result<Place> {
        let value = self.operand(node, role)?;
        self.places.get(&value).copied().with_context(|| {
            format!(
                "{}: operand {role:?} is a {} that no kernel can read",
                self.graph().op(node),
                self.graph().op(value.node)
            )
        })
    }

    /// The pointer to an fp32 operand.
    fn pointer(&self, node: NodeId, role: Role) -> Result<Source> {
        Ok(self.place(node, role)?.arg)
    }

    fn optional(&self, node: NodeId, role: Role) -> Result<Source> {
        match self.graph().operand(node, role) {
            Some(_) => self.pointer(node, role),
            None => Ok(Source::Ready(Arg::Null)),
        }
    }

    /// A buffer of this many bytes a row, first written by the next launch.
    fn buffer(&mut self, bytes: usize) -> usize {
        self.buffers.push(Lifetime { bytes, first: self.launches.len(), last: self.launches.len() });
        self.buffers.len() - 1
    }

    /// Room for a result, stored as its users read it.
    fn result(&mut self, value: Value) -> (Source, Storage) {
        let graph = self.graph();
        let users = graph.users(value);
        let matmul_input = |&user: &NodeId| {
            matches!(graph.op(user), Op::Matmul(matmul) if matmul.norm.is_none())
                && graph.operand(user, Role::X) == Some(value)
                && graph.operand(user, Role::Residual) != Some(value)
        };
        let rounded = !users.is_empty() && !graph.outputs.contains(&value) && users.iter().all(matmul_input);
        let storage = if rounded { Storage::BF16 } else { Storage::F32 };
        let buffer = self.buffer(self.rows.count * graph.type_of(value).row_size() * storage.bytes());
        self.set(value, Source::Buffer(buffer, 0), storage);
        (Source::Buffer(buffer, 0), storage)
    }

    fn launch(&mut self, spec: KernelSpec, grid: [usize; 3], args: Vec<Source>, weight_bytes: usize) {
        let at = self.launches.len();
        for arg in &args {
            if let Source::Buffer(buffer, _) = arg {
                self.buffers[*buffer].last = at;
            }
        }
        let kernel = self.planner.kernel(spec);
        let grid = grid.map(|blocks| blocks as u32);
        self.launches.push(Pending { kernel, grid, args, node: String::new(), layer: None, weight_bytes });
    }

    fn io(&self, decode: Io, prompt: Io) -> Source {
        Source::Ready(if self.rows.prompt { Arg::Io(prompt, self.first_row) } else { Arg::Io(decode, self.first_row) })
    }

    fn positions(&self) -> Source {
        self.io(Io::Positions, Io::PromptPositions)
    }

    fn sequences(&self) -> Source {
        self.io(Io::Sequences, Io::PromptSequences)
    }

    /// The name and the sizes of the weight that plays this role.
    fn weight(&self, node: NodeId, role: Role) -> Result<(String, Vec<usize>)> {
        let value = self.operand(node, role)?;
        match self.graph().op(value.node) {
            Op::Weight(name) => Ok((name.clone(), self.graph().type_of(value).fixed_sizes().collect())),
            other => bail!("{}: operand {role:?} is a {other}, not a weight", self.graph().op(node)),
        }
    }

    /// An fp32 copy of a weight, `offset` added; null where the node has none.
    fn vector(&mut self, node: NodeId, role: Role, offset: f32) -> Result<Source> {
        if self.graph().operand(node, role).is_none() {
            return Ok(Source::Ready(Arg::Null));
        }
        let (tensor, sizes) = self.weight(node, role)?;
        let size = sizes.iter().product();
        let weight = self.planner.weight(Recipe::Vector { tensor, size, offset_bits: offset.to_bits() });
        Ok(Source::Ready(Arg::Weight(weight)))
    }

    fn embedding(&mut self, node: NodeId) -> Result<()> {
        let (tensor, sizes) = self.weight(node, Role::Table)?;
        let [rows, k] = sizes[..] else { bail!("the embedding table {tensor} has {} dimensions, not 2", sizes.len()) };
        let recipe = Recipe::Tiles { parts: vec![Part { tensor, rows }], k, gated: false, transposed: false };
        let table = self.planner.weight(recipe);
        let (out, storage) = self.result(node.result(0));
        let tiles = Tiles { k, rows: vec![rows], gated: false, out: storage };
        let tokens = self.io(Io::Tokens, Io::PromptTokens);
        let grid = [self.rows.count, 1, 1];
        let bytes = self.rows.count * k * 2;
        self.launch(KernelSpec::Embedding(tiles), grid, vec![Source::Ready(Arg::Weight(table)), tokens, out], bytes);
        Ok(())
    }

    /// A copy of an activation in bfloat16, for a product.
    fn rounded(&mut self, from: Place, size: usize) -> Source {
        if from.storage == Storage::BF16 {
            return from.arg;
        }
        let buffer = self.buffer(self.rows.count * size * 2);
        let spec = KernelSpec::Elementwise { kind: ElementKind::Scale(1.0), size, out: Storage::BF16 };
        let out = Source::Buffer(buffer, 0);
        self.launch(spec, [self.rows.count, 1, 1], vec![from.arg, Source::Ready(Arg::Null), out], 0);
        out
    }

    fn matmul(&mut self, node: NodeId, matmul: &Matmul, sample: bool) -> Result<()> {
        let graph = self.graph();
        let gated = matches!(matmul.epilogue, Epilogue::Gate(_));
        let count = matmul.biases.len();
        let products = matmul.result_count() - usize::from(matmul.sample);
        let x_size = graph.type_of(self.operand(node, Role::X)?).row_size();
        // A kernel has room for three outputs; more are further kernels.
        for first in (0..count).step_by(3) {
            let weights: Vec<usize> = (first..count.min(first + 3)).collect();
            let outputs: Vec<usize> = if gated { vec![0] } else { weights.clone() };
            ensure!(
                outputs.iter().all(|&output| output < products),
                "{} has {count} weights and {products} results",
                graph.op(node)
            );
            let mut parts = Vec::new();
            for &weight in &weights {
                let (tensor, sizes) = self.weight(node, Role::Weight(weight))?;
                let rows = if matmul.transposed { sizes[1] } else { sizes[0] };
                parts.push(Part { tensor, rows });
            }
            let biases: Vec<(Option<String>, usize)> = weights
                .iter()
                .zip(&parts)
                .map(|(&weight, part)| {
                    let bias = matmul.biases[weight].then(|| self.weight(node, Role::Bias(weight))).transpose()?;
                    Ok((bias.map(|(name, _)| name), part.rows))
                })
                .collect::<Result<_>>()?;
            let bias = if biases.iter().any(|(name, _)| name.is_some()) {
                Source::Ready(Arg::Weight(self.planner.weight(Recipe::Biases { parts: biases, gated })))
            } else {
                Source::Ready(Arg::Null)
            };
            let rows: Vec<usize> =
                if gated { vec![parts[0].rows] } else { parts.iter().map(|part| part.rows).collect() };
            let bytes = parts.iter().map(|part| part.rows * x_size * 2).sum();
            let recipe = Recipe::Tiles { parts, k: x_size, gated, transposed: matmul.transposed };
            let packed = Source::Ready(Arg::Weight(self.planner.weight(recipe)));
            let x = self.place(node, Role::X)?;
            let residual = self.optional(node, Role::Residual)?;
            let product = Product { node, matmul, packed, bias, residual, bytes };
            if self.few() {
                self.matvec(&product, x, x_size, rows, &outputs, sample)?;
            } else {
                self.many_rows(&product, x, x_size, rows, &outputs)?;
            }
        }
        Ok(())
    }

    /// A product of few rows, with everything fused.
    fn matvec(
        &mut self,
        product: &Product<'_>,
        x: Place,
        k: usize,
        rows: Vec<usize>,
        outputs: &[usize],
        sample: bool,
    ) -> Result<()> {
        let &Product { node, matmul, packed, bias, residual, bytes } = product;
        let offset = matmul.norm.as_ref().map_or(0.0, |norm| norm.offset);
        let norm_weight = self.vector(node, Role::NormWeight, offset)?;
        let norm_bias = self.vector(node, Role::NormBias, 0.0)?;
        let x = if matmul.norm.is_some() { x.arg } else { self.rounded(x, k) };
        let (outs, storage) = self.outputs(node, outputs);
        let tiles = Tiles { k, rows, gated: matches!(matmul.epilogue, Epilogue::Gate(_)), out: storage };
        let (warps, depth) = matvec_shape(k);
        let blocks = spread(tiles.count());
        let argmax = matmul.sample && sample;
        let maxima = argmax.then(|| self.buffer(self.rows.count * blocks * 8));
        let spec = MatvecSpec {
            tiles,
            batch: self.rows.count,
            warps,
            depth,
            norm: matmul.norm.as_ref().map(|norm| (norm.kind, norm.eps)),
            combine: None,
            activation: activation_of(matmul.epilogue),
            residual: matmul.residual,
            argmax,
        };
        let null = Source::Ready(Arg::Null);
        let maxima_arg = maxima.map_or(null, |buffer| Source::Buffer(buffer, 0));
        let args =
            vec![packed, x, norm_weight, norm_bias, bias, residual, outs[0], outs[1], outs[2], null, null, maxima_arg];
        self.launch(KernelSpec::Matvec(spec), [blocks, 1, 1], args, bytes);
        if matmul.sample {
            let Source::Buffer(buffer, _) = outs[0] else { bail!("logits have no buffer") };
            self.logits = Some(buffer);
            self.keep(buffer);
            if let Some(maxima) = maxima {
                self.sample(node, Some((outs[0], maxima, blocks)))?;
            }
        }
        self.note_logits(node);
        Ok(())
    }

    /// A product of many rows; its norm is a kernel of its own.
    fn many_rows(
        &mut self,
        product: &Product<'_>,
        x: Place,
        k: usize,
        rows: Vec<usize>,
        outputs: &[usize],
    ) -> Result<()> {
        let &Product { node, matmul, packed, bias, residual, bytes } = product;
        let x = match &matmul.norm {
            Some(norm) => {
                let out = self.buffer(self.rows.count * k * 2);
                self.norm_rows(node, norm, x.arg, Source::Buffer(out, 0), self.rows.count, k, Storage::BF16)?;
                Source::Buffer(out, 0)
            }
            None => self.rounded(x, k),
        };
        let (outs, storage) = self.outputs(node, outputs);
        let tiles = Tiles { k, rows, gated: matches!(matmul.epilogue, Epilogue::Gate(_)), out: storage };
        let spec = matmul_shape(tiles, activation_of(matmul.epilogue), self.rows.count);
        let grid = matmul_grid(&spec, self.rows.count);
        let count = Source::Ready(Arg::Number(self.rows.count as u64));
        let args = vec![packed, x, bias, residual, outs[0], outs[1], outs[2], count];
        self.launch(KernelSpec::Matmul(spec), grid, args, bytes);
        self.note_logits(node);
        Ok(())
    }

    /// Places for these results of a product, the rest null. One storage for all.
    fn outputs(&mut self, node: NodeId, outputs: &[usize]) -> ([Source; 3], Storage) {
        let mut places = [Source::Ready(Arg::Null); 3];
        let mut storage = Storage::F32;
        for (slot, &output) in outputs.iter().enumerate() {
            (places[slot], storage) = self.result(node.result(output));
        }
        if outputs.len() > 1 && storage == Storage::BF16 {
            // Results that are stored alike only by chance are stored as fp32, and rounded by whoever needs it.
            for (slot, &output) in outputs.iter().enumerate() {
                let Source::Buffer(buffer, _) = places[slot] else { continue };
                let size = self.graph().type_of(node.result(output)).row_size();
                self.buffers[buffer].bytes = self.rows.count * size * 4;
                self.set(node.result(output), places[slot], Storage::F32);
            }
            storage = Storage::F32;
        }
        (places, storage)
    }

    /// Remembers the buffer of the graph's first output, the logits.
    fn note_logits(&mut self, node: NodeId) {
        let Some(&logits) = self.graph().outputs.first() else { return };
        if logits.node != node {
            return;
        }
        if let Some(Place { arg: Source::Buffer(buffer, _), .. }) = self.places.get(&logits).copied() {
            self.logits = Some(buffer);
            self.keep(buffer);
        }
    }

    /// The host reads this buffer after the step: nothing may take its place.
    fn keep(&mut self, buffer: usize) {
        self.buffers[buffer].last = usize::MAX;
    }

    fn norm(&mut self, node: NodeId, norm: &Norm) -> Result<()> {
        let x = self.pointer(node, Role::X)?;
        let ty = self.graph().type_of(node.result(0)).clone();
        let size = ty.last_size().context("a norm of a symbolic dimension")?;
        let (out, storage) = self.result(node.result(0));
        let rows = self.rows.count * ty.row_size() / size;
        self.norm_rows(node, norm, x, out, rows, size, storage)
    }

    #[allow(clippy::too_many_arguments)]
    fn norm_rows(
        &mut self,
        node: NodeId,
        norm: &Norm,
        x: Source,
        out: Source,
        rows: usize,
        size: usize,
        storage: Storage,
    ) -> Result<()> {
        let weight = self.vector(node, Role::NormWeight, norm.offset)?;
        let bias = self.vector(node, Role::NormBias, 0.0)?;
        let spec = NormSpec { kind: norm.kind, size, eps: norm.eps, out: storage };
        self.launch(KernelSpec::Norm(spec), [rows, 1, 1], vec![x, weight, bias, out], 0);
        Ok(())
    }

    /// RoPE and cache writes that stand alone.
    fn positional(&mut self, node: NodeId, op: &Op) -> Result<()> {
        let x = self.pointer(node, Role::X)?;
        let ty = self.graph().type_of(self.operand(node, Role::X)?).clone();
        let sizes: Vec<usize> = ty.fixed_sizes().collect();
        let [heads, head_dim] = sizes[..] else { bail!("{op} of {ty}, not of [T, heads, head_dim]") };
        if let Op::Rope(rope) = op {
            let (out, _) = self.result_f32(node.result(0));
            self.rope_rows(&RopeTable::new(rope), x, out, heads, head_dim);
        } else {
            let cache = self.pointer(node, Role::Cache)?;
            self.append_rows(x, cache, heads, head_dim);
            self.set(node.result(0), cache, Storage::BF16);
        }
        Ok(())
    }

    /// Room for a result that its kernel stores as fp32.
    fn result_f32(&mut self, value: Value) -> (Source, Storage) {
        let buffer = self.buffer(self.rows.count * self.graph().type_of(value).row_size() * 4);
        self.set(value, Source::Buffer(buffer, 0), Storage::F32);
        (Source::Buffer(buffer, 0), Storage::F32)
    }

    fn rope_rows(&mut self, table: &RopeTable, x: Source, out: Source, heads: usize, head_dim: usize) {
        let spec = RopeSpec { table: table.clone(), heads, head_dim };
        let args = vec![x, self.positions(), out];
        self.launch(KernelSpec::Rope(spec), [self.rows.count, 1, 1], args, 0);
    }

    fn append_rows(&mut self, x: Source, cache: Source, key_heads: usize, head_dim: usize) {
        let args = vec![x, self.positions(), self.sequences(), cache, Source::Ready(Arg::Context)];
        self.launch(KernelSpec::KvAppend { key_heads, head_dim }, [self.rows.count, 1, 1], args, 0);
    }

    fn attention(&mut self, node: NodeId, attention: &Attention) -> Result<()> {
        let graph = self.graph();
        let q_type: Vec<usize> = graph.type_of(self.operand(node, Role::Q)?).fixed_sizes().collect();
        let [heads, head_dim] = q_type[..] else {
            bail!("queries have {} dimensions, not [T, heads, head_dim]", q_type.len() + 1)
        };
        let cache_type: Vec<usize> = graph.type_of(self.operand(node, Role::KeyCache)?).fixed_sizes().collect();
        let key_heads = cache_type[0];
        let (keys, values) = (self.pointer(node, Role::KeyCache)?, self.pointer(node, Role::ValueCache)?);
        if attention.append {
            self.set(node.result(1), keys, Storage::BF16);
            self.set(node.result(2), values, Storage::BF16);
        }
        let mut q = self.pointer(node, Role::Q)?;
        let in_kernel = attention.append
            && self.few()
            && attention.q_norm.is_some() == attention.k_norm.is_some()
            && [&attention.q_norm, &attention.k_norm]
                .iter()
                .all(|norm| norm.as_ref().is_none_or(|norm| norm.kind == NormKind::Rms && !norm.bias));
        let (mut k, mut v) = (Source::Ready(Arg::Null), Source::Ready(Arg::Null));
        if attention.append {
            (k, v) = (self.pointer(node, Role::K)?, self.pointer(node, Role::V)?);
            if !in_kernel {
                q = self.prepared(node, attention, q, attention.q_norm.as_ref(), Role::QNormWeight, heads, head_dim)?;
                k = self.prepared(
                    node,
                    attention,
                    k,
                    attention.k_norm.as_ref(),
                    Role::KNormWeight,
                    key_heads,
                    head_dim,
                )?;
                self.append_rows(k, keys, key_heads, head_dim);
                self.append_rows(v, values, key_heads, head_dim);
            }
        }
        let share = heads / key_heads;
        let group = (1..=4).rev().find(|group| share.is_multiple_of(*group)).unwrap_or(1);
        let warps = 8;
        let lanes = (head_dim.div_ceil(8)).next_power_of_two();
        let combined = self.few() && attention.proj.is_some();
        let keys_per_split = 2 * warps * 32 / lanes;
        let blocks = heads / group * self.rows.count;
        let max = if combined { (MULTIPROCESSORS / blocks).clamp(1, 32) } else { 1 };
        // A projection that combines reads partial sums even from a single block.
        let max = if combined { max.max(2) } else { max };
        let splits = Splits { max, keys: keys_per_split, window: attention.window.unwrap_or(0) };
        let proj_input = attention.proj.is_some() && !combined;
        let result = node.result(0);
        let (out, storage, statistics) = if combined {
            let out = self.buffer(max * self.rows.count * heads * head_dim * 4);
            let statistics = self.buffer(max * self.rows.count * heads * 8);
            (Source::Buffer(out, 0), Storage::F32, Source::Buffer(statistics, 0))
        } else if proj_input {
            let out = self.buffer(self.rows.count * heads * head_dim * 2);
            (Source::Buffer(out, 0), Storage::BF16, Source::Ready(Arg::Null))
        } else {
            let (out, storage) = self.result(result);
            (out, storage, Source::Ready(Arg::Null))
        };
        let norms = attention.q_norm.as_ref().zip(attention.k_norm.as_ref()).filter(|_| in_kernel);
        let spec = AttentionSpec {
            heads,
            key_heads,
            head_dim,
            group,
            warps,
            splits,
            scale: attention.scale,
            softcap: attention.softcap,
            append: in_kernel,
            norm: norms.map(|(q_norm, k_norm)| (q_norm.eps, k_norm.eps)),
            rope: attention.rope.as_ref().filter(|_| in_kernel).map(RopeTable::new),
            sinks: attention.sinks,
            out: storage,
        };
        let offset = |norm: &Option<Norm>| norm.as_ref().map_or(0.0, |norm| norm.offset);
        let (mut q_weight, mut k_weight) = (Source::Ready(Arg::Null), Source::Ready(Arg::Null));
        if in_kernel {
            q_weight = self.vector(node, Role::QNormWeight, offset(&attention.q_norm))?;
            k_weight = self.vector(node, Role::KNormWeight, offset(&attention.k_norm))?;
        }
        let sinks = self.vector(node, Role::Sinks, 0.0)?;
        let args = vec![
            q,
            k,
            v,
            keys,
            values,
            self.positions(),
            self.sequences(),
            q_weight,
            k_weight,
            sinks,
            out,
            statistics,
            Source::Ready(Arg::Context),
        ];
        self.launch(KernelSpec::Attention(spec), [heads / group, max, self.rows.count], args, 0);
        if attention.proj.is_some() {
            self.projection(node, attention, out, statistics, heads, head_dim, combined.then_some(splits))?;
        }
        Ok(())
    }

    /// The head-wise norm and the rotation of q or k as kernels of their own.
    #[allow(clippy::too_many_arguments)]
    fn prepared(
        &mut self,
        node: NodeId,
        attention: &Attention,
        from: Source,
        norm: Option<&Norm>,
        role: Role,
        heads: usize,
        head_dim: usize,
    ) -> Result<Source> {
        let mut at = from;
        let bytes = self.rows.count * heads * head_dim * 4;
        if let Some(norm) = norm {
            let out = Source::Buffer(self.buffer(bytes), 0);
            let weight = self.vector(node, role, norm.offset)?;
            let spec = NormSpec { kind: norm.kind, size: head_dim, eps: norm.eps, out: Storage::F32 };
            let args = vec![at, weight, Source::Ready(Arg::Null), out];
            self.launch(KernelSpec::Norm(spec), [self.rows.count * heads, 1, 1], args, 0);
            at = out;
        }
        if let Some(rope) = &attention.rope {
            let out = Source::Buffer(self.buffer(bytes), 0);
            self.rope_rows(&RopeTable::new(rope), at, out, heads, head_dim);
            at = out;
        }
        Ok(at)
    }

    /// The output projection that is fused with an attention.
    #[allow(clippy::too_many_arguments)]
    fn projection(
        &mut self,
        node: NodeId,
        attention: &Attention,
        x: Source,
        statistics: Source,
        heads: usize,
        head_dim: usize,
        combine: Option<Splits>,
    ) -> Result<()> {
        let proj = attention.proj.context("no projection")?;
        let k = heads * head_dim;
        let (tensor, sizes) = self.weight(node, Role::ProjWeight)?;
        let rows = if proj.transposed { sizes[1] } else { sizes[0] };
        let bias = match proj.bias {
            true => {
                let (name, _) = self.weight(node, Role::ProjBias)?;
                Source::Ready(Arg::Weight(
                    self.planner.weight(Recipe::Biases { parts: vec![(Some(name), rows)], gated: false }),
                ))
            }
            false => Source::Ready(Arg::Null),
        };
        let recipe = Recipe::Tiles { parts: vec![Part { tensor, rows }], k, gated: false, transposed: proj.transposed };
        let packed = Source::Ready(Arg::Weight(self.planner.weight(recipe)));
        let residual = self.optional(node, Role::Residual)?;
        let (out, storage) = self.result(node.result(0));
        let tiles = Tiles { k, rows: vec![rows], gated: false, out: storage };
        let null = Source::Ready(Arg::Null);
        let bytes = rows * k * 2;
        if self.few() {
            let (warps, depth) = matvec_shape(k);
            let blocks = spread(tiles.count());
            let spec = MatvecSpec {
                tiles,
                batch: self.rows.count,
                warps,
                depth,
                norm: None,
                combine: combine.map(|splits| (heads, head_dim, splits)),
                activation: None,
                residual: proj.residual,
                argmax: false,
            };
            let args = vec![packed, x, null, null, bias, residual, out, null, null, statistics, self.positions(), null];
            self.launch(KernelSpec::Matvec(spec), [blocks, 1, 1], args, bytes);
        } else {
            let spec = matmul_shape(tiles, None, self.rows.count);
            let grid = matmul_grid(&spec, self.rows.count);
            let count = Source::Ready(Arg::Number(self.rows.count as u64));
            self.launch(KernelSpec::Matmul(spec), grid, vec![packed, x, bias, residual, out, null, null, count], bytes);
        }
        Ok(())
    }

    fn elementwise(&mut self, node: NodeId, kind: ElementKind) -> Result<()> {
        let (a, b) = match kind {
            ElementKind::Add | ElementKind::Mul => (self.pointer(node, Role::A)?, self.pointer(node, Role::B)?),
            _ => (self.pointer(node, Role::X)?, Source::Ready(Arg::Null)),
        };
        let size = self.graph().type_of(node.result(0)).row_size();
        let (out, storage) = self.result(node.result(0));
        self.launch(KernelSpec::Elementwise { kind, size, out: storage }, [self.rows.count, 1, 1], vec![a, b, out], 0);
        self.note_logits(node);
        Ok(())
    }

    /// `fused`: the logits, and the block maxima that the head left.
    fn sample(&mut self, node: NodeId, fused: Option<(Source, usize, usize)>) -> Result<()> {
        let (logits, maxima, blocks) = match fused {
            Some((logits, maxima, blocks)) => (logits, Source::Buffer(maxima, 0), blocks),
            None => (self.pointer(node, Role::X)?, Source::Ready(Arg::Null), 0),
        };
        let vocabulary = self.graph().outputs.first().map_or(0, |&logits| self.graph().type_of(logits).row_size());
        let io = |io| Source::Ready(Arg::Io(io, 0));
        let args = vec![
            logits,
            maxima,
            self.positions(),
            self.sequences(),
            io(Io::Parameters),
            io(Io::Tokens),
            io(Io::Positions),
            io(Io::Ring),
        ];
        self.launch(KernelSpec::Sample { vocabulary, maxima: blocks }, [self.rows.count, 1, 1], args, 0);
        Ok(())
    }
}

/// What both forms of a product share.
struct Product<'m> {
    node: NodeId,
    matmul: &'m Matmul,
    packed: Source,
    bias: Source,
    residual: Source,
    bytes: usize,
}

fn activation_of(epilogue: Epilogue) -> Option<crate::ir::Activation> {
    match epilogue {
        Epilogue::None => None,
        Epilogue::Activate(activation) | Epilogue::Gate(activation) => Some(activation),
    }
}

/// Warps that share the columns of a row tile, and the pairs of tiles each has in flight: 64 KB of weights a block.
///
/// Measured on an H200 (Llama-3.2-1B, batch 1, us a step): 8 warps by 8 pairs 730, 8 by 4 856, 16 by 4 750, 16 by 8 770.
fn matvec_shape(k: usize) -> (usize, usize) {
    let pairs = k.div_ceil(32);
    (8, (4 * pairs.div_ceil(8)).min(8))
}

/// Blocks for this many row tiles, two a multiprocessor: each takes the same number of turns, or one fewer.
///
/// One a multiprocessor costs 10% on the same model: a block's start and end then leave its multiprocessor idle.
fn spread(tiles: usize) -> usize {
    let turns = tiles.div_ceil(2 * MULTIPROCESSORS);
    tiles.div_ceil(turns)
}

/// Few rows make few blocks: there all warps share the columns of one row tile. With many rows they lie side by side.
fn matmul_shape(tiles: Tiles, activation: Option<crate::ir::Activation>, rows: usize) -> MatmulSpec {
    let (row_tiles, columns, row_warps, split) = if rows <= 32 { (1, 4, 1, 8) } else { (2, 8, 2, 2) };
    MatmulSpec { tiles, row_tiles, columns, row_warps, split, activation }
}

fn matmul_grid(spec: &MatmulSpec, rows: usize) -> [usize; 3] {
    [spec.tiles.count().div_ceil(spec.row_tiles * spec.row_warps), rows.div_ceil(8 * spec.columns), 1]
}
