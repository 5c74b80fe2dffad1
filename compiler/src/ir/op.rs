//! The operations of the graph. A fused operation is a plain one with more of its chain taken in.

use std::fmt;

use fuse_kernels::{Activation, Function, Gating, NormKind, RopeScaling, RopeTable, Scoring};

use super::{State, WeightRef};

/// What a node computes. Operands are ordered as [`Op::roles`] lists them.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// A value the step is given: `tokens` and `positions`, both `i32[T]`.
    Input(String),
    /// Tensors of the checkpoint, or a part of one.
    Weight(WeightRef),
    /// What outlives a step, as it is before the step.
    State(State),
    /// `table[ids]`.
    Embedding,
    /// `norm? → W x + b → activation or gate? → + residual? → sample?`
    Matmul(Matmul),
    /// A product of each head by a matrix of its own: weights are `[heads, out, in]`, `f32[T, heads, in]` becomes `f32[T, heads, out]`.
    HeadProduct,
    /// The values of each head of `a`, then those of `b`.
    Concat,
    /// Normalisation over the last axis.
    Norm(Norm),
    /// Rotary position embedding over the last axis of `f32[T, heads, head_dim]`.
    Rope(Rope),
    /// `cache[positions] = x`, as a new value.
    KvAppend,
    /// Causal attention of `q` over a cache, up to and including each token's own position.
    Attention(Attention),
    /// `a + b`; see [`values_per`](super::Type::values_per) for the sizes that `b` may have.
    Add,
    /// `a · b`, element by element; as [`Op::Add`].
    Mul,
    /// `a · sigmoid(b)`, element by element; `b` may be one value per token or per head.
    Glu,
    /// `-e^b · a`, the logarithm of a decay; `b` is a weight, as of [`Op::Add`].
    Decay,
    /// An activation function, element by element.
    Activation(Activation),
    /// Another function, element by element.
    Function(Function),
    /// `factor · x`.
    Scale(f32),
    /// `cap · tanh(x / cap)`.
    Softcap(f32),
    /// `min(max(x, -limit), limit)`.
    Clamp(f32),
    /// The same elements under another shape.
    Reshape,
    /// Which experts a token goes to, `i32[T, top_k]`, and what share each has, `f32[T, top_k]`, from a logit for each expert.
    Route(Route),
    /// `Σ share · down_e(f(gate_e x) · up_e x)` over the chosen experts of each token. Weights hold all experts, `[experts, out, in]`; only the
    /// chosen ones need to be read.
    Experts(Experts),
    /// A causal convolution over the tokens of a sequence, each channel for itself: `Σ_j w[c, j] · x_(t-taps+1+j)[c] + b[c]`, inputs before position 0 being
    /// zeros. The state is the last `taps - 1` inputs, the oldest first.
    Conv(Conv),
    /// A memory of each head, `S` of `[size of a key, size of a value]`, zeros before position 0. Token after token `S = e^d S`, `S = S + k (v - S^T k)^T β`
    /// or, without the delta rule, `S = S + k v^T`; the result is `S^T q`.
    Recall(Recall),
    /// The next token of each row of logits. The reference takes the first largest; a step samples as its parameters say.
    Sample,
}

/// A matrix product and what is fused around it. Weights are `[out, in]`, or `[in, out]` where `transposed`.
#[derive(Clone, Debug, PartialEq)]
pub struct Matmul {
    /// Applied to `x` first; recomputed by whoever multiplies.
    pub norm: Option<Norm>,
    /// One entry per weight, all multiplied by the same `x`: whether it has a bias. A plain product has one result per entry.
    pub biases: Vec<bool>,
    /// Weights are stored `[in, out]`.
    pub transposed: bool,
    /// What happens to the products.
    pub epilogue: Epilogue,
    /// `+ residual`, the last operand.
    pub residual: bool,
    /// A further result `i32[T]`: the sampled token of each row.
    pub sample: bool,
}

/// What a [`Matmul`] does with its products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// Nothing.
    None,
    /// `f(y)`.
    Activate(Activation),
    /// `f(y₀) · y₁`: two weights, one result.
    Gate(Activation),
}

