//! The attributes of a call as lowering needs them, and what is wrong with them.

use crate::description::{Call, Code, Diagnostic};
use crate::ir::Part;

/// The part that `attribute` takes of a weight with `outputs` of its outputs along `axis`; none where the whole is taken.
pub(super) fn part(call: &Call, attribute: &str, axis: usize, outputs: usize) -> Result<Option<Part>, Diagnostic> {
    let Some([first, size, step]) = call.part(attribute) else { return Ok(None) };
    if !outputs.is_multiple_of(size) {
        let message = format!("`{attribute}` takes runs of {size} outputs, which do not make {outputs}");
        return Err(mismatch(call, message));
    }
    Ok(Some(Part { axis, first, size, step }))
}

/// An error on the line of a call.
pub(super) fn mismatch(call: &Call, message: impl Into<String>) -> Diagnostic {
    Diagnostic::new(Code::ShapeMismatch, message).at(call.span.clone(), "")
}

/// An attribute that the signature requires or gives a default.
pub(super) fn count(call: &Call, name: &str) -> usize {
    call.count(name).expect("the signature requires it")
}

/// As [`count`].
pub(super) fn number(call: &Call, name: &str) -> f32 {
    call.float(name).expect("the signature requires it") as f32
}

/// As [`number`], above 0.
pub(super) fn positive(call: &Call, name: &str) -> Result<f32, Diagnostic> {
    let value = number(call, name);
    if value > 0.0 && value.is_finite() {
        return Ok(value);
    }
    Err(mismatch(call, format!("`{name}` is {value}, and must be above 0")))
}
