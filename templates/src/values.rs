//! The values that families share, and how templates print them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Activation functions, by the names of torch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)`, exact.
    Gelu,
    /// The tanh approximation of gelu.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²`.
    Relu2,
}

impl Activation {
    /// Every activation function.
    pub const ALL: [Activation; 5] =
        [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Relu2];

    /// The name in descriptions and in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Silu => "silu",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::Relu => "relu",
            Activation::Relu2 => "relu2",
        }
    }

    /// The activation of that name.
    pub fn parse(name: &str) -> Option<Activation> {
        Activation::ALL.into_iter().find(|activation| activation.name() == name)
    }
}

/// The two normalisations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + eps)`.
    Rms,
    /// `(x - mean(x)) / sqrt(var(x) + eps)`.
    Layer,
}

impl NormKind {
    /// `rms_norm` or `layer_norm`.
    pub fn name(self) -> &'static str {
        match self {
            NormKind::Rms => "rms_norm",
            NormKind::Layer => "layer_norm",
        }
    }
}

/// How a tensor is stored: a closed table, which checkpoints, graph text, recipes and kernels share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// 32-bit IEEE float.
    F32,
    /// 32-bit signed integer: token ids and positions.
    I32,
    /// 16-bit IEEE float.
    F16,
    /// bfloat16: the upper half of an `f32`.
    BF16,
    /// 32 values of 8 bits with a scale. This and the next are blocks as GGUF has them.
    Q8_0,
    /// 32 values of 4 bits with a scale, centred on 8.
    Q4_0,
    /// 32 values of 4 bits with a scale and a minimum.
    Q4_1,
    /// 32 values of 5 bits with a scale, centred on 16.
    Q5_0,
    /// 32 values of 5 bits with a scale and a minimum.
    Q5_1,
    /// 256 values of 2 bits in 16 groups, each with a 4-bit scale and minimum.
    Q2K,
    /// 256 values of 3 bits in 16 groups, each with a 6-bit scale.
    Q3K,
    /// 256 values of 4 bits in 8 groups, each with a 6-bit scale and minimum.
    Q4K,
    /// 256 values of 5 bits in 8 groups, each with a 6-bit scale and minimum.
    Q5K,
    /// 256 values of 6 bits in 16 groups, each with an 8-bit scale.
    Q6K,
    /// 32 values of a table of 16 with a scale.
    Iq4Nl,
    /// 256 values of the same table in 8 groups, each with a 6-bit scale.
    Iq4Xs,
    /// 32 values of 4-bit floats with a power of two.
    Mxfp4,
    /// 32 floats of 8 bits (e4m3) with an `f32` scale. This and the next are blocks that quantised safetensors are read as.
    Fp8,
    /// 128 of them.
    Fp8x128,
    /// 32 values of 8 bits with an `f32` scale.
    Int8,
    /// 128 of them.
    Int8x128,
    /// 32 values of 4 bits with a 16-bit scale and a zero point.
    Int4x32,
    /// 128 of them.
    Int4x128,
    /// 32 values of 4-bit floats with two `f32` scales.
    Nvfp4,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 24] = [
        Format::F32,
        Format::I32,
        Format::F16,
        Format::BF16,
        Format::Q8_0,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q2K,
        Format::Q3K,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
        Format::Iq4Nl,
        Format::Iq4Xs,
        Format::Mxfp4,
        Format::Fp8,
        Format::Fp8x128,
        Format::Int8,
        Format::Int8x128,
        Format::Int4x32,
        Format::Int4x128,
        Format::Nvfp4,
    ];

    /// Its row of the table: the name in text, values per block, bytes per block, and how a step of a row tile is packed where kernels read it.
    const fn row(self) -> (&'static str, usize, usize, Option<Packed>) {
        match self {
            Format::F32 => ("f32", 1, 4, None),
            Format::I32 => ("i32", 1, 4, None),
            Format::F16 => ("f16", 1, 2, Some(Packed { columns: 32, bytes: 1024, registers: 8 })),
            Format::BF16 => ("bf16", 1, 2, Some(Packed { columns: 32, bytes: 1024, registers: 8 })),
            Format::Q8_0 => ("q8_0", 32, 34, Some(Packed { columns: 64, bytes: 1088, registers: 10 })),
            Format::Q4_0 => ("q4_0", 32, 18, Some(Packed { columns: 64, bytes: 576, registers: 6 })),
            Format::Q4_1 => ("q4_1", 32, 20, Some(Packed { columns: 64, bytes: 640, registers: 8 })),
            Format::Q5_0 => ("q5_0", 32, 22, Some(Packed { columns: 64, bytes: 704, registers: 7 })),
            Format::Q5_1 => ("q5_1", 32, 24, Some(Packed { columns: 64, bytes: 768, registers: 9 })),
            Format::Q2K => ("q2_k", 256, 84, Some(Packed { columns: 128, bytes: 704, registers: 16 })),
            Format::Q3K => ("q3_k", 256, 110, Some(Packed { columns: 128, bytes: 928, registers: 15 })),
            Format::Q4K => ("q4_k", 256, 144, Some(Packed { columns: 128, bytes: 1216, registers: 14 })),
            Format::Q5K => ("q5_k", 256, 176, Some(Packed { columns: 128, bytes: 1472, registers: 16 })),
            Format::Q6K => ("q6_k", 256, 210, Some(Packed { columns: 128, bytes: 1696, registers: 17 })),
            Format::Iq4Nl => ("iq4_nl", 32, 18, Some(Packed { columns: 64, bytes: 576, registers: 6 })),
            Format::Iq4Xs => ("iq4_xs", 256, 136, Some(Packed { columns: 128, bytes: 1120, registers: 15 })),
            Format::Mxfp4 => ("mxfp4", 32, 17, Some(Packed { columns: 64, bytes: 544, registers: 5 })),
            Format::Fp8 => ("fp8", 32, 36, Some(Packed { columns: 64, bytes: 1152, registers: 11 })),
            Format::Fp8x128 => ("fp8_128", 128, 132, Some(Packed { columns: 128, bytes: 2112, registers: 18 })),
            Format::Int8 => ("int8", 32, 36, Some(Packed { columns: 64, bytes: 1152, registers: 11 })),
            Format::Int8x128 => ("int8_128", 128, 132, Some(Packed { columns: 128, bytes: 2112, registers: 18 })),
            Format::Int4x32 => ("int4_32", 32, 20, Some(Packed { columns: 64, bytes: 640, registers: 8 })),
            Format::Int4x128 => ("int4_128", 128, 68, Some(Packed { columns: 128, bytes: 1088, registers: 14 })),
            Format::Nvfp4 => ("nvfp4", 32, 24, Some(Packed { columns: 64, bytes: 768, registers: 11 })),
        }
    }

    /// How kernels read weights of this format; `None` where they do not: such weights are stored in another.
    pub const fn packed(self) -> Option<Packed> {
        self.row().3
    }

    /// Whether kernels read blocks of this format as they are.
    pub const fn is_read(self) -> bool {
        self.packed().is_some() && !self.is_whole()
    }

    /// Whether its blocks are GGUF's.
    pub const fn is_of_gguf(self) -> bool {
        let of_safetensors = matches!(
            self,
            Format::Fp8
                | Format::Fp8x128
                | Format::Int8
                | Format::Int8x128
                | Format::Int4x32
                | Format::Int4x128
                | Format::Nvfp4
        );
        self.row().1 > 1 && !of_safetensors
    }

    /// Whether a lane of a packed weight has the columns that mma gives it in their order, so that each fragment has 16 consecutive ones: of the formats with a scale
    /// for each 16.
    pub const fn is_natural(self) -> bool {
        matches!(self, Format::Q2K | Format::Q3K | Format::Q6K | Format::Nvfp4)
    }

    /// The code that stands for zero where kernels read codes from `weights/codes_*.cuh`.
    pub(crate) const fn centre(self) -> u32 {
        match self {
            Format::Int8 | Format::Int8x128 | Format::Iq4Nl | Format::Iq4Xs => 128,
            Format::Q5_0 => 16,
            Format::Q3K => 4,
            _ => 0,
        }
    }

    /// Whether those of a lane's latter four columns of eight count sixteenfold in a fragment.
    pub(crate) const fn is_spread(self) -> bool {
        matches!(self, Format::Q5_0 | Format::Q5_1 | Format::Int4x32)
    }

    /// Whether its codes are floats.
    pub(crate) const fn is_of_floats(self) -> bool {
        matches!(self, Format::Fp8 | Format::Fp8x128 | Format::Mxfp4 | Format::Nvfp4)
    }

    /// Whether it has 16 bits per value and no scales.
    pub const fn is_whole(self) -> bool {
        matches!(self, Format::BF16 | Format::F16)
    }

    /// The type of the operands that kernels multiply weights of this format by, as PTX names it.
    pub const fn operand(self) -> &'static str {
        if matches!(self, Format::BF16) { "bf16" } else { "f16" }
    }

    /// How activations are stored for products with such weights.
    pub const fn activations(self) -> Storage {
        if matches!(self, Format::BF16) { Storage::BF16 } else { Storage::F16 }
    }

    /// The name in graph text, recipes and messages.
    pub const fn name(self) -> &'static str {
        self.row().0
    }

    /// The format of that name.
    pub fn of_name(name: &str) -> Option<Format> {
        Format::ALL.into_iter().find(|format| format.name() == name)
    }

    /// (values, bytes) of a block as a checkpoint stores it; plain formats have blocks of one value.
    pub const fn block(self) -> (usize, usize) {
        let (_, values, bytes, _) = self.row();
        (values, bytes)
    }

    /// Bytes of `values` consecutive values as a checkpoint stores them; `None` where they do not end with a block, or are too many.
    pub fn bytes(self, values: usize) -> Option<usize> {
        let (per_block, bytes) = self.block();
        values.is_multiple_of(per_block).then(|| (values / per_block).checked_mul(bytes)).flatten()
    }
}

