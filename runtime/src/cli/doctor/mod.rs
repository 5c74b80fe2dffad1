//! `fuserun doctor`: whether this machine has what models need, tried and not assumed.

mod check;
mod checks;
mod kernel;

use anyhow::{Result, bail};
use clap::Args;
use clap::builder::FalseyValueParser;
use fusec::console::show;
use serde_json::{Value, json};

use check::{Check, State};
pub use checks::{cpu, gpu_names, hub_models};

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  fuserun doctor
  fuserun doctor --json | jq '.checks[] | select(.state != \"pass\")'

WARN: models run, and something is slower or missing. FAIL: something that is there does not work. Exit status: 1 where a check fails, else 0.")]
pub struct DoctorArgs {
    /// Print one JSON object instead of lines.
    #[arg(long, env = "FUSE_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
}

/// Checks everything; fails where a check fails.
pub fn run(args: &DoctorArgs) -> Result<()> {
    let found = checks::all();
    let count = |state: State| found.iter().filter(|check| check.state == state).count();
    let (warnings, failures) = (count(State::Warn), count(State::Fail));
    if args.json {
        let checks: Vec<Value> = found.iter().map(Check::to_json).collect();
        let version = env!("CARGO_PKG_VERSION");
        show(format!("{}\n", json!({ "version": version, "warn": warnings, "fail": failures, "checks": checks })))?;
    } else {
        show(found.iter().map(line).collect::<String>())?;
    }
    let failed: Vec<&str> =
        found.iter().filter(|check| check.state == State::Fail).map(|check| check.name.as_str()).collect();
    if !failed.is_empty() {
        bail!("{failures} of {} checks failed: {}", found.len(), failed.join(", "));
    }
    Ok(())
}

/// A check as a person reads it; the fix stands below.
fn line(check: &Check) -> String {
    let fix = check.fix.as_ref().map_or(String::new(), |fix| format!("{:20}fix: {fix}\n", ""));
    format!("{}  {:<14}{}\n{fix}", check.state.word(), check.name, check.said)
}
