//! How weights are packed, and how the activations are stored that products with them read.

use anyhow::{Result, bail};

use super::Builder;
use super::shapes::streams;
use crate::ir::{Epilogue, Format, NodeId, Op, Role, Value};
use crate::plan::kernels::Storage;

impl Builder<'_, '_> {
    /// How the users of a result read it.
    pub(super) fn storage(&self, value: Value) -> Storage {
        let graph = self.graph();
        let users = graph.users(value);
        let matmul_input = |&user: &NodeId| {
            matches!(graph.op(user), Op::Matmul(matmul) if matmul.norm.is_none())
                && graph.operand(user, Role::X) == Some(value)
                && graph.operand(user, Role::Residual) != Some(value)
        };
        let rounded = !users.is_empty() && !graph.outputs.contains(&value) && users.iter().all(matmul_input);
        // All of them have weights for operands of one type, and of one order.
        let mut formats = users.iter().filter_map(|&user| self.matmul_formats(user).ok()).flatten();
        let Some(format) = formats.next().filter(|_| rounded) else { return Storage::F32 };
        let size = graph.type_of(value).row_size();
        if formats.any(|other| self.x_storage(other, size) != self.x_storage(format, size)) {
            return Storage::F32;
        }
        // The head of a prompt step may run with one row only.
        let in_head = |node: NodeId| self.planner.head.contains(&node);
        let together = users.iter().all(|&user| in_head(user) == in_head(value.node));
        let tiles = !matches!(graph.op(value.node), Op::Embedding) && together;
        if tiles { self.x_storage(format, size) } else { format.activations() }
    }

    /// How products with weights of this format read rows of `k` values that are rounded for them.
    pub(super) fn x_storage(&self, format: Format, k: usize) -> Storage {
        let tiles = self.planner.wgmma && !self.few() && k.is_multiple_of(64) && format.is_whole();
        match tiles {
            true if self.streams(format, k) => Storage::F16,
            true => Storage::Tiled,
            false => format.activations(),
        }
    }

    /// Whether products of the rows at hand are made as those of few rows are.
    pub(super) fn streams(&self, format: Format, k: usize) -> bool {
        self.planner.wgmma && k.is_multiple_of(64) && streams(format, k, self.rows.count)
    }

    /// How weights are packed that a checkpoint has in these formats and one kernel reads side by side, `k` columns each: as they are where kernels read that. What
    /// has no scales is packed as the plan's options say, else in half precision; but as bfloat16 if it is that and has few columns `normed`, behind a norm.
    ///
    /// On an H200, us per step and tokens per second of a prompt of 512, bfloat16 behind norms against half precision: SmolLM2-135M (576 columns) 273 and 286,
    /// Qwen3-0.6B (1024) 440 and 452, but 194,000 and 219,000; Llama-3.2-1B (2048) 639 and 639, 176,000 and 211,000; Llama-3.1-8B (4096) 3570 and 3567, 28,900 and 34,400.
    pub(super) fn packed_format(&self, formats: &[Format], k: usize, transposed: bool, normed: bool) -> Format {
        let first = formats.first().copied().unwrap_or(Format::BF16);
        let kept = first.is_read() && first.bytes(k).is_some() && !transposed;
        if kept && formats.iter().all(|format| *format == first) {
            return first;
        }
        let as_bf16 = normed && k < 2048 && formats.iter().all(|format| *format == Format::BF16);
        self.planner.whole.unwrap_or(if as_bf16 { Format::BF16 } else { Format::F16 })
    }

    /// The packed format of each weight of a product.
    pub(super) fn matmul_formats(&self, node: NodeId) -> Result<Vec<Format>> {
        let graph = self.graph();
        let Op::Matmul(matmul) = graph.op(node) else { bail!("a {} is no product", graph.op(node)) };
        let k = graph.type_of(self.operand(node, Role::X)?).row_size();
        let stored = |weight| Ok(graph.type_of(self.operand(node, Role::Weight(weight))?).format);
        let stored: Vec<Format> = (0..matmul.biases.len()).map(stored).collect::<Result<_>>()?;
        let normed = matmul.norm.is_some() || self.norm_of(node)?.is_some();
        let packed = |formats: &[Format]| self.packed_format(formats, k, matmul.transposed, normed);
        Ok(match matmul.epilogue {
            // Gate and up share row tiles.
            Epilogue::Gate(_) => vec![packed(&stored); stored.len()],
            Epilogue::None | Epilogue::Activate(_) => stored.iter().map(|&format| packed(&[format])).collect(),
        })
    }
}
