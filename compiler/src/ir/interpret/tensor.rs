//! What the interpreter computes with.

/// Values with their shape, row-major. Token ids and positions are whole numbers below 2^24, so exact in f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// As many values as the product of the shape.
    pub data: Vec<f32>,
}

impl Tensor {
    /// A tensor of that shape. `data` holds the product of the shape.
    ///
    /// # Panics
    /// Where it holds another number of values.
    pub fn new(shape: impl Into<Vec<usize>>, data: impl Into<Vec<f32>>) -> Tensor {
        let tensor = Tensor { shape: shape.into(), data: data.into() };
        assert_eq!(tensor.shape.iter().product::<usize>(), tensor.data.len(), "values of shape {:?}", tensor.shape);
        tensor
    }

    /// Nothing but zeros.
    pub fn zeros(shape: impl Into<Vec<usize>>) -> Tensor {
        let shape = shape.into();
        let data = vec![0.0; shape.iter().product()];
        Tensor { shape, data }
    }

    /// Token ids or positions, as a vector.
    pub fn ints(values: &[i32]) -> Tensor {
        Tensor { shape: vec![values.len()], data: values.iter().map(|&value| value as f32).collect() }
    }

    /// Values a row: the product of all sizes but the first.
    pub fn row_size(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Row `row`, flat.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.row_size()..][..self.row_size()]
    }
}
