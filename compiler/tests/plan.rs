//! Plans and sources of the shipped descriptions against committed texts; `BLESS=1` rewrites them. A fusion that is lost, a launch that is added, an
//! argument that moves and a kernel whose text changes each show up as a difference here.
//!
//! The ledger has a line for each description, fused and not, for each kind of target: how large its plan is, and digests of all that the plan says and
//! of the text of its kernels without their names, signatures and layout. `FUSE_LEDGER=DIR` writes what was digested into DIR, a file for each line.

#[path = "../../tests/src/layout.rs"]
mod layout;
mod told;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use fusec::compile::{CompileOptions, Model, compile};
use fusec::description::{Description, shipped};
use fusec::passes::{PIPELINE, Selection};
use fusec::plan::{Plan, PlanOptions, StepKind, TuningSource};
use layout::without_layout;
use told::{digest, sources, summary, whole};

/// The descriptions whose plans are committed as they are: dense, with windows, with learned positions, with a residual that attention and MLP share, with routed
/// experts, and with shared experts beside them after dense layers.
const WHOLE: [&str; 6] = ["llama", "gemma3", "gpt2", "phi", "qwen3_moe", "glm4_moe"];

#[test]
fn plans_are_the_committed_ones() {
    let mut wrong = Vec::new();
    for family in WHOLE {
        let (file, text) =
            shipped().iter().find(|(file, _)| file.trim_end_matches(".toml") == family).expect("it is shipped");
        for (suffix, passes) in [("", Selection::all()), ("-O0", Selection::none())] {
            let got = summary(&model(file, text, passes).plan);
            wrong.extend(difference(&folder("plan").join(format!("{family}{suffix}.txt")), &got));
        }
    }
    assert!(wrong.is_empty(), "{}\nBLESS=1 accepts these results", wrong.join("\n"));
}

#[test]
fn the_ledger_without_clusters_is_the_committed_one() {
    check_ledger("no-clusters", &PlanOptions::default());
}

#[test]
fn the_ledger_with_clusters_is_the_committed_one() {
    check_ledger("clusters", &PlanOptions { clusters: true, ..PlanOptions::default() });
}

#[test]
fn the_ledger_with_the_record_is_the_committed_one() {
    let tuning = TuningSource::Shipped.record("sm_90a").expect("the shipped record is sound");
    check_ledger("record", &PlanOptions { clusters: true, wgmma: true, tuning, ..PlanOptions::default() });
}

/// Compares a line for each description, fused and not, with `plan/ledger-TARGET.txt`.
fn check_ledger(target: &str, options: &PlanOptions) {
    let mut lines = String::new();
    for &(file, text) in shipped() {
        let family = file.trim_end_matches(".toml");
        for (suffix, passes) in [("", Selection::all()), ("-O0", Selection::none())] {
            let model = planned(file, text, passes, options);
            let (plan, sources) = (whole(&model.plan), sources(&model));
            let launches: Vec<String> = model.plan.steps.iter().map(|step| step.launches.len().to_string()).collect();
            writeln!(
                lines,
                "{family}{suffix}: launches {}, {} kernels, {} weights, arena {}, plan {}, sources {}",
                launches.join(" "),
                model.plan.kernels.len(),
                model.plan.weights.len(),
                model.plan.arena_bytes,
                digest(&plan),
                digest(&without_layout(&sources)),
            )
            .expect("writing to a string");
            if let Some(folder) = std::env::var_os("FUSE_LEDGER") {
                let path = Path::new(&folder).join(format!("{family}{suffix}-{target}.txt"));
                fs::write(path, format!("{plan}{sources}")).expect("FUSE_LEDGER is a folder to write into");
            }
        }
    }
    let wrong = difference(&folder("plan").join(format!("ledger-{target}.txt")), &lines);
    assert!(wrong.is_none(), "{}\nFUSE_LEDGER=DIR writes what differs, BLESS=1 accepts it", wrong.unwrap_or_default());
}

