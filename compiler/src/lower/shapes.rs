//! Shapes in words, for messages.

use std::fmt;

use crate::ir::{Dim, Type};

/// The heads of an activation `f32[T, count, size]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heads {
    pub(super) count: usize,
    pub(super) size: usize,
}

impl Heads {
    /// The heads of a value that has them.
    pub(super) fn of(ty: &Type) -> Option<Heads> {
        match ty.shape[..] {
            [Dim::Tokens, Dim::Fixed(count), Dim::Fixed(size)] => Some(Heads { count, size }),
            _ => None,
        }
    }
}

impl fmt::Display for Heads {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} of {}", counted(self.count, "head"), self.size)
    }
}

/// `64 values per token`, `4 heads of 16`, `[100, 64]`.
pub(super) fn words(ty: &Type) -> String {
    if let Some(heads) = Heads::of(ty) {
        return heads.to_string();
    }
    match ty.shape[..] {
        [Dim::Tokens, Dim::Fixed(size)] => format!("{} per token", counted(size, "value")),
        _ => format!("{:?}", ty.fixed_sizes().collect::<Vec<_>>()),
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
