//! A model on a driver without a GPU: which launches a profile and a comparison make, and that all of it is given back. Kernels do not run and
//! each interval is 1.5 ms, so what is measured is known.

use std::collections::BTreeMap;

use fuse_tests::host_driver::{TRACE, on_fake_driver};
use fuse_tests::{nvrtc, root};
use fusec::build::{Compiled, Options, compile_all};
use fusec::plan::kernels::{Family, Read};
use fusec::plan::{Plan, PlanOptions, Replay, Start, TuningSource};
use fuserun::backend::{Backend, Device, LoadOptions};
use fuserun::device::Gpu;
use fuserun::model::{ModelName, OpenModel};
use fuserun::profile::Profile;
use fuserun::step::{EngineOptions, GpuEngine, MemoryReader, NOTHING, WeightSource};

const RUNS: usize = 2;

#[test]
fn a_step_is_taken_apart_and_compared() {
    if std::env::var_os(TRACE).is_some() {
        return on_the_fake();
    }
    // NVRTC asks the driver library for more than the fake has: beside it, device code comes from what is kept.
    for batch in [1, 2] {
        compiled(&model(), vec![batch], PlanOptions::default().prompts);
    }
    let measuring =
        [(Read::CEILING.name(), Read::CEILING.source().unwrap()), ("nothing".to_string(), NOTHING.to_string())];
    device_code(&measuring.into());
    let trace = on_fake_driver("a_step_is_taken_apart_and_compared", None);
    // One by one, outside a graph and without overlap: the near step's 11 launches in their order, a warm-up and the runs, then as often nothing.
    let lines: Vec<&str> =
        trace.lines().filter(|line| line.starts_with("run ") && !line.starts_with("run read_")).collect();
    assert_eq!(lines.len(), 2 * 11 * (1 + RUNS + GROWTHS_OF_READS), "{lines:#?}");
    assert!(lines.iter().all(|line| !line.contains("programmatic")));
    assert!(lines[0].starts_with("run embedding_") && lines[10].starts_with("run sample_"), "{lines:#?}");
    let [busy, idle] = [0, lines.len() / 2].map(|start| &lines[start..start + 11]);
    for (busy, idle) in busy.iter().zip(idle) {
        let shape = |line: &str| line.split_once(" grid").unwrap().1.to_string();
        assert!(idle.starts_with("run nothing ") && shape(idle) == shape(busy), "{idle}\n{busy}");
    }
    // Graphs of 1 to 11 launches, each run once more than it counts, and those of the steps that are compared.
    let firsts = trace.lines().filter(|line| line.starts_with("replay embedding_")).count();
    let compared = 2 * (1 + 3 * (2 + 2));
    assert_eq!(firsts, 11 * (1 + RUNS) + compared);
    let lasts = trace.lines().filter(|line| line.starts_with("replay sample_")).count();
    assert_eq!(lasts, 1 + RUNS + compared);
}

/// Where the first state is one that each step changes for good, whatever goes back gives its sequence zeros first.
#[test]
fn states_begin_anew() {
    // No other buffer has as many bytes.
    let options = EngineOptions { context: 40, sequences: 2 };
    let open = model();
    let (mut plan, compiled) = compiled(&open, vec![1], PlanOptions::default().prompts);
    let state = plan.states[0].bytes(options.context);
    if std::env::var_os(TRACE).is_none() {
        let trace = on_fake_driver("states_begin_anew", None);
        let begun = trace.lines().filter(|line| *line == format!("fill {state} bytes with 0")).count();
        assert_eq!(begun, 3 + 3 + 1, "three times logits, three prompts, one run of decode steps: {trace}");
        return;
    }
    (plan.states[0].start, plan.states[0].replay) = (Start::Zeros, Replay::Once);
    let cubins = compiled.iter().map(|(name, kernel)| (name.as_str(), kernel.cubin.as_slice())).collect();
    let gpu = Gpu::open(0).unwrap();
    let mut engine = GpuEngine::load(gpu, plan, &cubins, WeightSource::Dummy, options).unwrap();
    engine.logits(&[1, 2, 3], false).unwrap();
    engine.logits(&[1, 2, 3], true).unwrap();
    engine.uncaptured_logits(&[1, 2, 3]).unwrap();
    engine.time_prompt(5, 3).unwrap();
    engine.time_decode(1, 8, 4).unwrap();
}

/// The fake driver is always done, as if launches were not queued: the reads ahead grow as far as they may.
const GROWTHS_OF_READS: usize = 5;

fn model() -> OpenModel {
    let model = Some(root().join("tests/goldens/llama-tied"));
    OpenModel::open(&ModelName { model, tuning: TuningSource::None, ..ModelName::default() }).unwrap()
}

/// The plan for these batches and prompts with its device code, which is kept.
fn compiled(model: &OpenModel, batches: Vec<usize>, prompts: Vec<usize>) -> (Plan, BTreeMap<String, Compiled>) {
    let model =
        model.compile(PlanOptions { batches, prompts, clusters: true, wgmma: true, ..PlanOptions::default() }).unwrap();
    let code = device_code(&model.sources);
    (model.plan, code)
}

fn device_code(sources: &BTreeMap<String, String>) -> BTreeMap<String, Compiled> {
    let cached = Options { cache: Some(root().join(".cache/kernels")), ..Options::default() };
    compile_all(nvrtc(), sources, "sm_90a".parse().unwrap(), &cached).unwrap()
}

fn on_the_fake() {
    let open = model();
    let options = LoadOptions { context: 64, sequences: 1, batches: vec![1], threads: None };
    let Backend::Gpu(mut engine) = open.load(&Device::Cuda(0), &options).unwrap() else { panic!("the GPU was named") };
    engine.check_graphs().unwrap();

    let reader = MemoryReader::new(engine.gpu()).unwrap();
    let times = engine.time_launches(1, 20, RUNS, &reader).unwrap();
    assert!(!times.queued, "the fake driver runs everything at once");
    assert_eq!((times.alone.as_slice(), times.ends.as_slice()), ([0.0; 11].as_slice(), [1500.0; 11].as_slice()));
    let kind = engine.plan().decode_at(1, 20);
    let profile = Profile::new(engine.plan(), engine.plan().step(kind).unwrap(), &times, 1, 20, 1e12);
    assert_eq!((profile.step_us, profile.alone_us, profile.edges), (1500.0, 0.0, 10));
    assert!(profile.to_string().contains("were not queued"));
    let error = engine.time_launches(1, 63, RUNS, &reader).unwrap_err().to_string();
    assert_eq!(error, "2 steps from depth 63 on need a context of more than 64");
    assert!(
        engine.time_launches(4, 20, RUNS, &reader).unwrap_err().to_string().contains("no Decode { batch: 4 } step")
    );

    let compare = |engine: &mut GpuEngine, batches: Vec<usize>| {
        let (plan, compiled) = compiled(&open, batches, Vec::new());
        let cubins = compiled.iter().map(|(name, kernel)| (name.as_str(), kernel.cubin.as_slice())).collect();
        let variant = engine.variant(&plan, &cubins, 1, 64)?;
        engine.compare(&variant, 20, 3, 2)
    };
    let compared = compare(&mut engine, vec![1]).unwrap();
    assert_eq!((compared.medians(), compared.wins(), compared.own.len()), ((1500.0, 1500.0), 0, 3));
    assert!(compare(&mut engine, vec![2]).unwrap_err().to_string().contains("no Decode { batch: 1 } step"));
}
