//! From the fused graph to launches: each node becomes the kernels of its family, each value a place.

mod attention;
mod elements;
mod experts;
mod heads;
mod products;
mod recurrent;
mod shapes;
mod storage;
mod wgmma;

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result, bail, ensure};

use super::batches::{FEW, check_batch};
use super::kernels::{self, Expression, KernelSpec, Kind, NormRows, Storage};
use super::place::{Buffer, Draft, NULL, Source, place};
use super::tuning::Tuning;
use super::{Arg, Io, Kernel, Part, Plan, Recipe, StateBuffer, StateLayout, Step, StepKind, WeightBuffer};
use crate::ir::{Dim, Format, Graph, NodeId, Norm, Op, Results, Role, State, Type, Value, WeightRef};
use crate::select::{Decisions, Goal, Rules};

/// Blocks a kernel is spread over: the multiprocessors of the largest part in reach. Fewer of them take turns.
pub(crate) const MULTIPROCESSORS: usize = 132;

/// Positions that a near step is for: up to here a block that takes all keys of a head wins over keys split over blocks.
///
/// On an H200, us per step at depths 120, 160 and 250, near against split: Llama-3.2-1B at batch 1 661, 663, 683 against 697, 698, 700, at batch 4 683, 688, 707 against 700, 701, 705;
/// Qwen3-0.6B at batch 1 468, 479, 513 against 514, 517, 521, at batch 4 516, 529, 572 against 544, 546, 551. At 500 the two are alike.
const NEAR: usize = 256;

/// What to plan for.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanOptions {
    /// Batches to decode: powers of two up to 32.
    pub batches: Vec<usize>,
    /// Chunk lengths of prompts: multiples of 8 above 8.
    pub prompts: Vec<usize>,
    /// Launch shapes that were measured.
    pub tuning: Tuning,
    /// Whether blocks may work in clusters: compute capability 9.0 and later.
    pub clusters: bool,
    /// Whether warpgroups may multiply: sm_90a.
    pub wgmma: bool,
    /// How weights without scales are packed; none: as f16, or as bf16 where that is faster.
    pub whole: Option<Format>,
    /// Which rules decide what kernels compute beside their own nodes.
    pub rules: Rules,
}

impl Default for PlanOptions {
    fn default() -> PlanOptions {
        PlanOptions {
            batches: vec![1, 2, 4],
            prompts: vec![32, 128, 512],
            tuning: Tuning::default(),
            clusters: false,
            wgmma: false,
            whole: None,
            rules: Rules::default(),
        }
    }
}

impl PlanOptions {
    /// Nothing to launch: for callers that need only the graph.
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
        check_batch(batch)?;
        for near in [true, false] {
            if near && batch > FEW {
                continue;
            }
            let mut builder = Builder::new(&mut planner, Rows { count: batch, prompt: false, near });
            builder.nodes(&body, true)?;
            builder.nodes(&head, true)?;
            if near && !builder.has_near_form {
                continue;
            }
            builder.end(if near { StepKind::Near { batch, reach: NEAR } } else { StepKind::Decode { batch } });
            builder.finish()?;
        }
    }
    for &rows in &options.prompts {
        ensure!(rows > FEW && rows.is_multiple_of(8), "a prompt chunk of {rows} rows is not a multiple of 8 above 8");
        let mut builder = Builder::new(&mut planner, Rows { count: rows, prompt: true, near: false });
        builder.nodes(&body, true)?;
        builder.end(StepKind::Prompt { rows });
        builder.nodes(&head, false)?;
        builder.end(StepKind::Score { rows });
        builder.last_row_only();
        builder.nodes(&head, true)?;
        builder.end(StepKind::Last { rows });
        builder.finish()?;
    }
    Ok(planner.into_plan(graph))
}

