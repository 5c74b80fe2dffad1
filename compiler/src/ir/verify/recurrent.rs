//! The rules of ops that change a state.

use super::terms::{Check, Checked, activation, heads, is_float, must, result_count, same, vector};
use crate::ir::{Conv, Dim, Format, Recall, Role, Type};

pub(super) fn conv(conv: Conv, node: &Checked<'_>) -> Check {
    result_count(node, 2)?;
    let (x, weight) = (node.get(Role::X), node.get(Role::Weight(0)));
    activation("x", x)?;
    let channels = x.row_size();
    let taps = match weight.shape[..] {
        [Dim::Fixed(rows), Dim::Fixed(1), Dim::Fixed(taps)] if is_float(weight) && rows == channels => taps,
        _ => return Err(format!("weight 0 is {weight}, but x is {x}: it must be [{channels}, 1, taps]")),
    };
    if taps < 2 {
        return Err("a convolution of one tap keeps no inputs: it is a product with a weight".into());
    }
    if conv.bias {
        vector("bias 0", node.get(Role::Bias(0)), channels, || format!("x is {x}"))?;
    }
    let inputs = node.get(Role::Inputs);
    same("inputs", inputs, &Type::weight(Format::F32, &[taps - 1, channels]))?;
    same("positions", node.get(Role::Positions), &Type::tokens())?;
    must(&node.results[0], x, || "x".into())?;
    changed("inputs", inputs, &node.results[1])
}

pub(super) fn recall(recall: Recall, node: &Checked<'_>) -> Check {
    result_count(node, 2)?;
    let [q, k, v] = [Role::Q, Role::K, Role::V].map(|role| node.get(role));
    let [key_heads, key] = heads("k", k)?;
    same("q", q, k)?;
    let [count, value] = heads("v", v)?;
    if !count.is_multiple_of(key_heads) {
        return Err(format!("v is {v}, but k is {k}: heads of v share those of k evenly"));
    }
    let decay = node.get(Role::Decay);
    if ![Type::activation(&[count]), Type::activation(&[count, key])].contains(decay) {
        return Err(format!("decay is {decay}, but must be f32[T, {count}] or f32[T, {count}, {key}]"));
    }
    if recall.delta {
        same("beta", node.get(Role::Beta), &Type::activation(&[count]))?;
    }
    let memory = node.get(Role::Memory);
    same("memory", memory, &Type::weight(Format::F32, &[count, key, value]))?;
    same("positions", node.get(Role::Positions), &Type::tokens())?;
    must(&node.results[0], v, || "v".into())?;
    changed("memory", memory, &node.results[1])
}

/// The state after the step is of the type that it has before it.
fn changed(name: &str, before: &Type, after: &Type) -> Check {
    if before == after {
        return Ok(());
    }
    Err(format!("result 1 is {after}, but the {name} is {before} before the step"))
}
