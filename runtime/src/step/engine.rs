//! The captured steps of a plan.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fusec::plan::{Launch, Plan, Start, StateBuffer, Step, StepKind};

use super::addresses::{Addresses, PARAMETER_BYTES};
use super::chunks::chunks;
use super::fit::{EngineOptions, check_fit};
use super::io::{IoBuffers, SequenceSlabs, Slab};
use super::load::{Loading, WeightSource, beside};
use super::parameters::Sequence;
use crate::device::{DeviceBuffer, Event, Gpu, GraphExec, GraphShape, Kernel, LaunchOptions, Module, Stream, nvtx};
use crate::sampling::{SamplingParameters, check_prompt};

/// A step as two graphs.
pub(super) struct Halves {
    /// Computes logits.
    pub forward: GraphExec,
    /// Chooses from them.
    pub choose: GraphExec,
}

/// A model on a GPU. Everything is allocated and captured when it is made; a step then is one graph launch.
pub struct GpuEngine {
    pub(super) plan: Plan,
    pub(super) options: EngineOptions,
    pub(super) stream: Stream,
    pub(super) graphs: BTreeMap<StepKind, (GraphExec, GraphShape)>,
    /// Of the decode steps that were run so.
    pub(super) halves: BTreeMap<StepKind, Halves>,
    pub(super) has_logits: Event,
    pub(super) kernels: BTreeMap<StepKind, StepKernels>,
    pub(super) addresses: Addresses,
    // Dropped after the graphs that use them.
    pub(super) arena: DeviceBuffer,
    pub(super) timed_sampling: SamplingParameters,
    pub(super) io: IoBuffers,
    /// Of each sequence.
    pub(super) slabs: Vec<SequenceSlabs>,
    /// Of the latest chunks, the one that was sent first in front.
    pub(super) chunk_slabs: VecDeque<Slab>,
    /// How long a chunk took of the device, by its rows.
    pub(super) chunk_times: BTreeMap<usize, Duration>,
    _weights: Vec<DeviceBuffer>,
    states: Vec<DeviceBuffer>,
    pub(super) gpu: Gpu,
}

impl GpuEngine {
    /// Loads `plan` with the device code of its kernels (by name), packs the weights, allocates the caches and captures every step.
    ///
    /// # Errors
    /// When something does not fit into the GPU's memory (what, how much, how much is free), a kernel's code is missing, or a tensor is.
    pub fn load(
        gpu: Gpu,
        plan: Plan,
        cubins: &BTreeMap<&str, &[u8]>,
        weights: WeightSource<'_>,
        options: EngineOptions,
    ) -> Result<GpuEngine> {
        ensure!(
            options.sequences > 0 && options.context > 0,
            "a context of {} for {} sequences",
            options.context,
            options.sequences
        );
        check_fit(&gpu, &plan, options)?;
        let stream = gpu.stream()?;
        let mut loading = Loading::new(&gpu, &plan, weights)?;
        let state_bytes = |state: &StateBuffer| state.bytes(options.context).saturating_mul(options.sequences);
        let states = plan
            .states
            .iter()
            .map(|state| gpu.alloc_zeroed(state_bytes(state), "the KV cache"))
            .collect::<Result<Vec<DeviceBuffer>>>()?;
        let is_due = |step: &&Step| decoded_batch(step).is_none_or(|batch| batch <= options.sequences);
        let due = plan.steps.iter().filter(is_due);
        let load_due = || {
            due.map(|step| Ok((step.kind, load_kernels(&gpu, &plan, cubins, step)?)))
                .collect::<Result<BTreeMap<_, _>>>()
        };
        let ((), kernels) = beside(|| loading.fill(&plan, weights), load_due)?;
        let weights = loading.weights();
        let arena = gpu.alloc_zeroed(plan.arena_bytes, "activations")?;
        let io = IoBuffers::new(&gpu, &plan, options.sequences)?;
        let slabs = SequenceSlabs::all(&gpu, &plan, options.sequences)?;
        let chunk_slabs = Slab::of_chunks(&gpu, &plan)?;
        let addresses = Addresses {
            weights: weights.iter().map(DeviceBuffer::pointer).collect(),
            states: states.iter().map(DeviceBuffer::pointer).collect(),
            arena: arena.pointer(),
            context: options.context,
            io: io.addresses(),
        };
        let mut engine = GpuEngine {
            plan,
            options,
            stream,
            graphs: BTreeMap::new(),
            halves: BTreeMap::new(),
            has_logits: gpu.event()?,
            kernels,
            addresses,
            arena,
            timed_sampling: SamplingParameters::default(),
            io,
            slabs,
            chunk_slabs,
            chunk_times: BTreeMap::new(),
            _weights: weights,
            states,
            gpu,
        };
        for &kind in engine.kernels.keys() {
            let launches = &engine.step(kind)?.launches;
            let graph = engine.stream.capture(|stream| engine.enqueue(stream, kind, launches, true))?;
            let entry = (graph.instantiate(&engine.stream)?, graph.shape()?);
            engine.graphs.insert(kind, entry);
        }
        Ok(engine)
    }

