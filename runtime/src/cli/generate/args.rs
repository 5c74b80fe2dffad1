//! What `fuserun generate` is asked for.

use std::io::{read_to_string, stdin};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::Args;
use clap::builder::FalseyValueParser;
use fusec::console::tell;

use crate::backend::Device;
use crate::cli::model::ModelArgs;
use crate::cli::sampling::SamplingArgs;
use crate::generate::chat::Message;
use crate::generate::defaults::GenerationDefaults;
use crate::generate::tokenizer::Tokenizer;
use crate::grammar::Source;
use crate::model::OpenModel;
use crate::sampling::SamplingParameters;

/// Tokens to generate at most, where neither the user nor the model says.
const MAX_TOKENS: usize = 128;

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  fuserun generate \"Call me\"
  fuserun generate -m Qwen3-0.6B --chat \"Tell me a joke\" --temperature 0.7 --top-p 0.9
  fuserun generate -m model.gguf -n 512 --stop \"###\" - < prompt.txt > answer.txt
  fuserun generate -m model.gguf --json \"Call me\" | jq .text
  fuserun generate -m Qwen3-0.6B --chat --system \"Be brief.\" --prompts questions.txt
  fuserun generate -m model.gguf --chat --schema person.json \"Who wrote Moby Dick?\" | jq .name")]
