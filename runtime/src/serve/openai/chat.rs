//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::response::Response;
use serde_json::{Map, Value, json};

use super::shared::{Common, chat_scores, fingerprint, finish_reason, timings, usage};
use crate::serve::answer::{Collected, Generation, Part, Progress, Shape, Summary};
use crate::serve::app::App;
use crate::serve::ask::{Ask, limit, random, scores};
use crate::serve::conversation::{Conversation, messages, tools};
use crate::serve::fields::Fields;
use crate::serve::forms::Form;
use crate::serve::problem::{Dialect, Problem, done};
use crate::serve::served::{Served, now};
use crate::serve::stream::{Framing, Gone, Writer, response};

/// A request, read.
struct Chat {
    ask: Ask,
    shape: Shape,
    common: Common,
    id: String,
    created: u64,
}

pub async fn completions(app: Arc<App>, fields: Fields) -> Result<Response, Problem> {
    app.check_ready()?;
    let reading = app.clone();
    let read = tokio::task::spawn_blocking(move || Chat::read(fields, &reading.served));
    let chat = read.await.map_err(|error| Problem::fault(error.to_string()))??;
    // What cannot be served is told by the status, before a stream begins.
    let generation = Generation::start(&app, &chat.ask, &chat.shape).await?;
    if chat.common.stream {
        return Ok(response(Framing::Events, |writer| async move { chat.stream(generation, &app, &writer).await }));
    }
    let (answers, summary) = generation.collect().await?;
    Ok(done(&chat.whole(&answers, &summary, &app.served)))
}

/// The question that a body of `/v1/chat/completions` holds, what to look for in its answer, and what to warn of.
pub fn question(fields: Fields, served: &Served) -> Result<(Ask, Shape, Vec<String>), Problem> {
    let Chat { ask, shape, common, .. } = Chat::read(fields, served)?;
    Ok((ask, shape, common.warnings))
}

/// `/apply-template`: the text and the tokens of a conversation.
pub fn apply_template(fields: &mut Fields, served: &Served) -> Result<Value, Problem> {
    let (conversation, _) = conversation(fields, served)?;
    let prompt = conversation.prompt(served)?;
    Ok(json!({"prompt": prompt.text, "tokens": prompt.tokens}))
}

/// Takes what the chat template reads, and what to warn of.
fn conversation(fields: &mut Fields, served: &Served) -> Result<(Conversation, Vec<String>), Problem> {
    let mut warnings = Vec::new();
    let Some(list) = fields.list("messages")? else {
        return Err(Problem::field("messages", "`messages` is missing: give a list of messages"));
    };
    let mut conversation = Conversation { messages: messages(list)?, ..Conversation::default() };
    if let Some(variables) = fields.object("chat_template_kwargs")? {
        conversation.take_variables(variables)?;
    }
    if let Some(effort) = fields.text("reasoning_effort")? {
        conversation.variables.entry("reasoning_effort").or_insert(json!(effort));
        if effort == "none" {
            conversation.variables.entry("enable_thinking").or_insert(json!(false));
        }
    }
    let given = tools(fields.list("tools")?.unwrap_or_default())?;
    conversation.take_tools(given, fields.take("tool_choice"))?;
    warnings.extend(conversation.tools_warning(served));
    conversation.one_call = fields.flag("parallel_tool_calls")? == Some(false);
    Ok((conversation, warnings))
}

impl Chat {
    fn read(mut fields: Fields, served: &Served) -> Result<Chat, Problem> {
        let fields = &mut fields;
        let (conversation, mut warnings) = conversation(fields, served)?;
        let form = Form::of_response(fields, "response_format")?;
        let limit = limit(fields, &["max_completion_tokens", "max_tokens"])?;
        let (told, top) = (fields.flag("logprobs")?.unwrap_or(false), scores(fields, "top_logprobs")?);
        if top.is_some() && !told {
            return Err(Problem::field(
                "top_logprobs",
                "`top_logprobs` is given without `logprobs`: set `logprobs` to true",
            ));
        }
        let mut common = Common::take(fields, served, limit)?;
        common.settings.scores = told.then_some(top.unwrap_or(0));
        let form = Form::only(form.into_iter().chain(common.form.take()))?;
        warnings.extend(form.as_ref().and_then(|_| conversation.untold_calls()));
        warnings.append(&mut common.warnings);
        common.warnings = warnings;
        let prompt = conversation.prompt(served)?;
        let loose = common.settings.hold_chat(form, &conversation, &prompt, served)?;
        common.warnings.extend(loose);
        Ok(Chat {
            shape: served.shape(&prompt, &conversation),
            ask: Ask { prompt: prompt.tokens, settings: common.settings.clone() },
            common,
            id: format!("chatcmpl-{:016x}", random()),
            created: now(),
        })
    }

