//! Which of a model's files are needed.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use super::name::Name;

/// Files beside the weights that are read where they are there.
const BESIDE: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    INDEX,
];

/// Which shard each tensor is in.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// What several GGUF files are to be one of, where the user names none.
const USUAL: &str = "Q4_K_M";

/// GGUF files that are listed where one is to be chosen, at most.
const SHOWN: usize = 16;

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub name: String,
    pub size: Option<u64>,
    /// SHA-256 of a file in LFS, git's SHA-1 of another.
    pub checksum: Option<String>,
}

/// The form of a model that is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// config.json and safetensors.
    Tensors,
    /// One GGUF model: its file, or its parts in order.
    Gguf(Vec<String>),
}

/// Chooses between the forms that a repository has.
///
/// # Errors
/// There is none that is read, or several GGUF files of which none is named.
pub(super) fn choose(of: &Name, files: &[Listed]) -> Result<Choice> {
    let has = |name: &str| files.iter().any(|file| file.name == name);
    if of.quant().is_none() && has("config.json") && files.iter().any(|file| is_weights(&file.name)) {
        return Ok(Choice::Tensors);
    }
    let models = gguf_models(files);
    let wanted = of.quant().unwrap_or(USUAL);
    let exact = models.keys().find(|name| file_of(name).eq_ignore_ascii_case(wanted.trim_end_matches(".gguf")));
    let found: Vec<&String> = match exact {
        Some(name) => vec![name],
        None => models.keys().filter(|name| has_tag(file_of(name), wanted)).collect(),
    };
    let only = models.keys().next().filter(|_| models.len() == 1 && of.quant().is_none());
    let chosen = only.or(found.first().copied().filter(|_| found.len() == 1));
    match (chosen.and_then(|name| models.get(name)), found) {
        (Some((files, _)), _) => Ok(Choice::Gguf(files.clone())),
        _ if models.is_empty() => bail!("{of}: {}", without_weights(files)),
        (None, found) => {
            let what = match (of.quant(), found.len()) {
                (None, _) => "there are several GGUF files: name one".to_owned(),
                (Some(quant), 0) => format!("there is no GGUF file of {quant}; there are these"),
                (Some(quant), _) => format!("several GGUF files are of {quant}: name one whole"),
            };
            let mut shown: Vec<String> = models.iter().take(SHOWN).map(|(name, model)| shown(name, model.1)).collect();
            shown.extend((models.len() > SHOWN).then(|| format!("and {} more", models.len() - SHOWN)));
            let first = found.first().copied().or(models.keys().next()).map_or("", |name| file_of(name));
            bail!("{of}: {what}, such as {}:{first}: {}", of.repository(), shown.join(", "))
        }
    }
}

/// The files beside the weights, and templates by name.
pub(super) fn beside(files: &[Listed]) -> impl Iterator<Item = &Listed> {
    let is_template = |name: &str| {
        let own = name.strip_prefix("additional_chat_templates/").and_then(|name| name.strip_suffix(".jinja"));
        own.is_some_and(|own| !own.is_empty() && !own.contains('/'))
    };
    files.iter().filter(move |file| BESIDE.contains(&file.name.as_str()) || is_template(&file.name))
}

/// The files with the weights, by the index where there is one and no file has them all.
///
/// # Errors
/// An index that lists no file, or one that is not there.
pub(super) fn weights(of: &Name, files: &[Listed], index: Option<&Value>) -> Result<Vec<String>> {
    let has = |name: &str| files.iter().any(|file| file.name == name);
    if has("model.safetensors") {
        return Ok(vec!["model.safetensors".to_owned()]);
    }
    let Some(index) = index else {
        return Ok(files.iter().map(|file| &file.name).filter(|name| is_weights(name)).cloned().collect());
    };
    let map = index.get("weight_map").and_then(Value::as_object);
    let shards: BTreeSet<&str> = map.into_iter().flatten().filter_map(|(_, shard)| shard.as_str()).collect();
    ensure!(!shards.is_empty(), "{of}: {INDEX} lists no file");
    let missing: Vec<&&str> = shards.iter().filter(|shard| !has(shard)).collect();
    if let Some(first) = missing.first() {
        bail!("{of}: {} of {} shards that {INDEX} lists are missing, {first} the first", missing.len(), shards.len());
    }
    Ok(shards.into_iter().map(str::to_owned).collect())
}

