//! Every file that a user names is written as a shell's `>` would: into devices, pipes and what links name, with the permissions of the umask.
#![cfg(unix)]

use std::ffi::OsStr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use fuse_tests::{Finished, TempFolder, as_nobody, command, finish};

/// The commands that write a file which `-o` names.
const WRITERS: [(&str, &[&str]); 3] = [
    ("fuserun", &["logits", "--device", "cpu", "--tokens", "1,2"]),
    ("fusec", &["compile", "llama"]),
    ("fusec", &["new", "--from", "tests/goldens/llama-tied"]),
];

/// One of them, told to write `output`; without NVRTC, so that compiling takes no time.
fn writer(index: usize, output: impl AsRef<OsStr>) -> Command {
    let (program, arguments) = WRITERS[index];
    let mut command = command(program);
    command.args(arguments).arg("-o").arg(output).env("FUSE_NVRTC", "/nonexistent").current_dir(fuse_tests::root());
    command
}

fn run(command: &mut Command) -> Finished {
    let done = finish(command, "");
    assert_eq!(done.code, 0, "{command:?}: {}", done.stderr);
    done
}

/// The command with its arguments, started by a shell that does `before` to itself.
fn after(before: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{before}; exec \"$@\""), "sh"]).arg(command.get_program()).args(command.get_args());
    command.get_envs().for_each(|(name, value)| {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    });
    shell.current_dir(fuse_tests::root());
    shell
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

#[test]
fn files_have_the_permissions_of_the_umask_and_links_stay() {
    for index in 0..WRITERS.len() {
        let folder = TempFolder::new();
        let at = |name: &str| folder.path().join(name);
        for (umask, bits) in [("umask 022", 0o644), ("umask 007", 0o660), ("umask 0", 0o666)] {
            let file = at(&format!("{bits:o}"));
            run(&mut after(umask, &writer(index, &file)));
            assert_eq!(mode(&file), bits, "{umask}");
        }
        symlink("target", at("link")).unwrap();
        run(&mut writer(index, at("link")));
        assert!(at("link").is_symlink());
        assert_eq!(std::fs::read(at("target")).unwrap(), std::fs::read(at("666")).unwrap());
        assert_eq!(folder.path().read_dir().unwrap().count(), 5, "nothing else is left");
    }
}

#[test]
fn devices_pipes_and_stdout_are_written_to() {
    for index in 0..WRITERS.len() {
        let folder = TempFolder::new();
        let at = |name: &str| folder.path().join(name);
        run(&mut writer(index, at("file")));
        let expected = std::fs::read(at("file")).unwrap();
        run(&mut writer(index, "/dev/null"));
        assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        let read = std::fs::File::create(at("read")).unwrap();
        let mut reader = Command::new("cat").arg(at("pipe")).stdout(read).spawn().unwrap();
        run(&mut writer(index, at("pipe")));
        assert!(reader.wait().unwrap().success() && std::fs::read(at("read")).unwrap() == expected);
        assert!(std::fs::metadata(at("pipe")).unwrap().file_type().is_fifo());
        for stdout in ["-", "/dev/stdout", "/proc/self/fd/1"] {
            let out = writer(index, stdout).stderr(Stdio::null()).output().unwrap();
            assert!(out.status.success() && out.stdout == expected, "{stdout}");
        }
        // What the shell appends to is appended to.
        folder.write("appended", "first\n");
        let mut append = after(&format!("exec >>{}", at("appended").display()), &writer(index, "/dev/stdout"));
        run(&mut append);
        assert!(std::fs::read(at("appended")).unwrap() == [b"first\n", &expected[..]].concat());
        assert!(!std::fs::exists("-").unwrap() && !fuse_tests::root().join("-").exists());
        let full = finish(&mut writer(index, "/dev/full"), "");
        assert_eq!(full.code, 1);
        assert!(full.stderr.contains("cannot write /dev/full: No space left on device"), "{}", full.stderr);
    }
}

#[test]
fn a_write_that_fails_leaves_what_was_there() {
    for index in 0..2 {
        let folder = TempFolder::new();
        let file = folder.write("out", "what was there");
        let done = finish(&mut after("ulimit -f 1", &writer(index, &file)), "");
        assert_eq!(done.code, 1, "{}", done.stderr);
        assert!(
            done.stderr.contains("out: ") && done.stderr.contains("beyond the limit of ulimit -f"),
            "{}",
            done.stderr
        );
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "what was there");
        assert_eq!(folder.path().read_dir().unwrap().count(), 1, "no partial file stays");
    }
}

/// As a user whom permissions bind. Only root can become one.
#[test]
fn a_folder_that_takes_no_file() {
    let (folder, programs) = (TempFolder::new(), TempFolder::new());
    let own = folder.write("own", "old");
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o666)).unwrap();
    let Some(_) = as_nobody("fuserun", programs.path(), 9) else { return };
    let logits = |output: &Path| {
        let mut command = as_nobody("fuserun", programs.path(), 9).unwrap();
        finish(command.args(WRITERS[0].1).arg("-o").arg(output), "")
    };
    let new = logits(&folder.path().join("new"));
    assert_eq!(new.code, 1);
    let expected = format!("error: cannot write {}/new: Permission denied (os error 13)\n", folder.path().display());
    assert!(new.stderr.ends_with(&expected), "{}", new.stderr);
    // One that may be written is.
    assert_eq!(logits(&own).code, 0);
    assert_ne!(std::fs::read(&own).unwrap(), b"old");
    let theirs = folder.write("theirs", "old");
    let refused = logits(&theirs);
    assert!(refused.code == 1 && refused.stderr.contains("theirs: Permission denied"), "{}", refused.stderr);
    assert_eq!(folder.path().read_dir().unwrap().count(), 2);
}
