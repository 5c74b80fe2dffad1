//! What specialises a kernel, and all that follows from it: its name, its threads, its shared memory.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ir::{Activation, NormKind, Rope, Scoring};

/// What specialises a kernel: one variant a template.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum KernelSpec {
    Matvec(MatvecSpec),
    Matmul(MatmulSpec),
    Attention(AttentionSpec),
    AttentionRows(AttentionRowsSpec),
    AttentionProjection(AttentionProjectionSpec),
    Route(RouteSpec),
    ExpertsHidden(ExpertsHiddenSpec),
    ExpertsSum(ExpertsSpec),
    Embedding(Tiles),
    Norm(NormSpec),
    Rope(RopeSpec),
    Append(AppendSpec),
    KvAppend { key_heads: usize, head_dim: usize },
    Elementwise { kind: ElementKind, size: usize, out: Storage },
    Sample { vocabulary: usize, maxima: usize, cluster: usize },
}

/// How a value is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Storage {
    F32,
    BF16,
}

/// The packed weight of a product.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tiles {
    /// Columns.
    pub k: usize,
    /// Rows of each output, one to three of them.
    pub rows: Vec<usize>,
    /// Two weights of `rows[0]` rows make one output.
    pub gated: bool,
    /// Storage of the outputs.
    pub out: Storage,
}

/// `y = W f(x)` for up to eight rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct MatvecSpec {
    pub tiles: Tiles,
    pub batch: usize,
    pub warps: usize,
    /// Pairs of tiles that a warp has in flight.
    pub depth: usize,
    /// Row tiles that are finished together.
    pub unit: usize,
    /// Blocks that share the columns of a row tile: 1, or 2 that add to one sum.
    pub split: usize,
    pub norm: Option<(NormKind, f32)>,
    /// x is fp32 without a norm, too.
    pub paired: bool,
    /// Heads, head size and splits of the attention whose parts x is.
    pub combine: Option<(usize, usize, Splits)>,
    pub activation: Option<Activation>,
    pub residual: bool,
    pub argmax: bool,
    /// The next kernel begins when what this one depends on is done, not as soon as this one has begun.
    pub late: bool,
    /// What is added to results is loaded while they are made, not behind that.
    pub ahead: bool,
    /// Logits of the router that reads the result, where this kernel adds its part to them.
    pub router: Option<usize>,
}

/// `y = W x` for many rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct MatmulSpec {
    pub tiles: Tiles,
    pub row_tiles: usize,
    pub columns: usize,
    pub row_warps: usize,
    pub split: usize,
    /// x is what rounding to bfloat16 keeps, and what it leaves.
    pub paired: bool,
    pub activation: Option<Activation>,
    /// One weight an expert, for the rows that go to it.
    pub gather: Option<Gather>,
}

/// A product of each expert with the rows that go to it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gather {
    /// How many experts there are.
    pub experts: usize,
    /// Experts a row.
    pub top_k: usize,
    /// x has a row for each expert of a row. Else a row for all of them, and results are multiplied by the row's share.
    pub by_pair: bool,
}

/// Which experts a row goes to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteSpec {
    /// How many there are.
    pub experts: usize,
    /// Experts a row.
    pub top_k: usize,
    /// What makes shares of logits.
    pub scoring: Scoring,
    /// A bias counts for the choice.
    #[serde(default)]
    pub biased: bool,
    /// The shares of the chosen are divided by their sum.
    pub normalise: bool,
    /// Multiplies the shares.
    pub scale: f32,
}

/// Products of the experts that up to eight rows go to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExpertsSpec {
    /// The packed weight of one expert.
    pub tiles: Tiles,
    /// Which experts it is.
    pub route: RouteSpec,
    /// Rows.
    pub batch: usize,
    /// Logits are sums that the kernel in front of the router made, which is left out: see [`MatvecSpec::router`].
    pub summed: bool,
    /// Warps a block.
    pub warps: usize,
    /// Pairs of tiles that a warp has in flight.
    pub depth: usize,
    /// Blocks that share the columns of a row tile: 1, or 2 that add to one sum.
    pub split: usize,
    /// Of a sum: whether the next kernel begins only when what this one depends on is done.
    pub late: bool,
}

