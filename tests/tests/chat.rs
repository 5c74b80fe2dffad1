//! `fuserun chat` with the demo model: turns, commands, and what ends an answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use fuse_tests::{Finished, TempFolder, command, finish, fuserun};
use fuserun::demo;
use serde_json::{Value, json};

fn chat(arguments: &[&str], input: &str) -> Finished {
    let done = fuserun(&[&["chat", "--device", "cpu", "--threads", "1"], arguments].concat(), input);
    assert_eq!(done.code, 0, "{}", done.stderr);
    done
}

#[test]
fn turns_are_answered_one_after_the_other() {
    let greedy = ["--temperature", "0", "-n", "12"];
    let done = chat(&greedy, "Where is the whale?\nAnd where is Ahab?\n");
    let answers: Vec<&str> = done.stdout.lines().collect();
    let [first, second] = answers[..] else { panic!("two answers: {done:?}") };
    let generated = fuserun(
        &["generate", "--device", "cpu", "--temperature", "0", "--chat", "Where is the whale?", "-n", "12"],
        "",
    );
    assert_eq!(generated.stdout.lines().next(), Some(first), "{generated:?}");
    // The second answer has the first turn before it.
    let alone = chat(&greedy, "And where is Ahab?\n");
    assert_ne!(alone.stdout.lines().next(), Some(second));
    let cleared = chat(&greedy, "Where is the whale?\n/clear\nAnd where is Ahab?");
    assert_eq!(cleared.stdout.lines().nth(1), alone.stdout.lines().next());
    // Text that is told first changes the answer, and a turn may have several lines.
    assert_ne!(
        chat(&[&greedy[..], &["--system", "A stormy night."]].concat(), "Where is the whale?").stdout.lines().next(),
        Some(first)
    );
    let several = chat(&greedy, "\"\"\"Where is\nthe whale?\n\"\"\"\n");
    assert_eq!(several.stdout.lines().count(), 1, "{several:?}");
}

#[test]
fn commands_change_the_conversation() {
    let folder = TempFolder::new();
    let file = folder.path().join("talk.json");
    let file = file.to_str().unwrap();
    let done = chat(
        &["--seed", "7"],
        &format!("/system A gam.\nHast seen the whale?\n/regen\n/set temperature 0\n/save {file}\n"),
    );
    let answers: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(answers.len(), 2, "{done:?}");
    assert_ne!(answers[0], answers[1], "another answer has another seed");
    let saved: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(
        saved["messages"],
        json!([
            {"role": "system", "content": "A gam."},
            {"role": "user", "content": "Hast seen the whale?"},
            {"role": "assistant", "content": answers[1]},
        ])
    );
    assert_eq!((&saved["settings"]["temperature"], &saved["settings"]["seed"]), (&json!(0), &json!(7)));
    let again = chat(&[], &format!("/load {file}\nAnd then?\n/set\n"));
    assert!(again.stderr.contains("loaded 2 messages") && again.stderr.contains("temperature 0"), "{again:?}");
    let first = again.stdout;
    assert_eq!(
        chat(&["--temperature", "1"], &format!("/load {file}\nAnd then?\n")).stdout,
        first,
        "settings come with it"
    );
}

#[test]
fn what_goes_wrong_is_told_and_the_chat_goes_on() {
    let long = "whale ".repeat(1100);
    let input = format!(
        "/nothing\n/regen\n/set temperature -1\n/set top_a 1\n/load nowhere.json\n/save\n{long}\n/set temperature 0\nWhere is the whale?\n/exit\nnever read\n"
    );
    let done = chat(&["-n", "12"], &input);
    for part in [
        "/nothing is no command",
        "there is no turn to answer again",
        "`settings.temperature` is -1",
        "`settings.top_a` is no variable",
        "cannot read nowhere.json",
        "/save needs a FILE",
        "the context holds 1024",
    ] {
        assert!(done.stderr.contains(part), "{part}: {}", done.stderr);
    }
    assert_eq!(done.stdout, chat(&["--temperature", "0", "-n", "12"], "Where is the whale?").stdout);
    let folder = fuse_tests::root().join("models/demo");
    let none = fuserun(&["chat", "--device", "cpu", "-m", folder.to_str().unwrap()], "");
    assert_eq!(none.code, 1);
    assert!(none.stderr.contains("has no chat template: use `fuserun generate`"), "{}", none.stderr);
}

#[test]
fn an_interrupt_ends_the_answer_and_not_the_chat() {
    let mut chat = command("fuserun");
    chat.args(["chat", "--device", "cpu", "--threads", "1", "--temperature", "0"]);
    let mut child = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    // No token that ends a turn, so that the answer goes on to the end of the context.
    let tokenizer = demo::tokenizer().unwrap();
    let ends = |id: &u32| tokenizer.decode(&[*id], false).is_ok_and(|text| text.contains(['"', '\n']) || *id == 0);
    let bias: serde_json::Map<String, Value> =
        (0..4096).filter(ends).map(|id: u32| (id.to_string(), json!(-100))).collect();
    writeln!(stdin, "/set logit_bias {}\nWhere is the whale?", Value::Object(bias)).unwrap();
    let mut first = [0];
    stdout.read_exact(&mut first).unwrap();
    let interrupted = Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let tokens = tokenizer.encode(&line, false).unwrap().len();
    assert!(tokens < 900, "the answer was cut: {tokens} tokens");
    writeln!(stdin, "/set logit_bias\nAnd Ahab?").unwrap();
    drop(stdin);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest.lines().count(), 1, "the next turn is answered: {rest}");
    assert!(child.wait().unwrap().success());
}

/// Types at a terminal, and prints what is shown there.
const TYPIST: &str = "
import os, pty, sys, time, select
child, terminal = pty.fork()
if child == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
shown, seen = b'', 0
def wait(mark, typed):
    global shown, seen
    end = time.time() + 60
    while mark not in shown[seen:] and time.time() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                shown += os.read(terminal, 4096)
            except OSError:
                return
    seen = shown.find(mark, seen) + len(mark)
    os.write(terminal, typed)
wait(b'> ', b'Where is the wale\\x1b[D\\x1b[D\\x1b[Dh\\x05?\\r')
wait(b'as long as it may be', b'')
wait(b'> ', b'\\x03')
wait(b'ends the chat', b'')
wait(b'> ', b'\\x04')
wait(b'never shown', b'')
sys.stdout.buffer.write(shown)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
";

#[test]
fn lines_are_edited_at_a_terminal_and_kept() {
    let folder = TempFolder::new();
    let program = command("fuserun").get_program().to_owned();
    let mut typist = Command::new("python3");
    typist.args(["-c", TYPIST]).arg(program).args([
        "chat",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--temperature",
        "0",
        "-n",
        "12",
    ]);
    let done = finish(typist.env("FUSE_CACHE", folder.path()).env("TERM", "xterm"), "");
    assert_eq!(done.code, 0, "{done:?}");
    let answer = chat(&["--temperature", "0", "-n", "12"], "Where is the whale?").stdout;
    assert!(done.stdout.contains(answer.trim_end()), "{answer} in {}", done.stdout);
    let kept = std::fs::read_to_string(folder.path().join("chat/history")).unwrap();
    assert!(kept.lines().any(|line| line == "Where is the whale?"), "{kept}");
}
