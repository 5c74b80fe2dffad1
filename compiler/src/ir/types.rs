//! What a value is: a storage type and a shape whose token and context counts stay symbolic.

use std::fmt;

/// The type of a value: element type and shape, outermost dimension first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Type {
    /// Element type. Activations are `f32` in the graph: what a kernel rounds to on the way is its own matter.
    pub dtype: DType,
    /// Dimensions, row-major.
    pub shape: Vec<Dim>,
}

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// 32-bit IEEE float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// bfloat16: the upper half of an `f32`.
    BF16,
    /// 32-bit signed integer: token ids and positions.
    I32,
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
    /// `f32[T, sizes…]`: an activation, one row a token.
    pub fn activation(sizes: &[usize]) -> Type {
        let mut shape = vec![Dim::Tokens];
        shape.extend(sizes.iter().map(|&size| Dim::Fixed(size)));
        Type { dtype: DType::F32, shape }
    }

    /// `dtype[sizes…]`: a weight.
    pub fn weight(dtype: DType, sizes: &[usize]) -> Type {
        Type { dtype, shape: sizes.iter().map(|&size| Dim::Fixed(size)).collect() }
    }

    /// `dtype[C, heads, head_dim]`: the keys or the values of one layer.
    pub fn cache(dtype: DType, heads: usize, head_dim: usize) -> Type {
        Type { dtype, shape: vec![Dim::Context, Dim::Fixed(heads), Dim::Fixed(head_dim)] }
    }

    /// `i32[T]`: token ids or positions.
    pub fn tokens() -> Type {
        Type { dtype: DType::I32, shape: vec![Dim::Tokens] }
    }

    /// The product of the known sizes: elements a token for an activation, elements in all for a weight.
    pub fn row_size(&self) -> usize {
        self.fixed_sizes().product()
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

impl DType {
    /// Bytes an element.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 => 2,
        }
    }

    /// The name in the text form: `f32`, `f16`, `bf16`, `i32`.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I32 => "i32",
        }
    }

    /// The type of that name.
    pub fn parse(name: &str) -> Option<DType> {
        [DType::F32, DType::F16, DType::BF16, DType::I32].into_iter().find(|dtype| dtype.name() == name)
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype.name())?;
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