/// `share · f(gate x) · up x` of each chosen expert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExpertsHiddenSpec {
    /// The products.
    pub products: ExpertsSpec,
    /// The epsilon of the rms_norm of x, if it has one.
    pub norm: Option<f32>,
    /// Behind the gate, or behind `up` where there is no gate.
    pub activation: Activation,
}

/// Attention of one row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct AttentionSpec {
    pub heads: usize,
    pub key_heads: usize,
    pub head_dim: usize,
    pub group: usize,
    pub warps: usize,
    pub splits: Splits,
    /// Sums that a product with keys is made in: 1 or 2.
    pub chains: usize,
    /// As a [`MatvecSpec`] has it.
    pub late: bool,
    pub scale: f32,
    pub softcap: Option<f32>,
    pub append: bool,
    pub norm: Option<(f32, f32)>,
    pub rope: Option<RopeTable>,
    pub sinks: bool,
    pub out: Storage,
}

/// Attention of many rows of one sequence: `attention_rows.cu`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct AttentionRowsSpec {
    pub heads: usize,
    pub key_heads: usize,
    pub head_dim: usize,
    /// Keys a token sees; 0: all.
    pub window: usize,
    pub scale: f32,
    pub softcap: Option<f32>,
    pub sinks: bool,
    /// Warps with 16 queries each.
    pub row_warps: usize,
    /// Warps with the same queries, which share the keys of a tile.
    pub parts: usize,
    /// Keys a tile.
    pub keys: usize,
    pub out: Storage,
}

/// Attention of a few rows and the projection of what it gives, in clusters: `attention_projection.cu`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionProjectionSpec {
    /// Its splits say only how far a token sees: the keys are not split over blocks.
    pub attention: AttentionSpec,
    /// The projection's weight.
    pub tiles: Tiles,
    /// Rows a cluster.
    pub batch: usize,
    /// Blocks that share the heads.
    pub cluster: usize,
    /// Row tiles a cluster.
    pub slice: usize,
}

/// How many blocks share the keys of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Splits {
    pub max: usize,
    pub keys: usize,
    pub window: usize,
}

/// A norm over rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct NormSpec {
    pub kind: NormKind,
    pub size: usize,
    pub eps: f32,
    /// The result is what rounding to bfloat16 keeps, and what it leaves.
    pub paired: bool,
    pub out: Storage,
}

/// RoPE over rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct RopeSpec {
    pub table: RopeTable,
    pub heads: usize,
    pub head_dim: usize,
}

/// What stands between a product's q, k and v and the attention that reads q and the caches: `append.cu`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AppendSpec {
    /// Query heads; 0: q stays as it is.
    pub heads: usize,
    /// Heads of keys and of values.
    pub key_heads: usize,
    /// Values a head.
    pub head_dim: usize,
    /// The norm of each head of q.
    pub q_norm: Option<(NormKind, f32)>,
    /// The norm of each head of k.
    pub k_norm: Option<(NormKind, f32)>,
    /// The rotation of q and k.
    pub rope: Option<RopeTable>,
}

/// The angles of a [`Rope`], worked out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct RopeTable {
    pub dim: usize,
    pub interleaved: bool,
    pub frequencies: Vec<f32>,
    pub magnitude: f32,
}

/// An element-wise expression; bits of the factor, so that specs compare.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum ElementKind {
    Add,
    Mul,
    Scale(f32),
    Softcap(f32),
    Clamp(f32),
    /// `a · sigmoid(b)`; `per_row`: b is one value a row.
    Glu {
        per_row: bool,
    },
    Activate(Activation),
    /// `b` plus the sum of so many rows of `a`.
    Sum(usize),
}

/// Threads of the kernels whose blocks have one row.
const ROW_THREADS: usize = 256;