/// A safetensors file of a whole model, beside its config.json.
fn is_weights(name: &str) -> bool {
    let others = ["adapter_", "consolidated"];
    name.ends_with(".safetensors") && !name.contains('/') && !others.iter().any(|other| name.starts_with(other))
}

/// The files of each GGUF model and their bytes, by its path without what tells parts apart.
fn gguf_models(files: &[Listed]) -> BTreeMap<String, (Vec<String>, Option<u64>)> {
    let mut models: BTreeMap<String, (Vec<String>, Option<u64>)> = BTreeMap::new();
    for file in files {
        let Some(stem) = file.name.strip_suffix(".gguf") else { continue };
        let small = file_of(stem).to_lowercase();
        if small.contains("mmproj") || small.contains("imatrix") {
            continue;
        }
        let (names, bytes) = models.entry(without_part(stem).to_owned()).or_insert((Vec::new(), Some(0)));
        names.push(file.name.clone());
        *bytes = bytes.zip(file.size).map(|(sum, size)| sum.saturating_add(size));
    }
    models.values_mut().for_each(|(names, _)| names.sort());
    models
}

/// `model` of `model-00001-of-00003`.
fn without_part(stem: &str) -> &str {
    let part = || {
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (rest, number) = rest.rsplit_once('-')?;
        [number, count]
            .iter()
            .all(|digits| digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit()))
            .then_some(rest)
    };
    part().unwrap_or(stem)
}

/// The last part of a path.
fn file_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Whether a name has a tag that is no part of a longer one, in letters of any case.
fn has_tag(name: &str, tag: &str) -> bool {
    let (name, tag) = (name.to_lowercase(), tag.to_lowercase());
    let part = |letter: char| letter.is_alphanumeric() || letter == '_';
    name.match_indices(&tag).any(|(at, _)| !name[..at].ends_with(part) && !name[at + tag.len()..].starts_with(part))
}

fn shown(name: &str, bytes: Option<u64>) -> String {
    match bytes {
        Some(bytes) => format!("{} ({:.1} GB)", file_of(name), bytes as f64 / 1e9),
        None => file_of(name).to_owned(),
    }
}

