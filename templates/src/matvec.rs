//! `matvec.cu`: products of few rows, with what stands around them; of 16 and 32 rows by themselves.

use askama::Template;
use serde::{Deserialize, Serialize};

use crate::family::{Family, Param, Reads, TuningKey, text_of};
use crate::values::{
    Activation, Float, Format, MOST_STAGED, NormKind, Splits, Tiles, activation_code, mark, norm_code, norm_eps,
};

/// Copies of the sums that a [`Matvec::router`] adds to: blocks that add to one word wait for each other.
pub const ROUTER_COPIES: usize = 4;

/// `y = W f(x)` for up to 32 rows of x, with nothing fused into x beyond eight. Reads W once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Template)]
#[template(path = "matvec.cu")]
pub struct Matvec {
    /// The weight.
    pub tiles: Tiles,
    /// Rows of x.
    pub batch: usize,
    /// Warps per block.
    pub warps: usize,
    /// Pairs of tiles that a warp has in flight.
    pub depth: usize,
    /// Row tiles that are finished together.
    pub unit: usize,
    /// Blocks that share the columns of a row tile: 1, or 2 that add to one sum.
    pub split: usize,
    /// Blocks.
    pub blocks: usize,
    /// Of x.
    pub norm: Option<(NormKind, f32)>,
    /// An earlier norm left the root mean squares of rows that differ from x by few addends, so that operands in half precision can be kept in range before
    /// those of x are known.
    pub alike: bool,
    /// x is fp32 without a norm, too, and taken as a hi/lo split.
    pub paired: bool,
    /// x is the partial results of a split attention.
    pub combine: Option<Combine>,
    /// x passes through shared memory.
    pub staged: bool,
    /// Of the products, or of the gate.
    pub activation: Option<Activation>,
    /// Something is added to the results.
    pub residual: bool,
    /// Also writes each block's largest result and its row.
    pub argmax: bool,
    /// Triggers dependents after `griddepcontrol.wait`, not at the start.
    pub late: bool,
    /// Loads bias and residual before the epilogue.
    pub ahead: bool,
    /// Logits per row of the router that reads the result, where this kernel adds its part to them.
    pub router: Option<usize>,
}

/// A split attention whose parts are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Combine {
    /// Query heads.
    pub heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// How its keys were split.
    pub splits: Splits,
}

impl Matvec {
    /// A product with nothing fused and no launch shape.
    pub fn plain(tiles: Tiles, batch: usize) -> Matvec {
        Matvec {
            tiles,
            batch,
            warps: 0,
            depth: 0,
            unit: 1,
            split: 1,
            blocks: 0,
            norm: None,
            alike: false,
            paired: false,
            combine: None,
            staged: false,
            activation: None,
            residual: false,
            argmax: false,
            late: false,
            ahead: false,
            router: None,
        }
    }

    /// What is fused into the product: the first words of the stem.
    pub fn kind(&self) -> String {
        let source = match (&self.norm, &self.combine) {
            (Some(_), _) => "norm_matvec",
            (None, None) if self.paired => "paired_matvec",
            (None, Some(_)) => "attention_proj",
            (None, None) => "matvec",
        };
        let gated = mark(self.tiles.gated, "_gated");
        let residual = mark(self.residual, "_add");
        let argmax = mark(self.argmax, "_sample");
        format!("{source}{gated}{residual}{argmax}")
    }

    /// Whether the rows of x have to pass through shared memory, or are few enough to.
    pub fn can_stage(&self) -> bool {
        let has_to = self.norm.is_some() || self.paired || self.combine.is_some() || self.batch > 8;
        has_to || self.stage_bytes() <= MOST_STAGED
    }

    /// Whether sums of x per step are made once, for all row tiles of a block: where there are enough of them. On an H200, us per step, so and wherever x is staged: int4_128 of
    /// Llama-3.2-1B 331 and 341, of Llama-3.1-8B 1402 and 1439, q4_k 365 and 384, 1606 and 1628.
    fn sums_steps(&self) -> bool {
        let tiles_per_block = if self.tiles.weights == Format::Int4x128 { 2 } else { 3 };
        self.sums_bytes() > 0 && self.staged && self.tiles.count() * self.split >= tiles_per_block * self.blocks
    }

