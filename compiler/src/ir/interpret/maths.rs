//! Functions of one number.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI, FRAC_2_SQRT_PI};

use crate::ir::{Activation, Function};

/// An activation function, computed in f64.
pub(super) fn activate(activation: Activation, x: f32) -> f32 {
    let wide = f64::from(x);
    match activation {
        Activation::Silu => (wide / (1.0 + (-wide).exp())) as f32,
        Activation::Gelu => (0.5 * wide * (1.0 + erf(wide * FRAC_1_SQRT_2))) as f32,
        Activation::GeluTanh => {
            let inner = FRAC_2_PI.sqrt() * (wide + 0.044715 * wide.powi(3));
            (0.5 * wide * (1.0 + inner.tanh())) as f32
        }
        Activation::Relu => x.max(0.0),
        Activation::Relu2 => x.max(0.0).powi(2),
    }
}

/// Another function, computed in f64.
pub(super) fn function(function: Function, x: f32) -> f32 {
    let wide = f64::from(x);
    match function {
        Function::Sigmoid => (1.0 / (1.0 + (-wide).exp())) as f32,
        Function::Softplus => (wide.max(0.0) + (-wide.abs()).exp().ln_1p()) as f32,
        Function::Exp => wide.exp() as f32,
    }
}

/// The error function, to about 1e-15: `2/√π · e^(-x²) · Σ 2ⁿ x²ⁿ⁺¹ / (1·3·5…(2n+1))`, whose terms have one sign.
pub fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-17 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    FRAC_2_SQRT_PI * (-x * x).exp() * sum
}
