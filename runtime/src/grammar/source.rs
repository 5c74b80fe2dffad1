//! What a grammar is made of.

use anyhow::{Result, bail, ensure};
use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use super::marked::Marked;

/// White space between two parts of JSON, at most once: weak models would write it for ever.
const SPACE: &str = " ";
/// Letters of a grammar at most.
const LONGEST: usize = 256 << 10;

/// What a text is held to.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// JSON that a schema describes.
    Schema {
        /// The schema.
        schema: Value,
        /// Whether what cannot be held to is an error; else it is left out.
        strict: bool,
    },
    /// A text that a regular expression matches as a whole.
    Regex(String),
    /// A grammar in Lark's syntax, as llguidance reads it.
    Lark(String),
    /// A text that is free but for what follows a mark.
    Marked(Marked),
}

impl Source {
    pub(super) fn top(&self) -> Result<TopLevelGrammar> {
        Ok(match self {
            Source::Schema { schema, strict } => TopLevelGrammar::from_json_schema(prepared(schema, *strict)?),
            Source::Regex(regex) => TopLevelGrammar::from_regex(short(regex)?),
            Source::Lark(text) => TopLevelGrammar::from_lark(short(text)?.to_owned()),
            Source::Marked(Marked { then, .. }) => TopLevelGrammar::from_lark(then.clone()),
        })
    }
}

/// JSON that a schema describes, as a part of a rule in Lark's syntax.
///
/// # Errors
/// A schema that is no object.
pub fn json_rule(schema: &Value, strict: bool) -> Result<String> {
    Ok(format!("%json {}", prepared(schema, strict)?))
}

/// A schema with how it is read.
fn prepared(schema: &Value, strict: bool) -> Result<Value> {
    let mut schema = match schema {
        Value::Object(_) => schema.clone(),
        Value::Bool(true) => json!({}),
        other => bail!("a schema is a JSON object, not {other}"),
    };
    schema["x-guidance"] = json!({"whitespace_pattern": SPACE, "lenient": !strict});
    Ok(schema)
}

fn short(text: &str) -> Result<&str> {
    ensure!(!text.trim().is_empty(), "it is empty");
    ensure!(text.len() <= LONGEST, "it has {} bytes; {LONGEST} are read at most", text.len());
    Ok(text)
}
