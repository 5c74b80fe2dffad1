//! The plan: which kernels run in which order, where every value lives, and how weights are packed. The runtime knows nothing else.

mod arena;
mod batches;
mod place;
mod schedule;
pub mod tuning;
mod weights;

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

pub use fuse_kernels as kernels;
pub use fuse_kernels::{KernelSpec, RING, Reads, SCORES_RING};

pub use crate::ir::{Format, Replay, Start};
pub(crate) use schedule::MULTIPROCESSORS;
pub use schedule::{PlanOptions, plan};
pub use tuning::{Tuning, TuningSource};
pub use weights::{Part, Recipe, WeightBuffer, WeightFormat};

/// Everything the runtime needs to run a model, for one set of packed weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The model's name.
    pub name: String,
    /// Logits a row.
    pub vocabulary: usize,
    /// Layers of the model.
    pub layers: usize,
    /// Kernels a layer when decoding, from the layer that has the most; of the near step, where there is one.
    pub kernels_per_layer: usize,
    /// Grid-wide dependencies per layer when decoding. Launches form one chain, so each is one.
    pub edges_per_layer: usize,
    /// Bytes of activations, all steps together.
    pub arena_bytes: usize,
    /// Packed weights, in order of first use.
    pub weights: Vec<WeightBuffer>,
    /// What outlives a step, in order of first use.
    pub states: Vec<StateBuffer>,
    /// Distinct kernels, in order of first use.
    pub kernels: Vec<Kernel>,
    /// The steps the runtime can take.
    pub steps: Vec<Step>,
}

/// A state of the graph on the device, for each sequence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StateBuffer {
    /// The state's name in the graph.
    pub name: String,
    /// What a sequence begins with.
    #[serde(default, skip_serializing_if = "is_default")]
    pub start: Start,
    /// What running a step again does.
    #[serde(default, skip_serializing_if = "is_default")]
    pub replay: Replay,
    /// How it lies there.
    pub layout: StateLayout,
}

/// How a state lies on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateLayout {
    /// The keys or the values of one layer: bfloat16 `[sequence][heads][context][padded]`.
    Positions {
        /// Key heads.
        heads: usize,
        /// Values per head, rounded up to 8.
        padded: usize,
    },
    /// `[sequence][bytes]`.
    Whole {
        /// Bytes per sequence.
        bytes: usize,
    },
}

impl StateBuffer {
    /// Bytes of one sequence with a context of that many positions; the most that a number holds, which no memory does, where it would be more.
    pub fn bytes(&self, context: usize) -> usize {
        match self.layout {
            StateLayout::Positions { heads, padded } => {
                [heads, context, padded, 2].into_iter().fold(1, usize::saturating_mul)
            }
            StateLayout::Whole { bytes } => bytes,
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A kernel, and what a launch of it needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// The name of the function.
    pub name: String,
    /// What specialises it.
    pub spec: KernelSpec,
    /// Threads per block.
    pub threads: u32,
    /// Bytes of dynamic shared memory per block.
    pub shared_bytes: u32,
}

impl Kernel {
    /// The kernel that this specialises.
    pub fn new(spec: KernelSpec) -> Kernel {
        let family = spec.family();
        let (name, threads, shared_bytes) = (family.name(), family.threads() as u32, family.shared_bytes() as u32);
        Kernel { name, spec, threads, shared_bytes }
    }

    /// Its CUDA text, whole: it includes nothing.
    ///
    /// # Errors
    /// Only where the template fails to render, which no spec causes.
    pub fn source(&self) -> Result<String> {
        self.spec.family().source().with_context(|| format!("the template of {} does not render", self.name))
    }
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// One token for each of `batch` sequences: embedding to sampled token.
    Decode {
        /// Sequences.
        batch: usize,
    },
    /// The same for sequences whose tokens all stand at positions below `reach`: a form that is fastest while there are few keys.
    Near {
        /// Sequences.
        batch: usize,
        /// The first position that it is not for.
        reach: usize,
    },
    /// Up to `rows` tokens of a prompt, all but the head. Shorter chunks sit at the end, rows before them are at position -1.
    Prompt {
        /// Rows.
        rows: usize,
    },
    /// The head and the sampled token for the last row of a `Prompt` step of as many rows.
    Last {
        /// Rows.
        rows: usize,
    },
    /// The logits of every row of a `Prompt` step of as many rows.
    Score {
        /// Rows.
        rows: usize,
    },
}

/// An ordered list of launches; each depends on the one before it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// What it does.
    pub kind: StepKind,
    /// In order.
    pub launches: Vec<Launch>,
    /// Where the logits are, as a byte offset into the arena: fp32, `[rows][vocabulary]`. A `Prompt` step has none.
    pub logits: Option<usize>,
    /// Per cent of a multiprocessor's first-level memory that its kernels have as shared memory; `None`: as the driver chooses.
    pub shared_share: Option<u32>,
}

/// One kernel launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// Index into [`Plan::kernels`].
    pub kernel: usize,
    /// Blocks.
    pub grid: [u32; 3],
    /// One 64-bit value per argument.
    pub args: Vec<Arg>,
    /// The graph node it computes (or a part of it).
    pub node: String,
    /// The layer of that node.
    pub layer: Option<usize>,
    /// Bytes of weights and of states that it reads.
    pub reads: Reads,
    /// The nodes that it computes (or a part of the first of them), by their numbers in the graph's text form.
    pub covers: Vec<usize>,
}

