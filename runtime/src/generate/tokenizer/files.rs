//! What the files beside tokenizer.json say of its tokens, in the order of precedence that transformers has.

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use std::path::Path;
use tokenizers::AddedToken;

use fusec::files::read_optional_json;

/// The names of special tokens, each of one token.
const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The names of lists of special tokens.
const LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// tokenizer_config.json of a folder; where it lists no `added_tokens_decoder`, with what special_tokens_map.json, which overrides it, and
/// added_tokens.json say. Null where there is none of them.
///
/// # Errors
/// A file that cannot be read or is no JSON object.
pub(crate) fn read_tokenizer_config(directory: &Path) -> Result<Value> {
    let read = |name: &str| {
        let path = directory.join(name);
        let value = read_optional_json(&path)?;
        ensure!(value.is_null() || value.is_object(), "{}: not a JSON object", path.display());
        Ok(value)
    };
    let config = read("tokenizer_config.json")?;
    if config.get(ADDED).is_some() {
        return Ok(config);
    }
    let (names, added) = (read("special_tokens_map.json")?, read("added_tokens.json")?);
    if names.is_null() && added.is_null() {
        return Ok(config);
    }
    let mut merged = config.as_object().cloned().unwrap_or_default();
    for (key, value) in names.as_object().into_iter().flatten() {
        let both = match (merged.get(key), value) {
            (Some(Value::Array(own)), Value::Array(more)) => {
                let new = more.iter().filter(|token| !own.contains(token));
                Value::Array(own.iter().chain(new).cloned().collect())
            }
            _ => value.clone(),
        };
        merged.insert(key.clone(), both);
    }
    if let Value::Object(added) = added {
        let special = special_texts(&Value::Object(merged.clone()));
        let mut decoder = Map::new();
        for (content, id) in added {
            let is_special = special.contains(&content);
            decoder.insert(
                id.to_string(),
                json!({ "content": content, "special": is_special, "normalized": !is_special }),
            );
        }
        merged.insert(ADDED_LATER.to_owned(), Value::Object(decoder));
    }
    Ok(Value::Object(merged))
}

/// The key of tokens by id.
const ADDED: &str = "added_tokens_decoder";

/// The key of those out of added_tokens.json: an id that tokenizer.json gives to another token stays that one's.
const ADDED_LATER: &str = "added_tokens.json";

/// Adds the tokens that a tokenizer_config.json has beyond those of tokenizer.json: `added_tokens_decoder` in the order of its ids, then special
/// tokens that are not among them. As in transformers a token that the vocabulary has keeps its id there, and another has the next that is free.
///
/// # Errors
/// A key that is no id, or a token that is none.
pub(super) fn add_tokens(tokenizer: &mut tokenizers::Tokenizer, config: &Value) -> Result<()> {
    let special = special_texts(config);
    let mut tokens = decoder(config, ADDED, "added_tokens_decoder of tokenizer_config.json")?;
    let known = tokenizer.get_added_tokens_decoder();
    tokens.retain(|(id, token)| known.get(id) != Some(token));
    let later = decoder(config, ADDED_LATER, ADDED_LATER)?;
    tokens.extend(later.into_iter().filter(|(id, _)| !known.contains_key(id)));
    let mut tokens: Vec<AddedToken> = tokens.into_iter().map(|(_, token)| token).collect();
    for token in &mut tokens {
        token.special |= special.contains(&token.content);
    }
    let listed =
        |text: &String, tokens: &[AddedToken]| tokens.iter().chain(known.values()).any(|token| token.content == *text);
    for text in special {
        if !listed(&text, &tokens) {
            tokens.push(AddedToken::from(text, true));
        }
    }
    tokenizer
        .add_tokens(tokens)
        .map_err(|error| anyhow::anyhow!("cannot add the tokens of tokenizer_config.json: {error}"))?;
    Ok(())
}

/// The special tokens as chat templates know them: text by name, and a list.
pub(crate) fn template_names(config: &Value) -> Map<String, Value> {
    let mut named = Map::new();
    let by_name = LISTS.iter().filter_map(|list| config.get(list)?.as_object()).flatten();
    let names = NAMES.iter().filter_map(|name| Some((*name, config.get(name)?)));
    for (name, token) in names.chain(by_name.map(|(name, token)| (name.as_str(), token))) {
        if let Some(text) = token_text(token) {
            named.insert(name.to_owned(), json!(text));
        }
    }
    for list in LISTS {
        if let Some(tokens) = config.get(list).and_then(Value::as_array) {
            named.insert(list.to_owned(), tokens.iter().filter_map(token_text).collect());
        }
    }
    named
}

/// The text of a special token: a string, or an object with `content`.
pub(super) fn token_text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// The special tokens that a configuration names.
fn special_texts(config: &Value) -> Vec<String> {
    let lists = LISTS.iter().filter_map(|list| config.get(list)).flat_map(|list| match list {
        Value::Array(list) => list.iter().collect(),
        Value::Object(named) => named.values().collect(),
        _ => Vec::new(),
    });
    let texts = NAMES.iter().filter_map(|name| config.get(name)).chain(lists).filter_map(token_text);
    let mut found = Vec::new();
    for text in texts.filter(|text| !text.is_empty()) {
        if !found.iter().any(|found| found == text) {
            found.push(text.to_owned());
        }
    }
    found
}

/// The tokens under a key by id, in order; errors call it by its `name`.
fn decoder(config: &Value, key: &str, name: &str) -> Result<Vec<(u32, AddedToken)>> {
    let mut tokens = Vec::new();
    let Some(listed) = config.get(key).filter(|listed| !listed.is_null()) else { return Ok(tokens) };
    let listed = listed.as_object().with_context(|| format!("{name} is not an object of tokens by id"))?;
    for (id, token) in listed {
        let id: u32 = id.parse().ok().with_context(|| format!("{name} has \"{id}\", which is no id of a token"))?;
        let content = token_text(token).with_context(|| format!("{name} has no content for the token {id}"))?;
        let flag = |name: &str, default: bool| token.get(name).and_then(Value::as_bool).unwrap_or(default);
        let special = flag("special", false);
        let token = AddedToken::from(content, special)
            .single_word(flag("single_word", false))
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .normalized(flag("normalized", !special));
        tokens.push((id, token));
    }
    tokens.sort_by_key(|(id, _)| *id);
    Ok(tokens)
}

#[cfg(test)]
mod tests;
