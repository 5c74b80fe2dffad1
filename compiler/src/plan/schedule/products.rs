//! Products and what stands at their ends: the embedding, the projections, the head, the sampled token.

use anyhow::{Context, Result, bail, ensure};

use super::shapes::{matmul_shape, shape_matvec};
use super::wgmma::wgmma_shape;
use super::{Builder, Place};
use crate::ir::{Activation, Epilogue, Format, Matmul, NodeId, Norm, Op, Results, Role, Value, WeightRef};
use crate::plan::kernels::{
    self, Elementwise, Embedding, Expression, KernelSpec, Matvec, SAMPLE_CLUSTER, Sample, Storage, Tiles,
};
use crate::plan::place::{NULL, Source};
use crate::plan::{Arg, Io, Recipe};

/// Columns up to which the root mean square of an earlier norm helps. On an H200, us per step, with it and without: Llama-3.2-1B in q8_0 451 and 456, in q4_0 375 and 379;
/// Llama-3.1-8B (4096 columns, two passes of a block) in q4_0 1590 and 1569, in q4_k 1843 and 1806.
pub(super) const MOST_ALIKE: usize = 2048;

/// Values that are looked at between two norms of a stream of residuals.
const MOST_ADDENDS: usize = 12;

impl Builder<'_, '_> {
    pub(super) fn embedding(&mut self, node: NodeId) -> Result<()> {
        let (tensor, sizes) = self.weight(node, Role::Table)?;
        let [rows, k] = sizes[..] else { bail!("the embedding table {tensor} has {} dimensions, not 2", sizes.len()) };
        let parts = vec![self.part(node, Role::Table, rows)?];
        // As the head's weight, which it often is.
        let format = self.packed_format(&[parts[0].from], k, false, true);
        let recipe = Recipe::Tiles { parts, k, gated: false, transposed: false, format };
        let table = self.planner.weight(recipe);
        let (out, storage) = self.result(node.result(0));
        let tiles = Tiles { weights: format, k, rows: vec![rows], gated: false, out: storage };
        let ids = match self.graph().op(self.operand(node, Role::Ids)?.node) {
            Op::Input(name) if name == "positions" => self.positions(),
            Op::Input(name) if name == "tokens" => self.io(Io::Tokens, Io::PromptTokens),
            other => bail!("an embedding looks up `tokens` or `positions`, not what `{}` makes", other.name()),
        };
        let operands = [("weights", Source::Ready(Arg::Weight(table))), ("tokens", ids), ("out", out)];
        self.launch(KernelSpec::Embedding(Embedding { tiles }), self.rows.count, &operands)
    }

    /// A copy of an activation that is rounded for a product, unless it is already.
    pub(super) fn rounded(&mut self, from: Place, size: usize, to: Storage) -> Result<Place> {
        if from.storage == to {
            return Ok(from);
        }
        ensure!(from.storage == Storage::F32, "a product that reads {} has an x in {}", to.name(), from.storage.name());
        let buffer = self.buffer(self.rows.count * size * to.bytes());
        let spec = Elementwise { kind: Expression::Scale(1.0), size, out: to };
        let out = Source::Buffer(buffer, 0);
        self.launch(KernelSpec::Elementwise(spec), self.rows.count, &[("a", from.arg), ("out", out)])?;
        Ok(Place { arg: out, storage: to })
    }

    pub(super) fn matmul(&mut self, node: NodeId, matmul: &Matmul, sample: bool) -> Result<()> {
        let graph = self.graph();
        let gated = matches!(matmul.epilogue, Epilogue::Gate(_));
        let count = matmul.biases.len();
        let products = matmul.result_count() - usize::from(matmul.sample);
        let x_size = graph.type_of(self.operand(node, Role::X)?).row_size();
        let formats = self.matmul_formats(node)?;
        // A kernel has room for three outputs of one format; more are further kernels.
        let mut next = 0;
        while next < count {
            let first = next;
            let format = formats[first];
            let alike = formats[first..].iter().take(3).take_while(|&&other| other == format).count();
            next += alike;
            let weights: Vec<usize> = (first..next).collect();
            let outputs: Vec<usize> = if gated { vec![0] } else { weights.clone() };
            ensure!(
                outputs.iter().all(|&output| output < products),
                "{} has {count} weights and {products} results",
                graph.op(node)
            );
            let mut parts = Vec::new();
            for &weight in &weights {
                let (_, sizes) = self.weight(node, Role::Weight(weight))?;
                let rows = if matmul.transposed { sizes[1] } else { sizes[0] };
                parts.push(self.part(node, Role::Weight(weight), rows)?);
            }
            let biases: Vec<(Option<WeightRef>, usize)> = weights
                .iter()
                .zip(&parts)
                .map(|(&weight, part)| {
                    let bias = matmul.biases[weight].then(|| self.weight(node, Role::Bias(weight))).transpose()?;
                    Ok((bias.map(|(name, _)| name), part.rows))
                })
                .collect::<Result<_>>()?;
            let bias = if biases.iter().any(|(name, _)| name.is_some()) {
                Source::Ready(Arg::Weight(self.planner.weight(Recipe::Biases { parts: biases, gated, experts: None })))
            } else {
                NULL
            };
            let rows: Vec<usize> =
                if gated { vec![parts[0].rows] } else { parts.iter().map(|part| part.rows).collect() };
            let recipe = Recipe::Tiles { parts, k: x_size, gated, transposed: matmul.transposed, format };
            let packed = Source::Ready(Arg::Weight(self.planner.weight(recipe)));
            let x = self.place(node, Role::X)?;
            let residual = self.optional(node, Role::Residual)?;
            let product = Product { node, matmul, format, packed, bias, residual };
            if self.few() {
                self.matvec(&product, x, x_size, rows, &outputs, sample)?;
            } else {
                self.many_rows(&product, x, x_size, rows, &outputs, sample)?;
            }
        }
        Ok(())
    }

