//! `fusec tune`: measures launch shapes on the GPU at hand and writes those that win into a record.
//!
//! This program knows no device: it compiles each candidate and hands it to `fuserun measure`, which runs it. A kernel by itself misleads, because in a
//! step it overlaps with its neighbours: what is measured is a whole decode step with the one shape changed, in turn with the step as the heuristics have it.

mod candidates;
mod judge;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;

use self::candidates::{Shape, Start, candidates};
use self::judge::{About, Judge, Measured};
use super::compile::kernel_cache;
use super::model::{ModelArgs, Opened};
use crate::build::{Arch, Nvrtc, Options};
use crate::compile::{CompileOptions, Model, artifact};
use crate::console::tell;
use crate::description::shipped;
use crate::output;
use crate::plan::{KernelSpec, Plan, PlanOptions, StepKind, Tuning, WeightFormat};
use crate::threads;

/// Which models, and how.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  fusec tune llama qwen3 -o tuning/sm_90a.toml
  fusec tune llama --config config.json --weights q4_k,int4_128 --depth 512")]
pub(super) struct TuneArgs {
    /// Descriptions, or names of shipped ones; none: all that are shipped.
    models: Vec<PathBuf>,
    /// A config.json, in the place of the description's own.
    #[arg(long, env = "FUSE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// How weights are taken, one after the other: bf16, f16, q8_0, q4_0 and other formats of the docs.
    #[arg(long, env = "FUSE_WEIGHTS", value_delimiter = ',', value_name = "FORMAT,…", default_value = "auto")]
    weights: Vec<WeightFormat>,
    /// Sequences that decode together.
    #[arg(long, env = "FUSE_BATCH", value_delimiter = ',', value_name = "N,…", default_value = "1,2,4")]
    batch: Vec<usize>,
    /// The position at which decoding begins; shapes that only longer contexts have are measured from 128 on.
    #[arg(long, env = "FUSE_TUNE_DEPTH", default_value_t = 96)]
    depth: usize,
    /// Rounds of a comparison; a shape wins only if it is the faster one in each.
    #[arg(long, env = "FUSE_TUNE_ROUNDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Steps per round, of the candidate and of the heuristics.
    #[arg(long, env = "FUSE_TUNE_STEPS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// The number of the GPU.
    #[arg(long, env = "FUSE_TUNE_GPU", default_value_t = 0)]
    gpu: usize,
    /// The program that measures; the default is the one beside this program.
    #[arg(long, env = "FUSE_FUSERUN", value_name = "FILE")]
    fuserun: Option<PathBuf>,
    /// The record to write, or to add to; tuning/ARCH.toml if it is not given.
    #[arg(short, long, env = "FUSE_OUTPUT", value_name = "FILE.toml")]
    output: Option<PathBuf>,
}

/// A shape must make the step faster by this much, or the record stays as it is.
const LEAST_GAIN: f64 = 0.002;

/// Times that each shape is looked at, each time beside the others' winners: what is best depends on what runs next to it.
const SWEEPS: usize = 3;

/// How far a candidate's logits may be from those of the heuristics: both round at the same places and add in another order.
const MOST_ERROR: f64 = 1e-3;

/// Tunes each model for each batch; the record is written after each shape that wins, so that what was measured is kept.
pub(super) fn run(args: &TuneArgs) -> Result<()> {
    ensure!(
        args.config.is_none() || args.models.len() == 1,
        "--config is the configuration of one model: name only that model"
    );
    ensure!(
        args.depth.checked_add(args.steps as usize).is_some_and(|last| last < i32::MAX as usize),
        "--depth {} and {} steps are beyond a position's 31 bits: give a smaller --depth",
        args.depth,
        args.steps
    );
    let program = measuring_program(args.fuserun.as_deref())?;
    let nvrtc = Nvrtc::find().map_err(|missing| anyhow!("{missing}"))?;
    let about = judge::about(&program, args.gpu)?;
    let arch: Arch = about.arch.parse()?;
    let compiler = format!("NVRTC {}, fusec {}", nvrtc.version_text(), env!("CARGO_PKG_VERSION"));
    let output = args.output.clone().unwrap_or_else(|| format!("tuning/{arch}.toml").into());
    let mut record = begin(&output, &about, &compiler)?;
    tell(format!("{} ({arch}), driver {}, {compiler}", about.gpu, about.driver));

    // What cannot be replaced is written once.
    let stream = output::is_stream(&output);
    let folder = Scratch::new()?;
    for opened in opened(args)? {
        for &weights in &args.weights {
            for &batch in &args.batch {
                let bench =
                    Bench { args, program: &program, nvrtc, arch, folder: &folder.0, opened: &opened, weights, batch };
                bench.tune(&mut record, &|record| if stream { Ok(()) } else { write(&output, record) })?;
            }
        }
    }
    if stream {
        write(&output, &record)?;
    }
    let entries = record.matvecs.len() + record.attentions.len();
    tell(format!("wrote {}: {entries} shapes", output::name(&output)));
    Ok(())
}

