//! The scaling that a rotation has, for the context in use.

use super::attributes::positive;
use crate::description::{Call, Code, Diagnostic, Scaling};
use crate::ir::RopeScaling;

/// Values of a head that are turned, at most: far more than any model has, and few enough for a table of frequencies.
const LARGEST_TURN: usize = 1 << 16;

/// The base of the frequencies and their scaling, for `dim` values of a head and sequences of at most `context` positions.
///
/// `longrope` has two lists of divisors, for sequences within the trained context and beyond; `dynamic` stretches the base with the sequence. Both
/// are fixed here, by the longest sequence that is meant to run.
pub(super) fn scaled(call: &Call, dim: usize, context: Option<usize>) -> Result<(f64, RopeScaling), Diagnostic> {
    if dim > LARGEST_TURN {
        let message = format!("RoPE turns {dim} values of a head, and {LARGEST_TURN} is the most");
        return Err(Diagnostic::new(Code::ShapeMismatch, message).at(call.span.clone(), ""));
    }
    positive(call, "theta")?;
    let theta = call.float("theta").expect("the signature requires it");
    let Some(scaling) = call.scaling("scaling") else { return Ok((theta, RopeScaling::None)) };
    let length = |original: f64| context.map_or(original, |context| context as f64);
    let scaling = match scaling.clone() {
        Scaling::Fixed(scaling) => scaling,
        Scaling::LongRope { short, long, original, attention_factor } => {
            let (which, factors) = if length(original) > original { ("long", long) } else { ("short", short) };
            if factors.len() != dim / 2 {
                let message = format!(
                    "`rope_scaling.{which}_factor` has {} values, and RoPE turns {dim}: {} pairs",
                    factors.len(),
                    dim / 2
                );
                return Err(Diagnostic::new(Code::ShapeMismatch, message).at(call.span.clone(), ""));
            }
            RopeScaling::LongRope { factors, attention_factor }
        }
        Scaling::Dynamic { factor, original } => {
            let stretch = factor * length(original).max(original) / original - (factor - 1.0);
            let base = if dim > 2 { theta * stretch.powf(dim as f64 / (dim as f64 - 2.0)) } else { theta };
            return Ok((base, RopeScaling::None));
        }
    };
    Ok((theta, scaling))
}
