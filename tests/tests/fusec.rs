//! The program `fusec`, run as a user runs it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fuse_tests::{Finished, TempFolder, command, finish, nvrtc, root};
use fusec::artifact::Artifact;
use fusec::ir::Graph;
use fusec::passes::PIPELINE;
use fusec::select::RULES;
use serde_json::Value;

fn fusec() -> Command {
    command("fusec")
}

/// What a run that must succeed printed.
fn printed(args: &[&str]) -> String {
    succeeds(fusec().args(args)).stdout
}

fn succeeds(command: &mut Command) -> Finished {
    let done = finish(command, "");
    assert_eq!(done.code, 0, "{command:?}: {}", done.stderr);
    done
}

/// The message of a run that must fail with this exit code, print nothing and not panic.
fn refused(args: &[&str], code: i32) -> String {
    let Finished { code: found, stdout, stderr: message } = fuse_tests::fusec(args);
    assert_eq!(found, code, "{args:?}: {message}");
    assert_eq!(stdout, "", "{args:?}");
    assert!(message.starts_with("error") && !message.contains("panicked"), "{args:?}: {message}");
    message
}

fn golden(name: &str) -> PathBuf {
    root().join("tests/goldens").join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is text")
}

#[test]
fn llama_compiles_to_device_code_that_does_not_spill() {
    let folder = TempFolder::new();
    let folder = folder.path();
    let (file, model) = (folder.join("llama.fuse"), root().join("models/llama.toml"));
    let args = [
        "compile",
        text(&model),
        "--arch",
        "sm_90a",
        "--batch",
        "1",
        "--max-context",
        "4096",
        "--tuning",
        "none",
        "-o",
        text(&file),
    ];
    let Finished { stdout, stderr: said, .. } = succeeds(fusec().env("FUSE_NVRTC", nvrtc().path()).args(args));
    assert_eq!(stdout, "");
    assert!(
        said.starts_with("plan llama: 4 kernels and 4 edges per layer (5 from position 256 on), 16 layers, "),
        "{said}"
    );

    let artifact = Artifact::read(&file).expect("it is an artifact");
    assert_eq!(artifact.manifest.archs, ["sm_90a"]);
    assert_eq!(artifact.manifest.extra["max_context"], 4096);
    assert_eq!(artifact.cubins.len(), artifact.sources.len());
    assert!(artifact.cubins.values().all(|cubin| cubin.starts_with(b"\x7fELF")));
    Graph::parse(&artifact.graph_text).expect("its graph reads back");

    let json: Value = serde_json::from_str(&printed(&["inspect", text(&file), "--json"])).expect("one JSON object");
    assert_eq!(json["plan"]["kernels_per_layer"], 4);
    let kernels = json["kernels"].as_array().expect("a list");
    assert_eq!(kernels.len(), artifact.sources.len());
    for kernel in kernels {
        let report = &kernel["archs"]["sm_90a"];
        assert!(report["registers"].as_u64().is_some_and(|registers| registers > 0), "{kernel}");
        assert_eq!((&report["spill_store_bytes"], &report["spill_load_bytes"]), (&0.into(), &0.into()), "{kernel}");
        let launches = kernel["launches"].as_object().expect("counts by step");
        assert!(!launches.is_empty(), "{kernel}");
    }
    let table = printed(&["inspect", text(&file)]);
    assert!(table.contains("registers") && table.contains("near_1 16"), "{table}");
}

#[test]
fn each_architecture_has_a_plan_of_its_own() {
    let folder = TempFolder::new();
    let compile = |archs: &str| {
        let file = folder.path().join(format!("{archs}.fuse"));
        let args = ["compile", "qwen3", "--arch", archs, "--batch", "1,4", "-o", text(&file)];
        (
            succeeds(fusec().env("FUSE_NVRTC", nvrtc().path()).args(args)).stderr,
            Artifact::read(&file).expect("it is an artifact"),
        )
    };
    let (said, both) = compile("sm_90a,sm_80");
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("sm_80: plan qwen3: ") && lines[1].starts_with("sm_90a: plan qwen3: "), "{said}");
    assert!(lines[2].ends_with(" kernels, sm_80, sm_90a"), "{said}");
    for arch in ["sm_80", "sm_90a"] {
        let (_, alone) = compile(arch);
        assert_eq!(both.plans[arch], alone.plans[arch], "{arch} is planned as if alone");
        assert_eq!(both.reports[arch], alone.reports[arch], "{arch}");
    }
    assert_ne!(both.plans["sm_80"], both.plans["sm_90a"]);
    let file = folder.path().join("sm_90a,sm_80.fuse");
    let json: Value = serde_json::from_str(&printed(&["inspect", text(&file), "--json"])).expect("one JSON object");
    assert_eq!(json["plan"], json["plans"]["sm_90a"]["plan"], "the latest one stands first");
    assert_eq!(json["plans"]["sm_80"]["kernels"][0]["archs"]["sm_80"]["spill_store_bytes"], 0);
    let table = printed(&["inspect", text(&file)]);
    assert_eq!(table.matches("\nplan qwen3: ").count(), 2, "{table}");
}