    /// A product of few rows, with everything fused.
    fn matvec(
        &mut self,
        product: &Product<'_>,
        x: Place,
        k: usize,
        rows: Vec<usize>,
        outputs: &[usize],
        sample: bool,
    ) -> Result<()> {
        let &Product { node, matmul, format, packed, bias, residual } = product;
        // What a norm of its own made is rounded no more than what a norm within makes.
        let paired = matmul.norm.is_none() && x.storage == Storage::F32 && self.norm_of(node)?.is_some();
        let offset = matmul.norm.as_ref().map_or(0.0, |norm| norm.offset);
        let mut operands = Operands {
            packed,
            bias,
            residual,
            norm_weight: self.vector(node, Role::NormWeight, offset)?,
            norm_bias: self.vector(node, Role::NormBias, 0.0)?,
            x: if matmul.norm.is_some() || paired { x.arg } else { self.rounded(x, k, format.activations())?.arg },
            ..Operands::default()
        };
        let argmax = matmul.sample && sample;
        let tiles =
            Tiles { weights: format, k, rows, gated: matches!(matmul.epilogue, Epilogue::Gate(_)), out: Storage::F32 };
        let mut spec = Matvec {
            norm: matmul.norm.as_ref().map(|norm| (norm.kind, norm.eps)),
            paired,
            activation: activation_of(matmul.epilogue),
            residual: matmul.residual,
            argmax,
            ..Matvec::plain(tiles, self.rows.count)
        };
        if spec.leaves_rms() {
            let x = self.operand(node, Role::X)?;
            operands.rms_before = if k <= MOST_ALIKE { self.rms_before(x) } else { NULL };
            spec.alike = operands.rms_before != NULL;
            operands.rms = Source::Buffer(self.buffer(self.rows.count * Storage::F32.bytes()), 0);
            self.rms = Some((x, operands.rms));
        }
        let may_sum =
            matmul.norm.is_none() && !paired && matmul.epilogue == Epilogue::None && outputs.len() == 1 && !argmax;
        self.shape(&mut spec, node.result(outputs[0]), may_sum, &mut operands)?;
        if spec.split == 1 {
            (operands.outs, spec.tiles.out) = self.outputs(node, outputs);
        }
        let blocks = spec.blocks;
        let maxima = argmax.then(|| self.buffer(self.rows.count * blocks * 8));
        operands.maxima = maxima.map_or(NULL, |buffer| Source::Buffer(buffer, 0));
        let logits = operands.outs[0];
        self.launch(KernelSpec::Matvec(spec), self.rows.count, &operands.named())?;
        if let Some(maxima) = maxima {
            self.sample(logits, Some((maxima, blocks)))?;
        }
        self.note_logits(node);
        Ok(())
    }

    /// Gives a product of few rows its launch shape. Where several blocks share a row tile, `value` becomes a sum. Where a router reads it, its logits become
    /// sums, too. `may_sum`: results are plain products, at most with something added.
    pub(super) fn shape(
        &mut self,
        spec: &mut Matvec,
        value: Value,
        may_sum: bool,
        operands: &mut Operands,
    ) -> Result<()> {
        shape_matvec(spec, may_sum && self.can_sum(value), self.planner.tuning);
        let router = if may_sum && self.can_zero() { self.router_of(value, spec.unit) } else { None };
        match router {
            Some(router) => self.sum_logits(value, router, spec, operands)?,
            None if spec.split > 1 => operands.outs[0] = self.sum(value),
            None => {}
        }
        Ok(())
    }

