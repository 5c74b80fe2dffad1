//! The command lines of both programs: help, variables, and what is for a terminal only.

use std::process::Command;

use fuse_tests::{Finished, TempFolder, command, finish, fuserun, on_terminal, root};
use serde_json::Value;

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

#[test]
fn flags_stand_under_headings() {
    let help = fuserun(&["generate", "--help"], "").stdout;
    let sections: Vec<&str> = help.split("\n\n").collect();
    for (heading, flags) in [
        ("Arguments:\n", &["[PROMPT]..."][..]),
        ("Options:\n", &["--max-tokens", "--stop", "--json", "--help"]),
        ("Model and device:\n", &["--model", "--device", "--threads"]),
        ("Sampling:\n", &["--temperature", "--seed"]),
        ("Examples:\n", &["fuserun generate"]),
    ] {
        let found: Vec<_> = sections.iter().filter(|section| section.starts_with(heading)).collect();
        let [section] = found[..] else { panic!("one section {heading}: {help}") };
        assert!(flags.iter().all(|flag| section.contains(flag)), "{flags:?} in {section}");
    }
    let compile = finish(command("fusec").args(["compile", "--help"]), "").stdout;
    let (arguments, flags) = compile.split_once("\n\nOptions:").expect("flags come after arguments");
    assert!(arguments.contains("[MODEL]") && flags.contains("\nModel and passes:\n"), "{compile}");
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

#[test]
fn examples_are_good_usage() {
    let folder = TempFolder::new();
    folder.write("prompt.txt", "Call me");
    let mut count = 0;
    for program in ["fuserun", "fusec"] {
        let path = command(program).get_program().to_owned();
        for help in helps(program, "120") {
            let examples = help.split_once("\nExamples:\n").map_or("", |(_, examples)| examples);
            for line in examples.lines().take_while(|line| !line.is_empty()) {
                let example = line.trim_start().strip_prefix(program).expect("an example runs the program");
                // Without what its output goes to, and what it is said to be for.
                let example = example.split(" | ").next().and_then(|text| text.split("   ").next()).unwrap_or_default();
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("\"$0\"{example}")]).arg(&path).current_dir(folder.path());
                let done = finish(shell.env("FUSE_NVRTC", "/nonexistent").env("FUSE_CACHE", folder.path()), "");
                assert!(done.code == 0 || done.code == 1, "{line}: {}", done.stderr);
                count += 1;
            }
        }
    }
    assert!(count > 20, "{count} examples");
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
        ("FUSE_DEVICE", "tpu"),
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

#[test]
fn the_prompt_is_shown_on_a_terminal_only() {
    let arguments = ["generate", "--device", "cpu", "Call me", "-n", "9"];
    let piped = fuserun(&arguments, "");
    let object: Value = serde_json::from_str(&fuserun(&[&arguments[..], &["--json"]].concat(), "").stdout).unwrap();
    let text = object["text"].as_str().expect("a text");
    assert_eq!(piped.stdout, format!("{text}\n"));
    let shown = on_terminal(command("fuserun").args(arguments), 200);
    assert_eq!((shown.code, shown.stdout), (0, format!("Call me{text}\n")), "{}", shown.stderr);
}

#[test]
fn a_text_that_is_cut_short_says_so_on_a_terminal() {
    let said = |more: &[&str]| {
        let arguments = [&["generate", "--device", "cpu", "Call me", "--ignore-eos"], more].concat();
        assert!(!fuserun(&arguments, "").stderr.contains("stopped"), "not where nobody looks on");
        on_terminal(command("fuserun").args(arguments), 100).stderr
    };
    let first = |text: String| text.lines().next().unwrap_or_default().to_owned();
    let by_number = "stopped after 5 tokens, the most that are asked for; -n N sets another number";
    assert_eq!(first(said(&["-n", "5"])), by_number);
    let by_context = "stopped: the context of 16 positions is full; --max-context N sets another one";
    assert_eq!(first(said(&["--max-context", "16"])), by_context);
    let ended = said(&["-n", "5", "--stop", " "]);
    assert!(!ended.contains("stopped") && ended.contains("tok/s"), "{ended}");
}

#[test]
fn a_seed_of_minus_one_is_drawn_and_told() {
    let drawn = || {
        let done = fuserun(&["generate", "--device", "cpu", "Call me", "-n", "24", "--seed", "-1", "--json"], "");
        assert_eq!(done.code, 0, "{}", done.stderr);
        (serde_json::from_str::<Value>(&done.stdout).expect("an object"), done.stderr)
    };
    let ((first, said), (second, _)) = (drawn(), drawn());
    let seed = |object: &Value| object["sampling"]["seed"].as_u64().expect("a seed").to_string();
    assert_ne!(seed(&first), seed(&second));
    let line = format!("seed {0} was drawn: --seed {0} gives the same text again\n", seed(&first));
    assert_eq!(said, line);
    let again = ["generate", "--device", "cpu", "Call me", "-n", "24", "--json", "--seed", &seed(&first)];
    let again: Value = serde_json::from_str(&fuserun(&again, "").stdout).expect("an object");
    assert_eq!(again["tokens"], first["tokens"]);
}

#[test]
fn tokenize_needs_no_weights_and_reads_stdin() {
    let demo = root().join("models/demo");
    let folder = TempFolder::new();
    std::fs::copy(demo.join("tokenizer.json"), folder.path().join("tokenizer.json")).expect("the demo has one");
    let model = ["-m", folder.path().to_str().expect("a path")];
    let ids = |arguments: &[&str], input: &str| {
        let done = fuserun(&[&["tokenize"], arguments].concat(), input);
        assert_eq!((done.code, done.stderr.as_str()), (0, ""));
        done.stdout
    };
    let expected = ids(&["Call me"], "");
    assert!(expected.trim_end().split(',').all(|id| id.parse::<u32>().is_ok()), "{expected}");
    assert_eq!(ids(&[&model[..], &["Call me"]].concat(), ""), expected);
    assert_eq!(ids(&[&model[..], &["-"]].concat(), "Call me"), expected);
    assert_eq!(ids(&["--checkpoint", model[1], "-m", "any.fuse", "Call me"], ""), expected);
    let done = fuserun(&["tokenize", "-m", "any.fuse", "Call me"], "");
    assert!(done.code == 1 && done.stderr.contains("any.fuse has no tokenizer: add --checkpoint"), "{}", done.stderr);
}
