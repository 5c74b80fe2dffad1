//! Attention, fused with what is around it when rows are few, in kernels of its own when they are many.

use anyhow::{Context, Result, bail};

use super::products::Operands;
use super::shapes::{
    ClusterShape, attention_chains, attention_rows_shape, attention_shape, cluster_shape, near_group, query_group,
    split_shape,
};
use super::{Builder, MULTIPROCESSORS};
use crate::ir::{Attention, Format, NodeId, Norm, NormKind, Op, Results, Role, Rope};
use crate::plan::kernels::{
    self, Append, AttentionProjection, AttentionRows, AttentionWide, Combine, Heads, KernelSpec, KvAppend, Matvec,
    RopeRows, RopeTable, Splits, Storage, Tiles, TuningKey,
};
use crate::plan::place::{NULL, Source};
use crate::plan::{Arg, Recipe};

/// Values of a head that the other kernels hold, at most.
const WIDEST: usize = 256;

/// Keys per block of a wide attention before one more block is used.
const WIDE_KEYS: usize = 64;

/// The number of positions that a cache holds.
const CONTEXT: Source = Source::Ready(Arg::Context);

impl Builder<'_, '_> {
    /// RoPE and cache writes that are not fused into an attention.
    pub(super) fn positional(&mut self, node: NodeId, op: &Op) -> Result<()> {
        let x = self.pointer(node, Role::X)?;
        let ty = self.graph().type_of(self.operand(node, Role::X)?).clone();
        let sizes: Vec<usize> = ty.fixed_sizes().collect();
        let [heads, head_dim] = sizes[..] else { bail!("{op} of {ty}, not of [T, heads, head_dim]") };
        if let Op::Rope(rope) = op {
            let (out, _) = self.result_f32(node.result(0));
            self.rope_rows(rope.table(), x, out, heads, head_dim)?;
        } else {
            let cache = self.pointer(node, Role::Cache)?;
            self.append_rows(x, cache, heads, head_dim)?;
            self.set(node.result(0), cache, Storage::BF16);
        }
        Ok(())
    }

    fn rope_rows(&mut self, table: RopeTable, x: Source, out: Source, heads: usize, head_dim: usize) -> Result<()> {
        let spec = KernelSpec::Rope(RopeRows { table, heads, head_dim });
        self.launch(spec, self.rows.count, &[("x", x), ("positions", self.positions()), ("out", out)])
    }

    fn append_rows(&mut self, x: Source, cache: Source, key_heads: usize, head_dim: usize) -> Result<()> {
        let (positions, sequences) = (self.positions(), self.sequences());
        let operands =
            [("x", x), ("positions", positions), ("sequences", sequences), ("cache", cache), ("context", CONTEXT)];
        self.launch(KernelSpec::KvAppend(KvAppend { key_heads, head_dim }), self.rows.count, &operands)
    }

