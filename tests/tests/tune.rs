//! `fusec tune` with a stand-in for the program that measures: it reads the plan of each candidate and makes up times.

use std::path::{Path, PathBuf};

use fuse_tests::{Finished, TempFolder, command, finish, nvrtc, root};
use fusec::plan::Tuning;

/// Times by a rule: each product of four warps saves a twentieth of the step; attentions of sixteen as much, but their logits are wrong.
const MEASURES: &str = r#"#!/usr/bin/env python3
import json, os, sys, zipfile

if "--about" in sys.argv:
    print(json.dumps({"arch": "sm_90a", "gpu": "A stand-in", "driver": "CUDA 13.0"}))
    sys.exit()

def shapes(path):
    plan = json.loads(zipfile.ZipFile(path).read("plan/sm_90a.json"))
    return {kernel["name"]: kernel for kernel in plan["kernels"]}

failed = False
base = shapes(sys.argv[sys.argv.index("--base") + 1])
for line in sys.stdin:
    mine = shapes(line.strip())
    changed = [name for name in mine if name not in base]
    small = [name for name in changed if mine[name]["threads"] == 128 and ("matvec" in name or name.startswith("attention_proj"))]
    wide = [name for name in changed if mine[name]["threads"] == 512 and "attention_bf16" in name]
    us = 100.0 - 5.0 * len(wide) - 5.0 * len(small)
    if os.environ.get("APART") and len(small) > 1:
        us = 101.0
    if os.environ.get("ENDS") and small:
        sys.exit(3)
    faster = 5 if us < 100.0 else 0
    if len(small) == 1 and not failed:
        failed = True
        print(json.dumps({"error": "this one does not run"}), flush=True)
        continue
    print(json.dumps({"us": us, "default_us": 100.0, "wins": faster, "rounds": 5, "nmse": 0.5 if wide else 1e-9}), flush=True)
"#;

struct Tune {
    folder: TempFolder,
    program: PathBuf,
    record: PathBuf,
}

impl Tune {
    fn new() -> Tune {
        use std::os::unix::fs::PermissionsExt;
        let folder = TempFolder::new();
        let program = folder.write("fuserun", MEASURES);
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let record = folder.path().join("below/record.toml");
        Tune { folder, program, record }
    }

    fn run(&self, variables: &[(&str, &str)], more: &[&str]) -> Finished {
        let config = root().join("tests/goldens/llama-tied/config.json");
        let mut tune = command("fusec");
        tune.args(["tune", "llama", "--batch", "1", "--config"]).arg(config).arg("--fuserun").arg(&self.program);
        tune.arg("-o").arg(&self.record).args(more).env("FUSE_NVRTC", nvrtc().path());
        finish(tune.envs(variables.iter().copied()), "")
    }

    fn written(&self) -> Tuning {
        let text = std::fs::read_to_string(&self.record).unwrap();
        Tuning::parse(&text, "record.toml").unwrap()
    }
}

