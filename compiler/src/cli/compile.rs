//! `fusec compile`: from a description to a `.fuse` file.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use clap::builder::PossibleValuesParser;

use super::model::{ModelArgs, Opened};
use crate::build::{Arch, Nvrtc, Options, ResourceReport};
use crate::compile::{CompileOptions, Model, artifact};
use crate::console::tell;
use crate::description::Beyond;
use crate::output;
use crate::passes;
use crate::plan::{PlanOptions, TuningSource, WeightFormat};
use crate::select::Rules;

/// What to compile for, and where to put it.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  fusec compile llama --arch sm_90a -o llama.fuse
  fusec compile --checkpoint Qwen3-0.6B --arch sm_80,sm_90a --batch 1
  fusec compile mine.toml --config config.json --dump dump")]
pub(super) struct CompileArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Sequences that decode together.
    #[arg(long, env = "FUSE_BATCH", value_delimiter = ',', value_name = "N,…", default_value = "1,2,4",
          value_parser = PossibleValuesParser::new(["1", "2", "4", "8", "16", "32"]))]
    batch: Vec<String>,
    /// Positions a sequence may have where `fuserun` is given no other number: kept in the file's manifest.
    #[arg(long, env = "FUSE_MAX_CONTEXT", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    max_context: Option<u32>,
    /// How weights are taken: auto, as they are stored, where kernels read that; bf16 or f16; or quantised: q8_0, q6_k, q5_k, q4_k, q4_0, mxfp4, fp8, int8, int4 and others.
    #[arg(long, env = "FUSE_WEIGHTS", default_value = "auto", value_name = "FORMAT")]
    weights: WeightFormat,
    /// A folder for the graph as described and after each pass, the plan of each architecture, each kernel's source, and the assembler's reports.
    #[arg(long, env = "FUSE_DUMP", value_name = "DIR")]
    dump: Option<PathBuf>,
    /// The file to write, - for stdout; NAME.fuse if it is not given.
    #[arg(short, long, env = "FUSE_OUTPUT", value_name = "FILE.fuse")]
    output: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
}

/// What to plan for.
#[derive(Args, Clone, Debug)]
pub(super) struct TargetArgs {
    /// GPU architectures to plan for and to make device code for.
    #[arg(long, env = "FUSE_ARCH", value_delimiter = ',', value_name = "ARCH,…", default_value = "sm_90a")]
    arch: Vec<Arch>,
    /// Launch shapes: auto (the shipped record of the architecture, where there is one), none (heuristics only), or a record of fusec tune.
    #[arg(long, env = "FUSE_TUNING", value_name = "FILE", default_value = "auto")]
    tuning: TuningSource,
    /// Rules to leave out (-name,…), or the only ones by which kernels compute more than their own nodes (name,…); all or none.
    #[arg(
        long,
        env = "FUSE_RULES",
        allow_hyphen_values = true,
        value_name = "-NAME,…",
        default_value = "all",
        hide_default_value = true
    )]
    rules: Rules,
}

impl TargetArgs {
    /// Which rules decide.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The model planned for each of the architectures, oldest first.
    pub fn models(&self, opened: &Opened, options: &CompileOptions) -> Result<Vec<(Arch, Model)>> {
        let mut archs = self.arch.clone();
        archs.sort();
        archs.dedup();
        let records = self.tuning.records(&archs.iter().map(Arch::to_string).collect::<Vec<_>>())?;
        let plan = PlanOptions { rules: self.rules.clone(), ..options.plan.clone() };
        let options = CompileOptions { plan, ..options.clone() };
        let model = |(arch, record)| Ok((arch, opened.compile(&options.clone().on(arch, record))?));
        archs.into_iter().zip(records).map(model).collect()
    }
}

/// The summary of the plan; of several architectures one line per architecture, which begins with its name.
pub(super) fn summaries(models: &[(Arch, Model)]) -> String {
    match models {
        [(_, model)] => model.plan.summary(),
        _ => models
            .iter()
            .map(|(arch, model)| format!("{arch}: {}", model.plan.summary()))
            .collect::<Vec<_>>()
            .join("\n"),
    }
}

