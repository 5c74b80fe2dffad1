//! `/v1/models`: the one model that is served.

use serde_json::{Value, json};

use crate::serve::problem::{Kind, Problem};
use crate::serve::served::Served;

fn one(served: &Served) -> Value {
    json!({
        "id": served.name,
        "object": "model",
        "created": served.started,
        "owned_by": "fuserun",
        "max_model_len": served.context,
        "meta": {"n_ctx": served.context, "n_vocab": served.tokenizer.vocabulary_size(), "slots": served.slots},
    })
}

pub fn list(served: &Served) -> Value {
    json!({"object": "list", "data": [one(served)]})
}

/// The model of a name.
pub fn named(name: &str, served: &Served) -> Result<Value, Problem> {
    if name == served.name {
        return Ok(one(served));
    }
    let message = format!("there is no model {name:?}: this server runs {:?}", served.name);
    Err(Problem { param: Some("model".into()), ..Problem::new(Kind::NotFound, message) }.with_code("model_not_found"))
}