/// What a repository has in the place of weights that are read.
fn without_weights(files: &[Listed]) -> String {
    let ends = |end: &str| files.iter().find(|file| file.name.ends_with(end)).map(|file| &file.name);
    let other = [".bin", ".pth", ".pt", ".onnx", ".msgpack", ".h5", ".safetensors"].iter().find_map(|end| ends(end));
    let other = other.map_or(String::new(), |name| format!(" (it has {name})"));
    format!("there is neither config.json with .safetensors files nor a .gguf file{other}: nothing else is read")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<Listed> {
        let listed = |name: &&str| Listed { name: (*name).to_owned(), size: Some(1_500_000_000), checksum: None };
        names.iter().map(listed).collect()
    }

    fn chosen(name: &str, names: &[&str]) -> Result<Vec<String>, String> {
        match choose(&Name::parse(name).unwrap(), &files(names)) {
            Ok(Choice::Gguf(files)) => Ok(files),
            Ok(Choice::Tensors) => Ok(vec!["tensors".to_owned()]),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn tensors_go_before_gguf_files_where_none_is_named() {
        let both = ["config.json", "model.safetensors", "m-Q8_0.gguf"];
        assert_eq!(chosen("o/n", &both).unwrap(), ["tensors"]);
        assert_eq!(chosen("o/n:q8_0", &both).unwrap(), ["m-Q8_0.gguf"]);
        assert_eq!(chosen("o/n", &both[1..]).unwrap(), ["m-Q8_0.gguf"], "no config.json");
        assert_eq!(chosen("o/n", &["config.json", "adapter_model.safetensors", "a.gguf"]).unwrap(), ["a.gguf"]);
    }

    #[test]
    fn a_quantisation_is_found_by_its_whole_tag() {
        let many = [
            "m-Q4_K_M.gguf",
            "m-Q4_K_S.gguf",
            "m-Q4_0.gguf",
            "mmproj-m-Q4_0.gguf",
            "m-UD-Q4_K_XL.gguf",
            "m.Q4_K_L.gguf",
        ];
        assert_eq!(chosen("o/n", &many).unwrap(), ["m-Q4_K_M.gguf"], "the usual one");
        assert_eq!(chosen("o/n:Q4_0", &many).unwrap(), ["m-Q4_0.gguf"]);
        assert_eq!(chosen("o/n:q4_k_l", &many).unwrap(), ["m.Q4_K_L.gguf"]);
        assert_eq!(chosen("o/n:Q4_K_XL", &many).unwrap(), ["m-UD-Q4_K_XL.gguf"]);
        assert_eq!(chosen("o/n:m-Q4_K_S", &many).unwrap(), ["m-Q4_K_S.gguf"]);
        let error = chosen("o/n:Q4_K", &many).unwrap_err();
        assert!(
            error.starts_with("o/n:Q4_K: there is no GGUF file of Q4_K; there are these, such as o/n:m-Q4_0: "),
            "{error}"
        );
        assert!(error.contains("m-Q4_K_S (1.5 GB)") && !error.contains("mmproj"), "{error}");
        let twice = ["a-Q8_0.gguf", "b-Q8_0.gguf"];
        assert!(chosen("o/n:Q8_0", &twice).unwrap_err().contains("several GGUF files are of Q8_0: name one whole"));
        assert!(
            chosen("o/n", &twice).unwrap_err().contains("there are several GGUF files: name one, such as o/n:a-Q8_0")
        );
        assert_eq!(chosen("o/n:b-q8_0.gguf", &twice).unwrap(), ["b-Q8_0.gguf"]);
    }

    #[test]
    fn parts_are_one_model() {
        let parts = ["Q8_0/m-Q8_0-00002-of-00002.gguf", "Q8_0/m-Q8_0-00001-of-00002.gguf"];
        assert_eq!(
            chosen("o/n", &parts).unwrap(),
            ["Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf"]
        );
    }

    #[test]
    fn what_has_no_weights_says_what_it_has() {
        let error = chosen("o/n", &["config.json", "pytorch_model.bin"]).unwrap_err();
        assert!(error.contains("(it has pytorch_model.bin)"), "{error}");
    }

    #[test]
    fn only_what_is_read_is_taken() {
        let name = Name::parse("o/n").unwrap();
        let all = files(&[
            "README.md",
            "config.json",
            "tokenizer.json",
            "original/config.json",
            "additional_chat_templates/tool_use.jinja",
            "additional_chat_templates/a/b.jinja",
            "model-1.safetensors",
            "model-2.safetensors",
            INDEX,
            "x.safetensors",
        ]);
        let small: Vec<&str> = beside(&all).map(|file| file.name.as_str()).collect();
        assert_eq!(small, ["config.json", "tokenizer.json", "additional_chat_templates/tool_use.jinja", INDEX]);
        let index = serde_json::json!({ "weight_map": { "a": "model-2.safetensors", "b": "model-1.safetensors", "c": "model-1.safetensors" } });
        assert_eq!(weights(&name, &all, Some(&index)).unwrap(), ["model-1.safetensors", "model-2.safetensors"]);
        let lost = serde_json::json!({ "weight_map": { "a": "model-3.safetensors" } });
        assert!(weights(&name, &all, Some(&lost)).unwrap_err().to_string().contains("model-3.safetensors the first"));
        assert!(weights(&name, &all, Some(&Value::Null)).is_err());
    }
}