#[test]
fn explain_plans_as_compile_does() {
    // Families that differ in kind: the plans of all of them stand in the ledger.
    for family in ["gemma3", "glm4_moe", "gpt2", "llama", "phi", "qwen3_moe"] {
        for arch in ["sm_80", "sm_90a"] {
            let folder = TempFolder::new();
            let output = folder.path().join("m.fuse");
            let args = ["compile", family, "--arch", arch, "-o", text(&output)];
            let compiled = succeeds(fusec().env("FUSE_NVRTC", "/nonexistent").args(args)).stderr;
            let explained = printed(&["explain", family, "--arch", arch]);
            assert_eq!(explained.lines().next(), compiled.lines().next(), "{family} for {arch}");
        }
    }
    assert!(
        printed(&["explain", "llama"])
            .starts_with("plan llama: 4 kernels and 4 edges per layer (5 from position 256 on)")
    );
    // The sum of routed experts takes the residual along, where the plan says so.
    for family in ["qwen3_moe", "mixtral", "olmoe"] {
        let explained = printed(&["explain", family]);
        assert!(!explained.contains(": add: "), "{explained}");
        assert!(printed(&["explain", family, "--passes", "-fuse-residual"]).contains("fuse-residual"), "{family}");
    }
    let without = printed(&["explain", "qwen3_moe", "--rules", "-absorb-residual"]);
    assert!(
        without.contains("\nabsorb-residual       off\n") && without.contains("\nabsorb-norm           48 nodes\n")
    );
    assert!(without.contains("absorb-residual: layers 0-47: add: the rule is switched off\n"), "{without}");
    let stray = printed(&["explain", "dots1"]);
    assert!(
        stray.contains("fuse-residual: layers 1-61: add: "),
        "adds that are launches of their own are printed: {stray}"
    );
}

#[test]
fn without_nvrtc_the_file_has_sources_only() {
    let folder = TempFolder::new();
    let folder = folder.path();
    let mut command = fusec();
    command.current_dir(folder).env("FUSE_NVRTC", "/nonexistent").args(["compile", "llama", "--dump", "stages"]);
    let said = succeeds(&mut command).stderr;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 3, "the plan, how to get NVRTC, the file: {said}");
    assert!(lines[1].contains("pip install nvidia-cuda-nvrtc") && lines[1].ends_with("sources only"), "{said}");
    let artifact = Artifact::read(&folder.join("llama.fuse")).expect("NAME.fuse is an artifact");
    assert!(artifact.cubins.is_empty() && artifact.manifest.archs.is_empty() && artifact.sources.len() > 10);
    assert!(printed(&["inspect", text(&folder.join("llama.fuse"))]).contains("sources only"));

    // The stages that --dump leaves: as described, after each pass, the plan, the sources.
    let stage = |name: &str| fs::read_to_string(folder.join("stages").join(name)).expect("the stage is there");
    assert_eq!(stage("00-described.txt"), printed(&["print", "-O0", "llama"]));
    assert_eq!(stage("03-fuse-mlp.txt"), printed(&["print", "--after", "fuse-mlp", "llama"]));
    assert_eq!(stage("10-fuse-sample.txt"), artifact.graph_text);
    assert_eq!(stage("plan/sm_90a.json").trim_end(), artifact.plans["sm_90a"].trim_end());
    for (name, source) in &artifact.sources {
        assert_eq!(&stage(&format!("src/{name}.cu")), source);
    }
}