    /// The inverse root mean squares that a norm left, if its rows and those of `x` are alike: what stands between them only adds to the rows.
    pub(super) fn rms_before(&self, x: Value) -> Source {
        let Some((before, rms)) = self.rms else { return NULL };
        let graph = self.graph();
        let mut values = vec![x];
        for _ in 0..MOST_ADDENDS {
            let Some(value) = values.pop() else { break };
            if value == before {
                return rms;
            }
            match graph.op(value.node) {
                Op::Add => values.extend([Role::A, Role::B].iter().filter_map(|&role| graph.operand(value.node, role))),
                _ => values.extend(graph.operand(value.node, Role::Residual)),
            }
        }
        NULL
    }

    /// A product of many rows; its norm is a kernel of its own.
    fn many_rows(
        &mut self,
        product: &Product<'_>,
        x: Place,
        k: usize,
        rows: Vec<usize>,
        outputs: &[usize],
        sample: bool,
    ) -> Result<()> {
        let &Product { node, matmul, format, packed, bias, residual } = product;
        let two = self.x_storage(format, k) == Storage::BF16;
        let apart = self.norm_of(node)?;
        let (x, paired) = match (&matmul.norm, apart) {
            (Some(norm), _) => (self.rounded_norm(node, norm, x.arg, k, format)?, two),
            (None, Some((of, norm))) => {
                let key = (of.result(0), self.x_storage(format, k));
                let out = match self.normed.get(&key) {
                    Some(&known) => known,
                    None => self.rounded_norm(of, &norm, self.pointer(of, Role::X)?, k, format)?,
                };
                self.normed.insert(key, out);
                (out, two)
            }
            (None, None) => (self.rounded(x, k, self.x_storage(format, k))?, false),
        };
        let (outs, storage) = self.outputs(node, outputs);
        let tiles =
            Tiles { weights: format, k, rows, gated: matches!(matmul.epilogue, Epilogue::Gate(_)), out: storage };
        let [out0, out1, out2] = outs;
        let mut operands = vec![("weights", packed), ("x", x.arg), ("bias", bias), ("residual", residual)];
        operands.extend([("out0", out0), ("out1", out1), ("out2", out2)]);
        self.product_of_rows(tiles, paired, activation_of(matmul.epilogue), x.storage, operands)?;
        if matmul.sample && sample {
            self.sample(out0, None)?;
        }
        self.note_logits(node);
        Ok(())
    }

    /// A product of many rows, by the kernel that reads x as it is stored. `operands`: all but the number of rows.
    pub(super) fn product_of_rows(
        &mut self,
        tiles: Tiles,
        paired: bool,
        activation: Option<Activation>,
        x: Storage,
        mut operands: Vec<(&str, Source)>,
    ) -> Result<()> {
        let rows = self.rows.count;
        let spec = if x.is_tiled() {
            operands.push(("row_count", self.count()));
            let shape = wgmma_shape(&tiles, activation, rows);
            let spec = shape.with_context(|| format!("no tile serves a product of {rows} rows with {tiles:?}"))?;
            KernelSpec::MatmulWgmma(spec)
        } else if self.streams(tiles.weights, tiles.k) {
            let residual = operands.iter().any(|&(name, from)| name == "residual" && from != NULL);
            let mut spec = Matvec { activation, residual, ..Matvec::plain(tiles, rows) };
            shape_matvec(&mut spec, false, self.planner.tuning);
            KernelSpec::Matvec(spec)
        } else {
            operands.push(("rows", self.count()));
            KernelSpec::Matmul(matmul_shape(tiles, paired, activation, rows))
        };
        self.launch(spec, rows, &operands)
    }

    /// The norm of whole rows that makes the x of a product and is no part of it.
    pub(super) fn norm_of(&self, node: NodeId) -> Result<Option<(NodeId, Norm)>> {
        let x = self.operand(node, Role::X)?;
        let ty = self.graph().type_of(x);
        Ok(match self.graph().op(x.node) {
            Op::Norm(norm) if ty.last_size() == Some(ty.row_size()) => Some((x.node, norm.clone())),
            _ => None,
        })
    }

    /// Rows of `x` under the norm that `node` has or is, for products with weights of `format`: of bfloat16 as a hi/lo split.
    pub(super) fn rounded_norm(
        &mut self,
        node: NodeId,
        norm: &Norm,
        x: Source,
        k: usize,
        format: Format,
    ) -> Result<Place> {
        let storage = self.x_storage(format, k);
        let paired = storage == Storage::BF16;
        let out = Source::Buffer(self.buffer(self.rows.count * k * if paired { 4 } else { 2 }), 0);
        let spec = kernels::Norm { kind: norm.kind, size: k, eps: norm.eps, paired, out: storage };
        self.norm_rows(node, norm.offset, spec, x, out, self.rows.count)?;
        Ok(Place { arg: out, storage })
    }

