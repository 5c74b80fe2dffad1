//! One rule per op.

use super::fused::{attention, matmul};
use super::terms::{
    Check, Checked, activation, appended, cache, heads, is_activation, is_float, is_plain, logits, matrix, must,
    norm_over, positive, result_count, rope, same,
};
use crate::ir::{Dim, Op, Replay, Role, Start, State, Type};

/// Types and attributes of a node whose operands are complete.
pub(super) fn check(op: &Op, node: &Checked<'_>) -> Check {
    if let Op::Matmul(fused) = op {
        return matmul(fused, node);
    }
    if let Op::Attention(fused) = op {
        return attention(fused, node);
    }
    if let Op::Conv(conv) = op {
        return super::recurrent::conv(*conv, node);
    }
    if let Op::Recall(recall) = op {
        return super::recurrent::recall(*recall, node);
    }
    if let Op::Route(route) = op {
        return super::experts::route(route, node);
    }
    result_count(node, 1)?;
    let result = &node.results[0];
    match op {
        Op::Input(_) => match result {
            ty if *ty == Type::tokens() || is_activation(ty) => Ok(()),
            ty => Err(format!("an input is i32[T] or an activation f32[T, sizes…], not {ty}")),
        },
        Op::Weight(_) => match result {
            ty if is_float(ty) && !ty.shape.is_empty() && ty.fixed_sizes().count() == ty.shape.len() => Ok(()),
            ty => Err(format!("a weight is of known sizes and of floats or quantised blocks, not {ty}")),
        },
        Op::State(state) => kept(state, result),
        Op::Embedding => {
            same("ids", node.get(Role::Ids), &Type::tokens())?;
            let table = node.get(Role::Table);
            let [_, columns] = matrix("table", table)?;
            must(result, &Type::activation(&[columns]), || format!("a lookup in {table}"))
        }
        Op::HeadProduct => {
            let x = node.get(Role::X);
            let [count, inputs] = heads("x", x)?;
            let weight = node.get(Role::Weight(0));
            match weight.shape[..] {
                [Dim::Fixed(matrices), Dim::Fixed(rows), Dim::Fixed(columns)]
                    if is_float(weight) && (matrices, columns) == (count, inputs) =>
                {
                    must(result, &Type::activation(&[count, rows]), || format!("weight {weight}"))
                }
                _ => Err(format!("x is {x}, but the weight is {weight}: it must be [{count}, out, {inputs}]")),
            }
        }
        Op::Concat => {
            let (a, b) = (node.get(Role::A), node.get(Role::B));
            let ([count, first], [other, second]) = (heads("a", a)?, heads("b", b)?);
            if count != other {
                return Err(format!("a is {a}, but b is {b}: they must have as many heads"));
            }
            must(result, &Type::activation(&[count, first + second]), || "the two".into())
        }
        Op::Norm(norm) => {
            let x = node.get(Role::X);
            norm_over("x", norm, x, node.find(Role::NormWeight), node.find(Role::NormBias))?;
            must(result, x, || "x".into())
        }
        Op::Rope(turn) => {
            let x = node.get(Role::X);
            let [_, head_dim] = heads("x", x)?;
            rope(turn, head_dim)?;
            same("positions", node.get(Role::Positions), &Type::tokens())?;
            must(result, x, || "x".into())
        }
        Op::KvAppend => {
            let into = node.get(Role::Cache);
            cache("cache", into)?;
            appended("x", node.get(Role::X), into)?;
            same("positions", node.get(Role::Positions), &Type::tokens())?;
            must(result, into, || "the cache".into())
        }
        Op::Add | Op::Mul | Op::Glu | Op::Decay => pair(op, node),
        Op::Experts(experts) => super::experts::experts(experts, node),
        Op::Activation(_) | Op::Function(_) | Op::Scale(_) | Op::Softcap(_) | Op::Clamp(_) => {
            let x = node.get(Role::X);
            activation("x", x)?;
            match op {
                Op::Scale(factor) if !factor.is_finite() => Err(format!("the factor is {factor}")),
                Op::Softcap(cap) => positive("cap", *cap),
                Op::Clamp(limit) => positive("limit", *limit),
                _ => Ok(()),
            }?;
            must(result, x, || "x".into())
        }
        Op::Reshape => {
            let x = node.get(Role::X);
            activation("x", x)?;
            activation("the result", result)?;
            let (from, to) = (x.row_size(), result.row_size());
            if from == to {
                return Ok(());
            }
            Err(format!("x is {x}, {from} values per token, but the result is {result}, {to} values per token"))
        }
        Op::Sample => {
            let x = node.get(Role::X);
            logits("x", x)?;
            must(result, &Type::tokens(), || format!("a sample of {x}"))
        }
        Op::Matmul(_) | Op::Attention(_) | Op::Route(_) | Op::Conv(_) | Op::Recall(_) => {
            unreachable!("they have rules of their own")
        }
    }
}

/// Two values, element by element.
fn pair(op: &Op, node: &Checked<'_>) -> Check {
    let (a, b) = (node.get(Role::A), node.get(Role::B));
    activation("a", a)?;
    let sizes = match op {
        Op::Glu => "as many values as a, or one per token or per head",
        Op::Decay => "a weight of as many values as a, one per head, or one",
        _ => "as many values as a, or one per token or per head, or a weight of so many",
    };
    let kind = match op {
        Op::Glu => is_activation(b),
        Op::Decay => !is_activation(b),
        _ => true,
    };
    if !kind || a.values_per(b).is_none() {
        return Err(format!("a is {a}, but b is {b}: it must be {sizes}"));
    }
    must(&node.results[0], a, || "a".into())
}

/// A state is a cache by position, or values that each step changes.
fn kept(state: &State, ty: &Type) -> Check {
    match state.replay {
        Replay::Same => cache("result", ty),
        Replay::Once if !is_plain(ty) || ty.shape.is_empty() || ty.fixed_sizes().count() != ty.shape.len() => {
            Err(format!("a state that each step changes is f32, f16 or bf16 of known sizes, not {ty}"))
        }
        Replay::Once if state.start == Start::Any => {
            Err("a state that each step changes must begin with something: start=zeros".into())
        }
        Replay::Once => Ok(()),
    }
}