/// Compiles and writes the artifact; a line about each plan on stderr, then about the file.
pub(super) fn run(args: &CompileArgs) -> Result<()> {
    let opened = args.model.open()?;
    let options = args.options()?;
    let models = args.target.models(&opened, &options)?;
    if let (Some(context), Some((_, model))) = (options.context, models.first()) {
        let limit = model.facts.context_limit.filter(|_| model.facts.beyond == Beyond::OnePass).unwrap_or(context);
        ensure!(
            context <= limit,
            "--max-context {context}: beyond {limit} positions the base of dynamic RoPE changes with every token; give at most {limit}"
        );
    }
    tell(summaries(&models));
    if let Some(rounding) = models.first().and_then(|(_, model)| model.plan.rounding()) {
        tell(rounding);
    }
    if let Some(folder) = &args.dump {
        dump(folder, &models, &options)?;
    }

    let nvrtc = Nvrtc::find().map_err(|missing| tell(format!("{missing}; the file has sources only"))).ok();
    let planned: Vec<(Arch, &Model)> = models.iter().map(|(arch, model)| (*arch, model)).collect();
    let build = Options { cache: kernel_cache(), ..Options::default() };
    let mut artifact = artifact(&planned, &opened.text, opened.config.as_ref(), nvrtc, &build)?;
    if let Some(positions) = args.max_context {
        artifact.manifest.extra.insert("max_context".into(), positions.into());
    }
    if let Some(folder) = &args.dump {
        dump_reports(folder, &artifact.reports)?;
    }

    let output = args.output.clone().unwrap_or_else(|| default_output(&opened));
    artifact.write(&output)?;
    let code = match &artifact.manifest.archs[..] {
        [] => "sources only".to_owned(),
        archs => archs.join(", "),
    };
    tell(format!("wrote {}: {} kernels, {code}", output::name(&output), artifact.sources.len()));
    Ok(())
}

impl CompileArgs {
    fn options(&self) -> Result<CompileOptions> {
        let mut batches = self.batch.iter().map(|batch| Ok(batch.parse::<usize>()?)).collect::<Result<Vec<usize>>>()?;
        batches.sort();
        batches.dedup();
        Ok(CompileOptions {
            passes: self.model.selection()?,
            plan: PlanOptions { batches, ..PlanOptions::default() },
            context: self.max_context.map(|positions| positions as usize),
            weights: self.weights,
            ..CompileOptions::default()
        })
    }
}

/// NAME.fuse in the current folder, by the description's name.
fn default_output(opened: &Opened) -> PathBuf {
    PathBuf::from(format!("{}.fuse", opened.description.name))
}

/// The folder that keeps device code by content: `kernels` in FUSE_CACHE, XDG_CACHE_HOME/fuse or ~/.cache/fuse. None where there is no such place.
pub(super) fn kernel_cache() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let root = variable("FUSE_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|root| root.join("fuse")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/fuse")))?;
    Some(root.join("kernels"))
}

/// Each stage up to the sources: what a kernel that does not compile is read beside.
fn dump(folder: &Path, models: &[(Arch, Model)], options: &CompileOptions) -> Result<()> {
    let Some((_, first)) = models.first() else { return Ok(()) };
    write(folder, "00-described.txt", &first.described.to_string())?;
    let mut graph = first.described.clone();
    let mut stages = Vec::new();
    passes::run(&mut graph, &options.passes, &mut |pass, graph, _| stages.push((pass.to_owned(), graph.to_string())))?;
    for (number, (pass, text)) in stages.iter().enumerate() {
        write(folder, &format!("{:02}-{pass}.txt", number + 1), text)?;
    }
    for (arch, model) in models {
        write(&folder.join("plan"), &format!("{arch}.json"), &(serde_json::to_string_pretty(&model.plan)? + "\n"))?;
        for (name, source) in &model.sources {
            write(&folder.join("src"), &format!("{name}.cu"), source)?;
        }
    }
    Ok(())
}

fn dump_reports(folder: &Path, reports: &BTreeMap<String, BTreeMap<String, ResourceReport>>) -> Result<()> {
    for (arch, report) in reports {
        write(&folder.join("reports"), &format!("{arch}.json"), &(serde_json::to_string_pretty(report)? + "\n"))?;
    }
    Ok(())
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    output::write(&path, text.as_bytes())
}
