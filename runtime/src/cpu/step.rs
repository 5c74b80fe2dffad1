//! The steps of a plan: what each does, with what, and what it touches.

use fusec::ir::{Activation, Epilogue, Function, Gating, NormKind, Route};

/// The number of a buffer: an activation, one row per token.
pub(crate) type Buffer = usize;

/// One thing to do for all rows, split over the threads.
pub(crate) enum Step {
    /// Cosines and sines of each row's position.
    Angles { rope: RopeStep, out: Buffer },
    /// Rows of a table.
    Embed { ids: Ids, table: usize, out: Buffer },
    /// Norm and rotation of each head.
    Heads(HeadsStep),
    /// Matrix products against one operand, and what is fused after them.
    Matmul(MatmulStep),
    /// Attention over the caches.
    Attention(AttentionStep),
    /// `a + b` or `a · b`.
    Combine { multiply: bool, a: Operand, b: Operand, out: Buffer },
    /// `a · sigmoid(b)`.
    Glu { a: Buffer, b: Buffer, out: Buffer },
    /// A function of each element.
    Map { map: Map, x: Buffer, out: Buffer },
    /// Which experts a row goes to.
    Route(RouteStep),
    /// Hidden values of the chosen experts.
    ExpertHidden(HiddenStep),
    /// The sum of the chosen experts.
    ExpertSum(SumStep),
    /// A short convolution over the tokens of each sequence.
    Conv(ConvStep),
    /// A recurrent memory of each head.
    Recall(RecallStep),
    /// The selected rows of a buffer.
    Gather { x: Buffer, out: Buffer },
    /// Each head by a matrix of its own.
    HeadProduct(HeadProductStep),
    /// The values of each head of two buffers: of `sizes` values each.
    Concat { parts: [Buffer; 2], sizes: [usize; 2], out: Buffer },
    /// The same values in 16 bits, as products with quantised blocks read them.
    Code { x: Buffer, out: Buffer },
}

/// What rows of a table are looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ids {
    Tokens,
    Positions,
}

/// See [`Step::Heads`].
pub(crate) struct HeadsStep {
    pub x: Buffer,
    pub heads: usize,
    pub dim: usize,
    pub norm: Option<NormStep>,
    pub angles: Option<Angles>,
    pub to: Destination,
}

/// How far each pair of a head is turned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Angles {
    /// Cosines, then sines.
    pub buffer: Buffer,
    /// Pairs are neighbours.
    pub interleaved: bool,
}

/// The frequencies of a rotation.
pub(crate) struct RopeStep {
    pub frequencies: Vec<f32>,
    pub magnitude: f32,
}

/// A norm with its constants; an absent weight or bias is empty.
pub(crate) struct NormStep {
    pub kind: NormKind,
    pub eps: f32,
    pub weight: Box<[f32]>,
    pub bias: Box<[f32]>,
}

/// Where heads go.
pub(crate) enum Destination {
    Buffer(Buffer),
    Cache(usize),
}

/// See [`Step::Matmul`]. Absent biases are empty.
pub(crate) struct MatmulStep {
    pub x: Buffer,
    /// `x` in 16 bits, where a weight is of quantised blocks.
    pub coded: Option<Buffer>,
    pub matrix: usize,
    pub outs: Vec<Buffer>,
    pub biases: Vec<Box<[f32]>>,
    pub epilogue: Epilogue,
    pub residual: Option<Buffer>,
}

/// See [`Step::Attention`]. Absent sinks are empty.
pub(crate) struct AttentionStep {
    pub q: Buffer,
    pub keys: usize,
    pub values: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub value_dim: usize,
    pub scale: f32,
    pub window: Option<usize>,
    pub softcap: Option<f32>,
    pub sinks: Box<[f32]>,
    /// Values are the first of their keys, and `values` is the cache of those.
    pub latent: bool,
    pub out: Buffer,
}

/// The chosen experts of each row and their shares, from a logit for each.
pub(crate) struct RouteStep {
    pub route: Route,
    /// What counts for the choice beside the score; empty where nothing does.
    pub bias: Box<[f32]>,
    /// What the share of each expert is multiplied by; empty where by nothing.
    pub scales: Box<[f32]>,
    pub x: Buffer,
    /// Experts, then shares: twice `top_k` values.
    pub out: Buffer,
}

/// What each chosen expert has inside.
pub(crate) struct HiddenStep {
    pub x: Buffer,
    /// As in [`MatmulStep`].
    pub coded: Option<Buffer>,
    pub routed: Buffer,
    pub top_k: usize,
    /// One an expert: its gate and up in turns, or its up.
    pub matrices: Vec<usize>,
    pub activation: Activation,
    /// What is made of the gate and `up`.
    pub gating: Gating,
    /// Of the gates, where there are, and of `up`: one expert's after the other's. Empty where there are none.
    pub biases: Vec<Box<[f32]>>,
    /// `top_k` times the values of one expert.
    pub out: Buffer,
}

/// The sum of the chosen experts by their shares.
pub(crate) struct SumStep {
    pub hidden: Buffer,
    /// As in [`MatmulStep`].
    pub coded: Option<Buffer>,
    pub routed: Buffer,
    pub top_k: usize,
    /// One an expert.
    pub matrices: Vec<usize>,
    /// One expert's after the other's; empty where there are none.
    pub bias: Box<[f32]>,
    pub out: Buffer,
}

