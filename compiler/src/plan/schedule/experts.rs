//! Routed experts. Few rows: one kernel routes and computes what the chosen experts have inside, one sums what they make of it. Many rows:
//! one kernel routes them all, then each expert multiplies the rows that go to it.

use anyhow::{Context, Result, bail, ensure};

use super::Builder;
use super::products::{MOST_ALIKE, Operands};
use super::shapes::{gathered_shape, shape_experts_hidden, shape_experts_sum};
use crate::ir::{Experts, Format, NodeId, Op, Results, Role, Value};
use crate::plan::kernels::{
    self, Elementwise, ExpertsHidden, ExpertsSum, Expression, Gather, KernelSpec, Matvec, ROUTER_COPIES, Route,
    RouteRows, Storage, Tiles,
};
use crate::plan::place::{NULL, Source};
use crate::plan::{Arg, Recipe};

/// Steps of a router's weight, 1 KB each, that a block of the product before it may have in its shared memory.
const MOST_PAIRS: usize = 16;

/// The packed weights of all experts.
#[derive(Clone, Copy)]
struct Stack {
    packed: Source,
    format: Format,
}

/// What the kernels of one node of experts share.
struct Chosen {
    node: NodeId,
    router: NodeId,
    route: Route,
    logits: Source,
    /// They are sums in fixed point.
    summed: bool,
    /// Of the choice; null where there is none.
    bias: Source,
    /// Of the shares, likewise.
    scales: Source,
    /// The packed gates and ups of all experts, and the packed downs.
    inner: Stack,
    down: Stack,
    /// Sizes: x, what an expert has inside, the result.
    inputs: usize,
    features: usize,
    outputs: usize,
    gated: bool,
    /// Of the products inside the experts, and of their results; null where there are none.
    inner_biases: Source,
    biases: Source,
}

impl Chosen {
    /// The operand of the experts' factors, where there are some.
    fn scales(&self) -> Option<(&'static str, Source)> {
        self.route.scaled.then_some(("expert_scale", self.scales))
    }

    /// The operand of the choice's bias, where there is one.
    fn bias(&self) -> Option<(&'static str, Source)> {
        self.route.biased.then_some(("choice_bias", self.bias))
    }
}

impl Builder<'_, '_> {
    /// The router whose logits the product that makes `value` adds up, `unit` row tiles at a time: one that a block's shared memory holds.
    pub(super) fn router_of(&self, value: Value, unit: usize) -> Option<NodeId> {
        let graph = self.graph();
        graph.users(value).iter().copied().find(|&user| {
            let rows = || graph.type_of(user.result(0)).row_size();
            self.decisions().is_router_of_product(user) && unit * rows().div_ceil(16) <= MOST_PAIRS
        })
    }

    /// Lets the product that makes `value` add up the logits of `router`.
    pub(super) fn sum_logits(
        &mut self,
        value: Value,
        router: NodeId,
        spec: &mut Matvec,
        operands: &mut Operands,
    ) -> Result<()> {
        let graph = self.graph();
        let Op::Matmul(matmul) = graph.op(router) else { bail!("a {} is no router", graph.op(router)) };
        let offset = matmul.norm.as_ref().map_or(0.0, |norm| norm.offset);
        let (logits, k) = (router.result(0), graph.type_of(value).row_size());
        let rows = graph.type_of(logits).row_size();
        let parts = vec![self.part(router, Role::Weight(0), rows)?];
        let format = spec.router_weights();
        let packed =
            self.planner.weight(Recipe::Tiles { parts, k, gated: false, transposed: matmul.transposed, format });
        let norm_weight = self.vector(router, Role::NormWeight, offset)?;
        // The sums of a product whose columns blocks share lie before the logits.
        let before = if spec.split > 1 { self.sum_bytes(value) } else { 0 };
        let buffer = self.buffer(before + ROUTER_COPIES * self.rows.count * rows * 8);
        if spec.split > 1 {
            operands.outs[0] = Source::Buffer(buffer, 0);
            self.set(value, operands.outs[0], Storage::F32);
        }
        let sums = Source::Buffer(buffer, before);
        self.set(logits, sums, Storage::F32);
        self.summed.insert(logits);
        self.absorb(router);
        spec.router = Some(rows);
        operands.router = Some([Source::Ready(Arg::Weight(packed)), norm_weight, sums]);
        Ok(())
    }

