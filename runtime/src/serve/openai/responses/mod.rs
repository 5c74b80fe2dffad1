//! `/v1/responses`, with no state: each request brings its whole conversation.

mod input;
mod output;

use std::sync::Arc;

use axum::response::Response;
use serde_json::{Value, json};

use crate::serve::answer::{Finish, Generation, Shape, Summary};
use crate::serve::app::App;
use crate::serve::ask::{Ask, Settings, limit, random, scores};
use crate::serve::fields::{Fields, decimal};
use crate::serve::problem::{Dialect, Problem, done};
use crate::serve::served::{Served, now};
use crate::serve::stream::{Framing, Gone, Writer, response};
use crate::serve::warnings::{model_warning, unknown};
use input::Input;
use output::Items;

/// A request, read.
struct Responses {
    ask: Ask,
    shape: Shape,
    stream: bool,
    /// What the answer repeats of the request.
    echo: Value,
    warnings: Vec<String>,
    id: String,
    created: u64,
}

pub async fn create(app: Arc<App>, fields: Fields) -> Result<Response, Problem> {
    app.check_ready()?;
    let reading = app.clone();
    let read = tokio::task::spawn_blocking(move || Responses::read(fields, &reading.served));
    let asked = read.await.map_err(|error| Problem::fault(error.to_string()))??;
    let generation = Generation::start(&app, &asked.ask, &asked.shape).await?;
    if asked.stream {
        let stream = |writer| async move { asked.stream(generation, &app, &writer).await };
        return Ok(response(Framing::Events, stream));
    }
    match asked.answer(generation, &app, None).await {
        Ok(answer) => Ok(done(&answer?)),
        Err(Gone) => Err(Problem::fault("nothing is written before the answer is whole")),
    }
}

impl Responses {
    fn read(mut fields: Fields, served: &Served) -> Result<Responses, Problem> {
        let fields = &mut fields;
        let instructions = fields.text("instructions")?;
        let Input { mut conversation, tools, tool_choice, format, form, mut warnings } =
            input::conversation(fields, instructions.as_deref(), served)?;
        for (name, why) in [
            ("previous_response_id", "no response is kept: send the whole conversation as `input`"),
            ("conversation", "no conversation is kept: send the whole of it as `input`"),
            ("prompt", "no prompt is kept: send `input`"),
        ] {
            if fields.take(name).is_some() {
                return Err(Problem::field(name, format!("`{name}` is given, and {why}")));
            }
        }
        if fields.flag("background")?.unwrap_or(false) {
            return Err(Problem::field("background", "`background` is not supported: no response is kept"));
        }
        let limit = limit(fields, &["max_output_tokens"])?;
        let stream = fields.flag("stream")?.unwrap_or(false);
        let top = scores(fields, "top_logprobs")?;
        let settings = Settings::take(fields, served)?;
        let mut settings = Settings { limit, choices: 1, ..settings };
        warnings.extend(model_warning(fields, served)?);
        let parallel = fields.flag("parallel_tool_calls")?.unwrap_or(true);
        conversation.one_call = !parallel;
        let mut kept = |name: &str| fields.take(name).unwrap_or(Value::Null);
        let sampling = &settings.sampling;
        let echo = json!({
            "instructions": instructions,
            "max_output_tokens": limit,
            "max_tool_calls": kept("max_tool_calls"),
            "metadata": fields.take("metadata").unwrap_or_else(|| json!({})),
            "parallel_tool_calls": parallel,
            "prompt_cache_key": fields.take("prompt_cache_key"),
            "safety_identifier": fields.take("safety_identifier"),
            "user": fields.take("user"),
            "temperature": decimal(sampling.temperature),
            "top_p": decimal(sampling.top_p),
            "top_logprobs": top.unwrap_or(0),
            "presence_penalty": decimal(sampling.presence_penalty),
            "frequency_penalty": decimal(sampling.frequency_penalty),
            "reasoning": {"effort": conversation.variables.get("reasoning_effort"), "summary": null},
            "text": {"format": format},
            "tool_choice": tool_choice,
            "tools": tools,
            "truncation": "disabled",
            "service_tier": "default",
            "store": false,
            "background": false,
            "previous_response_id": null,
        });
        fields.ignore(&[
            "store",
            "service_tier",
            "include",
            "truncation",
            "stream_options",
            "prompt_cache_retention",
            "client_metadata",
        ]);
        warnings.extend(unknown(fields));
        let prompt = conversation.prompt(served)?;
        warnings.extend(settings.hold_chat(form, &conversation, &prompt, served)?);
        Ok(Responses {
            shape: served.shape(&prompt, &conversation),
            ask: Ask { prompt: prompt.tokens, settings },
            stream,
            echo,
            warnings,
            id: format!("resp_{:016x}", random()),
            created: now(),
        })
    }

    async fn stream(&self, generation: Generation, app: &App, writer: &Writer) -> Result<(), Gone> {
        if let Err(problem) = self.answer(generation, app, Some(writer)).await? {
            app.metrics.problems.inc();
            let error = &problem.object(Dialect::OpenAi)["error"];
            let object =
                json!({"type": "error", "code": error["type"], "message": error["message"], "param": error["param"]});
            writer.event("error", &object).await?;
        }
        writer.done().await
    }

    /// The whole answer; where there is a writer, it is told as it comes.
    async fn answer(
        &self,
        mut generation: Generation,
        app: &App,
        writer: Option<&Writer>,
    ) -> Result<Result<Value, Problem>, Gone> {
        let mut items = Items::new(writer);
        let begun = self.object(&app.served, "in_progress", json!([]), None);
        for event in ["response.created", "response.in_progress"] {
            items.event(event, json!({"response": begun})).await?;
        }
        let mut finish = None;
        loop {
            let next = match writer {
                Some(writer) => writer.waiting(generation.next()).await?,
                None => generation.next().await,
            };
            match next {
                Ok(Some(progress)) => {
                    for part in progress.parts {
                        items.take(part, app).await?;
                    }
                    finish = progress.finish;
                }
                Ok(None) => break,
                Err(problem) => return Ok(Err(problem)),
            }
        }
        items.close().await?;
        let cut = finish == Some(Finish::Length);
        let status = if cut { "incomplete" } else { "completed" };
        let whole = self.object(&app.served, status, items.output(), Some(&generation.summary()));
        items.event(&format!("response.{status}"), json!({"response": whole})).await?;
        Ok(Ok(whole))
    }

    fn object(&self, served: &Served, status: &str, output: Value, summary: Option<&Summary>) -> Value {
        let mut object = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": (status == "completed").then(now),
            "status": status,
            "error": null,
            "incomplete_details": (status == "incomplete").then(|| json!({"reason": "max_output_tokens"})),
            "model": served.name,
            "output": output,
            "usage": summary.map(usage),
            "warnings": self.warnings,
        });
        if let (Some(object), Some(echo)) = (object.as_object_mut(), self.echo.as_object()) {
            object.extend(echo.clone());
        }
        object
    }
}

fn usage(summary: &Summary) -> Value {
    json!({
        "input_tokens": summary.prompt,
        "input_tokens_details": {"cached_tokens": summary.cached},
        "output_tokens": summary.completion,
        "output_tokens_details": {"reasoning_tokens": summary.reasoning},
        "total_tokens": summary.prompt + summary.completion,
    })
}
