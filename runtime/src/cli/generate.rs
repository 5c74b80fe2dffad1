//! `fuserun generate` and `fuserun tokenize`.

use std::io::{IsTerminal, Write, read_to_string, stderr, stdin, stdout};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use clap::builder::FalseyValueParser;
use fusec::console::{show, tell};
use serde_json::json;

use super::model::ModelArgs;
use super::sampling::SamplingArgs;
use crate::backend::Device;
use crate::generate::chat::Message;
use crate::generate::stops::StopTexts;
use crate::generate::tokenizer::Tokenizer;
use crate::grammar::Source;
use crate::model::{OpenModel, Text, tokenizer_of};

/// Tokens to generate at most, where neither the user nor the model says.
const MAX_TOKENS: usize = 128;

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  fuserun generate \"Call me\"
  fuserun generate -m Qwen3-0.6B --chat \"Tell me a joke\" --temperature 0.7 --top-p 0.9
  fuserun generate -m model.gguf -n 512 --stop \"###\" - < prompt.txt > answer.txt
  fuserun generate -m model.gguf --json \"Call me\" | jq .text
  fuserun generate -m model.gguf --chat --schema person.json \"Who wrote Moby Dick?\" | jq .name")]
pub struct GenerateArgs {
    /// The text to continue, or with --chat the message to answer. `-` reads it from stdin.
    prompt: Option<String>,
    /// Tokens to generate at most. The default is what the model's generation_config.json says, else 128.
    #[arg(short = 'n', long, env = "FUSE_MAX_TOKENS")]
    max_tokens: Option<NonZeroUsize>,
    /// End before this text appears, which may be or hold special tokens; may be given several times. What the model's generation_config.json
    /// has as stop_strings ends it too.
    #[arg(long, env = "FUSE_STOP", value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on past the token that ends a text.
    #[arg(long, env = "FUSE_IGNORE_EOS", value_parser = FalseyValueParser::new())]
    ignore_eos: bool,
    /// Put the prompt through the model's chat template.
    #[arg(long, env = "FUSE_CHAT", value_parser = FalseyValueParser::new())]
    chat: bool,
    /// Hold the text to JSON that the schema in this file describes.
    #[arg(long, env = "FUSE_SCHEMA", value_name = "FILE", conflicts_with_all = ["grammar", "regex"])]
    schema: Option<PathBuf>,
    /// Hold the text to the grammar in this file, in Lark's syntax.
    #[arg(long, env = "FUSE_GRAMMAR", value_name = "FILE", conflicts_with = "regex")]
    grammar: Option<PathBuf>,
    /// Hold the text to this regular expression, which matches it as a whole.
    #[arg(long, env = "FUSE_REGEX")]
    regex: Option<String>,
    /// Print one JSON object instead of text.
    #[arg(long, env = "FUSE_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  fuserun tokenize -m Qwen3-0.6B \"Hello, world\"
  fuserun tokenize -m model.gguf - < prompt.txt

Of the model, only the tokenizer is read: the folder needs no weights.")]
pub struct TokenizeArgs {
    /// The text. `-` reads it from stdin.
    text: String,
    #[command(flatten)]
    model: ModelArgs,
}

pub fn run(args: &GenerateArgs) -> Result<()> {
    let model = args.model.open(false)?;
    let defaults = model.generation_defaults()?;
    let mut sampling = args.sampling.parameters(&defaults)?;
    let tokenizer = Arc::new(model.tokenizer()?);
    let text = prompt_text(args)?;
    let tokens = prompt_tokens(args, &model, &tokenizer, &text)?;
    let limit = match args.max_tokens {
        Some(limit) => limit.get(),
        None => defaults.limit(tokens.len())?.unwrap_or(MAX_TOKENS),
    };
    let options = args.model.load_options(&model, &[1], 4096, Text { tokens: tokens.len() + 1, grows: true })?;
    ensure!(
        tokens.len() < options.context,
        "the prompt has {} tokens and the context holds {}; shorten it or raise --max-context",
        tokens.len(),
        options.context
    );
    if let Some((name, source)) = form(args)? {
        let refused = || format!("the text cannot be held to {name}");
        sampling.grammar = Some(tokenizer.grammars().compile(&source).with_context(refused)?);
    }
    let held = sampling.grammar.is_some();
    if let Some(note) = defaults.note() {
        tell(note);
    }
    let device = args.model.device(&model);
    ensure!(device != Device::Interpreter, "the interpreter computes logits only: use `fuserun logits`");
    args.sampling.drawn_seed().into_iter().for_each(tell);
    let begin = Instant::now();
    let mut backend = model.load(&device, &options)?;
    let loaded = begin.elapsed();

    // These are all that comes after a text that is held to a form.
    let stops: Vec<u32> = if args.ignore_eos && !held { Vec::new() } else { tokenizer.eos().collect() };
    let mut stream =
        if args.chat { tokenizer.decode_stream(true) } else { tokenizer.decode_stream_after(&tokens, true) };
    let of_chat = if args.chat && !held { model.chat_stops() } else { Vec::new() };
    let mut watched = StopTexts::new(&[&args.stop[..], &defaults.stop_strings, &of_chat].concat());
    let mut out = Output { json: args.json, text: String::new(), broken: None };
    // Someone who looks on wants to see the text whole; a file or another program wants what was made.
    if !args.json && !args.chat && stdout().is_terminal() {
        out.print(&text);
    }
    let mut produced: Vec<u32> = Vec::new();
    let mut failure = None;
    let mut finish = "length";
    let begin = Instant::now();
    let mut first = None;
    backend.generate(std::slice::from_ref(&tokens), &sampling, limit, &stops, &mut |_, token| {
        first.get_or_insert_with(|| begin.elapsed());
        produced.push(token);
        if stops.contains(&token) {
            finish = "stop";
            return false;
        }
        if tokenizer.is_special(token) {
            out.print(&watched.pass_hidden(&tokenizer.id_to_token(token).unwrap_or_default()));
        }
        match stream.step(token) {
            Ok(piece) => {
                out.print(&watched.pass(&piece));
                if watched.reached() {
                    finish = "stop";
                }
                !watched.reached() && out.broken.is_none()
            }
            Err(error) => {
                failure = Some(error);
                false
            }
        }
    })?;
    let elapsed = begin.elapsed();
    if let Some(error) = failure {
        return Err(error);
    }
    if !watched.reached() {
        let rest = stream.finish()?;
        out.print(&watched.pass(&rest));
        out.print(&watched.rest());
    }
    let first = first.unwrap_or(elapsed);
    let decode = (elapsed - first).as_secs_f64();
    let rate = if produced.len() > 1 && decode > 0.0 { (produced.len() - 1) as f64 / decode } else { 0.0 };
    if args.json {
        let object = json!({
            "model": model.name(), "device": backend.describe(), "prompt": text, "text": out.text, "finish_reason": finish,
            "prompt_tokens": tokens, "tokens": produced, "sampling": super::sampling::to_json(&sampling), "load_seconds": loaded.as_secs_f64(),
            "first_token_seconds": first.as_secs_f64(), "decode_tokens_per_second": rate,
        });
        show(format!("{object}\n"))?;
    } else {
        out.print("\n");
        if finish == "length" && (stdout().is_terminal() || stderr().is_terminal()) {
            tell(cut_short(produced.len(), limit, options.context));
        }
        tell(format!(
            "{} on {}, {}: {} prompt tokens, first token in {:.1} ms, then {} tokens at {rate:.1} tok/s",
            model.name(),
            backend.describe(),
            super::sampling::describe(&sampling),
            tokens.len(),
            first.as_secs_f64() * 1e3,
            produced.len().saturating_sub(1),
        ));
    }
    match out.broken {
        Some(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("cannot write to stdout"),
        _ => Ok(()),
    }
}

/// Why a text ends where the model did not end it.
fn cut_short(produced: usize, most: usize, context: usize) -> String {
    if produced < most {
        return format!("stopped: the context of {context} positions is full; --max-context N sets another one");
    }
    let tokens = if most == 1 { "1 token".to_string() } else { format!("{most} tokens") };
    format!("stopped after {tokens}, the most that are asked for; -n N sets another number")
}

pub fn tokenize(args: &TokenizeArgs) -> Result<()> {
    let text = text_or_stdin(&args.text)?;
    args.model.fetch()?;
    let tokens = tokenizer_of(&args.model.name(false))?.encode(&text, true)?;
    let list: Vec<String> = tokens.iter().map(u32::to_string).collect();
    show(format!("{}\n", list.join(",")))
}

/// What the text is held to, and what that is called.
fn form(args: &GenerateArgs) -> Result<Option<(String, Source)>> {
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

fn prompt_text(args: &GenerateArgs) -> Result<String> {
    match args.prompt.as_deref() {
        Some(text) => text_or_stdin(text),
        None if args.model.model.is_none() => Ok("Call me".to_string()),
        None => bail!("give a PROMPT, or - to read it from stdin"),
    }
}

/// The text itself, or what stdin has where it is `-`.
fn text_or_stdin(text: &str) -> Result<String> {
    match text {
        "-" => read_to_string(stdin()).context("cannot read the text from stdin"),
        text => Ok(text.to_string()),
    }
}

fn prompt_tokens(args: &GenerateArgs, model: &OpenModel, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    if !args.chat {
        return tokenizer.encode_prompt(text);
    }
    let template =
        model.chat_template()?.with_context(|| format!("{} has no chat template; leave out --chat", model.name()))?;
    // The template writes the special tokens itself.
    tokenizer.encode(&template.render(&[Message::new("user", text)], true)?, false)
}

struct Output {
    json: bool,
    text: String,
    broken: Option<std::io::Error>,
}

impl Output {
    fn print(&mut self, piece: &str) {
        if self.json {
            self.text.push_str(piece);
        } else if !piece.is_empty() && self.broken.is_none() {
            let mut stdout = stdout();
            if let Err(error) = stdout.write_all(piece.as_bytes()).and_then(|()| stdout.flush()) {
                self.broken = Some(error);
            }
        }
    }
}