/// A step: what a warp multiplies at a time of a row tile, 16 rows of a packed weight. `weights/FORMAT.cuh` says where its values lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Columns.
    pub columns: usize,
    /// Bytes.
    pub bytes: usize,
    /// Registers that a thread holds of it.
    pub registers: usize,
}

impl Packed {
    /// Steps of a row tile of `k` columns.
    pub const fn steps(self, k: usize) -> usize {
        k.div_ceil(self.columns)
    }

    /// Steps that a warp of eight has in flight at most: 64 registers of them, which are 64 KB per block of 16 bits a weight; 44 of what needs registers to become
    /// fragments.
    pub const fn depth(self) -> usize {
        if self.is_whole() { 64 / self.registers } else { 44 / self.registers }
    }

    /// Whether it is of 16-bit values: two fragments of them, without scales.
    pub const fn is_whole(self) -> bool {
        self.columns == 32
    }

    /// Bytes of `row_tiles` row tiles of `k` columns.
    pub const fn bytes_of(self, row_tiles: usize, k: usize) -> usize {
        row_tiles * self.steps(k) * self.bytes
    }
}

impl Serialize for Format {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Format {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Format, D::Error> {
        let name = String::deserialize(deserializer)?;
        Format::of_name(&name).ok_or_else(|| serde::de::Error::custom(format!("there is no format {name}")))
    }
}

/// How results are stored. Prints as the type in CUDA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// `float`.
    F32,
    /// bfloat16 in a `u16`.
    BF16,
    /// A sixteenth of the value in half precision, a `f16` of `device.cuh`.
    F16,
    /// The same in the order in which [`crate::MatmulWgmma`] reads rows: `activations.cuh`.
    Tiled,
}

