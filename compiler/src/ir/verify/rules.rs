//! One rule an op.

use super::fused::{attention, matmul};
use super::{Check, Checked};
use crate::ir::{Dim, Format, Norm, Op, Replay, Role, Rope, RopeScaling, Start, State, Type};

/// Types and attributes of a node whose operands are complete.
pub(super) fn check(op: &Op, node: &Checked<'_>) -> Check {
    if let Op::Matmul(fused) = op {
        return matmul(fused, node);
    }
    if let Op::Attention(fused) = op {
        return attention(fused, node);
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
            ty => Err(format!("a weight is f32, f16 or bf16 of known sizes, not {ty}")),
        },
        Op::State(state) => kept(state, result),
        Op::Embedding => {
            same("ids", node.get(Role::Ids), &Type::tokens())?;
            let table = node.get(Role::Table);
            let [_, columns] = matrix("table", table)?;
            must(result, &Type::activation(&[columns]), || format!("a lookup in {table}"))
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
        Op::Add | Op::Mul => {
            let (a, b) = (node.get(Role::A), node.get(Role::B));
            activation("a", a)?;
            if a != b {
                return Err(format!("a is {a}, but b is {b}; they must be equal"));
            }
            must(result, a, || "a".into())
        }
        Op::Glu => super::experts::glu(node),
        Op::Experts(experts) => super::experts::experts(experts, node),
        Op::Activation(_) | Op::Scale(_) | Op::Softcap(_) | Op::Clamp(_) => {
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
            Err(format!("x is {x}, {from} values a token, but the result is {result}, {to} values a token"))
        }
        Op::Sample => {
            let x = node.get(Role::X);
            logits("x", x)?;
            must(result, &Type::tokens(), || format!("a sample of {x}"))
        }
        Op::Matmul(_) | Op::Attention(_) | Op::Route(_) => unreachable!("they have rules of their own"),
    }
}

/// The norm of a value of this type over its last axis.
pub(super) fn norm_over(name: &str, norm: &Norm, x: &Type, weight: Option<&Type>, bias: Option<&Type>) -> Check {
    activation(name, x)?;
    let size = x.last_size().ok_or_else(|| format!("{name} is {x}: it has no last axis to normalise over"))?;
    for (part, ty) in [("norm weight", weight), ("norm bias", bias)] {
        if let Some(ty) = ty {
            vector(part, ty, size, || format!("{name} is {x}"))?;
        }
    }
    norm_numbers(norm)
}

pub(super) fn norm_numbers(norm: &Norm) -> Check {
    if !(norm.eps.is_finite() && norm.eps >= 0.0) {
        return Err(format!("eps is {}; it must be at least 0", norm.eps));
    }
    if !norm.offset.is_finite() {
        return Err(format!("the norm's offset is {}", norm.offset));
    }
    Ok(())
}

/// A rotation of heads of this size.
pub(super) fn rope(rope: &Rope, head_dim: usize) -> Check {
    let dim = rope.dim;
    if dim == 0 || !dim.is_multiple_of(2) {
        return Err(format!("rope turns {dim} values of a head; it must be an even number above 0"));
    }
    if dim > head_dim {
        return Err(format!("rope turns {dim} values of a head, but a head has {head_dim}"));
    }
    positive64("theta", rope.theta)?;
    match &rope.scaling {
        RopeScaling::None => Ok(()),
        RopeScaling::Linear { factor } => positive64("factor", *factor),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
            positive64("factor", *factor)?;
            positive64("low_freq_factor", *low_freq_factor)?;
            positive64("high_freq_factor", *high_freq_factor)?;
            positive64("original", *original)
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original, attention_factor, truncate: _ } => {
            positive64("factor", *factor)?;
            positive64("beta_fast", *beta_fast)?;
            positive64("beta_slow", *beta_slow)?;
            positive64("original", *original)?;
            positive64("attention_factor", *attention_factor)
        }
        RopeScaling::LongRope { factors, attention_factor } => {
            if factors.len() != dim / 2 {
                return Err(format!("longrope has {} factors, but {dim} values are {} pairs", factors.len(), dim / 2));
            }
            factors.iter().try_for_each(|factor| positive64("a factor", *factor))?;
            positive64("attention_factor", *attention_factor)
        }
    }
}