/// What one model at one batch is tuned with.
struct Bench<'a> {
    args: &'a TuneArgs,
    program: &'a Path,
    nvrtc: Nvrtc,
    arch: Arch,
    folder: &'a Path,
    opened: &'a Opened,
    weights: WeightFormat,
    batch: usize,
}

impl Bench<'_> {
    /// Measures the candidates of each shape of the decode steps beside what the record has, and enters each that makes the step faster still.
    fn tune(&self, record: &mut Tuning, keep: &dyn Fn(&Tuning) -> Result<()>) -> Result<()> {
        let rules = self.compile(&Tuning::default())?;
        let base = self.written("rules", &rules, true)?.context("the heuristics' own kernels compile")?;
        let mut judge = Judge::start(self.program, &self.arguments(&base))?;
        tell(rules.plan.summary());
        let far = StepKind::Decode { batch: self.batch };
        let mut shapes: Vec<Shape> = Vec::new();
        for kind in [rules.plan.decode_at(self.batch, 0), far] {
            let step = rules.plan.step(kind).context("a decode step was planned")?;
            for launch in &step.launches {
                let shape = Shape::of(&rules.plan.kernels[launch.kernel].spec, launch.grid[0] as usize, self.batch);
                // The warps and keys of a near step's attention are not a record's.
                let shape = shape.filter(|shape| kind == far || matches!(shape, Shape::Matvec(_)));
                shapes.extend(shape.filter(|shape| !shapes.contains(shape)));
            }
        }
        let mut gain = self.gain_of(record, &rules, &mut judge)?;
        // What loses one by one may win together: the shapes of fewer rows, and when kernels begin.
        for start in [Start::FewerRows, Start::Late] {
            if let Some((together, measured)) = self.together(start.of(&shapes, record), record, gain, &mut judge)? {
                tell(format!("  {start}: {measured}"));
                together.iter().for_each(|shape| shape.enter(record, &measured));
                gain = measured.gain();
                keep(record)?;
            }
        }
        for _ in 0..SWEEPS {
            let before = gain;
            for shape in &shapes {
                let current = shape.entered(record).unwrap_or_else(|| shape.clone());
                if let Some((winner, measured)) = self.best(&current, record, gain, &mut judge)? {
                    tell(format!("  {shape}: {winner:#}, {measured}"));
                    winner.enter(record, &measured);
                    gain = measured.gain();
                    keep(record)?;
                }
            }
            if gain == before {
                break;
            }
        }
        for shape in shapes.iter().filter(|shape| shape.entered(record).is_none()) {
            tell(format!("  {shape}: the heuristics' {shape:#} stands"));
        }
        Ok(())
    }

    /// What the step gains by the record as it is.
    fn gain_of(&self, record: &Tuning, rules: &Model, judge: &mut Judge) -> Result<f64> {
        let model = self.compile(record)?;
        if self.step_at(&model.plan, self.last()) == self.step_at(&rules.plan, self.last()) {
            return Ok(0.0);
        }
        let measured = self.measured("record", &model, judge)?;
        measured.iter().for_each(|measured| tell(format!("  as the record has it: {measured}")));
        Ok(measured.filter(wins).map_or(0.0, |measured| measured.gain()))
    }

    /// Those of the shapes that change the step, with what they make of it together; none where they gain at most `least`.
    fn together(
        &self,
        shapes: Vec<Shape>,
        record: &Tuning,
        least: f64,
        judge: &mut Judge,
    ) -> Result<Option<(Vec<Shape>, Measured)>> {
        let before = self.compile(record)?.plan;
        let mut changing = Vec::new();
        for shape in shapes {
            let plan = self.compile(&shape.beside(record))?.plan;
            if self.step_at(&plan, self.last()) != self.step_at(&before, self.last()) {
                changing.push(shape);
            }
        }
        let model = self.compile(&changing.iter().fold(record.clone(), |beside, shape| shape.beside(&beside)))?;
        if changing.is_empty() || !self.keeps_near(&before, &model.plan) {
            return Ok(None);
        }
        let measured = self.measured("together", &model, judge)?;
        Ok(measured.filter(|measured| gains(measured, least)).map(|measured| (changing, measured)))
    }

    /// A step beside that of the heuristics; none where a kernel of it does not compile or spills, or it does not run.
    fn measured(&self, name: &str, model: &Model, judge: &mut Judge) -> Result<Option<Measured>> {
        let file = self.write(name, model)?;
        Ok(file.map(|file| judge.measure(&file)).transpose()?.flatten())
    }

    /// Whether what is measured is the near step, or else `plan` has the same near step as `other`: it was not measured.
    fn keeps_near(&self, plan: &Plan, other: &Plan) -> bool {
        plan.decode_at(self.batch, 0) == plan.decode_at(self.batch, self.last())
            || self.step_at(plan, 0) == self.step_at(other, 0)
    }

    /// The candidate in the place of `current` that makes the step fastest, measured once more to be sure; none where none gains more than `least`.
    fn best(
        &self,
        current: &Shape,
        beside: &Tuning,
        least: f64,
        judge: &mut Judge,
    ) -> Result<Option<(Shape, Measured)>> {
        let gains = |measured: &Measured| gains(measured, least);
        let mut best: Option<(Shape, PathBuf, Measured)> = None;
        for (candidate, file) in self.prepared(candidates(current), beside)? {
            let Some(measured) = judge.measure(&file)?.filter(gains) else { continue };
            if best.as_ref().is_none_or(|(_, _, before)| measured.gain() > before.gain()) {
                best = Some((candidate, file, measured));
            }
        }
        let Some((winner, file, _)) = best else { return Ok(None) };
        Ok(judge.measure(&file)?.filter(gains).map(|measured| (winner, measured)))
    }

    /// The artifacts of those candidates, beside what the record has, that change the step that is measured, each in a way of its own, compile and do not spill;
    /// made on every thread there is, in order. Where a far step is measured, those that would change the near one, which was not, are left out.
    fn prepared(&self, candidates: Vec<Shape>, beside: &Tuning) -> Result<Vec<(Shape, PathBuf)>> {
        let plan = self.compile(beside)?.plan;
        let mut steps = vec![self.step_at(&plan, self.last())];
        let mut due: Vec<(Shape, Model)> = Vec::new();
        for candidate in candidates {
            let model = self.compile(&candidate.beside(beside))?;
            let step = self.step_at(&model.plan, self.last());
            if !steps.contains(&step) && self.keeps_near(&plan, &model.plan) {
                steps.push(step);
                due.push((candidate, model));
            }
        }
        let done = Mutex::new(BTreeMap::new());
        threads::for_each(
            threads::available(),
            due.iter().enumerate(),
            || (),
            |_, (index, (shape, model))| {
                let made = self.write(&format!("candidate-{index}"), model)?.map(|file| (shape.clone(), file));
                done.lock().unwrap_or_else(PoisonError::into_inner).insert(index, made);
                anyhow::Ok(())
            },
        )?;
        Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().flatten().collect())
    }

    /// The last position that is measured.
    fn last(&self) -> usize {
        self.args.depth + self.args.steps as usize + 2
    }

    /// The kernels of the step at a position, and their blocks.
    fn step_at(&self, plan: &Plan, position: usize) -> Vec<(KernelSpec, [u32; 3])> {
        let launches = plan.step(plan.decode_at(self.batch, position)).map_or(&[][..], |step| &step.launches);
        launches.iter().map(|launch| (plan.kernels[launch.kernel].spec.clone(), launch.grid)).collect()
    }

    fn compile(&self, tuning: &Tuning) -> Result<Model> {
        let plan = PlanOptions { batches: vec![self.batch], prompts: Vec::new(), ..PlanOptions::default() };
        let options = CompileOptions { plan, weights: self.weights, ..CompileOptions::default() };
        self.opened.compile(&options.on(self.arch, tuning.clone()))
    }

    /// Writes the artifact of what is to win. None where a kernel does not compile or spills.
    fn write(&self, name: &str, model: &Model) -> Result<Option<PathBuf>> {
        self.written(name, model, false)
    }

    /// The same of what may `spill`.
    fn written(&self, name: &str, model: &Model, spill: bool) -> Result<Option<PathBuf>> {
        let options = Options { cache: kernel_cache(), ..Options::default() };
        let (text, config) = (&self.opened.text, self.opened.config.as_ref());
        let artifact = match artifact(&[(self.arch, model)], text, config, Some(self.nvrtc), &options) {
            Ok(artifact) => artifact,
            // The kernels of the heuristics must compile; a candidate may be one that the template refuses.
            Err(error) if model.tuning.is_empty() => return Err(error),
            Err(_) => return Ok(None),
        };
        let reports = artifact.reports.values().flat_map(BTreeMap::values);
        if !spill && !reports.into_iter().all(|report| report.is_free_of_spills()) {
            return Ok(None);
        }
        let file = self.folder.join(format!("{name}.fuse"));
        artifact.write(&file)?;
        Ok(Some(file))
    }

    fn arguments(&self, base: &Path) -> Vec<String> {
        let TuneArgs { depth, rounds, steps, gpu, .. } = self.args;
        let base = base.display().to_string();
        let pairs = [
            ("--base", base),
            ("--batch", self.batch.to_string()),
            ("--depth", depth.to_string()),
            ("--rounds", rounds.to_string()),
            ("--steps", steps.to_string()),
            ("--gpu", gpu.to_string()),
        ];
        pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }
}

