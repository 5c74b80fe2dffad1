//! Whether a plan fits into a GPU's memory, and what would.

use std::collections::BTreeMap;

use anyhow::Result;
use fusec::classes::formats_for;
use fusec::plan::{Format, Plan, StateBuffer};

use super::io::sampling_bytes;
use crate::device::{Gpu, NoRoom};

/// How large caches are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Positions a sequence.
    pub context: usize,
    /// Sequences that are decoded together, at most.
    pub sequences: usize,
}

/// What contexts that would fit are a multiple of.
const CONTEXTS: usize = 64;

/// Formats that may be told of, the largest first.
const FORMATS: [Format; 4] = [Format::Q8_0, Format::Q6K, Format::Q5K, Format::Q4K];

/// One clear error before anything is compiled or loaded, rather than a late one: the size of each part, and what would fit, where something would.
///
/// # Errors
/// A [`NoRoom`].
pub fn check_fit(gpu: &Gpu, plan: &Plan, options: EngineOptions) -> Result<()> {
    let weights = plan.weights.iter().map(|weight| weight.bytes).fold(0, usize::saturating_add);
    let working = |sequences: usize| plan.arena_bytes.saturating_add(sampling_bytes(plan, sequences));
    let states = |context: usize, sequences: usize| {
        let bytes = |state: &StateBuffer| state.bytes(context).saturating_mul(sequences);
        plan.states.iter().map(bytes).fold(0, usize::saturating_add)
    };
    let (free, _) = gpu.memory()?;
    let fits = |weights: usize, context: usize, sequences: usize| {
        weights.saturating_add(working(sequences)).saturating_add(states(context, sequences)) <= free
    };
    let EngineOptions { context, sequences } = options;
    if fits(weights, context, sequences) {
        return Ok(());
    }
    let fitting = (1..=(context - 1) / CONTEXTS)
        .rev()
        .map(|count| count * CONTEXTS)
        .find(|&context| fits(weights, context, sequences));
    let format = FORMATS.into_iter().find(|&format| fits(bytes_as(plan, format), context, sequences));
    let advice = match (fitting, fits(weights, context, 1), format) {
        (Some(context), true, _) => format!("--max-context {context} would, or fewer sequences"),
        (Some(context), false, Some(format)) => {
            format!("--max-context {context} would, or --weights {}", format.name())
        }
        (Some(context), false, None) => format!("--max-context {context} would"),
        (None, true, _) => "fewer sequences would".to_owned(),
        (None, false, Some(format)) => format!("--weights {} would", format.name()),
        (None, false, None) => "take weights of fewer bits (--weights), or --device cpu".to_owned(),
    };
    let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
    Err(anyhow::Error::new(NoRoom(format!(
        "{} does not fit: {:.2} GiB of weights ({}), {:.2} GiB of KV cache ({sequences} sequences of {context} positions) and {:.2} GiB of activations, \
         {:.2} GiB free on {}; {advice}",
        plan.name,
        gib(weights),
        by_format(plan),
        gib(states(context, sequences)),
        gib(working(sequences)),
        gib(free),
        gpu.name()?
    ))))
}

/// The formats of the packed weights and the bytes of each: `1.20 GiB in q4_k, 0.31 in q6_k`.
fn by_format(plan: &Plan) -> String {
    let mut bytes: BTreeMap<Format, usize> = BTreeMap::new();
    for weight in &plan.weights {
        *bytes.entry(weight.recipe.format()).or_default() += weight.bytes;
    }
    let mut bytes: Vec<(Format, usize)> = bytes.into_iter().collect();
    bytes.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let words =
        bytes.iter().map(|(format, bytes)| format!("{:.2} in {}", *bytes as f64 / (1u64 << 30) as f64, format.name()));
    words.collect::<Vec<_>>().join(", ")
}

/// Bytes of the packed weights where those of 16 bits are quantised to `target`.
fn bytes_as(plan: &Plan, target: Format) -> usize {
    let bytes = plan.weights.iter().map(|weight| {
        let formats = formats_for(target, weight.recipe.rows() >= plan.vocabulary);
        let as_format = |format: &Format| Some(weight.recipe.in_format(*format)?.bytes());
        formats.iter().find_map(as_format).unwrap_or(weight.bytes)
    });
    bytes.fold(0, usize::saturating_add)
}