#[test]
fn a_broken_description_is_told_with_its_line() {
    let folder = root().join("compiler/tests/description");
    let mut cases = 0;
    for entry in fs::read_dir(&folder).expect("the cases are there") {
        let path = entry.expect("an entry").path();
        let expected = fs::read_to_string(path.with_extension("txt")).unwrap_or_default();
        let broken = expected.lines().find_map(|line| line.trim_start().strip_prefix("--> "));
        let Some(place) = broken.filter(|_| path.extension().is_some_and(|extension| extension == "toml")) else {
            continue;
        };
        // `name.toml:line:column`, of the same text under its whole path.
        let (_, place) = place.split_once(':').expect("a place has a line");
        let config = path.with_extension("json");
        let mut args = vec!["check", text(&path)];
        if config.exists() {
            args.extend(["--config", text(&config)]);
        }
        let message = refused(&args, 1);
        assert!(message.starts_with("error["), "{message}");
        assert!(message.contains(&format!("{}:{place}", path.display())), "{place}: {message}");
        cases += 1;
    }
    assert!(cases > 15, "{cases} broken descriptions");
}

#[test]
fn a_configuration_may_lie_elsewhere() {
    let folder = TempFolder::copy_of(&golden("llama-tied"));
    let config = folder.path().join("moved.json");
    fs::rename(folder.path().join("config.json"), &config).expect("the golden has one");
    let checked = printed(&["check", "--checkpoint", text(folder.path()), "--config", text(&config)]);
    assert!(checked.contains("tensors of the checkpoint: "), "{checked}");
}

#[test]
fn bad_usage_is_told_with_what_was_meant() {
    assert!(refused(&["compile", "llama", "--arch", "sm_90b"], 2).contains("did you mean `sm_90`?"));
    assert!(refused(&["print", "llama", "--passes", "-fuse-mpl"], 2).contains("did you mean `fuse-mlp`?"));
    assert!(refused(&["compile", "llama", "--batch", "3"], 2).contains("[possible values: 1, 2, 4, 8, 16, 32]"));
    assert!(refused(&["compile", "llama", "--max-context", "0"], 2).contains("--max-context"));
    assert!(refused(&["graph", "llama", "--format", "svg"], 2).contains("[possible values: text, dot]"));
    assert!(refused(&["print", "llama", "-O1"], 2).contains("[possible values: 0]"));
    assert!(refused(&["compile"], 2).contains("<MODEL>"));
}

#[test]
fn what_cannot_be_done_is_one_clear_message() {
    let folder = TempFolder::new();
    let folder = folder.path();
    assert!(refused(&["check", "lama"], 1).contains("did you mean `llama`? (shipped: arcee, bamba, cohere, "));
    assert!(refused(&["print", "llama", "--after", "fuse-mpl"], 1).contains("did you mean `fuse-mlp`?"));
    assert!(refused(&["compile", "llama", "--weights", "f32"], 2).contains("give auto, or one of f16, bf16, q8_0"));
    let golden = fuse_tests::root().join("tests/goldens/qwen3");
    let quantising = ["compile", "--checkpoint", text(&golden), "--weights", "iq4_xs"];
    assert!(refused(&quantising, 1).contains("nothing quantises weights to iq4_xs: give one of q8_0, "));
    assert!(refused(&["check", text(folder)], 1).contains("--checkpoint"));
    let broken = folder.join("broken.json");
    fs::write(&broken, "{").expect("a scratch file");
    assert!(refused(&["check", "llama", "--config", text(&broken)], 1).contains("not valid JSON"));
    fs::write(&broken, "{}").expect("a scratch file");
    assert!(refused(&["check", "llama", "--config", text(&broken)], 1).contains("vocab_size"));
    assert!(refused(&["check", "--config", text(&broken)], 1).contains("names no architecture"));
    let other = folder.join("other.fuse");
    assert!(refused(&["inspect", text(&other)], 1).contains("other.fuse"));
    fs::write(&other, b"PK\x03\x04 and no more").expect("a scratch file");
    assert!(refused(&["inspect", text(&other)], 1).contains("no .fuse file"));
}

#[test]
fn what_print_says_reads_back() {
    for name in PIPELINE.iter().map(|pass| pass.name) {
        let text = printed(&["print", "--after", name, "qwen3"]);
        let graph = Graph::parse(&text).unwrap_or_else(|error| panic!("after {name}: {error}"));
        assert_eq!(graph.to_string(), text, "after {name}");
    }
    let whole = printed(&["print", "qwen3"]);
    assert_eq!(whole, printed(&["graph", "qwen3"]));
    assert_eq!(whole, printed(&["print", "--after", "fuse-sample", "qwen3"]));
    assert!(printed(&["graph", "qwen3", "--format", "dot"]).starts_with("digraph \"qwen3\" {"));
}

