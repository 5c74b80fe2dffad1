//! A conversation, from the messages of an API to the tokens of a prompt by way of the model's chat template.

use serde_json::{Map, Value, json};

use super::fields::{Fields, kind};
use super::problem::Problem;
use super::served::Served;

/// Variables of a template that a request may set.
const VARIABLES: &[&str] = &[
    "enable_thinking",
    "thinking",
    "thinking_budget",
    "preserve_thinking",
    "clear_thinking",
    "reasoning_effort",
    "documents",
    "controls",
    "citation_mode",
    "model_identity",
    "xml_tools",
    "python_tools",
    "builtin_tools",
    "tools_in_user_message",
    "date_string",
    "today",
];

/// Put after what the last message has so far, to find where it goes on.
const END: &str = "\u{F8FD}\u{F8FE}\u{F8FD}";

/// Messages as templates read them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    pub messages: Vec<Value>,
    /// Tools as OpenAI's chat API has them.
    pub tools: Vec<Value>,
    /// The call that the answer must be.
    pub forced: Option<Forced>,
    /// Whether an answer has one call at most.
    pub one_call: bool,
    /// Further variables of the template.
    pub variables: Map<String, Value>,
}

/// A call that an answer must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forced {
    /// Of any of the tools.
    Any,
    /// Of this one.
    Named(String),
}

/// A conversation as the model reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    pub text: String,
    pub tokens: Vec<u32>,
    /// Whether the answer begins within what the model thinks.
    pub thinks: bool,
    /// Whether the answer goes on with the last message.
    pub goes_on: bool,
}

impl Conversation {
    /// Adds a message with a text.
    pub fn say(&mut self, role: &str, content: impl Into<String>) {
        self.messages.push(json!({"role": role, "content": content.into()}));
    }

    /// Takes the tools, and which of them are to be called, as OpenAI's APIs say that.
    pub fn take_tools(&mut self, tools: Vec<Value>, choice: Option<Value>) -> Result<(), Problem> {
        let wrong = |choice: &Value| {
            let message = format!("`tool_choice` is {choice}; give auto, none, required, or a function by its name");
            Problem::field("tool_choice", message)
        };
        self.forced = match choice {
            None => None,
            Some(Value::String(word)) if word == "auto" => None,
            Some(Value::String(word)) if word == "none" => return Ok(()),
            Some(Value::String(word)) if word == "required" => Some(Forced::Any),
            Some(choice) => {
                let name = choice["function"]["name"].as_str().or(choice["name"].as_str());
                let name = name.filter(|_| choice["type"] == "function").ok_or_else(|| wrong(&choice))?;
                Some(Forced::Named(name.to_owned()))
            }
        };
        self.tools = tools;
        Ok(())
    }

    /// What to warn of where the model's template knows no tools.
    pub fn tools_warning(&self, served: &Served) -> Option<String> {
        let unknown = !self.tools.is_empty() && served.calls.is_none();
        unknown.then(|| match self.forced {
            None => "the model's chat template knows no tools: none will be called".to_owned(),
            Some(_) => "the model's chat template knows no tools: it calls one without having read of it".to_owned(),
        })
    }

    /// What to warn of where an answer is held to a form that is no call.
    pub fn untold_calls(&self) -> Option<String> {
        let untold = !self.tools.is_empty() && self.forced.is_none();
        untold.then(|| "the answer is held to a form: no tool will be called".to_owned())
    }

    /// Takes variables of the template.
    pub fn take_variables(&mut self, mut fields: Fields) -> Result<(), Problem> {
        for name in VARIABLES {
            if let Some(value) = fields.take(name) {
                self.variables.insert((*name).to_owned(), value);
            }
        }
        match fields.left().first() {
            Some(name) => Err(Problem::field(
                name,
                format!("`{name}` is no variable that a request may set; those are {}", VARIABLES.join(", ")),
            )),
            None => Ok(()),
        }
    }

