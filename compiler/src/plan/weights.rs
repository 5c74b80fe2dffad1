//! How checkpoint tensors become the buffers that kernels read.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ir::{Format, WeightRef};

/// How weights are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightFormat {
    /// As the checkpoint stores them, where kernels read that.
    #[default]
    Stored,
    /// In this format: those of a checkpoint in 16 bits or more are quantised by the rule of [`crate::classes`], those that are made up have it where their rows
    /// are whole blocks.
    As(Format),
}

impl FromStr for WeightFormat {
    type Err = String;

    /// `auto`, or the name of a format that kernels read; `int4` is `int4_128`.
    fn from_str(text: &str) -> std::result::Result<WeightFormat, String> {
        let packed = || Format::ALL.into_iter().filter(|format| format.packed().is_some());
        if text == "auto" {
            return Ok(WeightFormat::Stored);
        }
        let text = if text == "int4" { Format::Int4x128.name() } else { text };
        packed().find(|format| format.name() == text).map(WeightFormat::As).ok_or_else(|| {
            let names: Vec<&str> = packed().map(Format::name).collect();
            format!("give auto, or one of {}", names.join(", "))
        })
    }
}

/// A buffer of weights on the device, made once at load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightBuffer {
    /// The tensors it is made from, joined by `+`.
    pub name: String,
    /// How.
    pub recipe: Recipe,
    /// Its size.
    pub bytes: usize,
}

/// How a buffer is made.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recipe {
    /// Row tiles of `k` columns in mma.m16n8k16 A-fragment order (`weights.cuh` describes it), parts one after the other.
    Tiles {
        /// The weights.
        parts: Vec<Part>,
        /// Columns.
        k: usize,
        /// Two parts: 8 rows of the first above 8 rows of the second in every tile.
        gated: bool,
        /// Parts are stored `[in, out]`.
        transposed: bool,
        /// How they are packed.
        #[serde(default = "bf16", skip_serializing_if = "is_bf16")]
        format: Format,
    },
    /// As [`Recipe::Tiles`], for each of `count` experts: tiles of the first, then those of the second, and so on.
    Experts {
        /// The weights, each `[count, rows, k]`.
        parts: Vec<Part>,
        /// Columns.
        k: usize,
        /// As in the tiles.
        gated: bool,
        /// Experts.
        count: usize,
        /// As in the tiles.
        #[serde(default = "bf16", skip_serializing_if = "is_bf16")]
        format: Format,
    },
    /// fp32 biases in the row order of a [`Recipe::Tiles`] of the same parts; zeros where a part has none.
    Biases {
        /// The biases; `None` where a weight has none.
        parts: Vec<(Option<WeightRef>, usize)>,
        /// As in the tiles.
        gated: bool,
        /// Biases of that many experts, `[experts, rows]` each, one expert after the other.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        experts: Option<usize>,
    },
    /// fp32 values, `offset` added.
    Vector {
        /// The weight.
        tensor: WeightRef,
        /// Values.
        size: usize,
        /// The bits of the fp32 number to add.
        offset_bits: u32,
    },
}

/// One weight of a [`Recipe::Tiles`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Part {
    /// The weight.
    pub tensor: WeightRef,
    /// Its rows: results of the product.
    pub rows: usize,
    /// How the checkpoint stores it. What the buffer's format cannot hold is rounded.
    #[serde(default = "bf16", skip_serializing_if = "is_bf16")]
    pub from: Format,
}

fn bf16() -> Format {
    Format::BF16
}

fn is_bf16(format: &Format) -> bool {
    *format == Format::BF16
}

impl Recipe {
    /// Bytes of the buffer.
    pub fn bytes(&self) -> usize {
        match self {
            Recipe::Tiles { parts, k, gated, format, .. } => {
                let rows: Vec<usize> = parts.iter().map(|part| part.rows).collect();
                let packed = format.packed().expect("only formats that kernels read are planned");
                packed.bytes_of(row_tiles(&rows, *gated), *k)
            }
            Recipe::Experts { count, .. } => self.expert(0).map_or(0, |expert| count * expert.bytes()),
            Recipe::Biases { parts, gated, experts } => {
                let rows: Vec<usize> = parts.iter().map(|(_, rows)| *rows).collect();
                experts.unwrap_or(1) * row_tiles(&rows, *gated) * 16 * 4
            }
            Recipe::Vector { size, .. } => size * 4,
        }
    }