/// An argument of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arg {
    /// A null pointer: an operand this kernel does not have.
    Null,
    /// A number.
    Number(u64),
    /// The number of positions of each sequence's caches.
    Context,
    /// A packed weight, by index.
    Weight(usize),
    /// A state, by index.
    State(usize),
    /// A byte offset into the arena.
    Arena(usize),
    /// A buffer shared with the host, from row `.1` on.
    Io(Io, usize),
}

/// Buffers through which host and device talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Io {
    /// `i32[sequences]`: the next token of each sequence.
    Tokens,
    /// `i32[sequences]`: its position; -1 stops a sequence.
    Positions,
    /// `i32[sequences]`: 0, 1, 2, …
    Sequences,
    /// `i32[rows]`: a chunk of a prompt.
    PromptTokens,
    /// `i32[rows]`: its positions.
    PromptPositions,
    /// `i32[rows]`: its sequence, in every row.
    PromptSequences,
    /// Sampling parameters, one record per sequence.
    Parameters,
    /// `u64[sequences][RING]` in host memory: the sampled tokens, by position, each below the generation of its sequence.
    Ring,
}

/// Rows of a step, at most: far more than any has.
const MOST_ROWS: usize = 1 << 20;

impl Plan {
    /// The step of that kind.
    pub fn step(&self, kind: StepKind) -> Option<&Step> {
        self.steps.iter().find(|step| step.kind == kind)
    }

    /// The decode step for `batch` sequences whose last token stands at `position`.
    pub fn decode_at(&self, batch: usize, position: usize) -> StepKind {
        let near =
            |step: &&Step| matches!(step.kind, StepKind::Near { batch: b, reach } if b == batch && position < reach);
        self.steps.iter().find(near).map_or(StepKind::Decode { batch }, |step| step.kind)
    }

    /// Whether each launch that computes this node, given by its number in the graph's text form, computes another node too.
    pub fn fuses(&self, node: usize) -> bool {
        let mut launches = self.steps.iter().flat_map(|step| &step.launches);
        let mut covering = launches.by_ref().filter(|launch| launch.covers.contains(&node)).peekable();
        covering.peek().is_some() && covering.all(|launch| launch.covers.len() > 1)
    }

    /// Whether a launch computes this node, given by its number in the graph's text form, together with another.
    pub fn shares(&self, node: usize) -> bool {
        let mut launches = self.steps.iter().flat_map(|step| &step.launches);
        launches.any(|launch| launch.covers.len() > 1 && launch.covers.contains(&node))
    }

    /// Checks a plan that was read from a file: every index and offset lies inside what it points into.
    ///
    /// # Errors
    /// The first that does not, with its step and launch.
    pub fn check(&self) -> Result<()> {
        for step in &self.steps {
            let logits_end = step.logits.map_or(0, |offset| offset.saturating_add(self.vocabulary.saturating_mul(4)));
            ensure!(logits_end <= self.arena_bytes, "{:?}: its logits lie outside the arena", step.kind);
            let rows = match step.kind {
                StepKind::Decode { batch: rows } | StepKind::Near { batch: rows, .. } => rows,
                StepKind::Prompt { rows } | StepKind::Last { rows } | StepKind::Score { rows } => rows,
            };
            for (index, launch) in step.launches.iter().enumerate() {
                let inside = |arg: &Arg| match arg {
                    Arg::Weight(weight) => *weight < self.weights.len(),
                    Arg::State(state) => *state < self.states.len(),
                    Arg::Arena(offset) => *offset < self.arena_bytes,
                    Arg::Io(_, row) => *row < rows.min(MOST_ROWS),
                    Arg::Null | Arg::Number(_) | Arg::Context => true,
                };
                ensure!(launch.kernel < self.kernels.len(), "{:?}: launch {index} has no kernel", step.kind);
                if let Some(arg) = launch.args.iter().find(|arg| !inside(arg)) {
                    bail!("{:?}: launch {index} takes {arg:?}, which the plan does not have", step.kind);
                }
            }
        }
        Ok(())
    }

