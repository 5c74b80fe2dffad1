//! What an answer is held to: JSON, a schema, a regular expression, a grammar, or a call of a tool.

use serde_json::{Value, json};

use super::answer::{CallFormat, Shape};
use super::ask::Settings;
use super::conversation::{Conversation, Forced, Prompt};
use super::fields::Fields;
use super::problem::Problem;
use super::served::Served;
use crate::generate::tokenizer::Tokenizer;
use crate::grammar::{Source, json_rule};

/// What an answer is held to, and the field that asks for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Form {
    field: String,
    source: Source,
}

impl Form {
    /// Any JSON object.
    fn object(field: &str) -> Form {
        Form::schema(field, json!({"type": "object"}), false)
    }

    fn schema(field: &str, schema: Value, strict: bool) -> Form {
        Form { field: field.to_owned(), source: Source::Schema { schema, strict } }
    }

    /// Takes `response_format` of a chat, or `format` of a response's `text`.
    pub fn of_response(fields: &mut Fields, name: &str) -> Result<Option<Form>, Problem> {
        let path = fields.name(name);
        let Some(mut format) = fields.object(name)? else { return Ok(None) };
        let form = match format.text("type")?.as_deref() {
            None | Some("text") => return Ok(None),
            Some("json_object") => match format.take("schema") {
                Some(schema) => Form::schema(&format!("{path}.schema"), schema, false),
                None => Form::object(&path),
            },
            Some("json_schema") => {
                let mut inner = format.object("json_schema")?.unwrap_or(format);
                let strict = inner.flag("strict")?.unwrap_or(false);
                let field = inner.name("schema");
                let missing = || Problem::field(&field, format!("`{field}` is missing: give a JSON schema"));
                Form::schema(&field, inner.take("schema").ok_or_else(missing)?, strict)
            }
            Some(other) => {
                let message = format!("`{path}.type` is {other:?}; give text, json_object or json_schema");
                return Err(Problem::field(format!("{path}.type"), message));
            }
        };
        Ok(Some(form))
    }

    /// Takes the fields that OpenAI's API does not have.
    pub fn of_extras(fields: &mut Fields) -> Result<Option<Form>, Problem> {
        let mut forms = Vec::new();
        for (name, source) in [("grammar", Source::Lark as fn(String) -> Source), ("regex", Source::Regex)] {
            // Clients send an empty one for none.
            let text = fields.text(name)?.filter(|text| !text.is_empty());
            forms.extend(text.map(|text| Form { field: fields.name(name), source: source(text) }));
        }
        let schema = fields.take("json_schema");
        forms.extend(schema.map(|schema| Form::schema(&fields.name("json_schema"), schema, false)));
        Form::only(forms)
    }

    /// Takes Ollama's `format`: `json`, or a schema.
    pub fn of_ollama(fields: &mut Fields) -> Result<Option<Form>, Problem> {
        match fields.take("format") {
            None => Ok(None),
            Some(Value::String(word)) if word.is_empty() => Ok(None),
            Some(Value::String(word)) if word == "json" => Ok(Some(Form::object("format"))),
            Some(schema @ Value::Object(_)) => Ok(Some(Form::schema("format", schema, false))),
            Some(Value::String(word)) => {
                Err(Problem::field("format", format!("`format` is {word:?}; give \"json\" or a JSON schema")))
            }
            Some(other) => Err(fields.mistyped("format", &other, "\"json\" or a JSON schema")),
        }
    }

    /// The one that is asked for.
    pub fn only(forms: impl IntoIterator<Item = Form>) -> Result<Option<Form>, Problem> {
        let mut forms = forms.into_iter();
        match (forms.next(), forms.next()) {
            (Some(one), Some(other)) => {
                let message = format!("`{}` and `{}` are both given: give one", one.field, other.field);
                Err(Problem::field(other.field, message))
            }
            (form, _) => Ok(form),
        }
    }
}

impl Settings {
    /// Holds a text that goes on with a prompt.
    pub fn hold(&mut self, form: Form, served: &Served) -> Result<(), Problem> {
        let Form { field, source } = form;
        let refused = |error: anyhow::Error| Problem::field(&field, format!("`{field}` cannot be held to: {error:#}"));
        self.sampling.grammar = Some(served.grammars.compile(&source).map_err(refused)?);
        // These are all that comes after the text.
        self.stops.extend(served.tokenizer.eos());
        Ok(())
    }

    /// Holds the answer of a chat; where nothing is asked for, it ends as the template's answers do.
    pub fn hold_chat(
        &mut self,
        form: Option<Form>,
        conversation: &Conversation,
        prompt: &Prompt,
        served: &Served,
    ) -> Result<(), Problem> {
        let thought = Thought::of(prompt, served);
        let form = match (&conversation.forced, form) {
            (Some(forced), _) => calls(forced, conversation, thought, served)?,
            (None, Some(form)) => form.after(thought, served)?,
            (None, None) => {
                self.stop_texts.extend(served.chat_stops.iter().cloned());
                return Ok(());
            }
        };
        self.hold(form, served)
    }
}

impl Form {
    /// As the answer of a model that may think first. Regular expressions and grammars are of the whole answer.
    fn after(self, thought: Thought, served: &Served) -> Result<Form, Problem> {
        let Source::Schema { schema, strict } = &self.source else { return Ok(self) };
        if thought == Thought::None {
            return Ok(self);
        }
        let answer = json_rule(schema, *strict).map_err(|error| Problem::field(&self.field, format!("{error:#}")))?;
        let text = format!("{}answer: {answer}\n", thought.rules(&served.tokenizer));
        Ok(Form { source: Source::Lark(text), ..self })
    }
}

