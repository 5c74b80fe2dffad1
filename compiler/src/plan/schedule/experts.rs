//! Routed experts. Few rows: one kernel routes and computes what the chosen experts have inside, one sums what they make of it. Many rows:
//! one kernel routes them all, then each expert multiplies the rows that go to it.

use anyhow::{Context, Result, bail, ensure};

use super::products::Operands;
use super::shapes::{experts_hidden_shape, experts_sum_shape, gathered_shape, matmul_grid};
use super::{Builder, NO_ZEROS, Source};
use crate::ir::{Epilogue, Experts, Matmul, NodeId, Norm, NormKind, Op, Results, Role, Value};
use crate::plan::spec::{
    ElementKind, ExpertsHiddenSpec, ExpertsSpec, Gather, KernelSpec, MatmulSpec, MatvecSpec, NormSpec, ROUTER_COPIES,
    RouteSpec, Storage, Tiles,
};
use crate::plan::{Arg, Part, Recipe};

const NULL: Source = Source::Ready(Arg::Null);

/// Pairs of a router's weight, 1 KB each, that a block of the product in front may have in its shared memory.
const MOST_PAIRS: usize = 16;

/// What the kernels of one node of experts share.
struct Chosen {
    node: NodeId,
    route: RouteSpec,
    logits: Source,
    /// They are sums in fixed point.
    summed: bool,
    /// Of the choice; null where there is none.
    bias: Source,
    /// The packed gates and ups of all experts, and the packed downs.
    inner: Source,
    down: Source,
    /// Sizes: x, what an expert has inside, the result.
    inputs: usize,
    features: usize,
    outputs: usize,
    gated: bool,
}

impl Chosen {
    /// The last argument but zeros of each kernel that chooses, where the choice has a bias.
    fn bias(&self) -> Option<Source> {
        self.route.biased.then_some(self.bias)
    }
}

impl Builder<'_, '_> {
    /// Whether nothing reads a norm but experts, whose kernel computes it for itself.
    pub(super) fn is_of_experts(&self, node: NodeId, norm: &Norm) -> bool {
        let graph = self.graph();
        let normed = node.result(0);
        let users = graph.users(normed);
        let takes_it_in =
            |&user: &NodeId| matches!(graph.op(user), Op::Experts(_)) && graph.operand(user, Role::X) == Some(normed);
        let ty = graph.type_of(normed);
        norm.kind == NormKind::Rms
            && !norm.bias
            && ty.last_size() == Some(ty.row_size())
            && !users.is_empty()
            && users.iter().all(takes_it_in)
            && !graph.outputs.contains(&normed)
    }

    /// The router whose logits the product that makes `value` can add up, `unit` row tiles at a time: nothing but experts that have the same norm of `value` reads
    /// them, and no bias asks for what they are once divided by the root mean square.
    pub(super) fn router_of(&self, value: Value, unit: usize) -> Option<NodeId> {
        let graph = self.graph();
        let routes = |&user: &NodeId, eps: f32| {
            let from_same_norm = |&user: &NodeId| {
                let x = graph.operand(user, Role::X)?.node;
                match graph.op(x) {
                    Op::Norm(norm) if matches!(graph.op(user), Op::Experts(_)) => {
                        Some(self.is_of_experts(x, norm) && norm.eps == eps && graph.operand(x, Role::X) == Some(value))
                    }
                    _ => None,
                }
            };
            let users = |result| graph.users(user.result(result));
            matches!(graph.op(user), Op::Route(route) if !route.bias)
                && (0..2).all(|result| users(result).iter().all(|user| from_same_norm(user) == Some(true)))
        };
        graph.users(value).iter().copied().find(|&user| {
            let Op::Matmul(Matmul { norm: Some(norm), biases, epilogue: Epilogue::None, residual: false, .. }) =
                graph.op(user)
            else {
                return false;
            };
            let logits = user.result(0);
            let (rows, columns) = (graph.type_of(logits).row_size(), graph.type_of(value).row_size());
            let plain = norm.kind == NormKind::Rms && !norm.bias && biases[..] == [false];
            plain
                && columns.is_multiple_of(16)
                && unit * rows.div_ceil(16) <= MOST_PAIRS
                && !graph.outputs.contains(&logits)
                && graph.users(logits).iter().all(|user| routes(user, norm.eps))
        })
    }