    fn whole(&self, answers: &[Collected], summary: &Summary, served: &Served) -> Value {
        let choices = answers.iter().enumerate().map(|(index, answer)| {
            let mut message = json!({
                "role": "assistant",
                "content": if answer.text.is_empty() && !answer.calls.is_empty() { Value::Null } else { json!(answer.text) },
                "refusal": null,
                "annotations": [],
            });
            if !answer.reasoning.is_empty() {
                message["reasoning_content"] = json!(answer.reasoning);
            }
            if !answer.calls.is_empty() {
                let call = |call: &crate::serve::answer::Call| {
                    let function = json!({"name": call.name, "arguments": call.arguments});
                    json!({"id": call.id, "type": "function", "function": function})
                };
                message["tool_calls"] = answer.calls.iter().map(call).collect();
            }
            json!({
                "index": index,
                "message": message,
                "logprobs": self.ask.settings.scores.map(|_| chat_scores(&answer.scores, served)),
                "finish_reason": answer.finish.as_ref().map(finish_reason),
            })
        });
        let choices = choices.collect();
        let mut object = self.object("chat.completion", choices, served);
        object["usage"] = usage(summary);
        self.close(&mut object, summary);
        object
    }

    async fn stream(self, mut generation: Generation, app: &App, writer: &Writer) -> Result<(), Gone> {
        for index in 0..self.ask.settings.choices {
            let delta = json!({"role": "assistant", "content": ""});
            writer.send(&self.chunk(index, delta, Value::Null, None, &app.served)).await?;
        }
        loop {
            let progress = match writer.waiting(generation.next()).await? {
                Ok(Some(progress)) => progress,
                Ok(None) => break,
                Err(problem) => {
                    app.metrics.problems.inc();
                    writer.send(&problem.object(Dialect::OpenAi)).await?;
                    return writer.done().await;
                }
            };
            self.send(progress, app, writer).await?;
        }
        let summary = generation.summary();
        if self.common.include_usage {
            let mut last = self.object("chat.completion.chunk", json!([]), &app.served);
            last["usage"] = usage(&summary);
            self.close(&mut last, &summary);
            writer.send(&last).await?;
        }
        writer.done().await
    }

    async fn send(&self, progress: Progress, app: &App, writer: &Writer) -> Result<(), Gone> {
        let Progress { choice, parts, scores, finish, .. } = progress;
        let mut scores = scores.map_or(Value::Null, |scores| chat_scores(&[scores], &app.served));
        if parts.is_empty() && !scores.is_null() && finish.is_none() {
            let chunk = self.chunk(choice, json!({}), std::mem::take(&mut scores), None, &app.served);
            writer.send(&chunk).await?;
        }
        for part in parts {
            let delta = match part {
                Part::Text(text) => json!({"content": text}),
                Part::Reasoning(text) => json!({"reasoning_content": text}),
                Part::Call { index, name } => json!({"tool_calls": [{
                    "index": index, "id": app.call_id(), "type": "function", "function": {"name": name, "arguments": ""},
                }]}),
                Part::Arguments { index, text } => {
                    json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
                }
            };
            let chunk = self.chunk(choice, delta, std::mem::take(&mut scores), None, &app.served);
            writer.send(&chunk).await?;
        }
        if let Some(finish) = finish {
            let chunk = self.chunk(choice, json!({}), scores, Some(finish_reason(&finish)), &app.served);
            writer.send(&chunk).await?;
        }
        Ok(())
    }

    fn chunk(&self, index: usize, delta: Value, scores: Value, finish: Option<&str>, served: &Served) -> Value {
        let choice = json!({"index": index, "delta": delta, "logprobs": scores, "finish_reason": finish});
        let mut chunk = self.object("chat.completion.chunk", json!([choice]), served);
        if self.common.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn object(&self, kind: &str, choices: Value, served: &Served) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": served.name,
            "system_fingerprint": fingerprint(),
            "choices": choices,
        })
    }

    /// Adds what OpenAI's own server does not tell.
    fn close(&self, object: &mut Value, summary: &Summary) {
        let more = Map::from_iter([
            ("timings".to_owned(), timings(summary)),
            ("seed".to_owned(), json!(summary.seed)),
            ("warnings".to_owned(), json!(self.common.warnings)),
        ]);
        if let Some(object) = object.as_object_mut() {
            object.extend(more);
        }
    }
}
