//! What a program's flags are made into besides its help: completions for shells, and manual pages.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::output;

/// The flags of `completions`.
#[derive(Args, Clone, Debug)]
pub struct CompletionsArgs {
    /// The shell that is to complete.
    shell: Shell,
}

/// The flags of `man`.
#[derive(Args, Clone, Debug)]
pub struct ManArgs {
    /// The folder to write the pages to, such as /usr/local/share/man/man1.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// A shell's completions of a program.
///
/// # Errors
/// Completions that are no text.
pub fn completions(program: &'static str, command: &Command, args: &CompletionsArgs) -> Result<String> {
    let mut command = without_hidden(program, command);
    let mut written = Vec::new();
    clap_complete::generate(args.shell, &mut command, program, &mut written);
    String::from_utf8(written).context("the completions are no text")
}

/// Writes a program's manual pages, one of the whole and one of each command; how many.
///
/// # Errors
/// A folder or a file that cannot be written.
pub fn man(program: &'static str, command: &Command, args: &ManArgs) -> Result<usize> {
    let mut command = without_hidden(program, command).disable_help_subcommand(true);
    command.build();
    let pages = pages(&command)?;
    fs::create_dir_all(&args.folder).with_context(|| format!("cannot make the folder {}", args.folder.display()))?;
    for (name, page) in &pages {
        output::write(&args.folder.join(format!("{name}.1")), page)?;
    }
    Ok(pages.len())
}

/// The pages of a command and those below it, by their names.
fn pages(command: &Command) -> Result<BTreeMap<String, Vec<u8>>> {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page)?;
    let mut found = BTreeMap::from([(name, page)]);
    for below in command.get_subcommands() {
        found.append(&mut pages(below)?);
    }
    Ok(found)
}

/// The command without those commands of it that its help does not show.
fn without_hidden(program: &'static str, command: &Command) -> Command {
    let shown = command.get_subcommands().filter(|below| !below.is_hide_set()).cloned();
    let mut whole = Command::new(program).version(env!("CARGO_PKG_VERSION"));
    whole = whole.args(command.get_arguments().cloned()).subcommands(shown);
    if let Some(about) = command.get_about() {
        whole = whole.about(about.clone());
    }
    if let Some(after) = command.get_after_help() {
        whole = whole.after_help(after.clone());
    }
    whole
}
