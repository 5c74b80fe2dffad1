//! Products and what stands at their ends: the embedding, the projections, the head, the sampled token.

use anyhow::{Result, bail, ensure};

use super::shapes::{matmul_grid, matmul_shape, matvec_shape};
use super::{Builder, NO_ZEROS, Place, Source};
use crate::ir::{Activation, Epilogue, Matmul, NodeId, Norm, Op, Results, Role, Value};
use crate::plan::spec::{ElementKind, KernelSpec, MatvecSpec, NormSpec, SAMPLE_CLUSTER, Storage, Tiles};
use crate::plan::{Arg, Io, Part, Recipe};

impl Builder<'_, '_> {
    pub(super) fn embedding(&mut self, node: NodeId) -> Result<()> {
        let (tensor, sizes) = self.weight(node, Role::Table)?;
        let [rows, k] = sizes[..] else { bail!("the embedding table {tensor} has {} dimensions, not 2", sizes.len()) };
        let recipe = Recipe::Tiles { parts: vec![Part { tensor, rows }], k, gated: false, transposed: false };
        let table = self.planner.weight(recipe);
        let (out, storage) = self.result(node.result(0));
        let spec = KernelSpec::Embedding(Tiles { k, rows: vec![rows], gated: false, out: storage });
        let ids = match self.graph().op(self.operand(node, Role::Ids)?.node) {
            Op::Input(name) if name == "positions" => self.positions(),
            _ => self.io(Io::Tokens, Io::PromptTokens),
        };
        let grid = [self.rows.count, k.div_ceil(spec.threads()), 1];
        let bytes = self.rows.count * k * 2;
        self.launch(spec, grid, vec![Source::Ready(Arg::Weight(table)), ids, out], bytes);
        Ok(())
    }

    /// A copy of an activation in bfloat16, for a product.
    pub(super) fn rounded(&mut self, from: Place, size: usize) -> Source {
        if from.storage == Storage::BF16 {
            return from.arg;
        }
        let buffer = self.buffer(self.rows.count * size * 2);
        let spec = KernelSpec::Elementwise { kind: ElementKind::Scale(1.0), size, out: Storage::BF16 };
        let out = Source::Buffer(buffer, 0);
        self.launch(spec, [self.rows.count, 1, 1], vec![from.arg, Source::Ready(Arg::Null), out], 0);
        out
    }

