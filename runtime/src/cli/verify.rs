//! `fuserun verify`: what the model computes against what another implementation computed.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use fusec::console::{show, tell};
use fusec::plan::PlanOptions;

use super::model::ModelArgs;
use crate::backend::Device;
use crate::model::Text;
use crate::verify::{self, Expected};

/// In fp32 against fp32 only the order of sums differs.
const EXACT: f64 = 1e-9;
/// With weights and activations rounded to 16 bits on either side.
const ROUNDED: f64 = 1e-3;

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  fuserun verify -m Qwen3-0.6B --against expected.safetensors
  fuserun verify -m MyModel --description mine.toml --device interpreter --against expected.safetensors")]
pub struct VerifyArgs {
    /// What to compare with: a safetensors file with `tokens`, `logits` and values between, as docs/expected.py writes it.
    #[arg(long, env = "FUSE_AGAINST", value_name = "FILE.safetensors")]
    against: PathBuf,
    /// The normalised mean squared error up to which two values are the same; 1e-9 in the interpreter, 1e-3 on a device.
    #[arg(long, env = "FUSE_BOUND", value_name = "NMSE")]
    bound: Option<f64>,
    #[command(flatten)]
    model: ModelArgs,
}

pub fn run(args: &VerifyArgs) -> Result<()> {
    let expected = Expected::read(&args.against)?;
    if let Some(bound) = args.bound {
        ensure!(bound > 0.0 && bound.is_finite(), "--bound {bound} is not above 0");
    }
    ensure!(
        expected.logits.is_some() || !expected.values.is_empty(),
        "{} holds nothing to compare: neither logits nor other values",
        expected.name
    );
    let model = args.model.open(false)?;
    let device = args.model.device(&model);
    let exact = device == Device::Interpreter;
    if model.quantised().is_some() {
        return quantised(args, &model, &device, expected);
    }
    if exact || !expected.values.is_empty() {
        in_the_interpreter(args, &model, &expected)?;
    }
    if exact || expected.logits.is_none() {
        return Ok(());
    }
    let text = Text { tokens: expected.tokens.len(), grows: true };
    let options = args.model.load_options(&model, &[1], 4096.max(expected.tokens.len()), text)?;
    let mut backend = model.load(&device, &options)?;
    for (path, by_step) in [("prompt", false), ("decode", true)] {
        let what = format!("{}, {path} path", backend.describe());
        let found = backend.logits(&expected.tokens, by_step)?;
        match verify::logits(&what, &found, &expected, args.bound.unwrap_or(ROUNDED)) {
            Ok(line) => show(format!("{line}\n"))?,
            Err(error) if expected.values.is_empty() => {
                // Whose fault it is: the description's, or the device's.
                tell(format!("{error:#}"));
                in_the_interpreter(args, &model, &expected)?;
                bail!(
                    "the description agrees in the interpreter and not on {what}: the fault is not the description's"
                );
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What quantising its weights costs, and whether a device computes with them as the interpreter does.
fn quantised(args: &VerifyArgs, model: &crate::model::OpenModel, device: &Device, expected: Expected) -> Result<()> {
    let checkpoint = model.checkpoint().context("dummy weights cannot be verified: name a checkpoint")?;
    if !expected.values.is_empty() {
        tell("values between are not compared: with quantised weights each of them differs");
    }
    let compiled = model.compile(PlanOptions::none())?;
    let logits = verify::values(&compiled, checkpoint, &expected, f64::INFINITY)?.logits;
    let (line, nmse) = verify::cost(&logits, &expected)?;
    show(format!("quantising costs: {line}\n"))?;
    ensure!(args.bound.is_none_or(|bound| nmse <= bound), "{line}; the bound is {:.0e}", args.bound.unwrap_or(0.0));
    if *device == Device::Interpreter {
        return Ok(());
    }
    let text = Text { tokens: expected.tokens.len(), grows: true };
    let options = args.model.load_options(model, &[1], 4096.max(expected.tokens.len()), text)?;
    let mut backend = model.load(device, &options)?;
    let with_the_same =
        Expected { name: "the interpreter".to_owned(), logits: Some(logits), values: Vec::new(), ..expected };
    for (path, by_step) in [("prompt", false), ("decode", true)] {
        let what = format!("{}, {path} path, against the interpreter with the same weights", backend.describe());
        let found = backend.logits(&with_the_same.tokens, by_step)?;
        show(format!("{}\n", verify::logits(&what, &found, &with_the_same, ROUNDED)?))?;
    }
    Ok(())
}

/// Every value of the file in the interpreter; the first that differs is the error.
fn in_the_interpreter(args: &VerifyArgs, model: &crate::model::OpenModel, expected: &Expected) -> Result<()> {
    let bound = args.bound.unwrap_or(if expected.exact { EXACT } else { ROUNDED });
    let checkpoint = model.checkpoint().context("dummy weights cannot be verified: name a checkpoint")?;
    let compiled = model.compile(PlanOptions::none())?;
    let findings = verify::values(&compiled, checkpoint, expected, bound)?;
    if !findings.unmatched.is_empty() {
        let listed = findings.unmatched.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
        let more = findings.unmatched.len().saturating_sub(8);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        tell(format!("not compared, as the description has no such value: {listed}{more}"));
    }
    if let Some(difference) = findings.difference {
        return Err(anyhow!("{difference}"));
    }
    if let Some((name, error)) = findings.agree.iter().max_by(|a, b| a.1.total_cmp(&b.1)) {
        show(format!("interpreter: {} values agree, largest NMSE {error:.1e} ({name})\n", findings.agree.len()))?;
    }
    if expected.logits.is_some() {
        show(format!("{}\n", verify::logits("interpreter", &findings.logits, expected, bound)?))?;
    }
    Ok(())
}
