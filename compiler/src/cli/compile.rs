//! `fusec compile`: from a description to a `.fuse` file.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use clap::builder::PossibleValuesParser;

use super::model::{ModelArgs, Opened};
use super::tell;
use crate::build::{Arch, Nvrtc, Options, ResourceReport};
use crate::compile::{CompileOptions, Model};
use crate::ir::DType;
use crate::passes;
use crate::plan::{PlanOptions, TuningSource};

/// What to compile for, and where to put it.
#[derive(Args, Clone, Debug)]
pub(super) struct CompileArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// GPU architectures to make device code for.
    #[arg(long, env = "FUSE_ARCH", value_delimiter = ',', value_name = "ARCH,…", default_value = "sm_90a")]
    arch: Vec<Arch>,
    /// Sequences that decode together: 1, 2, 4, 8.
    #[arg(long, env = "FUSE_BATCH", value_delimiter = ',', value_name = "N,…", default_value = "1,2,4",
          value_parser = PossibleValuesParser::new(["1", "2", "4", "8"]))]
    batch: Vec<String>,
    /// Positions a sequence may have where `fuserun` is not told otherwise: kept in the file's manifest.
    #[arg(long, env = "FUSE_MAX_CONTEXT", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_context: Option<u32>,
    /// The type of weights and caches.
    #[arg(long, env = "FUSE_DTYPE", default_value = "bf16", value_parser = PossibleValuesParser::new(["bf16", "f16", "f32"]))]
    dtype: String,
    /// Launch shapes: auto (the shipped record of the architecture, where there is one), none (the plan's own rules), or a record of fusec tune.
    #[arg(long, env = "FUSE_TUNING", value_name = "FILE", default_value = "auto")]
    tuning: TuningSource,
    /// A folder for the graph as described and after each pass, plan.json, each kernel's source, and the assembler's reports.
    #[arg(long, env = "FUSE_DUMP", value_name = "DIR")]
    dump: Option<PathBuf>,
    /// The file to write; NAME.fuse if it is not given.
    #[arg(short, long, env = "FUSE_OUTPUT", value_name = "FILE.fuse")]
    output: Option<PathBuf>,
}

/// Compiles and writes the artifact; a line about each on stderr, the plan's first.
pub(super) fn run(args: &CompileArgs) -> Result<()> {
    let opened = args.model.open()?;
    let options = args.options()?;
    let model = opened.compile(&options)?;
    tell(model.plan.summary());
    if let Some(folder) = &args.dump {
        dump(folder, &model, &options)?;
    }

    let nvrtc = Nvrtc::find().map_err(|missing| tell(format!("{missing}; the file has sources only"))).ok();
    let mut archs = args.arch.clone();
    archs.sort();
    archs.dedup();
    let build = Options { cache: kernel_cache(), ..Options::default() };
    let mut artifact = model.artifact(&opened.text, opened.config.as_ref(), nvrtc, &archs, &build)?;
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
    tell(format!("wrote {}: {} kernels, {code}", output.display(), artifact.sources.len()));
    Ok(())
}

impl CompileArgs {
    fn options(&self) -> Result<CompileOptions> {
        let mut batches = self.batch.iter().map(|batch| Ok(batch.parse::<usize>()?)).collect::<Result<Vec<usize>>>()?;
        batches.sort();
        batches.dedup();
        let archs: Vec<String> = self.arch.iter().map(Arch::to_string).collect();
        let dtype = DType::parse(&self.dtype).with_context(|| anyhow!("there is no dtype {}", self.dtype))?;
        Ok(CompileOptions {
            passes: self.model.selection()?,
            plan: PlanOptions {
                batches,
                tuning: self.tuning.record(&archs)?,
                clusters: self.arch.iter().all(|arch| arch.has_clusters()),
                ..PlanOptions::default()
            },
            dtype,
            context: self.max_context.map(|positions| positions as usize),
        })
    }
}

/// NAME.fuse in the current folder, by the description's name.
fn default_output(opened: &Opened) -> PathBuf {
    PathBuf::from(format!("{}.fuse", opened.description.name))
}

/// The folder that keeps device code by content: `kernels` in FUSE_CACHE, XDG_CACHE_HOME/fuse or ~/.cache/fuse. None where it cannot be made.
pub(super) fn kernel_cache() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let root = variable("FUSE_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|root| root.join("fuse")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/fuse")))?;
    let folder = root.join("kernels");
    fs::create_dir_all(&folder).is_ok().then_some(folder)
}

/// Each stage up to the sources: what a kernel that does not compile is read beside.
fn dump(folder: &Path, model: &Model, options: &CompileOptions) -> Result<()> {
    write(folder, "00-described.txt", &model.described.to_string())?;
    let mut graph = model.described.clone();
    let mut stages = Vec::new();
    passes::run(&mut graph, &options.passes, &mut |pass, graph, _| stages.push((pass.to_owned(), graph.to_string())))?;
    for (number, (pass, text)) in stages.iter().enumerate() {
        write(folder, &format!("{:02}-{pass}.txt", number + 1), text)?;
    }
    write(folder, "plan.json", &(serde_json::to_string_pretty(&model.plan)? + "\n"))?;
    for (name, source) in &model.sources {
        write(&folder.join("src"), &format!("{name}.cu"), source)?;
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
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&path, text))
        .with_context(|| format!("cannot write {}", path.display()))
}