    pub(super) fn attention(&mut self, node: NodeId, attention: &Attention) -> Result<()> {
        let graph = self.graph();
        let q_type: Vec<usize> = graph.type_of(self.operand(node, Role::Q)?).fixed_sizes().collect();
        let [heads, head_dim] = q_type[..] else {
            bail!("queries have {} dimensions, not [T, heads, head_dim]", q_type.len() + 1)
        };
        let cache_type: Vec<usize> = graph.type_of(self.operand(node, Role::KeyCache)?).fixed_sizes().collect();
        let key_heads = cache_type[0];
        let (keys, values) = (self.pointer(node, Role::KeyCache)?, self.optional(node, Role::ValueCache)?);
        if attention.append {
            self.set(node.result(1), keys, Storage::BF16);
            self.set(node.result(2), values, Storage::BF16);
        }
        let mut q = self.pointer(node, Role::Q)?;
        let in_kernel = attention.append
            && head_dim <= WIDEST
            && !self.rows.prompt
            && attention.q_norm.is_some() == attention.k_norm.is_some()
            && [&attention.q_norm, &attention.k_norm]
                .iter()
                .all(|norm| norm.as_ref().is_none_or(|norm| norm.kind == NormKind::Rms && !norm.bias));
        let (mut k, mut v) = (NULL, NULL);
        if attention.append {
            (k, v) = (self.pointer(node, Role::K)?, self.pointer(node, Role::V)?);
            if !in_kernel {
                q = self.append(node, attention, [q, k, v], [keys, values], [heads, key_heads, head_dim])?;
            }
        }
        if head_dim > WIDEST || attention.latent.is_some() {
            return self.attention_wide(node, attention, q, [keys, values], [heads, key_heads, head_dim]);
        }
        if self.rows.prompt {
            return self.attention_rows(node, attention, q, [keys, values], [heads, key_heads, head_dim]);
        }
        let share = heads / key_heads;
        let group = query_group(share, head_dim);
        let window = attention.window.unwrap_or(0);
        let key = TuningKey::Attention(heads, key_heads, head_dim, window, self.rows.count);
        let tuned = self.planner.tuning.attention(&key);
        let (warps, keys_per_split) = tuned.map_or(attention_shape(head_dim), |entry| (entry.warps, entry.keys));
        let near_warps = tuned.and_then(|entry| entry.near_warps).unwrap_or(8);
        let norms = attention.q_norm.as_ref().zip(attention.k_norm.as_ref()).filter(|_| in_kernel);
        let mut spec = Heads {
            heads,
            key_heads,
            head_dim,
            group,
            warps,
            splits: Splits { max: 1, keys: keys_per_split, window, merged: 1 },
            chains: tuned.and_then(|entry| entry.chains).unwrap_or(attention_chains(head_dim)),
            held: 1,
            late: tuned.is_some_and(|entry| entry.late),
            scale: attention.scale,
            softcap: attention.softcap,
            append: in_kernel,
            norm: norms.map(|(q_norm, k_norm)| (q_norm.eps, k_norm.eps)),
            rope: attention.rope.as_ref().filter(|_| in_kernel).map(Rope::table),
            sinks: attention.sinks,
        };
        let offset = |norm: &Option<Norm>| norm.as_ref().map_or(0.0, |norm| norm.offset);
        let (mut q_weight, mut k_weight) = (NULL, NULL);
        if in_kernel {
            q_weight = self.vector(node, Role::QNormWeight, offset(&attention.q_norm))?;
            k_weight = self.vector(node, Role::KNormWeight, offset(&attention.k_norm))?;
        }
        let mut operands = vec![("q", q), ("k", k), ("v", v), ("key_cache", keys), ("value_cache", values)];
        operands.extend([("positions", self.positions()), ("sequences", self.sequences()), ("context", CONTEXT)]);
        operands.extend([("q_weight", q_weight), ("k_weight", k_weight)]);
        operands.push(("sinks", self.vector(node, Role::Sinks, 0.0)?));
        if in_kernel && self.rows.near && self.planner.clusters && attention.proj.is_some() {
            let proj = self.proj_weight(node, attention, heads * head_dim)?;
            let warps = spec.warps;
            spec.warps = near_warps;
            if let Some(shape) = cluster_shape(&spec, proj.format, proj.rows, self.rows.count, tuned) {
                spec.splits.keys = 1;
                self.has_near_form = true;
                return self.clustered(node, spec, proj, shape, operands);
            }
            spec.warps = warps;
        }
        // A near step has so few keys that one block takes all of a head's, and many rows have blocks enough: there is nothing to combine.
        let whole = attention.proj.is_some() && (self.rows.near || !self.few() && !self.planner.clusters);
        if whole {
            self.has_near_form |= self.rows.near;
            (spec.warps, spec.splits.keys) = (near_warps, 1);
            let tuned = tuned.and_then(|entry| entry.near_group).filter(|group| share.is_multiple_of(*group));
            spec.group = tuned.unwrap_or_else(|| near_group(heads, share, self.rows.count)).min(group);
        }
        if !whole && self.planner.clusters {
            let shape = split_shape(heads / spec.group * self.rows.count, head_dim);
            spec.splits.max = tuned.and_then(|entry| entry.splits).unwrap_or(shape.splits);
            spec.splits.merged = tuned.and_then(|entry| entry.merged).unwrap_or(spec.splits.max);
            spec.warps = tuned.map_or(shape.warps, |entry| entry.warps);
            spec.splits.keys = tuned.map_or(16 * shape.warps, |entry| entry.keys);
            spec.held = tuned.and_then(|entry| entry.held).unwrap_or(shape.held);
        } else if attention.proj.is_some() && !whole {
            // A projection that combines reads partial sums even from a single block.
            spec.splits.max = (2 * MULTIPROCESSORS / (heads / spec.group * self.rows.count)).clamp(2, 32);
        }
        let splits = spec.splits;
        let combined = attention.proj.is_some() && !whole && (splits.left() > 1 || !self.planner.clusters);
        let (out, storage, statistics) = if combined {
            let out = self.buffer(splits.left() * self.rows.count * heads * head_dim * 2);
            let statistics = self.buffer(splits.left() * self.rows.count * heads * 8);
            (Source::Buffer(out, 0), Storage::F16, Source::Buffer(statistics, 0))
        } else if attention.proj.is_some() {
            let out = self.buffer(self.rows.count * heads * head_dim * 2);
            let format = self.proj_format(node, attention, heads * head_dim)?;
            (Source::Buffer(out, 0), self.x_storage(format, heads * head_dim), NULL)
        } else {
            let (out, storage) = self.result(node.result(0));
            (out, storage, NULL)
        };
        operands.extend([("out", out), ("statistics", statistics)]);
        let spec = KernelSpec::Attention(kernels::Attention { attention: spec, out: storage });
        self.launch(spec, self.rows.count, &operands)?;
        if attention.proj.is_some() {
            self.projection(node, attention, out, statistics, heads, head_dim, combined.then_some(splits))?;
        }
        Ok(())
    }

