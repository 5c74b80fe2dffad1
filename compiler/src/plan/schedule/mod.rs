//! From the fused graph to launches: each node becomes the kernels of its family, each value a place.

mod attention;
mod experts;
mod products;
mod shapes;

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result, bail, ensure};

use super::arena::{Lifetime, place};
use super::spec::{ElementKind, KernelSpec, NEAR, NormSpec, Storage};
use super::tuning::Tuning;
use super::{Arg, Cache, Io, Kernel, Launch, Plan, Recipe, Step, StepKind, WeightBuffer};
use crate::ir::{Graph, NodeId, Norm, Op, Results, Role, Type, Value};

/// Blocks a kernel is spread over: the multiprocessors of the largest part in reach. Fewer of them take turns.
pub(crate) const MULTIPROCESSORS: usize = 132;

/// What to plan for.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanOptions {
    /// Batches to decode: powers of two up to 8.
    pub batches: Vec<usize>,
    /// Chunk lengths of prompts: multiples of 8 above 8.
    pub prompts: Vec<usize>,
    /// Launch shapes that were measured.
    pub tuning: Tuning,
    /// Whether blocks may work in clusters: compute capability 9.0 and later.
    pub clusters: bool,
}

impl Default for PlanOptions {
    fn default() -> PlanOptions {
        PlanOptions { batches: vec![1, 2, 4], prompts: vec![32, 128, 512], tuning: Tuning::default(), clusters: false }
    }
}

impl PlanOptions {
    /// Nothing to launch: for who needs the graph alone.
    pub fn none() -> PlanOptions {
        PlanOptions { batches: Vec::new(), prompts: Vec::new(), ..PlanOptions::default() }
    }
}

