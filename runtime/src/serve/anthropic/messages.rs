//! `/v1/messages` and `/v1/messages/count_tokens`.

use std::sync::Arc;

use axum::response::Response;
use serde_json::{Value, json};

use super::convert::conversation;
use crate::serve::answer::{Collected, Finish, Generation, Part, Shape, Summary};
use crate::serve::app::App;
use crate::serve::ask::{Ask, Settings, limit, random, stop_texts};
use crate::serve::fields::Fields;
use crate::serve::problem::{Dialect, Problem, done};
use crate::serve::served::Served;
use crate::serve::stream::{Framing, Gone, Writer, response};
use crate::serve::warnings::{model_warning, unknown};

/// A request, read.
struct Message {
    ask: Ask,
    shape: Shape,
    /// The stop texts of the request.
    stops: Vec<String>,
    stream: bool,
    warnings: Vec<String>,
    id: String,
}

pub async fn create(app: Arc<App>, fields: Fields) -> Result<Response, Problem> {
    app.check_ready()?;
    let reading = app.clone();
    let read = tokio::task::spawn_blocking(move || Message::read(fields, &reading.served));
    let message = read.await.map_err(|error| Problem::fault(error.to_string()))??;
    let generation = Generation::start(&app, &message.ask, &message.shape).await?;
    if message.stream {
        let stream = |writer| async move { message.stream(generation, &app, &writer).await };
        return Ok(response(Framing::Events, stream));
    }
    let (answers, summary) = generation.collect().await?;
    let answer = answers.into_iter().next().unwrap_or_default();
    Ok(done(&message.whole(&answer, &summary, &app.served)))
}

/// The tokens of the prompt that a request would have.
pub fn count_tokens(fields: &mut Fields, served: &Served) -> Result<Value, Problem> {
    let (conversation, _) = conversation(fields, served)?;
    Ok(json!({"input_tokens": conversation.prompt(served)?.tokens.len()}))
}

impl Message {
    fn read(mut fields: Fields, served: &Served) -> Result<Message, Problem> {
        let fields = &mut fields;
        let (conversation, mut warnings) = conversation(fields, served)?;
        let Some(limit) = limit(fields, &["max_tokens"])? else {
            return Err(Problem::field(
                "max_tokens",
                "`max_tokens` is missing: give the most tokens that the answer may have",
            ));
        };
        let stops = stop_texts(fields, "stop_sequences")?;
        let stream = fields.flag("stream")?.unwrap_or(false);
        let settings = Settings::take(fields, served)?;
        let stop_texts = [&settings.stop_texts, &stops].into_iter().flatten().cloned().collect();
        let mut settings = Settings { limit: Some(limit), choices: 1, stop_texts, ..settings };
        warnings.extend(model_warning(fields, served)?);
        fields.ignore(&["metadata", "service_tier", "cache_control", "container", "betas"]);
        warnings.extend(unknown(fields));
        let prompt = conversation.prompt(served)?;
        warnings.extend(settings.hold_chat(None, &conversation, &prompt, served)?);
        Ok(Message {
            shape: served.shape(&prompt, &conversation),
            ask: Ask { prompt: prompt.tokens, settings },
            stops,
            stream,
            warnings,
            id: format!("msg_{:016x}", random()),
        })
    }

    fn whole(&self, answer: &Collected, summary: &Summary, served: &Served) -> Value {
        let mut content = Vec::new();
        if !answer.reasoning.is_empty() {
            content.push(json!({"type": "thinking", "thinking": answer.reasoning, "signature": ""}));
        }
        if !answer.text.is_empty() || answer.calls.is_empty() {
            content.push(json!({"type": "text", "text": answer.text, "citations": null}));
        }
        for call in &answer.calls {
            let input: Value = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
            content.push(
                json!({"type": "tool_use", "id": call.id, "name": call.name, "input": input, "caller": caller()}),
            );
        }
        let mut message = self.object(served, json!(content), usage(summary));
        let (reason, sequence) = self.reason(answer.finish.as_ref());
        message["stop_reason"] = json!(reason);
        message["stop_sequence"] = json!(sequence);
        message["warnings"] = json!(self.warnings);
        message
    }

