//! `matmul_wgmma.cu`: products of many rows by wgmma.

use askama::Template;
use serde::{Deserialize, Serialize};

use crate::family::{Family, Param, Reads, text_of};
use crate::values::{Activation, Tiles, activation_code, mark};

/// `y = W x` for many rows of x, on sm_90a.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Template)]
#[template(path = "matmul_wgmma.cu")]
pub struct MatmulWgmma {
    /// The weight.
    pub tiles: Tiles,
    /// Times 128 rows of the weight per block.
    pub pieces: usize,
    /// Rows of x per block.
    pub columns: usize,
    /// Blocks of a cluster that share the columns of the weight.
    pub split: usize,
    /// Blocks that take jobs in turn at most, where columns are not shared.
    pub most_blocks: usize,
    /// Of the products, or of the gate.
    pub activation: Option<Activation>,
}

/// Warpgroups that multiply, two, and the warps of one that starts copies.
const THREADS: usize = 384;

/// What a block may have on sm_90a, less what its barriers and the alignment of its stages take.
const MOST_SHARED: usize = (227 << 10) - (1 << 10) - 256;

impl MatmulWgmma {
    /// Stages that fit, up to 8.
    pub fn stages(&self) -> usize {
        ((MOST_SHARED - self.staged_bytes()) / self.bytes_per_stage()).min(8)
    }

    /// 64 columns of the row tiles and of the rows of x.
    pub fn bytes_per_stage(&self) -> usize {
        (128 * self.pieces + self.columns) * 128
    }

    /// Row tiles per block.
    pub fn block_tiles(&self) -> usize {
        8 * self.pieces
    }

    /// Jobs of `rows` rows of x: a job is a block's row tiles times its rows of x.
    pub fn jobs(&self, rows: usize) -> usize {
        self.tiles.count().div_ceil(self.block_tiles()) * rows.div_ceil(self.columns)
    }

    /// Whether the kernel serves this shape.
    pub fn is_sound(&self) -> bool {
        let sums = self.block_tiles() * 16 * self.columns * 4;
        self.tiles.k.is_multiple_of(64 * self.split)
            && self.stages() >= 2
            && (self.split == 1 || sums <= self.stages() * self.bytes_per_stage())
    }

    /// Results that leave by bulk copies.
    fn staged_bytes(&self) -> usize {
        let rows = if self.tiles.gated { 8 } else { 16 };
        if self.tiles.out.is_tiled() && self.split == 1 { self.block_tiles() * rows * self.columns * 2 } else { 0 }
    }

    /// Floats that a lane holds of 64 rows of the weight.
    fn registers(&self) -> usize {
        self.columns / 2
    }

    fn activation_code(&self) -> usize {
        activation_code(self.activation)
    }
}

impl Family for MatmulWgmma {
    fn params(&self) -> Vec<Param> {
        vec![
            Param::weight("weights", "const Vec4*"),
            Param::read("x", "const u16*"),
            Param::weight("bias", "const float*").or_null(),
            Param::read("residual", "const float*").or_null(),
            Param::write("out0", "Out*"),
            Param::write("out1", "Out*").or_null(),
            Param::write("out2", "Out*").or_null(),
            Param::number("row_count"),
        ]
    }

    fn stem(&self) -> String {
        let gated = mark(self.tiles.gated, "_gated");
        let MatmulWgmma { pieces, columns, split, .. } = self;
        format!("matmul_wgmma{gated}_{}_m{}_n{columns}_s{split}", self.tiles.suffix(), 128 * pieces)
    }

    fn text(&self) -> String {
        text_of(self)
    }

    fn source(&self) -> Result<String, askama::Error> {
        self.render()
    }

    fn threads(&self) -> usize {
        THREADS
    }

    /// Those that share columns are one cluster per job; others take the jobs in turn.
    fn grid(&self, rows: usize) -> [usize; 3] {
        let jobs = self.jobs(rows);
        [if self.split == 1 { jobs.min(self.most_blocks) } else { jobs * self.split }, 1, 1]
    }

    fn shared_bytes(&self) -> usize {
        self.stages() * self.bytes_per_stage() + self.staged_bytes() + (1 << 10)
    }

    fn reads(&self, _rows: usize) -> Reads {
        Reads::of_weights(self.tiles.weight_bytes())
    }
}
