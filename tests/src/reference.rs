//! docs/reference.md, made of the flags that both programs have.

use clap::{Arg, ArgAction, Command};

/// What stands above the flags.
const HEAD: &str = "\
# Reference of commands and flags

Made of the programs' own flags: `BLESS=1 cargo test -p fuse-tests --test documents` writes it. [guide.md](guide.md) says how they go together. Each flag reads the variable beside it where it is not
given; exit code 0 is done, 1 failed, 2 bad usage.
";

/// The text of docs/reference.md.
pub fn reference(programs: Vec<Command>) -> String {
    let mut text = HEAD.to_owned();
    for mut program in programs {
        program = program.disable_help_subcommand(true);
        program.build();
        text.push_str(&format!("\n# {}\n{}.\n", program.get_name(), about(&program)));
        let shown = program.get_subcommands().filter(|command| !command.is_hide_set());
        shown.for_each(|command| text.push_str(&section(&program, command)));
    }
    text
}

/// A command: its usage, and a table of what it takes.
fn section(program: &Command, command: &Command) -> String {
    let name = format!("{} {}", program.get_name(), command.get_name());
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").trim();
    let mut text = format!("\n## {name}\n{}.\n\n```text\n{usage}\n```\n", about(command));
    let shown: Vec<&Arg> = command.get_arguments().filter(|arg| !arg.is_hide_set() && arg.get_id() != "help").collect();
    if !shown.is_empty() {
        text.push_str("\n| flag | variable | default | what |\n| --- | --- | --- | --- |\n");
    }
    shown.into_iter().for_each(|arg| text.push_str(&row(arg)));
    text
}

fn row(arg: &Arg) -> String {
    let value = match arg.get_action() {
        ArgAction::Set | ArgAction::Append => {
            let names = arg.get_value_names().into_iter().flatten();
            names.map(|name| format!(" {name}")).collect()
        }
        _ => String::new(),
    };
    let short = arg.get_short().map(|short| format!("`-{short}`"));
    let long = arg.get_long().map(|long| format!("`--{long}{value}`"));
    let flags: Vec<String> = short.into_iter().chain(long).collect();
    let flags = if flags.is_empty() { format!("`{}`", value.trim()) } else { flags.join(", ") };
    let variable = arg.get_env().map_or(String::new(), |name| format!("`{}`", name.to_string_lossy()));
    let takes_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    let default: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let default = if takes_value && !default.is_empty() { format!("`{}`", default.join(",")) } else { String::new() };
    let possible: Vec<String> = match takes_value {
        true => arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect(),
        false => Vec::new(),
    };
    let help = arg.get_long_help().or(arg.get_help()).map_or(String::new(), ToString::to_string);
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let help = if possible.is_empty() { help } else { format!("{} One of {}.", help, possible.join(", ")) };
    format!("| {flags} | {variable} | {default} | {} |\n", help.replace('|', "\\|"))
}

fn about(command: &Command) -> String {
    command.get_about().map_or(String::new(), ToString::to_string).trim_end_matches('.').to_owned()
}