    /// Attention of a prompt's rows; their keys and values are put into the caches before it.
    fn attention_rows(
        &mut self,
        node: NodeId,
        attention: &Attention,
        q: Source,
        [keys, values]: [Source; 2],
        [heads, key_heads, head_dim]: [usize; 3],
    ) -> Result<()> {
        let rows = self.rows.count;
        let (row_warps, parts, tile) = attention_rows_shape(heads, key_heads, head_dim, rows);
        let sinks = self.vector(node, Role::Sinks, 0.0)?;
        let (out, storage) = if attention.proj.is_some() {
            let format = self.proj_format(node, attention, heads * head_dim)?;
            (Source::Buffer(self.buffer(rows * heads * head_dim * 2), 0), self.x_storage(format, heads * head_dim))
        } else {
            self.result(node.result(0))
        };
        let spec = AttentionRows {
            heads,
            key_heads,
            head_dim,
            window: attention.window.unwrap_or(0),
            scale: attention.scale,
            softcap: attention.softcap,
            sinks: attention.sinks,
            row_warps,
            parts,
            keys: tile,
            out: storage,
        };
        let mut operands = vec![("q", q), ("key_cache", keys), ("value_cache", values), ("sinks", sinks), ("out", out)];
        operands.extend([("positions", self.positions()), ("sequences", self.sequences())]);
        operands.extend([("context", CONTEXT), ("rows", self.count())]);
        self.launch(KernelSpec::AttentionRows(spec), rows, &operands)?;
        if attention.proj.is_some() {
            self.projection(node, attention, out, NULL, heads, head_dim, None)?;
        }
        Ok(())
    }