/// Plans a verified graph.
///
/// # Errors
/// A batch or a chunk that no kernel serves, or an op form that none computes (named).
pub fn plan(graph: &Graph, options: &PlanOptions) -> Result<Plan> {
    let mut planner = Planner::new(graph, options)?;
    let (body, head) = (planner.body.clone(), planner.head.clone());
    for &batch in &options.batches {
        ensure!(matches!(batch, 1 | 2 | 4 | 8), "batch {batch} is not one of 1, 2, 4 and 8");
        for near in [true, false] {
            let mut builder = Builder::new(&mut planner, Rows { count: batch, prompt: false, near });
            builder.nodes(&body, true)?;
            builder.nodes(&head, true)?;
            if near && !builder.has_near_form {
                continue;
            }
            builder.end(if near { StepKind::Near { batch, reach: NEAR } } else { StepKind::Decode { batch } });
            builder.finish();
        }
    }
    for &rows in &options.prompts {
        ensure!(rows > 8 && rows.is_multiple_of(8), "a prompt chunk of {rows} rows is not a multiple of 8 above 8");
        let mut builder = Builder::new(&mut planner, Rows { count: rows, prompt: true, near: false });
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
    tuning: &'g Tuning,
    clusters: bool,
    /// Of the nodes, in the graph's text form.
    numbers: HashMap<NodeId, usize>,
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
    fn new(graph: &'g Graph, options: &'g PlanOptions) -> Result<Planner<'g>> {
        let order: Vec<NodeId> = graph.ordered();
        let last_layer = order.iter().rposition(|&node| graph.node(node).layer.is_some());
        let split = last_layer.map_or(0, |position| position + 1);
        ensure!(split > 0, "the graph {:?} has no layers", graph.name);
        // What the head does not need of a layer (caches) may be ordered behind it: a node is the head's if it depends on no later layer node.
        let (body, head) = order.split_at(split);
        Ok(Planner {
            graph,
            tuning: &options.tuning,
            clusters: options.clusters,
            numbers: graph.numbers(),
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
        let (threads, shared_bytes) = (spec.threads() as u32, spec.shared_bytes() as u32);
        self.kernels.push(Kernel { name: spec.name(), spec, threads, shared_bytes });
        self.kernels.len() - 1
    }

    fn into_plan(self, graph: &Graph) -> Plan {
        let layers =
            graph.node_ids().iter().filter_map(|&node| graph.node(node).layer).max().map_or(0, |last| last + 1);
        let decode =
            self.steps.iter().find(|step| matches!(step.kind, StepKind::Near { .. } | StepKind::Decode { .. }));
        let kernels_per_layer = decode.map_or(0, |step| step.kernels_per_layer(layers));
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
    /// No row is at a position of [`NEAR`] or beyond.
    near: bool,
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

/// The last arguments of a kernel that can set memory to zero, when it does not.
const NO_ZEROS: [Source; 2] = [Source::Ready(Arg::Null), Source::Ready(Arg::Number(0))];

/// The launches of one step (or of two that share their buffers).
struct Builder<'p, 'g> {
    planner: &'p mut Planner<'g>,
    rows: Rows,
    /// The first row in use: the head of a prompt step takes the last row only.
    first_row: usize,
    places: HashMap<Value, Place>,
    /// Nodes that a kernel of another node computes.
    done: HashSet<NodeId>,
    /// The node at hand, and those that its kernels compute beside it.
    covered: Vec<NodeId>,
    buffers: Vec<Lifetime>,
    launches: Vec<Pending>,
    /// The steps so far: kind, the launch behind the last of them, the buffer of its logits.
    ends: Vec<(StepKind, usize, Option<usize>)>,
    logits: Option<usize>,
    /// Routers' logits that are sums in fixed point, 8 bytes each, which the kernel in front of the router makes.
    summed: HashSet<Value>,
    /// Of many rows, results of norms as products take them: a row of what rounding to bfloat16 keeps, and one of what it leaves.
    paired: HashMap<Value, Source>,
    /// Whether a launch is of a form that only near steps have.
    has_near_form: bool,
}

struct Pending {
    kernel: usize,
    grid: [u32; 3],
    args: Vec<Source>,
    node: String,
    layer: Option<usize>,
    weight_bytes: usize,
    covers: Vec<usize>,
}

impl<'p, 'g> Builder<'p, 'g> {
    fn new(planner: &'p mut Planner<'g>, rows: Rows) -> Builder<'p, 'g> {
        Builder {
            planner,
            rows,
            first_row: 0,
            places: HashMap::new(),
            done: HashSet::new(),
            covered: Vec::new(),
            buffers: Vec::new(),
            launches: Vec::new(),
            ends: Vec::new(),
            logits: None,
            summed: HashSet::new(),
            paired: HashMap::new(),
            has_near_form: false,
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
            if self.done.contains(&node) {
                continue;
            }
            let op = self.graph().op(node).clone();
            let before = self.launches.len();
            self.covered = vec![node];
            match &op {
                Op::Input(_) | Op::Weight(_) => {}
                Op::State(name) => {
                    let cache = self.planner.cache(name, self.graph().type_of(node.result(0)))?;
                    self.set(node.result(0), Source::Ready(Arg::Cache(cache)), Storage::BF16);
                }
                Op::Embedding => self.embedding(node)?,
                Op::Matmul(matmul) => self.matmul(node, matmul, sample)?,
                Op::Norm(norm) if self.is_of_experts(node, norm) => {}
                Op::Norm(norm) => self.norm(node, norm)?,
                Op::Rope(_) | Op::KvAppend => self.positional(node, &op)?,
                Op::Attention(attention) => self.attention(node, attention)?,
                Op::Add => self.elementwise(node, ElementKind::Add)?,
                Op::Mul => self.elementwise(node, ElementKind::Mul)?,
                Op::Activation(activation) => self.elementwise(node, ElementKind::Activate(*activation))?,
                Op::Scale(factor) => self.elementwise(node, ElementKind::Scale(*factor))?,
                Op::Softcap(cap) => self.elementwise(node, ElementKind::Softcap(*cap))?,
                Op::Clamp(limit) => self.elementwise(node, ElementKind::Clamp(*limit))?,
                Op::Glu => {
                    let [a, b] = [self.operand(node, Role::A)?, self.operand(node, Role::B)?];
                    let per_row = self.graph().type_of(a) != self.graph().type_of(b);
                    self.elementwise(node, ElementKind::Glu { per_row })?;
                }
                Op::Reshape => {
                    let from = self.place(node, Role::X)?;
                    self.places.insert(node.result(0), from);
                }
                // The kernel of the experts routes.
                Op::Route(_) => {}
                Op::Experts(experts) => self.experts(node, experts)?,
                Op::Sample if sample => self.sample(node, None)?,
                Op::Sample => {}
            }
            let layer = self.graph().node(node).layer;
            let covers: Vec<usize> = self.covered.iter().map(|node| self.planner.numbers[node]).collect();
            for launch in &mut self.launches[before..] {
                launch.node = op.name();
                launch.layer = layer;
                launch.covers = covers.clone();
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
            covers: launch.covers,
        });
        let mut begin = 0;
        for (kind, end, logits) in self.ends {
            let launches = launches.by_ref().take(end - begin).collect();
            let logits = logits.map(|buffer| offsets[buffer]);
            self.planner.steps.push(Step { kind, launches, logits });
            begin = end;
        }
    }

    /// Says that the kernels of the node at hand compute this one, too.
    fn absorb(&mut self, node: NodeId) {
        self.done.insert(node);
        self.covered.push(node);
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

    /// Whether the launch in front can set what the next one adds to to zero.
    fn can_zero(&self) -> bool {
        let begun = self.ends.last().map_or(0, |end| end.1);
        self.few() && self.launches[begun..].last().is_some_and(|launch| launch.args.ends_with(&NO_ZEROS))
    }

    /// Whether blocks may add to `value`: its users read fp32, too.
    fn can_sum(&self, value: Value) -> bool {
        self.can_zero() && self.storage(value) == Storage::F32
    }

    /// So many bytes, four by four, that the next launch adds to and the one in front of it sets to zero.
    fn zeroed(&mut self, bytes: usize) -> usize {
        let buffer = self.buffer(bytes);
        let before = self.launches.len() - 1;
        self.buffers[buffer].first = before;
        let args = &mut self.launches[before].args;
        let zeros = args.len() - NO_ZEROS.len();
        args[zeros..].copy_from_slice(&[Source::Buffer(buffer, 0), Source::Ready(Arg::Number(bytes as u64 / 4))]);
        buffer
    }

    /// Room for a sum that the next launch makes.
    fn sum(&mut self, value: Value) -> Source {
        let buffer = self.zeroed(self.sum_bytes(value));
        self.set(value, Source::Buffer(buffer, 0), Storage::F32);
        Source::Buffer(buffer, 0)
    }

    fn sum_bytes(&self, value: Value) -> usize {
        self.rows.count * self.graph().type_of(value).row_size() * Storage::F32.bytes()
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

    /// How the users of a result read it.
    fn storage(&self, value: Value) -> Storage {
        let graph = self.graph();
        let users = graph.users(value);
        let matmul_input = |&user: &NodeId| {
            matches!(graph.op(user), Op::Matmul(matmul) if matmul.norm.is_none())
                && graph.operand(user, Role::X) == Some(value)
                && graph.operand(user, Role::Residual) != Some(value)
        };
        let rounded = !users.is_empty() && !graph.outputs.contains(&value) && users.iter().all(matmul_input);
        if rounded { Storage::BF16 } else { Storage::F32 }
    }

    /// Room for a result, stored as its users read it.
    fn result(&mut self, value: Value) -> (Source, Storage) {
        let storage = self.storage(value);
        let buffer = self.buffer(self.rows.count * self.graph().type_of(value).row_size() * storage.bytes());
        self.set(value, Source::Buffer(buffer, 0), storage);
        (Source::Buffer(buffer, 0), storage)
    }

    fn launch(&mut self, spec: KernelSpec, grid: [usize; 3], args: Vec<Source>, weight_bytes: usize) {
        let at = self.launches.len();
        for arg in &args {
            if let Source::Buffer(buffer, _) = arg {
                // A buffer that the host reads lasts longer than its launches.
                self.buffers[*buffer].last = self.buffers[*buffer].last.max(at);
            }
        }
        let kernel = self.planner.kernel(spec);
        let grid = grid.map(|blocks| blocks as u32);
        self.launches.push(Pending {
            kernel,
            grid,
            args,
            node: String::new(),
            layer: None,
            weight_bytes,
            covers: Vec::new(),
        });
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
        let rows = self.rows.count * ty.row_size() / size;
        let (out, storage) = self.result_f32(node.result(0));
        let spec = NormSpec { kind: norm.kind, size, eps: norm.eps, paired: false, out: storage };
        self.norm_rows(node, norm.offset, spec, x, out, rows)
    }

    /// The norm of each row, with the weight and bias of `node`.
    fn norm_rows(
        &mut self,
        node: NodeId,
        offset: f32,
        spec: NormSpec,
        x: Source,
        out: Source,
        rows: usize,
    ) -> Result<()> {
        let weight = self.vector(node, Role::NormWeight, offset)?;
        let bias = self.vector(node, Role::NormBias, 0.0)?;
        self.launch(KernelSpec::Norm(spec), [rows, 1, 1], vec![x, weight, bias, out], 0);
        Ok(())
    }

    /// Room for a result that its kernel stores as fp32.
    fn result_f32(&mut self, value: Value) -> (Source, Storage) {
        let buffer = self.buffer(self.rows.count * self.graph().type_of(value).row_size() * 4);
        self.set(value, Source::Buffer(buffer, 0), Storage::F32);
        (Source::Buffer(buffer, 0), Storage::F32)
    }

    fn elementwise(&mut self, node: NodeId, kind: ElementKind) -> Result<()> {
        let (a, b) = match kind {
            ElementKind::Add | ElementKind::Mul | ElementKind::Glu { .. } => {
                (self.pointer(node, Role::A)?, self.pointer(node, Role::B)?)
            }
            _ => (self.pointer(node, Role::X)?, Source::Ready(Arg::Null)),
        };
        let size = self.graph().type_of(node.result(0)).row_size();
        let (out, storage) = self.result(node.result(0));
        self.launch(KernelSpec::Elementwise { kind, size, out: storage }, [self.rows.count, 1, 1], vec![a, b, out], 0);
        self.note_logits(node);
        Ok(())
    }
}