    /// How many buffers of weights hold rounded values, and from which format to which: `113 of 147 weights are rounded: f16 -> bf16, q5_k -> bf16`.
    pub fn rounding(&self) -> Option<String> {
        let mut rounded: Vec<BTreeSet<(Format, Format)>> =
            self.weights.iter().map(|weight| weight.recipe.rounded().into_iter().collect()).collect();
        rounded.retain(|formats| !formats.is_empty());
        let kinds: BTreeSet<(Format, Format)> = rounded.iter().flatten().copied().collect();
        let kinds: Vec<String> = kinds.iter().map(|(from, to)| format!("{} -> {}", from.name(), to.name())).collect();
        let (count, all) = (rounded.len(), self.weights.len());
        (count > 0).then(|| format!("{count} of {all} weights are rounded: {}", kinds.join(", ")))
    }

    /// Bytes of packed weights that one decode step reads.
    pub fn decode_weight_bytes(&self) -> usize {
        let decode = self.steps.iter().find(|step| matches!(step.kind, StepKind::Decode { .. }));
        decode.map_or(0, |step| step.launches.iter().map(|launch| launch.reads.weights).fold(0, usize::saturating_add))
    }

    /// Bytes that one decode step reads of each buffer of weights. What a launch reads is of its matrices, as they are to each other.
    pub fn decode_bytes_by_weight(&self) -> Vec<usize> {
        let mut read = vec![0usize; self.weights.len()];
        let Some(step) = self.steps.iter().find(|step| matches!(step.kind, StepKind::Decode { .. })) else {
            return read;
        };
        for launch in &step.launches {
            let weights =
                launch.args.iter().filter_map(|arg| if let Arg::Weight(weight) = arg { Some(*weight) } else { None });
            let matrices: Vec<usize> = weights.filter(|weight| self.weights[*weight].recipe.rows() > 0).collect();
            let all: usize = matrices.iter().map(|weight| self.weights[*weight].bytes).fold(0, usize::saturating_add);
            for weight in matrices {
                let share = self.weights[weight].bytes as f64 / all.max(1) as f64;
                read[weight] = read[weight].saturating_add((launch.reads.weights as f64 * share).round() as usize);
            }
        }
        read
    }

    /// One line: name, kernels and edges per layer, layers, launches and bytes per step.
    pub fn summary(&self) -> String {
        let is_decode = |step: &&Step| matches!(step.kind, StepKind::Near { .. } | StepKind::Decode { .. });
        let first = self.steps.iter().find(is_decode);
        let far = self.steps.iter().find(|step| matches!(step.kind, StepKind::Decode { .. }));
        let beyond = match (first.map(|step| step.kind), far) {
            (Some(StepKind::Near { reach, .. }), Some(far))
                if far.kernels_per_layer(self.layers) != self.kernels_per_layer =>
            {
                format!(" ({} from position {reach} on)", far.kernels_per_layer(self.layers))
            }
            _ => String::new(),
        };
        format!(
            "plan {}: {} kernels and {} edges per layer{beyond}, {} layers, {} launches per decode step, {:.3} GB of weights per step",
            self.name,
            self.kernels_per_layer,
            self.edges_per_layer,
            self.layers,
            first.map_or(0, |step| step.launches.len()),
            self.decode_weight_bytes() as f64 / 1e9,
        )
    }
}

impl Step {
    /// Kernels of the layer that has the most.
    pub fn kernels_per_layer(&self, layers: usize) -> usize {
        let of = |layer| self.launches.iter().filter(|launch| launch.layer == Some(layer)).count();
        (0..layers).map(of).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_that_points_outside_itself_is_refused() {
        let launch = Launch {
            kernel: 0,
            grid: [1; 3],
            args: vec![Arg::Arena(0)],
            node: String::new(),
            layer: None,
            reads: Reads::default(),
            covers: vec![0],
        };
        let spec = KernelSpec::KvAppend(kernels::KvAppend { key_heads: 1, head_dim: 8 });
        let good = Plan {
            name: "p".into(),
            vocabulary: 16,
            layers: 1,
            kernels_per_layer: 1,
            edges_per_layer: 1,
            arena_bytes: 64,
            weights: Vec::new(),
            states: Vec::new(),
            kernels: vec![Kernel::new(spec)],
            steps: vec![Step {
                kind: StepKind::Decode { batch: 1 },
                launches: vec![launch],
                logits: Some(0),
                shared_share: None,
            }],
        };
        good.check().expect("a good plan");
        for break_it in [
            |plan: &mut Plan| plan.steps[0].launches[0].kernel = 1,
            |plan: &mut Plan| plan.steps[0].launches[0].args.push(Arg::Weight(0)),
            |plan: &mut Plan| plan.steps[0].launches[0].args.push(Arg::State(7)),
            |plan: &mut Plan| plan.steps[0].launches[0].args.push(Arg::Arena(64)),
            |plan: &mut Plan| plan.steps[0].logits = Some(usize::MAX),
        ] {
            let mut bad = good.clone();
            break_it(&mut bad);
            assert!(bad.check().is_err());
        }
    }
}