    /// Bytes of such sums of a step for a lane; 0: none are made.
    pub fn sums_bytes(&self) -> usize {
        match self.tiles.weights {
            Format::Q4K | Format::Q5K => 4,
            Format::Int4x128 => 8,
            _ => 0,
        }
    }

    fn stage_bytes(&self) -> usize {
        self.batch * (self.tiles.steps().div_ceil(self.split) * self.tiles.packed().columns + 32) * 2
    }

    /// Whether x is in half precision while the weights are not: of more rows than a fused norm takes.
    fn is_halved(&self) -> bool {
        self.batch > 8 && self.tiles.weights == Format::BF16
    }

    /// How the router's weight is packed: for operands of the same type.
    pub fn router_weights(&self) -> Format {
        if self.tiles.weights == Format::BF16 { Format::BF16 } else { Format::F16 }
    }

    /// Whether it leaves the root mean squares of its rows for a later norm.
    pub fn leaves_rms(&self) -> bool {
        matches!(self.norm, Some((NormKind::Rms, _))) && self.tiles.weights.operand() == "f16"
    }

    fn norm_code(&self) -> usize {
        if self.paired { 3 } else { norm_code(self.norm) }
    }

    fn eps(&self) -> Float {
        norm_eps(self.norm)
    }

    fn heads(&self) -> usize {
        self.combine.map_or(1, |combine| combine.heads)
    }

    fn head_dim(&self) -> usize {
        self.combine.map_or(1, |combine| combine.head_dim)
    }

    fn activation_code(&self) -> usize {
        activation_code(self.activation)
    }
}

impl Family for Matvec {
    fn params(&self) -> Vec<Param> {
        let out = if self.split > 1 { Param::sum("out0", "Out*") } else { Param::write("out0", "Out*") };
        let residual = Param::read("residual", "const float*");
        let maxima = Param::write("maxima", "u32*");
        let mut params = vec![
            Param::weight("weights", "const Vec4*"),
            Param::read("x", "const void*"),
            Param::weight("norm_weight", "const float*").or_null(),
            Param::weight("norm_bias", "const float*").or_null(),
            Param::weight("bias", "const float*").or_null(),
            if self.residual { residual } else { residual.or_null() },
            out,
            Param::write("out1", "Out*").or_null(),
            Param::write("out2", "Out*").or_null(),
            Param::read("statistics", "const float*").or_null(),
            Param::io("positions", "const int*").or_null(),
            if self.argmax { maxima } else { maxima.or_null() },
        ];
        if self.router.is_some() {
            params.extend([
                Param::weight("router", "const Vec4*"),
                Param::weight("router_norm", "const float*").or_null(),
            ]);
            params.push(Param::sum("logits", "u64*"));
        }
        if self.alike {
            params.push(Param::read("rms_before", "const float*"));
        }
        if self.leaves_rms() {
            params.push(Param::write("rms", "float*"));
        }
        params.extend(Param::zeros());
        params
    }

    fn stem(&self) -> String {
        let routes = self.router.map_or(String::new(), |experts| format!("_route{experts}"));
        format!("{}{routes}_{}_b{}", self.kind(), self.tiles.suffix(), self.batch)
    }

    fn text(&self) -> String {
        text_of(self)
    }

    fn source(&self) -> Result<String, askama::Error> {
        self.render()
    }

    fn threads(&self) -> usize {
        32 * self.warps
    }

    fn grid(&self, _rows: usize) -> [usize; 3] {
        [self.blocks, 1, 1]
    }

    /// The rows of x; under a norm and of fp32 as many of each as an operand has parts. Sums of its steps.
    fn shared_bytes(&self) -> usize {
        let sums = if self.sums_steps() { self.tiles.steps().div_ceil(self.split) * 32 * self.sums_bytes() } else { 0 };
        sums + match (self.norm.is_some() || self.paired, self.staged) {
            (true, _) => self.tiles.x_parts() * self.stage_bytes(),
            (false, true) => self.stage_bytes(),
            (false, false) => 0,
        }
    }

    fn reads(&self, _rows: usize) -> Reads {
        let result = self.tiles.rows.iter().sum::<usize>();
        Reads::of_weights(self.tiles.weight_bytes() + self.router.map_or(0, |experts| experts * result * 2))
    }

    fn tuning(&self, _rows: usize) -> Option<TuningKey> {
        Some(TuningKey::Product(self.tiles.tuned(self.kind()), self.tiles.k, self.tiles.count(), self.batch))
    }
}