/// RMSNorm or LayerNorm over the last axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// Which of the two.
    pub kind: NormKind,
    /// Added to the variance (or the mean square).
    pub eps: f32,
    /// Added to the weight: 1 where checkpoints store `w - 1` (Gemma).
    pub offset: f32,
    /// Has a weight.
    pub weight: bool,
    /// Has a bias.
    pub bias: bool,
}

/// Rotary position embedding: the first `dim` of each head rotate, the rest pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The base of the frequencies (`rope_theta`).
    pub theta: f64,
    /// How many of a head's values rotate; even.
    pub dim: usize,
    /// Pairs are `(2i, 2i+1)`; otherwise `(i, i + dim/2)`.
    pub interleaved: bool,
    /// How the frequencies are stretched beyond the trained context.
    pub scaling: RopeScaling,
}

/// Causal attention and what is fused around it. Query heads share key heads in consecutive groups.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Multiplies `q · k`.
    pub scale: f32,
    /// Each token sees itself and the `window - 1` before it.
    pub window: Option<usize>,
    /// `cap · tanh(score / cap)` before the softmax.
    pub softcap: Option<f32>,
    /// A learned logit per head that takes part in the softmax and adds no value.
    pub sinks: bool,
    /// Values are the first of their keys, that many, and have no cache.
    pub latent: Option<usize>,
    /// Takes `k` and `v` of the step, puts them into the caches, and returns those too.
    pub append: bool,
    /// Applied to each head of `q`, before RoPE. Only with `append`.
    pub q_norm: Option<Norm>,
    /// Applied to each head of `k`, before RoPE. Only with `append`.
    pub k_norm: Option<Norm>,
    /// Applied to `q` and `k`. Only with `append`.
    pub rope: Option<Rope>,
    /// The output projection.
    pub proj: Option<Projection>,
}

/// How a router's logits choose experts. The largest are chosen, the first of equal ones; with a bias, the largest sums of it and a score, which is
/// what a share is before it is normalised.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Experts per token.
    pub top_k: usize,
    /// How logits become shares.
    pub scoring: Scoring,
    /// Has a bias, which is added for the choice only.
    pub bias: bool,
    /// The shares of the chosen are divided by their sum.
    pub normalise: bool,
    /// Multiplies the shares at the end.
    pub scale: f32,
    /// Has a factor for each expert, too, which multiplies its share.
    pub expert_scale: bool,
    /// Experts fall into consecutive groups, the first number of them; only those of the best groups, the second number, may be chosen. A group is as good as the
    /// largest of what is compared in it; with a bias, as the sum of the two largest.
    pub groups: Option<[usize; 2]>,
}

/// An MLP per expert.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experts {
    /// Applied to the gate, or to `up` where there is no gate.
    pub activation: Activation,
    /// Has a gate.
    pub gated: bool,
    /// What is made of the gate and `up`.
    pub gating: Gating,
    /// Gate and `up` have biases.
    pub biased: bool,
    /// `down` has a bias, which counts by the expert's share.
    pub down_bias: bool,
}

/// A short convolution. Weights are `[channels, 1, taps]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv {
    /// Has a bias.
    pub bias: bool,
}

/// A recurrent memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recall {
    /// What the memory has for a key is replaced by its value, as far as `β` says; otherwise the value is added to it.
    pub delta: bool,
}

/// The output projection of a fused attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Projection {
    /// Has a bias.
    pub bias: bool,
    /// `+ residual`.
    pub residual: bool,
    /// The weight is stored `[in, out]`.
    pub transposed: bool,
}