    /// Renders and encodes it. The text of a last message of the assistant is gone on with.
    pub fn prompt(&self, served: &Served) -> Result<Prompt, Problem> {
        let Some(template) = &served.template else {
            let message = format!("{} has no chat template: use /v1/completions", served.name);
            return Err(Problem::invalid(message).with_code("no_chat_template"));
        };
        if self.messages.is_empty() {
            return Err(Problem::field("messages", "`messages` is empty: give one at least"));
        }
        let mut messages = self.messages.clone();
        let begun = messages.last_mut().and_then(begun_text);
        let goes_on = begun.is_some();
        if let Some(content) = begun {
            content.push_str(END);
        }
        let mut variables = self.variables.clone();
        if !self.tools.is_empty() {
            variables.insert("tools".into(), json!(self.tools));
        }
        let rendered = template.render_json(json!(messages), !goes_on, variables);
        let mut text = rendered.map_err(|error| Problem::field("messages", format!("{error:#}")))?;
        if goes_on {
            let end = text.find(END).ok_or_else(|| {
                Problem::field("messages", "the chat template leaves the last message out: it cannot be gone on with")
            })?;
            text.truncate(end);
        }
        // The template writes the special tokens itself.
        let tokens = served.tokenizer.encode(&text, false).map_err(|error| Problem::invalid(format!("{error:#}")))?;
        let thinks = text.trim_end().ends_with("<think>");
        Ok(Prompt { text, tokens, thinks, goes_on })
    }
}

/// The text of a message of the assistant that is no call.
fn begun_text(message: &mut Value) -> Option<&mut String> {
    let calls = message.get("tool_calls").is_some_and(|calls| !calls.is_null());
    if message["role"] != "assistant" || calls {
        return None;
    }
    match message.get_mut("content") {
        Some(Value::String(text)) if !text.is_empty() => Some(text),
        _ => None,
    }
}

/// Takes the messages of OpenAI's chat API.
pub fn messages(list: Vec<Value>) -> Result<Vec<Value>, Problem> {
    list.into_iter().enumerate().map(|(index, message)| one_message(message, &format!("messages[{index}]"))).collect()
}

fn one_message(message: Value, path: &str) -> Result<Value, Problem> {
    let mut fields = Fields::within(message, path)?;
    let missing = |name: &str| Problem::field(format!("{path}.{name}"), format!("`{path}.{name}` is missing"));
    let role = fields.text("role")?.ok_or_else(|| missing("role"))?;
    let role = match role.as_str() {
        "developer" => "system",
        "function" => "tool",
        "system" | "user" | "assistant" | "tool" => &role,
        other => {
            let name = fields.name("role");
            let message = format!("`{name}` is {other:?}; give system, developer, user, assistant or tool");
            return Err(Problem::field(name, message));
        }
    };
    let mut known = Map::new();
    known.insert("role".into(), json!(role));
    let calls = fields.list("tool_calls")?.filter(|calls| !calls.is_empty());
    let content = fields.take("content").map(|content| text_of(content, &fields.name("content"))).transpose()?;
    match content {
        Some(content) => known.insert("content".into(), json!(content)),
        // Templates that add a text to another want one.
        None if role == "assistant" => known.insert("content".into(), json!("")),
        None => return Err(missing("content")),
    };
    if let Some(calls) = calls {
        let calls = calls.into_iter().enumerate().map(|(i, call)| one_call(call, &format!("{path}.tool_calls[{i}]")));
        known.insert("tool_calls".into(), Value::Array(calls.collect::<Result<_, _>>()?));
    }
    for name in ["name", "tool_call_id", "reasoning_content", "reasoning"] {
        if let Some(text) = fields.text(name)? {
            let name = if name == "reasoning" { "reasoning_content" } else { name };
            known.entry(name).or_insert(json!(text));
        }
    }
    Ok(Value::Object(known))
}