impl KernelSpec {
    /// The kernel's name: its stem, then eight digits of a digest of all that specialises it. Two specs have one name only if they are equal.
    pub fn name(&self) -> String {
        let fields = serde_json::to_string(self).expect("a spec is numbers and names");
        let digest: String = Sha256::digest(fields).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        format!("{}_{digest}", self.stem())
    }

    /// What the kernel computes and its sizes, for readers: different specs may share it.
    pub fn stem(&self) -> String {
        match self {
            KernelSpec::Matvec(spec) => {
                let (kind, tiles) = (spec.kind(), spec.tiles.suffix());
                let routes = spec.router.map_or(String::new(), |experts| format!("_route{experts}"));
                format!("{kind}{routes}_{tiles}_b{}", spec.batch)
            }
            KernelSpec::Matmul(spec) => {
                let gated = if spec.tiles.gated { "_gated" } else { "" };
                let paired = if spec.paired { "_paired" } else { "" };
                let experts = spec.gather.map_or(String::new(), |gather| format!("_e{}", gather.experts));
                format!("matmul{gated}{paired}_{}{experts}_m{}", spec.tiles.suffix(), 8 * spec.columns)
            }
            KernelSpec::Attention(spec) => {
                let norm = if spec.norm.is_some() { "norm_" } else { "" };
                let rope = if spec.rope.is_some() { "rope_" } else { "" };
                let append = if spec.append { "append_" } else { "" };
                let splits = spec.splits.max;
                let window = if spec.splits.window > 0 { format!("_w{}", spec.splits.window) } else { String::new() };
                format!(
                    "{norm}{rope}{append}attention_bf16_h{}_kv{}_d{}_s{splits}{window}",
                    spec.heads, spec.key_heads, spec.head_dim
                )
            }
            KernelSpec::AttentionRows(spec) => {
                let window = if spec.window > 0 { format!("_w{}", spec.window) } else { String::new() };
                let AttentionRowsSpec { heads, key_heads, head_dim, .. } = spec;
                format!("attention_rows_bf16_h{heads}_kv{key_heads}_d{head_dim}_m{}{window}", spec.queries())
            }
            KernelSpec::AttentionProjection(spec) => {
                let attention = KernelSpec::Attention(spec.attention.clone()).stem();
                format!("{attention}_proj_{}_b{}", spec.tiles.suffix(), spec.batch)
            }
            KernelSpec::ExpertsHidden(spec) => format!("{}_{}", spec.kind(), spec.products.suffix()),
            KernelSpec::Route(spec) => format!("route_{}", spec.suffix()),
            KernelSpec::ExpertsSum(spec) => format!("experts_sum_{}", spec.suffix()),
            KernelSpec::Embedding(tiles) => format!("embedding_{}", tiles.suffix()),
            KernelSpec::Norm(spec) => {
                let paired = if spec.paired { "_paired" } else { "" };
                format!("{}{paired}_{}_k{}", spec.kind.name(), spec.out.name(), spec.size)
            }
            KernelSpec::Rope(spec) => format!("rope_h{}_d{}", spec.heads, spec.head_dim),
            KernelSpec::Append(spec) => {
                let norm = if spec.q_norm.is_some() || spec.k_norm.is_some() { "norm_" } else { "" };
                let rope = if spec.rope.is_some() { "rope_" } else { "" };
                format!("{norm}{rope}append_bf16_h{}_kv{}_d{}", spec.heads, spec.key_heads, spec.head_dim)
            }
            KernelSpec::KvAppend { key_heads, head_dim } => format!("kv_append_bf16_h{key_heads}_d{head_dim}"),
            KernelSpec::Elementwise { kind, size, out } => format!("{}_{}_k{size}", kind.name(), out.name()),
            KernelSpec::Sample { vocabulary, .. } => format!("sample_v{vocabulary}"),
        }
    }

