//! A conversation: turns, and commands that change it.

use std::io::{Write, stdout};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use fusec::console::tell;
use fusec::output;
use serde_json::{Map, Value, json};

use crate::serve::{Local, Said};

pub const HELP: &str = "/help lists the commands";

const COMMANDS: &str = "\
/system TEXT    what the model is told first; with no TEXT: nothing
/regen          another answer to the last turn
/set NAME VALUE temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, seed,
                max_tokens, enable_thinking and other fields of the HTTP API; /set shows them, /set NAME unsets
/save FILE      writes the conversation, as JSON
/load FILE      reads one
/clear          begins anew
/exit           ends the chat
\"\"\"             begins and ends a turn of several lines";

/// A conversation with a model.
pub struct Talk<'a> {
    local: &'a Local,
    settings: Map<String, Value>,
    system: Option<String>,
    messages: Vec<Value>,
    /// Whether an answer is being given.
    answering: Arc<AtomicBool>,
    /// Whether thoughts are shown, dim.
    on_terminal: bool,
    /// Answers so far: each has a seed of its own.
    answers: u64,
    /// Nobody reads any more.
    gone: bool,
}

impl<'a> Talk<'a> {
    pub fn new(
        local: &'a Local,
        settings: Map<String, Value>,
        system: Option<String>,
        answering: Arc<AtomicBool>,
        on_terminal: bool,
    ) -> Talk<'a> {
        Talk { local, settings, system, messages: Vec::new(), answering, on_terminal, answers: 0, gone: false }
    }

    /// Takes what was typed; whether the chat goes on. What goes wrong with a turn or a command is told, and the chat goes on.
    pub fn take(&mut self, line: &str) -> bool {
        let line = line.trim();
        let done = match line.strip_prefix('/') {
            _ if line.is_empty() => Ok(()),
            None => {
                self.messages.push(json!({"role": "user", "content": line}));
                let answered = self.answer();
                if answered.is_err() {
                    // So that the next turn stands where this one stood.
                    self.messages.pop();
                }
                answered
            }
            Some("exit" | "quit" | "bye") => return false,
            Some(command) => self.command(command),
        };
        if let Err(error) = done {
            tell(format!("error: {error:#}"));
        }
        !self.gone
    }

    fn command(&mut self, line: &str) -> Result<()> {
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        match name {
            "help" | "?" => tell(COMMANDS),
            "clear" => self.messages.clear(),
            "system" => self.system = Some(rest.to_owned()).filter(|text| !text.is_empty()),
            "regen" => {
                let last = self.messages.iter().rposition(|message| message["role"] == "user");
                let last = last.context("there is no turn to answer again")?;
                self.messages.truncate(last + 1);
                return self.answer();
            }
            "set" => return self.set(rest),
            "save" => return self.save(rest),
            "load" => return self.load(rest),
            _ => tell(format!("/{name} is no command: {HELP}")),
        }
        Ok(())
    }

    fn set(&mut self, text: &str) -> Result<()> {
        let (name, value) = text.split_once([' ', '=']).unwrap_or((text, ""));
        let value = value.trim();
        if name.is_empty() {
            let each = self.settings.iter().map(|(name, value)| format!("{name} {value}"));
            tell(each.collect::<Vec<_>>().join("\n"));
            return Ok(());
        }
        let mut settings = self.settings.clone();
        match value {
            "" => drop(settings.shift_remove(name)),
            // What is no JSON is a text.
            _ => drop(settings.insert(name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| json!(value)))),
        }
        self.local.check(&settings)?;
        self.settings = settings;
        Ok(())
    }

    fn save(&self, file: &str) -> Result<()> {
        ensure!(!file.is_empty(), "/save needs a FILE");
        let object = json!({"messages": self.whole(), "settings": self.settings});
        output::write(Path::new(file), format!("{object:#}\n").as_bytes())?;
        tell(format!("saved {} messages to {file}", self.messages.len()));
        Ok(())
    }

    fn load(&mut self, file: &str) -> Result<()> {
        ensure!(!file.is_empty(), "/load needs a FILE");
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
        let object: Value = serde_json::from_str(&text).with_context(|| format!("{file} is not JSON"))?;
        let list = object["messages"].as_array().or_else(|| object.as_array());
        let mut messages = list.with_context(|| format!("{file} has no list `messages`"))?.clone();
        let system = messages.first().filter(|message| message["role"] == "system").cloned();
        if system.is_some() {
            messages.remove(0);
        }
        if let Some(settings) = object["settings"].as_object() {
            self.local.check(settings).with_context(|| format!("the settings of {file}"))?;
            self.settings = settings.clone();
        }
        self.system = system.and_then(|message| message["content"].as_str().map(str::to_owned));
        self.messages = messages;
        tell(format!("loaded {} messages from {file}", self.messages.len()));
        Ok(())
    }

    /// The conversation with what the model is told first.
    fn whole(&self) -> Vec<Value> {
        let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
        system.chain(self.messages.iter().cloned()).collect()
    }

    /// Answers the last turn, and keeps the answer.
    fn answer(&mut self) -> Result<()> {
        let mut settings = self.settings.clone();
        if let Some(seed) = settings.get("seed").and_then(Value::as_u64) {
            settings.insert("seed".into(), json!(seed.wrapping_add(self.answers) & i64::MAX as u64));
        }
        let (mut text, mut dim) = (String::new(), false);
        let mut broken = None;
        let mut print = |piece: &str| {
            if broken.is_none() {
                let mut stdout = stdout();
                broken = stdout.write_all(piece.as_bytes()).and_then(|()| stdout.flush()).err();
            }
        };
        let on_terminal = self.on_terminal;
        self.answering.store(true, Ordering::SeqCst);
        let outcome = self.local.answer(&self.whole(), &settings, |said| match said {
            Said::Thought(piece) if on_terminal => {
                if !std::mem::replace(&mut dim, true) {
                    print("\x1b[2m");
                }
                print(&piece);
            }
            Said::Thought(_) => {}
            Said::Text(piece) => {
                if std::mem::replace(&mut dim, false) {
                    print("\x1b[0m\n");
                }
                text.push_str(&piece);
                print(&piece);
            }
        });
        self.answering.store(false, Ordering::SeqCst);
        if dim {
            print("\x1b[0m");
        }
        if outcome.is_ok() || !text.is_empty() {
            print("\n");
        }
        self.gone = broken.is_some();
        let outcome = outcome?;
        self.answers += 1;
        self.messages.push(json!({"role": "assistant", "content": text}));
        if outcome.cut && !outcome.interrupted && on_terminal {
            tell("the answer is as long as it may be: /set max_tokens N, or --max-context N, sets another length");
        }
        Ok(())
    }
}