    /// Attention with heads of more values than the other kernels hold, of few rows or of many; their keys and values are put into the caches before it.
    fn attention_wide(
        &mut self,
        node: NodeId,
        attention: &Attention,
        q: Source,
        [keys, values]: [Source; 2],
        [heads, key_heads, head_dim]: [usize; 3],
    ) -> Result<()> {
        let rows = self.rows.count;
        let value_dim = attention.latent.unwrap_or(head_dim);
        let share = heads / key_heads;
        let group = [4, 2].into_iter().find(|group| share.is_multiple_of(*group)).unwrap_or(1);
        let combined = self.few() && attention.proj.is_some();
        // A projection that combines reads partial sums even from a single block.
        let max = if combined { (2 * MULTIPROCESSORS / (heads / group * rows)).clamp(2, 32) } else { 1 };
        let splits = Splits { max, keys: WIDE_KEYS, window: attention.window.unwrap_or(0), merged: 1 };
        let sinks = self.vector(node, Role::Sinks, 0.0)?;
        let (out, storage, statistics) = match attention.proj {
            Some(_) if combined => {
                let out = self.buffer(max * rows * heads * value_dim * 2);
                let statistics = self.buffer(max * rows * heads * 8);
                (Source::Buffer(out, 0), Storage::F16, Source::Buffer(statistics, 0))
            }
            Some(_) => {
                let format = self.proj_format(node, attention, heads * value_dim)?;
                let out = self.buffer(rows * heads * value_dim * 2);
                (Source::Buffer(out, 0), self.x_storage(format, heads * value_dim), NULL)
            }
            None => {
                let (out, storage) = self.result(node.result(0));
                (out, storage, NULL)
            }
        };
        let spec = AttentionWide {
            heads,
            key_heads,
            head_dim,
            value_dim,
            latent: attention.latent.is_some(),
            group,
            splits,
            scale: attention.scale,
            softcap: attention.softcap,
            sinks: attention.sinks,
            out: storage,
        };
        let mut operands = vec![("q", q), ("key_cache", keys), ("sinks", sinks), ("out", out)];
        operands.extend(attention.latent.is_none().then_some(("value_cache", values)));
        operands.extend([("positions", self.positions()), ("sequences", self.sequences()), ("statistics", statistics)]);
        operands.extend([("context", CONTEXT), ("rows", self.count())]);
        self.launch(KernelSpec::AttentionWide(spec), rows, &operands)?;
        if attention.proj.is_some() {
            self.projection(node, attention, out, statistics, heads, value_dim, combined.then_some(splits))?;
        }
        Ok(())
    }

    /// Attention and its projection in one kernel, its blocks in clusters.
    fn clustered(
        &mut self,
        node: NodeId,
        attention: Heads,
        proj: ProjWeight,
        ClusterShape { cluster, slice, rows }: ClusterShape,
        mut operands: Vec<(&str, Source)>,
    ) -> Result<()> {
        let residual = self.optional(node, Role::Residual)?;
        let (out, storage) = self.result(node.result(0));
        let tiles = Tiles { weights: proj.format, k: proj.k, rows: vec![proj.rows], gated: false, out: storage };
        operands.extend([("weights", proj.packed), ("bias", proj.bias), ("residual", residual), ("out", out)]);
        let spec = AttentionProjection { attention, tiles, batch: rows, cluster, slice };
        self.launch(KernelSpec::AttentionProjection(spec), self.rows.count, &operands)
    }

    /// Heads of q and k normalised and rotated, keys and values in their caches. Gives the queries to attend with.
    fn append(
        &mut self,
        node: NodeId,
        attention: &Attention,
        [q, k, v]: [Source; 3],
        [keys, values]: [Source; 2],
        [heads, key_heads, head_dim]: [usize; 3],
    ) -> Result<Source> {
        let rows = self.rows.count;
        let weight = |norm: &Option<Norm>| norm.as_ref().map_or(0.0, |norm| norm.offset);
        let q_weight = self.vector(node, Role::QNormWeight, weight(&attention.q_norm))?;
        let k_weight = self.vector(node, Role::KNormWeight, weight(&attention.k_norm))?;
        let changes = attention.q_norm.is_some() || attention.rope.is_some();
        let out = if changes { Source::Buffer(self.buffer(rows * heads * head_dim * 4), 0) } else { q };
        let kind = |norm: &Option<Norm>| norm.as_ref().map(|norm| (norm.kind, norm.eps));
        let spec = Append {
            heads: if changes { heads } else { 0 },
            key_heads,
            head_dim,
            q_norm: kind(&attention.q_norm),
            k_norm: kind(&attention.k_norm),
            rope: attention.rope.as_ref().map(Rope::table),
        };
        let mut operands =
            vec![("q", q), ("k", k), ("v", v), ("q_out", out), ("key_cache", keys), ("value_cache", values)];
        operands.extend([("positions", self.positions()), ("sequences", self.sequences()), ("context", CONTEXT)]);
        operands.extend([("q_weight", q_weight), ("k_weight", k_weight)]);
        self.launch(KernelSpec::Append(spec), rows, &operands)?;
        Ok(out)
    }