#[test]
fn winners_are_written_and_compile_uses_them() {
    let tune = Tune::new();
    let done = tune.run(&[], &[]);
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{}", done.stderr);
    assert!(done.stderr.contains("a candidate cannot be run: this one does not run"), "{}", done.stderr);
    let record = tune.written();
    assert_eq!(
        (record.arch.as_str(), record.gpu.as_str(), record.driver.as_str()),
        ("sm_90a", "A stand-in", "CUDA 13.0")
    );
    assert!(record.compiler.starts_with("NVRTC ") && record.compiler.contains("fusec "), "{}", record.compiler);
    assert!(record.attentions.is_empty(), "wrong logits never win");
    assert!(!record.matvecs.is_empty(), "{}", done.stderr);
    for entry in &record.matvecs {
        assert_eq!((entry.warps, entry.default_us, entry.batch), (4, 100.0, 1), "{entry}");
        assert!(entry.kind.contains("matvec"));
    }
    let mut times: Vec<f64> = record.matvecs.iter().map(|entry| entry.us).collect();
    times.sort_by(f64::total_cmp);
    let each: Vec<f64> = (1..=times.len()).rev().map(|winners| 100.0 - 5.0 * winners as f64).collect();
    assert_eq!(times, each, "each beside the winners before it");

    // Measured again, it is the same; with another header it is not replaced.
    let again = tune.run(&[], &[]);
    assert_eq!((again.code, tune.written()), (0, record.clone()), "{}", again.stderr);
    let text = std::fs::read_to_string(&tune.record).unwrap();
    std::fs::write(&tune.record, text.replace("A stand-in", "Another")).unwrap();
    let refused = tune.run(&[], &[]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("was measured with sm_90a, Another"), "{}", refused.stderr);
    std::fs::write(&tune.record, text).unwrap();

    let config = root().join("tests/goldens/llama-tied/config.json");
    let compile = |source: &str, more: &[&str]| {
        let file = tune.folder.path().join("out.fuse");
        let mut compile = command("fusec");
        compile.args(["compile", "llama", "--tuning", source, "--config"]).arg(&config).arg("-o").arg(&file).args(more);
        let done = finish(compile.env("FUSE_NVRTC", "/nonexistent"), "");
        (done, fusec::artifact::Artifact::read(&file))
    };
    let (done, artifact) = compile(tune.record.to_str().unwrap(), &[]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(artifact.unwrap().manifest.extra["tuning"]["sm_90a"]["sha256"], record.digest());
    let (_, artifact) = compile("none", &[]);
    assert!(!artifact.unwrap().manifest.extra.contains_key("tuning"));
    let (done, _) = compile(tune.record.to_str().unwrap(), &["--arch", "sm_89"]);
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("was measured for sm_90a, and this is compiled for sm_89"), "{}", done.stderr);
    let (done, _) = compile(tune.program.to_str().unwrap(), &[]);
    assert_eq!(done.code, 1);
    assert!(done.stderr.starts_with("error: ") && done.stderr.contains("fuserun: TOML parse error"), "{}", done.stderr);
}

#[test]
fn what_longer_contexts_have_is_added_to_what_few_keys_have() {
    let tune = Tune::new();
    assert_eq!(tune.run(&[], &[]).code, 0);
    let near = tune.written();
    let done = tune.run(&[], &["--depth", "512"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let both = tune.written();
    assert!(done.stderr.contains("as the record has it"), "{}", done.stderr);
    let (old, new): (Vec<_>, Vec<_>) = both.matvecs.iter().partition(|entry| near.matvecs.contains(entry));
    assert_eq!(old.len(), near.matvecs.len());
    let kinds: Vec<&str> = new.iter().map(|entry| entry.kind.as_str()).collect();
    assert_eq!(kinds, ["matvec_add"], "the projection is no kernel of its own in the near step");
}

#[test]
fn winners_that_lose_together_leave_the_best() {
    let tune = Tune::new();
    let done = tune.run(&[("APART", "1")], &[]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(tune.written().matvecs.len(), 1, "{}", done.stderr);
}

#[test]
fn what_cannot_be_tuned_is_said() {
    let tune = Tune::new();
    let done = tune.run(&[("ENDS", "1")], &[]);
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("error: fuserun measure ended early (exit status: 3)"), "{}", done.stderr);
    assert!(!tune.record.exists());

    let absent = Tune { program: Path::new("/no/such/fuserun").to_path_buf(), ..Tune::new() };
    let done = absent.run(&[], &[]);
    assert_eq!(done.code, 1);
    assert!(
        done.stderr.starts_with("error: there is no /no/such/fuserun: fuserun does the measuring"),
        "{}",
        done.stderr
    );
    let done = tune.run(&[], &["qwen3"]);
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("--config is the configuration of one model"), "{}", done.stderr);
    assert_eq!(tune.run(&[], &["--rounds", "0"]).code, 2);

    // The real one, where there is no GPU, says so.
    if fuserun::device::Gpu::count() == 0 {
        let done = fuse_tests::fuserun(&["measure", "--about"], "");
        assert_eq!((done.code, done.stdout.as_str()), (1, ""));
        assert!(done.stderr.starts_with("error: cannot open cuda:0: "), "{}", done.stderr);
    }
}
