//! A description and a configuration to a flat list of operations.

mod facts;

use std::collections::{BTreeMap, BTreeSet};

use super::call::{ACTIVATIONS, AttrValue, Call, Resolved, op_of};
use super::config::Config;
use super::diagnostics::{Code, Diagnostic, Diagnostics, Span};
use super::document::{Description, Given, Line, Place};
use super::expr::{Environment, Expr, Failure};
use super::features;
use super::inert::OUTSIDE;
use super::lacking;
use super::quantised;
use super::rope::{Refusal, Scaling};
use super::signature::{Attribute, Default, INPUTS, Kind, OpName};
use super::value::{Value, count_of};

/// A model's layers beyond this are a mistake in a configuration.
pub const MAX_LAYERS: u32 = 4096;

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
    let unread = resolver.unread();
    let class = resolver.config.get("model_type").and_then(Value::text);
    if let Some(defaults) = class.and_then(|class| description.defaults.get(class)) {
        let mut needed = BTreeSet::new();
        description.count.visit_keys(&mut |key| needed.extend([key]));
        resolver.config.complete(defaults, &needed);
    }
    let architecture = resolver.architecture();
    if !resolver.diagnostics.is_empty() {
        return Err(resolver.diagnostics);
    }
    let layers = resolver.layers();
    resolver.flatten(layers.unwrap_or(0));
    resolver.expectations();
    resolver.unhonoured();
    resolver.nulls();
    resolver.untold();
    let calls = layers.map(|layers| resolver.calls(layers)).unwrap_or_default();
    let facts = resolver.facts(layers.unwrap_or(0), architecture, &calls);
    // A name misspelt where it is read is a missing key already.
    if json.is_none() && resolver.diagnostics.is_empty() {
        resolver.unused_preset();
    }
    let Resolver { mut diagnostics, .. } = resolver;
    diagnostics.sort();
    diagnostics.into_result(())?;
    let facts = facts.expect("facts are absent only where an error says so");
    let read = description.mentioned.iter().cloned().collect();
    Ok(Resolved { name: description.name.clone(), facts, calls, unread, read, source: description.source.clone() })
}

/// A description, a configuration, and what is wrong with the two.
pub(super) struct Resolver<'a> {
    pub(super) description: &'a Description,
    pub(super) config: Config,
    /// What messages call the configuration.
    pub(super) origin: String,
    pub(super) diagnostics: Diagnostics,
}

/// Names within one layer, or outside layers.
pub(super) struct Names<'a> {
    config: &'a Config,
    derive: &'a BTreeMap<String, Expr>,
    layer: Option<usize>,
}

impl Environment for Names<'_> {
    fn key(&self, name: &str) -> Result<Option<Value>, Failure> {
        match (self.config.get(name), self.derive.get(name)) {
            (Some(Value::Float(number)), _) if !number.is_finite() => {
                let message = format!("`{name}` is {} in the configuration", Value::Float(*number));
                Err(Failure::Wrong(Box::new(Diagnostic::new(Code::BadConfig, message).help("give it a finite number"))))
            }
            (Some(value), Some(expr)) if *value == Value::Null => expr.evaluate(self).map(Some),
            (Some(value), _) => Ok(Some(value.clone())),
            // Derived keys are free of circles: the reader has made sure.
            (None, Some(expr)) => expr.evaluate(self).map(Some),
            (None, None) => Ok(None),
        }
    }

    fn is_null(&self, name: &str) -> bool {
        self.config.is_null(name)
    }

    fn layer(&self) -> Option<usize> {
        self.layer
    }
}