pub(super) fn result_count(node: &Checked<'_>, count: usize) -> Check {
    let results = |count| crate::ir::parse::counted(count, "result");
    if node.results.len() == count {
        return Ok(());
    }
    Err(format!("{} gives {}, but the node has {}", node.name, results(count), node.results.len()))
}

/// `result` is what the op makes of `of`.
pub(super) fn must(result: &Type, expected: &Type, of: impl Fn() -> String) -> Check {
    if result == expected {
        return Ok(());
    }
    Err(format!("the result is {result}, but {} makes it {expected}", of()))
}

pub(super) fn same(name: &str, ty: &Type, expected: &Type) -> Check {
    if ty == expected { Ok(()) } else { Err(format!("{name} is {ty}, but must be {expected}")) }
}

pub(super) fn activation(name: &str, ty: &Type) -> Check {
    if is_activation(ty) { Ok(()) } else { Err(format!("{name} is {ty}, but must be an activation f32[T, sizes…]")) }
}

pub(super) fn logits(name: &str, ty: &Type) -> Check {
    match (is_activation(ty), ty.shape.len()) {
        (true, 2) => Ok(()),
        _ => Err(format!("{name} is {ty}, but must be logits f32[T, vocabulary]")),
    }
}

/// `[heads, head_dim]` of `f32[T, heads, head_dim]`.
pub(super) fn heads(name: &str, ty: &Type) -> Result<[usize; 2], String> {
    match ty.shape[..] {
        [Dim::Tokens, Dim::Fixed(heads), Dim::Fixed(head_dim)] if ty.format == Format::F32 => Ok([heads, head_dim]),
        _ => Err(format!("{name} is {ty}, but must be f32[T, heads, head_dim]")),
    }
}

/// `[rows, columns]` of a weight.
pub(super) fn matrix(name: &str, ty: &Type) -> Result<[usize; 2], String> {
    match ty.shape[..] {
        [Dim::Fixed(rows), Dim::Fixed(columns)] if is_float(ty) => Ok([rows, columns]),
        _ => Err(format!("{name} is {ty}, but must be a weight of two axes")),
    }
}

/// A weight of one axis; `why` tells where its size comes from.
pub(super) fn vector(name: &str, ty: &Type, size: usize, why: impl Fn() -> String) -> Check {
    if is_float(ty) && ty.shape == [Dim::Fixed(size)] {
        return Ok(());
    }
    Err(format!("{name} is {ty}, but must have the shape [{size}]: {}", why()))
}

pub(super) fn cache(name: &str, ty: &Type) -> Check {
    match ty.shape[..] {
        [Dim::Context, Dim::Fixed(_), Dim::Fixed(_)] if is_float(ty) => Ok(()),
        _ => Err(format!("{name} is {ty}, but must be a cache f32, f16 or bf16[C, kv_heads, head_dim]")),
    }
}

/// A state is a cache by position, or values that each step changes.
fn kept(state: &State, ty: &Type) -> Check {
    match state.replay {
        Replay::Same => cache("result", ty),
        Replay::Once if !is_float(ty) || ty.shape.is_empty() || ty.fixed_sizes().count() != ty.shape.len() => {
            Err(format!("a state that each step changes is f32, f16 or bf16 of known sizes, not {ty}"))
        }
        Replay::Once if state.start == Start::Any => {
            Err("a state that each step changes must begin with something: start=zeros".into())
        }
        Replay::Once => Ok(()),
    }
}

/// The keys or values of a step fit into a cache.
pub(super) fn appended(name: &str, ty: &Type, cache: &Type) -> Check {
    let sizes: Vec<usize> = cache.fixed_sizes().collect();
    let expected = Type::activation(&sizes);
    if *ty == expected { Ok(()) } else { Err(format!("{name} is {ty}, but the cache is {cache}: it takes {expected}")) }
}

pub(super) fn positive(name: &str, value: f32) -> Check {
    positive64(name, f64::from(value))
}

fn positive64(name: &str, value: f64) -> Check {
    if value.is_finite() && value > 0.0 { Ok(()) } else { Err(format!("{name} is {value}; it must be above 0")) }
}

fn is_float(ty: &Type) -> bool {
    ty.format != Format::I32
}

fn is_activation(ty: &Type) -> bool {
    let tokens_first = ty.shape.first() == Some(&Dim::Tokens);
    ty.format == Format::F32 && tokens_first && ty.shape.len() >= 2 && ty.fixed_sizes().count() == ty.shape.len() - 1
}
