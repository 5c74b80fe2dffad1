//! What a value is: a storage type and a shape whose token and context counts stay symbolic.

use std::fmt;

use fuse_kernels::Format;

/// The type of a value: element type and shape, outermost dimension first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Type {
    /// How its elements are stored. Activations are `f32` in the graph: what a kernel rounds to on the way is its own matter.
    pub format: Format,
    /// Dimensions, row-major.
    pub shape: Vec<Dim>,
}

/// One dimension of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    /// The number of tokens in a step: the batch when decoding, the chunk length in a prompt. Written `T`.
    Tokens,
    /// The number of cache positions, fixed when the runtime starts. Written `C`.
    Context,
    /// A known size.
    Fixed(usize),
}

impl Type {
    /// `f32[T, sizes…]`: an activation, one row per token.
    pub fn activation(sizes: &[usize]) -> Type {
        let mut shape = vec![Dim::Tokens];
        shape.extend(sizes.iter().map(|&size| Dim::Fixed(size)));
        Type { format: Format::F32, shape }
    }

    /// `format[sizes…]`: a weight.
    pub fn weight(format: Format, sizes: &[usize]) -> Type {
        Type { format, shape: sizes.iter().map(|&size| Dim::Fixed(size)).collect() }
    }

    /// `format[C, heads, head_dim]`: the keys or the values of one layer.
    pub fn cache(format: Format, heads: usize, head_dim: usize) -> Type {
        Type { format, shape: vec![Dim::Context, Dim::Fixed(heads), Dim::Fixed(head_dim)] }
    }

    /// `i32[T]`: token ids or positions.
    pub fn tokens() -> Type {
        Type { format: Format::I32, shape: vec![Dim::Tokens] }
    }

    /// The product of the known sizes: elements per token for an activation, elements in all for a weight.
    pub fn row_size(&self) -> usize {
        self.fixed_sizes().product()
    }

    /// How many values of a row of this activation share one of `other`: 1 where `other` is of the same type, or a weight of as many values; all of a row where
    /// it has one value per token, or is a weight of one; those of a head where it has one per head.
    pub fn values_per(&self, other: &Type) -> Option<usize> {
        if self == other {
            return Some(1);
        }
        let heads = match self.shape[..] {
            [Dim::Tokens, Dim::Fixed(heads), Dim::Fixed(_)] => heads,
            _ => 1,
        };
        let (row, count) = (self.row_size(), other.row_size());
        let fits = match other.shape[..] {
            [Dim::Fixed(_)] => other.format != Format::I32 && [row, heads, 1].contains(&count),
            [Dim::Tokens, Dim::Fixed(_)] => other.format == Format::F32 && [heads, 1].contains(&count),
            _ => false,
        };
        fits.then(|| row / count)
    }

    /// The known sizes in order, symbolic ones left out.
    pub fn fixed_sizes(&self) -> impl Iterator<Item = usize> + '_ {
        self.shape.iter().filter_map(|dim| match dim {
            Dim::Fixed(size) => Some(*size),
            Dim::Tokens | Dim::Context => None,
        })
    }

    /// The last dimension, or `None` for an empty shape or a symbolic one.
    pub fn last_size(&self) -> Option<usize> {
        match self.shape.last() {
            Some(Dim::Fixed(size)) => Some(*size),
            _ => None,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.format.name())?;
        for (i, dim) in self.shape.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            match dim {
                Dim::Tokens => write!(f, "{comma}T")?,
                Dim::Context => write!(f, "{comma}C")?,
                Dim::Fixed(size) => write!(f, "{comma}{size}")?,
            }
        }
        write!(f, "]")
    }
}
