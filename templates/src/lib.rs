//! One CUDA template a kernel family, and the struct that fills it. A kernel differs from its family by the constants in its first
//! lines and by nothing else. Every source stands alone: it needs no header, and with `FUSE_HOST` defined it is plain C++ over
//! [`HOST_VOCABULARY`].

use askama::Template;

/// `vocabulary.h`: the device vocabulary in plain C++, for the host build.
pub const HOST_VOCABULARY: &str = include_str!("../host/vocabulary.h");

/// `engine.cc`: what runs a host build, compiled once and linked to each kernel.
pub const HOST_ENGINE: &str = include_str!("../host/engine.cc");

/// How the results of a kernel are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// `float`.
    F32,
    /// bfloat16 in a `u16`.
    BF16,
}

impl std::fmt::Display for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Storage::F32 => "float",
            Storage::BF16 => "u16",
        })
    }
}

/// A float constant: the shortest decimal that reads back as the same `float`.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Float(pub f32);

impl std::fmt::Display for Float {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}f", self.0)
    }
}

/// The packed weight of a product (`tiles.cuh`) and the storage of its results.
#[derive(Clone, Debug)]
pub struct Tiles {
    /// Columns.
    pub k: usize,
    /// How many weights, 1 to 3.
    pub outputs: usize,
    /// Rows of each; zero where there is none. Gated: rows of the result.
    pub rows: [usize; 3],
    /// Gate and up rows share a tile.
    pub gated: bool,
    /// Storage of the results.
    pub out_type: Storage,
}

/// How the keys of a row are split over blocks (`splits.cuh`).
#[derive(Clone, Debug, Default)]
pub struct Splits {
    /// Blocks a key head, at most.
    pub max: usize,
    /// Keys that make another block worth its while.
    pub keys: usize,
    /// Sliding window; 0: none.
    pub window: usize,
}

/// Rotary position embedding (`rope.cuh`).
#[derive(Clone, Debug)]
pub struct Rope {
    /// Angles a position, `dim / 2` of them, comma-separated; never empty.
    pub frequencies: String,
    /// Values of a head that rotate; 0: none.
    pub dim: usize,
    /// Pairs are neighbours.
    pub interleaved: bool,
    /// Multiplies cosine and sine.
    pub magnitude: Float,
}

impl Rope {
    /// No rotation.
    pub fn none() -> Rope {
        Rope { frequencies: "0.0f".into(), dim: 0, interleaved: false, magnitude: Float(1.0) }
    }

    /// A rotation by these angles a position.
    pub fn new(frequencies: &[f32], dim: usize, interleaved: bool, magnitude: f32) -> Rope {
        let list: Vec<String> = frequencies.iter().map(|&frequency| Float(frequency).to_string()).collect();
        Rope { frequencies: list.join(", "), dim, interleaved, magnitude: Float(magnitude) }
    }
}

/// `y = W f(x)` for up to eight rows of x.
#[derive(Clone, Debug, Template)]
#[template(path = "matvec.cu")]
#[allow(missing_docs)]
pub struct Matvec {
    pub name: String,
    pub tiles: Tiles,
    pub splits: Splits,
    pub batch: usize,
    pub warps: usize,
    pub depth: usize,
    pub unit: usize,
    pub split: usize,
    pub norm: usize,
    pub eps: Float,
    pub combine: bool,
    pub staged: bool,
    pub heads: usize,
    pub head_dim: usize,
    pub activation: usize,
    pub argmax: bool,
    pub late: bool,
    pub ahead: bool,
    pub router: Router,
}

/// The router that reads the result of a product (`router.cuh`).
#[derive(Clone, Debug, Default)]
pub struct Router {
    /// Logits a row; 0: there is none.
    pub experts: usize,
    /// Of their sums.
    pub copies: usize,
}

/// `y = W x` for many rows of x.
#[derive(Clone, Debug, Template)]
#[template(path = "matmul.cu")]
#[allow(missing_docs)]
pub struct Matmul {
    pub name: String,
    pub tiles: Tiles,
    pub row_tiles: usize,
    pub columns: usize,
    pub row_warps: usize,
    pub split: usize,
    pub paired: bool,
    pub activation: usize,
    /// Weights one behind the other, each for the rows that go to it; 0: one weight for all rows.
    pub experts: usize,
    pub top_k: usize,
    pub by_pair: bool,
}

/// Which experts a row goes to (`route.cuh`).
#[derive(Clone, Debug)]
pub struct Route {
    /// How many there are.
    pub experts: usize,
    /// Experts a row.
    pub top_k: usize,
    /// What makes shares of logits: 0 softmax, 1 sigmoid.
    pub scoring: usize,
    /// A bias counts for the choice.
    pub biased: bool,
    /// The shares of the chosen are divided by their sum.
    pub normalise: bool,
    /// Multiplies the shares.
    pub scale: Float,
}

/// The experts of many rows, and the rows of each expert.
#[derive(Clone, Debug, Template)]
#[template(path = "route.cu")]
#[allow(missing_docs)]
pub struct RouteRows {
    pub name: String,
    pub route: Route,
    pub warps: usize,
}

