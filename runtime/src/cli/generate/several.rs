//! Several prompts: as many side by side as a device has slots for, and told in their order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use fusec::console::{show, tell};
use serde_json::json;

use super::args::{GenerateArgs, check_room, device, hold, most_tokens, prompt_tokens, stops, texts_that_end};
use super::making::Making;
use crate::generate::tokenizer::Tokenizer;
use crate::model::{OpenModel, Text};
use crate::sampling::SamplingParameters;
use crate::slots::{Event, Request, Slots, Ticket};

/// Prompts side by side at most, as many as a step of a GPU has rows.
const SIDE_BY_SIDE: usize = 8;

/// A prompt and what has become of it.
struct Answer {
    prompt: String,
    tokens: Vec<u32>,
    making: Making,
    text: String,
    first: Option<Duration>,
    last: Duration,
    ended: bool,
}

pub fn run(args: &GenerateArgs, model: OpenModel, tokenizer: &Arc<Tokenizer>, prompts: Vec<String>) -> Result<()> {
    let defaults = model.generation_defaults()?;
    let mut sampling = args.sampling.parameters(&defaults)?;
    hold(args, tokenizer, &mut sampling)?;
    let (ends, stops) =
        (texts_that_end(args, &model, &sampling, &defaults.stop_strings), stops(args, tokenizer, &sampling));
    let mut answers = Vec::new();
    for prompt in prompts {
        let tokens = prompt_tokens(args, &model, tokenizer, &prompt)?;
        let making = Making::new(tokenizer, &tokens, &ends, &stops, args.chat);
        let (text, last) = (String::new(), Duration::ZERO);
        answers.push(Answer { prompt, tokens, making, text, first: None, last, ended: false });
    }
    let longest = answers.iter().map(|answer| answer.tokens.len()).max().unwrap_or(0);
    let slots = answers.len().min(SIDE_BY_SIDE).next_power_of_two();
    let options = args.model.load_options(&model, &[slots], 4096, Text { tokens: longest + 1, grows: true })?;
    for (index, answer) in answers.iter().enumerate() {
        check_room(&answer.tokens, options.context).with_context(|| format!("prompt {}", index + 1))?;
    }
    let device = device(args, &model, &defaults)?;
    let begin = Instant::now();
    let mut backend = model.load(&device, &options)?;
    let (loaded, described) = (begin.elapsed(), backend.describe());
    let mut requests = Vec::new();
    for answer in &answers {
        let limit = most_tokens(args, &defaults, answer.tokens.len())?;
        requests.push(Request {
            prompt: answer.tokens.clone(),
            sampling: sampling.clone(),
            choice: 0,
            limit,
            stops: stops.clone(),
            scores: None,
        });
    }
    let (begin, mut told) = (Instant::now(), 0);
    side_by_side(Slots::new(backend.slots()?), requests, slots, |index, token| {
        let answer = &mut answers[index];
        let Some(token) = token else {
            answer.text += &answer.making.rest()?;
            answer.ended = true;
            while let Some(answer) = answers.get(told).filter(|answer| answer.ended) {
                told += 1;
                tell_answer(args, &model, answer, &sampling, &described, loaded)?;
            }
            return Ok(true);
        };
        answer.last = begin.elapsed();
        answer.first.get_or_insert(answer.last);
        answer.text += &answer.making.take(token)?;
        Ok(!answer.making.ended())
    })?;
    let made: usize = answers.iter().map(|answer| answer.making.tokens().len()).sum();
    let seconds = begin.elapsed().as_secs_f64();
    tell(format!(
        "{} on {described}, {}: {} prompts, {made} tokens in {seconds:.1} s, {:.1} tok/s",
        model.name(),
        crate::cli::sampling::describe(&sampling),
        answers.len(),
        made as f64 / seconds.max(1e-9),
    ));
    Ok(())
}

/// Runs requests, each as soon as a slot is free. `take` gets each token of each, and nothing at its end; what it returns says whether it goes on.
fn side_by_side<S: crate::slots::Steps>(
    mut slots: Slots<S>,
    requests: Vec<Request>,
    most: usize,
    mut take: impl FnMut(usize, Option<u32>) -> Result<bool>,
) -> Result<()> {
    let mut waiting = requests.into_iter().enumerate();
    let mut running: BTreeMap<Ticket, usize> = BTreeMap::new();
    loop {
        while running.len() < most {
            let Some((index, request)) = waiting.next() else { break };
            running.insert(slots.submit(request).map_err(|refused| anyhow!("prompt {}: {refused}", index + 1))?, index);
        }
        if running.is_empty() {
            return Ok(());
        }
        for (ticket, event) in slots.poll()? {
            let Some(&index) = running.get(&ticket) else { continue };
            let ended = match event {
                Event::Token(token) if !take(index, Some(token))? => {
                    slots.leave(ticket)?;
                    true
                }
                Event::Failed(message) => bail!("prompt {}: {message}", index + 1),
                Event::Ended(_) => true,
                Event::Read { .. } | Event::Scores(_) | Event::Token(_) => false,
            };
            if ended {
                running.remove(&ticket);
                take(index, None)?;
            }
        }
    }
}

fn tell_answer(
    args: &GenerateArgs,
    model: &OpenModel,
    answer: &Answer,
    sampling: &SamplingParameters,
    device: &str,
    loaded: Duration,
) -> Result<()> {
    let Answer { prompt, text, making, .. } = answer;
    if !args.json {
        return show(format!("> {}\n{text}\n\n", prompt.lines().next().unwrap_or_default()));
    }
    let first = answer.first.unwrap_or_default();
    let (count, decode) = (making.tokens().len(), answer.last.saturating_sub(first).as_secs_f64());
    let rate = if count > 1 && decode > 0.0 { (count - 1) as f64 / decode } else { 0.0 };
    let object = json!({
        "model": model.name(), "device": device, "prompt": prompt, "text": text, "finish_reason": making.finish(),
        "prompt_tokens": answer.tokens, "tokens": making.tokens(), "sampling": crate::cli::sampling::to_json(sampling),
        "load_seconds": loaded.as_secs_f64(), "first_token_seconds": first.as_secs_f64(), "decode_tokens_per_second": rate,
    });
    show(format!("{object}\n"))
}