/// A call, its arguments as an object: templates write them down themselves.
fn one_call(call: Value, path: &str) -> Result<Value, Problem> {
    let mut fields = Fields::within(call, path)?;
    let id = fields.text("id")?;
    let Some(mut function) = fields.object("function")? else {
        return Err(Problem::field(format!("{path}.function"), format!("`{path}.function` is missing")));
    };
    let Some(name) = function.text("name")? else {
        return Err(Problem::field(format!("{path}.function.name"), format!("`{path}.function.name` is missing")));
    };
    let arguments = match function.take("arguments") {
        Some(Value::String(text)) => match serde_json::from_str(&text) {
            Ok(Value::Object(object)) => Value::Object(object),
            _ => Value::String(text),
        },
        other => other.unwrap_or_else(|| json!({})),
    };
    Ok(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}))
}

/// The text of a content: a string, or a list of parts that are texts.
pub fn text_of(content: Value, path: &str) -> Result<String, Problem> {
    match content {
        Value::String(text) => Ok(text),
        Value::Array(parts) => {
            let mut whole = String::new();
            for (index, part) in parts.into_iter().enumerate() {
                let path = format!("{path}[{index}]");
                if let Value::String(text) = part {
                    whole.push_str(&text);
                    continue;
                }
                let mut fields = Fields::within(part, &path)?;
                let of_type = fields.text("type")?.unwrap_or_else(|| "text".into());
                let key = match of_type.as_str() {
                    "text" | "input_text" | "output_text" => "text",
                    "refusal" => "refusal",
                    other => {
                        let message = format!("`{path}.type` is {other:?}: this model reads text only");
                        return Err(Problem::field(format!("{path}.type"), message));
                    }
                };
                whole.push_str(&fields.text(key)?.unwrap_or_default());
            }
            Ok(whole)
        }
        other => Err(Problem::field(path, format!("`{path}` is {}; give a string or a list of parts", kind(&other)))),
    }
}

/// Takes the tools of OpenAI's chat API: functions with a name.
pub fn tools(list: Vec<Value>) -> Result<Vec<Value>, Problem> {
    for (index, tool) in list.iter().enumerate() {
        let path = format!("tools[{index}]");
        if tool["type"] != "function" {
            let message = format!("`{path}.type` is {}; only \"function\" is known", tool["type"]);
            return Err(Problem::field(format!("{path}.type"), message));
        }
        if tool["function"]["name"].as_str().is_none_or(str::is_empty) {
            return Err(Problem::field(format!("{path}.function.name"), format!("`{path}.function.name` is missing")));
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_texts() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}, "c"]);
        assert_eq!(text_of(parts, "content"), Ok("abc".into()));
        let image = json!([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]);
        let problem = text_of(image, "messages[0].content").unwrap_err();
        assert_eq!(problem.param.as_deref(), Some("messages[0].content[1].type"));
        assert!(problem.message.contains("reads text only"), "{}", problem.message);
        assert!(text_of(json!(5), "content").unwrap_err().message.contains("is a number"));
    }

    #[test]
    fn messages_become_what_templates_read() {
        let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}});
        let list = vec![
            json!({"role": "developer", "content": "Be kind."}),
            json!({"role": "assistant", "content": null, "tool_calls": [call]}),
            json!({"role": "tool", "tool_call_id": "c", "content": "7"}),
        ];
        let read = messages(list).unwrap();
        assert_eq!(read[0], json!({"role": "system", "content": "Be kind."}));
        assert_eq!(read[1]["tool_calls"][0]["function"]["arguments"], json!({"a": 1}));
        assert_eq!(read[2], json!({"role": "tool", "content": "7", "tool_call_id": "c"}));
        let said = |message| messages(vec![message]).unwrap_err().message;
        assert_eq!(said(json!({"content": "x"})), "`messages[0].role` is missing");
        assert_eq!(said(json!({"role": "user"})), "`messages[0].content` is missing");
        assert!(said(json!({"role": "king", "content": "x"})).contains("\"king\""));
        assert_eq!(said(json!("x")), "`messages[0]` is a string; give an object");
    }
}