impl Served {
    /// What to look for in an answer of a chat.
    pub fn shape(&self, prompt: &Prompt, conversation: &Conversation) -> Shape {
        let tools = conversation.tool_names();
        let format = if conversation.forced.is_some() { Some(self.call_format()) } else { self.calls };
        let calls = format.filter(|_| !tools.is_empty()).map(|format| (format, tools));
        Shape { thinks: prompt.thinks, goes_on: prompt.goes_on, may_think: self.thinks, calls }
    }
}

/// Whether a model thinks before its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thought {
    /// It does not.
    None,
    /// It may.
    Open,
    /// The prompt has begun it.
    Begun,
}

impl Thought {
    fn of(prompt: &Prompt, served: &Served) -> Thought {
        match prompt {
            prompt if prompt.thinks => Thought::Begun,
            prompt if !served.thinks || prompt.goes_on || prompt.text.trim_end().ends_with("</think>") => Thought::None,
            _ => Thought::Open,
        }
    }

    /// The rules that come before one that is called `answer`.
    fn rules(self, tokenizer: &Tokenizer) -> String {
        let thought = match special(tokenizer, "</think>") {
            Some(end) => format!("thought: /(.|\\n)*/ {end} (/\\n{{1,2}}/)?\n"),
            None => "thought: inner (/\\n{1,2}/)?\ninner[lazy]: /(.|\\n)*<\\/think>/\n".to_owned(),
        };
        match self {
            Thought::None => "start: answer\n".to_owned(),
            Thought::Begun => format!("start: thought answer\n{thought}"),
            Thought::Open => {
                let begin = mark(tokenizer, "<think>");
                format!("start: answer | {begin} thought answer\n{thought}")
            }
        }
    }
}

/// A call of one of the tools, as the model's template writes it.
fn calls(forced: &Forced, conversation: &Conversation, thought: Thought, served: &Served) -> Result<Form, Problem> {
    let tokenizer = &served.tokenizer;
    let field = "tool_choice";
    let mut rules = thought.rules(tokenizer);
    let functions = conversation.tools.iter().map(|tool| &tool["function"]);
    let chosen: Vec<&Value> = functions
        .filter(|function| match forced {
            Forced::Any => true,
            Forced::Named(name) => function["name"] == name.as_str(),
        })
        .collect();
    if chosen.is_empty() {
        let message = match forced {
            Forced::Any => "`tool_choice` asks for a call, and `tools` has none to call".to_owned(),
            Forced::Named(name) => format!("`tool_choice` names {name:?}, which `tools` does not have"),
        };
        return Err(Problem::field(field, message));
    }
    let format = served.call_format();
    let named_apart = format == CallFormat::Marks && tokenizer.token_to_id("[ARGS]").is_some();
    let names: Vec<String> = (0..chosen.len()).map(|index| format!("call_{index}")).collect();
    let any = names.join(" | ");
    rules += &match format {
        CallFormat::Tags => {
            let (begin, end) = (mark(tokenizer, "<tool_call>"), mark(tokenizer, "</tool_call>"));
            format!("answer: {begin} \"\\n\" ({any}) \"\\n\" {end}\n")
        }
        CallFormat::Whole => format!("answer: {any}\n"),
        CallFormat::Marks if named_apart => format!("answer: {} ({any})\n", mark(tokenizer, "[TOOL_CALLS]")),
        CallFormat::Marks => format!("answer: {} \"[\" ({any}) \"]\"\n", mark(tokenizer, "[TOOL_CALLS]")),
    };
    let key = if format == CallFormat::Whole { "parameters" } else { "arguments" };
    for (index, function) in chosen.into_iter().enumerate() {
        let strict = function["strict"] == true;
        let arguments = json_rule(&arguments(&function["parameters"]), strict);
        let arguments = arguments.map_err(|error| Problem::field("tools", format!("{error:#}")))?;
        rules += &if named_apart {
            let name = literal(function["name"].as_str().unwrap_or_default());
            format!("call_{index}: {name} {} arguments_{index}\n", mark(tokenizer, "[ARGS]"))
        } else {
            let begin = literal(&format!("{{\"name\": {}, \"{key}\": ", function["name"]));
            format!("call_{index}: {begin} arguments_{index} \"}}\"\n")
        };
        rules += &format!("arguments_{index}: {arguments}\n");
    }
    Ok(Form { field: field.to_owned(), source: Source::Lark(rules) })
}

/// The schema of a function's arguments, which are an object.
fn arguments(parameters: &Value) -> Value {
    let mut schema = parameters.clone();
    match schema.as_object_mut() {
        Some(object) => {
            object.entry("type").or_insert_with(|| json!("object"));
            schema
        }
        None => json!({"type": "object"}),
    }
}

/// A text in Lark's syntax.
fn literal(text: &str) -> String {
    json!(text).to_string()
}

/// A mark in Lark's syntax: a token, where it is one that is no text.
fn mark(tokenizer: &Tokenizer, text: &str) -> String {
    special(tokenizer, text).unwrap_or_else(|| literal(text))
}

fn special(tokenizer: &Tokenizer, text: &str) -> Option<String> {
    let id = tokenizer.token_to_id(text).filter(|&id| tokenizer.is_special(id))?;
    Some(format!("<[{id}]>"))
}
