//! `/api/chat` and `/api/generate`.

use std::sync::Arc;

use axum::response::Response;
use serde_json::{Map, Value, json};

use crate::serve::answer::{Call, Collected, Finish, Generation, Part, Shape, Summary};
use crate::serve::app::App;
use crate::serve::ask::{Ask, Settings};
use crate::serve::conversation::{Conversation, messages, tools};
use crate::serve::fields::Fields;
use crate::serve::forms::Form;
use crate::serve::problem::{Dialect, Problem, done};
use crate::serve::served::{Served, rfc3339, since_1970};
use crate::serve::stream::{Framing, Gone, Writer, response};
use crate::serve::warnings::{model_warning, unknown};

/// Options that say how a program runs, or that change nothing here.
const WITHOUT_EFFECT: &[&str] = &[
    "num_ctx",
    "num_keep",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "numa",
    "low_vram",
    "use_mmap",
    "use_mlock",
    "vocab_only",
    "repeat_last_n",
    "penalize_newline",
];

/// A request, read.
struct Answer {
    ask: Ask,
    shape: Shape,
    chat: bool,
    stream: bool,
    /// Whether what the model thinks is told.
    thoughts: bool,
    warnings: Vec<String>,
}

pub async fn chat(app: Arc<App>, fields: Fields) -> Result<Response, Problem> {
    serve(app, fields, true).await
}

pub async fn generate(app: Arc<App>, fields: Fields) -> Result<Response, Problem> {
    serve(app, fields, false).await
}

async fn serve(app: Arc<App>, fields: Fields, chat: bool) -> Result<Response, Problem> {
    app.check_ready()?;
    let reading = app.clone();
    let read = tokio::task::spawn_blocking(move || Answer::read(fields, &reading.served, chat));
    let answer = read.await.map_err(|error| Problem::fault(error.to_string()))??;
    let generation = Generation::start(&app, &answer.ask, &answer.shape).await?;
    if answer.stream {
        let stream = |writer| async move { answer.stream(generation, &app, &writer).await };
        return Ok(response(Framing::Lines, stream));
    }
    let (answers, summary) = generation.collect().await?;
    let collected = answers.into_iter().next().unwrap_or_default();
    let mut object = answer.piece(&app.served, &collected);
    answer.close(&mut object, &summary, collected.finish.as_ref());
    Ok(done(&object))
}

/// Takes a request's `options`, by Ollama's names.
fn settings(fields: &mut Fields, served: &Served, warnings: &mut Vec<String>) -> Result<Settings, Problem> {
    let mut options = match fields.object("options")? {
        Some(options) => options,
        None => Fields::within(json!({}), "options")?,
    };
    // Less than one token is as many as fit.
    let limit = options.whole("num_predict", i64::MIN..=i64::MAX)?.and_then(|limit| usize::try_from(limit).ok());
    let settings = Settings::take(&mut options, served)?;
    options.ignore(WITHOUT_EFFECT);
    warnings.extend(unknown(&options));
    Ok(Settings { limit: limit.filter(|limit| *limit > 0), choices: 1, ..settings })
}

/// The conversation of a chat.
fn conversation(fields: &mut Fields) -> Result<Conversation, Problem> {
    let mut list = fields.list("messages")?.unwrap_or_default();
    for (index, message) in list.iter_mut().enumerate() {
        if message.get("images").and_then(Value::as_array).is_some_and(|images| !images.is_empty()) {
            let path = format!("messages[{index}].images");
            return Err(Problem::field(&path, format!("`{path}` has images: this model reads text only")));
        }
        if let Some(thinking) = message.get("thinking").cloned() {
            message["reasoning_content"] = thinking;
        }
        if let Some(name) = message.get("tool_name").cloned() {
            message["name"] = name;
        }
    }
    let tools = tools(fields.list("tools")?.unwrap_or_default())?;
    Ok(Conversation { messages: messages(list)?, tools, ..Conversation::default() })
}

