//! Chat templates: messages to the text that the model was trained on, by the Jinja template that comes with it.
//!
//! The environment is the one that transformers makes: blocks trimmed and left-stripped, Python's methods and spelling of constants, `raise_exception`,
//! `strftime_now`, a `tojson` that writes as Python's json does, and `{% generation %}` blocks that change nothing.

mod python;
mod sources;
mod syntax;

use self::sources::Sources;
use super::tokenizer::files::{read_tokenizer_config, template_names};
use crate::weights::{Checkpoint, gguf};
use anyhow::{Context, Result, anyhow};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::io::{self, Write};
use std::path::Path;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// "system", "user" or "assistant", or whatever else the template knows.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A message of a role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// A model's chat template, ready to render.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// `bos_token`, `eos_token` and the like, as the template may write them.
    specials: Map<String, Value>,
    /// The template in its place where there are tools.
    tool_use: Option<String>,
    limits: Limits,
}

const NAME: &str = "chat_template";
const TOOL_USE: &str = "tool_use";

/// What one conversation may take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Steps of the template.
    steps: u64,
    /// Calls within calls: each takes of the stack of the thread that renders.
    depth: usize,
    /// Bytes of the text.
    bytes: usize,
}

const LIMITS: Limits = Limits { steps: 20_000_000, depth: 100, bytes: 32 << 20 };

impl ChatTemplate {
    /// The template of a Hugging Face directory (chat_template.jinja, else `chat_template` of tokenizer_config.json, else chat_template.json) or of a
    /// GGUF file; `None` where the model has none. Of several, the one called "default", and "tool_use" where there are tools.
    pub fn open(path: &Path) -> Result<Option<ChatTemplate>> {
        if path.is_dir() {
            ChatTemplate::from_directory(path)
        } else {
            ChatTemplate::from_gguf(&gguf::Metadata::open(path)?)
        }
    }

    /// The template that lies with a checkpoint; `None` where it has none.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Option<ChatTemplate>> {
        match (checkpoint.gguf_metadata(), checkpoint.path()) {
            (Some(metadata), _) => ChatTemplate::from_gguf(metadata),
            (None, Some(directory)) => ChatTemplate::from_directory(directory),
            (None, None) => Ok(None),
        }
    }

    /// The template of a GGUF file's metadata; `None` where it has none.
    pub fn from_gguf(metadata: &gguf::Metadata) -> Result<Option<ChatTemplate>> {
        let Some(source) = metadata.text("tokenizer.chat_template") else {
            return Ok(None);
        };
        let mut specials = Map::new();
        let names = [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")];
        for (key, id) in names {
            let id =
                metadata.unsigned(&format!("tokenizer.ggml.{id}_token_id")).and_then(|id| usize::try_from(id).ok());
            let tokens = metadata.list("tokenizer.ggml.tokens").unwrap_or_default();
            if let Some(gguf::Value::Text(token)) = id.and_then(|id| tokens.get(id)) {
                specials.insert(key.to_owned(), json!(token));
            }
        }
        let tool_use = metadata.text("tokenizer.chat_template.tool_use").map(str::to_owned);
        ChatTemplate::limited(source, tool_use, specials, LIMITS).map(Some)
    }

    /// A template from its source. `specials` are variables that it may use, `bos_token` and `eos_token` above all.
    pub fn new(source: &str, specials: Map<String, Value>) -> Result<ChatTemplate> {
        ChatTemplate::limited(source, None, specials, LIMITS)
    }

    fn limited(
        source: &str,
        tool_use: Option<String>,
        specials: Map<String, Value>,
        limits: Limits,
    ) -> Result<ChatTemplate> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the usual delimiters are valid"));
        environment.set_fuel(Some(limits.steps));
        environment.set_recursion_limit(limits.depth);
        python::imitate(&mut environment);
        for (name, source) in [(NAME, Some(source)), (TOOL_USE, tool_use.as_deref())] {
            let Some(source) = source else { continue };
            environment
                .add_template_owned(name, syntax::rewritten(source))
                .map_err(|error| anyhow!("the chat template is not one that can be read: {}", explain(&error)))?;
        }
        Ok(ChatTemplate { environment, source: source.to_owned(), specials, tool_use, limits })
    }

    /// The text of a conversation. `add_generation_prompt` ends it with the start of the assistant's turn.
    ///
    /// Fails with the template's own words where it refuses the messages (roles that do not alternate, say).
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_json(json!(messages), add_generation_prompt, Map::new())
    }

    /// As [`ChatTemplate::render`], from messages as JSON (with tool calls, say) and further variables such as `tools` or `enable_thinking`.
    pub fn render_json(
        &self,
        messages: Value,
        add_generation_prompt: bool,
        variables: Map<String, Value>,
    ) -> Result<String> {
        let mut context = self.specials.clone();
        context.insert("tools".to_owned(), Value::Null);
        context.insert("documents".to_owned(), Value::Null);
        context.extend(variables);
        context.insert("messages".to_owned(), messages);
        context.insert("add_generation_prompt".to_owned(), json!(add_generation_prompt));
        let name = if self.tool_use.is_some() && !context["tools"].is_null() { TOOL_USE } else { NAME };
        let template = self.environment.get_template(name).expect("the constructor adds the templates");
        let mut text = Bounded { bytes: Vec::new(), most: self.limits.bytes };
        template.render_captured_to(Serde(&context), &mut text).map_err(|error| self.failed(&error))?;
        String::from_utf8(text.bytes).map_err(|error| anyhow!("the chat template wrote what is no text: {error}"))
    }

    fn failed(&self, error: &minijinja::Error) -> anyhow::Error {
        let Limits { steps, depth, bytes } = self.limits;
        let recursion = error.detail().is_some_and(|detail| detail.contains("recursion limit"));
        let most = match error.kind() {
            ErrorKind::OutOfFuel => format!("{steps} steps"),
            ErrorKind::WriteFailure => format!("{} MiB of text", bytes >> 20),
            _ if recursion => format!("{depth} calls within calls"),
            _ => return anyhow!("the chat template failed: {}", explain(error)),
        };
        let line = error.line().map_or(String::new(), |line| format!(" (line {line} of the template)"));
        anyhow!(
            "the chat template takes more than {most} for this conversation{line}: shorten it, or mend the template"
        )
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template's source has this text: which variables and marks a model knows shows in nothing else.
    pub fn mentions(&self, text: &str) -> bool {
        self.source().contains(text) || self.tool_use.as_ref().is_some_and(|source| source.contains(text))
    }

    fn from_directory(directory: &Path) -> Result<Option<ChatTemplate>> {
        let config = read_tokenizer_config(directory)?;
        let Some(Sources { default, tool_use }) = Sources::of_directory(directory, &config)? else { return Ok(None) };
        let template = ChatTemplate::limited(&default, tool_use, template_names(&config), LIMITS);
        template.with_context(|| directory.display().to_string()).map(Some)
    }
}

/// Text up to a length.
struct Bounded {
    bytes: Vec<u8>,
    most: usize,
}

impl Write for Bounded {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + piece.len() > self.most {
            return Err(io::Error::other("the text is too long"));
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A template error as one line: what, and the line of the template.
fn explain(error: &minijinja::Error) -> String {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    error.line().map_or(detail.clone(), |line| format!("{detail} (line {line} of the template)"))
}

#[cfg(test)]
mod tests;
