//! `/v1/completions`: texts that go on.

use std::sync::Arc;

use axum::response::Response;
use serde_json::{Value, json};

use super::shared::{Common, completion_scores, fingerprint, finish_reason, timings, usage};
use crate::serve::answer::{Collected, Generation, Part, Progress, Shape, Summary};
use crate::serve::app::App;
use crate::serve::ask::{Ask, limit, random, scores};
use crate::serve::fields::Fields;
use crate::serve::problem::{Dialect, Problem, done};
use crate::serve::served::{Served, now};
use crate::serve::stream::{Framing, Gone, Writer, response};

/// Prompts of one request at most.
const MOST_PROMPTS: usize = 8;
/// Tokens at most where the request does not say, as in OpenAI's API.
const LIMIT: usize = 16;

struct Completion {
    /// One for each prompt.
    asks: Vec<Ask>,
    /// What is told before each answer.
    echoes: Vec<String>,
    shape: Shape,
    common: Common,
    id: String,
    created: u64,
}

pub async fn completions(app: Arc<App>, fields: Fields) -> Result<Response, Problem> {
    app.check_ready()?;
    let reading = app.clone();
    let read = tokio::task::spawn_blocking(move || Completion::read(fields, &reading.served));
    let completion = read.await.map_err(|error| Problem::fault(error.to_string()))??;
    let mut generations = Vec::new();
    for ask in &completion.asks {
        generations.push(Generation::start(&app, ask, &completion.shape).await?);
    }
    if completion.common.stream {
        let stream = |writer| async move { completion.stream(generations, &app, &writer).await };
        return Ok(response(Framing::Events, stream));
    }
    let mut all = Vec::new();
    let mut total: Option<Summary> = None;
    for generation in generations {
        let (answers, summary) = generation.collect().await?;
        all.push(answers);
        total = Some(total.map_or(summary, |total| total.and(&summary)));
    }
    let total = total.ok_or_else(|| Problem::field("prompt", "`prompt` is empty"))?;
    Ok(done(&completion.whole(&all, &total, &app.served)))
}

/// The prompts: a text, token ids, or a list of either.
fn prompts(fields: &mut Fields, served: &Served) -> Result<Vec<Vec<u32>>, Problem> {
    let encode = |text: &str| {
        served.tokenizer.encode_prompt(text).map_err(|error| Problem::field("prompt", format!("{error:#}")))
    };
    let ids = |list: &[Value]| -> Option<Vec<u32>> { list.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect() };
    let wrong = || Problem::field("prompt", "`prompt` must be a text, a list of token ids, or a list of either");
    let prompts = match fields.take("prompt") {
        None => return Err(Problem::field("prompt", "`prompt` is missing: give the text to go on with")),
        Some(Value::String(text)) => vec![encode(&text)?],
        Some(Value::Array(list)) if !list.is_empty() && list.iter().all(Value::is_number) => {
            vec![ids(&list).ok_or_else(wrong)?]
        }
        Some(Value::Array(list)) => list
            .iter()
            .map(|one| match one {
                Value::String(text) => encode(text),
                Value::Array(list) => ids(list).ok_or_else(wrong),
                _ => Err(wrong()),
            })
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(wrong()),
    };
    if prompts.is_empty() || prompts.len() > MOST_PROMPTS {
        let message = format!("`prompt` has {} prompts; give 1 to {MOST_PROMPTS}", prompts.len());
        return Err(Problem::field("prompt", message));
    }
    Ok(prompts)
}