impl Storage {
    /// Bytes per value.
    pub fn bytes(self) -> usize {
        match self {
            Storage::F32 => 4,
            Storage::BF16 | Storage::F16 | Storage::Tiled => 2,
        }
    }

    /// `f32`, `bf16`, `f16` or, in tiles, `f16t`.
    pub fn name(self) -> &'static str {
        match self {
            Storage::F32 => "f32",
            Storage::BF16 => "bf16",
            Storage::F16 => "f16",
            Storage::Tiled => "f16t",
        }
    }
}

impl Storage {
    /// Whether it is in the order of `activations.cuh`.
    pub fn is_tiled(self) -> bool {
        self == Storage::Tiled
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Storage::F32 => "float",
            Storage::BF16 => "u16",
            Storage::F16 | Storage::Tiled => "f16",
        })
    }
}

/// A float constant: the shortest decimal that reads back as the same `float`.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Float(pub f32);

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}f", self.0)
    }
}

/// The number by which `device.cuh` knows an activation.
pub(crate) fn activation_code(activation: Option<Activation>) -> usize {
    match activation {
        Some(Activation::Silu) => 0,
        Some(Activation::Gelu) => 1,
        Some(Activation::GeluTanh) => 2,
        Some(Activation::Relu) => 3,
        Some(Activation::Relu2) => 4,
        None => 5,
    }
}

