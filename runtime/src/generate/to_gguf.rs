//! What a GGUF file says of a tokenizer: byte-level BPE of a tokenizer.json whose cuts have a name there.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use fusec::files::{read_json, read_optional_json};
use serde_json::Value as Json;

use super::tokenizer::Tokenizer;
use super::tokenizer::from_gguf::{GPT2, name_of_cuts};
use crate::weights::gguf::Value;

/// What to do about a tokenizer that is not written.
const INSTEAD: &str = "name a folder to write in the place of a .gguf file";

/// Keys and what they say.
pub type Pairs = Vec<(String, Value)>;

/// The metadata of the tokenizer in a folder, for a vocabulary of so many tokens; `template` is its chat template. A folder without a tokenizer has a vocabulary
/// without names.
///
/// # Errors
/// A tokenizer that is no byte-level BPE, or that cuts texts in a way that has no name.
pub fn metadata(folder: &Path, size: usize, template: Option<&str>) -> Result<Pairs> {
    let file = folder.join("tokenizer.json");
    let mut list = Pairs::new();
    let mut put = |key: &str, value: Value| list.push((format!("tokenizer.{key}"), value));
    if !file.exists() {
        put("ggml.model", Value::Text("no_vocab".to_owned()));
        return Ok(list);
    }
    let json = read_json(&file)?;
    let said = || format!("{}: {INSTEAD}", file.display());
    let model = &json["model"];
    let flag = |key: &str| model[key].as_bool().unwrap_or(false);
    ensure!(
        model["type"] == "BPE" && !flag("byte_fallback"),
        "{}: only byte-level BPE is written to GGUF files: {INSTEAD}",
        file.display()
    );
    let cuts = cuts(&json["pre_tokenizer"]).with_context(said)?;
    let composes = match &json["normalizer"] {
        Json::Null => false,
        normalizer if normalizer["type"] == "NFC" => true,
        other => bail!("{}: a GGUF file cannot say the normaliser {}: {INSTEAD}", file.display(), other["type"]),
    };
    let cuts: Vec<&str> = cuts.iter().map(String::as_str).collect();
    let pre = name_of_cuts(&cuts, composes, flag("ignore_merges"));
    let pre =
        pre.with_context(|| format!("{}: a GGUF file has no name for how it cuts texts: {INSTEAD}", file.display()))?;
    put("ggml.model", Value::Text("gpt2".to_owned()));
    put("ggml.pre", Value::Text(pre.to_owned()));

    const NORMAL: i64 = 1;
    const CONTROL: i64 = 3;
    const USER_DEFINED: i64 = 4;
    const UNUSED: i64 = 5;
    let mut tokens: BTreeMap<u64, (String, i64)> = BTreeMap::new();
    for (token, id) in model["vocab"].as_object().context("its model has no vocabulary").with_context(said)? {
        let id = id.as_u64().with_context(|| format!("token '{token}' has no number")).with_context(said)?;
        tokens.insert(id, (token.clone(), NORMAL));
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let (Some(id), Some(token)) = (added["id"].as_u64(), added["content"].as_str()) else {
            bail!("{}: an added token has no number or no text: {INSTEAD}", file.display())
        };
        let kind = if added["special"] == true { CONTROL } else { USER_DEFINED };
        tokens.insert(id, (token.to_owned(), kind));
    }
    let most = tokens.keys().next_back().map_or(0, |last| *last as usize + 1);
    ensure!(most <= size, "{}: it has {most} tokens, and the model {size}: {INSTEAD}", file.display());
    let unused = |id: u64| (format!("[PAD{id}]"), UNUSED);
    let tokens: Vec<(String, i64)> =
        (0..size as u64).map(|id| tokens.remove(&id).unwrap_or_else(|| unused(id))).collect();
    put("ggml.tokens", Value::List(tokens.iter().map(|(token, _)| Value::Text(token.clone())).collect()));
    put("ggml.token_type", Value::List(tokens.iter().map(|(_, kind)| Value::Signed(*kind)).collect()));
    let merge = |merge: &Json| match merge {
        Json::String(text) => Some(text.clone()),
        Json::Array(pair) => Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
        _ => None,
    };
    let merges = model["merges"].as_array().map(|merges| merges.iter().map(merge).collect::<Option<Vec<String>>>());
    let merges = merges.flatten().context("its model has no list of merges").with_context(said)?;
    put("ggml.merges", Value::List(merges.into_iter().map(Value::Text).collect()));

    let tokenizer = Tokenizer::open(folder)?;
    if let Some(bos) = tokenizer.bos() {
        put("ggml.bos_token_id", Value::Unsigned(bos.into()));
    }
    let config = read_json(&folder.join("config.json"))?;
    let text_config = read_optional_json(&folder.join("tokenizer_config.json"))?;
    let named = text_config["eos_token"].as_str().or(text_config["eos_token"]["content"].as_str());
    let eos = named.and_then(|token| tokenizer.token_to_id(token)).map(u64::from);
    let eos = eos.or(config["eos_token_id"].as_u64()).or(config["eos_token_id"][0].as_u64());
    if let Some(eos) = eos {
        put("ggml.eos_token_id", Value::Unsigned(eos));
    }
    let adds_bos = tokenizer.encode("", true)?.first().copied() == tokenizer.bos() && tokenizer.bos().is_some();
    put("ggml.add_bos_token", Value::Bool(adds_bos));
    if let Some(template) = template {
        put("chat_template", Value::Text(template.to_owned()));
    }
    Ok(list)
}

/// The patterns by which a tokenizer.json cuts texts, one after the other.
fn cuts(pre_tokenizer: &Json) -> Result<Vec<String>> {
    let one = |step: &Json| -> Result<Vec<String>> {
        match step["type"].as_str() {
            Some("ByteLevel") if step["add_prefix_space"] == true => bail!("it puts a space before texts"),
            Some("ByteLevel") if step["use_regex"] == false => Ok(Vec::new()),
            Some("ByteLevel") => Ok(vec![GPT2.to_owned()]),
            Some("Digits") if step["individual_digits"] == true => Ok(vec![r"\p{N}".to_owned()]),
            Some("Split") if step["behavior"] == "Isolated" && step["invert"] != true => {
                let pattern = step["pattern"]["Regex"].as_str().context("it cuts texts at a string")?;
                Ok(vec![pattern.to_owned()])
            }
            other => bail!("a GGUF file cannot say how it cuts texts ({})", other.unwrap_or("by nothing")),
        }
    };
    let steps = if pre_tokenizer["type"] == "Sequence" {
        pre_tokenizer["pretokenizers"].as_array().cloned().unwrap_or_default()
    } else {
        vec![pre_tokenizer.clone()]
    };
    Ok(steps.iter().map(one).collect::<Result<Vec<_>>>()?.concat())
}
