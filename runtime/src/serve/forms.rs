//! What an answer is held to: JSON, a schema, a regular expression, a grammar, or calls of tools.

use serde_json::{Value, json};

use super::ask::Settings;
use super::calls::{self, Thought};
use super::conversation::{Conversation, Prompt};
use super::fields::Fields;
use super::problem::Problem;
use super::served::Served;
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

    /// Holds the answer of a chat; where nothing is asked for, it ends as the template's answers do, and its calls are as their tools say. What to
    /// warn of.
    pub fn hold_chat(
        &mut self,
        form: Option<Form>,
        conversation: &Conversation,
        prompt: &Prompt,
        served: &Served,
    ) -> Result<Option<String>, Problem> {
        let thought = Thought::of(prompt, served);
        let form = match (&conversation.forced, form) {
            (Some(forced), _) => {
                let source = calls::forced(forced, conversation, thought, served)?;
                Form { field: "tool_choice".to_owned(), source }
            }
            (None, Some(form)) => form.after(thought, served)?,
            (None, None) => {
                self.stop_texts.extend(served.chat_stops.iter().cloned());
                let (grammar, warning) = calls::free(conversation, thought, served)?;
                self.sampling.grammar = grammar;
                return Ok(warning);
            }
        };
        self.hold(form, served)?;
        Ok(None)
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