/// The number by which templates know a norm.
pub(crate) fn norm_code(norm: Option<(NormKind, f32)>) -> usize {
    match norm {
        None => 0,
        Some((NormKind::Rms, _)) => 1,
        Some((NormKind::Layer, _)) => 2,
    }
}

pub(crate) fn norm_eps(norm: Option<(NormKind, f32)>) -> Float {
    Float(norm.map_or(0.0, |(_, eps)| eps))
}

/// `_NAME` where `set`, for stems.
pub(crate) fn mark(set: bool, name: &'static str) -> &'static str {
    if set { name } else { "" }
}

/// Threads of the kernels whose blocks have one row.
pub(crate) const ROW_THREADS: usize = 256;

/// Shared memory that a product without a norm may take for its rows; it reads larger ones from L2.
pub(crate) const MOST_STAGED: usize = 64 << 10;

fn bf16() -> Format {
    Format::BF16
}

fn is_bf16(format: &Format) -> bool {
    *format == Format::BF16
}

/// The packed weight of a product (`tiles.cuh`) and the storage of its results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tiles {
    /// How the weight is packed.
    #[serde(default = "bf16", skip_serializing_if = "is_bf16")]
    pub weights: Format,
    /// Columns.
    pub k: usize,
    /// Rows of each output, one to three of them.
    pub rows: Vec<usize>,
    /// Two weights of `rows[0]` rows make one output: gate and up share a tile.
    pub gated: bool,
    /// Storage of the outputs.
    pub out: Storage,
}

impl Tiles {
    /// Row tiles in all.
    pub fn count(&self) -> usize {
        let rows_per_tile = if self.gated { 8 } else { 16 };
        self.rows.iter().map(|rows| rows.div_ceil(rows_per_tile)).sum()
    }

    /// A step of the packed weight.
    ///
    /// # Panics
    /// Of a format that kernels do not read.
    pub fn packed(&self) -> Packed {
        self.weights.packed().expect("only weights of a packed format are planned")
    }

    /// Steps of a row tile.
    pub fn steps(&self) -> usize {
        self.packed().steps(self.k)
    }

    /// Columns of whole steps.
    pub fn padded_k(&self) -> usize {
        self.steps() * self.packed().columns
    }

    /// Bytes of the weight's values, without padding.
    pub fn weight_bytes(&self) -> usize {
        self.rows.iter().sum::<usize>() * if self.gated { 2 } else { 1 } * self.row_bytes()
    }

    /// Bytes of the values of a row.
    pub fn row_bytes(&self) -> usize {
        self.weights.bytes(self.k).expect("rows of a planned weight end with a block")
    }

    pub(crate) fn row(&self, output: usize) -> usize {
        self.rows.get(output).copied().unwrap_or(0)
    }