#[test]
fn each_fusion_that_is_lost_changes_the_plan() {
    for &(file, text) in shipped() {
        let whole = model(file, text, Selection::all());
        let fired = whole.report.passes.iter().filter(|pass| pass.stats.fired > 0).map(|pass| pass.name);
        let fired: Vec<&str> = fired.collect();
        assert!(fired.len() >= 5, "{file}: most passes fire: {fired:?}");
        for pass in fired {
            let without = Selection::parse(&format!("-{pass}")).expect("the pass is there");
            let plan = model(file, text, without).plan;
            assert_ne!(plan.steps, whole.plan.steps, "{file} without {pass}");
            assert!(decode_launches(&plan) >= decode_launches(&whole.plan), "{file}: {pass} adds launches");
        }
        let unfused = model(file, text, Selection::none()).plan;
        let (fused, unfused_edges) = (whole.plan.edges_per_layer, unfused.edges_per_layer);
        // What stands around a recurrent memory is not fused.
        let recurrent = text.contains("op = \"recall\"");
        let enough = if recurrent { unfused_edges > fused } else { 2 * unfused_edges >= 3 * fused };
        assert!(enough, "{file}: {}", unfused.summary());
    }
    let never =
        |name: &str| shipped().iter().all(|(file, text)| fired(&model(file, text, Selection::all()), name) == 0);
    let idle: Vec<&str> = PIPELINE.iter().map(|pass| pass.name).filter(|name| never(name)).collect();
    assert!(idle.is_empty(), "passes that no shipped description needs: {idle:?}");
}

/// What every source begins with.
const VOCABULARY: &str = include_str!("../../templates/kernels/device.cuh");

#[test]
fn emitted_sources_are_the_committed_ones() {
    let (file, text) = *shipped().iter().find(|(file, _)| *file == "llama.toml").expect("llama is shipped");
    let model = model(file, text, Selection::all());
    let kernels = [
        "norm_matvec_f32_f16_k2048_n2048_512_512_b1",
        "rope_append_attention_bf16_h32_kv8_d64_s8",
        "matmul_gated_f16_f16_k2048_n8192_m64",
    ];
    let mut wrong = Vec::new();
    for stem in kernels {
        let kernel = model.plan.kernels.iter().find(|kernel| kernel.spec.family().stem() == stem);
        let name = &kernel.unwrap_or_else(|| panic!("{file} has no kernel {stem}")).name;
        let own = model.sources[name].strip_prefix(VOCABULARY.trim_end()).expect("the vocabulary stands first");
        let shown = format!("// After templates/kernels/device.cuh:{}", own.replace(name, stem));
        wrong.extend(difference(&folder("emitted").join(format!("{stem}.cu")), &shown));
    }
    assert!(wrong.is_empty(), "{}\nBLESS=1 accepts these results", wrong.join("\n"));
}

#[test]
fn compiling_twice_gives_the_same_plan_and_sources() {
    for &(file, text) in shipped() {
        let [one, two] = [(); 2].map(|()| model(file, text, Selection::all()));
        assert_eq!(one.plan, two.plan, "{file}");
        assert_eq!(one.sources, two.sources, "{file}");
        let json = serde_json::to_string(&one.plan).expect("a plan can be written");
        assert_eq!(serde_json::from_str::<Plan>(&json).expect("and read"), one.plan, "{file}");
    }
}

fn fired(model: &Model, name: &str) -> usize {
    model.report.passes.iter().find(|pass| pass.name == name).map_or(0, |pass| pass.stats.fired)
}

fn decode_launches(plan: &Plan) -> usize {
    plan.step(StepKind::Decode { batch: 1 }).map_or(0, |step| step.launches.len())
}

fn model(file: &str, text: &str, passes: Selection) -> Model {
    planned(file, text, passes, &PlanOptions { clusters: true, ..PlanOptions::default() })
}

fn planned(file: &str, text: &str, passes: Selection, plan: &PlanOptions) -> Model {
    let description = Description::parse(text, file).unwrap_or_else(|errors| panic!("{errors}"));
    let options = CompileOptions { passes, plan: plan.clone(), ..CompileOptions::default() };
    compile(&description, None, &options).unwrap_or_else(|error| panic!("{file}: {error:#}"))
}

/// Where `got` is not what the file says: the first line that differs. Writes the file instead where BLESS is set.
fn difference(path: &Path, got: &str) -> Option<String> {
    if std::env::var_os("BLESS").is_some() {
        fs::write(path, got).expect("an expected text can be written");
        return None;
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    if expected == got {
        return None;
    }
    let same = expected.lines().zip(got.lines()).take_while(|(a, b)| a == b).count();
    let [was, is] = [&expected, got].map(|text| text.lines().nth(same).unwrap_or("(the end)"));
    Some(format!("{}, line {}:\n- {was}\n+ {is}", path.display(), same + 1))
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}