/// See [`Step::HeadProduct`].
pub(crate) struct HeadProductStep {
    pub x: Buffer,
    /// One per head.
    pub matrices: Vec<usize>,
    pub out: Buffer,
}

/// See [`Step::Conv`].
pub(crate) struct ConvStep {
    pub x: Buffer,
    /// A row of factors for each token that a result depends on, the oldest first.
    pub weight: Box<[f32]>,
    /// Empty where there is none.
    pub bias: Box<[f32]>,
    /// The last inputs of each sequence.
    pub inputs: usize,
    pub out: Buffer,
}

/// See [`Step::Recall`].
pub(crate) struct RecallStep {
    pub q: Buffer,
    pub k: Buffer,
    pub v: Buffer,
    /// One for each head, or one for each place of a key.
    pub decay: Buffer,
    /// With the delta rule.
    pub beta: Option<Buffer>,
    /// Heads of `v`.
    pub heads: usize,
    /// Floats per head of `q` and `k`.
    pub key_dim: usize,
    /// Floats per head of `v`.
    pub dim: usize,
    /// The memories of each sequence.
    pub memory: usize,
    pub out: Buffer,
}

/// An operand of [`Step::Combine`].
#[derive(Debug)]
pub(crate) enum Operand {
    Buffer(Buffer),
    Constant(Box<[f32]>),
}

/// A function of one element.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Map {
    Activation(Activation),
    Function(Function),
    Scale(f32),
    Softcap(f32),
    Clamp(f32),
}

/// What a step touches.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    Read(Buffer),
    Write(Buffer),
    ReadCache(usize),
    WriteCache(usize),
}

impl Step {
    /// Names everything the step touches.
    pub fn accesses(&self, mut touch: impl FnMut(Access)) {
        match self {
            Step::Angles { out, .. } | Step::Embed { out, .. } => touch(Access::Write(*out)),
            Step::Heads(step) => {
                touch(Access::Read(step.x));
                step.angles.into_iter().for_each(|angles| touch(Access::Read(angles.buffer)));
                match step.to {
                    Destination::Buffer(out) => touch(Access::Write(out)),
                    Destination::Cache(cache) => touch(Access::WriteCache(cache)),
                }
            }
            Step::Matmul(step) => {
                touch(Access::Read(step.x));
                step.coded.into_iter().for_each(|coded| touch(Access::Read(coded)));
                step.residual.into_iter().for_each(|residual| touch(Access::Read(residual)));
                step.outs.iter().for_each(|&out| touch(Access::Write(out)));
            }
            Step::Attention(step) => {
                touch(Access::Read(step.q));
                touch(Access::ReadCache(step.keys));
                touch(Access::ReadCache(step.values));
                touch(Access::Write(step.out));
            }
            Step::Combine { a, b, out, .. } => {
                for operand in [a, b] {
                    if let Operand::Buffer(buffer) = operand {
                        touch(Access::Read(*buffer));
                    }
                }
                touch(Access::Write(*out));
            }
            Step::HeadProduct(HeadProductStep { x, out, .. }) => {
                touch(Access::Read(*x));
                touch(Access::Write(*out));
            }
            Step::Concat { parts, out, .. } => {
                parts.iter().for_each(|&buffer| touch(Access::Read(buffer)));
                touch(Access::Write(*out));
            }
            Step::Glu { a, b, out } => {
                [a, b].into_iter().for_each(|&buffer| touch(Access::Read(buffer)));
                touch(Access::Write(*out));
            }
            Step::Map { x, out, .. }
            | Step::Gather { x, out }
            | Step::Code { x, out }
            | Step::Route(RouteStep { x, out, .. }) => {
                touch(Access::Read(*x));
                touch(Access::Write(*out));
            }
            Step::Recall(step) => {
                let read = [step.q, step.k, step.v, step.decay].into_iter().chain(step.beta);
                read.for_each(|buffer| touch(Access::Read(buffer)));
                touch(Access::WriteCache(step.memory));
                touch(Access::Write(step.out));
            }
            Step::Conv(ConvStep { x, inputs, out, .. }) => {
                touch(Access::Read(*x));
                touch(Access::WriteCache(*inputs));
                touch(Access::Write(*out));
            }
            Step::ExpertHidden(HiddenStep { x, coded, routed, out, .. })
            | Step::ExpertSum(SumStep { hidden: x, coded, routed, out, .. }) => {
                [x, routed].into_iter().chain(coded).for_each(|&buffer| touch(Access::Read(buffer)));
                touch(Access::Write(*out));
            }
        }
    }
}

/// A buffer before it has a place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BufferShape {
    /// Floats per row.
    pub size: usize,
    /// It holds rows of the tail only, of which there are fewer at a time.
    pub tail: bool,
}

/// What outlives a pass: the keys or the values of a layer, or what each token changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CacheShape {
    /// Its name in the graph.
    pub name: String,
    /// Key heads; rows of what each token changes.
    pub heads: usize,
    /// Floats per head.
    pub dim: usize,
    /// It has heads for each position; otherwise once for a sequence.
    pub by_position: bool,
}