impl Completion {
    fn read(mut fields: Fields, served: &Served) -> Result<Completion, Problem> {
        let fields = &mut fields;
        let prompts = prompts(fields, served)?;
        let limit = limit(fields, &["max_tokens", "n_predict"])?.unwrap_or(LIMIT);
        let told = scores(fields, "logprobs")?;
        let echo = fields.flag("echo")?.unwrap_or(false);
        if fields.whole("best_of", 1..=8)?.is_some_and(|best| best > 1) {
            return Err(Problem::field(
                "best_of",
                "`best_of` is not supported: give `n`, and choose among the answers",
            ));
        }
        if fields.text("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(Problem::field("suffix", "`suffix` is not supported: texts only go on at their end"));
        }
        let mut common = Common::take(fields, served, Some(limit))?;
        common.settings.scores = told;
        if let Some(form) = common.form.take() {
            common.settings.hold(form, served)?;
        }
        let decoded = |prompt: &Vec<u32>| served.tokenizer.decode(prompt, true).unwrap_or_default();
        Ok(Completion {
            echoes: prompts.iter().map(|prompt| if echo { decoded(prompt) } else { String::new() }).collect(),
            asks: prompts.into_iter().map(|prompt| Ask { prompt, settings: common.settings.clone() }).collect(),
            shape: Shape { goes_on: true, ..Shape::default() },
            common,
            id: format!("cmpl-{:016x}", random()),
            created: now(),
        })
    }

    fn whole(&self, all: &[Vec<Collected>], total: &Summary, served: &Served) -> Value {
        let mut choices = Vec::new();
        for (echo, answers) in self.echoes.iter().zip(all) {
            for answer in answers {
                let told = self.common.settings.scores;
                choices.push(json!({
                    "index": choices.len(),
                    "text": format!("{echo}{}", answer.text),
                    "logprobs": told.map(|_| completion_scores(&answer.scores, served, echo.chars().count())),
                    "finish_reason": answer.finish.as_ref().map(finish_reason),
                }));
            }
        }
        let mut object = self.object(json!(choices), served);
        self.close(&mut object, total);
        object
    }

    async fn stream(self, generations: Vec<Generation>, app: &App, writer: &Writer) -> Result<(), Gone> {
        let mut total: Option<Summary> = None;
        let choices = self.common.settings.choices;
        for ((before, echo), mut generation) in self.echoes.iter().enumerate().zip(generations) {
            let first = before * choices;
            for choice in (0..choices).filter(|_| !echo.is_empty()) {
                let choice = json!({"index": first + choice, "text": echo, "logprobs": null, "finish_reason": null});
                writer.send(&self.object(json!([choice]), &app.served)).await?;
            }
            loop {
                let Progress { choice, parts, scores, finish, .. } = match writer.waiting(generation.next()).await? {
                    Ok(Some(progress)) => progress,
                    Ok(None) => break,
                    Err(problem) => {
                        app.metrics.problems.inc();
                        writer.send(&problem.object(Dialect::OpenAi)).await?;
                        return writer.done().await;
                    }
                };
                let text: String = parts
                    .into_iter()
                    .map(|part| match part {
                        Part::Text(text) => text,
                        // Nothing is looked for in a completion but text.
                        Part::Reasoning(_) | Part::Call { .. } | Part::Arguments { .. } => String::new(),
                    })
                    .collect();
                let choice = json!({
                    "index": first + choice,
                    "text": text,
                    "logprobs": scores.map(|scores| completion_scores(&[scores], &app.served, 0)),
                    "finish_reason": finish.as_ref().map(finish_reason),
                });
                writer.send(&self.object(json!([choice]), &app.served)).await?;
            }
            let summary = generation.summary();
            total = Some(total.map_or(summary, |total| total.and(&summary)));
        }
        if let Some(total) = total.filter(|_| self.common.include_usage) {
            let mut last = self.object(json!([]), &app.served);
            self.close(&mut last, &total);
            writer.send(&last).await?;
        }
        writer.done().await
    }

    fn object(&self, choices: Value, served: &Served) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": served.name,
            "system_fingerprint": fingerprint(),
            "choices": choices,
        })
    }

    fn close(&self, object: &mut Value, total: &Summary) {
        object["usage"] = usage(total);
        object["timings"] = timings(total);
        object["seed"] = json!(total.seed);
        object["warnings"] = json!(self.common.warnings);
    }
}
