//! Errors about a description: a stable code, the place in the file, what is wrong and what to do.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::shipped::shipped;
use crate::text::closest;

/// A byte range of a description's text.
pub type Span = Range<usize>;

/// At most this many errors are shown; the rest are counted.
const SHOWN: usize = 20;

/// The errors found in one description; never empty where it is returned as an error.
#[derive(Clone, Debug)]
pub struct Diagnostics {
    source: Arc<Source>,
    list: Vec<Diagnostic>,
}

/// A description's file name, as messages show it, and its text.
#[derive(Debug)]
pub struct Source {
    /// The file's name.
    pub name: String,
    /// The whole text; spans index its bytes.
    pub text: String,
}

/// One error.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnostic {
    /// The stable code.
    pub code: Code,
    /// What is wrong, in one line.
    pub message: String,
    /// Where: the first label is the place itself, the others explain it. Empty where no line of the description is at fault.
    pub labels: Vec<(Span, String)>,
    /// Facts that explain the error.
    pub notes: Vec<String>,
    /// What to do.
    pub helps: Vec<Help>,
}

/// Advice, by whom it is for.
#[derive(Clone, Debug, PartialEq)]
pub enum Help {
    /// Whoever runs the model.
    Everyone(String),
    /// Who writes the description.
    Author(String),
}

impl Diagnostic {
    /// An error with no place yet.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), labels: Vec::new(), notes: Vec::new(), helps: Vec::new() }
    }

    /// Adds a place; the first one added is the primary one. An empty label shows a bare caret.
    pub fn at(mut self, span: Span, label: impl Into<String>) -> Self {
        self.labels.push((span, label.into()));
        self
    }

    /// Adds an explaining fact.
    pub fn note(mut self, text: impl Into<String>) -> Self {
        self.notes.push(text.into());
        self
    }

    /// Adds advice.
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.helps.push(Help::Everyone(text.into()));
        self
    }

    /// Adds advice for someone who writes the description; someone who runs a model by a shipped one reads what else helps.
    pub fn hint(mut self, text: impl Into<String>) -> Self {
        self.helps.push(Help::Author(text.into()));
        self
    }

    /// Adds "did you mean" where one of `known` is close to `given`.
    pub fn suggest<'a>(self, given: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        match closest(given, known) {
            Some(name) => self.hint(format!("did you mean `{name}`?")),
            None => self,
        }
    }
}

impl Diagnostics {
    /// An empty list for one file.
    pub fn new(source: Arc<Source>) -> Self {
        Self { source, list: Vec::new() }
    }

    /// Adds an error, unless it is there already: a layer's line is read once for each layer, and a key that is missing is missing everywhere.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        let place = |diagnostic: &Diagnostic| diagnostic.labels.first().map(|(span, _)| span.clone());
        let same = |other: &Diagnostic| {
            let somewhere = diagnostic.code == Code::MissingConfigKey || diagnostic.labels.is_empty();
            let same = if somewhere { other.message == diagnostic.message } else { place(other) == place(&diagnostic) };
            same && other.code == diagnostic.code
        };
        if !self.list.iter().any(same) {
            self.list.push(diagnostic);
        }
    }

    /// Puts the errors in the order of the file; those without a place come first.
    pub fn sort(&mut self) {
        self.list.sort_by_key(|diagnostic| diagnostic.labels.first().map(|(span, _)| span.start));
    }

    /// The errors, in order.
    pub fn list(&self) -> &[Diagnostic] {
        &self.list
    }

    /// True where nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// `value` where nothing is wrong, else the errors.
    pub fn into_result<T>(self, value: T) -> Result<T, Diagnostics> {
        if self.list.is_empty() { Ok(value) } else { Err(self) }
    }

    /// The errors as text: one block each, with the line at fault. `colour` is for a terminal.
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut blocks: Vec<String> =
            self.list.iter().take(SHOWN).map(|diagnostic| renderer.render(&[self.group(diagnostic)])).collect();
        if self.list.len() > SHOWN {
            blocks.push(format!("and {} more errors", self.list.len() - SHOWN));
        }
        blocks.join("\n\n")
    }

    fn group<'a>(&'a self, diagnostic: &'a Diagnostic) -> Group<'a> {
        let title = Level::ERROR.primary_title(diagnostic.message.as_str()).id(diagnostic.code.id());
        let mut group = Group::with_title(title);
        if !diagnostic.labels.is_empty() {
            let annotations = diagnostic.labels.iter().enumerate().map(|(index, (span, label))| {
                let kind = if index == 0 { AnnotationKind::Primary } else { AnnotationKind::Context };
                let annotation = kind.span(span.clone());
                if label.is_empty() { annotation } else { annotation.label(label.as_str()) }
            });
            group = group.element(
                Snippet::source(self.source.text.as_str()).path(self.source.name.as_str()).annotations(annotations),
            );
        }
        for note in &diagnostic.notes {
            group = group.element(Level::NOTE.message(note.as_str()));
        }
        let shipped = self.source.is_shipped();
        let told = diagnostic.helps.iter().filter_map(|help| match help {
            Help::Everyone(text) => Some(text.as_str()),
            Help::Author(text) => (!shipped).then_some(text),
        });
        let everyone =
            !diagnostic.helps.is_empty() && diagnostic.helps.iter().all(|help| matches!(help, Help::Everyone(_)));
        let more = (shipped && !everyone).then(|| for_a_reader(diagnostic.code)).flatten();
        for help in told.chain(more) {
            group = group.element(Level::HELP.message(help));
        }
        group
    }
}

