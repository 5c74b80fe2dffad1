//! The command lines of both programs: help, variables, and what is for a terminal only.

use fuse_tests::{Finished, command, finish, on_terminal};

/// The help of each command of a program, and of the program itself.
fn helps(program: &'static str, columns: &str) -> Vec<String> {
    let help = |arguments: &[&str]| {
        let done = finish(command(program).args(arguments).env("COLUMNS", columns), "");
        assert_eq!(done.code, 0, "{arguments:?}: {}", done.stderr);
        done.stdout
    };
    let whole = help(&["--help"]);
    let listed = whole.lines().skip_while(|line| *line != "Commands:").skip(1);
    let indented = |line: &&str| line.starts_with("  ") && !line.starts_with("   ");
    let names = listed.take_while(|line| !line.is_empty()).filter(indented);
    let names: Vec<&str> = names.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.len() > 5, "{names:?}");
    let commands = names.iter().filter(|name| **name != "help").map(|name| help(&[name, "--help"]));
    let commands: Vec<String> = commands.collect();
    [vec![whole], commands].concat()
}

#[test]
fn help_fits_the_terminal() {
    for program in ["fuserun", "fusec"] {
        for (columns, most) in [("60", 60), ("100", 100), ("500", 120)] {
            for help in helps(program, columns) {
                let lines = help.lines().filter(|line| !line.starts_with("Usage:"));
                let longest = lines.max_by_key(|line| line.chars().count()).unwrap_or_default();
                assert!(longest.chars().count() <= most, "{columns} columns: {longest}");
            }
        }
    }
    let shown =
        |columns| on_terminal(command("fuserun").args(["generate", "--help"]).env("NO_COLOR", "1"), columns).stdout;
    let (wide, narrow) = (shown(140), shown(50));
    assert!(narrow.lines().all(|line| line.chars().count() <= 50), "{narrow}");
    assert!(wide.lines().any(|line| line.chars().count() > 100), "{wide}");
}

/// A key or a path of the user's is nothing for a screen that others see.
#[test]
fn help_names_variables_and_hides_what_they_hold() {
    for (program, arguments, variable) in [
        ("fuserun", ["generate", "--help"], "FUSE_MODEL"),
        ("fuserun", ["bench", "-h"], "FUSE_CHECKPOINT"),
        ("fusec", ["check", "--help"], "FUSE_CHECKPOINT"),
        ("fusec", ["tune", "--help"], "FUSE_CONFIG"),
    ] {
        let done = finish(command(program).args(arguments).env(variable, "a-secret-place"), "");
        let words: Vec<&str> = done.stdout.split_whitespace().collect();
        assert!(done.code == 0 && words.join(" ").contains(&format!("[env: {variable}]")), "{}", done.stdout);
        assert!(!done.stdout.contains("a-secret-place"), "{}", done.stdout);
    }
}

fn with_variables(program: &'static str, arguments: &[&str], variables: &[(&str, &str)]) -> Finished {
    finish(command(program).args(arguments).envs(variables.iter().copied()), "")
}

#[test]
fn bad_usage_by_a_variable_names_it() {
    let said = |program, arguments: &[&str], variables: &[(&str, &str)]| {
        let done = with_variables(program, arguments, variables);
        assert_eq!((done.code, done.stdout.as_str()), (2, ""), "{}", done.stderr);
        done.stderr.lines().next().unwrap_or_default().to_owned()
    };
    let generate = ["generate", "Call me"];
    assert_eq!(
        said("fuserun", &generate, &[("FUSE_MAX_TOKENS", "abc")]),
        "error: invalid value 'abc' for 'FUSE_MAX_TOKENS', the variable of '--max-tokens <MAX_TOKENS>': invalid digit found in string"
    );
    assert_eq!(
        said("fuserun", &["profile"], &[("FUSE_PROFILE_BATCH", "x"), ("FUSE_BATCH", "3")]),
        "error: invalid value 'x' for 'FUSE_PROFILE_BATCH', the variable of '--batch <BATCH>': invalid digit found in string"
    );
    for (name, value) in [
        ("FUSE_DEVICE", "gpu"),
        ("FUSE_TOP_P", "1.5"),
        ("FUSE_PASSES", "-fuse-mpl"),
        ("FUSE_THREADS", "0"),
        ("FUSE_SEED", "-2"),
        ("FUSE_MODEL", ""),
    ] {
        let line = said("fuserun", &generate, &[(name, value)]);
        assert!(line.contains(&format!("'{name}', the variable of '--")), "{line}");
    }
    let line = said("fusec", &["compile", "llama"], &[("FUSE_BATCH", "1,3")]);
    assert_eq!(line, "error: invalid value '3' for 'FUSE_BATCH', the variable of '--batch <N,…>'");
    // The one that was typed is at fault, and a flag goes before its variable.
    let line = said("fusec", &["compile", "llama", "--batch", "3"], &[("FUSE_BATCH", "5")]);
    assert_eq!(line, "error: invalid value '3' for '--batch <N,…>'");
    let both = ["generate", "Call me", "--device", "cpu", "-n", "2"];
    assert_eq!(with_variables("fuserun", &both, &[("FUSE_MAX_TOKENS", "abc")]).code, 0);
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_no_text_is_named() {
    use std::os::unix::ffi::OsStrExt;
    let bytes = std::ffi::OsStr::from_bytes(b"\xff");
    let done = finish(command("fuserun").args(["generate", "Call me"]).env("FUSE_STOP", bytes), "");
    let first = done.stderr.lines().next();
    assert_eq!((done.code, first), (2, Some("error: the variable FUSE_STOP, read as '--stop <TEXT>', is not UTF-8")));
}

#[test]
fn a_failure_names_the_variables_that_it_is_about() {
    let long = ["generate", "--device", "cpu", "Call me anything but that, my friend"];
    let done = with_variables("fuserun", &long, &[("FUSE_MAX_CONTEXT", "4"), ("FUSE_MAX_TOKENS", "9")]);
    let note = "\nnote: in the environment, FUSE_MAX_CONTEXT sets --max-context\n";
    assert!(done.code == 1 && done.stderr.ends_with(note), "{}", done.stderr);
    let done = with_variables("fuserun", &["generate", "Call me"], &[("FUSE_MODEL", "no-such-model")]);
    assert!(done.stderr.ends_with("\nnote: in the environment, FUSE_MODEL sets --model\n"), "{}", done.stderr);
    let done = with_variables("fusec", &["check"], &[("FUSE_CHECKPOINT", "no-such-model")]);
    assert!(
        done.stderr.ends_with("\nnote: in the environment, FUSE_CHECKPOINT sets --checkpoint\n"),
        "{}",
        done.stderr
    );
    let typed = [&long[..], &["--max-context", "4"]].concat();
    let done = with_variables("fuserun", &typed, &[("FUSE_MAX_CONTEXT", "5")]);
    assert!(done.code == 1 && !done.stderr.contains("note:"), "{}", done.stderr);
}