#[test]
fn passes_are_chosen_by_flag_and_by_variable() {
    let unfused = printed(&["print", "-O0", "llama"]);
    assert!(unfused.contains(" = silu ") && unfused.contains(" = kv_append "), "nothing is fused");
    assert_eq!(unfused, printed(&["print", "--passes", "none", "llama"]));
    assert_eq!(unfused, printed(&["print", "-O0", "--passes", "-fuse-mlp", "llama"]));
    assert_eq!(unfused, succeeds(fusec().env("FUSE_O", "0").args(["print", "llama"])).stdout);
    let without = printed(&["print", "--passes", "-fuse-mlp,-fuse-rope", "llama"]);
    assert!(without.contains(" = silu ") && without.contains(" = rope ") && !without.contains(" = kv_append "));
    let mut variable = fusec();
    assert_eq!(without, succeeds(variable.env("FUSE_PASSES", "-fuse-mlp,-fuse-rope").args(["print", "llama"])).stdout);

    let explained = printed(&["explain", "--passes", "-fuse-mlp", "llama"]);
    assert!(explained.starts_with("plan llama: "), "{explained}");
    assert!(explained.contains("fuse-mlp              off\n"), "{explained}");
    assert!(explained.contains("fuse-mlp: layers 0-15: mul: the pass did not run\n"), "{explained}");
    assert!(printed(&["explain", "llama"]).contains("Everything that could fuse did."));
    let listed = printed(&["passes"]);
    let names: Vec<&str> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let rules = RULES.iter().map(|rule| rule.name);
    assert_eq!(names, PIPELINE.iter().map(|pass| pass.name).chain(rules).collect::<Vec<_>>());
}

#[test]
fn the_tensors_of_a_checkpoint_are_accounted_for() {
    for name in ["llama-tied", "llama-untied", "llama-bias", "llama-sharded-f16", "mistral", "qwen2", "qwen3"] {
        let said = printed(&["check", "--checkpoint", text(&golden(name))]);
        assert!(said.contains(" layers, vocabulary ") && said.contains(" tensors of the checkpoint: "), "{said}");
    }
    assert!(refused(&["check", "llama", "--checkpoint", text(&golden("qwen3"))], 1).contains("Qwen3ForCausalLM"));

    let folder = TempFolder::new();
    let folder = folder.path();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden("llama-untied").join(file), folder.join(file)).expect("the golden is there");
    }
    let config = fs::read_to_string(folder.join("config.json")).expect("it was copied");
    let mut config: Value = serde_json::from_str(&config).expect("it is JSON");
    let layers = config["num_hidden_layers"].as_u64().expect("a count");
    config["num_hidden_layers"] = (layers + 1).into();
    fs::write(folder.join("config.json"), config.to_string()).expect("a scratch file");
    let message = refused(&["check", "--checkpoint", text(folder)], 1);
    assert!(message.contains("error[F0601]") && message.contains(&format!("`model.layers.{layers}.")), "{message}");
    config["num_hidden_layers"] = (layers - 1).into();
    fs::write(folder.join("config.json"), config.to_string()).expect("a scratch file");
    let message = refused(&["check", "--checkpoint", text(folder)], 1);
    assert!(
        message.contains("error[F0603]") && message.contains(&format!("model.layers.{}.", layers - 1)),
        "{message}"
    );

    let weights = fs::read(folder.join("model.safetensors")).expect("it was copied");
    for length in [0, 7, 100, weights.len() - 1] {
        fs::write(folder.join("model.safetensors"), &weights[..length]).expect("a scratch file");
        let message = refused(&["check", "--checkpoint", text(folder)], 1);
        assert!(message.contains("truncated or corrupt") && message.lines().count() == 1, "{message}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = fusec()
        .args(["print", "-O0", "qwen3"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("fusec starts");
    let mut line = String::new();
    BufReader::with_capacity(64, child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    assert_eq!(line, "graph \"qwen3\"\n");
    let output = child.wait_with_output().expect("fusec ends");
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}
