//! `fuserun generate` and `fuserun tokenize`.

mod args;
mod making;
mod several;

use std::io::{IsTerminal, Write, stderr, stdout};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use fusec::console::{show, tell};
use serde_json::json;

pub use args::GenerateArgs;
use args::{check_room, device, hold, most_tokens, prompt_tokens, prompts, stops, text_or_stdin, texts_that_end};
use making::Making;

use super::model::ModelArgs;
use crate::model::{Text, tokenizer_of};

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
    let mut texts = prompts(args)?;
    if texts.len() > 1 || args.prompts.is_some() {
        return several::run(args, model, &tokenizer, texts);
    }
    let text = texts.pop().context("there is a prompt")?;
    let tokens = prompt_tokens(args, &model, &tokenizer, &text)?;
    let limit = most_tokens(args, &defaults, tokens.len())?;
    let options = args.model.load_options(&model, &[1], 4096, Text { tokens: tokens.len() + 1, grows: true })?;
    check_room(&tokens, options.context)?;
    hold(args, &tokenizer, &mut sampling)?;
    let device = device(args, &model, &defaults)?;
    let begin = Instant::now();
    let mut backend = model.load(&device, &options)?;
    let loaded = begin.elapsed();

    let stops = stops(args, &tokenizer, &sampling);
    let mut making = Making::new(
        &tokenizer,
        &tokens,
        &texts_that_end(args, &model, &sampling, &defaults.stop_strings),
        &stops,
        args.chat,
    );
    let mut out = Output { json: args.json, text: String::new(), broken: None };
    // Someone who looks on wants to see the text whole; a file or another program wants what was made.
    if !args.json && !args.chat && stdout().is_terminal() {
        out.print(&text);
    }
    let mut failure = None;
    let begin = Instant::now();
    let mut first = None;
    backend.generate(std::slice::from_ref(&tokens), &sampling, limit, &stops, &mut |_, token| {
        first.get_or_insert_with(|| begin.elapsed());
        match making.take(token) {
            Ok(piece) => {
                out.print(&piece);
                !making.ended() && out.broken.is_none()
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
    out.print(&making.rest()?);
    let (produced, finish) = (making.tokens(), making.finish());
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
