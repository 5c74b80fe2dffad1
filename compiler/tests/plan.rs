//! Plans and sources of the shipped descriptions against committed texts; `BLESS=1` rewrites them. A fusion that is lost, a launch that is added and a
//! kernel whose text changes each show up as a difference here.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use fusec::compile::{CompileOptions, Model, compile};
use fusec::description::{Description, shipped};
use fusec::passes::{PIPELINE, Selection};
use fusec::plan::{Launch, Plan, PlanOptions, StepKind};

#[test]
fn plans_are_the_committed_ones() {
    let mut wrong = Vec::new();
    for &(file, text) in shipped() {
        let family = file.trim_end_matches(".toml");
        for (suffix, passes) in [("", Selection::all()), ("-O0", Selection::none())] {
            let got = told(&model(file, text, passes).plan);
            wrong.extend(difference(&folder("plan").join(format!("{family}{suffix}.txt")), &got));
        }
    }
    assert!(wrong.is_empty(), "{}\nBLESS=1 accepts these results", wrong.join("\n"));
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
            assert_ne!(told(&plan), told(&whole.plan), "{file} without {pass}");
            assert!(decode_launches(&plan) >= decode_launches(&whole.plan), "{file}: {pass} adds launches");
        }
        let unfused = model(file, text, Selection::none()).plan;
        assert!(2 * unfused.edges_per_layer >= 3 * whole.plan.edges_per_layer, "{file}: {}", unfused.summary());
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
        "norm_matvec_f32_k2048_n2048_512_512_b1",
        "rope_append_attention_bf16_h32_kv8_d64_s16",
        "matmul_gated_paired_bf16_k2048_n8192_m64",
    ];
    let mut wrong = Vec::new();
    for name in kernels {
        let source = model.sources.get(name).unwrap_or_else(|| panic!("{file} has no kernel {name}"));
        let own = source.strip_prefix(VOCABULARY.trim_end()).expect("the vocabulary stands first");
        let shown = format!("// Behind templates/kernels/device.cuh:{own}");
        wrong.extend(difference(&folder("emitted").join(format!("{name}.cu")), &shown));
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

/// The summary, the kernels, and what a decode step and a prompt step launch: layers 0 and 1, and what is outside the layers.
fn told(plan: &Plan) -> String {
    let mut text = format!("{}\n", plan.summary());
    for kernel in &plan.kernels {
        let name = &kernel.name;
        writeln!(text, "kernel {name}: {} threads, {} bytes shared", kernel.threads, kernel.shared_bytes)
            .expect("writing to a string");
    }
    let near = Some(plan.decode_at(1, 0)).filter(|kind| matches!(kind, StepKind::Near { .. }));
    let steps = [
        ("decode 1", StepKind::Decode { batch: 1 }),
        ("prompt 128", StepKind::Prompt { rows: 128 }),
        ("last of 128", StepKind::Last { rows: 128 }),
    ];
    for (title, kind) in near.map(|kind| ("near 1", kind)).into_iter().chain(steps) {
        let step = plan.step(kind).expect("the step is planned");
        writeln!(text, "{title}: {} launches", step.launches.len()).expect("writing to a string");
        for launch in step.launches.iter().filter(|launch| launch.layer.is_none_or(|layer| layer < 2)) {
            text += &line(plan, launch);
        }
    }
    text
}

/// `  layer 0: norm_matvec … grid 132`
fn line(plan: &Plan, launch: &Launch) -> String {
    let layer = launch.layer.map_or("outside".to_owned(), |layer| format!("layer {layer}"));
    let [x, y, z] = launch.grid;
    let bytes =
        if launch.weight_bytes > 0 { format!(", {} bytes of weights", launch.weight_bytes) } else { String::new() };
    format!("  {layer}: {} = {}, grid {x} {y} {z}{bytes}\n", launch.node, plan.kernels[launch.kernel].name)
}

fn model(file: &str, text: &str, passes: Selection) -> Model {
    let description = Description::parse(text, file).unwrap_or_else(|errors| panic!("{errors}"));
    let plan = PlanOptions { clusters: true, ..PlanOptions::default() };
    let options = CompileOptions { passes, plan, ..CompileOptions::default() };
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