    /// Lets the product that makes `value` add up the logits of `router`.
    pub(super) fn sum_logits(
        &mut self,
        value: Value,
        router: NodeId,
        spec: &mut MatvecSpec,
        operands: &mut Operands,
    ) -> Result<()> {
        let graph = self.graph();
        let Op::Matmul(matmul) = graph.op(router) else { bail!("a {} is no router", graph.op(router)) };
        let offset = matmul.norm.as_ref().map_or(0.0, |norm| norm.offset);
        let (tensor, _) = self.weight(router, Role::Weight(0))?;
        let (logits, k) = (router.result(0), graph.type_of(value).row_size());
        let rows = graph.type_of(logits).row_size();
        let parts = vec![Part { tensor, rows }];
        let packed = self.planner.weight(Recipe::Tiles { parts, k, gated: false, transposed: matmul.transposed });
        let norm_weight = self.vector(router, Role::NormWeight, offset)?;
        // The sums of a product whose columns blocks share lie in front of the logits.
        let before = if spec.split > 1 { self.sum_bytes(value) } else { 0 };
        let buffer = self.zeroed(before + ROUTER_COPIES * self.rows.count * rows * 8);
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
        operands.bytes += rows * k * 2;
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
        let route = RouteSpec {
            experts: count,
            top_k: route.top_k,
            scoring: route.scoring,
            biased: route.bias,
            normalise: route.normalise,
            scale: route.scale,
        };
        let (logits, summed) = (self.pointer(router, Role::X)?, self.summed.contains(&self.operand(router, Role::X)?));
        let bias = self.vector(router, Role::ChoiceBias, 0.0)?;
        let chosen = Chosen { node, route, logits, summed, bias, inner, down, inputs, features, outputs, gated };
        if self.few() { self.experts_of_few(&chosen, experts) } else { self.experts_of_many(&chosen, experts) }
    }

    fn experts_of_few(&mut self, chosen: &Chosen, experts: &Experts) -> Result<()> {
        let &Chosen { node, logits, summed, inner, down, inputs, features, outputs, gated, .. } = chosen;
        let graph = self.graph();
        let given = self.operand(node, Role::X)?.node;
        let (x, norm, norm_weight) = match graph.op(given) {
            Op::Norm(norm) if self.is_of_experts(given, norm) => {
                (self.pointer(given, Role::X)?, Some(norm.eps), self.vector(given, Role::NormWeight, norm.offset)?)
            }
            _ => (self.pointer(node, Role::X)?, None, NULL),
        };
        let batch = self.rows.count;
        let route = &chosen.route;
        let products = |tiles| ExpertsSpec {
            tiles,
            route: route.clone(),
            batch,
            summed,
            warps: 0,
            depth: 0,
            split: 1,
            late: false,
        };
        let products =
            [(inputs, features, gated, Storage::BF16), (features, outputs, false, Storage::F32)].map(|spec| {
                let (k, rows, gated, out) = spec;
                products(Tiles { k, rows: vec![rows], gated, out })
            });
        let [inside, mut sum] = products;
        let most = sum.most();
        let hidden = Source::Buffer(self.buffer(most * batch * features * 2), 0);

        let mut spec = ExpertsHiddenSpec { products: inside, norm, activation: experts.activation };
        let shape = experts_hidden_shape(&spec, self.planner.tuning);
        (spec.products.warps, spec.products.depth) = (shape.warps, shape.depth);
        let bytes = most * if gated { 2 } else { 1 } * features * inputs * 2;
        let mut args = vec![inner, x, norm_weight, logits, hidden];
        args.extend(chosen.bias());
        args.extend(NO_ZEROS);
        self.launch(KernelSpec::ExpertsHidden(spec), [shape.blocks, 1, 1], args, bytes);

        let (value, residual) = self.with_residual(node.result(0));
        let may_sum = self.can_sum(value);
        let shape = experts_sum_shape(&sum, may_sum, self.planner.tuning);
        (sum.warps, sum.depth, sum.split) = (shape.warps, shape.depth, shape.split);
        sum.late = self.planner.tuning.matvec(&sum.sum_tuning_key()).is_some_and(|entry| entry.late);
        let out = match shape.split {
            1 => {
                let (out, storage) = self.result(value);
                sum.tiles.out = storage;
                out
            }
            _ => self.sum(value),
        };
        let mut args = vec![down, hidden, logits, residual, out];
        args.extend(chosen.bias());
        self.launch(KernelSpec::ExpertsSum(sum), [shape.blocks, 1, 1], args, most * outputs * features * 2);
        Ok(())
    }