/// What an operand is to its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The activation the op works on.
    X,
    /// Left operand of a sum or product.
    A,
    /// Right operand of a sum or product.
    B,
    /// Token ids.
    Ids,
    /// The embedding table, `[vocabulary, hidden]`.
    Table,
    /// Positions of the tokens, `i32[T]`.
    Positions,
    /// Weight `i` of a matmul.
    Weight(usize),
    /// Bias `i` of a matmul.
    Bias(usize),
    /// Weight of the (fused) norm.
    NormWeight,
    /// Bias of the (fused) norm.
    NormBias,
    /// What is added last.
    Residual,
    /// Queries, `f32[T, heads, head_dim]`.
    Q,
    /// Keys of this step, `f32[T, kv_heads, head_dim]`.
    K,
    /// Values of this step.
    V,
    /// Key cache.
    KeyCache,
    /// Value cache.
    ValueCache,
    /// A single cache, of `kv_append`.
    Cache,
    /// Weight of the fused norm of q.
    QNormWeight,
    /// Weight of the fused norm of k.
    KNormWeight,
    /// Sink logits, one per head.
    Sinks,
    /// Weight of the fused output projection.
    ProjWeight,
    /// Bias of the fused output projection.
    ProjBias,
    /// The experts of each token, `i32[T, top_k]`.
    Chosen,
    /// Their shares, `f32[T, top_k]`.
    Shares,
    /// Of a route: what is added to each expert's score for the choice, `f32[experts]`.
    ChoiceBias,
    /// Of a route: what the share of each expert is multiplied by, `f32[experts]` or another float.
    ExpertScale,
    /// Gates of all experts.
    Gate,
    /// Up projections of all experts.
    Up,
    /// Down projections of all experts.
    Down,
    /// Biases of the gates.
    GateBias,
    /// Biases of the up projections.
    UpBias,
    /// Biases of the down projections.
    DownBias,
    /// The last inputs of each sequence, of a convolution.
    Inputs,
    /// The logarithm of what a memory keeps, `f32[T, heads of v]` or `f32[T, heads of v, size of a key]`.
    Decay,
    /// How far a value replaces what a memory has, `f32[T, heads of v]`.
    Beta,
    /// The memory of each head, `f32[heads of v, size of a key, size of a value]`.
    Memory,
}

impl Op {
    /// The operands in their order. The number of operands of a node equals the length of this list.
    pub fn roles(&self) -> Vec<Role> {
        match self {
            Op::Input(_) | Op::Weight(_) | Op::State(_) => vec![],
            Op::Embedding => vec![Role::Ids, Role::Table],
            Op::Matmul(matmul) => matmul.roles(),
            Op::Norm(norm) => {
                let mut roles = vec![Role::X];
                roles.extend(norm.weight.then_some(Role::NormWeight));
                roles.extend(norm.bias.then_some(Role::NormBias));
                roles
            }
            Op::Rope(_) => vec![Role::X, Role::Positions],
            Op::KvAppend => vec![Role::Cache, Role::X, Role::Positions],
            Op::Attention(attention) => attention.roles(),
            Op::Add | Op::Mul | Op::Glu | Op::Decay | Op::Concat => vec![Role::A, Role::B],
            Op::HeadProduct => vec![Role::X, Role::Weight(0)],
            Op::Route(route) => {
                let mut roles = vec![Role::X];
                roles.extend(route.bias.then_some(Role::ChoiceBias));
                roles.extend(route.expert_scale.then_some(Role::ExpertScale));
                roles
            }
            Op::Experts(experts) => {
                let mut roles = vec![Role::X, Role::Chosen, Role::Shares];
                roles.extend(experts.gated.then_some(Role::Gate));
                roles.extend([Role::Up, Role::Down]);
                roles.extend((experts.biased && experts.gated).then_some(Role::GateBias));
                roles.extend(experts.biased.then_some(Role::UpBias));
                roles.extend(experts.down_bias.then_some(Role::DownBias));
                roles
            }
            Op::Recall(recall) => {
                let mut roles = vec![Role::Q, Role::K, Role::V, Role::Decay];
                roles.extend(recall.delta.then_some(Role::Beta));
                roles.extend([Role::Memory, Role::Positions]);
                roles
            }
            Op::Conv(conv) => {
                let mut roles = vec![Role::X, Role::Inputs, Role::Positions, Role::Weight(0)];
                roles.extend(conv.bias.then_some(Role::Bias(0)));
                roles
            }
            Op::Activation(_)
            | Op::Function(_)
            | Op::Scale(_)
            | Op::Softcap(_)
            | Op::Clamp(_)
            | Op::Reshape
            | Op::Sample => vec![Role::X],
        }
    }

