//! The input of a response as chat templates read it.

use serde_json::{Map, Value, json};

use crate::serve::conversation::{Conversation, messages, text_of, tools};
use crate::serve::fields::Fields;
use crate::serve::forms::Form;
use crate::serve::problem::Problem;
use crate::serve::served::Served;

/// What a response answers.
pub struct Input {
    pub conversation: Conversation,
    /// The tools, which are to be called, and the form of the answer, as the request has them.
    pub tools: Vec<Value>,
    pub tool_choice: Value,
    pub format: Value,
    pub form: Option<Form>,
    pub warnings: Vec<String>,
}

/// Takes the input of a request.
pub fn conversation(fields: &mut Fields, instructions: Option<&str>, served: &Served) -> Result<Input, Problem> {
    let mut warnings = Vec::new();
    let mut list: Vec<Value> = Vec::new();
    list.extend(instructions.map(|text| json!({"role": "system", "content": text})));
    match fields.take("input") {
        None => return Err(Problem::field("input", "`input` is missing: give a text, or a list of items")),
        Some(Value::String(text)) => list.push(json!({"role": "user", "content": text})),
        Some(Value::Array(items)) => {
            for (index, item) in items.into_iter().enumerate() {
                one_item(item, &format!("input[{index}]"), &mut list)?;
            }
        }
        Some(other) => return Err(fields.mistyped("input", &other, "a text, or a list of items")),
    }
    let mut conversation = Conversation { messages: messages(list)?, ..Conversation::default() };
    let mut given = fields.list("tools")?.unwrap_or_default();
    let mut functions = Vec::new();
    for tool in &mut given {
        if tool["type"] == "function" {
            // Templates print what is there.
            let given = |name: &str| tool.get(name).filter(|value| !value.is_null() && **value != false);
            let function: Map<String, Value> = ["name", "description", "parameters", "strict"]
                .into_iter()
                .filter_map(|name| Some((name.to_owned(), given(name)?.clone())))
                .collect();
            functions.push(json!({"type": "function", "function": function}));
            // Clients read answers by a schema that requires every key.
            if let Some(tool) = tool.as_object_mut() {
                for name in ["description", "parameters", "strict"] {
                    tool.entry(name).or_insert(Value::Null);
                }
            }
        } else {
            warnings.push(format!("a tool of type {} is left out: only functions are known", tool["type"]));
        }
    }
    let functions = tools(functions)?;
    let choice = fields.take("tool_choice");
    conversation.take_tools(functions, choice.clone())?;
    warnings.extend(conversation.tools_warning(served));
    let effort = fields.object("reasoning")?.map(|mut reasoning| reasoning.text("effort")).transpose()?;
    if let Some(effort) = effort.flatten() {
        conversation.variables.insert("reasoning_effort".into(), json!(effort));
    }
    let (mut form, mut format) = (None, json!({"type": "text"}));
    if let Some(text) = fields.take("text") {
        format = text.get("format").filter(|format| !format.is_null()).unwrap_or(&format).clone();
        form = Form::of_response(&mut Fields::within(text, "text")?, "format")?;
    }
    warnings.extend(form.as_ref().and_then(|_| conversation.untold_calls()));
    let tool_choice = match choice {
        Some(choice) if !conversation.tools.is_empty() => choice,
        _ if conversation.tools.is_empty() => json!("none"),
        _ => json!("auto"),
    };
    Ok(Input { conversation, tools: given, tool_choice, format, form, warnings })
}

fn one_item(item: Value, path: &str, to: &mut Vec<Value>) -> Result<(), Problem> {
    let mut fields = Fields::within(item, path)?;
    match fields.text("type")?.as_deref() {
        None | Some("message") => {
            to.push(json!({"role": fields.take("role"), "content": fields.take("content")}));
        }
        Some("function_call") => {
            let function = json!({"name": fields.take("name"), "arguments": fields.take("arguments")});
            let call = json!({"id": fields.take("call_id"), "type": "function", "function": function});
            // Calls of one turn stand in one message.
            match to.last_mut().filter(|message| message["role"] == "assistant") {
                Some(message) => match message["tool_calls"].as_array_mut() {
                    Some(calls) => calls.push(call),
                    None => message["tool_calls"] = json!([call]),
                },
                None => to.push(json!({"role": "assistant", "content": "", "tool_calls": [call]})),
            }
        }
        Some("function_call_output") => {
            let output = fields.take("output").unwrap_or_else(|| json!(""));
            let content = text_of(output, &format!("{path}.output"))?;
            to.push(json!({"role": "tool", "content": content, "tool_call_id": fields.take("call_id")}));
        }
        // What the model thought in earlier turns is not read again.
        Some("reasoning") => {}
        Some(other) => {
            let message = format!("`{path}.type` is {other:?}: give a message, a function_call or its output");
            return Err(Problem::field(format!("{path}.type"), message));
        }
    }
    Ok(())
}