    fn experts_of_many(&mut self, chosen: &Chosen, experts: &Experts) -> Result<()> {
        let &Chosen { node, logits, inner, down, inputs, features, outputs, gated, .. } = chosen;
        let RouteSpec { experts: count, top_k, .. } = chosen.route;
        let rows = self.rows.count;
        let graph = self.graph();
        let given = self.operand(node, Role::X)?.node;
        let (x, paired) = match graph.op(given) {
            Op::Norm(norm) if self.is_of_experts(given, norm) => {
                let (norm, from) = (norm.clone(), self.pointer(given, Role::X)?);
                let out = Source::Buffer(self.buffer(rows * inputs * 4), 0);
                let spec = NormSpec { kind: norm.kind, size: inputs, eps: norm.eps, paired: true, out: Storage::BF16 };
                self.norm_rows(given, norm.offset, spec, from, out, rows)?;
                (out, true)
            }
            _ => (self.rounded(self.place(node, Role::X)?, inputs), false),
        };
        let number = Source::Ready(Arg::Number(rows as u64));
        let [shares, slots] = [(); 2].map(|()| Source::Buffer(self.buffer(rows * count * 4), 0));
        let takers = Source::Buffer(self.buffer(count * rows.div_ceil(32) * 4), 0);
        let mut args = vec![logits, shares, slots, takers, number];
        args.extend(chosen.bias());
        self.launch(KernelSpec::Route(chosen.route.clone()), [rows.div_ceil(32), 1, 1], args, 0);

        let read = (rows * top_k).min(count);
        let gather = Gather { experts: count, top_k, by_pair: false };
        let tiles = Tiles { k: inputs, rows: vec![features], gated, out: Storage::BF16 };
        let mut spec = gathered_shape(tiles, paired, rows, gather);
        spec.activation = Some(experts.activation);
        let grid = gathered_grid(&spec, rows, count);
        let hidden = Source::Buffer(self.buffer(rows * top_k * features * 2), 0);
        let args = vec![inner, x, NULL, NULL, hidden, NULL, NULL, number, shares, slots, takers];
        let bytes = read * if gated { 2 } else { 1 } * features * inputs * 2;
        self.launch(KernelSpec::Matmul(spec), grid, args, bytes);

        let tiles = Tiles { k: features, rows: vec![outputs], gated: false, out: Storage::F32 };
        let spec = gathered_shape(tiles, false, rows, Gather { by_pair: true, ..gather });
        let grid = gathered_grid(&spec, rows, count);
        let made = Source::Buffer(self.buffer(rows * top_k * outputs * 4), 0);
        let args = vec![down, hidden, NULL, NULL, made, NULL, NULL, number, shares, slots, takers];
        self.launch(KernelSpec::Matmul(spec), grid, args, read * outputs * features * 2);

        let (value, residual) = self.with_residual(node.result(0));
        let (out, storage) = self.result(value);
        let kind = ElementKind::Sum(top_k);
        let spec = KernelSpec::Elementwise { kind, size: outputs, out: storage };
        self.launch(spec, [rows, 1, 1], vec![made, residual, out], 0);
        Ok(())
    }

    /// The packed weights of all experts, `[experts, out, in]` each.
    fn stacks(&mut self, node: NodeId, roles: &[Role], gated: bool) -> Result<(Source, [usize; 3])> {
        let mut parts = Vec::new();
        let mut shape = None;
        for &role in roles {
            let (tensor, sizes) = self.weight(node, role)?;
            let [count, rows, k] = sizes[..] else {
                bail!("the experts {tensor} have {} dimensions, not 3", sizes.len())
            };
            ensure!(*shape.get_or_insert([count, rows, k]) == [count, rows, k], "the experts {tensor} differ in shape");
            parts.push(Part { tensor, rows });
        }
        let [count, rows, k] = shape.context("experts without weights")?;
        let recipe = Recipe::Experts { parts, k, gated, count };
        Ok((Source::Ready(Arg::Weight(self.planner.weight(recipe))), [count, rows, k]))
    }

    /// The sum that alone reads `value` and what it adds, where that is there: its launch is then left out. Else `value`.
    fn with_residual(&mut self, value: Value) -> (Value, Source) {
        let alone = (value, NULL);
        let graph = self.graph();
        let [user] = graph.users(value)[..] else { return alone };
        if *graph.op(user) != Op::Add || graph.outputs.contains(&value) {
            return alone;
        }
        let [a, b] = [Role::A, Role::B].map(|role| graph.operand(user, role));
        let Some(other) = [a, b].into_iter().flatten().find(|&operand| operand != value) else { return alone };
        match self.places.get(&other) {
            Some(place) if place.storage == Storage::F32 => {
                let residual = place.arg;
                self.absorb(user);
                (user.result(0), residual)
            }
            _ => alone,
        }
    }
}

fn gathered_grid(spec: &MatmulSpec, rows: usize, experts: usize) -> [usize; 3] {
    let [tiles, columns, _] = matmul_grid(spec, rows);
    [tiles, columns, experts]
}
