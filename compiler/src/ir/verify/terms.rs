//! The words that rules are written in.

use crate::ir::{Dim, Format, Norm, Role, Rope, RopeScaling, Type};

/// A node's operands by role, and its results.
pub(super) struct Checked<'g> {
    pub name: String,
    pub operands: Vec<(Role, &'g Type)>,
    pub results: &'g [Type],
}

/// What is wrong with a node, in words.
pub(super) type Check = Result<(), String>;

impl<'g> Checked<'g> {
    pub fn find(&self, role: Role) -> Option<&'g Type> {
        self.operands.iter().find(|(known, _)| *known == role).map(|(_, ty)| *ty)
    }

    /// The type of an operand that the op has.
    pub fn get(&self, role: Role) -> &'g Type {
        self.find(role).expect("the operands follow the op's roles")
    }
}

/// What an operand is called in messages.
pub(in crate::ir) fn role_words(role: Role) -> String {
    match role {
        Role::X => "x".into(),
        Role::A => "a".into(),
        Role::B => "b".into(),
        Role::Ids => "ids".into(),
        Role::Table => "table".into(),
        Role::Positions => "positions".into(),
        Role::Weight(i) => format!("weight {i}"),
        Role::Bias(i) => format!("bias {i}"),
        Role::NormWeight => "norm weight".into(),
        Role::NormBias => "norm bias".into(),
        Role::Residual => "residual".into(),
        Role::Q => "q".into(),
        Role::K => "k".into(),
        Role::V => "v".into(),
        Role::KeyCache => "key cache".into(),
        Role::ValueCache => "value cache".into(),
        Role::Cache => "cache".into(),
        Role::QNormWeight => "q norm weight".into(),
        Role::KNormWeight => "k norm weight".into(),
        Role::Sinks => "sinks".into(),
        Role::ProjWeight => "projection weight".into(),
        Role::ProjBias => "projection bias".into(),
        Role::Chosen => "chosen experts".into(),
        Role::Shares => "shares".into(),
        Role::ChoiceBias => "bias of the choice".into(),
        Role::ExpertScale => "scale of experts".into(),
        Role::Gate => "gate".into(),
        Role::Up => "up".into(),
        Role::Down => "down".into(),
        Role::GateBias => "bias of the gate".into(),
        Role::UpBias => "bias of up".into(),
        Role::DownBias => "bias of down".into(),
        Role::Inputs => "inputs".into(),
        Role::Decay => "decay".into(),
        Role::Beta => "beta".into(),
        Role::Memory => "memory".into(),
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
        RopeScaling::Proportional { factor, part } => {
            positive64("factor", *factor)?;
            if !(0.0..=1.0).contains(part) {
                return Err(format!("part is {part}; it must be from 0 to 1"));
            }
            Ok(())
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

/// A weight of one axis; `why` says where its size comes from.
pub(super) fn vector(name: &str, ty: &Type, size: usize, why: impl Fn() -> String) -> Check {
    if is_float(ty) && ty.shape == [Dim::Fixed(size)] {
        return Ok(());
    }
    Err(format!("{name} is {ty}, but must have the shape [{size}]: {}", why()))
}

pub(super) fn cache(name: &str, ty: &Type) -> Check {
    match ty.shape[..] {
        [Dim::Context, Dim::Fixed(_), Dim::Fixed(_)] if is_plain(ty) => Ok(()),
        _ => Err(format!("{name} is {ty}, but must be a cache f32, f16 or bf16[C, kv_heads, head_dim]")),
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

/// Floats, or blocks that stand for floats.
pub(super) fn is_float(ty: &Type) -> bool {
    ty.format != Format::I32
}

/// Floats one by one, which can be written one by one.
pub(super) fn is_plain(ty: &Type) -> bool {
    is_float(ty) && ty.format.block().0 == 1
}

pub(super) fn is_activation(ty: &Type) -> bool {
    let tokens_first = ty.shape.first() == Some(&Dim::Tokens);
    ty.format == Format::F32 && tokens_first && ty.shape.len() >= 2 && ty.fixed_sizes().count() == ty.shape.len() - 1
}