/// Faster than the heuristics in every round, by more than nothing, and right.
fn wins(measured: &Measured) -> bool {
    measured.wins == measured.rounds && measured.gain() >= LEAST_GAIN && measured.nmse <= MOST_ERROR
}

/// Wins, and by more than what the record gains by now.
fn gains(measured: &Measured, least: f64) -> bool {
    wins(measured) && measured.gain() >= least + LEAST_GAIN
}

fn opened(args: &TuneArgs) -> Result<Vec<Opened>> {
    let shipped_ones = || shipped().iter().map(|(file, _)| PathBuf::from(file.trim_end_matches(".toml")));
    let models = if args.models.is_empty() { shipped_ones().collect() } else { args.models.clone() };
    let open = |model| {
        let (checkpoint, passes, level) = (None, None, None);
        ModelArgs { model: Some(model), checkpoint, config: args.config.clone(), passes, level }.open()
    };
    models.into_iter().map(open).collect()
}

/// `fuserun`, beside this program if it is not named.
fn measuring_program(named: Option<&Path>) -> Result<PathBuf> {
    let beside = || -> Result<PathBuf> {
        let own = std::env::current_exe().context("this program does not know where it lies")?;
        Ok(own.with_file_name(format!("fuserun{}", std::env::consts::EXE_SUFFIX)))
    };
    let path = named.map_or_else(beside, |path| Ok(path.to_path_buf()))?;
    ensure!(
        path.is_file(),
        "there is no {}: fuserun does the measuring; build it (cargo build --release), or name it with --fuserun",
        path.display()
    );
    Ok(path)
}