    pub(super) fn experts(&mut self, node: NodeId, experts: &Experts) -> Result<()> {
        let graph = self.graph();
        let router = self.operand(node, Role::Chosen)?.node;
        let Op::Route(route) = graph.op(router).clone() else {
            bail!("{}: the chosen experts come from a {}, not a route", graph.op(node), graph.op(router))
        };
        ensure!(self.operand(node, Role::Shares)?.node == router, "the experts and their shares come from two routers");
        let gated = experts.gated;
        let roles: &[Role] = if gated { &[Role::Gate, Role::Up] } else { &[Role::Up] };
        let (inner, [count, features, inputs]) = self.stacks(node, roles, gated)?;
        let (down, [_, outputs, _]) = self.stacks(node, &[Role::Down], false)?;
        let route = Route {
            experts: count,
            top_k: route.top_k,
            scoring: route.scoring,
            biased: route.bias,
            normalise: route.normalise,
            scale: route.scale,
            scaled: route.expert_scale,
            groups: route.groups,
        };
        let (logits, summed) = (self.pointer(router, Role::X)?, self.summed.contains(&self.operand(router, Role::X)?));
        let bias = self.vector(router, Role::ChoiceBias, 0.0)?;
        let scales = self.vector(router, Role::ExpertScale, 0.0)?;
        let roles: &[Role] = if gated { &[Role::GateBias, Role::UpBias] } else { &[Role::UpBias] };
        let inner_biases = if experts.biased { self.biases(node, roles, count, features)? } else { NULL };
        let biases = if experts.down_bias { self.biases(node, &[Role::DownBias], count, outputs)? } else { NULL };
        let chosen = Chosen {
            node,
            router,
            route,
            logits,
            summed,
            bias,
            scales,
            inner,
            down,
            inputs,
            features,
            outputs,
            gated,
            inner_biases,
            biases,
        };
        if self.few() { self.experts_of_few(&chosen, experts) } else { self.experts_of_many(&chosen, experts) }
    }

    fn experts_of_few(&mut self, chosen: &Chosen, experts: &Experts) -> Result<()> {
        let &Chosen { node, logits, summed, inner, down, inputs, features, outputs, gated, .. } = chosen;
        let graph = self.graph();
        let given = self.operand(node, Role::X)?.node;
        let (x, norm, norm_weight) = match graph.op(given) {
            Op::Norm(norm) if self.decisions().is_norm_of_experts(given) => {
                (self.pointer(given, Role::X)?, Some(norm.eps), self.vector(given, Role::NormWeight, norm.offset)?)
            }
            _ => (self.pointer(node, Role::X)?, None, NULL),
        };
        let rms_before = match norm {
            Some(_) if inner.format.operand() == "f16" && inputs <= MOST_ALIKE => {
                self.rms_before(self.operand(given, Role::X)?)
            }
            _ => NULL,
        };
        if norm.is_some() {
            self.covered.push(given);
        }
        self.covered.push(chosen.router);
        let batch = self.rows.count;
        let route = &chosen.route;
        let hidden = Source::Buffer(self.buffer(route.most(batch) * batch * features * 2), 0);
        let mut spec = ExpertsHidden {
            tiles: Tiles {
                weights: inner.format,
                k: inputs,
                rows: vec![features],
                gated,
                out: down.format.activations(),
            },
            route: route.clone(),
            batch,
            summed,
            warps: 0,
            depth: 0,
            blocks: 0,
            norm,
            alike: rms_before != NULL,
            activation: experts.activation,
            gating: experts.gating,
            biased: experts.biased,
        };
        shape_experts_hidden(&mut spec, self.planner.tuning);
        let mut operands = vec![("weights", inner.packed), ("x", x), ("norm_weight", norm_weight), ("logits", logits)];
        operands.push(("hidden", hidden));
        operands.extend(chosen.bias());
        operands.extend(chosen.scales());
        operands.extend(spec.alike.then_some(("rms_before", rms_before)));
        operands.extend(spec.biased.then_some(("biases", chosen.inner_biases)));
        self.launch(KernelSpec::ExpertsHidden(spec), batch, &operands)?;

        let (value, residual) = self.with_residual(node)?;
        let mut sum = ExpertsSum {
            tiles: Tiles { weights: down.format, k: features, rows: vec![outputs], gated: false, out: Storage::F32 },
            route: route.clone(),
            batch,
            summed,
            warps: 0,
            depth: 0,
            split: 1,
            staged: false,
            blocks: 0,
            late: false,
            biased: experts.down_bias,
        };
        shape_experts_sum(&mut sum, self.can_sum(value), self.planner.tuning);
        let out = match sum.split {
            1 => {
                let (out, storage) = self.result(value);
                sum.tiles.out = storage;
                out
            }
            _ => self.sum(value),
        };
        let mut operands =
            vec![("weights", down.packed), ("hidden", hidden), ("logits", logits), ("residual", residual)];
        operands.push(("out", out));
        operands.extend(chosen.bias());
        if sum.biased {
            operands.extend(chosen.scales());
            operands.push(("biases", chosen.biases));
        }
        self.launch(KernelSpec::ExpertsSum(sum), batch, &operands)
    }

