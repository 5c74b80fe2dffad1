//! The command that shows one kernel in Nsight Compute.

use anyhow::{Result, bail};
use fusec::text::closest;

use super::Profile;

/// Flags of `fuserun profile` that say what to write, not what to run, and whether they take a value.
const LEFT_OUT: &[(&str, bool)] = &[("--trace", true), ("--kernel", true), ("--json", false)];

/// The command that runs `program arguments…` again under Nsight Compute and measures the first launch of a kernel, which `fuserun profile` makes
/// at the depth that was asked for, before anything else. Its caches are empty then (the tool's own default) and its clocks stay at their defaults.
pub fn command(kernel: &str, program: &str, arguments: &[String]) -> String {
    let mut words = ["ncu", "--set", "full", "--clock-control", "none", "--kernel-name"].map(str::to_owned).to_vec();
    words.extend([format!("regex:^{kernel}$"), "--launch-count".into(), "1".into(), program.to_owned()]);
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let flag = LEFT_OUT.iter().find(|(flag, _)| {
            argument == flag || argument.strip_prefix(flag).is_some_and(|rest| rest.starts_with('='))
        });
        match flag {
            Some((flag, true)) if argument == flag => drop(arguments.next()),
            Some(_) => {}
            None => words.push(argument.clone()),
        }
    }
    words.iter().map(|word| quoted(word)).collect::<Vec<String>>().join(" ")
}

/// The kernel of the step that is called `name`; none: the one that takes the most of it.
///
/// # Errors
/// A name that the step does not launch, with the nearest.
pub fn kernel_named<'p>(profile: &'p Profile, name: Option<&str>) -> Result<&'p str> {
    let names = || profile.kernels.iter().map(|row| row.kernel.as_str());
    let Some(name) = name else { return Ok(names().next().unwrap_or_default()) };
    match names().find(|known| *known == name) {
        Some(known) => Ok(known),
        None => {
            let near = closest(name, names()).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
            bail!("the step has no kernel `{name}`{near} (it has {})", names().collect::<Vec<&str>>().join(", "))
        }
    }
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:=+%@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