    /// Rows that a row of an fp32 x takes in shared memory: a hi/lo split in bfloat16 is two.
    pub(crate) fn x_parts(&self) -> usize {
        if self.weights == Format::BF16 { 2 } else { 1 }
    }

    /// `kind` as records of tuning name it: weights of other bytes take other launch shapes.
    pub(crate) fn tuned(&self, kind: String) -> String {
        if self.weights.is_whole() { kind } else { format!("{kind}_{}", self.weights.name()) }
    }

    pub(crate) fn suffix(&self) -> String {
        let rows: Vec<String> = self.rows.iter().map(usize::to_string).collect();
        let weights = if is_bf16(&self.weights) { String::new() } else { format!("_{}", self.weights.name()) };
        format!("{}{weights}_k{}_n{}", self.out.name(), self.k, rows.join("_"))
    }
}

/// How the keys of a row are split over blocks (`splits.cuh`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Splits {
    /// Blocks per key head at most.
    pub max: usize,
    /// Keys per block before one more block is used.
    pub keys: usize,
    /// Sliding window; 0: none.
    pub window: usize,
    /// Blocks of a cluster, which merge what they have; divides `max`. 1: no clusters.
    pub merged: usize,
}

impl Splits {
    /// Results per head that are left to be combined, at most.
    pub fn left(&self) -> usize {
        self.max / self.merged
    }
}

/// The scalings of RoPE, under their names in `rope_scaling.rope_type`.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// `default`.
    None,
    /// `linear`: every frequency divided by `factor`.
    Linear {
        /// The stretch.
        factor: f64,
    },
    /// `llama3`: low frequencies divided by `factor`, high ones kept, a smooth passage between.
    Llama3 {
        /// The stretch of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low` are stretched.
        low_freq_factor: f64,
        /// Wavelengths below `original / high` are kept.
        high_freq_factor: f64,
        /// `original_max_position_embeddings`.
        original: f64,
    },
    /// `yarn`: interpolation by wavelength, and a magnitude on cosine and sine.
    Yarn {
        /// The stretch.
        factor: f64,
        /// Rotations above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which it is stretched whole.
        beta_slow: f64,
        /// Trained context.
        original: f64,
        /// Multiplies cosine and sine.
        attention_factor: f64,
        /// Round the ends of the passage to whole dimensions.
        truncate: bool,
    },
    /// `proportional`: of pairs that span the whole of `dim`, only the first turn.
    Proportional {
        /// The stretch.
        factor: f64,
        /// The part of the pairs that turn.
        part: f64,
    },
    /// `longrope`: a divisor per frequency, and a magnitude. The list is the one that holds for the context in use.
    LongRope {
        /// One divisor per pair.
        factors: Vec<f64>,
        /// Multiplies cosine and sine.
        attention_factor: f64,
    },
}

/// The angles of a rotary position embedding (`rope.cuh`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RopeTable {
    /// Values of a head that rotate.
    pub dim: usize,
    /// Pairs are neighbours.
    pub interleaved: bool,
    /// Radians per position, `dim / 2` of them.
    pub frequencies: Vec<f32>,
    /// Multiplies cosine and sine.
    pub magnitude: f32,
}

/// What `rope.cuh` prints of a table, or of none.
pub(crate) struct Turns {
    pub frequencies: String,
    pub dim: usize,
    pub interleaved: bool,
    pub magnitude: Float,
}

impl Turns {
    pub fn of(table: Option<&RopeTable>) -> Turns {
        let Some(RopeTable { dim, interleaved, frequencies, magnitude }) = table else {
            return Turns { frequencies: "0.0f".into(), dim: 0, interleaved: false, magnitude: Float(1.0) };
        };
        let list: Vec<String> = frequencies.iter().map(|&frequency| Float(frequency).to_string()).collect();
        Turns { frequencies: list.join(", "), dim: *dim, interleaved: *interleaved, magnitude: Float(*magnitude) }
    }
}
