//! The kernels of every shipped description compile with no GPU: for one architecture those of one row, in turn of the batch that takes most registers and of
//! the one between, and of every fourth one a short prompt or a longer one, as the shipped record has them; for each other architecture that is promised those of
//! some of the descriptions; without passes those of a sixth. Two tests of about equal length, which two cores take side by side.

use std::collections::{BTreeMap, BTreeSet};

use fuse_tests::{nvrtc, root};
use fusec::build::{Arch, Options, SUPPORTED_ARCHS, compile_all};
use fusec::compile::{CompileOptions, Model, compile};
use fusec::description::{Description, shipped};
use fusec::passes::Selection;
use fusec::plan::{Kernel, KernelSpec, PlanOptions, Step, StepKind, Tuning, TuningSource};

/// Those of the architectures below whose blocks work in clusters.
const CLUSTERED: [&str; 2] = ["sm_100a", "sm_120"];

/// The architectures that are promised besides sm_90a.
const OTHERS: [&str; 5] = ["sm_80", "sm_86", "sm_89", "sm_100a", "sm_120"];

#[test]
fn every_kernel_compiles() {
    let mut wrong = Vec::new();
    for (turn, &(file, text)) in shipped().iter().enumerate() {
        let batches = [&[1, 2][..], &[1], &[1, 4], &[1]][turn % 4].to_vec();
        let prompts = [&[32][..], &[], &[], &[], &[128], &[], &[], &[]][turn % 8].to_vec();
        let tuning = TuningSource::Shipped.record("sm_90a").expect("the shipped record is sound");
        let plan = PlanOptions { batches, prompts, tuning, clusters: true, wgmma: true };
        let whole = model(file, text, &CompileOptions { plan, ..CompileOptions::default() });
        wrong.extend(faults(&whole, "sm_90a", |_| true));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unfused_kernels_and_other_architectures_compile() {
    let mut wrong = Vec::new();
    for (turn, &(file, text)) in shipped().iter().enumerate() {
        let plan = PlanOptions { batches: vec![1], prompts: vec![32], ..PlanOptions::default() };
        for arch in CLUSTERED {
            let plan = PlanOptions { clusters: true, ..plan.clone() };
            let whole = model(file, text, &CompileOptions { plan, ..CompileOptions::default() });
            wrong.extend(faults(&whole, arch, |spec| matches!(spec, KernelSpec::AttentionProjection(_))));
        }
        if turn % 3 == 0 {
            let prompts = if turn % 6 == 0 { vec![32] } else { Vec::new() };
            let plan = PlanOptions { batches: vec![4], prompts, ..plan.clone() };
            let model = model(file, text, &CompileOptions { plan, ..CompileOptions::default() });
            wrong.extend(faults(&model, OTHERS[turn / 3 % OTHERS.len()], |_| true));
        }
        if turn % 6 == 0 {
            let options = CompileOptions { passes: Selection::none(), plan, ..CompileOptions::default() };
            wrong.extend(faults(&model(file, text, &options), "sm_90a", |_| true));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Every description is planned for every supported architecture: no block asks for more than that architecture has.
#[test]
fn every_plan_fits_its_architecture() {
    // Architectures that are planned for alike have one plan.
    let mut targets: Vec<(bool, Tuning, Vec<Arch>)> = Vec::new();
    for name in SUPPORTED_ARCHS {
        let arch: Arch = name.parse().expect("it is supported");
        let tuning = TuningSource::Shipped.record(name).expect("the shipped record is sound");
        match targets.iter_mut().find(|(clusters, record, _)| (*clusters, record) == (arch.has_clusters(), &tuning)) {
            Some((.., alike)) => alike.push(arch),
            None => targets.push((arch.has_clusters(), tuning, vec![arch])),
        }
    }
    for &(file, text) in shipped() {
        for (clusters, tuning, archs) in &targets {
            let whole = model(file, text, &CompileOptions::default().on(archs[0], tuning.clone()));
            for kernel in &whole.plan.kernels {
                for arch in archs {
                    let (name, bytes) = (&kernel.name, kernel.shared_bytes as usize);
                    assert!(bytes <= arch.shared_limit(), "{name} for {arch} asks for {bytes} bytes");
                }
                let clustered = matches!(kernel.spec, KernelSpec::AttentionProjection(_))
                    || matches!(&kernel.spec, KernelSpec::Sample(sample) if sample.cluster > 1);
                assert!(*clusters || !clustered, "{} for {} works in clusters", kernel.name, archs[0]);
            }
        }
    }
}

/// A line for each of these kernels that spills, and for each one of a decode step that has a stack. Panics where one does not compile.
fn faults(model: &Model, arch: &str, these: impl Fn(&KernelSpec) -> bool) -> Vec<String> {
    let parsed: Arch = arch.parse().expect("the architecture is supported");
    let options = Options { cache: Some(root().join(".cache/kernels")), ..Options::default() };
    let kernels: Vec<(usize, &Kernel)> =
        model.plan.kernels.iter().enumerate().filter(|(_, kernel)| these(&kernel.spec)).collect();
    let sources: BTreeMap<String, String> =
        kernels.iter().map(|(_, kernel)| (kernel.name.clone(), model.sources[&kernel.name].clone())).collect();
    let compiled = compile_all(nvrtc(), &sources, parsed, &options);
    let compiled = compiled.unwrap_or_else(|error| panic!("{}: {error:#}", model.plan.name));
    assert_eq!(compiled.len(), kernels.len());
    let decodes = |step: &&Step| matches!(step.kind, StepKind::Near { .. } | StepKind::Decode { .. });
    let decode = model.plan.steps.iter().filter(decodes);
    let decode: BTreeSet<usize> = decode.flat_map(|step| step.launches.iter().map(|launch| launch.kernel)).collect();
    assert!(decode.len() >= 5, "a decode step has kernels");
    let mut wrong = Vec::new();
    for (index, kernel) in kernels {
        let report = compiled[&kernel.name].report.kernel(&kernel.name).expect("the report names the kernel");
        assert!(report.registers > 0, "{}: no registers are told", kernel.name);
        let spills = report.spill_store_bytes + report.spill_load_bytes;
        if spills > 0 || (report.stack_bytes > 0 && decode.contains(&index)) {
            let (name, stack) = (&kernel.name, report.stack_bytes);
            wrong.push(format!("{name} for {arch}: {spills} bytes of spills, {stack} bytes of stack"));
        }
    }
    wrong
}

fn model(file: &str, text: &str, options: &CompileOptions) -> Model {
    let description = Description::parse(text, file).unwrap_or_else(|errors| panic!("{errors}"));
    compile(&description, None, options).unwrap_or_else(|error| panic!("{file}: {error:#}"))
}
