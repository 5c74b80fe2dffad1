//! `y = W x + b`.

use std::convert::Infallible;

use super::Tensor;
use crate::threads;

/// What `x` is multiplied by.
pub(super) struct Product<'a> {
    /// `[out, in]`, or `[in, out]` where transposed.
    pub(super) weight: &'a Tensor,
    /// `[out]`.
    pub(super) bias: Option<&'a Tensor>,
    pub(super) transposed: bool,
}

/// Each row of `x`, flat, times the weight; the result takes `shape`, whose rows hold as many values as the weight has rows.
pub(super) fn matmul(x: &Tensor, product: &Product<'_>, shape: &[usize]) -> Tensor {
    let (tokens, inputs) = (x.shape[0], x.row_size());
    let outputs: usize = shape[1..].iter().product();
    // One thread writes whole rows of the transposed result, `[out, token]`.
    let mut columns = vec![0.0; outputs * tokens];
    let threads = match outputs * inputs * tokens {
        ..100_000 => 1,
        _ => threads::available(),
    };
    let rows_a_thread = outputs.div_ceil(threads).max(1);
    let parts = columns.chunks_mut((rows_a_thread * tokens).max(1)).enumerate();
    let Ok(()) = threads::for_each(threads, parts, Vec::new, |gathered, (thread, part)| {
        for (i, sums) in part.chunks_mut(tokens).enumerate() {
            let output = thread * rows_a_thread + i;
            let row = weight_row(product, output, inputs, outputs, gathered);
            let bias = product.bias.map_or(0.0, |bias| bias.data[output]);
            for (token, sum) in sums.iter_mut().enumerate() {
                *sum = dot(row, x.row(token)) + bias;
            }
        }
        Ok::<(), Infallible>(())
    });
    let mut out = Tensor::zeros(shape);
    for (output, sums) in columns.chunks(tokens.max(1)).enumerate() {
        for (token, &sum) in sums.iter().enumerate() {
            out.data[token * outputs + output] = sum;
        }
    }
    out
}

fn weight_row<'a>(
    product: &Product<'a>,
    output: usize,
    inputs: usize,
    outputs: usize,
    gathered: &'a mut Vec<f32>,
) -> &'a [f32] {
    if !product.transposed {
        return product.weight.row(output);
    }
    gathered.clear();
    gathered.extend((0..inputs).map(|input| product.weight.data[input * outputs + output]));
    gathered
}

/// Sixteen partial sums in f32, added up in f64. The partial sums let the compiler use vectors; each stays short.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(&a, &b)| f64::from(a) * f64::from(b));
    lanes.iter().map(|&lane| f64::from(lane)).chain(rest).sum::<f64>() as f32
}