    /// What is rounded on the way into the buffer, as `f32 -> bf16`, in the order of the parts; none where every value is kept. A bfloat16 weight is a number in half
    /// precision, times a power of two.
    pub fn rounded(&self) -> Vec<(Format, Format)> {
        let (Recipe::Tiles { parts, format, .. } | Recipe::Experts { parts, format, .. }) = self else {
            return Vec::new();
        };
        let holds = |from: Format| from == *format || (from, *format) == (Format::BF16, Format::F16);
        parts.iter().map(|part| part.from).filter(|&from| !holds(from)).map(|from| (from, *format)).collect()
    }

    /// How the buffer's values are stored.
    pub fn format(&self) -> Format {
        match self {
            Recipe::Tiles { format, .. } | Recipe::Experts { format, .. } => *format,
            Recipe::Biases { .. } | Recipe::Vector { .. } => Format::F32,
        }
    }

    /// Rows of a matrix; none of what is no matrix.
    pub fn rows(&self) -> usize {
        match self {
            Recipe::Tiles { parts, .. } | Recipe::Experts { parts, .. } => parts.iter().map(|part| part.rows).sum(),
            Recipe::Biases { .. } | Recipe::Vector { .. } => 0,
        }
    }

    /// The same matrix of 16 bits quantised; `None` where its rows are not whole blocks, or are what is summed over, or where it is quantised already.
    pub fn in_format(&self, wanted: Format) -> Option<Recipe> {
        let mut recipe = self.clone();
        match &mut recipe {
            Recipe::Tiles { k, format, transposed: false, .. } | Recipe::Experts { k, format, .. }
                if format.is_whole() && wanted.bytes(*k).is_some() =>
            {
                *format = wanted;
            }
            _ => return None,
        }
        Some(recipe)
    }

    /// The weights it reads.
    pub fn tensors(&self) -> Vec<&WeightRef> {
        match self {
            Recipe::Tiles { parts, .. } | Recipe::Experts { parts, .. } => {
                parts.iter().map(|part| &part.tensor).collect()
            }
            Recipe::Biases { parts, .. } => parts.iter().filter_map(|(tensor, _)| tensor.as_ref()).collect(),
            Recipe::Vector { tensor, .. } => vec![tensor],
        }
    }

    /// The recipe of one expert's part of the buffer; `None` for what is not of experts.
    pub fn expert(&self, index: usize) -> Option<Recipe> {
        if let Recipe::Biases { parts, gated, experts: Some(_) } = self {
            let of = |(bias, rows): &(Option<WeightRef>, usize)| (bias.as_ref().map(|bias| bias.matrix(index)), *rows);
            return Some(Recipe::Biases { parts: parts.iter().map(of).collect(), gated: *gated, experts: None });
        }
        let &Recipe::Experts { ref parts, k, gated, format, .. } = self else { return None };
        let part = |part: &Part| Part { tensor: part.tensor.matrix(index), ..part.clone() };
        Some(Recipe::Tiles { parts: parts.iter().map(part).collect(), k, gated, transposed: false, format })
    }

    /// For each row of the packed order, of one expert, the part and the row of it that stands there; `None` for padding. Empty for a vector and for weights of
    /// experts.
    pub fn packed_rows(&self) -> Vec<Option<(usize, usize)>> {
        let (rows, gated): (Vec<usize>, bool) = match self {
            Recipe::Tiles { parts, gated, .. } => (parts.iter().map(|part| part.rows).collect(), *gated),
            Recipe::Biases { parts, gated, .. } => (parts.iter().map(|(_, rows)| *rows).collect(), *gated),
            Recipe::Experts { .. } | Recipe::Vector { .. } => return Vec::new(),
        };
        let mut packed = Vec::with_capacity(row_tiles(&rows, gated) * 16);
        if gated {
            for tile in 0..rows[0].div_ceil(8) {
                for (part, &count) in rows.iter().enumerate() {
                    packed.extend((8 * tile..8 * tile + 8).map(|row| (row < count).then_some((part, row))));
                }
            }
        } else {
            for (part, &count) in rows.iter().enumerate() {
                packed.extend((0..count.div_ceil(16) * 16).map(|row| (row < count).then_some((part, row))));
            }
        }
        packed
    }
}

/// Row tiles of 16 that parts of these rows take.
fn row_tiles(rows: &[usize], gated: bool) -> usize {
    if gated { rows[0].div_ceil(8) } else { rows.iter().map(|rows| rows.div_ceil(16)).sum() }
}
