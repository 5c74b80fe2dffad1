//! Where a Hugging Face directory keeps its chat templates.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use fusec::files::{read_optional_json, read_text};
use serde_json::Value;

/// The name of the template in whose place another stands where there are tools, and the name of that one.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// The templates that are used, as text.
pub(super) struct Sources {
    /// The one without tools.
    pub default: String,
    /// The one with tools, where it is another.
    pub tool_use: Option<String>,
}

impl Sources {
    /// Those of the files with nothing else in them (chat_template.jinja, additional_chat_templates/NAME.jinja), else of `tokenizer_config`, else of
    /// chat_template.json; `None` where there are none.
    pub(super) fn of_directory(directory: &Path, tokenizer_config: &Value) -> Result<Option<Sources>> {
        let files = files(directory)?;
        if !files.is_empty() {
            return Sources::choose(files).with_context(|| directory.display().to_string()).map(Some);
        }
        let (config, processor) = (directory.join("tokenizer_config.json"), directory.join("chat_template.json"));
        for (path, json) in [(config, tokenizer_config), (processor.clone(), &read_optional_json(&processor)?)] {
            if let Some(found) = json.get("chat_template").filter(|found| !found.is_null()) {
                return named(found).and_then(Sources::choose).with_context(|| path.display().to_string()).map(Some);
            }
        }
        Ok(None)
    }

    /// Of templates by name, those that are used.
    fn choose(mut named: BTreeMap<String, String>) -> Result<Sources> {
        let Some(default) = named.remove(DEFAULT) else {
            let names: Vec<String> = named.into_keys().collect();
            bail!("chat_template has no template called '{DEFAULT}', but these: {}", names.join(", "));
        };
        Ok(Sources { default, tool_use: named.remove(TOOL_USE) })
    }
}

/// Templates that are files of their own, by name.
fn files(directory: &Path) -> Result<BTreeMap<String, String>> {
    let mut paths: Vec<(String, PathBuf)> = vec![(DEFAULT.to_owned(), directory.join("chat_template.jinja"))];
    let more = directory.join("additional_chat_templates");
    if more.is_dir() {
        for entry in std::fs::read_dir(&more).with_context(|| format!("cannot list {}", more.display()))? {
            let path = entry.with_context(|| format!("cannot list {}", more.display()))?.path();
            if let (Some("jinja"), Some(name)) = (
                path.extension().and_then(|extension| extension.to_str()),
                path.file_stem().and_then(|name| name.to_str()),
            ) {
                paths.push((name.to_owned(), path.clone()));
            }
        }
    }
    let read = |(name, path): (String, PathBuf)| {
        let text = read_text(&path)?;
        Ok((name, text))
    };
    paths.into_iter().filter(|(_, path)| path.exists()).map(read).collect()
}

/// The templates of a JSON value: one, a list of `{name, template}`, or a table of templates by name.
fn named(found: &Value) -> Result<BTreeMap<String, String>> {
    let entry = |(name, template): (Option<&str>, Option<&Value>)| match (name, template.and_then(Value::as_str)) {
        (Some(name), Some(template)) => Ok((name.to_owned(), template.to_owned())),
        (Some(name), None) => bail!("the chat template '{name}' is no text"),
        (None, _) => bail!("chat_template has a template without a name"),
    };
    match found {
        Value::String(source) => Ok(BTreeMap::from([(DEFAULT.to_owned(), source.clone())])),
        Value::Array(items) => {
            let pair = |item: &Value| entry((item.get("name").and_then(Value::as_str), item.get("template")));
            items.iter().map(pair).collect()
        }
        Value::Object(table) => {
            table.iter().map(|(name, template)| entry((Some(name.as_str()), Some(template)))).collect()
        }
        _ => bail!("chat_template is neither text nor a list nor a table"),
    }
}
