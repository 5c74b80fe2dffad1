//! Anthropic's messages, blocks and tools as chat templates read them.

use serde_json::{Value, json};

use crate::serve::conversation::{Conversation, Forced, text_of};
use crate::serve::fields::{Fields, kind};
use crate::serve::problem::Problem;
use crate::serve::served::Served;

/// Takes the conversation of a request, and what to warn of.
pub fn conversation(fields: &mut Fields, served: &Served) -> Result<(Conversation, Vec<String>), Problem> {
    let mut conversation = Conversation::default();
    if let Some(system) = fields.take("system") {
        conversation.say("system", text_of(system, "system")?);
    }
    let Some(list) = fields.list("messages")? else {
        return Err(Problem::field("messages", "`messages` is missing: give a list of messages"));
    };
    for (index, message) in list.into_iter().enumerate() {
        one_message(message, &format!("messages[{index}]"), &mut conversation)?;
    }
    let mut warnings = Vec::new();
    let tools = fields.list("tools")?.unwrap_or_default();
    for (index, tool) in tools.into_iter().enumerate() {
        let mut fields = Fields::within(tool, &format!("tools[{index}]"))?;
        match fields.text("type")?.filter(|kind| kind != "custom") {
            // The vendor's own, which run on its servers or are known by name.
            Some(kind) => warnings.push(format!("a tool of type {kind:?} is left out: only custom ones are known")),
            None => conversation.tools.push(one_tool(fields)?),
        }
    }
    if let Some(mut choice) = fields.object("tool_choice")? {
        conversation.one_call = choice.flag("disable_parallel_tool_use")? == Some(true);
        match choice.text("type")?.as_deref() {
            Some("auto") => {}
            Some("none") => conversation.tools.clear(),
            Some("any") => conversation.forced = Some(Forced::Any),
            Some("tool") => {
                let missing = || Problem::field("tool_choice.name", "`tool_choice.name` is missing: name a tool");
                conversation.forced = Some(Forced::Named(choice.text("name")?.ok_or_else(missing)?));
            }
            other => {
                let message = format!("`tool_choice.type` is {}; give auto, none, any or tool", json!(other));
                return Err(Problem::field("tool_choice.type", message));
            }
        }
    }
    if let Some(mut thinking) = fields.object("thinking")? {
        let enabled = thinking.text("type")?.is_some_and(|word| word != "disabled");
        conversation.variables.insert("enable_thinking".into(), json!(enabled));
        thinking.ignore(&["budget_tokens"]);
    }
    warnings.extend(conversation.tools_warning(served));
    Ok((conversation, warnings))
}

fn one_message(message: Value, path: &str, to: &mut Conversation) -> Result<(), Problem> {
    let mut fields = Fields::within(message, path)?;
    let role = fields.text("role")?.unwrap_or_default();
    if !["user", "assistant", "system"].contains(&role.as_str()) {
        return Err(Problem::field(fields.name("role"), format!("`{path}.role` is {role:?}; give user or assistant")));
    }
    let blocks = match fields.take("content") {
        Some(Value::Array(blocks)) => blocks,
        Some(Value::String(text)) => vec![json!({"type": "text", "text": text})],
        other => {
            let found = other.as_ref().map_or("missing", kind);
            return Err(Problem::field(
                fields.name("content"),
                format!("`{path}.content` is {found}; give a string or a list of blocks"),
            ));
        }
    };
    let (mut text, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
    for (index, block) in blocks.into_iter().enumerate() {
        let path = format!("{path}.content[{index}]");
        let mut block = Fields::within(block, &path)?;
        match block.text("type")?.as_deref() {
            Some("text") => text += &block.text("text")?.unwrap_or_default(),
            Some("thinking") => reasoning += &block.text("thinking")?.unwrap_or_default(),
            Some("redacted_thinking") => {}
            Some("tool_use") => {
                let (id, name) = (block.text("id")?, block.text("name")?);
                let arguments = block.take("input").unwrap_or_else(|| json!({}));
                calls.push(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}));
            }
            // Results are messages of their own, before what the user says beside them.
            Some("tool_result") => {
                let content = block.take("content").map(|content| text_of(content, &format!("{path}.content")));
                let content = content.transpose()?.unwrap_or_default();
                to.messages
                    .push(json!({"role": "tool", "content": content, "tool_call_id": block.text("tool_use_id")?}));
                continue;
            }
            other => {
                let found = other.unwrap_or("missing");
                let message = format!("`{path}.type` is {found}: this model reads text, and results of tools");
                return Err(Problem::field(format!("{path}.type"), message));
            }
        }
    }
    if text.is_empty() && reasoning.is_empty() && calls.is_empty() {
        return Ok(());
    }
    let mut message = json!({"role": role, "content": text});
    if !reasoning.is_empty() {
        message["reasoning_content"] = json!(reasoning);
    }
    if !calls.is_empty() {
        message["tool_calls"] = json!(calls);
    }
    to.messages.push(message);
    Ok(())
}

fn one_tool(mut fields: Fields) -> Result<Value, Problem> {
    let Some(name) = fields.text("name")? else {
        let path = fields.name("name");
        return Err(Problem::field(path.clone(), format!("`{path}` is missing")));
    };
    let description = fields.text("description")?.unwrap_or_default();
    let parameters = fields.take("input_schema").unwrap_or_else(|| json!({"type": "object", "properties": {}}));
    let mut function = json!({"name": name, "description": description, "parameters": parameters});
    if fields.flag("strict")? == Some(true) {
        function["strict"] = json!(true);
    }
    Ok(json!({"type": "function", "function": function}))
}