    /// The states that the op changes: the role of each before the step, and the result that is it after the step.
    pub fn next_states(&self) -> &'static [(Role, usize)] {
        match self {
            Op::KvAppend => &[(Role::Cache, 0)],
            Op::Conv(_) => &[(Role::Inputs, 1)],
            Op::Recall(_) => &[(Role::Memory, 1)],
            Op::Attention(attention) if attention.append => &[(Role::KeyCache, 1), (Role::ValueCache, 2)],
            Op::Input(_)
            | Op::Weight(_)
            | Op::State(_)
            | Op::Embedding
            | Op::Matmul(_)
            | Op::HeadProduct
            | Op::Concat
            | Op::Norm(_)
            | Op::Rope(_)
            | Op::Attention(_)
            | Op::Add
            | Op::Mul
            | Op::Glu
            | Op::Decay
            | Op::Activation(_)
            | Op::Function(_)
            | Op::Scale(_)
            | Op::Softcap(_)
            | Op::Clamp(_)
            | Op::Reshape
            | Op::Route(_)
            | Op::Experts(_)
            | Op::Sample => &[],
        }
    }

    /// What an op without operands stands for, as its text form names it.
    pub(super) fn leaf(&self) -> Option<String> {
        match self {
            Op::Input(name) => Some(name.clone()),
            Op::State(state) => Some(state.name.clone()),
            Op::Weight(weight) => Some(weight.to_string()),
            _ => None,
        }
    }

    /// The op's name in the text form; a fused op is named by its chain, in order (`norm_matmul_gated`).
    pub fn name(&self) -> String {
        match self {
            Op::Input(_) => "input".into(),
            Op::Weight(_) => "weight".into(),
            Op::State(_) => "state".into(),
            Op::Embedding => "embedding".into(),
            Op::Matmul(matmul) => matmul.name(),
            Op::HeadProduct => "head_product".into(),
            Op::Concat => "concat".into(),
            Op::Norm(norm) => norm.kind.name().into(),
            Op::Rope(_) => "rope".into(),
            Op::KvAppend => "kv_append".into(),
            Op::Attention(attention) => attention.name(),
            Op::Add => "add".into(),
            Op::Mul => "mul".into(),
            Op::Glu => "glu".into(),
            Op::Decay => "decay".into(),
            Op::Activation(activation) => activation.name().into(),
            Op::Function(function) => function.name().into(),
            Op::Scale(_) => "scale".into(),
            Op::Softcap(_) => "softcap".into(),
            Op::Clamp(_) => "clamp".into(),
            Op::Reshape => "reshape".into(),
            Op::Route(_) => "route".into(),
            Op::Experts(_) => "experts".into(),
            Op::Conv(_) => "conv".into(),
            Op::Recall(_) => "recall".into(),
            Op::Sample => "sample".into(),
        }
    }
}

impl Experts {
    /// `f(gate x) · up x` or `f(up x)`, without biases.
    pub fn plain(activation: Activation, gated: bool) -> Experts {
        Experts { activation, gated, gating: Gating::default(), biased: false, down_bias: false }
    }
}

impl Matmul {
    /// `y = W x`, one weight, nothing fused.
    pub fn plain(bias: bool) -> Matmul {
        Matmul {
            norm: None,
            biases: vec![bias],
            transposed: false,
            epilogue: Epilogue::None,
            residual: false,
            sample: false,
        }
    }

    /// Whether nothing follows the products: more may still be fused after them.
    pub fn is_bare(&self) -> bool {
        self.epilogue == Epilogue::None && !self.residual && !self.sample
    }

    /// How many results: one per weight, or one where they are gated, and the sampled token.
    pub fn result_count(&self) -> usize {
        let products = if matches!(self.epilogue, Epilogue::Gate(_)) { 1 } else { self.biases.len() };
        products + usize::from(self.sample)
    }

    fn roles(&self) -> Vec<Role> {
        let mut roles = vec![Role::X];
        if let Some(norm) = &self.norm {
            roles.extend(norm.weight.then_some(Role::NormWeight));
            roles.extend(norm.bias.then_some(Role::NormBias));
        }
        roles.extend((0..self.biases.len()).map(Role::Weight));
        roles.extend((0..self.biases.len()).filter(|&i| self.biases[i]).map(Role::Bias));
        roles.extend(self.residual.then_some(Role::Residual));
        roles
    }

    fn name(&self) -> String {
        let norm = if self.norm.is_some() { "norm_" } else { "" };
        let epilogue = match self.epilogue {
            Epilogue::None => "",
            Epilogue::Activate(_) => "_activated",
            Epilogue::Gate(_) => "_gated",
        };
        let residual = if self.residual { "_add" } else { "" };
        let sample = if self.sample { "_sample" } else { "" };
        format!("{norm}matmul{epilogue}{residual}{sample}")
    }
}