    /// The plan that is loaded.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The GPU it is loaded on.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Positions a sequence.
    pub fn context(&self) -> usize {
        self.options.context
    }

    /// Nodes and edges of each captured step.
    pub fn graph_shapes(&self) -> impl Iterator<Item = (StepKind, GraphShape)> {
        self.graphs.iter().map(|(kind, (_, shape))| (*kind, *shape))
    }

    /// The logits of each token of one sequence, `[tokens, vocabulary]`, through the prompt steps, or through decode steps.
    ///
    /// # Errors
    /// No tokens, more than the context holds, or a fault on the device.
    pub fn logits(&mut self, tokens: &[u32], by_step: bool) -> Result<Vec<f32>> {
        self.check_prompt(tokens)?;
        let vocabulary = self.plan.vocabulary;
        let mut logits = vec![0f32; tokens.len() * vocabulary];
        self.set_parameters(0, &SamplingParameters::default())?;
        self.begin(0)?;
        if by_step {
            for (position, (&token, row)) in tokens.iter().zip(logits.chunks_exact_mut(vocabulary)).enumerate() {
                let kind = self.plan.decode_at(1, position);
                let offset = self.step(kind)?.logits.context("a decode step has logits")?;
                self.set_rows(&[(token, Some(position))])?;
                self.replay(kind)?;
                self.stream.synchronize()?;
                self.arena.download(offset, bytemuck::cast_slice_mut(row))?;
            }
            return Ok(logits);
        }
        for chunk in chunks(tokens.len(), &self.prompt_sizes()) {
            self.read_chunk(0, chunk.tokens.start, &tokens[chunk.tokens.clone()], false)?;
            let score = StepKind::Score { rows: chunk.rows };
            self.replay(score)?;
            self.stream.synchronize()?;
            let offset = self.step(score)?.logits.context("a score step has logits")?;
            let skipped = (chunk.rows - chunk.tokens.len()) * vocabulary * 4;
            let rows = &mut logits[chunk.tokens.start * vocabulary..chunk.tokens.end * vocabulary];
            self.arena.download(offset + skipped, bytemuck::cast_slice_mut(rows))?;
        }
        Ok(logits)
    }

    /// Puts a prompt into the cache of `sequence` and samples its next token.
    pub fn run_prompt(&mut self, sequence: usize, prompt: &[u32]) -> Result<()> {
        self.begin(sequence)?;
        for chunk in chunks(prompt.len(), &self.prompt_sizes()) {
            let last = chunk.tokens.end == prompt.len();
            self.read_chunk(sequence, chunk.tokens.start, &prompt[chunk.tokens], last)?;
        }
        Ok(())
    }

    /// The logits of the last of these tokens of one sequence, through decode steps that are run launch by launch, without their graphs and without
    /// overlap: the judge of capture.
    ///
    /// # Errors
    /// As [`GpuEngine::logits`].
    pub fn uncaptured_logits(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.check_prompt(tokens)?;
        self.begin(0)?;
        let mut logits = vec![0f32; self.plan.vocabulary];
        for (position, &token) in tokens.iter().enumerate() {
            let kind = self.plan.decode_at(1, position);
            let step = self.step(kind)?;
            self.set_rows(&[(token, Some(position))])?;
            self.enqueue(&self.stream, kind, &step.launches, false)?;
            self.stream.synchronize()?;
            let offset = step.logits.context("a decode step has logits")?;
            self.arena.download(offset, bytemuck::cast_slice_mut(&mut logits))?;
        }
        Ok(logits)
    }

    /// Gives the states of a sequence what they begin with, in stream order. What a step changes for good ([`fusec::plan::Replay::Once`]) is so right
    /// wherever a sequence goes back: it always goes back to its beginning.
    pub(super) fn begin(&self, sequence: usize) -> Result<()> {
        for (state, buffer) in self.plan.states.iter().zip(&self.states) {
            if state.start == Start::Zeros {
                let bytes = state.bytes(self.options.context);
                self.stream.fill(buffer, sequence * bytes, bytes, 0)?;
            }
        }
        Ok(())
    }

    /// Sets the next token and position of the first sequences; those without a position are idle.
    pub fn set_rows(&self, rows: &[(u32, Option<usize>)]) -> Result<()> {
        let tokens: Vec<i32> = rows.iter().map(|&(token, _)| token as i32).collect();
        let positions: Vec<i32> =
            rows.iter().map(|&(_, position)| position.map_or(-1, |position| position as i32)).collect();
        self.stream.synchronize()?;
        self.io.tokens.upload(0, bytemuck::cast_slice(&tokens))?;
        self.io.positions.upload(0, bytemuck::cast_slice(&positions))
    }

