//! A description and a configuration to a flat list of operations.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::config::Config;
use super::diagnostics::{Code, Diagnostic, Diagnostics, Source, Span};
use super::expr::{Environment, Expr, Failure};
use super::features;
use super::rope::{Refusal, RopeScaling};
use super::signature::{Attribute, Default, INPUTS, Kind, OpName};
use super::value::Value;
use super::{Description, Given, Line, Place};

/// A model's layers beyond this are a mistake in a configuration.
const MAX_LAYERS: i64 = 4096;

/// A description with nothing left to evaluate: the operations of one model, in order, layers unrolled.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The description's name.
    pub name: String,
    /// What the configuration says about the whole model.
    pub facts: Facts,
    /// The operations in order. Names of values may be assigned again and again.
    pub calls: Vec<Call>,
    /// Keys of config.json that nothing read and that are not known to matter, sorted.
    pub unread: Vec<String>,
    /// The description's file, for errors about calls.
    pub source: Arc<Source>,
}

/// What the configuration says about the whole model.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Layers.
    pub num_layers: usize,
    /// The longest context, in tokens, where it is given.
    pub max_position_embeddings: Option<usize>,
    /// The checkpoint's element type as the configuration names it, such as `bfloat16`.
    pub dtype: Option<String>,
    /// The architecture in the configuration, where it is given.
    pub architecture: Option<String>,
    /// Whether the head shares the embedding's weight, told from the weights' names.
    pub tied_head: bool,
    /// The token that begins a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

/// One operation of one layer.
#[derive(Clone, Debug)]
pub struct Call {
    /// What it computes; never [`OpName::Activation`], which becomes the activation it names.
    pub op: OpName,
    /// The values it defines.
    pub outs: Vec<String>,
    /// The values it reads, by role.
    pub values: BTreeMap<&'static str, String>,
    /// The checkpoint's tensors it reads, by role, under their whole names.
    pub weights: BTreeMap<&'static str, String>,
    /// Its numbers and flags. Defaults are filled in; what is absent is not there.
    pub attributes: BTreeMap<&'static str, AttrValue>,
    /// The layer; `None` outside layers.
    pub layer: Option<usize>,
    /// The line in the description.
    pub span: Span,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum AttrValue {
    /// At least 1.
    Count(usize),
    /// A finite number.
    Float(f64),
    /// A flag.
    Bool(bool),
    /// An activation function.
    Activation(Activation),
    /// A scaling of RoPE.
    RopeScaling(RopeScaling),
}

/// An activation function, by torch's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)`, exact.
    Gelu,
    /// The tanh approximation of gelu.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²`.
    Relu2,
}

/// The names that Hugging Face configurations use for activation functions.
const ACTIVATIONS: &[(&str, Activation)] = &[
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_python_tanh", Activation::GeluTanh),
    ("relu", Activation::Relu),
    ("relu2", Activation::Relu2),
];

impl Call {
    /// The attribute of that name, where it is a count.
    pub fn count(&self, name: &str) -> Option<usize> {
        match self.attributes.get(name)? {
            AttrValue::Count(count) => Some(*count),
            _ => None,
        }
    }

    /// The attribute of that name, where it is a number.
    pub fn float(&self, name: &str) -> Option<f64> {
        match self.attributes.get(name)? {
            AttrValue::Float(number) => Some(*number),
            _ => None,
        }
    }

    /// Whether the flag of that name is set.
    pub fn flag(&self, name: &str) -> bool {
        self.attributes.get(name) == Some(&AttrValue::Bool(true))
    }
}

impl Activation {
    fn op(self) -> OpName {
        match self {
            Activation::Silu => OpName::Silu,
            Activation::Gelu => OpName::Gelu,
            Activation::GeluTanh => OpName::GeluTanh,
            Activation::Relu => OpName::Relu,
            Activation::Relu2 => OpName::Relu2,
        }
    }
}

