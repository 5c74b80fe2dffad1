//! The commands that only look: `check`, `print`, `explain`, `graph`, `passes`.

use std::fmt::Write;

use anyhow::{Result, anyhow};
use clap::{Args, ValueEnum};

use super::compile::{TargetArgs, summaries};
use super::model::ModelArgs;
use crate::compile::{CompileOptions, Model, compile};
use crate::console::show;
use crate::description::{Facts, json_schema};
use crate::ir::Graph;
use crate::passes::{self, Missed, PIPELINE};
use crate::plan::{Plan, PlanOptions};
use crate::select::{self, RULES, Rule};
use crate::tensors::{self, Accounting};

/// What to check.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  fusec check --checkpoint Qwen3-0.6B
  fusec check mine.toml --checkpoint MyModel")]
pub(super) struct CheckArgs {
    #[command(flatten)]
    model: ModelArgs,
}

/// One line that says what the model is.
pub(super) fn check(args: &CheckArgs) -> Result<()> {
    let opened = args.model.open()?;
    let options = CompileOptions { plan: PlanOptions::none(), ..args.model.options()? };
    let model = compile(&opened.description, opened.config.as_ref(), &options)?;
    let accounting = opened.account(&model)?;
    model.resolved.refuse_unread().map_err(|diagnostics| anyhow!("{diagnostics}"))?;
    let accounting = accounting.map_or(String::new(), |accounting| format!("{}\n", accounted(&accounting)));
    show(format!("{}: {}\n{accounting}", opened.file, summary(&opened.description.name, &model)))
}

/// `146 tensors of the checkpoint: 145 read once, 1 shared (model.embed_tokens.weight)`
fn accounted(Accounting { once, shared, ignored, others }: &Accounting) -> String {
    let some = |names: &[String], what: &str| match names {
        [] => String::new(),
        [first] => format!(", 1 {what} ({first})"),
        [first, .., last] => format!(", {} {what} ({first} to {last})", names.len()),
    };
    let total = once + shared.len() + ignored.len() + others.len();
    let shared = some(shared, "read by several operations");
    let ignored = some(ignored, "that holds no weights of its own");
    let others = some(others, "of other parts than the language model");
    format!("{total} tensors of the checkpoint: {once} read once{shared}{ignored}{others}")
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

/// The JSON Schema of descriptions.
pub(super) fn schema() -> Result<()> {
    show(format!("{}\n", serde_json::to_string_pretty(&json_schema())?))
}

/// Which graph to print.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  fusec print llama
  fusec print llama --after fuse-rope")]
pub(super) struct PrintArgs {
    /// The graph as it is after this pass; if it is not given, after the last one.
    #[arg(long, env = "FUSE_AFTER", value_name = "PASS")]
    after: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
}

/// The graph in its text form.
pub(super) fn print(args: &PrintArgs) -> Result<()> {
    show(graph_of(&args.model, args.after.as_deref())?)
}

/// Which graph to draw, and how.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  fusec graph llama --format dot | dot -Tsvg > llama.svg")]
pub(super) struct GraphArgs {
    /// The graph as it is after this pass; if it is not given, after the last one.
    #[arg(long, env = "FUSE_AFTER", value_name = "PASS")]
    after: Option<String>,
    /// The text form, or DOT for Graphviz.
    #[arg(long, env = "FUSE_FORMAT", value_enum, default_value = "text")]
    format: Format,
    #[command(flatten)]
    model: ModelArgs,
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
#[command(after_help = "\
Examples:
  fusec explain llama
  fusec explain --checkpoint Qwen3-0.6B")]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// The line of each plan, what each pass did, and what kept others from it.
pub(super) fn explain(args: &ExplainArgs) -> Result<()> {
    let models = args.target.models(&args.model.open()?, &args.model.options()?)?;
    let mut text = format!("{}\n\n", summaries(&models));
    let Some((_, model)) = models.first() else { return Ok(()) };
    for rewrite in PIPELINE {
        let run = model.report.passes.iter().find(|pass| pass.name == rewrite.name);
        let did = run.map_or("off".to_owned(), |pass| match pass.stats.fired {
            0 => "did not fire".to_owned(),
            1 => "fired once".to_owned(),
            fired => format!("fired {fired} times"),
        });
        writeln!(text, "{:<NAME_WIDTH$}  {did}", rewrite.name)?;
    }
    let plans: Vec<&Plan> = models.iter().map(|(_, model)| &model.plan).collect();
    let mut missed: Vec<Missed> =
        passes::explain_beside(&model.graph, &|node| plans.iter().all(|plan| plan.fuses(node)));
    let (counts, left) =
        select::explain(&model.graph, args.target.rules(), &|node| plans.iter().all(|plan| plan.shares(node)));
    missed.extend(left);
    text += "\nWhat kernels take in, of up to 8 rows:\n";
    for (rule, count) in counts {
        let did = match (args.target.rules().has(rule.name), count) {
            (false, _) => "off".to_owned(),
            (true, 0) => "nothing".to_owned(),
            (true, 1) => "one node".to_owned(),
            (true, count) => format!("{count} nodes"),
        };
        writeln!(text, "{:<NAME_WIDTH$}  {did}", rule.name)?;
    }
    text += if missed.is_empty() { "\nEverything that could fuse did.\n" } else { "\nWhat did not fuse, and why:\n" };
    for miss in missed {
        writeln!(text, "{miss}")?;
    }
    show(text)
}

/// The table of the passes, in the order in which they run, and that of the rules.
pub(super) fn passes() -> Result<()> {
    let line = |rewrite: &passes::Rewrite| format!("{:<NAME_WIDTH$}  {}\n", rewrite.name, rewrite.doc);
    let rule = |rule: &Rule| format!("{:<NAME_WIDTH$}  {}\n", rule.name, rule.doc);
    show(PIPELINE.iter().map(line).chain(RULES.iter().map(rule)).collect::<String>())
}

/// Room for the longest name of a pass.
const NAME_WIDTH: usize = 20;
