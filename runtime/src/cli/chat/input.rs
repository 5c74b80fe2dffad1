//! What a user types: lines that can be edited and are kept, or what a pipe holds.

use std::io::{BufRead, stdin};
use std::path::PathBuf;

use anyhow::{Context, Result};
use fusec::console::tell;
use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor};

use crate::cache;

/// Lines that are kept between chats.
const KEPT: usize = 1000;
/// Begins and ends a text of several lines.
const FENCE: &str = "\"\"\"";

/// Where turns come from.
pub struct Input {
    editor: Option<DefaultEditor>,
    history: Option<PathBuf>,
}

impl Input {
    /// `edits`: someone types, and sees it.
    pub fn new(edits: bool) -> Result<Input> {
        if !edits {
            return Ok(Input { editor: None, history: None });
        }
        let config = Config::builder().max_history_size(KEPT)?.auto_add_history(true).bracketed_paste(true).build();
        let mut editor = DefaultEditor::with_config(config).context("cannot read lines from the terminal")?;
        let history = cache::folder("chat").map(|folder| folder.join("history"));
        if let Some(history) = &history {
            // There is none before the first chat.
            let _ = editor.load_history(history);
        }
        Ok(Input { editor: Some(editor), history })
    }

    /// Whether lines are edited.
    pub fn edits(&self) -> bool {
        self.editor.is_some()
    }

    /// The next turn; none at the end. What stands between `"""` and `"""` is one turn, whatever lines it has.
    pub fn next(&mut self) -> Result<Option<String>> {
        let Some(first) = self.line("> ")? else { return Ok(None) };
        let Some(begun) = first.trim_start().strip_prefix(FENCE) else { return Ok(Some(first)) };
        let mut text = begun.to_owned();
        loop {
            if let Some(whole) = text.trim_end().strip_suffix(FENCE) {
                return Ok(Some(whole.trim_matches('\n').to_owned()));
            }
            let Some(line) = self.line(". ")? else { return Ok(Some(text)) };
            text.push('\n');
            text.push_str(&line);
        }
    }

    /// Keeps what was typed for the next chat.
    pub fn keep(&mut self) {
        let (Some(editor), Some(history)) = (&mut self.editor, &self.history) else { return };
        let folder = history.parent().map(std::fs::create_dir_all);
        if let Err(error) = editor.save_history(history) {
            let folder = folder.and_then(Result::err).map_or(String::new(), |error| format!(" ({error})"));
            tell(format!("what was typed is not kept: {}: {error}{folder}", history.display()));
        }
    }

    fn line(&mut self, prompt: &str) -> Result<Option<String>> {
        let Some(editor) = &mut self.editor else {
            let mut line = String::new();
            let read = stdin().lock().read_line(&mut line).context("cannot read from stdin")?;
            return Ok((read > 0).then(|| line.trim_end_matches(['\n', '\r']).to_owned()));
        };
        loop {
            match editor.readline(prompt) {
                Ok(line) => return Ok(Some(line)),
                Err(ReadlineError::Eof) => return Ok(None),
                Err(ReadlineError::Interrupted) => tell("Ctrl-D or /exit ends the chat"),
                Err(error) => return Err(error).context("cannot read from the terminal"),
            }
        }
    }
}