pub(super) fn resolve(description: &Description, json: Option<&serde_json::Value>) -> Result<Resolved, Diagnostics> {
    let mut diagnostics = Diagnostics::new(description.source.clone());
    let (config, origin) = match (json, &description.preset) {
        (Some(json), _) => match Config::from_json(json) {
            Ok(config) => (config, "config.json".to_owned()),
            Err(diagnostic) => {
                diagnostics.push(diagnostic);
                return Err(diagnostics);
            }
        },
        (None, Some(preset)) => {
            let values = preset.iter().map(|(key, (value, _))| (key.clone(), value.clone())).collect();
            (Config::new(values), format!("[config] of {}", description.source.name))
        }
        (None, None) => {
            let message = format!("{} has no preset [config]: it needs a config.json", description.source.name);
            diagnostics.push(Diagnostic::new(Code::BadConfig, message));
            return Err(diagnostics);
        }
    };
    let mut resolver = Resolver { description, config, origin, diagnostics };
    let architecture = resolver.architecture();
    if !resolver.diagnostics.is_empty() {
        return Err(resolver.diagnostics);
    }
    resolver.expectations();
    resolver.unhonoured();
    let layers = resolver.layers();
    let calls = layers.map(|layers| resolver.calls(layers)).unwrap_or_default();
    let facts = resolver.facts(layers.unwrap_or(0), architecture, &calls);
    let unread = resolver.unread();
    // A name misspelt where it is read is a missing key already.
    if json.is_none() && resolver.diagnostics.is_empty() {
        resolver.unused_preset();
    }
    let Resolver { mut diagnostics, .. } = resolver;
    diagnostics.sort();
    diagnostics.into_result(())?;
    let facts = facts.expect("facts are absent only where an error says so");
    Ok(Resolved { name: description.name.clone(), facts, calls, unread, source: description.source.clone() })
}

struct Resolver<'a> {
    description: &'a Description,
    config: Config,
    /// What messages call the configuration.
    origin: String,
    diagnostics: Diagnostics,
}

/// Names within one layer, or outside layers.
struct Names<'a> {
    config: &'a Config,
    derive: &'a BTreeMap<String, Expr>,
    layer: Option<usize>,
}

impl Environment for Names<'_> {
    fn key(&self, name: &str) -> Result<Option<Value>, Failure> {
        match (self.config.get(name), self.derive.get(name)) {
            (Some(value), Some(expr)) if *value == Value::Null => expr.evaluate(self).map(Some),
            (Some(value), _) => Ok(Some(value.clone())),
            // Derived keys are free of circles: the reader has made sure.
            (None, Some(expr)) => expr.evaluate(self).map(Some),
            (None, None) => Ok(None),
        }
    }

    fn layer(&self) -> Option<usize> {
        self.layer
    }
}