/// The record to add to: the file's, if it is of this GPU and compiler and has entries, else an empty one.
fn begin(output: &Path, about: &About, compiler: &str) -> Result<Tuning> {
    let About { arch, gpu, driver } = about.clone();
    let fresh = Tuning { arch, gpu, driver, compiler: compiler.to_owned(), ..Tuning::default() };
    if output::is_stream(output) || !output.exists() {
        return Ok(fresh);
    }
    let text = fs::read_to_string(output).with_context(|| format!("cannot read {}", output.display()))?;
    let there = Tuning::parse(&text, &output.display().to_string())?;
    if there.is_empty() {
        return Ok(fresh);
    }
    let header = |tuning: &Tuning| [&tuning.arch, &tuning.gpu, &tuning.driver, &tuning.compiler].map(String::clone);
    if header(&there) != header(&fresh) {
        bail!(
            "{} was measured with {}, and this is {}: name another file with --output, or delete it",
            output.display(),
            header(&there).join(", "),
            header(&fresh).join(", ")
        );
    }
    Ok(there)
}

fn write(path: &Path, record: &Tuning) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder {
        fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    output::write(path, record.to_string().as_bytes())
}

/// A folder of this run's own, removed with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch> {
        let path = std::env::temp_dir().join(format!("fusec-tune-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left of it is in the folder for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}