/// What all steps share.
struct Planner<'g> {
    graph: &'g Graph,
    tuning: &'g Tuning,
    clusters: bool,
    wgmma: bool,
    whole: Option<Format>,
    /// What the rules decided for few rows, and for many.
    few: Decisions,
    many: Decisions,
    /// Of the nodes, in the graph's text form.
    numbers: HashMap<NodeId, usize>,
    /// Nodes up to the last layer, in order.
    body: Vec<NodeId>,
    /// Nodes after the last layer.
    head: Vec<NodeId>,
    weights: Vec<WeightBuffer>,
    recipes: HashMap<Recipe, usize>,
    states: Vec<StateBuffer>,
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
        // What the head does not need of a layer (caches) may be ordered after it: a node is the head's if it depends on no later layer node.
        let (body, head) = order.split_at(split);
        Ok(Planner {
            graph,
            tuning: &options.tuning,
            clusters: options.clusters,
            wgmma: options.wgmma,
            whole: options.whole,
            few: Decisions::of(graph, &Goal { few: true, rules: &options.rules }),
            many: Decisions::of(graph, &Goal { few: false, rules: &options.rules }),
            numbers: graph.numbers(),
            body: body.to_vec(),
            head: head.to_vec(),
            weights: Vec::new(),
            recipes: HashMap::new(),
            states: Vec::new(),
            kernels: Vec::new(),
            steps: Vec::new(),
            arena_bytes: 0,
        })
    }

    fn weight(&mut self, recipe: Recipe) -> usize {
        if let Some(&known) = self.recipes.get(&recipe) {
            return known;
        }
        let tensors: Vec<String> = recipe.tensors().iter().map(ToString::to_string).collect();
        let (name, bytes) = (tensors.join("+"), recipe.bytes());
        self.weights.push(WeightBuffer { name, bytes, recipe: recipe.clone() });
        self.recipes.insert(recipe, self.weights.len() - 1);
        self.weights.len() - 1
    }

    fn state(&mut self, state: &State, ty: &Type) -> Result<usize> {
        if let Some(known) = self.states.iter().position(|known| known.name == state.name) {
            return Ok(known);
        }
        let layout = match ty.shape[..] {
            [Dim::Context, Dim::Fixed(heads), Dim::Fixed(head_dim)] => {
                StateLayout::Positions { heads, padded: head_dim.next_multiple_of(8) }
            }
            [Dim::Context, ..] => bail!("the state {state} is {ty}, not [C, heads, head_dim]"),
            _ => StateLayout::Whole { bytes: ty.format.bytes(ty.row_size()).context("a state ends with a block")? },
        };
        self.states.push(StateBuffer { name: state.name.clone(), start: state.start, replay: state.replay, layout });
        Ok(self.states.len() - 1)
    }

    fn kernel(&mut self, spec: KernelSpec) -> usize {
        if let Some(known) = self.kernels.iter().position(|kernel| kernel.spec == spec) {
            return known;
        }
        self.kernels.push(Kernel::new(spec));
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
            states: self.states,
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
    buffers: Vec<Buffer>,
    launches: Vec<Draft>,
    /// The steps so far: kind, the end of its launches, the buffer of its logits.
    ends: Vec<(StepKind, usize, Option<usize>)>,
    logits: Option<usize>,
    /// Routers' logits that are sums in fixed point, 8 bytes each, which the kernel before the router computes.
    summed: HashSet<Value>,
    /// Of few rows, the x of the last product behind a norm, and the inverse root mean squares that it left.
    rms: Option<(Value, Source)>,
    /// Of many rows, results of norms as products read them.
    normed: HashMap<(Value, Storage), Place>,
    /// Whether a launch is of a form that only near steps have.
    has_near_form: bool,
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
            rms: None,
            normed: HashMap::new(),
            has_near_form: false,
        }
    }

    fn graph(&self) -> &'g Graph {
        self.planner.graph
    }

    /// What the rules decided for steps of so many rows.
    fn decisions(&self) -> &Decisions {
        if self.few() { &self.planner.few } else { &self.planner.many }
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
        self.rows.count <= FEW
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
                Op::State(state) => {
                    let ty = self.graph().type_of(node.result(0));
                    let storage = match ty.format {
                        Format::F32 => Storage::F32,
                        Format::BF16 => Storage::BF16,
                        _ => bail!("the state {state} is {ty}: no kernel reads that"),
                    };
                    let state = self.planner.state(state, ty)?;
                    self.set(node.result(0), Source::Ready(Arg::State(state)), storage);
                }
                Op::Embedding => self.embedding(node)?,
                Op::Matmul(matmul) => self.matmul(node, matmul, sample)?,
                Op::HeadProduct => self.head_product(node)?,
                Op::Concat => self.concat(node)?,
                Op::Norm(_) if self.decisions().is_norm_of_experts(node) => {}
                Op::Norm(norm) => self.norm(node, norm)?,
                Op::Rope(_) | Op::KvAppend => self.positional(node, &op)?,
                Op::Attention(attention) => self.attention(node, attention)?,
                Op::Add | Op::Mul | Op::Glu | Op::Decay => self.pair(node, &op)?,
                Op::Activation(activation) => self.elementwise(node, Expression::Activate(*activation))?,
                Op::Function(function) => self.elementwise(node, Expression::Apply(*function))?,
                Op::Scale(factor) => self.elementwise(node, Expression::Scale(*factor))?,
                Op::Softcap(cap) => self.elementwise(node, Expression::Softcap(*cap))?,
                Op::Clamp(limit) => self.elementwise(node, Expression::Clamp(*limit))?,
                Op::Reshape => {
                    let from = self.place(node, Role::X)?;
                    self.places.insert(node.result(0), from);
                }
                // The kernel of the experts routes.
                Op::Route(_) => {}
                Op::Experts(experts) => self.experts(node, experts)?,
                Op::Conv(_) => self.conv(node)?,
                Op::Recall(recall) => self.recall(node, *recall)?,
                Op::Sample if sample => {
                    let logits = self.pointer(node, Role::X)?;
                    self.sample(logits, None)?;
                }
                Op::Sample => {}
            }
            let layer = self.graph().node(node).layer;
            let covers: Vec<usize> = self.covered.iter().map(|node| self.planner.numbers[node]).collect();
            for launch in &mut self.launches[before..] {
                launch.node = op.name();
                launch.layer = layer;
                if launch.covers.is_empty() {
                    launch.covers = covers.clone();
                }
            }
        }
        Ok(())
    }

    /// What was launched since the last end is a step.
    fn end(&mut self, kind: StepKind) {
        self.ends.push((kind, self.launches.len(), self.logits.take()));
    }

    /// Gives every buffer its place and hands the steps over. Steps of one builder share buffers: a head follows its body.
    fn finish(self) -> Result<()> {
        let (launches, offsets, size) = place(self.launches, &self.buffers)?;
        self.planner.arena_bytes = self.planner.arena_bytes.max(size);
        let mut launches = launches.into_iter();
        let mut begin = 0;
        for (kind, end, logits) in self.ends {
            let launches: Vec<_> = launches.by_ref().take(end - begin).collect();
            let logits = logits.map(|buffer| offsets[buffer]);
            let kernels = launches.iter().map(|launch| &self.planner.kernels[launch.kernel].spec);
            let decodes = matches!(kind, StepKind::Near { .. } | StepKind::Decode { .. });
            let shared_share = kernels.map(|spec| spec.family().shared_share()).min().filter(|_| decodes);
            self.planner.steps.push(Step { kind, launches, logits, shared_share });
            begin = end;
        }
        Ok(())
    }

    /// Says that the kernels of the node at hand compute this one, too.
    fn absorb(&mut self, node: NodeId) {
        self.done.insert(node);
        self.covered.push(node);
    }

    /// Says that the last launch computes this node alone.
    fn last_covers(&mut self, node: NodeId) {
        let number = self.planner.numbers[&node];
        if let Some(last) = self.launches.last_mut() {
            last.covers = vec![number];
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

    /// Whether the launch before the next one can zero what the next one adds to.
    fn can_zero(&self) -> bool {
        let begun = self.ends.last().map_or(0, |end| end.1);
        self.few() && self.launches[begun..].last().is_some_and(Draft::can_zero)
    }

    /// Whether blocks may add to `value`: its users read fp32, too.
    fn can_sum(&self, value: Value) -> bool {
        self.can_zero() && self.storage(value) == Storage::F32
    }

    /// Room for a sum that the next launch adds to; the launch before it sets it to zero.
    fn sum(&mut self, value: Value) -> Source {
        let buffer = Source::Buffer(self.buffer(self.sum_bytes(value)), 0);
        self.set(value, buffer, Storage::F32);
        buffer
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
            None => Ok(NULL),
        }
    }

    /// A buffer of this many bytes.
    fn buffer(&mut self, bytes: usize) -> usize {
        self.buffers.push(Buffer { bytes, kept: false });
        self.buffers.len() - 1
    }

    /// Room for a result, stored as its users read it.
    fn result(&mut self, value: Value) -> (Source, Storage) {
        let storage = self.storage(value);
        let buffer = self.buffer(self.rows.count * self.graph().type_of(value).row_size() * storage.bytes());
        self.set(value, Source::Buffer(buffer, 0), storage);
        (Source::Buffer(buffer, 0), storage)
    }

    /// Launches a kernel for this many rows, its operands bound to its parameters by name. Those that are not given are null.
    fn launch(&mut self, spec: KernelSpec, rows: usize, operands: &[(&str, Source)]) -> Result<()> {
        let family = spec.family();
        let (grid, reads, params) =
            (family.grid(rows).map(|blocks| blocks as u32), family.reads(rows), family.params());
        for (name, _) in operands {
            ensure!(params.iter().any(|param| param.name == *name), "{} has no parameter {name}", family.stem());
        }
        let bind = |param: &kernels::Param| {
            let given = operands.iter().find(|(name, _)| *name == param.name).map(|(_, source)| *source);
            let source = given.unwrap_or(NULL);
            ensure!(param.optional || source != NULL, "{} lacks its operand {}", family.stem(), param.name);
            // A number that is not given is zero.
            let zero = param.kind == Kind::Number && source == NULL;
            Ok((*param, if zero { Source::Ready(Arg::Number(0)) } else { source }))
        };
        let operands = params.iter().map(bind).collect::<Result<_>>()?;
        let kernel = self.planner.kernel(spec);
        let (node, layer, covers) = (String::new(), None, Vec::new());
        self.launches.push(Draft { kernel, grid, operands, node, layer, reads, covers });
        Ok(())
    }

    /// The number of rows, as an operand.
    fn count(&self) -> Source {
        Source::Ready(Arg::Number(self.rows.count as u64))
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
    fn weight(&self, node: NodeId, role: Role) -> Result<(WeightRef, Vec<usize>)> {
        let value = self.operand(node, role)?;
        match self.graph().op(value.node) {
            Op::Weight(name) => Ok((name.clone(), self.graph().type_of(value).fixed_sizes().collect())),
            other => bail!("{}: operand {role:?} is a {other}, not a weight", self.graph().op(node)),
        }
    }

    /// The weight that plays this role as a part of a buffer, `rows` rows of it.
    fn part(&self, node: NodeId, role: Role, rows: usize) -> Result<Part> {
        let (tensor, _) = self.weight(node, role)?;
        Ok(Part { tensor, rows, from: self.graph().type_of(self.operand(node, role)?).format })
    }

    /// An fp32 copy of a weight, `offset` added; null where the node has none.
    fn vector(&mut self, node: NodeId, role: Role, offset: f32) -> Result<Source> {
        if self.graph().operand(node, role).is_none() {
            return Ok(NULL);
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
        self.buffers[buffer].kept = true;
    }

    fn norm(&mut self, node: NodeId, norm: &Norm) -> Result<()> {
        let x = self.pointer(node, Role::X)?;
        let ty = self.graph().type_of(node.result(0)).clone();
        let size = ty.last_size().context("a norm of a symbolic dimension")?;
        let rows = self.rows.count * ty.row_size() / size;
        let (out, storage) = self.result_f32(node.result(0));
        let spec = kernels::Norm { kind: norm.kind, size, eps: norm.eps, paired: false, out: storage };
        self.norm_rows(node, norm.offset, spec, x, out, rows)
    }

    /// The norm of each row, with the weight and bias of `node`.
    fn norm_rows(
        &mut self,
        node: NodeId,
        offset: f32,
        spec: kernels::Norm,
        x: Source,
        out: Source,
        rows: usize,
    ) -> Result<()> {
        let weight = self.vector(node, Role::NormWeight, offset)?;
        let bias = self.vector(node, Role::NormBias, 0.0)?;
        let spec = match spec.out {
            Storage::Tiled => KernelSpec::NormRows(NormRows(spec)),
            Storage::F16 if spec.size.is_multiple_of(64) && !spec.paired => KernelSpec::NormRows(NormRows(spec)),
            Storage::F32 | Storage::BF16 | Storage::F16 => KernelSpec::Norm(spec),
        };
        self.launch(spec, rows, &[("x", x), ("weight", weight), ("bias", bias), ("out", out)])
    }

    /// Room for a result that its kernel stores as fp32.
    fn result_f32(&mut self, value: Value) -> (Source, Storage) {
        let buffer = self.buffer(self.rows.count * self.graph().type_of(value).row_size() * 4);
        self.set(value, Source::Buffer(buffer, 0), Storage::F32);
        (Source::Buffer(buffer, 0), Storage::F32)
    }
}
