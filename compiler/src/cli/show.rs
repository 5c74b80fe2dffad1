//! The commands that only look: `check`, `print`, `explain`, `graph`, `passes`.

use std::fmt::Write;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::model::ModelArgs;
use super::{show, tell};
use crate::compile::{CompileOptions, Model};
use crate::description::Facts;
use crate::ir::Graph;
use crate::passes::{self, Missed, PIPELINE};
use crate::plan::PlanOptions;
use crate::tensors;

/// What to check.
#[derive(Args, Clone, Debug)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    model: ModelArgs,
}

/// One line that says what the model is.
pub(super) fn check(args: &CheckArgs) -> Result<()> {
    let opened = args.model.open()?;
    let options = CompileOptions { plan: PlanOptions::none(), ..args.model.options()? };
    let model = opened.compile(&options)?;
    if let Ok(resolved) = opened.description.resolve(opened.config.as_ref())
        && !resolved.unread.is_empty()
    {
        tell(format!("config.json has keys that nothing reads: {}", resolved.unread.join(", ")));
    }
    show(format!("{}: {}\n", opened.file, summary(&opened.description.name, &model)))
}

/// `llama: 16 layers, vocabulary 128256, context 131072, 146 tensors with 1.236 billion weights`
fn summary(name: &str, model: &Model) -> String {
    let Facts { num_layers, vocab_size, max_position_embeddings, .. } = &model.facts;
    let tensors = tensors::required(&model.graph);
    let weights: usize = tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    let context = max_position_embeddings.map_or(String::new(), |context| format!(", context {context}"));
    format!(
        "{name}: {num_layers} layers, vocabulary {vocab_size}{context}, {} tensors with {weights} weights",
        tensors::names(&tensors).len()
    )
}

/// Which graph to print.
#[derive(Args, Clone, Debug)]
pub(super) struct PrintArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The graph as it is behind this pass; if it is not given, behind the last one.
    #[arg(long, env = "FUSE_AFTER", value_name = "PASS")]
    after: Option<String>,
}

/// The graph in its text form.
pub(super) fn print(args: &PrintArgs) -> Result<()> {
    show(graph_of(&args.model, args.after.as_deref())?)
}

/// Which graph to draw, and how.
#[derive(Args, Clone, Debug)]
pub(super) struct GraphArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The graph as it is behind this pass; if it is not given, behind the last one.
    #[arg(long, env = "FUSE_AFTER", value_name = "PASS")]
    after: Option<String>,
    /// The text form, or DOT for Graphviz.
    #[arg(long, env = "FUSE_FORMAT", value_enum, default_value = "text")]
    format: Format,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum Format {
    Text,
    Dot,
}

/// The graph as text or for Graphviz.
pub(super) fn graph(args: &GraphArgs) -> Result<()> {
    let graph = graph_of(&args.model, args.after.as_deref())?;
    match args.format {
        Format::Text => show(graph),
        Format::Dot => show(graph.to_dot()),
    }
}

fn graph_of(model: &ModelArgs, after: Option<&str>) -> Result<Graph> {
    let mut options = CompileOptions { plan: PlanOptions::none(), ..model.options()? };
    if let Some(pass) = after {
        options.passes = options.passes.stop_after(pass)?;
    }
    Ok(model.open()?.compile(&options)?.graph)
}

/// What to explain.
#[derive(Args, Clone, Debug)]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    model: ModelArgs,
}

/// The plan's line, what each pass did, and what kept others from it.
pub(super) fn explain(args: &ExplainArgs) -> Result<()> {
    let model = args.model.open()?.compile(&args.model.options()?)?;
    let mut text = format!("{}\n\n", model.plan.summary());
    for rewrite in PIPELINE {
        let run = model.report.passes.iter().find(|pass| pass.name == rewrite.name);
        let did = run.map_or("off".to_owned(), |pass| match pass.stats.fired {
            0 => "did not fire".to_owned(),
            1 => "fired once".to_owned(),
            fired => format!("fired {fired} times"),
        });
        writeln!(text, "{:<NAME_WIDTH$}  {did}", rewrite.name)?;
    }
    let missed: Vec<Missed> = passes::explain(&model.graph);
    text += if missed.is_empty() { "\nEverything that could fuse did.\n" } else { "\nWhat did not fuse, and why:\n" };
    for miss in missed {
        writeln!(text, "{miss}")?;
    }
    show(text)
}

/// The table of the passes, in the order in which they run.
pub(super) fn passes() -> Result<()> {
    let line = |rewrite: &passes::Rewrite| format!("{:<NAME_WIDTH$}  {}\n", rewrite.name, rewrite.doc);
    show(PIPELINE.iter().map(line).collect::<String>())
}

/// Room for the longest name of a pass.
const NAME_WIDTH: usize = 20;
