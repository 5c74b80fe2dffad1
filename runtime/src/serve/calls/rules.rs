//! How each form of calls is written, in Lark's syntax.

use anyhow::Result;
use serde_json::{Value, json};

use crate::generate::tokenizer::Tokenizer;
use crate::grammar::json_rule;
use crate::serve::answer::{CallFormat, END_OF_PARAMETER, ValueKind};

/// A function that may be called.
#[derive(Clone, Debug)]
pub struct Tool {
    pub name: String,
    /// The schema of its arguments, which are an object.
    pub parameters: Value,
    /// Whether a schema that cannot be held to is an error.
    pub strict: bool,
}

impl Tool {
    pub fn of(tool: &Value) -> Tool {
        let function = &tool["function"];
        let mut parameters = function["parameters"].clone();
        match parameters.as_object_mut() {
            Some(object) => {
                object.entry("type").or_insert_with(|| json!("object"));
            }
            None => parameters = json!({"type": "object"}),
        }
        let name = function["name"].as_str().unwrap_or_default().to_owned();
        Tool { name, parameters, strict: function["strict"] == true }
    }
}

/// A form of calls, with the tokens of a model.
pub struct Writing {
    format: CallFormat,
    marks: Vec<String>,
    end: String,
    /// What stands between a name and its arguments in Mistral's newer form.
    apart: Option<String>,
}

impl Writing {
    /// `named`: whether Mistral's newer form is known, where the tokens do not say.
    pub fn new(format: CallFormat, tokenizer: &Tokenizer, named: bool) -> Writing {
        let token = |text: &str| special(tokenizer, text);
        let named = named || tokenizer.token_to_id("[ARGS]").is_some();
        let apart = (named && format == CallFormat::Marks).then(|| match token("[CALL_ID]") {
            Some(id) => format!("({id} /[a-zA-Z0-9]{{9}}/)? {}", mark(tokenizer, "[ARGS]")),
            None => mark(tokenizer, "[ARGS]"),
        });
        let marks = format.marks().iter().map(|text| mark(tokenizer, text)).collect();
        Writing { format, marks, end: mark(tokenizer, "</tool_call>"), apart }
    }

    /// What comes after a mark, until the text is free again; `call`: the rule of a call; `once`: there is one at most.
    pub fn after_mark(&self, call: &str, once: bool) -> String {
        match self.format {
            CallFormat::Tags => format!("/\\n?/ {call} /\\n?/ {}", self.end),
            CallFormat::Functions => format!("/\\n?/ {call}"),
            CallFormat::Marks if self.apart.is_none() && once => format!("\"[\" {call} \"]\""),
            CallFormat::Marks if self.apart.is_none() => format!("\"[\" {call} (/, ?/ {call})* \"]\""),
            CallFormat::Marks | CallFormat::Whole => call.to_owned(),
        }
    }

    /// An answer that is one call.
    pub fn whole(&self, call: &str) -> String {
        let begin = &self.marks[0];
        match self.format {
            CallFormat::Tags => format!("{begin} \"\\n\" {call} \"\\n\" {}", self.end),
            CallFormat::Functions => format!("{begin} \"\\n\" {call} \"\\n\" {}", self.end),
            CallFormat::Marks if self.apart.is_none() => format!("{begin} \"[\" {call} \"]\""),
            CallFormat::Marks => format!("{begin} {call}"),
            CallFormat::Whole => call.to_owned(),
        }
    }

    /// The rule `call`: one call of any of the tools.
    pub fn call(&self, tools: &[Tool]) -> Result<String> {
        let names: Vec<String> = (0..tools.len()).map(|index| format!("call_{index}")).collect();
        let mut rules = format!("call: {}\n", names.join(" | "));
        for (index, tool) in tools.iter().enumerate() {
            if self.format == CallFormat::Functions {
                rules += &function(index, tool)?;
                continue;
            }
            let arguments = json_rule(&tool.parameters, tool.strict)?;
            rules += &match (&self.apart, self.format) {
                (Some(apart), _) => format!("call_{index}: {} {apart} arguments_{index}\n", literal(&tool.name)),
                (None, CallFormat::Whole) => {
                    let name = literal(&format!("{},", json!(tool.name)));
                    let of_type = "(\"\\\"type\\\":\" / ?/ \"\\\"function\\\",\" / ?/)?";
                    format!(
                        "call_{index}: \"{{\" {of_type} \"\\\"name\\\":\" / ?/ {name} / ?/ \"\\\"parameters\\\":\" / ?/ arguments_{index} \"}}\"\n"
                    )
                }
                (None, _) => {
                    let begin = literal(&format!("{{\"name\": {}, \"arguments\": ", json!(tool.name)));
                    format!("call_{index}: {begin} arguments_{index} \"}}\"\n")
                }
            };
            rules += &format!("arguments_{index}: {arguments}\n");
        }
        Ok(rules)
    }
}