impl Source {
    /// Whether it is a description as this program ships it.
    fn is_shipped(&self) -> bool {
        shipped().iter().any(|(_, text)| *text == self.text)
    }
}

/// What someone can do who runs a model by a description that is shipped: most errors come of what the checkpoint says or holds.
fn for_a_reader(code: Code) -> Option<&'static str> {
    match code {
        Code::ValueDiffers => None,
        Code::UnsupportedFeature => Some(
            "use a checkpoint of the family that does without, or a later version; a description of your own may honour it: docs/add-a-model.md",
        ),
        Code::MissingTensor | Code::TensorShape | Code::UnusedTensor => Some(
            "get config.json and all weights from one place again; if they are as published, report it: the description is shipped",
        ),
        _ => Some(
            "use the config.json that the checkpoint was published with; if this is that one, report it: the description is shipped",
        ),
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.render(false))
    }
}

impl std::error::Error for Diagnostics {}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $id:literal;)*) => {
        /// What kind of error it is. The codes are stable: a code is never given another meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code { $($(#[doc = $doc])+ $name,)* }

        impl Code {
            /// Every code, in order.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// The code as it is shown, such as `F0104`.
            pub fn id(self) -> &'static str {
                match self { $(Code::$name => $id,)* }
            }

            /// What it means, in one line.
            pub fn title(self) -> &'static str {
                match self { $(Code::$name => concat!($($doc),+).trim_ascii(),)* }
            }
        }
    };
}

codes! {
    /// The file is not valid TOML.
    TomlSyntax = "F0001";
    /// A section or an operation has a key that the language does not know.
    UnknownKey = "F0101";
    /// A section or an operation lacks a key that it needs.
    MissingKey = "F0102";
    /// A key has a value of another type than it needs.
    WrongType = "F0103";
    /// The operation does not exist.
    UnknownOp = "F0104";
    /// A name is not of the form `[A-Za-z_][A-Za-z0-9_]*`, or a weight name has characters that no checkpoint has.
    BadName = "F0105";
    /// Two keys of one operation exclude each other, or one of two is needed.
    Conflict = "F0106";
    /// The file is written in a schema that this version does not read.
    UnknownSchema = "F0108";
    /// An operation reads a value that nothing before it defines.
    UndefinedValue = "F0201";
    /// A value is computed and never read.
    UnusedValue = "F0202";
    /// A value is assigned again before anything reads it.
    ShadowedValue = "F0203";
    /// An expression cannot be read.
    ExpressionSyntax = "F0301";
    /// An expression cannot be evaluated: types that do not fit, an index out of range, an inexact division.
    ExpressionValue = "F0302";
    /// Derived keys need each other in a circle.
    CyclicDerive = "F0303";
    /// A derived key is never read.
    UnusedDerive = "F0304";
    /// The configuration lacks a key that an expression needs.
    MissingConfigKey = "F0401";
    /// config.json is for an architecture that the description does not serve.
    ArchitectureMismatch = "F0402";
    /// The configuration asks for a feature that the description or the compiler does not honour.
    UnsupportedFeature = "F0403";
    /// config.json is not what it should be.
    BadConfig = "F0404";
    /// A key of the preset is never read.
    UnusedPreset = "F0405";
    /// config.json has a key that neither its description nor the list of harmless keys knows.
    UnknownConfigKey = "F0406";
    /// Shapes do not fit together.
    ShapeMismatch = "F0501";
    /// The checkpoint lacks a weight that the description names.
    MissingTensor = "F0601";
    /// A tensor of the checkpoint has another shape than the description gives it.
    TensorShape = "F0602";
    /// Nothing in the description reads a tensor of the checkpoint.
    UnusedTensor = "F0603";
    /// A value differs from the one that another implementation computed.
    ValueDiffers = "F0701";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct() {
        let ids: std::collections::BTreeSet<_> = Code::ALL.iter().map(|code| code.id()).collect();
        assert_eq!(ids.len(), Code::ALL.len());
    }
}
