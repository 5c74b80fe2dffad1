//! `rope_scaling` from the metadata and the tensors of rotation factors.

use super::super::contents::Contents;
use super::family::INSTEAD;
use super::keys::Keys;
use crate::blocks::decode;
use crate::weights::dtype::Dtype;
use anyhow::{Result, bail, ensure};
use fusec::ir::Format;
use serde_json::{Value as Json, json};

/// The tensor that carries llama 3's scaled rotation frequencies as divisors, one per pair.
pub(super) const DIVISORS: &str = "rope_freqs.weight";

/// Longrope's divisors within and beyond the trained context.
const SHORT: &str = "rope_factors_short.weight";
const LONG: &str = "rope_factors_long.weight";

/// Whether the tensor becomes a part of config.json.
pub(super) fn is_factors(name: &str) -> bool {
    [DIVISORS, SHORT, LONG].contains(&name)
}

/// `rope_scaling` from the metadata or the tensors of factors, of `rotated` values per head; null where the rotation is plain.
pub(super) fn scaling(keys: &Keys<'_>, contents: &Contents, files: &[&[u8]], theta: f64, rotated: u64) -> Result<Json> {
    let factors = |name: &str| -> Result<Option<Vec<f32>>> {
        let Some(entry) = contents.tensors.get(name) else { return Ok(None) };
        ensure!(entry.dtype == Dtype::Of(Format::F32), "{name} is {}, not F32", entry.dtype);
        let mut factors = Vec::new();
        decode(Format::F32, &files[entry.file][entry.bytes.clone()], &mut factors);
        ensure!(
            factors.len() as u64 == rotated / 2 && factors.iter().all(|factor| factor.is_finite() && *factor > 0.0),
            "{name} is no list of {} positive numbers, one for each pair of rotated values",
            rotated / 2
        );
        Ok(Some(factors))
    };
    let kind = keys.text("rope.scaling.type")?.filter(|kind| *kind != "none");
    let original = keys.optional("rope.scaling.original_context_length")?;
    let linear = keys.float("rope.scale_linear")?.filter(|factor| *factor != 1.0);
    let factor = keys.float("rope.scaling.factor")?;
    // It says how a model was made, not what it computes.
    keys.boolean("rope.scaling.finetuned")?;
    keys.expect("rope.scaling.yarn_attn_factor", 1.0)?;
    keys.expect("rope.scaling.yarn_ext_factor", 1.0)?;
    keys.expect("rope.scaling.yarn_log_multiplier", 0.0)?;

    let (divisors, short, long) = (factors(DIVISORS)?, factors(SHORT)?, factors(LONG)?);
    if let (None, Some(short), Some(long), None | Some("longrope")) = (&divisors, &short, &long, kind) {
        let original = keys.required("rope.scaling.original_context_length", original)?;
        return Ok(longrope(short, long, original, keys.float("rope.scaling.attn_factor")?));
    }
    ensure!(short.is_some() == long.is_some(), "there is only one of {SHORT} and {LONG}");
    ensure!(short.is_none(), "{SHORT} is not read beside {}", kind.unwrap_or(DIVISORS));
    keys.expect("rope.scaling.attn_factor", 1.0)?;
    match (divisors, kind) {
        (Some(divisors), None) => Ok(divided(&divisors, theta, rotated)),
        (Some(_), Some(kind)) => bail!("{DIVISORS} is not read beside RoPE scaling of type '{kind}'; {INSTEAD}"),
        (None, None) => Ok(linear.map_or(Json::Null, |factor| json!({ "rope_type": "linear", "factor": factor }))),
        (None, Some("linear")) => {
            let factor = keys.required("rope.scaling.factor", factor)?;
            Ok(json!({ "rope_type": "linear", "factor": factor }))
        }
        (None, Some("yarn")) => {
            let mut scaling = json!({
                "rope_type": "yarn",
                "factor": keys.required("rope.scaling.factor", factor)?,
                "original_max_position_embeddings": keys.required("rope.scaling.original_context_length", original)?,
            });
            for beta in ["beta_fast", "beta_slow"] {
                if let Some(value) = keys.float(&format!("rope.scaling.yarn_{beta}"))? {
                    scaling[beta] = json!(value);
                }
            }
            Ok(scaling)
        }
        (None, Some("longrope")) => bail!("RoPE scaling is of type 'longrope', and there is no {SHORT}"),
        (None, Some(other)) => bail!("RoPE scaling of type '{other}' is not read from GGUF; {INSTEAD}"),
    }
}

fn longrope(short: &[f32], long: &[f32], original: u64, attention: Option<f64>) -> Json {
    let numbers = |factors: &[f32]| -> Vec<f64> { factors.iter().map(|factor| f64::from(*factor)).collect() };
    let mut scaling = json!({
        "rope_type": "longrope",
        "short_factor": numbers(short),
        "long_factor": numbers(long),
        "original_max_position_embeddings": original,
    });
    if let Some(factor) = attention {
        scaling["attention_factor"] = json!(factor);
    }
    scaling
}

/// Divisors of the frequencies. The file keeps only what a scaling comes to: that of llama 3 with its published constants is recognised, and any other
/// list is a longrope whose two lists are the same.
pub(super) fn divided(divisors: &[f32], theta: f64, rotated: u64) -> Json {
    if divisors.iter().all(|divisor| *divisor == 1.0) {
        return Json::Null;
    }
    llama3(divisors, theta, rotated).unwrap_or_else(|| longrope(divisors, divisors, LLAMA3_ORIGINAL, Some(1.0)))
}

const LLAMA3_ORIGINAL: u64 = 8192;

/// Llama 3's scaling with the largest divisor as its factor, where that makes these divisors.
fn llama3(divisors: &[f32], theta: f64, rotated: u64) -> Option<Json> {
    let (low, high, original) = (1.0, 4.0, LLAMA3_ORIGINAL as f64);
    let factor = f64::from(divisors.iter().copied().fold(1.0, f32::max));
    let made = |pair: usize| {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * pair as f64 / rotated as f64);
        let smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        1.0 / ((1.0 - smooth) / factor + smooth)
    };
    let same = |(pair, &divisor): (usize, &f32)| (f64::from(divisor) - made(pair)).abs() <= 1e-4 * made(pair);
    divisors.iter().enumerate().all(same).then(|| {
        json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": LLAMA3_ORIGINAL,
        })
    })
}