    /// Threads a block.
    pub fn threads(&self) -> usize {
        match self {
            KernelSpec::Matvec(spec) => 32 * spec.warps,
            KernelSpec::Matmul(spec) => 32 * spec.row_warps * spec.split,
            KernelSpec::Attention(spec) => 32 * spec.warps,
            KernelSpec::AttentionRows(spec) => 32 * spec.row_warps * spec.parts,
            KernelSpec::AttentionProjection(spec) => 32 * spec.attention.warps,
            KernelSpec::ExpertsHidden(ExpertsHiddenSpec { products: spec, .. }) | KernelSpec::ExpertsSum(spec) => {
                32 * spec.warps
            }
            KernelSpec::Route(_) => 32 * ROUTE_WARPS,
            KernelSpec::Norm(spec) => 32 * norm_warps(spec.size),
            KernelSpec::Sample { .. } => 32 * SAMPLE_WARPS,
            KernelSpec::Embedding(_)
            | KernelSpec::Rope(_)
            | KernelSpec::Append(_)
            | KernelSpec::KvAppend { .. }
            | KernelSpec::Elementwise { .. } => ROW_THREADS,
        }
    }

    /// Bytes of dynamic shared memory a block.
    pub fn shared_bytes(&self) -> usize {
        match self {
            KernelSpec::Matvec(spec) if spec.norm.is_some() || spec.paired => 2 * spec.stage_bytes(),
            KernelSpec::Matvec(spec) if spec.is_staged() => spec.stage_bytes(),
            KernelSpec::AttentionRows(spec) => spec.shared_bytes(),
            KernelSpec::AttentionProjection(spec) => spec.shared_bytes(),
            KernelSpec::ExpertsHidden(ExpertsHiddenSpec { products: spec, .. }) => {
                2 * spec.batch * (spec.tiles.k.div_ceil(32) * 32 + 32) * 2
            }
            KernelSpec::ExpertsSum(spec) if spec.is_staged() => spec.stage_bytes(),
            _ => 0,
        }
    }
}

/// Positions that a near step is for: up to here, what eight warps take in one go, a block that takes all keys of a head wins over keys split over blocks.
pub const NEAR: usize = 128;

/// Warps of the kernel that routes many rows: one block 32 rows.
pub const ROUTE_WARPS: usize = 8;

/// Copies of the sums that a [`MatvecSpec::router`] adds to: blocks that add to one word wait for each other.
pub const ROUTER_COPIES: usize = 4;

/// Warps of the sampling kernel.
pub const SAMPLE_WARPS: usize = 16;

/// Blocks that share a row of logits there, where blocks may work in clusters.
pub const SAMPLE_CLUSTER: usize = 8;

/// Warps of a norm over rows of this size.
pub fn norm_warps(size: usize) -> usize {
    (size / 128).clamp(1, 8)
}

/// Shared memory that a product without a norm may take for its rows; it reads larger ones from L2.
const MOST_STAGED: usize = 64 << 10;

impl MatvecSpec {
    /// Whether the rows of x pass through shared memory.
    pub fn is_staged(&self) -> bool {
        self.norm.is_some() || self.paired || self.combine.is_some() || self.stage_bytes() <= MOST_STAGED
    }

    fn stage_bytes(&self) -> usize {
        self.batch * (self.tiles.k.div_ceil(32).div_ceil(self.split) * 32 + 32) * 2
    }
}

impl AppendSpec {
    /// Blocks a row: each of their warps has a head.
    pub fn blocks(&self) -> usize {
        (self.heads + 2 * self.key_heads).div_ceil(ROW_THREADS / 32)
    }
}

impl AttentionRowsSpec {
    /// Queries a block: a query is a row and one of the heads that share a key head.
    pub fn queries(&self) -> usize {
        16 * self.row_warps
    }

    /// Tiles of keys and values, with the queries behind them if they are wide; then sums in their place.
    fn shared_bytes(&self) -> usize {
        let chunks = self.head_dim.div_ceil(8);
        let tiles = 2 * self.keys * (chunks | 1) * 16;
        let queries = if chunks > 16 { self.row_warps * chunks.div_ceil(4) * 32 * 64 } else { 0 };
        (tiles + queries).max(self.row_warps * self.parts * 16 * (8 * chunks + 8) * 4)
    }
}

