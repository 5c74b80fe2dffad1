//! Routes about the server and its model, by llama.cpp's and vLLM's names.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::{Value, json};

use super::app::App;
use super::engine::Phase;
use super::fields::{Fields, decimal};
use super::problem::{Problem, json_response};
use super::served::Served;

/// `/health`: 200 once requests are served.
pub fn health(app: &App) -> Response {
    let (status, object) = match app.engine.phase() {
        Phase::Ready => (StatusCode::OK, json!({"status": "ok"})),
        Phase::Loading => (StatusCode::SERVICE_UNAVAILABLE, json!({"status": "loading"})),
        Phase::Failed(message) => {
            (StatusCode::SERVICE_UNAVAILABLE, json!({"status": "failed", "error": {"message": message}}))
        }
    };
    json_response(status, &object)
}

/// `/metrics`, as OpenMetrics.
pub fn metrics(app: &App) -> Result<Response, Problem> {
    let text = app.metrics.text(&app.engine.snapshot()).map_err(|error| Problem::fault(error.to_string()))?;
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// `/slots`: what each slot does.
pub fn slots(app: &App) -> Value {
    let snapshot = app.engine.snapshot();
    let all = (0..app.served.slots).map(|index| {
        let occupant = snapshot.slots.get(index).copied().flatten();
        let mut slot = json!({"id": index, "n_ctx": app.served.context, "is_processing": occupant.is_some()});
        if let Some(occupant) = occupant {
            slot["n_prompt_tokens"] = json!(occupant.prompt);
            slot["n_prompt_tokens_processed"] = json!(occupant.read);
            slot["n_decoded"] = json!(occupant.produced);
        }
        slot
    });
    all.collect()
}

/// `/props`: what the server runs.
pub fn props(served: &Served) -> Value {
    let model = &served.defaults;
    json!({
        "default_generation_settings": {
            "n_ctx": served.context,
            "params": {
                "temperature": model.temperature.map(decimal),
                "top_k": model.top_k,
                "top_p": model.top_p.map(decimal),
                "min_p": model.min_p.map(decimal),
                "repeat_penalty": model.repetition_penalty.map(decimal),
            },
        },
        "total_slots": served.slots,
        "model_alias": served.name,
        "model_path": served.name,
        "architecture": served.architecture,
        "dtype": served.dtype,
        "device": served.device,
        "modalities": {"vision": false, "audio": false},
        "chat_template": served.template.as_ref().map(|template| template.source()),
        "bos_token": served.tokenizer.bos().and_then(|token| served.tokenizer.id_to_token(token)),
        "eos_token": served.tokenizer.eos().next().and_then(|token| served.tokenizer.id_to_token(token)),
        "build_info": format!("fuserun {}", env!("CARGO_PKG_VERSION")),
    })
}

/// `/tokenize`: the ids of a text.
pub fn tokenize(fields: &mut Fields, served: &Served) -> Result<Value, Problem> {
    let text = match fields.text("content")? {
        Some(text) => text,
        None => fields
            .text("prompt")?
            .ok_or_else(|| Problem::field("content", "`content` is missing: give the text to turn into tokens"))?,
    };
    let special = match fields.flag("add_special")? {
        Some(special) => special,
        None => fields.flag("add_special_tokens")?.unwrap_or(false),
    };
    let pieces = fields.flag("with_pieces")?.unwrap_or(false);
    let ids = served.tokenizer.encode(&text, special).map_err(|error| Problem::invalid(format!("{error:#}")))?;
    let piece = |id: &u32| json!({"id": id, "piece": served.token_text(*id)});
    let tokens: Value = if pieces { ids.iter().map(piece).collect() } else { json!(ids) };
    Ok(json!({"tokens": tokens, "count": ids.len(), "max_model_len": served.context}))
}

/// `/detokenize`: the text of ids.
pub fn detokenize(fields: &mut Fields, served: &Served) -> Result<Value, Problem> {
    let Some(list) = fields.list("tokens")? else {
        return Err(Problem::field("tokens", "`tokens` is missing: give a list of token ids"));
    };
    let vocabulary = served.tokenizer.vocabulary_size();
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < vocabulary);
        id.ok_or_else(|| {
            Problem::field("tokens", format!("`tokens` has {value}, which is no token; give ids below {vocabulary}"))
        })
    };
    let ids: Vec<u32> = list.iter().map(id).collect::<Result<_, _>>()?;
    let text = served.tokenizer.decode(&ids, false).map_err(|error| Problem::invalid(format!("{error:#}")))?;
    Ok(json!({"content": text, "prompt": text}))
}