    async fn stream(&self, mut generation: Generation, app: &App, writer: &Writer) -> Result<(), Gone> {
        let begun = self.object(&app.served, json!([]), usage(&generation.summary()));
        writer.event("message_start", &json!({"type": "message_start", "message": begun})).await?;
        writer.event("ping", &json!({"type": "ping"})).await?;
        let mut blocks = Blocks { writer, count: 0, open: None };
        let mut finish = None;
        loop {
            match writer.waiting(generation.next()).await? {
                Ok(Some(progress)) => {
                    for part in progress.parts {
                        blocks.send(part, app).await?;
                    }
                    finish = progress.finish;
                }
                Ok(None) => break,
                Err(problem) => {
                    app.metrics.problems.inc();
                    return writer.event("error", &problem.object(Dialect::Anthropic)).await;
                }
            }
        }
        if blocks.count == 0 {
            blocks.send(Part::Text(String::new()), app).await?;
        }
        blocks.close().await?;
        let (reason, sequence) = self.reason(finish.as_ref());
        let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
        let usage = usage(&generation.summary());
        let object = json!({"type": "message_delta", "delta": delta, "usage": usage, "warnings": self.warnings});
        writer.event("message_delta", &object).await?;
        writer.event("message_stop", &json!({"type": "message_stop"})).await
    }

    fn object(&self, served: &Served, content: Value, usage: Value) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": served.name,
            "content": content,
            "stop_reason": null,
            "stop_sequence": null,
            "stop_details": null,
            "container": null,
            "usage": usage,
        })
    }

    /// The word for an end, and the stop text of the request that it was.
    fn reason<'f>(&self, finish: Option<&'f Finish>) -> (Option<&'static str>, Option<&'f str>) {
        match finish {
            None => (None, None),
            Some(Finish::StopText(text)) if self.stops.contains(text) => (Some("stop_sequence"), Some(text)),
            Some(Finish::Stop | Finish::StopText(_)) => (Some("end_turn"), None),
            Some(Finish::Length) => (Some("max_tokens"), None),
            Some(Finish::Calls) => (Some("tool_use"), None),
        }
    }
}

/// The blocks of a stream: one is open at a time.
struct Blocks<'w> {
    writer: &'w Writer,
    count: usize,
    open: Option<Kind>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Thinking,
    Call(usize),
}

impl Blocks<'_> {
    async fn send(&mut self, part: Part, app: &App) -> Result<(), Gone> {
        let (kind, delta) = match part {
            Part::Text(text) => {
                self.begin(Kind::Text, json!({"type": "text", "text": ""})).await?;
                (Kind::Text, json!({"type": "text_delta", "text": text}))
            }
            Part::Reasoning(text) => {
                self.begin(Kind::Thinking, json!({"type": "thinking", "thinking": "", "signature": ""})).await?;
                (Kind::Thinking, json!({"type": "thinking_delta", "thinking": text}))
            }
            Part::Call { index, name } => {
                let block =
                    json!({"type": "tool_use", "id": app.call_id(), "name": name, "input": {}, "caller": caller()});
                return self.begin(Kind::Call(index), block).await;
            }
            Part::Arguments { index, text } => {
                (Kind::Call(index), json!({"type": "input_json_delta", "partial_json": text}))
            }
        };
        if self.open != Some(kind) {
            return Ok(());
        }
        let object = json!({"type": "content_block_delta", "index": self.count - 1, "delta": delta});
        self.writer.event("content_block_delta", &object).await
    }

    /// Opens a block, unless it is open.
    async fn begin(&mut self, kind: Kind, block: Value) -> Result<(), Gone> {
        if self.open == Some(kind) {
            return Ok(());
        }
        self.close().await?;
        self.open = Some(kind);
        self.count += 1;
        let object = json!({"type": "content_block_start", "index": self.count - 1, "content_block": block});
        self.writer.event("content_block_start", &object).await
    }

    async fn close(&mut self) -> Result<(), Gone> {
        if self.open.take().is_none() {
            return Ok(());
        }
        let object = json!({"type": "content_block_stop", "index": self.count - 1});
        self.writer.event("content_block_stop", &object).await
    }
}

/// Who calls a tool: the model itself.
fn caller() -> Value {
    json!({"type": "direct"})
}

/// Tokens that were read, without those that were there, and tokens of the answer.
fn usage(summary: &Summary) -> Value {
    json!({
        "input_tokens": summary.prompt - summary.cached,
        "cache_read_input_tokens": summary.cached,
        "cache_creation_input_tokens": 0,
        "cache_creation": null,
        "output_tokens": summary.completion,
        "output_tokens_details": {"thinking_tokens": summary.reasoning},
        "server_tool_use": null,
        "service_tier": "standard",
        "inference_geo": null,
    })
}
