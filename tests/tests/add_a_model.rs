//! docs/add-a-model.md prints what its commands print; `BLESS=1` writes it there. Errors of comparisons, which differ between machines, are not compared.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use fuse_tests::{TempFolder, command, root};

#[test]
fn the_walk_through_prints_this() {
    let document = root().join("docs/add-a-model.md");
    let text = fs::read_to_string(&document).expect("the page is there");
    let folder = TempFolder::new();
    for shared in ["tests", "docs"] {
        symlink(root().join(shared), folder.path().join(shared)).expect("a scratch link");
    }
    let expected = root().join("tests/verify/nemotron/expected.safetensors");
    fs::copy(expected, folder.path().join("expected.safetensors")).expect("the file is there");
    let programs: Vec<PathBuf> = ["fusec", "fuserun"].map(|name| command(name).get_program().into()).into();
    let (mut written, mut commands, mut wrong) = (String::new(), 0, Vec::new());
    for (index, part) in text.split("```console\n").enumerate() {
        if index == 0 {
            written += part;
            continue;
        }
        let (block, rest) = part.split_once("```\n").expect("a block ends");
        let mut found = String::new();
        for line in block.lines().filter_map(|line| line.strip_prefix("$ ")) {
            commands += 1;
            found += &format!("$ {line}\n{}", output(line, &folder, &programs));
        }
        if masked(block) != masked(&found) {
            wrong.push(format!("== the page has\n{block}== the commands print\n{found}"));
        }
        written += &format!("```console\n{found}```\n{rest}");
    }
    assert!(commands >= 12, "{commands} commands");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&document, written).expect("the page can be written");
    } else {
        assert!(wrong.is_empty(), "{}\nBLESS=1 writes it", wrong.join("\n"));
    }
}

/// What a command prints on a terminal.
fn output(line: &str, folder: &TempFolder, programs: &[PathBuf]) -> String {
    let mut shell = Command::new("sh");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FUSE_")) {
        shell.env_remove(name);
    }
    let mut path: Vec<PathBuf> = programs.iter().filter_map(|path| Some(path.parent()?.to_path_buf())).collect();
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    shell
        .env("PATH", std::env::join_paths(path).expect("folders"))
        .env("HOME", folder.path())
        .env_remove("XDG_CONFIG_HOME");
    shell.current_dir(folder.path()).args(["-c", &format!("exec 2>&1; {line}")]);
    let done = shell.output().expect("a shell");
    let text = String::from_utf8(done.stdout).expect("programs write text");
    if text.is_empty() || text.ends_with('\n') { text } else { format!("{text}\n") }
}

/// A text with each number in scientific form as `*`.
fn masked(text: &str) -> String {
    let word = |word: &str| {
        let bare = word.trim_end_matches([',', ';']);
        let scientific = bare.contains("e-") && bare.parse::<f64>().is_ok();
        if scientific { "*".to_owned() } else { word.to_owned() }
    };
    let line = |line: &str| line.split(' ').map(word).collect::<Vec<_>>().join(" ");
    // Which value has the largest error depends on the last bits.
    let line = |text: &str| line(text.split(" (model.").next().unwrap_or(text));
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}