impl Resolver<'_> {
    fn architecture(&mut self) -> Option<String> {
        let given = match self.config.get("architectures") {
            None => return None,
            Some(Value::List(items)) => {
                items.iter().map(|item| item.text().map(str::to_owned)).collect::<Option<Vec<_>>>()
            }
            Some(_) => None,
        };
        let Some(given) = given else {
            let message = format!("`architectures` in {} is not a list of names", self.origin);
            self.diagnostics.push(Diagnostic::new(Code::BadConfig, message));
            return None;
        };
        let serves = &self.description.serves;
        if given.is_empty() || given.iter().any(|name| serves.contains(name)) {
            return given.into_iter().find(|name| serves.contains(name));
        }
        let file = &self.description.source.name;
        let message = format!("{} is for {}, {file} serves {}", self.origin, given.join(", "), serves.join(", "));
        self.diagnostics.push(
            Diagnostic::new(Code::ArchitectureMismatch, message)
                .help("use the description that serves this architecture, or write one"),
        );
        None
    }

    /// [expect]: a key that is there has one of the values.
    fn expectations(&mut self) {
        for expectation in &self.description.expect {
            let mut value = self.config.get(&expectation.path[0]);
            for key in &expectation.path[1..] {
                value = value.and_then(Value::table).and_then(|table| table.get(key));
            }
            let Some(value) = value else { continue };
            if *value != Value::Null && !expectation.allowed.iter().any(|allowed| allowed.same(value)) {
                let path = expectation.path.join(".");
                let message = format!(
                    "`{path}` is {value} in {}, which {} does not honour",
                    self.origin, self.description.source.name
                );
                self.diagnostics.push(
                    Diagnostic::new(Code::UnsupportedFeature, message)
                        .at(expectation.span.clone(), "the values that it honours"),
                );
            }
        }
    }

    /// Keys that matter and that no expression names.
    fn unhonoured(&mut self) {
        for (key, value) in self.config.iter() {
            if self.is_mentioned(key) {
                continue;
            }
            if let Some(what) = features::asked(key, value) {
                let file = &self.description.source.name;
                let message = format!("`{key}` is {value} in {}: {file} does not honour {what}", self.origin);
                let help = format!("let the description read `{key}`, or list the values it honours under [expect]");
                self.diagnostics.push(Diagnostic::new(Code::UnsupportedFeature, message).help(help));
            }
        }
    }

    fn is_mentioned(&self, key: &str) -> bool {
        let mentioned = &self.description.mentioned;
        // The two spellings of one thing.
        let twin = match key {
            "rope_theta" | "rope_scaling" | "rope_local_base_freq" | "partial_rotary_factor" => "rope_parameters",
            "rope_parameters" => return true,
            _ => key,
        };
        mentioned.contains(key) || mentioned.contains(twin)
    }

    fn unread(&self) -> Vec<String> {
        let read = |key: &str| self.is_mentioned(key) || features::is_known(key);
        self.config.iter().map(|(key, _)| key).filter(|key| !read(key)).map(str::to_owned).collect()
    }

    fn unused_preset(&mut self) {
        for (key, (_, span)) in self.description.preset.iter().flatten() {
            if !self.is_mentioned(key) && !features::is_known(key) {
                let message = format!("nothing reads the key `{key}` of [config]");
                let known = self.description.mentioned.iter().map(String::as_str);
                self.diagnostics
                    .push(Diagnostic::new(Code::UnusedPreset, message).at(span.clone(), "").suggest(key, known));
            }
        }
    }

    fn layers(&mut self) -> Option<usize> {
        let count = &self.description.count;
        match self.evaluate(count, None)? {
            Value::Int(layers) if (1..=MAX_LAYERS).contains(&layers) => Some(layers as usize),
            other => {
                let message = format!("the count of layers is an int from 1 to {MAX_LAYERS}, not {other}");
                self.diagnostics.push(Diagnostic::new(Code::ExpressionValue, message).at(count.span.clone(), ""));
                None
            }
        }
    }

    fn calls(&mut self, layers: usize) -> Vec<Call> {
        let mut calls = Vec::new();
        let mut carried: BTreeSet<String> = INPUTS.iter().map(|name| (*name).to_owned()).collect();
        for section in &self.description.sections {
            let repeats: Vec<Option<usize>> = match section.place {
                Place::Layer => (0..layers).map(Some).collect(),
                _ => vec![None],
            };
            for layer in repeats {
                let mut defined = carried.clone();
                for line in &section.lines {
                    if let Some(call) = self.call(line, layer, &section.prefix, &mut defined) {
                        calls.push(call);
                    }
                }
                if section.place == Place::Embed {
                    carried = defined;
                }
            }
        }
        calls
    }

    /// The call of a line, unless its `when` says no or it has errors.
    fn call(
        &mut self,
        line: &Line,
        layer: Option<usize>,
        prefix: &str,
        defined: &mut BTreeSet<String>,
    ) -> Option<Call> {
        if let Some(when) = &line.when
            && !self.condition(when, layer)?
        {
            return None;
        }
        for (_, name, span) in &line.values {
            if !defined.contains(name) {
                let message = format!("`{name}` has no value here");
                self.diagnostics.push(
                    Diagnostic::new(Code::UndefinedValue, message)
                        .at(span.clone(), "read here")
                        .note("the operation that would define it is left out by its `when`"),
                );
            }
        }
        defined.insert(line.out.0.clone());
        let values = line.values.iter().map(|(role, name, _)| (*role, name.clone())).collect();
        let weights = self.weights(line, layer, prefix);
        let mut attributes = BTreeMap::new();
        for attribute in line.signature.attributes {
            let given = line.attributes.iter().find(|(name, _)| *name == attribute.name).map(|(_, given)| given);
            if let Some(value) = self.attribute(line, attribute, given, layer) {
                attributes.insert(attribute.name, value);
            }
        }
        let op = match attributes.remove("kind") {
            Some(AttrValue::Activation(activation)) => activation.op(),
            _ => line.signature.op,
        };
        Some(Call { op, outs: vec![line.out.0.clone()], values, weights, attributes, layer, span: line.span.clone() })
    }

    fn weights(&mut self, line: &Line, layer: Option<usize>, prefix: &str) -> BTreeMap<&'static str, String> {
        let mut weights = BTreeMap::new();
        for (role, given) in &line.weights {
            let required = line.signature.weights.iter().any(|other| other.name == *role && other.required);
            match self.choose(given, layer) {
                Err(()) => {}
                Ok(Some(name)) => {
                    let index = layer.map(|layer| layer.to_string()).unwrap_or_default();
                    weights.insert(*role, format!("{prefix}{name}").replace("{layer}", &index));
                }
                Ok(None) if required => {
                    let message = format!("`{}` needs its `{role}`, and no branch gives one", line.signature.op.name());
                    let help = "give the choice an `else`";
                    self.diagnostics
                        .push(Diagnostic::new(Code::MissingKey, message).at(line.span.clone(), "").help(help));
                }
                Ok(None) => {}
            }
        }
        weights
    }

    fn attribute(
        &mut self,
        line: &Line,
        attribute: &Attribute,
        given: Option<&Given<Expr>>,
        layer: Option<usize>,
    ) -> Option<AttrValue> {
        let chosen = match given {
            Some(given) => self.choose(given, layer).ok()?,
            None => None,
        };
        if let Some(expr) = chosen {
            let value = self.evaluate(expr, layer)?;
            if value != Value::Null {
                return self.typed(&value, attribute.kind, &expr.span);
            }
        }
        let key = match attribute.default {
            Default::Absent => return None,
            Default::Bool(flag) => return Some(AttrValue::Bool(flag)),
            Default::Float(number) => return Some(AttrValue::Float(number)),
            Default::Key(key) => key,
            Default::KeyWith(other, key) if line.attributes.iter().any(|(name, _)| *name == other) => key,
            Default::KeyWith(..) => return None,
            Default::Required => {
                let message = format!("`{}` needs its `{}`, and it is null", line.signature.op.name(), attribute.name);
                let span = chosen.map_or(line.span.clone(), |expr| expr.span.clone());
                self.diagnostics.push(Diagnostic::new(Code::MissingKey, message).at(span, ""));
                return None;
            }
        };
        let names = Names { config: &self.config, derive: &self.description.derive, layer };
        match names.key(key) {
            Ok(Some(value)) => self.typed(&value, attribute.kind, &line.span),
            Ok(None) => {
                let failure = Failure::Missing { key: key.to_owned(), span: line.span.clone() };
                self.fail(failure, Some(format!("the default of `{}`", attribute.name)));
                None
            }
            Err(failure) => {
                self.fail(failure, None);
                None
            }
        }
    }

    fn typed(&mut self, value: &Value, kind: Kind, span: &Span) -> Option<AttrValue> {
        let typed = match (kind, value) {
            (Kind::Count, Value::Int(count)) if *count >= 1 => usize::try_from(*count).ok().map(AttrValue::Count),
            (Kind::Float, value) => value.number().filter(|number| number.is_finite()).map(AttrValue::Float),
            (Kind::Bool, Value::Bool(flag)) => Some(AttrValue::Bool(*flag)),
            (Kind::Activation, Value::Str(name)) => match ACTIVATIONS.iter().find(|(known, _)| **known == **name) {
                Some((_, activation)) => Some(AttrValue::Activation(*activation)),
                None => {
                    let known: Vec<_> = ACTIVATIONS.iter().map(|(name, _)| *name).collect();
                    self.diagnostics.push(
                        Diagnostic::new(Code::UnsupportedFeature, format!("the activation {value} is not supported"))
                            .at(span.clone(), format!("{value} in {}", self.origin))
                            .suggest(name, known.iter().copied())
                            .help(format!("supported: {}", known.join(", "))),
                    );
                    return None;
                }
            },
            (Kind::RopeScaling, Value::Table(table)) => {
                let context = self.config.get("max_position_embeddings").and_then(Value::number);
                match RopeScaling::read(table, context) {
                    Ok(scaling) => Some(AttrValue::RopeScaling(scaling)),
                    Err(refusal) => {
                        self.refuse(refusal, span);
                        return None;
                    }
                }
            }
            _ => None,
        };
        if typed.is_none() {
            let message = format!("{} is needed here, this is {}: {value}", kind.needs(), value.kind());
            self.diagnostics.push(Diagnostic::new(Code::WrongType, message).at(span.clone(), ""));
        }
        typed
    }

    fn refuse(&mut self, refusal: Refusal, span: &Span) {
        let diagnostic = match refusal {
            Refusal::Unsupported(what) => Diagnostic::new(Code::UnsupportedFeature, format!("{what} is not supported"))
                .at(span.clone(), "")
                .note(format!("{} asks for it", self.origin))
                .help("supported types are \"linear\", \"llama3\" and \"yarn\""),
            Refusal::Missing(key) => {
                let message = format!("{} has no key `{key}`", self.origin);
                Diagnostic::new(Code::MissingConfigKey, message)
                    .at(span.clone(), "needed here")
                    .help("a scaling of this type needs it: add it to the configuration")
            }
            Refusal::WrongType(message) => {
                Diagnostic::new(Code::BadConfig, format!("{message} in {}", self.origin)).at(span.clone(), "")
            }
        };
        self.diagnostics.push(diagnostic);
    }

    /// The branch that holds; `Ok(None)` where none does, `Err` where a condition has an error.
    fn choose<'g, T>(&mut self, given: &'g Given<T>, layer: Option<usize>) -> Result<Option<&'g T>, ()> {
        match given {
            Given::One(value) => Ok(Some(value)),
            Given::Choice { condition, then, otherwise } => match (self.condition(condition, layer), otherwise) {
                (None, _) => Err(()),
                (Some(true), _) => self.choose(then, layer),
                (Some(false), Some(otherwise)) => self.choose(otherwise, layer),
                (Some(false), None) => Ok(None),
            },
        }
    }

    fn condition(&mut self, expr: &Expr, layer: Option<usize>) -> Option<bool> {
        match self.evaluate(expr, layer)? {
            Value::Bool(value) => Some(value),
            other => {
                let message = format!("a condition is true or false, this is {}: {other}", other.kind());
                self.diagnostics.push(Diagnostic::new(Code::WrongType, message).at(expr.span.clone(), ""));
                None
            }
        }
    }

    fn evaluate(&mut self, expr: &Expr, layer: Option<usize>) -> Option<Value> {
        let names = Names { config: &self.config, derive: &self.description.derive, layer };
        match expr.evaluate(&names) {
            Ok(value) => Some(value),
            Err(failure) => {
                self.fail(failure, None);
                None
            }
        }
    }

    fn fail(&mut self, failure: Failure, label: Option<String>) {
        let diagnostic = match failure {
            Failure::Wrong(diagnostic) => *diagnostic,
            Failure::Missing { key, span } => {
                let known =
                    self.config.iter().map(|(key, _)| key).chain(self.description.derive.keys().map(String::as_str));
                let derive = match key.contains('.') {
                    true => format!("or write `{key} ?? value` where it is read"),
                    false => {
                        format!("or give `{key}` a value under [derive], or write `{key} ?? value` where it is read")
                    }
                };
                Diagnostic::new(Code::MissingConfigKey, format!("{} has no key `{key}`", self.origin))
                    .at(span, label.unwrap_or_else(|| "needed here".to_owned()))
                    .suggest(&key, known)
                    .help(format!("add it to the configuration, {derive}"))
            }
        };
        self.diagnostics.push(diagnostic);
    }

    fn facts(&mut self, num_layers: usize, architecture: Option<String>, calls: &[Call]) -> Option<Facts> {
        let vocab_size = self.fact("vocab_size")?;
        let Some(vocab_size) = count_of(&vocab_size) else {
            let message = format!("`vocab_size` in {} is not an int of at least 1: {vocab_size}", self.origin);
            self.diagnostics.push(Diagnostic::new(Code::BadConfig, message));
            return None;
        };
        let tables = calls.iter().filter(|call| call.op == OpName::Embedding);
        let tables: BTreeSet<&String> = tables.filter_map(|call| call.weights.get("weight")).collect();
        let head = calls.iter().filter(|call| call.op == OpName::Linear && call.layer.is_none());
        let tied_head = head.filter_map(|call| call.weights.get("weight")).any(|name| tables.contains(name));
        let context = self.optional_fact("max_position_embeddings");
        let token = |value: &Value| match value {
            Value::Int(id) => u32::try_from(*id).ok(),
            _ => None,
        };
        let ends = match self.optional_fact("eos_token_id") {
            Some(Value::List(items)) => items.iter().filter_map(token).collect(),
            one => one.iter().filter_map(token).collect(),
        };
        Some(Facts {
            vocab_size,
            num_layers,
            max_position_embeddings: context.as_ref().and_then(count_of),
            dtype: self.optional_fact("dtype").and_then(|value| value.text().map(str::to_owned)),
            architecture,
            tied_head,
            bos_token_id: self.optional_fact("bos_token_id").as_ref().and_then(token),
            eos_token_ids: ends,
        })
    }

    fn optional_fact(&self, key: &str) -> Option<Value> {
        Names { config: &self.config, derive: &self.description.derive, layer: None }.key(key).ok().flatten()
    }

    fn fact(&mut self, key: &str) -> Option<Value> {
        let found = self.optional_fact(key);
        if found.is_none() {
            let span = self.description.count.span.clone();
            // The embedding reports the same key at its own line.
            if !self.diagnostics.list().iter().any(|diagnostic| diagnostic.message.contains(&format!("`{key}`"))) {
                self.fail(Failure::Missing { key: key.to_owned(), span }, Some("every model needs it".to_owned()));
            }
        }
        found
    }
}

fn count_of(value: &Value) -> Option<usize> {
    match value {
        Value::Int(count) if *count >= 1 => usize::try_from(*count).ok(),
        _ => None,
    }
}
