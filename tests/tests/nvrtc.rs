//! The kernels of every shipped description compile with no GPU, where on sm_90a none may spill and those of decode steps use no stack. Sources that differ in numbers only
//! are one form; of each form the longest source, which has the largest sizes, stands for the rest. A form for each architecture, and for sm_90a all sources that
//! differ in small numbers (batches, warps, depths), is compiled where what is recorded of them does not hold any more.
//! `tests/run all` compiles every source for every architecture that it is planned for.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use fuse_tests::checked::{Checked, count, runs_all};
use fuse_tests::{kind_of, nvrtc, root, without_layout};
use fusec::build::{Arch, Options, SUPPORTED_ARCHS, compile_all};
use fusec::compile::{CompileOptions, Model, compile};
use fusec::description::{Description, shipped};
use fusec::passes::Selection;
use fusec::plan::{KernelSpec, StepKind, Tuning, TuningSource};

/// Architectures that are planned for alike.
struct Target {
    archs: Vec<Arch>,
    tuning: Tuning,
}

/// The sources of one target by the names of their kernels.
type Sources = BTreeMap<String, Source>;

struct Source {
    text: String,
    kind: String,
    /// In a decode step.
    decodes: bool,
}

/// Where launch shapes are measured: nothing spills there.
const MEASURED: &str = "sm_90a";

/// Bytes that a kernel may spill on other architectures, whose assemblers hand out registers in their own ways: a few values outside the loops.
const MOST_SPILLS: u32 = 64;

#[test]
fn each_form_of_a_kernel_compiles() -> Result<()> {
    let target = target_of(MEASURED);
    let sources = [Selection::all(), Selection::none()].map(|passes| sources(&target, &passes));
    let forms = forms(sources.iter().flatten(), |_| true);
    assert!(forms.len() >= 100, "{} forms", forms.len());
    compile_unless_known("fused and unfused", &target.archs, &forms)
}

/// Batches, warps and depths decide the registers that each kernel needs.
#[test]
fn each_shape_of_a_kernel_compiles() -> Result<()> {
    let target = target_of(MEASURED);
    let sources = [Selection::all(), Selection::none()].map(|passes| sources(&target, &passes));
    let shapes = forms(sources.iter().flatten(), |number| number.len() >= 3);
    compile_unless_known("shapes", &target.archs, &shapes)
}

#[test]
fn each_form_of_a_kernel_compiles_for_each_architecture() -> Result<()> {
    for target in targets() {
        compile_unless_known("forms", &target.archs, &forms(&sources(&target, &Selection::all()), |_| true))?;
    }
    Ok(())
}

#[test]
fn every_description_compiles_for_every_architecture() -> Result<()> {
    if !runs_all() {
        let compilations = shipped().len() * SUPPORTED_ARCHS.len();
        count("matrix", "nvrtc", &format!("{compilations} compilations of a description for an architecture"));
        return Ok(());
    }
    for target in targets() {
        let sources = sources(&target, &Selection::all());
        let every: Vec<(&String, &Source)> = sources.iter().collect();
        for &arch in &target.archs {
            println!("{arch}: {} kernels", every.len());
            compile_for(arch, &every)?;
        }
    }
    Ok(())
}

/// Every description is planned for every supported architecture: no block asks for more than that architecture has.
#[test]
fn every_plan_fits_its_architecture() {
    for target in targets() {
        for model in models(&target, &Selection::all()) {
            for kernel in &model.plan.kernels {
                for arch in &target.archs {
                    let (name, bytes) = (&kernel.name, kernel.shared_bytes as usize);
                    assert!(bytes <= arch.shared_limit(), "{name} for {arch} asks for {bytes} bytes");
                }
                let clustered = matches!(kernel.spec, KernelSpec::AttentionProjection(_))
                    || matches!(&kernel.spec, KernelSpec::Sample(sample) if sample.cluster > 1);
                let arch = target.archs[0];
                assert!(arch.has_clusters() || !clustered, "{} for {arch} works in clusters", kernel.name);
            }
        }
    }
}

fn targets() -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    for name in SUPPORTED_ARCHS {
        let arch: Arch = name.parse().expect("it is supported");
        let tuning = TuningSource::Shipped.record(name).expect("the shipped record is sound");
        let plans = |arch: Arch| (arch.has_clusters(), arch.has_wgmma());
        match targets.iter_mut().find(|target| plans(target.archs[0]) == plans(arch) && target.tuning == tuning) {
            Some(target) => target.archs.push(arch),
            None => targets.push(Target { archs: vec![arch], tuning }),
        }
    }
    targets
}

/// The target of one architecture.
fn target_of(name: &str) -> Target {
    let arch: Arch = name.parse().expect("it is supported");
    let found = targets().into_iter().find(|target| target.archs.contains(&arch));
    Target { archs: vec![arch], ..found.expect("every supported architecture has a target") }
}

/// Each shipped description, planned for a target.
fn models(target: &Target, passes: &Selection) -> impl Iterator<Item = Model> {
    shipped().iter().map(|&(file, text)| {
        let description = Description::parse(text, file).unwrap_or_else(|errors| panic!("{errors}"));
        let options = CompileOptions { passes: passes.clone(), ..CompileOptions::default() };
        let options = options.on(target.archs[0], target.tuning.clone());
        compile(&description, None, &options).unwrap_or_else(|error| panic!("{file}: {error:#}"))
    })
}

