//! The items of a response, and the events that tell of them.

use serde_json::{Map, Value, json};

use crate::serve::answer::Part;
use crate::serve::app::App;
use crate::serve::ask::random;
use crate::serve::stream::{Gone, Writer};

/// The items of an answer: one is open at a time. Each event has a number.
pub struct Items<'w> {
    writer: Option<&'w Writer>,
    events: usize,
    output: Vec<Value>,
    open: Option<Open>,
}

struct Open {
    kind: Kind,
    id: String,
    item: Value,
    text: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Reasoning,
    Call(usize),
}

impl Kind {
    /// What events call its text.
    fn name(self) -> &'static str {
        match self {
            Kind::Text => "response.output_text",
            Kind::Reasoning => "response.reasoning_text",
            Kind::Call(_) => "response.function_call_arguments",
        }
    }

    /// Its text as the one part of its content, where it has one.
    fn part(self, text: &str) -> Option<Value> {
        match self {
            Kind::Text => Some(json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})),
            Kind::Reasoning => Some(json!({"type": "reasoning_text", "text": text})),
            Kind::Call(_) => None,
        }
    }
}

impl<'w> Items<'w> {
    pub fn new(writer: Option<&'w Writer>) -> Items<'w> {
        Items { writer, events: 0, output: Vec::new(), open: None }
    }

    /// The items that are whole.
    pub fn output(&self) -> Value {
        json!(self.output)
    }

    /// Tells of something.
    pub async fn event(&mut self, name: &str, fields: Value) -> Result<(), Gone> {
        let Some(writer) = self.writer else { return Ok(()) };
        let mut object =
            Map::from_iter([("type".to_owned(), json!(name)), ("sequence_number".to_owned(), json!(self.events))]);
        if let Value::Object(fields) = fields {
            object.extend(fields);
        }
        self.events += 1;
        writer.event(name, &Value::Object(object)).await
    }

    /// Takes a part of the answer.
    pub async fn take(&mut self, part: Part, app: &App) -> Result<(), Gone> {
        match part {
            Part::Text(text) => {
                let item = json!({"type": "message", "role": "assistant", "content": []});
                self.begin(Kind::Text, "msg", item).await?;
                self.add(Kind::Text, text).await
            }
            Part::Reasoning(text) => {
                self.begin(Kind::Reasoning, "rs", json!({"type": "reasoning", "summary": [], "content": []})).await?;
                self.add(Kind::Reasoning, text).await
            }
            Part::Call { index, name } => {
                let item = json!({"type": "function_call", "call_id": app.call_id(), "name": name, "arguments": ""});
                self.begin(Kind::Call(index), "fc", item).await
            }
            Part::Arguments { index, text } => self.add(Kind::Call(index), text).await,
        }
    }

    /// Ends the item that is open.
    pub async fn close(&mut self) -> Result<(), Gone> {
        let Some(Open { kind, id, mut item, text }) = self.open.take() else { return Ok(()) };
        let index = self.output.len();
        let mut fields = json!({"item_id": id, "output_index": index});
        match kind.part(&text) {
            Some(part) => {
                fields["content_index"] = json!(0);
                let mut of_part = fields.clone();
                of_part["part"] = part.clone();
                fields["text"] = json!(text);
                if kind == Kind::Text {
                    fields["logprobs"] = json!([]);
                }
                self.event(&format!("{}.done", kind.name()), fields).await?;
                self.event("response.content_part.done", of_part).await?;
                item["content"] = json!([part]);
            }
            None => {
                fields["name"] = item["name"].clone();
                fields["arguments"] = json!(text);
                item["arguments"] = json!(text);
                self.event(&format!("{}.done", kind.name()), fields).await?;
            }
        }
        item["status"] = json!("completed");
        self.output.push(item.clone());
        self.event("response.output_item.done", json!({"output_index": index, "item": item})).await
    }

    /// Opens an item, unless it is open.
    async fn begin(&mut self, kind: Kind, prefix: &str, mut item: Value) -> Result<(), Gone> {
        if self.open.as_ref().is_some_and(|open| open.kind == kind) {
            return Ok(());
        }
        self.close().await?;
        let id = format!("{prefix}_{:016x}", random());
        item["id"] = json!(id);
        item["status"] = json!("in_progress");
        let index = self.output.len();
        self.event("response.output_item.added", json!({"output_index": index, "item": item})).await?;
        if let Some(part) = kind.part("") {
            let fields = json!({"item_id": id, "output_index": index, "content_index": 0, "part": part});
            self.event("response.content_part.added", fields).await?;
        }
        self.open = Some(Open { kind, id, item, text: String::new() });
        Ok(())
    }

    async fn add(&mut self, kind: Kind, text: String) -> Result<(), Gone> {
        let Some(open) = self.open.as_mut().filter(|open| open.kind == kind) else { return Ok(()) };
        open.text.push_str(&text);
        let mut fields = json!({"item_id": open.id, "output_index": self.output.len()});
        if kind.part("").is_some() {
            fields["content_index"] = json!(0);
        }
        if kind == Kind::Text {
            fields["logprobs"] = json!([]);
        }
        fields["delta"] = json!(text);
        self.event(&format!("{}.delta", kind.name()), fields).await
    }
}