    pub(super) fn matmul(&mut self, node: NodeId, matmul: &Matmul, sample: bool) -> Result<()> {
        let graph = self.graph();
        let gated = matches!(matmul.epilogue, Epilogue::Gate(_));
        let count = matmul.biases.len();
        let products = matmul.result_count() - usize::from(matmul.sample);
        let x_size = graph.type_of(self.operand(node, Role::X)?).row_size();
        // A kernel has room for three outputs; more are further kernels.
        for first in (0..count).step_by(3) {
            let weights: Vec<usize> = (first..count.min(first + 3)).collect();
            let outputs: Vec<usize> = if gated { vec![0] } else { weights.clone() };
            ensure!(
                outputs.iter().all(|&output| output < products),
                "{} has {count} weights and {products} results",
                graph.op(node)
            );
            let mut parts = Vec::new();
            for &weight in &weights {
                let (tensor, sizes) = self.weight(node, Role::Weight(weight))?;
                let rows = if matmul.transposed { sizes[1] } else { sizes[0] };
                parts.push(Part { tensor, rows });
            }
            let biases: Vec<(Option<String>, usize)> = weights
                .iter()
                .zip(&parts)
                .map(|(&weight, part)| {
                    let bias = matmul.biases[weight].then(|| self.weight(node, Role::Bias(weight))).transpose()?;
                    Ok((bias.map(|(name, _)| name), part.rows))
                })
                .collect::<Result<_>>()?;
            let bias = if biases.iter().any(|(name, _)| name.is_some()) {
                Source::Ready(Arg::Weight(self.planner.weight(Recipe::Biases { parts: biases, gated })))
            } else {
                Source::Ready(Arg::Null)
            };
            let rows: Vec<usize> =
                if gated { vec![parts[0].rows] } else { parts.iter().map(|part| part.rows).collect() };
            let bytes = parts.iter().map(|part| part.rows * x_size * 2).sum();
            let recipe = Recipe::Tiles { parts, k: x_size, gated, transposed: matmul.transposed };
            let packed = Source::Ready(Arg::Weight(self.planner.weight(recipe)));
            let x = self.place(node, Role::X)?;
            let residual = self.optional(node, Role::Residual)?;
            let product = Product { node, matmul, packed, bias, residual, bytes };
            if self.few() {
                self.matvec(&product, x, x_size, rows, &outputs, sample)?;
            } else {
                self.many_rows(&product, x, x_size, rows, &outputs)?;
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
        let &Product { node, matmul, packed, bias, residual, bytes } = product;
        // What a norm of its own made is rounded no more than what a norm within makes.
        let paired = matmul.norm.is_none() && x.storage == Storage::F32 && self.norm_of(node)?.is_some();
        let offset = matmul.norm.as_ref().map_or(0.0, |norm| norm.offset);
        let mut operands = Operands {
            packed,
            bias,
            residual,
            norm_weight: self.vector(node, Role::NormWeight, offset)?,
            norm_bias: self.vector(node, Role::NormBias, 0.0)?,
            x: if matmul.norm.is_some() || paired { x.arg } else { self.rounded(x, k) },
            bytes,
            ..Operands::default()
        };
        let argmax = matmul.sample && sample;
        let mut spec = MatvecSpec {
            tiles: Tiles { k, rows, gated: matches!(matmul.epilogue, Epilogue::Gate(_)), out: Storage::F32 },
            batch: self.rows.count,
            warps: 0,
            depth: 0,
            unit: 1,
            split: 1,
            norm: matmul.norm.as_ref().map(|norm| (norm.kind, norm.eps)),
            paired,
            combine: None,
            activation: activation_of(matmul.epilogue),
            residual: matmul.residual,
            argmax,
            late: false,
            ahead: false,
            router: None,
        };
        let may_sum =
            matmul.norm.is_none() && !paired && matmul.epilogue == Epilogue::None && outputs.len() == 1 && !argmax;
        let blocks = self.shaped(&mut spec, node.result(outputs[0]), may_sum, &mut operands)?;
        if spec.split == 1 {
            (operands.outs, spec.tiles.out) = self.outputs(node, outputs);
        }
        let maxima = argmax.then(|| self.buffer(self.rows.count * blocks * 8));
        operands.maxima = maxima.map_or(NULL, |buffer| Source::Buffer(buffer, 0));
        let logits = operands.outs[0];
        self.launch(KernelSpec::Matvec(spec), [blocks, 1, 1], operands.args(), operands.bytes);
        if let Some(maxima) = maxima {
            self.sample(node, Some((logits, maxima, blocks)))?;
        }
        self.note_logits(node);
        Ok(())
    }

    /// Gives a product of few rows its shape and returns its blocks. Where several blocks share a row tile, `value` becomes a sum. Where a router reads
    /// it, its logits become sums, too. `may_sum`: results are plain products, at most with something added.
    pub(super) fn shaped(
        &mut self,
        spec: &mut MatvecSpec,
        value: Value,
        may_sum: bool,
        operands: &mut Operands,
    ) -> Result<usize> {
        let shape = matvec_shape(spec, may_sum && self.can_sum(value), self.planner.tuning);
        (spec.warps, spec.depth, spec.unit, spec.split) = (shape.warps, shape.depth, shape.unit, shape.split);
        let tuned = self.planner.tuning.matvec(&spec.tuning_key());
        spec.late = tuned.is_some_and(|entry| entry.late);
        spec.ahead = tuned.and_then(|entry| entry.ahead).unwrap_or(spec.norm.is_none() && spec.batch == 1);
        let router = if may_sum && self.can_zero() { self.router_of(value, shape.unit) } else { None };
        match router {
            Some(router) => self.sum_logits(value, router, spec, operands)?,
            None if spec.split > 1 => operands.outs[0] = self.sum(value),
            None => {}
        }
        Ok(shape.blocks)
    }

    /// A product of many rows; its norm is a kernel of its own.
    fn many_rows(
        &mut self,
        product: &Product<'_>,
        x: Place,
        k: usize,
        rows: Vec<usize>,
        outputs: &[usize],
    ) -> Result<()> {
        let &Product { node, matmul, packed, bias, residual, bytes } = product;
        let apart = self.norm_of(node)?;
        let (x, paired) = match (&matmul.norm, apart) {
            (Some(norm), _) => (self.paired_norm(node, norm, x.arg, k)?, true),
            (None, Some((of, norm))) => {
                let out = match self.paired.get(&of.result(0)) {
                    Some(&known) => known,
                    None => self.paired_norm(of, &norm, self.pointer(of, Role::X)?, k)?,
                };
                self.paired.insert(of.result(0), out);
                (out, true)
            }
            (None, None) => (self.rounded(x, k), false),
        };
        let (outs, storage) = self.outputs(node, outputs);
        let tiles = Tiles { k, rows, gated: matches!(matmul.epilogue, Epilogue::Gate(_)), out: storage };
        let spec = matmul_shape(tiles, paired, activation_of(matmul.epilogue), self.rows.count);
        let grid = matmul_grid(&spec, self.rows.count);
        let count = Source::Ready(Arg::Number(self.rows.count as u64));
        let args = vec![packed, x, bias, residual, outs[0], outs[1], outs[2], count];
        self.launch(KernelSpec::Matmul(spec), grid, args, bytes);
        self.note_logits(node);
        Ok(())
    }

    /// The norm of whole rows that makes the x of a product and is no part of it.
    fn norm_of(&self, node: NodeId) -> Result<Option<(NodeId, Norm)>> {
        let x = self.operand(node, Role::X)?;
        let ty = self.graph().type_of(x);
        Ok(match self.graph().op(x.node) {
            Op::Norm(norm) if ty.last_size() == Some(ty.row_size()) => Some((x.node, norm.clone())),
            _ => None,
        })
    }

    /// Rows of `x` under the norm that `node` has or is, two bfloat16 a value.
    fn paired_norm(&mut self, node: NodeId, norm: &Norm, x: Source, k: usize) -> Result<Source> {
        let out = Source::Buffer(self.buffer(self.rows.count * k * 4), 0);
        let spec = NormSpec { kind: norm.kind, size: k, eps: norm.eps, paired: true, out: Storage::BF16 };
        self.norm_rows(node, norm.offset, spec, x, out, self.rows.count)?;
        Ok(out)
    }

    /// Places for these results of a product, the rest null. One storage for all.
    fn outputs(&mut self, node: NodeId, outputs: &[usize]) -> ([Source; 3], Storage) {
        let mut places = [Source::Ready(Arg::Null); 3];
        let mut storage = Storage::F32;
        for (slot, &output) in outputs.iter().enumerate() {
            (places[slot], storage) = self.result(node.result(output));
        }
        if outputs.len() > 1 && storage == Storage::BF16 {
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
    pub(super) fn sample(&mut self, node: NodeId, fused: Option<(Source, usize, usize)>) -> Result<()> {
        let (logits, maxima, blocks) = match fused {
            Some((logits, maxima, blocks)) => (logits, Source::Buffer(maxima, 0), blocks),
            None => (self.pointer(node, Role::X)?, Source::Ready(Arg::Null), 0),
        };
        let vocabulary = self.graph().outputs.first().map_or(0, |&logits| self.graph().type_of(logits).row_size());
        let io = |io| Source::Ready(Arg::Io(io, 0));
        let args = vec![
            logits,
            maxima,
            self.positions(),
            self.sequences(),
            io(Io::Parameters),
            io(Io::Tokens),
            io(Io::Positions),
            io(Io::Ring),
        ];
        let cluster = if self.planner.clusters { SAMPLE_CLUSTER } else { 1 };
        let spec = KernelSpec::Sample { vocabulary, maxima: blocks, cluster };
        self.launch(spec, [cluster, self.rows.count, 1], args, 0);
        Ok(())
    }
}

/// What both forms of a product share.
struct Product<'m> {
    node: NodeId,
    matmul: &'m Matmul,
    packed: Source,
    bias: Source,
    residual: Source,
    bytes: usize,
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
    /// Packed weight, norm weight and logits of the router that reads the result.
    pub router: Option<[Source; 3]>,
    /// Of weights that are read.
    pub bytes: usize,
}

const NULL: Source = Source::Ready(Arg::Null);

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
            router: None,
            bytes: 0,
        }
    }
}

impl Operands {
    /// In the order of the kernel's parameters.
    pub fn args(&self) -> Vec<Source> {
        let [out0, out1, out2] = self.outs;
        let mut args =
            vec![self.packed, self.x, self.norm_weight, self.norm_bias, self.bias, self.residual, out0, out1, out2];
        args.extend([self.statistics, self.positions, self.maxima]);
        args.extend(self.router.into_iter().flatten());
        args.extend(NO_ZEROS);
        args
    }
}

fn activation_of(epilogue: Epilogue) -> Option<Activation> {
    match epilogue {
        Epilogue::None => None,
        Epilogue::Activate(activation) | Epilogue::Gate(activation) => Some(activation),
    }
}
