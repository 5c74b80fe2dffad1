//! What the commands of both programs share: a command line is read and run, results go to stdout, everything else to stderr.
//!
//! An error that the environment causes names the variable, and what variables hold stays out of the help.

pub mod pages;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory, Error, Parser};

/// The help takes no more columns than this, however wide the terminal is.
const WIDEST: usize = 120;

/// A value of fewer letters may stand in a message by chance.
const TELLING: usize = 3;

/// Reads the command line of this process and runs it: exit code 0 done, 1 failed, 2 bad usage.
pub fn run<P: Parser>(work: impl FnOnce(P) -> Result<()>) -> ExitCode {
    let command = command::<P>();
    let given: Vec<OsString> = std::env::args_os().collect();
    let parsed = command.clone().try_get_matches_from(&given).and_then(|matches| {
        let arguments = P::from_arg_matches(&matches)?;
        Ok((arguments, from_environment(&command, &matches)))
    });
    let (arguments, settings) = parsed.unwrap_or_else(|error| blamed(error, command, &given).exit());
    let done = work(arguments);
    let note = done.as_ref().err().and_then(|error| note(&format!("{error:#}"), &settings));
    let code = exit(done);
    note.into_iter().for_each(tell);
    code
}

/// The whole of a program's command line, as its help has it.
pub fn command<P: CommandFactory>() -> Command {
    prepared(P::command())
}

/// Writes to stdout. A reader that has gone away wants no more, which is no failure.
///
/// # Errors
/// Where stdout cannot be written for another reason.
pub fn show(text: impl Display) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("cannot write to stdout"),
        _ => Ok(()),
    }
}

/// Writes a line to stderr, where there is one.
pub fn tell(line: impl Display) {
    // With no stderr there is nobody to tell.
    let _ = writeln!(io::stderr(), "{line}");
}

/// The exit code of a command; says on stderr why it failed.
pub fn exit(done: Result<()>) -> ExitCode {
    let Err(error) = done else { return ExitCode::SUCCESS };
    let text = format!("{error:#}");
    let text = text.trim_end();
    // Errors about a description come rendered, each with its own title.
    if text.starts_with("error[") || text.starts_with("error:") {
        tell(text)
    } else {
        tell(format!("error: {text}"))
    }
    ExitCode::FAILURE
}

/// The command with what holds for each of its commands.
fn prepared(command: Command) -> Command {
    let command = command.max_term_width(WIDEST).mut_args(|arg| arg.hide_env_values(true));
    command.mut_subcommands(prepared)
}

/// The command without its variables.
fn without_variables(command: Command) -> Command {
    command.mut_args(|arg| arg.env(Resettable::Reset)).mut_subcommands(without_variables)
}

/// A usage error; one that is not there without the environment names the variable.
fn blamed(mut error: Error, mut command: Command, given: &[OsString]) -> Error {
    if !error.use_stderr() {
        return error;
    }
    let other = without_variables(command.clone()).try_get_matches_from(given).err();
    if other.is_some_and(|other| other.to_string() == error.to_string()) {
        return error;
    }
    command.build();
    let name = given.get(1).and_then(|name| name.to_str()).unwrap_or_default();
    let Some(command) = command.find_subcommand(name) else { return error };
    let variable = |arg: &Arg| arg.get_env().map(|name| name.to_string_lossy().into_owned());
    if error.kind() == ErrorKind::InvalidUtf8 {
        let is_text =
            |arg: &&Arg| arg.get_env().and_then(std::env::var_os).is_none_or(|value| value.to_str().is_some());
        let Some(arg) = command.get_arguments().find(|arg| !is_text(arg)) else { return error };
        let message = format!("the variable {}, read as '{arg}', is not UTF-8", variable(arg).unwrap_or_default());
        return command.clone().error(ErrorKind::InvalidUtf8, message);
    }
    let Some(ContextValue::String(blamed)) = error.get(ContextKind::InvalidArg) else { return error };
    let Some(arg) = command.get_arguments().find(|arg| arg.to_string() == *blamed) else { return error };
    if let Some(variable) = variable(arg) {
        // The message quotes the whole.
        let named = format!("{variable}', the variable of '{arg}");
        error.insert(ContextKind::InvalidArg, ContextValue::String(named));
    }
    error
}

/// A flag that was not given and has its value from a variable.
struct Setting {
    flag: String,
    variable: String,
    value: String,
}

fn from_environment(command: &Command, matches: &ArgMatches) -> Vec<Setting> {
    let Some((name, matches)) = matches.subcommand() else { return Vec::new() };
    let setting = |arg: &Arg| {
        let name =
            arg.get_env().filter(|_| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::EnvVariable))?;
        Some(Setting {
            flag: arg
                .get_long()
                .map(|long| format!("--{long}"))
                .or(arg.get_short().map(|short| format!("-{short}")))?,
            variable: name.to_string_lossy().into_owned(),
            value: std::env::var(name).unwrap_or_default(),
        })
    };
    command.find_subcommand(name).into_iter().flat_map(Command::get_arguments).filter_map(setting).collect()
}

/// Which of the settings a failure is about.
fn note(message: &str, settings: &[Setting]) -> Option<String> {
    let whole = |flag: &str| {
        let ends = |rest: &str| !rest.starts_with(|letter: char| letter.is_ascii_alphanumeric() || letter == '-');
        message.match_indices(flag).any(|(at, _)| ends(&message[at + flag.len()..]))
    };
    let concerned = |setting: &&Setting| {
        whole(&setting.flag) || (setting.value.len() >= TELLING && message.contains(&setting.value))
    };
    let told = |Setting { flag, variable, .. }: &Setting| format!("{variable} sets {flag}");
    let told: Vec<String> = settings.iter().filter(concerned).map(told).collect();
    (!told.is_empty()).then(|| format!("note: in the environment, {}", told.join(" and ")))
}
