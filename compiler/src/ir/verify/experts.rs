//! The rules of routed experts.

use super::terms::{
    Check, Checked, activation, is_plain, logits, must, positive, result_count, role_words, same, vector,
};
use crate::ir::{Dim, Experts, Format, Role, Route, Type};

pub(super) fn route(route: &Route, node: &Checked<'_>) -> Check {
    result_count(node, 2)?;
    let x = node.get(Role::X);
    logits("x", x)?;
    let experts = x.row_size();
    if route.top_k == 0 || route.top_k > experts {
        return Err(format!("top_k is {}, but x is {x}: {experts} experts", route.top_k));
    }
    if let Some(bias) = node.find(Role::ChoiceBias) {
        same("the bias of the choice", bias, &Type::weight(Format::F32, &[experts]))?;
    }
    if let Some([count, kept]) = route.groups {
        if count == 0 || !experts.is_multiple_of(count) || kept == 0 || kept > count {
            return Err(format!("x is {x}: {experts} experts in {count} groups, of which {kept} are kept"));
        }
        let size = experts / count;
        if route.top_k > kept * size || (route.bias && size < 2) || count > 32 {
            return Err(format!(
                "top_k is {}, of {kept} groups of {size} experts; at most 32 groups, of two or more",
                route.top_k
            ));
        }
    }
    if let Some(scale) = node.find(Role::ExpertScale) {
        vector("the scale of experts", scale, experts, || format!("x is {x}"))?;
    }
    positive("scale", route.scale)?;
    must(&node.results[0], &chosen(route.top_k), || format!("top_k {}", route.top_k))?;
    must(&node.results[1], &Type::activation(&[route.top_k]), || format!("top_k {}", route.top_k))
}

pub(super) fn experts(fused: &Experts, node: &Checked<'_>) -> Check {
    let x = node.get(Role::X);
    activation("x", x)?;
    let shares = node.get(Role::Shares);
    logits("shares", shares)?;
    same("chosen experts", node.get(Role::Chosen), &chosen(shares.row_size()))?;
    let up = node.get(Role::Up);
    let [count, features, inputs] = stack("up", up)?;
    if inputs != x.row_size() {
        return Err(format!("x is {x}, {} values per token, but up is {up}, {inputs} columns", x.row_size()));
    }
    if fused.gated {
        let gate = node.get(Role::Gate);
        same("gate", gate, &Type { format: gate.format, ..up.clone() })?;
    }
    let down = node.get(Role::Down);
    let [other, outputs, columns] = stack("down", down)?;
    if (other, columns) != (count, features) {
        return Err(format!(
            "up is {up}, but down is {down}: {count} experts of {features} values need [{count}, …, {features}]"
        ));
    }
    for (role, size) in [(Role::GateBias, features), (Role::UpBias, features), (Role::DownBias, outputs)] {
        if let Some(bias) = node.find(role)
            && !(is_plain(bias) && bias.shape == [Dim::Fixed(count), Dim::Fixed(size)])
        {
            let name = role_words(role);
            return Err(format!("the {name} is {bias}, but must have the shape [{count}, {size}]"));
        }
    }
    let gating = &fused.gating;
    if !fused.gated && !gating.is_plain() {
        return Err("limit, slope and offset are of experts with a gate".into());
    }
    gating.limit.map_or(Ok(()), |limit| positive("limit", limit))?;
    positive("slope", gating.slope)?;
    if !gating.offset.is_finite() {
        return Err(format!("offset is {}; it must be finite", gating.offset));
    }
    must(&node.results[0], &Type::activation(&[outputs]), || format!("down {down}"))
}

/// `i32[T, top_k]`.
fn chosen(top_k: usize) -> Type {
    Type { format: Format::I32, shape: vec![Dim::Tokens, Dim::Fixed(top_k)] }
}

/// `[experts, rows, columns]` of a weight.
fn stack(name: &str, ty: &Type) -> Result<[usize; 3], String> {
    match ty.shape[..] {
        [Dim::Fixed(count), Dim::Fixed(rows), Dim::Fixed(columns)] if ty.format != Format::I32 => {
            Ok([count, rows, columns])
        }
        _ => Err(format!("{name} is {ty}, but must be a weight of three axes, [experts, out, in]")),
    }
}