    /// Places for these results of a product, the rest null. One storage for all.
    fn outputs(&mut self, node: NodeId, outputs: &[usize]) -> ([Source; 3], Storage) {
        let mut places = [NULL; 3];
        let mut storage = Storage::F32;
        for (slot, &output) in outputs.iter().enumerate() {
            (places[slot], storage) = self.result(node.result(output));
        }
        if outputs.len() > 1 && storage != Storage::F32 {
            // Results that are stored alike only by chance are stored as fp32, and rounded by whoever needs it.
            for (slot, &output) in outputs.iter().enumerate() {
                let Source::Buffer(buffer, _) = places[slot] else { continue };
                let size = self.graph().type_of(node.result(output)).row_size();
                self.buffers[buffer].bytes = self.rows.count * size * 4;
                self.set(node.result(output), places[slot], Storage::F32);
            }
            storage = Storage::F32;
        }
        (places, storage)
    }

    /// `fused`: the logits, and the block maxima that the head left.
    pub(super) fn sample(&mut self, logits: Source, maxima: Option<(usize, usize)>) -> Result<()> {
        let (maxima, blocks) = maxima.map_or((NULL, 0), |(buffer, blocks)| (Source::Buffer(buffer, 0), blocks));
        let vocabulary = self.graph().outputs.first().map_or(0, |&logits| self.graph().type_of(logits).row_size());
        let io = |io| Source::Ready(Arg::Io(io, 0));
        let cluster = if self.planner.clusters { SAMPLE_CLUSTER } else { 1 };
        let spec = KernelSpec::Sample(Sample { vocabulary, maxima: blocks, cluster });
        let operands = [
            ("logits", logits),
            ("maxima", maxima),
            ("positions", self.positions()),
            ("sequences", self.sequences()),
            ("parameters", io(Io::Parameters)),
            ("next_tokens", io(Io::Tokens)),
            ("next_positions", io(Io::Positions)),
            ("ring", io(Io::Ring)),
        ];
        self.launch(spec, self.rows.count, &operands)
    }
}

/// What both forms of a product share.
struct Product<'m> {
    node: NodeId,
    matmul: &'m Matmul,
    format: Format,
    packed: Source,
    bias: Source,
    residual: Source,
}

/// The operands of a product of few rows.
#[derive(Clone)]
pub(super) struct Operands {
    pub packed: Source,
    pub x: Source,
    pub norm_weight: Source,
    pub norm_bias: Source,
    pub bias: Source,
    pub residual: Source,
    pub outs: [Source; 3],
    pub statistics: Source,
    pub positions: Source,
    pub maxima: Source,
    /// Inverse root mean squares of rows: what an earlier norm left, what this one leaves.
    pub rms_before: Source,
    pub rms: Source,
    /// Packed weight, norm weight and logits of the router that reads the result.
    pub router: Option<[Source; 3]>,
}

impl Default for Operands {
    fn default() -> Operands {
        Operands {
            packed: NULL,
            x: NULL,
            norm_weight: NULL,
            norm_bias: NULL,
            bias: NULL,
            residual: NULL,
            outs: [NULL; 3],
            statistics: NULL,
            positions: NULL,
            maxima: NULL,
            rms_before: NULL,
            rms: NULL,
            router: None,
        }
    }
}

impl Operands {
    /// By the names of the kernel's parameters.
    pub fn named(&self) -> Vec<(&'static str, Source)> {
        let [out0, out1, out2] = self.outs;
        let mut operands = vec![
            ("weights", self.packed),
            ("x", self.x),
            ("norm_weight", self.norm_weight),
            ("norm_bias", self.norm_bias),
            ("bias", self.bias),
            ("residual", self.residual),
            ("out0", out0),
            ("out1", out1),
            ("out2", out2),
            ("statistics", self.statistics),
            ("positions", self.positions),
            ("maxima", self.maxima),
        ];
        if let Some([router, router_norm, logits]) = self.router {
            operands.extend([("router", router), ("router_norm", router_norm), ("logits", logits)]);
        }
        let rms = [("rms_before", self.rms_before), ("rms", self.rms)];
        operands.extend(rms.into_iter().filter(|(_, source)| *source != NULL));
        operands
    }
}

fn activation_of(epilogue: Epilogue) -> Option<Activation> {
    match epilogue {
        Epilogue::None => None,
        Epilogue::Activate(activation) | Epilogue::Gate(activation) => Some(activation),
    }
}
