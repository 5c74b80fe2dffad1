//! The language model within a model of several parts, such as one that also sees: its keys are the `text_config` of config.json, and its tensors mostly
//! have a prefix of their own.

use serde_json::Value;

/// What the names of other parts' tensors begin with, where those of the language model have no prefix.
const OTHER_PARTS: &[&str] = &["multi_modal_projector.", "vision_model.", "vision_tower.", "visual."];

/// Keys of the whole that hold for its language model, too.
const OF_THE_WHOLE: &[&str] =
    &["bos_token_id", "dtype", "eos_token_id", "quantization_config", "tie_word_embeddings", "torch_dtype"];

/// What precedes a tensor of the language model, and what it has in its place in a language model by itself.
const PREFIXES: &[(&str, &str)] =
    &[("language_model.", ""), ("model.language_model.", "model."), ("model.text_model.", "model.")];

/// The configuration of the language model, where config.json is of a model of several parts. What the whole says of `tie_word_embeddings` and the
/// data type comes first, as in transformers. Its `architectures` are the whole's, with the `model_type` of the language model after a colon
/// (`Gemma3ForConditionalGeneration:gemma3_text`), since the whole may run it otherwise than it runs by itself.
pub fn language_model_config(config: &Value) -> Option<Value> {
    let whole = config.as_object()?;
    let table = |key: &str| whole.get(key)?.as_object().filter(|table| !table.is_empty());
    let mut inner = match (table("text_config"), table("vision_config")) {
        (Some(text), _) => text.clone(),
        // Older files have the keys of both beside each other.
        (None, Some(_)) => {
            let mut own = whole.clone();
            own.retain(|key, _| !key.ends_with("_config"));
            own
        }
        (None, None) => return None,
    };
    for (key, value) in whole.iter().filter(|(key, value)| OF_THE_WHOLE.contains(&key.as_str()) && !value.is_null()) {
        inner.insert(key.clone(), value.clone());
    }
    let kind = inner.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let names: Vec<String> = named(config).map(|name| format!("{name}:{kind}")).collect();
    inner.insert("architectures".to_owned(), names.into());
    Some(Value::Object(inner))
}

/// The keys of a model of several parts that are neither its language model's, nor another part's configuration.
pub(super) fn keys_outside(config: &Value) -> impl Iterator<Item = &str> {
    let inside = config.get("text_config").and_then(Value::as_object).is_some_and(|table| !table.is_empty());
    let whole = config.as_object().filter(|_| inside);
    whole.into_iter().flatten().map(|(key, _)| key.as_str()).filter(|key| !key.ends_with("_config"))
}

/// The `architectures` of a config.json, of a model of several parts as [`language_model_config`] has them; none where it names none.
pub fn architectures(config: &Value) -> Vec<String> {
    let inner = language_model_config(config);
    named(inner.as_ref().unwrap_or(config)).map(str::to_owned).collect()
}

fn named(config: &Value) -> impl Iterator<Item = &str> {
    let list = config.get("architectures").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str)
}

/// Sorts the tensors of a checkpoint with this config.json by part: gives each tensor of the language model the name that it has in the language model
/// alone, and the others none. Of a model that is a language model and nothing else, each keeps its name.
///
/// ```
/// # use fusec::description::language_model_names;
/// let config = serde_json::json!({"text_config": {"model_type": "gemma3_text"}, "vision_config": {}});
/// let names = ["language_model.model.norm.weight", "vision_tower.post_layernorm.weight"];
/// let own = language_model_names(&config, &names);
/// assert_eq!(own, [Some("model.norm.weight".to_owned()), None]);
/// ```
pub fn language_model_names<S: AsRef<str>>(config: &Value, names: &[S]) -> Vec<Option<String>> {
    let inside = |name: &str| {
        let renamed = |(before, now): &(&str, &str)| Some(format!("{now}{}", name.strip_prefix(before)?));
        PREFIXES.iter().find_map(renamed)
    };
    let names = names.iter().map(AsRef::as_ref);
    if language_model_config(config).is_none() {
        return names.map(|name| Some(name.to_owned())).collect();
    }
    if !names.clone().any(|name| inside(name).is_some()) {
        let is_other = |name: &str| OTHER_PARTS.iter().any(|part| name.starts_with(part));
        return names.map(|name| (!is_other(name)).then(|| name.to_owned())).collect();
    }
    names.map(|name| inside(name).or_else(|| name.starts_with("lm_head.").then(|| name.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_whole_speaks_first_of_what_it_shares() {
        let config = json!({
            "architectures": ["Mistral3ForConditionalGeneration"], "dtype": "bfloat16", "tie_word_embeddings": true, "eos_token_id": null,
            "image_token_index": 10, "vision_config": {"hidden_size": 8},
            "text_config": {"model_type": "mistral", "hidden_size": 16, "tie_word_embeddings": false, "eos_token_id": 2},
        });
        let expected = json!({
            "architectures": ["Mistral3ForConditionalGeneration:mistral"], "dtype": "bfloat16", "tie_word_embeddings": true,
            "model_type": "mistral", "hidden_size": 16, "eos_token_id": 2,
        });
        assert_eq!(language_model_config(&config), Some(expected));
        assert_eq!(architectures(&config), ["Mistral3ForConditionalGeneration:mistral"]);
        let flat = json!({"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "hidden_size": 16, "vision_config": {"depth": 1}});
        let expected = json!({"architectures": ["Qwen2_5_VLForConditionalGeneration:qwen2_5_vl"], "model_type": "qwen2_5_vl", "hidden_size": 16});
        assert_eq!(language_model_config(&flat), Some(expected));
        let plain = json!({"architectures": ["LlamaForCausalLM"], "text_config": null});
        assert_eq!((language_model_config(&plain), architectures(&plain)), (None, vec!["LlamaForCausalLM".to_owned()]));
    }

    #[test]
    fn tensors_are_found_in_each_layout_and_other_parts_left_out() {
        let config = json!({"text_config": {"model_type": "llama"}});
        let own = |names: &[&str]| -> Vec<String> {
            language_model_names(&config, names).into_iter().map(|name| name.unwrap_or("-".to_owned())).collect()
        };
        assert_eq!(
            own(&["language_model.model.norm.weight", "language_model.lm_head.weight", "vision_tower.norm.weight"]),
            ["model.norm.weight", "lm_head.weight", "-"]
        );
        assert_eq!(
            own(&["model.language_model.norm.weight", "model.visual.norm.weight", "lm_head.weight"]),
            ["model.norm.weight", "-", "lm_head.weight"]
        );
        assert_eq!(own(&["model.text_model.norm.weight", "model.connector.weight"]), ["model.norm.weight", "-"]);
        assert_eq!(own(&["model.norm.weight", "visual.norm.weight", "bias"]), ["model.norm.weight", "-", "bias"]);
        let alone = language_model_names(&json!({}), &["language_model.x"]);
        assert_eq!(alone, [Some("language_model.x".to_owned())]);
    }
}
