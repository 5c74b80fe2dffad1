//! The rules of ops that change a state.

use super::terms::{Check, Checked, activation, is_float, must, result_count, same, vector};
use crate::ir::{Conv, Dim, Format, Role, Type};

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
    if node.results[1] == *inputs {
        return Ok(());
    }
    Err(format!("result 1 is {}, but the inputs are {inputs}", node.results[1]))
}
