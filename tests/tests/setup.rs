//! What helps someone who begins, and what lets every start work: the overview, the doctor, completions, manual pages, the cache of kernels.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use fuse_tests::{Finished, TempFolder, command, finish, nvrtc, on_terminal, root};
use fusec::build::{Compiled, Options, compile_all};
use fuserun::device::Gpu;
use serde_json::Value;

#[test]
fn alone_on_a_terminal_it_says_what_it_found_and_what_to_try() {
    let shown = on_terminal(&command("fuserun"), 100);
    assert_eq!((shown.code, shown.stderr.as_str()), (0, ""));
    let parts: Vec<&str> = shown.stdout.split("\n\n").collect();
    let [found, commands, more] = parts[..] else { panic!("three parts: {}", shown.stdout) };
    assert_eq!((found.lines().count(), commands.lines().count(), more.lines().count()), (3, 3, 1), "{}", shown.stdout);
    if Gpu::count() == 0 {
        assert!(found.starts_with("no NVIDIA GPU: models run on the CPU, "), "{found}");
    }
    assert!(found.contains("none in the hub's cache") && commands.contains("fuserun chat -m Qwen/Qwen3-0.6B --pull"));
    // Each is good usage; what is not there is not fetched.
    for line in commands.lines() {
        let typed = line.trim().split("   ").next().unwrap_or_default();
        let help = format!("\"$0\"{} --help", typed.strip_prefix("fuserun").expect("a command of the program"));
        let mut shell = Command::new("sh");
        let done = finish(shell.args(["-c", &help]).arg(command("fuserun").get_program()), "");
        assert_eq!(done.code, 0, "{typed}: {}", done.stderr);
    }

    let home = TempFolder::new();
    fs::create_dir_all(home.path().join("hub/models--owner--Name-1.5")).unwrap();
    let mut with_model = command("fuserun");
    with_model.env("HF_HOME", home.path());
    let shown = on_terminal(&with_model, 100).stdout;
    assert!(
        shown.contains("in the hub's cache owner/Name-1.5\n") && shown.contains("  fuserun serve -m owner/Name-1.5 "),
        "{shown}"
    );

    let piped = finish(&mut command("fuserun"), "");
    assert_eq!((piped.code, piped.stdout.as_str()), (2, ""));
    assert!(piped.stderr.contains("Usage: fuserun"), "{}", piped.stderr);
}

/// The doctor's object, and how it ended.
fn doctor(more: &[(&str, &str)]) -> (Finished, Value) {
    let done = finish(command("fuserun").args(["doctor", "--json"]).envs(more.iter().copied()), "");
    let object: Value = serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"));
    (done, object)
}

/// State, text and fix of a check.
fn check(object: &Value, name: &str) -> (String, String, String) {
    let checks = object["checks"].as_array().expect("a list");
    let found = checks.iter().find(|check| check["name"] == name);
    let found = found.unwrap_or_else(|| panic!("no check {name}: {object}"));
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (text("state"), text("said"), text("fix"))
}

#[test]
fn the_doctor_says_what_is_there_and_how_to_mend_it() {
    let (done, object) = doctor(&[]);
    let failed = object["checks"].as_array().unwrap().iter().filter(|check| check["state"] == "fail").count();
    assert_eq!((done.code, object["fail"].as_u64()), (i32::from(failed > 0), Some(failed as u64)), "{object}");
    for entry in object["checks"].as_array().unwrap() {
        let state = entry["state"].as_str().unwrap();
        assert!(["pass", "warn", "fail"].contains(&state) && !entry["said"].as_str().unwrap().is_empty(), "{entry}");
        assert_eq!(entry["fix"].is_string(), state != "pass", "{entry}");
    }
    assert_eq!(check(&object, "cache").0, "pass", "{object}");
    assert!(
        check(&object, "cpu").1.contains("threads") && check(&object, "hub").1.contains("0 models, no token"),
        "{object}"
    );
    match Gpu::count() {
        0 => assert_eq!((done.code, check(&object, "driver").0.as_str()), (0, "warn"), "{object}"),
        _ => assert_eq!(check(&object, "kernel").0, "pass", "{object}"),
    }
    let lines = finish(command("fuserun").arg("doctor"), "");
    assert_eq!(lines.code, done.code);
    let stated =
        lines.stdout.lines().filter(|line| ["PASS", "WARN", "FAIL"].iter().any(|state| line.starts_with(state)));
    assert_eq!(stated.count(), object["checks"].as_array().unwrap().len(), "{}", lines.stdout);
}