impl Resolver<'_> {
    pub(super) fn names(&self, layer: Option<usize>) -> Names<'_> {
        Names { config: &self.config, derive: &self.description.derive, layer }
    }

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

    /// `[expect]`: a key that is there has one of the values.
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
                        .at(expectation.span.clone(), "the values that it honours")
                        .hint("list the value under [expect] if the description computes what it asks for"),
                );
            }
        }
    }

    /// Keys that matter and that no expression names.
    fn unhonoured(&mut self) {
        let mut quantised = false;
        let no_windows = self.config.get("use_sliding_window") == Some(&Value::Bool(false));
        for (key, value) in self.config.iter() {
            let idle = (no_windows && ["sliding_window", "max_window_layers"].contains(&key))
                || (key == "sliding_window_pattern" && self.config.is_null("sliding_window"));
            // How weights are stored is read here, whatever a description reads of it.
            let of_storage = quantised::KEYS.contains(&key);
            if idle || (self.is_mentioned(key) && !of_storage) {
                continue;
            }
            if of_storage {
                // One of them says it.
                if !quantised {
                    let (refusal, told) = quantised::refusal(key, value, &self.origin);
                    quantised = told;
                    refusal.into_iter().for_each(|refusal| self.diagnostics.push(refusal));
                }
            } else if let Some(what) = features::asked(key, value) {
                let file = &self.description.source.name;
                let mut shown = value.to_string();
                if let Some((end, _)) = shown.char_indices().nth(60) {
                    shown.truncate(end);
                    shown.push('…');
                }
                let message = format!("`{key}` is {shown} in {}: {file} does not honour {what}", self.origin);
                let diagnostic = Diagnostic::new(Code::UnsupportedFeature, message);
                self.diagnostics.push(match lacking::by_key(key) {
                    Some(what) => diagnostic.help(format!("it needs {what}, which no operation computes")),
                    None => diagnostic.hint(format!(
                        "let the description read `{key}`, or list the values it honours under [expect]"
                    )),
                });
            }
        }
    }

    /// A constant of `[derive]` is for a key that is absent. A null asks for something else, unless it means no.
    fn nulls(&mut self) {
        for key in self.config.nulls() {
            let Some(constant) = self.description.derive.get(key).and_then(Expr::constant) else { continue };
            if ![Value::Bool(false), Value::Null].contains(constant) {
                let message = format!(
                    "`{key}` is null in {}, which {} does not honour",
                    self.origin, self.description.source.name
                );
                let span = self.description.derive[key].span.clone();
                let label = format!("where the key is absent it is {constant}");
                let help = format!("give `{key}` a value, or remove it from the configuration");
                self.diagnostics.push(Diagnostic::new(Code::UnsupportedFeature, message).at(span, label).help(help));
            }
        }
    }

    /// What only the family's name says, and no operation computes.
    fn untold(&mut self) {
        let Some(family) = self.config.get("model_type").and_then(Value::text) else { return };
        let expected = self.description.expect.iter().any(|expectation| expectation.path == ["model_type"]);
        if let (Some(what), false) = (features::untold(family), expected) {
            let file = &self.description.source.name;
            let message = format!("`model_type` is {family:?} in {}: {file} does not honour {what}", self.origin);
            let hint = "`model_type` under [expect] tells that the description does without";
            self.diagnostics
                .push(Diagnostic::new(Code::UnsupportedFeature, message).help("no operation computes it").hint(hint));
        }
    }

    fn is_mentioned(&self, key: &str) -> bool {
        self.description.reads(key)
    }

    fn unread(&self) -> Vec<String> {
        let read = |key: &&str| self.is_mentioned(key) || features::is_known(key);
        let own = self.config.iter().map(|(key, _)| key).chain(self.config.nulls()).filter(|key| !read(key));
        let outside = self.config.outside().filter(|key| !read(key) && !OUTSIDE.contains(key));
        let unread: BTreeSet<&str> = own.chain(outside).collect();
        unread.into_iter().map(str::to_owned).collect()
    }

    /// Gives keys whose value is a list of one value for all `layers` that value, where the description does not take them for lists.
    fn flatten(&mut self, layers: usize) {
        for key in self.description.mentioned.difference(&self.description.lists) {
            self.config.flatten(key, layers);
        }
    }

    fn unused_preset(&mut self) {
        for (key, (_, span)) in self.description.preset.iter().flatten() {
            if !self.is_mentioned(key) && !features::is_known(key) {
                let message = format!("nothing reads the key `{key}` of [config]");
                let known = self.description.mentioned.iter().map(String::as_str);
                let diagnostic = Diagnostic::new(Code::UnusedPreset, message).at(span.clone(), "");
                self.diagnostics.push(diagnostic.suggest(key, known).help("remove it, or let an expression read it"));
            }
        }
    }

    fn layers(&mut self) -> Option<usize> {
        let count = &self.description.count;
        match self.evaluate(count, None)? {
            Value::Int(layers) if (1..=i64::from(MAX_LAYERS)).contains(&layers) => Some(layers as usize),
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
        let (weights, weight_spans) = self.weights(line, layer, prefix).into_iter().fold(
            (BTreeMap::new(), BTreeMap::new()),
            |(mut weights, mut spans), (role, name, span)| {
                weights.insert(role, name);
                spans.insert(role, span);
                (weights, spans)
            },
        );
        let mut attributes = BTreeMap::new();
        for attribute in line.signature.attributes {
            let given = line.attributes.iter().find(|(name, _)| *name == attribute.name).map(|(_, given)| given);
            if let Some(value) = self.attribute(line, attribute, given, layer) {
                attributes.insert(attribute.name, value);
            }
        }
        let op = match (line.signature.op, attributes.get("kind")) {
            (OpName::Activation, Some(&AttrValue::Activation(activation))) => {
                attributes.remove("kind");
                op_of(activation)
            }
            (op, _) => op,
        };
        let outs = vec![line.out.0.clone()];
        Some(Call { op, outs, values, weights, weight_spans, attributes, layer, span: line.span.clone() })
    }

    /// Role, whole name and place of each weight of a line.
    fn weights(&mut self, line: &Line, layer: Option<usize>, prefix: &str) -> Vec<(&'static str, String, Span)> {
        let mut weights = Vec::new();
        for (role, given) in &line.weights {
            let required = line.signature.weights.iter().any(|other| other.name == *role && other.required);
            match self.choose(given, layer) {
                Err(()) => {}
                Ok(Some((name, span))) => {
                    let index = layer.map(|layer| layer.to_string()).unwrap_or_default();
                    weights.push((*role, format!("{prefix}{name}").replace("{layer}", &index), span.clone()));
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
                return self.typed(&value, attribute.kind, &expr.span, "");
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
        let names = self.names(layer);
        match names.key(key) {
            Ok(Some(value)) => {
                let label = format!("`{}` is `{key}` unless given", attribute.name);
                self.typed(&value, attribute.kind, &line.span, &label)
            }
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

    fn typed(&mut self, value: &Value, kind: Kind, span: &Span, label: &str) -> Option<AttrValue> {
        let typed = match (kind, value) {
            (Kind::Count, value) => count_of(value).map(AttrValue::Count),
            (Kind::Float, value) => value.number().filter(|number| (*number as f32).is_finite()).map(AttrValue::Float),
            (Kind::Bool, Value::Bool(flag)) => Some(AttrValue::Bool(*flag)),
            (Kind::Part, Value::List(items)) => part_of(items).map(AttrValue::Part),
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
                match Scaling::read(table, context) {
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
            self.diagnostics.push(Diagnostic::new(Code::WrongType, message).at(span.clone(), label));
        }
        typed
    }

    fn refuse(&mut self, refusal: Refusal, span: &Span) {
        let diagnostic = match refusal {
            Refusal::Unsupported(what) => Diagnostic::new(Code::UnsupportedFeature, format!("{what} is not supported"))
                .at(span.clone(), "")
                .note(format!("{} asks for it", self.origin))
                .help("supported types are \"linear\", \"dynamic\", \"llama3\", \"yarn\", \"longrope\" and \"proportional\""),
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
        let names = self.names(layer);
        match expr.evaluate(&names) {
            Ok(value) => Some(value),
            Err(failure) => {
                self.fail(failure, None);
                None
            }
        }
    }

    pub(super) fn fail(&mut self, failure: Failure, label: Option<String>) {
        let diagnostic = match failure {
            Failure::Wrong(diagnostic) => *diagnostic,
            Failure::Missing { key, span } if key == "TODO" => {
                Diagnostic::new(Code::MissingConfigKey, "`TODO` stands where a size or a key belongs")
                    .at(span, label.unwrap_or_else(|| "needed here".to_owned()))
                    .hint("fusec new could not tell it: the TODO lines at the top of the file say what is left open")
            }
            Failure::Missing { key, span } => {
                let known =
                    self.config.iter().map(|(key, _)| key).chain(self.description.derive.keys().map(String::as_str));
                let derive = match key.contains('.') {
                    true => format!("write `{key} ?? value` where it is read"),
                    false => {
                        format!("give `{key}` a value under [derive], or write `{key} ?? value` where it is read")
                    }
                };
                Diagnostic::new(Code::MissingConfigKey, format!("{} has no key `{key}`", self.origin))
                    .at(span, label.unwrap_or_else(|| "needed here".to_owned()))
                    .suggest(&key, known)
                    .hint(format!("add it to the configuration, or {derive}"))
            }
        };
        self.diagnostics.push(diagnostic);
    }
}

/// `[first, size, step]` with at least one place, and all of them within a step.
fn part_of(items: &[Value]) -> Option<[usize; 3]> {
    let [Value::Int(first), size, step] = items else { return None };
    let (first, size, step) = (usize::try_from(*first).ok()?, count_of(size)?, count_of(step)?);
    (first <= step && first + size <= step).then_some([first, size, step])
}
