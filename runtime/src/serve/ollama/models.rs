//! What Ollama's API tells of models: there is one, and it stays loaded.

use std::time::Duration;

use serde_json::{Value, json};

use crate::serve::fields::Fields;
use crate::serve::problem::Problem;
use crate::serve::served::{Served, rfc3339};

fn details(served: &Served) -> Value {
    let family = served.architecture.clone().unwrap_or_default();
    json!({
        "parent_model": "",
        "format": "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": "",
        "quantization_level": served.dtype.clone().unwrap_or_default(),
    })
}

fn one(served: &Served) -> Value {
    json!({
        "name": served.name,
        "model": served.name,
        "modified_at": rfc3339(Duration::from_secs(served.started)),
        "size": 0,
        "digest": "",
        "details": details(served),
    })
}

pub fn tags(served: &Served) -> Value {
    json!({"models": [one(served)]})
}

pub fn ps(served: &Served) -> Value {
    let mut model = one(served);
    // As the API has it for what is never unloaded.
    model["expires_at"] = json!("2318-12-31T00:00:00Z");
    model["size_vram"] = json!(0);
    model["context_length"] = json!(served.context);
    json!({"models": [model]})
}

pub fn show(fields: &mut Fields, served: &Served) -> Result<Value, Problem> {
    // One model is here, whatever it is called.
    fields.ignore(&["model", "name", "verbose", "system", "options"]);
    let architecture = served.architecture.clone().unwrap_or_else(|| "unknown".into());
    let mut info = json!({"general.architecture": architecture, "general.basename": served.name});
    info[format!("{architecture}.context_length")] = json!(served.context);
    info[format!("{architecture}.vocab_size")] = json!(served.tokenizer.vocabulary_size());
    let mut capabilities = vec!["completion"];
    if served.calls.is_some() {
        capabilities.push("tools");
    }
    if served.thinks {
        capabilities.push("thinking");
    }
    Ok(json!({
        "license": "",
        "modelfile": "",
        "parameters": "",
        "template": served.template.as_ref().map(|template| template.source()).unwrap_or_default(),
        "details": details(served),
        "model_info": info,
        "capabilities": capabilities,
        "modified_at": rfc3339(Duration::from_secs(served.started)),
    }))
}

pub fn version() -> Value {
    json!({"version": env!("CARGO_PKG_VERSION")})
}
