//! Calls of tools, as grammars: in the form that the model's template writes, with arguments as the tools say.

mod rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::answer::{CallFormat, Calls, Shape};
use super::conversation::{Conversation, Forced, Prompt};
use super::problem::Problem;
use super::served::Served;
use crate::generate::tokenizer::Tokenizer;
use crate::grammar::{Aside, Grammar, Mark, Marked, Source};
use rules::{Tool, Writing, mark, special};

const THINK: &str = "<think>";
const END_OF_THOUGHT: &str = "</think>";

impl Served {
    fn writing(&self, format: CallFormat) -> Writing {
        let named = self.template.as_ref().is_some_and(|template| template.mentions("[ARGS]"));
        Writing::new(format, &self.tokenizer, named)
    }

    /// What to look for in an answer of a chat.
    pub fn shape(&self, prompt: &Prompt, conversation: &Conversation) -> Shape {
        let format = if conversation.forced.is_some() { Some(self.call_format()) } else { self.calls };
        let tools: BTreeMap<String, Value> =
            conversation.tools.iter().map(Tool::of).map(|tool| (tool.name, tool.parameters)).collect();
        let tools = Arc::new(tools);
        let calls = format.filter(|_| !tools.is_empty()).map(|format| Calls { format, tools });
        Shape { thinks: prompt.thinks, goes_on: prompt.goes_on, may_think: self.thinks, calls }
    }
}

/// An answer that is one call of one of the tools, as a grammar.
pub fn forced(
    forced: &Forced,
    conversation: &Conversation,
    thought: Thought,
    served: &Served,
) -> Result<Source, Problem> {
    let mut tools: Vec<Tool> = conversation.tools.iter().map(Tool::of).collect();
    if let Forced::Named(name) = forced {
        tools.retain(|tool| tool.name == *name);
    }
    if tools.is_empty() {
        let message = match forced {
            Forced::Any => "`tool_choice` asks for a call, and `tools` has none to call".to_owned(),
            Forced::Named(name) => format!("`tool_choice` names {name:?}, which `tools` does not have"),
        };
        return Err(Problem::field("tool_choice", message));
    }
    let writing = served.writing(served.call_format());
    let call = writing.call(&tools).map_err(|error| Problem::field("tools", format!("{error:#}")))?;
    let answer = writing.whole("call");
    Ok(Source::Lark(format!("{}answer: {answer}\n{call}", thought.rules(&served.tokenizer))))
}

/// What holds the calls of an answer that may have any, and what to warn of. Nothing: they are read as they come.
pub fn free(
    conversation: &Conversation,
    thought: Thought,
    served: &Served,
) -> Result<(Option<Grammar>, Option<String>), Problem> {
    let Some(format) = served.calls.filter(|_| !conversation.tools.is_empty()) else { return Ok((None, None)) };
    let mut tools: Vec<Tool> = conversation.tools.iter().map(Tool::of).collect();
    let compile = |tools: &[Tool]| {
        let marked = marked(format, &served.writing(format), tools, thought, conversation.one_call)?;
        served.grammars.compile(&Source::Marked(marked))
    };
    let error = match compile(&tools) {
        Ok(grammar) => return Ok((Some(grammar), None)),
        Err(error) => error,
    };
    // One schema that is not understood does not take the others with it.
    let mut loose = Vec::new();
    for (index, tool) in tools.iter_mut().enumerate() {
        let Err(error) = compile(std::slice::from_ref(tool)) else { continue };
        if tool.strict {
            let field = format!("tools[{index}].function.parameters");
            return Err(Problem::field(&field, format!("`{field}` cannot be held to: {error:#}")));
        }
        tool.parameters = json!({"type": "object"});
        loose.push(tool.name.clone());
    }
    match compile(&tools) {
        Ok(grammar) => {
            let warning = format!(
                "the schemas of these tools are not understood, their arguments are any object: {}",
                loose.join(", ")
            );
            Ok((Some(grammar), Some(warning)))
        }
        Err(_) => Ok((None, Some(format!("calls are not held to the schemas of their tools: {error:#}")))),
    }
}

/// The marks of calls, and what follows them.
fn marked(
    format: CallFormat,
    writing: &Writing,
    tools: &[Tool],
    thought: Thought,
    once: bool,
) -> anyhow::Result<Marked> {
    let mark = |text: &str| Mark { text: text.to_owned(), first: false, part: false };
    let marks = match format {
        CallFormat::Tags | CallFormat::Marks => vec![mark(format.marks()[0])],
        CallFormat::Functions => {
            let [tag, function] = [mark(format.marks()[0]), mark(format.marks()[1])];
            vec![tag, Mark { part: true, ..function }]
        }
        CallFormat::Whole => {
            let bare = tools.iter().flat_map(|tool| rules::begins(&tool.name));
            let bare = bare.map(|text| Mark { text, first: true, part: true });
            // A name beyond ASCII is read where it is written, and not waited for.
            bare.filter(|mark| mark.text.is_ascii()).chain([mark(format.marks()[0])]).collect()
        }
    };
    let aside = |begun| Aside { begin: THINK, end: END_OF_THOUGHT, begun };
    Ok(Marked {
        marks,
        then: format!("start: {}\n{}", writing.after_mark("call", once), writing.call(tools)?),
        aside: match thought {
            Thought::None => None,
            Thought::Open => Some(aside(false)),
            Thought::Begun => Some(aside(true)),
        },
        once,
    })
}

/// Whether a model thinks before its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thought {
    /// It does not.
    None,
    /// It may.
    Open,
    /// The prompt has begun it.
    Begun,
}

impl Thought {
    pub fn of(prompt: &Prompt, served: &Served) -> Thought {
        match prompt {
            prompt if prompt.thinks => Thought::Begun,
            prompt if !served.thinks || prompt.goes_on || prompt.text.trim_end().ends_with(END_OF_THOUGHT) => {
                Thought::None
            }
            _ => Thought::Open,
        }
    }

    /// The rules that come before one that is called `answer`.
    pub fn rules(self, tokenizer: &Tokenizer) -> String {
        let thought = match special(tokenizer, END_OF_THOUGHT) {
            Some(end) => format!("thought: /(.|\\n)*/ {end} (/\\n{{1,2}}/)?\n"),
            None => "thought: inner (/\\n{1,2}/)?\ninner[lazy]: /(.|\\n)*<\\/think>/\n".to_owned(),
        };
        match self {
            Thought::None => "start: answer\n".to_owned(),
            Thought::Begun => format!("start: thought answer\n{thought}"),
            Thought::Open => {
                let begin = mark(tokenizer, THINK);
                format!("start: answer | {begin} thought answer\n{thought}")
            }
        }
    }
}