    fn experts_of_many(&mut self, chosen: &Chosen, experts: &Experts) -> Result<()> {
        let &Chosen { node, logits, inner, down, inputs, features, outputs, gated, .. } = chosen;
        let Route { experts: count, top_k, .. } = chosen.route;
        let rows = self.rows.count;
        let graph = self.graph();
        let given = self.operand(node, Role::X)?.node;
        let (x, paired) = match graph.op(given) {
            Op::Norm(norm) if self.decisions().is_norm_of_experts(given) => {
                let (norm, from) = (norm.clone(), self.pointer(given, Role::X)?);
                let paired = inner.format == Format::BF16;
                let out = Source::Buffer(self.buffer(rows * inputs * if paired { 4 } else { 2 }), 0);
                let storage = inner.format.activations();
                let spec = kernels::Norm { kind: norm.kind, size: inputs, eps: norm.eps, paired, out: storage };
                self.norm_rows(given, norm.offset, spec, from, out, rows)?;
                self.last_covers(given);
                (out, paired)
            }
            _ => (self.rounded(self.place(node, Role::X)?, inputs, inner.format.activations())?.arg, false),
        };
        let [shares, slots] = [(); 2].map(|()| Source::Buffer(self.buffer(rows * count * 4), 0));
        let takers = Source::Buffer(self.buffer(count * rows.div_ceil(32) * 4), 0);
        let mut operands = vec![("logits", logits), ("shares", shares), ("slots", slots), ("takers", takers)];
        operands.push(("rows", self.count()));
        operands.extend(chosen.bias());
        operands.extend(chosen.scales());
        self.launch(KernelSpec::Route(RouteRows { route: chosen.route.clone() }), rows, &operands)?;
        self.last_covers(chosen.router);

        let gathered = [("rows", self.count()), ("shares", shares), ("slots", slots), ("bits", takers)];
        let gather = Gather { experts: count, top_k, by_pair: false, biased: experts.biased };
        let out = down.format.activations();
        let tiles = Tiles { weights: inner.format, k: inputs, rows: vec![features], gated, out };
        let mut spec = gathered_shape(tiles, paired, rows, gather);
        spec.activation = Some(experts.activation);
        spec.gating = experts.gating;
        let hidden = Source::Buffer(self.buffer(rows * top_k * features * 2), 0);
        let own = [("weights", inner.packed), ("x", x), ("bias", chosen.inner_biases), ("out0", hidden)];
        let operands = [&own[..], &gathered].concat();
        self.launch(KernelSpec::Matmul(spec), rows, &operands)?;

        let tiles = Tiles { weights: down.format, k: features, rows: vec![outputs], gated: false, out: Storage::F32 };
        let spec = gathered_shape(tiles, false, rows, Gather { by_pair: true, biased: experts.down_bias, ..gather });
        let products = Source::Buffer(self.buffer(rows * top_k * outputs * 4), 0);
        let own = [("weights", down.packed), ("x", hidden), ("bias", chosen.biases), ("out0", products)];
        let operands = [&own[..], &gathered].concat();
        self.launch(KernelSpec::Matmul(spec), rows, &operands)?;

        let (value, residual) = self.with_residual(node)?;
        let (out, storage) = self.result(value);
        let spec = Elementwise { kind: Expression::Sum(top_k), size: outputs, out: storage };
        self.launch(KernelSpec::Elementwise(spec), rows, &[("a", products), ("b", residual), ("out", out)])
    }

    /// The packed weights of all experts, `[experts, out, in]` each.
    fn stacks(&mut self, node: NodeId, roles: &[Role], gated: bool) -> Result<(Stack, [usize; 3])> {
        let mut parts = Vec::new();
        let mut shape = None;
        for &role in roles {
            let (tensor, sizes) = self.weight(node, role)?;
            let [count, rows, k] = sizes[..] else {
                bail!("the experts {tensor} have {} dimensions, not 3", sizes.len())
            };
            ensure!(*shape.get_or_insert([count, rows, k]) == [count, rows, k], "the experts {tensor} differ in shape");
            parts.push(self.part(node, role, rows)?);
        }
        let [count, rows, k] = shape.context("experts without weights")?;
        let stored: Vec<Format> = parts.iter().map(|part| part.from).collect();
        let format = self.packed_format(&stored, k, false, !roles.contains(&Role::Down));
        let recipe = Recipe::Experts { parts, k, gated, count, format };
        let packed = Source::Ready(Arg::Weight(self.planner.weight(recipe)));
        Ok((Stack { packed, format }, [count, rows, k]))
    }

    /// The packed biases of all experts, `[experts, rows]` each.
    fn biases(&mut self, node: NodeId, roles: &[Role], count: usize, rows: usize) -> Result<Source> {
        let name = |&role: &Role| Ok((Some(self.weight(node, role)?.0), rows));
        let parts = roles.iter().map(name).collect::<Result<_>>()?;
        let recipe = Recipe::Biases { parts, gated: roles.len() == 2, experts: Some(count) };
        Ok(Source::Ready(Arg::Weight(self.planner.weight(recipe))))
    }

    /// The sum that these experts end with, and what they add; else their own result.
    fn with_residual(&mut self, experts: NodeId) -> Result<(Value, Source)> {
        let Some((sum, other)) = self.decisions().residual_of(experts) else { return Ok((experts.result(0), NULL)) };
        let place = self.places.get(&other).copied();
        let place = place.filter(|place| place.storage == Storage::F32);
        let place = place.context("what experts add to their sum is not computed before them in fp32")?;
        self.absorb(sum);
        Ok((sum.result(0), place.arg))
    }
}
