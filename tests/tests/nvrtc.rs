//! The kernels of every shipped description compile for every architecture that is promised, with no GPU: all of them for one, and for the
//! rest those of the batch that takes most registers and of a short prompt, which are of every form.

use std::collections::BTreeSet;

use fuse_tests::{nvrtc, root};
use fusec::build::{Arch, Options, compile_all};
use fusec::compile::{CompileOptions, Model, compile};
use fusec::description::{Description, shipped};
use fusec::passes::Selection;
use fusec::plan::{PlanOptions, StepKind};

/// The architectures that are promised besides sm_90a.
const OTHERS: [&str; 5] = ["sm_80", "sm_86", "sm_89", "sm_100a", "sm_120"];

#[test]
fn every_kernel_compiles_for_every_arch() {
    let mut wrong = Vec::new();
    for &(file, text) in shipped() {
        wrong.extend(faults(&model(file, text, &CompileOptions::default()), "sm_90a"));
        let plan = PlanOptions { batches: vec![4], prompts: vec![32], ..PlanOptions::default() };
        let model = model(file, text, &CompileOptions { plan, ..CompileOptions::default() });
        for arch in OTHERS {
            wrong.extend(faults(&model, arch));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_unfused_kernel_compiles() {
    let plan = PlanOptions { batches: vec![1], prompts: vec![32], ..PlanOptions::default() };
    let options = CompileOptions { passes: Selection::none(), plan, ..CompileOptions::default() };
    let wrong: Vec<String> =
        shipped().iter().flat_map(|(file, text)| faults(&model(file, text, &options), "sm_90a")).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A line for each kernel that spills, and for each kernel of a decode step that has a stack. Panics where one does not compile.
fn faults(model: &Model, arch: &str) -> Vec<String> {
    let parsed: Arch = arch.parse().expect("the architecture is supported");
    let options = Options { cache: Some(root().join(".cache/kernels")), ..Options::default() };
    let compiled = compile_all(nvrtc(), &model.sources, parsed, &options);
    let compiled = compiled.unwrap_or_else(|error| panic!("{}: {error:#}", model.plan.name));
    assert_eq!(compiled.len(), model.plan.kernels.len());
    let decode = model.plan.steps.iter().filter(|step| matches!(step.kind, StepKind::Decode { .. }));
    let decode: BTreeSet<usize> = decode.flat_map(|step| step.launches.iter().map(|launch| launch.kernel)).collect();
    assert!(decode.len() >= 5, "a decode step has kernels");
    let mut wrong = Vec::new();
    for (index, kernel) in model.plan.kernels.iter().enumerate() {
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
