//! Routed experts: one kernel routes and computes what the chosen experts have inside, one sums what they make of it.

use anyhow::{Result, bail, ensure};

use super::{Builder, MULTIPROCESSORS, Source};
use crate::ir::{Experts, NodeId, Norm, NormKind, Op, Results, Role, Value};
use crate::plan::spec::{ExpertsHiddenSpec, ExpertsSpec, KernelSpec, Storage, Tiles};
use crate::plan::{Arg, Part, Recipe};

/// The most blocks that a grid has in its second dimension.
const MOST_PAIRS: usize = 65535;

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

    pub(super) fn experts(&mut self, node: NodeId, experts: &Experts) -> Result<()> {
        let graph = self.graph();
        let router = self.operand(node, Role::Chosen)?.node;
        let Op::Route(route) = graph.op(router).clone() else {
            bail!("{}: the chosen experts come from a {}, not a route", graph.op(node), graph.op(router))
        };
        ensure!(self.operand(node, Role::Shares)?.node == router, "the experts and their shares come from two routers");
        let logits = self.pointer(router, Role::X)?;
        let given = self.operand(node, Role::X)?;
        let (x, norm, norm_weight) = match graph.op(given.node) {
            Op::Norm(norm) if self.is_of_experts(given.node, norm) => {
                let weight = self.vector(given.node, Role::NormWeight, norm.offset)?;
                (self.pointer(given.node, Role::X)?, Some(norm.eps), weight)
            }
            _ => (self.pointer(node, Role::X)?, None, Source::Ready(Arg::Null)),
        };

        let roles: &[Role] = if experts.gated { &[Role::Gate, Role::Up] } else { &[Role::Up] };
        let (inner, [count, features, inputs]) = self.stacks(node, roles, experts.gated)?;
        let (down, [_, outputs, _]) = self.stacks(node, &[Role::Down], false)?;
        let (rows, top_k) = (self.rows.count, route.top_k);
        let pairs = rows * top_k;
        ensure!(
            pairs <= MOST_PAIRS,
            "{rows} rows of {top_k} experts each are more than {MOST_PAIRS}: compile for shorter chunks"
        );
        let read = pairs.min(count);

        let hidden = Source::Buffer(self.buffer(pairs * 2 * features * 2), 0);
        let chosen = Source::Buffer(self.buffer(pairs * 4), 0);
        let tiles = Tiles { k: inputs, rows: vec![features], gated: experts.gated, out: Storage::BF16 };
        let (products, blocks) = shaped(tiles, count, top_k, inputs.div_ceil(32), pairs);
        let spec = ExpertsHiddenSpec {
            products,
            scoring: route.scoring,
            normalise: route.normalise,
            scale: route.scale,
            norm,
            activation: experts.activation,
        };
        let bytes = read * roles.len() * features * inputs * 2;
        let args = vec![inner, x, norm_weight, logits, hidden, chosen];
        self.launch(KernelSpec::ExpertsHidden(spec), [blocks, pairs, 1], args, bytes);

        let (value, residual) = self.with_residual(node.result(0));
        let (out, storage) = self.result(value);
        let tiles = Tiles { k: features, rows: vec![outputs], gated: false, out: storage };
        let (spec, blocks) = shaped(tiles, count, top_k, top_k * features.div_ceil(32), rows);
        let args = vec![down, hidden, chosen, residual, out];
        self.launch(KernelSpec::ExpertsSum(spec), [blocks, rows, 1], args, read * outputs * features * 2);
        Ok(())
    }

    /// The packed weights of all experts, `[experts, out, in]` each.
    fn stacks(&mut self, node: NodeId, roles: &[Role], gated: bool) -> Result<(Source, [usize; 3])> {
        let (mut parts, mut shape) = (Vec::new(), [0; 3]);
        for &role in roles {
            let (tensor, sizes) = self.weight(node, role)?;
            let [count, rows, k] = sizes[..] else {
                bail!("the experts {tensor} have {} dimensions, not 3", sizes.len())
            };
            shape = [count, rows, k];
            parts.push(Part { tensor, rows });
        }
        let [count, _, k] = shape;
        Ok((Source::Ready(Arg::Weight(self.planner.weight(Recipe::Experts { parts, k, gated, count }))), shape))
    }

    /// The sum that alone reads `value` and what it adds, where that is there: its launch is then left out. Else `value`.
    fn with_residual(&mut self, value: Value) -> (Value, Source) {
        let alone = (value, Source::Ready(Arg::Null));
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
                self.done.insert(user);
                (user.result(0), residual)
            }
            _ => alone,
        }
    }
}

/// The products of `rows` rows, each in a grid row of its own, with `pairs` pairs of tiles a row tile: their shape, and blocks a row.
///
/// Blocks of 16 warps where they are too few for two a multiprocessor.
fn shaped(tiles: Tiles, experts: usize, top_k: usize, pairs: usize, rows: usize) -> (ExpertsSpec, usize) {
    let count = tiles.count();
    let warps = if count * rows <= MULTIPROCESSORS || tiles.k > 4096 { 16 } else { 8 };
    let slots = MULTIPROCESSORS * 16 / warps;
    let share = pairs.div_ceil(warps);
    let depth = if share <= 8 { share } else { (5..=8).rev().find(|depth| share.is_multiple_of(*depth)).unwrap_or(8) };
    let turns = count.div_ceil((slots / rows).clamp(1, count));
    (ExpertsSpec { tiles, experts, top_k, warps, depth }, count.div_ceil(turns))
}