#[test]
fn the_doctor_fails_on_what_is_named_and_not_there() {
    let (done, object) = doctor(&[("FUSE_NVRTC", "/nonexistent/nvrtc")]);
    let (state, said, fix) = check(&object, "nvrtc");
    assert_eq!((done.code, state.as_str()), (1, "fail"), "{object}");
    assert!(said.contains("/nonexistent/nvrtc") && fix.contains("pip install"), "{said}; {fix}");
    assert!(done.stderr.starts_with("error: ") && done.stderr.contains(" checks failed: "), "{}", done.stderr);

    let folder = TempFolder::new();
    let file = folder.write("file", "");
    let other = folder.path().join("bin");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("fuserun"), "").unwrap();
    fs::set_permissions(other.join("fuserun"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", other.display(), std::env::var("PATH").unwrap_or_default());
    let nowhere = file.join("below").display().to_string();
    let (_, object) = doctor(&[("FUSE_CACHE", &nowhere), ("PATH", &path), ("HF_ENDPOINT", "huggingface.co")]);
    let (state, said, fix) = check(&object, "cache");
    assert!(state == "warn" && said.contains("cannot be written") && fix.contains("FUSE_CACHE"), "{object}");
    let (state, said, _) = check(&object, "name:fuserun");
    assert!(state == "warn" && said.starts_with(&other.display().to_string()), "{object}");
    let (state, said, _) = check(&object, "hub");
    assert!(state == "warn" && said.contains("HF_ENDPOINT=huggingface.co is no address"), "{object}");
}

/// A driver without a GPU behind it: what it says is told, and kernels need NVRTC.
#[test]
fn the_doctor_looks_at_each_gpu() {
    let folder = TempFolder::new();
    let source = root().join("runtime/tests/fake_driver/libcuda.c");
    for name in ["libcuda.so", "libcuda.so.1"] {
        let output = folder.path().join(name);
        let done = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(output).arg(&source).status();
        assert!(done.as_ref().is_ok_and(|status| status.success()), "a C compiler is needed (cc): {done:?}");
    }
    let library = folder.path().display().to_string();
    let (done, object) = doctor(&[("LD_LIBRARY_PATH", &library), ("FUSE_NVRTC", "/nonexistent")]);
    let (state, said, _) = check(&object, "driver");
    assert!(state == "pass" && said.starts_with("CUDA ") && said.ends_with(" GPU"), "{object}");
    assert!(check(&object, "cuda:0").1.contains(" GB free"), "{object}");
    assert_eq!((done.code, check(&object, "nvrtc").0.as_str()), (1, "fail"), "{object}");
}

#[test]
fn shells_complete_commands_and_flags() {
    for program in ["fuserun", "fusec"] {
        for shell in ["bash", "zsh", "fish"] {
            let done = finish(command(program).args(["completions", shell]), "");
            assert_eq!((done.code, done.stderr.as_str()), (0, ""));
            assert!(done.stdout.contains(program) && done.stdout.contains("completions"), "{}", done.stdout);
            let hidden = ["__measure", "'measure:", "-a \"measure\""].iter().any(|form| done.stdout.contains(form));
            assert!(!hidden, "what the help does not show is not completed");
        }
    }
    let completed = |words: &str| {
        let script = format!(
            "source <(\"$0\" completions bash); COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _fuserun fuserun \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let mut bash = Command::new("bash");
        let done = finish(bash.args(["-c", &script]).arg(command("fuserun").get_program()), "");
        assert_eq!(done.code, 0, "{}", done.stderr);
        done.stdout.lines().map(str::to_owned).collect::<Vec<String>>()
    };
    assert_eq!(completed("fuserun gen"), ["generate"]);
    assert!(completed("fuserun serve --sl").contains(&"--slots".to_owned()));
    let wrong = finish(command("fuserun").args(["completions", "csh"]), "");
    assert!(wrong.code == 2 && wrong.stderr.contains("[possible values: "), "{}", wrong.stderr);
}

#[test]
fn each_command_has_a_manual_page() {
    let folder = TempFolder::new();
    let pages = folder.path().join("share/man1");
    for program in ["fuserun", "fusec"] {
        let done = finish(command(program).arg("man").arg(&pages), "");
        assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{}", done.stderr);
        let whole = fs::read_to_string(pages.join(format!("{program}.1"))).unwrap();
        let names: Vec<String> =
            fs::read_dir(&pages).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let own = names.iter().filter(|name| name.starts_with(&format!("{program}-"))).count();
        assert_eq!(done.stderr, format!("wrote {} pages\n", own + 1));
        for name in names.iter().filter_map(|name| name.strip_prefix(&format!("{program}-"))) {
            assert!(whole.contains(&name.trim_end_matches(".1").replace('-', "\\-")), "{name} in {whole}");
        }
    }
    let pull = fs::read_to_string(pages.join("fuserun-pull.1")).unwrap();
    assert!(pull.starts_with(".ie") && pull.contains("fuserun\\-pull") && pull.contains("HF_HUB_CACHE"), "{pull}");
    assert!(!pages.join("fuserun-measure.1").exists());
    let file = folder.write("file", "");
    let done = finish(command("fuserun").arg("man").arg(file.join("below")), "");
    assert!(done.code == 1 && done.stderr.starts_with("error: cannot make the folder "), "{}", done.stderr);
}

/// Names the cache of a run that is started by a test, and compiles into it.
const CACHE: &str = "FUSE_TEST_CACHE";

/// Compiles a few kernels into a cache.
fn compile(cache: &Path) -> BTreeMap<String, Compiled> {
    let source = |number: u32| {
        format!("extern \"C\" __global__ void k{number}(float* x) {{ x[threadIdx.x] = x[threadIdx.x] * {number}.5f; }}")
    };
    let sources = (0..8).map(|number| (format!("k{number}"), source(number))).collect();
    let options = Options { cache: Some(cache.to_owned()), ..Options::default() };
    compile_all(nvrtc(), &sources, "sm_90a".parse().unwrap(), &options).unwrap()
}

/// However an earlier start ended, and whoever compiles beside it, the next one has the same code, and keeps it.
#[test]
fn the_cache_outlives_kills_and_is_shared() {
    if let Some(cache) = std::env::var_os(CACHE) {
        compile(Path::new(&cache));
        return;
    }
    let folder = TempFolder::new();
    let cache = folder.path().join("kernels");
    let again = || {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again
            .args(["--exact", "the_cache_outlives_kills_and_is_shared"])
            .env(CACHE, &cache)
            .env("FUSE_NVRTC", nvrtc().path());
        again.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    for wait in [20, 60, 100, 140, 180, 250] {
        let mut killed = again();
        sleep(Duration::from_millis(wait));
        killed.kill().unwrap();
        killed.wait().unwrap();
    }
    let both = [again(), again()];
    for mut run in both {
        assert!(run.wait().unwrap().success());
    }
    let other = TempFolder::new();
    assert_eq!(compile(&cache), compile(other.path()));
    let kept = |end: &str| {
        let names = fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(end) && !name.starts_with('.')).count()
    };
    assert_eq!((kept(".cubin"), kept(".log")), (8, 8));
}

/// A cache that takes nothing is no reason not to start: a line says so.
#[test]
fn a_cache_that_cannot_be_written_is_done_without() {
    if let Some(cache) = std::env::var_os(CACHE) {
        assert_eq!(compile(Path::new(&cache)).len(), 8);
        return;
    }
    let folder = TempFolder::new();
    let said = "compiled kernels are not kept, and the next start compiles them again: ";
    let run = |program: &mut Command, cache: &Path| {
        program.args(["--exact", "a_cache_that_cannot_be_written_is_done_without", "--nocapture"]);
        let done = finish(program.env(CACHE, cache).env("FUSE_NVRTC", nvrtc().path()), "");
        assert!(done.code == 0 && done.stderr.matches(said).count() == 1, "{done:?}");
        done.stderr
    };
    let own = std::env::current_exe().unwrap();
    let below_a_file = folder.write("file", "").join("kernels");
    let stderr = run(&mut Command::new(&own), &below_a_file);
    assert!(stderr.contains("cannot make the cache folder"), "{stderr}");

    // As on a full disk, no file takes a byte.
    let full = folder.path().join("full");
    let stderr = run(Command::new("prlimit").args(["--fsize=0", "--"]).arg(&own), &full);
    assert!(stderr.contains("cannot write "), "{stderr}");
    assert_eq!(fs::read_dir(&full).unwrap().count(), 0, "nothing half is left");
}
