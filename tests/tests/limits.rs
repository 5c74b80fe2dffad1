//! Numbers that are too large, and processes that may start no thread: an error that names them, or a slower run, and no panic.

use std::path::Path;

use fuse_tests::{Finished, TempFolder, as_nobody, command, finish, fusec, fuserun, root};
use fusec::artifact::Artifact;
use fusec::build::{KernelReport, ResourceReport};
use serde_json::{Value, json};

const LARGEST: &str = "18446744073709551615";

/// One message and exit code 1.
fn assert_fails(done: &Finished, parts: &[&str]) {
    assert_eq!(done.code, 1, "{}", done.stderr);
    assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
    assert!(done.stderr.starts_with("error") || done.stderr.contains("\nerror: "), "{}", done.stderr);
    for part in parts {
        assert!(done.stderr.contains(part), "no `{part}` in: {}", done.stderr);
    }
}

fn bench(more: &[&str]) -> Finished {
    let model = root().join("tests/goldens/llama-tied");
    let few = ["bench", "--device", "cpu", "--runs", "1", "--tokens", "2", "-m", model.to_str().unwrap()];
    fuserun(&[&few, more].concat(), "")
}

#[test]
fn depths_and_prompts_beyond_the_context_are_named() {
    let advice = "beyond the context of 256 positions: give smaller ones, or a larger --max-context";
    assert_fails(&bench(&["--depths", "2000"]), &["--depths 2000 and 2 steps are ", advice]);
    assert_fails(&bench(&["--depths", "3,254,2000"]), &["--depths 254,2000 and 2 steps are ", advice]);
    assert_fails(&bench(&["--depths", LARGEST]), &["--depths 18446744073709551615 and 2 steps are ", advice]);
    assert_fails(&bench(&["--depths", "3", "--prompts", "12,257"]), &["--prompts 257 are ", advice]);
    assert_fails(&bench(&["--max-context", "4"]), &["a context of 4 holds none", "--max-context"]);
    let dummy = ["--dummy-weights", "-m", root().join("models/llama.toml").to_str().unwrap(), "--depths", LARGEST]
        .map(str::to_owned);
    let done = fuserun(&[&["bench", "--device", "cpu"].map(str::to_owned)[..], &dummy].concat(), "");
    assert_fails(&done, &["--depths 18446744073709551615 and 128 steps are beyond the context of 2147483647"]);
    // Those that nobody asked for are left out, by name.
    let done = bench(&["--batch", "1"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stderr.contains("--depths 512,4096 and 2 steps are beyond the context of 256 positions: left out"));
    assert!(done.stderr.contains("--prompts 512 are beyond the context of 256 positions: left out"), "{}", done.stderr);
    assert!(done.stdout.contains("| 1 | 32 |"), "{}", done.stdout);
    // A context that no depth fits has its prompts nevertheless.
    let done = bench(&["--batch", "1", "--max-context", "32"]);
    assert!(done.code == 0 && done.stdout.contains("| 32 | "), "{}", done.stderr);
}

#[test]
fn batches_and_threads_that_overflow() {
    for batch in [LARGEST, "9223372036854775807", "4611686018427387"] {
        let named = format!("the caches of {batch} sequences of 256 positions fit no memory");
        assert_fails(&bench(&["--batch", batch]), &[&named, "smaller context or batch"]);
    }
    assert_fails(&bench(&["--batch", "300000000"]), &["GiB are needed", "smaller context or batch"]);
    assert_fails(&bench(&["--batch", "1,0"]), &["--batch must be above 0"]);
    assert_fails(&bench(&["--threads", LARGEST]), &["threads are more than the 1024 that share a step: give fewer"]);
}

#[test]
fn a_compiled_context_fits_a_position() {
    for context in ["0", "2147483648", "4294967295", LARGEST, "1e3"] {
        let done = fusec(&["compile", "llama", "--max-context", context, "-o", "/dev/null"]);
        assert!(done.code == 2 && done.stderr.contains("--max-context <N>"), "{context}: {}", done.stderr);
    }
}

#[test]
fn sizes_that_no_model_has() {
    let golden = root().join("tests/goldens/llama-tied");
    let config: Value = serde_json::from_str(&std::fs::read_to_string(golden.join("config.json")).unwrap()).unwrap();
    let folder = TempFolder::new();
    let with = |changes: &[(&str, Value)]| {
        let mut config = config.clone();
        for (key, value) in changes {
            config[*key] = value.clone();
        }
        folder.write("config.json", config.to_string());
        let config = folder.path().join("config.json");
        fusec(&["compile", "--config", config.to_str().unwrap(), "-o", "/dev/null"])
    };
    let large = || json!(1 << 30);
    assert_fails(
        &with(&[("vocab_size", large()), ("hidden_size", large())]),
        &["`model.embed_tokens.weight` would be [1073741824, 1073741824]: no weight has more than 2^40 values"],
    );
    assert_fails(
        &with(&[("head_dim", json!(1 << 17))]),
        &["RoPE turns 131072 values of a head, and 65536 is the most"],
    );
    for key in ["vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"] {
        for value in [json!(0), json!(-1), json!(u64::MAX), json!(1u64 << 31), json!(1e300)] {
            assert_fails(&with(&[(key, value)]), &["error["]);
        }
    }
}

/// A report is what a file says, as a plan is.
#[test]
fn the_largest_numbers_of_a_report_are_shown() {
    let folder = TempFolder::new();
    let file = folder.path().join("x.fuse");
    let text = file.to_str().unwrap();
    let compile = ["compile", "llama", "--batch", "1", "-o", text];
    assert_eq!(finish(command("fusec").args(compile).env("FUSE_NVRTC", "/nonexistent"), "").code, 0);
    let mut artifact = Artifact::read(&file).unwrap();
    let most = u32::MAX;
    let report = |name: &String| {
        let (shared_bytes, spill_store_bytes, spill_load_bytes) = (most, most, most);
        let kernel = KernelReport {
            name: name.clone(),
            registers: most,
            shared_bytes,
            stack_bytes: most,
            spill_store_bytes,
            spill_load_bytes,
        };
        (name.clone(), ResourceReport { kernels: vec![kernel] })
    };
    artifact.reports.insert("sm_90a".to_owned(), artifact.sources.keys().map(report).collect());
    artifact.write(&file).unwrap();
    for more in [&[][..], &["--json"]] {
        let done = fusec(&[&["inspect", text], more].concat());
        assert!(done.code == 0 && done.stdout.contains("4294967295"), "{}", done.stderr);
    }
}

/// What a system that starts no more threads leaves undone, the others do.
#[test]
fn a_limit_on_processes_slows_and_changes_nothing() {
    let folder = TempFolder::new();
    let generate = ["generate", "--device", "cpu", "-n", "16", "--json", "--threads", "4", "Call me"];
    let object = |done: Finished| -> Value {
        assert_eq!(done.code, 0, "{}", done.stderr);
        serde_json::from_str(&done.stdout).unwrap()
    };
    let free = object(finish(command("fuserun").args(generate), ""));
    for processes in [1, 2, 3] {
        let Some(mut limited) = as_nobody("fuserun", folder.path(), processes) else { return };
        let limited = object(finish(limited.args(generate), ""));
        assert_eq!(limited["tokens"], free["tokens"]);
        assert_eq!(limited["device"], format!("CPU, {processes} threads"));
    }
    // The interpreter's threads, too.
    let logits = |path: &Path| {
        ["logits", "--device", "interpreter", "--tokens", "1,2", "-o", path.to_str().unwrap()].map(str::to_owned)
    };
    let done = finish(as_nobody("fuserun", folder.path(), 1).unwrap().args(logits(Path::new("/dev/null"))), "");
    assert_eq!(done.code, 0, "{}", done.stderr);
}