impl AttentionProjectionSpec {
    /// `struct Shared` of the kernel.
    pub fn shared_bytes(&self) -> usize {
        let AttentionSpec { heads, key_heads, head_dim, group, warps, .. } = self.attention;
        let (block_heads, block_key_heads) = (heads / self.cluster, key_heads / self.cluster);
        let padded = head_dim.next_multiple_of(8);
        let columns = block_heads * head_dim;
        let weights = self.slice * columns / 32 * 1024;
        let jobs = self.batch * block_heads / group;
        let parts = (jobs * (warps / jobs).max(1)).max(warps);
        let part = (group * (head_dim.next_multiple_of(64) + 4) * 4 + group * 8).next_multiple_of(16);
        let queries = self.batch * block_heads * 2 * (head_dim.next_multiple_of(32) + 8) * 2;
        let fresh = self.batch * block_key_heads * 2 * padded * 2;
        let staged = self.batch * (columns + 32) * 2;
        let products =
            self.cluster * (warps / self.slice).max(1) * (16 * self.slice * self.batch).div_ceil(self.cluster) * 4;
        let rope = self.attention.rope.as_ref().map_or(0, |rope| rope.dim);
        let prepared = self.batch * ((rope / 2 + 1) * 8 + 2 * head_dim * 4);
        (weights + parts * part + queries + fresh + staged + products + prepared).next_multiple_of(16)
    }
}

impl RouteSpec {
    fn suffix(&self) -> String {
        let biased = if self.biased { "_biased" } else { "" };
        format!("e{}_top{}{biased}", self.experts, self.top_k)
    }
}

impl ExpertsSpec {
    /// The most experts that its rows may go to.
    pub fn most(&self) -> usize {
        (self.batch * self.route.top_k).min(self.route.experts)
    }

    /// Whether what the experts have inside passes through shared memory on its way to the sum.
    pub fn is_staged(&self) -> bool {
        self.stage_bytes() <= MOST_STAGED
    }

    fn stage_bytes(&self) -> usize {
        self.batch * (self.most() * self.tiles.k.div_ceil(32).div_ceil(self.split) * 32 + 32) * 2
    }

    fn suffix(&self) -> String {
        format!("{}_{}_b{}", self.tiles.suffix(), self.route.suffix(), self.batch)
    }
}

impl Tiles {
    /// Row tiles in all.
    pub fn count(&self) -> usize {
        let rows_per_tile = if self.gated { 8 } else { 16 };
        self.rows.iter().map(|rows| rows.div_ceil(rows_per_tile)).sum()
    }

    fn suffix(&self) -> String {
        let rows: Vec<String> = self.rows.iter().map(usize::to_string).collect();
        format!("{}_k{}_n{}", self.out.name(), self.k, rows.join("_"))
    }
}

impl Storage {
    /// Bytes a value.
    pub fn bytes(self) -> usize {
        match self {
            Storage::F32 => 4,
            Storage::BF16 => 2,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Storage::F32 => "f32",
            Storage::BF16 => "bf16",
        }
    }
}

impl ElementKind {
    fn name(self) -> &'static str {
        match self {
            ElementKind::Add => "add",
            ElementKind::Mul => "mul",
            ElementKind::Scale(_) => "scale",
            ElementKind::Softcap(_) => "softcap",
            ElementKind::Clamp(_) => "clamp",
            ElementKind::Glu { per_row: false } => "glu",
            ElementKind::Glu { per_row: true } => "glu_row",
            ElementKind::Activate(activation) => activation.name(),
            ElementKind::Sum(_) => "sum",
        }
    }
}

impl RopeTable {
    /// The angles of `rope`.
    pub fn new(rope: &Rope) -> RopeTable {
        let (frequencies, magnitude) = rope.frequencies();
        RopeTable { dim: rope.dim, interleaved: rope.interleaved, frequencies, magnitude }
    }
}