/// What the experts of up to eight rows have inside.
#[derive(Clone, Debug, Template)]
#[template(path = "experts_hidden.cu")]
#[allow(missing_docs)]
pub struct ExpertsHidden {
    pub name: String,
    pub tiles: Tiles,
    pub route: Route,
    pub batch: usize,
    /// Of logits that are sums; 0: they are none.
    pub copies: usize,
    pub warps: usize,
    pub depth: usize,
    pub norm: bool,
    pub eps: Float,
    pub activation: usize,
}

/// The sum of the experts of up to eight rows.
#[derive(Clone, Debug, Template)]
#[template(path = "experts_sum.cu")]
#[allow(missing_docs)]
pub struct ExpertsSum {
    pub name: String,
    pub tiles: Tiles,
    pub route: Route,
    pub batch: usize,
    /// Of logits that are sums; 0: they are none.
    pub copies: usize,
    pub warps: usize,
    pub depth: usize,
    pub split: usize,
    pub staged: bool,
    pub late: bool,
}

/// Attention of one row over its cache, keys split over blocks.
#[derive(Clone, Debug, Template)]
#[template(path = "attention.cu")]
#[allow(missing_docs)]
pub struct Attention {
    pub name: String,
    pub splits: Splits,
    pub rope: Rope,
    pub attention: Heads,
    pub out_type: Storage,
}

/// Attention of a few rows and the product with what it gives, in clusters.
#[derive(Clone, Debug, Template)]
#[template(path = "attention_projection.cu")]
#[allow(missing_docs)]
pub struct AttentionProjection {
    pub name: String,
    pub splits: Splits,
    pub rope: Rope,
    pub attention: Heads,
    pub tiles: Tiles,
    pub batch: usize,
    pub cluster: usize,
    pub slice: usize,
}

/// Attention of many rows of one sequence.
#[derive(Clone, Debug, Template)]
#[template(path = "attention_rows.cu")]
#[allow(missing_docs)]
pub struct AttentionRows {
    pub name: String,
    pub heads: usize,
    pub key_heads: usize,
    pub head_dim: usize,
    pub window: usize,
    pub scale: Float,
    pub softcap: Float,
    pub sinks: bool,
    pub row_warps: usize,
    pub parts: usize,
    pub keys: usize,
    pub out_type: Storage,
}

/// Query and key heads, for `attention.cuh`.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Heads {
    pub heads: usize,
    pub key_heads: usize,
    pub head_dim: usize,
    pub group: usize,
    pub warps: usize,
    pub chains: usize,
    pub late: bool,
    pub scale: Float,
    pub softcap: Float,
    pub append: bool,
    pub norm: bool,
    pub eps_q: Float,
    pub eps_k: Float,
    pub sinks: bool,
}

/// Rows of the packed embedding table.
#[derive(Clone, Debug, Template)]
#[template(path = "embedding.cu")]
#[allow(missing_docs)]
pub struct Embedding {
    pub name: String,
    pub tiles: Tiles,
    pub threads: usize,
}

/// RMSNorm or LayerNorm of each row.
#[derive(Clone, Debug, Template)]
#[template(path = "norm.cu")]
#[allow(missing_docs)]
pub struct Norm {
    pub name: String,
    pub size: usize,
    pub layer: bool,
    pub eps: Float,
    pub warps: usize,
    pub paired: bool,
    pub out_type: Storage,
}

/// Rotary position embedding of each head.
#[derive(Clone, Debug, Template)]
#[template(path = "rope.cu")]
#[allow(missing_docs)]
pub struct RopeKernel {
    pub name: String,
    pub rope: Rope,
    pub heads: usize,
    pub head_dim: usize,
    pub threads: usize,
}

/// Heads of q and k as attention reads them, keys and values into the caches.
#[derive(Clone, Debug, Template)]
#[template(path = "append.cu")]
#[allow(missing_docs)]
pub struct Append {
    pub name: String,
    pub rope: Rope,
    pub heads: usize,
    pub key_heads: usize,
    pub head_dim: usize,
    pub norm_q: usize,
    pub norm_k: usize,
    pub eps_q: Float,
    pub eps_k: Float,
    pub warps: usize,
}

/// Keys or values into the cache.
#[derive(Clone, Debug, Template)]
#[template(path = "kv_append.cu")]
#[allow(missing_docs)]
pub struct KvAppend {
    pub name: String,
    pub key_heads: usize,
    pub head_dim: usize,
    pub threads: usize,
}

/// One expression, element by element.
#[derive(Clone, Debug, Template)]
#[template(path = "elementwise.cu")]
#[allow(missing_docs)]
pub struct Elementwise {
    pub name: String,
    pub kind: usize,
    pub activation: usize,
    pub factor: Float,
    pub count: usize,
    pub size: usize,
    pub threads: usize,
    pub out_type: Storage,
}

/// The next token of each row.
#[derive(Clone, Debug, Template)]
#[template(path = "sample.cu")]
#[allow(missing_docs)]
pub struct Sample {
    pub name: String,
    pub vocabulary: usize,
    pub maxima: usize,
    pub warps: usize,
    pub cluster: usize,
    pub ring: usize,
}

/// A read of memory and nothing else.
#[derive(Clone, Debug, Template)]
#[template(path = "read.cu")]
#[allow(missing_docs)]
pub struct Read {
    pub name: String,
    pub threads: usize,
    pub unroll: usize,
}