    fn proj_weight(&mut self, node: NodeId, attention: &Attention, k: usize) -> Result<ProjWeight> {
        let proj = attention.proj.context("no projection")?;
        let (_, sizes) = self.weight(node, Role::ProjWeight)?;
        let rows = if proj.transposed { sizes[1] } else { sizes[0] };
        let bias = match proj.bias {
            true => {
                let (name, _) = self.weight(node, Role::ProjBias)?;
                Source::Ready(Arg::Weight(self.planner.weight(Recipe::Biases {
                    parts: vec![(Some(name), rows)],
                    gated: false,
                    experts: None,
                })))
            }
            false => NULL,
        };
        let parts = vec![self.part(node, Role::ProjWeight, rows)?];
        let format = self.proj_format(node, attention, k)?;
        let recipe = Recipe::Tiles { parts, k, gated: false, transposed: proj.transposed, format };
        Ok(ProjWeight { rows, k, format, packed: Source::Ready(Arg::Weight(self.planner.weight(recipe))), bias })
    }

    /// How the weight of the projection is packed.
    fn proj_format(&self, node: NodeId, attention: &Attention, k: usize) -> Result<Format> {
        let proj = attention.proj.context("no projection")?;
        let stored = self.graph().type_of(self.operand(node, Role::ProjWeight)?).format;
        Ok(self.packed_format(&[stored], k, proj.transposed, false))
    }

    /// The output projection that is fused with an attention.
    #[allow(clippy::too_many_arguments)]
    fn projection(
        &mut self,
        node: NodeId,
        attention: &Attention,
        x: Source,
        statistics: Source,
        heads: usize,
        head_dim: usize,
        combine: Option<Splits>,
    ) -> Result<()> {
        let ProjWeight { rows, k, format, packed, bias } = self.proj_weight(node, attention, heads * head_dim)?;
        let residual = self.optional(node, Role::Residual)?;
        if self.few() {
            let tiles = Tiles { weights: format, k, rows: vec![rows], gated: false, out: Storage::F32 };
            let mut spec = Matvec {
                combine: combine.map(|splits| Combine { heads, head_dim, splits }),
                residual: attention.proj.is_some_and(|proj| proj.residual),
                ..Matvec::plain(tiles, self.rows.count)
            };
            let positions = self.positions();
            let mut operands = Operands { packed, x, bias, residual, statistics, positions, ..Operands::default() };
            self.shape(&mut spec, node.result(0), true, &mut operands)?;
            if spec.split == 1 {
                (operands.outs[0], spec.tiles.out) = self.result(node.result(0));
            }
            self.launch(KernelSpec::Matvec(spec), self.rows.count, &operands.named())
        } else {
            let (out, storage) = self.result(node.result(0));
            let tiles = Tiles { weights: format, k, rows: vec![rows], gated: false, out: storage };
            let operands = vec![("weights", packed), ("x", x), ("bias", bias), ("residual", residual), ("out0", out)];
            self.product_of_rows(tiles, false, None, self.x_storage(format, k), operands)
        }
    }
}

/// The weight of a projection that is fused with an attention, `[rows, k]`.
struct ProjWeight {
    rows: usize,
    k: usize,
    format: Format,
    packed: Source,
    bias: Source,
}