pub struct GenerateArgs {
    /// The text to continue, or with --chat the message to answer. `-` reads it from stdin. Several are answered side by side.
    #[arg(value_name = "PROMPT")]
    pub prompt: Vec<String>,
    /// Answer each line of this file too; `-` is stdin.
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Tokens to generate at most. The default is what the model's generation_config.json says, else 128.
    #[arg(short = 'n', long, env = "FUSE_MAX_TOKENS")]
    pub max_tokens: Option<NonZeroUsize>,
    /// End before this text appears, which may be or hold special tokens; may be given several times. What the model's generation_config.json
    /// has as stop_strings ends it too.
    #[arg(long, env = "FUSE_STOP", value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Go on past the token that ends a text.
    #[arg(long, env = "FUSE_IGNORE_EOS", value_parser = FalseyValueParser::new())]
    pub ignore_eos: bool,
    /// Put the prompt through the model's chat template.
    #[arg(long, env = "FUSE_CHAT", value_parser = FalseyValueParser::new())]
    pub chat: bool,
    /// What the model is told before the message, with --chat.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
    /// Hold the text to JSON that the schema in this file describes.
    #[arg(long, env = "FUSE_SCHEMA", value_name = "FILE", conflicts_with_all = ["grammar", "regex"])]
    pub schema: Option<PathBuf>,
    /// Hold the text to the grammar in this file, in Lark's syntax.
    #[arg(long, env = "FUSE_GRAMMAR", value_name = "FILE", conflicts_with = "regex")]
    pub grammar: Option<PathBuf>,
    /// Hold the text to this regular expression, which matches it as a whole.
    #[arg(long, env = "FUSE_REGEX")]
    pub regex: Option<String>,
    /// Print one JSON object instead of text.
    #[arg(long, env = "FUSE_JSON", value_parser = FalseyValueParser::new())]
    pub json: bool,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// Refuses a prompt that leaves no room for a token.
pub fn check_room(tokens: &[u32], context: usize) -> Result<()> {
    ensure!(
        tokens.len() < context,
        "the prompt has {} tokens and the context holds {context}; shorten it or raise --max-context",
        tokens.len()
    );
    Ok(())
}

/// Tokens to make after a prompt of so many, at most.
pub fn most_tokens(args: &GenerateArgs, defaults: &GenerationDefaults, prompt: usize) -> Result<usize> {
    match args.max_tokens {
        Some(limit) => Ok(limit.get()),
        None => Ok(defaults.limit(prompt)?.unwrap_or(MAX_TOKENS)),
    }
}

/// The device, once what is to be known before it begins is told.
pub fn device(args: &GenerateArgs, model: &OpenModel, defaults: &GenerationDefaults) -> Result<Device> {
    if let Some(note) = defaults.note() {
        tell(note);
    }
    let device = args.model.device(model);
    ensure!(device != Device::Interpreter, "the interpreter computes logits only: use `fuserun logits`");
    args.sampling.drawn_seed().into_iter().for_each(tell);
    Ok(device)
}

/// Holds texts to the form that is asked for.
pub fn hold(args: &GenerateArgs, tokenizer: &Arc<Tokenizer>, sampling: &mut SamplingParameters) -> Result<()> {
    if let Some((name, source)) = form(args)? {
        let refused = || format!("the text cannot be held to {name}");
        sampling.grammar = Some(tokenizer.grammars().compile(&source).with_context(refused)?);
    }
    Ok(())
}

/// The tokens that end a text: all that comes after one that is held to a form.
pub fn stops(args: &GenerateArgs, tokenizer: &Tokenizer, sampling: &SamplingParameters) -> Vec<u32> {
    if args.ignore_eos && sampling.grammar.is_none() { Vec::new() } else { tokenizer.eos().collect() }
}

pub fn texts_that_end(
    args: &GenerateArgs,
    model: &OpenModel,
    sampling: &SamplingParameters,
    of_model: &[String],
) -> Vec<String> {
    let of_chat = if args.chat && sampling.grammar.is_none() { model.chat_stops() } else { Vec::new() };
    [&args.stop[..], of_model, &of_chat].concat()
}

/// What the text is held to, and what that is called.
pub fn form(args: &GenerateArgs) -> Result<Option<(String, Source)>> {
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    if let Some(path) = &args.schema {
        let schema = serde_json::from_str(&read(path)?).with_context(|| format!("{} is not JSON", path.display()))?;
        return Ok(Some((path.display().to_string(), Source::Schema { schema, strict: true })));
    }
    if let Some(path) = &args.grammar {
        return Ok(Some((path.display().to_string(), Source::Lark(read(path)?))));
    }
    Ok(args.regex.clone().map(|regex| ("--regex".to_owned(), Source::Regex(regex))))
}

/// The prompts: those of the command line, then the lines of the file.
pub fn prompts(args: &GenerateArgs) -> Result<Vec<String>> {
    let from_stdin = args.prompt.iter().filter(|text| *text == "-").count();
    let of_file = args.prompts.as_ref().filter(|path| path.as_os_str() == "-").is_some();
    ensure!(from_stdin + usize::from(of_file) < 2, "`-` is given more than once, and stdin is read once");
    let mut texts = args.prompt.iter().map(|text| text_or_stdin(text)).collect::<Result<Vec<String>>>()?;
    if let Some(path) = &args.prompts {
        let lines = match path.to_str() {
            Some("-") => text_or_stdin("-")?,
            _ => std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
        };
        texts.extend(lines.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned));
        ensure!(!texts.is_empty(), "{} has no prompts: give one on each line", path.display());
    }
    if texts.is_empty() {
        ensure!(args.model.model.is_none(), "give a PROMPT, or - to read it from stdin");
        texts.push("Call me".to_owned());
    }
    Ok(texts)
}

/// The text itself, or what stdin has where it is `-`.
pub fn text_or_stdin(text: &str) -> Result<String> {
    match text {
        "-" => read_to_string(stdin()).context("cannot read the text from stdin"),
        text => Ok(text.to_string()),
    }
}

pub fn prompt_tokens(args: &GenerateArgs, model: &OpenModel, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    if !args.chat {
        return tokenizer.encode_prompt(text);
    }
    let template =
        model.chat_template()?.with_context(|| format!("{} has no chat template; leave out --chat", model.name()))?;
    // The template writes the special tokens itself.
    let system = args.system.iter().map(|text| Message::new("system", text));
    let messages: Vec<Message> = system.chain([Message::new("user", text)]).collect();
    tokenizer.encode(&template.render(&messages, true)?, false)
}