/// How a call may begin that has no mark before it.
pub fn begins(name: &str) -> Vec<String> {
    let mut all = Vec::new();
    for space in [" ", ""] {
        let name = format!("\"name\":{space}{}", json!(name));
        all.push(format!("{{{name}"));
        all.push(format!("{{\"type\":{space}\"function\",{space}{name}"));
    }
    all
}

/// The rules of a call whose parameters are tags.
fn function(index: usize, tool: &Tool) -> Result<String> {
    let schema = &tool.parameters;
    let required = |name: &str| schema["required"].as_array().is_some_and(|names| names.iter().any(|one| one == name));
    let (mut rules, mut parts) = (String::new(), vec![literal(&format!("<function={}>\n", tool.name))]);
    let properties = schema["properties"].as_object().filter(|properties| !properties.is_empty());
    for (at, (name, value)) in properties.into_iter().flatten().enumerate() {
        let rule = format!("value_{index}_{at}");
        let begin = literal(&format!("<parameter={name}>\n"));
        parts.push(if required(name) { format!("{begin} {rule}") } else { format!("({begin} {rule})?") });
        rules += &value_rules(&rule, value, tool)?;
    }
    if properties.is_none() && schema["additionalProperties"] != false {
        parts.push(format!("(/<parameter=[A-Za-z_][A-Za-z0-9_.-]*>\\n/ value_{index} \"\\n\")*"));
        rules += &format!("value_{index}[lazy]: /(.|\\n)*\\n<\\/parameter>/\n");
    }
    parts.push("\"</function>\"".to_owned());
    Ok(format!("call_{index}: {}\n{rules}", parts.join(" ")))
}

/// The rule of a parameter's value and what ends it.
fn value_rules(rule: &str, schema: &Value, tool: &Tool) -> Result<String> {
    let end = literal(&format!("\n{END_OF_PARAMETER}\n"));
    if ValueKind::of(schema, &tool.parameters) == ValueKind::Json {
        let mut schema = schema.clone();
        for definitions in ["$defs", "definitions"] {
            if let (Some(object), Some(all)) = (schema.as_object_mut(), tool.parameters.get(definitions)) {
                object.insert(definitions.to_owned(), all.clone());
            }
        }
        return Ok(format!("{rule}: json_{rule} {end}\njson_{rule}: {}\n", json_rule(&schema, tool.strict)?));
    }
    let listed = match (&schema["enum"], &schema["const"]) {
        (Value::Array(list), _) => list.iter().filter_map(Value::as_str).collect(),
        (_, Value::String(text)) => vec![text.as_str()],
        _ => Vec::new(),
    };
    if !listed.is_empty() && listed.iter().all(|text| !text.contains(END_OF_PARAMETER)) {
        let listed: Vec<String> = listed.into_iter().map(literal).collect();
        return Ok(format!("{rule}: ({}) {end}\n", listed.join(" | ")));
    }
    let length = |name: &str| schema[name].as_u64().map(|length| length.to_string());
    let letters = match (length("minLength"), length("maxLength")) {
        (None, None) => "*".to_owned(),
        (least, most) => format!("{{{},{}}}", least.unwrap_or_else(|| "0".into()), most.unwrap_or_default()),
    };
    let text = format!("/(.|\\n){letters}\\n<\\/parameter>/");
    // The first end is the end: with a least length the text could go on after one.
    Ok(format!("{rule}: text_{rule} \"\\n\"\ntext_{rule}[lazy]: {text}\n"))
}

/// A text in Lark's syntax.
pub fn literal(text: &str) -> String {
    json!(text).to_string()
}

/// A mark in Lark's syntax: a token, where it is one that is no text.
pub fn mark(tokenizer: &Tokenizer, text: &str) -> String {
    special(tokenizer, text).unwrap_or_else(|| literal(text))
}

pub fn special(tokenizer: &Tokenizer, text: &str) -> Option<String> {
    let id = tokenizer.token_to_id(text).filter(|&id| tokenizer.is_special(id))?;
    Some(format!("<[{id}]>"))
}