impl Attention {
    /// Attention over caches that hold this step's keys already; nothing fused.
    pub fn plain(scale: f32) -> Attention {
        Attention {
            scale,
            window: None,
            softcap: None,
            sinks: false,
            latent: None,
            append: false,
            q_norm: None,
            k_norm: None,
            rope: None,
            proj: None,
        }
    }

    fn roles(&self) -> Vec<Role> {
        let mut roles = vec![Role::Q];
        if self.append {
            roles.extend([Role::K, Role::V]);
        }
        roles.push(Role::KeyCache);
        roles.extend(self.latent.is_none().then_some(Role::ValueCache));
        roles.push(Role::Positions);
        roles.extend(self.q_norm.as_ref().and_then(|norm| norm.weight.then_some(Role::QNormWeight)));
        roles.extend(self.k_norm.as_ref().and_then(|norm| norm.weight.then_some(Role::KNormWeight)));
        roles.extend(self.sinks.then_some(Role::Sinks));
        if let Some(proj) = self.proj {
            roles.push(Role::ProjWeight);
            roles.extend(proj.bias.then_some(Role::ProjBias));
            roles.extend(proj.residual.then_some(Role::Residual));
        }
        roles
    }

    fn name(&self) -> String {
        let norm = if self.q_norm.is_some() || self.k_norm.is_some() { "norm_" } else { "" };
        let rope = if self.rope.is_some() { "rope_" } else { "" };
        let append = if self.append { "append_" } else { "" };
        let proj = match self.proj {
            None => "",
            Some(Projection { residual: false, .. }) => "_proj",
            Some(Projection { residual: true, .. }) => "_proj_add",
        };
        format!("{norm}{rope}{append}attention{proj}")
    }
}

impl Rope {
    /// The angles of all pairs.
    pub fn table(&self) -> RopeTable {
        let (frequencies, magnitude) = self.frequencies();
        RopeTable { dim: self.dim, interleaved: self.interleaved, frequencies, magnitude }
    }

    /// The angle a position turns each pair by, `dim / 2` of them, as transformers computes them, and what multiplies cosine and sine.
    pub fn frequencies(&self) -> (Vec<f32>, f32) {
        let pairs = self.dim / 2;
        let plain = |pair: usize| self.theta.powf(-(2.0 * pair as f64) / self.dim as f64);
        let tau = std::f64::consts::TAU;
        let (frequencies, magnitude): (Vec<f64>, f64) = match &self.scaling {
            RopeScaling::None => ((0..pairs).map(plain).collect(), 1.0),
            RopeScaling::Linear { factor } => ((0..pairs).map(|pair| plain(pair) / factor).collect(), 1.0),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                let stretch = |pair: usize| {
                    let frequency = plain(pair);
                    let wavelength = tau / frequency;
                    if wavelength < original / high_freq_factor {
                        frequency
                    } else if wavelength > original / low_freq_factor {
                        frequency / factor
                    } else {
                        let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                };
                ((0..pairs).map(stretch).collect(), 1.0)
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original, attention_factor, truncate } => {
                let dimension_of =
                    |rotations: f64| self.dim as f64 * (original / (rotations * tau)).ln() / (2.0 * self.theta.ln());
                let (mut low, mut high) = (dimension_of(*beta_fast), dimension_of(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(self.dim as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                let blend = |pair: usize| {
                    let stretched = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    plain(pair) / factor * stretched + plain(pair) * (1.0 - stretched)
                };
                ((0..pairs).map(blend).collect(), *attention_factor)
            }
            RopeScaling::Proportional { factor, part } => {
                let turning = (part * self.dim as f64 / 2.0).floor() as usize;
                let turn = |pair: usize| if pair < turning { plain(pair) / factor } else { 0.0 };
                ((0..pairs).map(turn).collect(), 1.0)
            }
            RopeScaling::LongRope { factors, attention_factor } => {
                ((0..pairs).map(|pair| plain(pair) / factors[pair]).collect(), *attention_factor)
            }
        };
        (frequencies.into_iter().map(|frequency| frequency as f32).collect(), magnitude as f32)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}