    /// Says how a sequence without an end is sampled; nothing may be running.
    pub(super) fn set_parameters(&self, sequence: usize, sampling: &SamplingParameters) -> Result<()> {
        let set_up = self.set_up(sequence, &[], sampling, &Sequence::default())?;
        if let Some((at, bytes)) = set_up.marks {
            self.io.marks.upload(at, &bytes)?;
        }
        self.io.parameters.upload(sequence * PARAMETER_BYTES, &set_up.record)
    }

    pub(super) fn replay(&self, kind: StepKind) -> Result<()> {
        self.stream.replay(&self.graph(kind)?.0)
    }

    pub(super) fn graph(&self, kind: StepKind) -> Result<&(GraphExec, GraphShape)> {
        self.graphs.get(&kind).with_context(|| format!("the plan has no {kind:?} step"))
    }

    /// Puts launches of a step into a stream.
    pub(super) fn enqueue(&self, stream: &Stream, kind: StepKind, launches: &[Launch], overlapped: bool) -> Result<()> {
        let kernels = self.kernels.get(&kind).with_context(|| format!("the {kind:?} step was not loaded"))?;
        enqueue(stream, &self.plan, kernels, &self.addresses, launches, overlapped)
    }

    pub(super) fn step(&self, kind: StepKind) -> Result<&Step> {
        self.plan.step(kind).with_context(|| format!("the plan has no {kind:?} step"))
    }

    pub(super) fn prompt_sizes(&self) -> Vec<usize> {
        let rows = |step: &Step| if let StepKind::Prompt { rows } = step.kind { Some(rows) } else { None };
        self.plan.steps.iter().filter_map(rows).collect()
    }

    pub(super) fn check_prompt(&self, prompt: &[u32]) -> Result<()> {
        check_prompt(prompt, self.plan.vocabulary, self.options.context)
    }
}

/// Puts launches of a plan into a stream, each after the one before it: `overlapped`, each may start before that one ends.
pub(super) fn enqueue(
    stream: &Stream,
    plan: &Plan,
    kernels: &StepKernels,
    addresses: &Addresses,
    launches: &[Launch],
    overlapped: bool,
) -> Result<()> {
    for (index, launch) in launches.iter().enumerate() {
        let kernel = &plan.kernels[launch.kernel];
        let _range = nvtx::range(|| launch_name(launch, &kernel.name));
        let args: Vec<u64> = launch.args.iter().map(|&arg| addresses.resolve(arg)).collect();
        let options = LaunchOptions { programmatic: overlapped && index > 0, ..LaunchOptions::default() };
        let block = [kernel.threads, 1, 1];
        let loaded = kernels.get(&launch.kernel).with_context(|| format!("{} was not loaded", kernel.name))?;
        stream.launch(loaded, launch.grid, block, kernel.shared_bytes, &args, options)?;
    }
    Ok(())
}

/// What a launch is called in a profiler: the layer and the graph node that it computes, and its kernel.
pub(super) fn launch_name(launch: &Launch, kernel: &str) -> String {
    match launch.layer {
        Some(layer) => format!("layer {layer} {}: {kernel}", launch.node),
        None => format!("{}: {kernel}", launch.node),
    }
}

/// The kernels of one step, by their index in the plan.
pub(super) type StepKernels = BTreeMap<usize, Kernel>;

fn decoded_batch(step: &Step) -> Option<usize> {
    match step.kind {
        StepKind::Near { batch, .. } | StepKind::Decode { batch } => Some(batch),
        _ => None,
    }
}

/// The device code of a step's kernels, loaded for this step only, with the step's share of shared memory.
///
/// A kernel that steps share would have one share of shared memory for them all, and a step whose kernels differ in it waits at each change: an H200 took 487 us
/// for a step of Qwen3-0.6B at batch 4 and 327 for SmolLM2's, where by themselves they take 468 and 303. Where code lies makes no difference.
pub(super) fn load_kernels(gpu: &Gpu, plan: &Plan, cubins: &BTreeMap<&str, &[u8]>, step: &Step) -> Result<StepKernels> {
    let mut kernels = StepKernels::new();
    for launch in &step.launches {
        let kernel = &plan.kernels[launch.kernel];
        if kernels.contains_key(&launch.kernel) {
            continue;
        }
        let cubin = cubins.get(kernel.name.as_str()).with_context(|| format!("no device code for {}", kernel.name))?;
        let loaded = Module::load(gpu, cubin)?.kernel(&kernel.name, kernel.shared_bytes)?;
        if let Some(share) = step.shared_share {
            loaded.prefer_shared(share)?;
        }
        kernels.insert(launch.kernel, loaded);
    }
    Ok(kernels)
}