impl Answer {
    fn read(mut fields: Fields, served: &Served, chat: bool) -> Result<Answer, Problem> {
        let fields = &mut fields;
        let mut warnings: Vec<String> = model_warning(fields, served)?.into_iter().collect();
        let mut settings = settings(fields, served, &mut warnings)?;
        let form = Form::of_ollama(fields)?;
        let raw = !chat && (fields.flag("raw")?.unwrap_or(false) || served.template.is_none());
        let text = fields.text("prompt")?.unwrap_or_default();
        let mut conversation = if chat { conversation(fields)? } else { Conversation::default() };
        if let Some(system) = fields.text("system")?.filter(|_| !chat) {
            conversation.say("system", system);
        }
        if fields.text("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(Problem::field("suffix", "`suffix` is not supported: texts only go on at their end"));
        }
        if fields.list("images")?.is_some_and(|images| !images.is_empty()) {
            return Err(Problem::field("images", "`images` is not supported: this model reads text only"));
        }
        let think = fields.take("think");
        if let Some(think) = &think {
            conversation.variables.insert("enable_thinking".into(), json!(*think != Value::Bool(false)));
            if think.is_string() {
                conversation.variables.insert("reasoning_effort".into(), think.clone());
            }
        }
        let stream = fields.flag("stream")?.unwrap_or(true);
        fields.ignore(&["keep_alive", "truncate", "shift"]);
        warnings.extend(unknown(fields));
        let (prompt, shape) = if raw {
            let tokens = served.tokenizer.encode_prompt(&text);
            let tokens = tokens.map_err(|error| Problem::field("prompt", format!("{error:#}")))?;
            if let Some(form) = form {
                settings.hold(form, served)?;
            }
            (tokens, Shape { goes_on: true, ..Shape::default() })
        } else {
            if !chat {
                conversation.say("user", text);
            }
            let prompt = conversation.prompt(served)?;
            warnings.extend(form.as_ref().and_then(|_| conversation.untold_calls()));
            warnings.extend(settings.hold_chat(form, &conversation, &prompt, served)?);
            let shape = served.shape(&prompt, &conversation);
            (prompt.tokens, shape)
        };
        let thoughts = think != Some(Value::Bool(false));
        Ok(Answer { ask: Ask { prompt, settings }, shape, chat, stream, thoughts, warnings })
    }

    async fn stream(&self, mut generation: Generation, app: &App, writer: &Writer) -> Result<(), Gone> {
        let mut calls: Vec<Call> = Vec::new();
        let mut finish = None;
        loop {
            let progress = match writer.waiting(generation.next()).await? {
                Ok(Some(progress)) => progress,
                Ok(None) => break,
                Err(problem) => {
                    app.metrics.problems.inc();
                    return writer.send(&problem.object(Dialect::Ollama)).await;
                }
            };
            finish = progress.finish;
            let mut piece = Collected::default();
            for part in progress.parts {
                match part {
                    Part::Text(text) => piece.text += &text,
                    Part::Reasoning(text) => piece.reasoning += &text,
                    Part::Call { name, .. } => calls.push(Call { id: app.call_id(), name, arguments: String::new() }),
                    Part::Arguments { index, text } => {
                        if let Some(call) = calls.get_mut(index) {
                            call.arguments += &text;
                        }
                    }
                }
            }
            // Calls are told whole, at the end.
            if finish.is_some() {
                piece.calls = std::mem::take(&mut calls);
            }
            let said = !piece.text.is_empty() || !piece.reasoning.is_empty() && self.thoughts;
            if said || !piece.calls.is_empty() {
                writer.send(&self.piece(&app.served, &piece)).await?;
            }
        }
        let mut last = self.piece(&app.served, &Collected::default());
        self.close(&mut last, &generation.summary(), finish.as_ref());
        writer.send(&last).await
    }

    /// An object that tells a part of the answer, or all of it.
    fn piece(&self, served: &Served, part: &Collected) -> Value {
        let mut object = json!({"model": served.name, "created_at": rfc3339(since_1970())});
        let thinking = Some(&part.reasoning).filter(|text| self.thoughts && !text.is_empty());
        if self.chat {
            let mut message = json!({"role": "assistant", "content": part.text});
            if let Some(thinking) = thinking {
                message["thinking"] = json!(thinking);
            }
            if !part.calls.is_empty() {
                let call = |call: &Call| {
                    let arguments = serde_json::from_str(&call.arguments).unwrap_or_else(|_| Value::Object(Map::new()));
                    json!({"id": call.id, "function": {"name": call.name, "arguments": arguments}})
                };
                message["tool_calls"] = part.calls.iter().map(call).collect();
            }
            object["message"] = message;
        } else {
            object["response"] = json!(part.text);
            if let Some(thinking) = thinking {
                object["thinking"] = json!(thinking);
            }
        }
        object["done"] = json!(false);
        object
    }

    /// Makes an object the last one.
    fn close(&self, object: &mut Value, summary: &Summary, finish: Option<&Finish>) {
        let (prompt_ms, eval_ms) = summary.milliseconds();
        let nanoseconds = |ms: f64| (ms * 1e6) as u64;
        object["done"] = json!(true);
        object["done_reason"] = json!(if finish == Some(&Finish::Length) { "length" } else { "stop" });
        object["total_duration"] = json!(nanoseconds(prompt_ms + eval_ms));
        object["load_duration"] = json!(0);
        object["prompt_eval_count"] = json!(summary.prompt);
        object["prompt_eval_duration"] = json!(nanoseconds(prompt_ms));
        object["eval_count"] = json!(summary.completion);
        object["eval_duration"] = json!(nanoseconds(eval_ms));
        if !self.warnings.is_empty() {
            object["warnings"] = json!(self.warnings);
        }
    }
}
