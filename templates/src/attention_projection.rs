//! `attention_projection.cu`: attention of a few rows and the projection of its result, in clusters.

use askama::Template;
use serde::{Deserialize, Serialize};

use crate::attention::Heads;
use crate::family::{Family, Param, Reads, TuningKey, text_of};
use crate::values::Tiles;

/// `y = W attention(x) + r`. A cluster computes a slice of the rows of y.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Template)]
#[template(path = "attention_projection.cu")]
pub struct AttentionProjection {
    /// Its splits say only how far a row sees: the keys are not split over blocks.
    pub attention: Heads,
    /// The projection's weight.
    pub tiles: Tiles,
    /// Rows per cluster.
    pub batch: usize,
    /// Blocks that share the heads.
    pub cluster: usize,
    /// Row tiles per cluster.
    pub slice: usize,
}

impl Family for AttentionProjection {
    fn params(&self) -> Vec<Param> {
        let mut params = vec![Param::weight("weights", "const Vec4*")];
        params.extend(self.attention.params());
        params.extend([
            Param::weight("bias", "const float*").or_null(),
            Param::read("residual", "const float*").or_null(),
        ]);
        params.extend([Param::write("out", "Out*"), Param::number("context")]);
        params.extend(Param::zeros());
        params
    }

    fn stem(&self) -> String {
        format!("{}_proj_{}_b{}", self.attention.stem(), self.tiles.suffix(), self.batch)
    }

    fn text(&self) -> String {
        text_of(self)
    }

    fn source(&self) -> Result<String, askama::Error> {
        self.render()
    }

    fn threads(&self) -> usize {
        32 * self.attention.warps
    }

    fn grid(&self, rows: usize) -> [usize; 3] {
        [self.cluster, self.tiles.count().div_ceil(self.slice), rows / self.batch]
    }

    /// `struct Shared` of the kernel.
    fn shared_bytes(&self) -> usize {
        let Heads { heads, key_heads, head_dim, group, warps, .. } = self.attention;
        let (block_heads, block_key_heads) = (heads / self.cluster, key_heads / self.cluster);
        let columns = block_heads * head_dim;
        let weights = self.tiles.packed().bytes_of(self.slice, columns);
        let jobs = self.batch * block_heads / group;
        let parts = (jobs * (warps / jobs).max(1)).max(warps);
        let part = (group * (head_dim.next_multiple_of(64) + 4) * 4 + group * 8).next_multiple_of(16);
        let queries = self.batch * block_heads * 2 * (head_dim.next_multiple_of(32) + 8) * 2;
        let fresh = self.batch * block_key_heads * 2 * self.attention.padded() * 2;
        let staged = self.batch * (columns + 32) * 2;
        let products =
            self.cluster * (warps / self.slice).max(1) * (16 * self.slice * self.batch).div_ceil(self.cluster) * 4;
        let rope = self.attention.rope.as_ref().map_or(0, |rope| rope.dim);
        let prepared = self.batch * ((rope / 2 + 1) * 8 + 2 * head_dim * 4);
        (weights + parts * part + queries + fresh + staged + products + prepared).next_multiple_of(16)
    }

    fn reads(&self, rows: usize) -> Reads {
        self.attention.reads(rows, self.tiles.weight_bytes())
    }

    /// On an H200, us per step: Llama-3.2-1B at batch 1 with 60 per cent 654, with 75 678. 100 leaves too little cache.
    fn shared_share(&self) -> u32 {
        60
    }

    fn tuning(&self, rows: usize) -> Option<TuningKey> {
        Some(self.attention.tuning(rows))
    }
}