fn sources(target: &Target, passes: &Selection) -> Sources {
    let mut sources = Sources::new();
    for mut model in models(target, passes) {
        let plan = &model.plan;
        let decode =
            plan.steps.iter().filter(|step| matches!(step.kind, StepKind::Near { .. } | StepKind::Decode { .. }));
        let decode: BTreeSet<usize> =
            decode.flat_map(|step| step.launches.iter().map(|launch| launch.kernel)).collect();
        assert!(decode.len() >= 5, "a decode step has kernels");
        for (index, kernel) in plan.kernels.iter().enumerate() {
            let text = model.sources.remove(&kernel.name).expect("every kernel has a source");
            let kind = kind_of(&kernel.spec.family().stem());
            let source = sources.entry(kernel.name.clone()).or_insert(Source { text, kind, decodes: false });
            source.decodes |= decode.contains(&index);
        }
    }
    sources
}

/// Of the sources that are equal without these numbers, and without all that have a point: the longest one each.
fn forms<'a>(
    sources: impl IntoIterator<Item = (&'a String, &'a Source)>,
    dropped: fn(&str) -> bool,
) -> Vec<(&'a String, &'a Source)> {
    let mut forms: BTreeMap<String, (&String, &Source)> = BTreeMap::new();
    for (name, source) in sources {
        let longest =
            forms.entry(without_numbers(&source.text.replace(name.as_str(), ""), dropped)).or_insert((name, source));
        if (source.text.len(), name) > (longest.1.text.len(), longest.0) {
            *longest = (name, source);
        }
    }
    forms.into_values().collect()
}

fn without_numbers(text: &str, dropped: fn(&str) -> bool) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, from) = rest.split_at(at);
        let of_number = |c: char| c.is_ascii_alphanumeric() || c == '.';
        let (number, after) = from.split_at(from.find(|c| !of_number(c)).unwrap_or(from.len()));
        let in_a_name = before.ends_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        result += before;
        result += if !in_a_name && (number.contains('.') || dropped(number)) { "#" } else { number };
        rest = after;
    }
    result + rest
}

#[test]
fn a_form_has_no_numbers_but_those_of_names() {
    let text = "constexpr int K2 = 128, B = 16; // e4\nfloat x = 1.5e-05f; f32(7)";
    let all = without_numbers(text, |_| true);
    assert_eq!(all, "constexpr int K2 = #, B = #; // e4\nfloat x = #-#; f32(#)");
    let sizes = without_numbers(text, |number| number.len() >= 3);
    assert_eq!(sizes, "constexpr int K2 = #, B = 16; // e4\nfloat x = #-#; f32(7)");
}

/// Where the options of compilations stand.
const OPTIONS: &str = include_str!("../../compiler/src/build/compile.rs");

/// Compiles the forms of each kind for these architectures, unless they are recorded.
fn compile_unless_known(what: &str, archs: &[Arch], forms: &[(&String, &Source)]) -> Result<()> {
    let mut kinds: BTreeMap<&str, Vec<(&String, &Source)>> = BTreeMap::new();
    for &(name, source) in forms {
        kinds.entry(&source.kind).or_default().push((name, source));
    }
    let version = nvrtc().version_text();
    let checked = Checked::of("nvrtc");
    for arch in archs {
        for (kind, forms) in &kinds {
            let texts = forms.iter().map(|(_, source)| without_layout(&source.text));
            let parts = [version.as_str(), OPTIONS, include_str!("nvrtc.rs")].map(str::to_owned);
            let parts: Vec<String> = parts.into_iter().chain(texts).collect();
            checked.run(&format!("{what} {arch} {kind}"), &parts, || compile_for(*arch, forms))?;
        }
    }
    Ok(())
}

/// Compiles sources for an architecture.
///
/// # Errors
/// One does not compile; else a line for each one that spills more than it may, and for each one of a decode step that has a stack beyond that.
fn compile_for(arch: Arch, sources: &[(&String, &Source)]) -> Result<()> {
    let options = Options { cache: Some(root().join(".cache/kernels")), ..Options::default() };
    let texts = sources.iter().map(|&(name, source)| (name.clone(), source.text.clone())).collect();
    let compiled = compile_all(nvrtc(), &texts, arch, &options)?;
    let mut wrong = String::new();
    for (name, source) in sources {
        let report = compiled[*name].report.kernel(name).expect("the report names the kernel");
        assert!(report.registers > 0, "{name}: no registers are reported");
        let (spills, stack) = (report.spill_store_bytes + report.spill_load_bytes, report.stack_bytes);
        let (most_spills, most_stack) = if arch.to_string() == MEASURED { (0, 0) } else { (MOST_SPILLS, MOST_SPILLS) };
        if spills > most_spills || (stack > most_stack && source.decodes) {
            wrong += &format!("\n{name} for {arch}: {spills} bytes of spills, {stack} bytes of stack");
        }
    }
    ensure!(wrong.is_empty(), "{wrong}");
    Ok(())
}
