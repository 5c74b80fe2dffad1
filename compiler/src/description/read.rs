//! TOML to [`Description`]: every key is known, every value has its type, every expression can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use toml::de::DeTable;

use super::diagnostics::{Code, Diagnostic, Diagnostics, Source, Span};
use super::document::{Description, Expectation, Line, Place, Section};
use super::expr::Expr;
use super::reader::{Reader, in_file_order};
use super::signature::Default;
use super::value::Value;
use super::{features, flow, line};

/// The schema that this version reads.
pub(super) const SCHEMA: i64 = 1;

pub(super) fn read(text: &str, file_name: &str) -> Result<Description, Diagnostics> {
    let source = Arc::new(Source { name: file_name.to_owned(), text: text.to_owned() });
    let mut reader = Reader { source: source.clone(), diagnostics: Diagnostics::new(source.clone()) };
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut lines = BTreeSet::new();
    for error in errors {
        let diagnostic = Diagnostic::new(Code::TomlSyntax, format!("not valid TOML: {}", error.message()));
        match error.span() {
            // A second error on a line is an echo of the first.
            Some(span) if !lines.insert(text[..span.start].matches('\n').count()) => {}
            Some(span) => reader.push(diagnostic.at(span, "")),
            None => reader.push(diagnostic),
        }
    }
    reader.diagnostics.sort();
    // What was recovered from a broken file would only make echoes of the first errors.
    if !reader.diagnostics.is_empty() {
        return Err(reader.diagnostics);
    }
    let description = reader.description(document.get_ref());
    reader.diagnostics.sort();
    match description {
        Some(description) => reader.diagnostics.into_result(description),
        None => Err(reader.diagnostics),
    }
}

/// The keys of a file.
pub(super) const TOP_KEYS: &[&str] =
    &["schema", "name", "serves", "config", "defaults", "derive", "expect", "embed", "layer", "head"];

impl Reader {
    fn description(&mut self, top: &DeTable<'_>) -> Option<Description> {
        let source = self.source.clone();
        let file = source.name.as_str();
        self.schema(top)?;
        self.known_keys(top, TOP_KEYS, "a description");
        let name = self.needed(top, "name", 0..0, file).and_then(|value| self.identifier(value, "a name"));
        let serves = self.needed(top, "serves", 0..0, file).and_then(|value| self.architectures(value));
        let preset = top.get("config").and_then(|value| self.table(value)).map(|table| self.preset(table));
        let defaults = top.get("defaults").and_then(|value| self.table(value)).map(|table| self.defaults(table));
        let derive = top.get("derive").and_then(|value| self.table(value)).map(|table| self.derive(table));
        let expect = top.get("expect").and_then(|value| self.table(value)).map(|table| self.expect(table, &[]));
        let mut count = None;
        let sections: Vec<Option<Section>> = [Place::Embed, Place::Layer, Place::Head]
            .into_iter()
            .map(|place| {
                let value = self.needed(top, place.name(), 0..0, file)?;
                let table = self.table(value)?;
                if place == Place::Layer {
                    count = self.needed(table, "count", value.span(), "[layer]").and_then(|v| self.expression(v));
                }
                self.section(place, table, self.header(value))
            })
            .collect();
        let sections: Vec<Section> = sections.into_iter().collect::<Option<_>>()?;
        flow::check(&sections, &mut self.diagnostics);
        let mut description = Description {
            name: name?,
            serves: serves?,
            source: self.source.clone(),
            preset,
            defaults: BTreeMap::new(),
            derive: BTreeMap::new(),
            expect: expect.unwrap_or_default(),
            count: count?,
            sections,
            mentioned: BTreeSet::new(),
            lists: BTreeSet::new(),
        };
        let mut spans = BTreeMap::new();
        for (key, span, expr) in derive.unwrap_or_default() {
            spans.insert(key.clone(), span);
            description.derive.insert(key, expr);
        }
        description.mentioned = mentioned(&description);
        description.lists = lists(&description);
        for (class, mut values) in defaults.unwrap_or_default() {
            values.retain(|key, _| description.mentioned.contains(key));
            description.defaults.insert(class, values);
        }
        self.cycles(&description, &spans);
        for (key, span) in spans.iter().filter(|(key, _)| !description.mentioned.contains(*key)) {
            self.push(
                Diagnostic::new(Code::UnusedDerive, format!("nothing reads the derived key `{key}`"))
                    .at(span.clone(), "")
                    .suggest(key, description.mentioned.iter().map(String::as_str)),
            );
        }
        Some(description)
    }

    fn schema(&mut self, top: &DeTable<'_>) -> Option<()> {
        let file = self.source.name.clone();
        let value = self.needed(top, "schema", 0..0, &file)?;
        match self.plain(value)? {
            Value::Int(SCHEMA) => Some(()),
            other => {
                let message = format!("schema {other} is not known: this version reads schema {SCHEMA}");
                self.push(Diagnostic::new(Code::UnknownSchema, message).at(value.span(), ""));
                None
            }
        }
    }

    fn section(&mut self, place: Place, table: &DeTable<'_>, span: Span) -> Option<Section> {
        let known: &[&str] = if place == Place::Layer { &["count", "weights", "ops"] } else { &["weights", "ops"] };
        self.known_keys(table, known, &format!("[{}]", place.name()));
        let prefix = match table.get("weights") {
            Some(value) => line::weight_name(self, value, place, false)?,
            None => String::new(),
        };
        let ops = self.needed(table, "ops", span.clone(), &format!("[{}]", place.name()))?;
        let Some(ops) = ops.get_ref().as_array() else {
            self.wrong_type(ops, "a list of operations");
            return None;
        };
        let lines: Vec<Option<Line>> = ops.iter().map(|op| line::read(self, op, place)).collect();
        Some(Section { place, prefix, lines: lines.into_iter().collect::<Option<_>>()?, span })
    }

    fn preset(&mut self, table: &DeTable<'_>) -> BTreeMap<String, (Value, Span)> {
        let mut preset = BTreeMap::new();
        for (key, value) in in_file_order(table) {
            if let (true, Some(plain)) = (self.is_identifier(key, "a configuration key"), self.plain(value)) {
                preset.insert(key.get_ref().to_string(), (plain, key.span()));
            }
        }
        preset
    }

    /// Values by class and key.
    fn defaults(&mut self, table: &DeTable<'_>) -> BTreeMap<String, BTreeMap<String, Value>> {
        let mut defaults = BTreeMap::new();
        for (class, value) in in_file_order(table) {
            if let (true, Some(table)) = (self.is_identifier(class, "a `model_type`"), self.table(value)) {
                let values = self.preset(table).into_iter().map(|(key, (value, _))| (key, value));
                defaults.insert(class.get_ref().to_string(), values.collect());
            }
        }
        defaults
    }

    fn derive(&mut self, table: &DeTable<'_>) -> Vec<(String, Span, Expr)> {
        let mut derived = Vec::new();
        for (key, value) in in_file_order(table) {
            if let (true, Some(expr)) = (self.is_identifier(key, "a derived key"), self.expression(value)) {
                derived.push((key.get_ref().to_string(), key.span(), expr));
            }
        }
        derived
    }

    fn expect(&mut self, table: &DeTable<'_>, path: &[String]) -> Vec<Expectation> {
        let mut expectations = Vec::new();
        for (key, value) in in_file_order(table) {
            let mut path = path.to_vec();
            // No key of a config.json has a dot: a quoted one reaches into a table too.
            path.extend(key.get_ref().split('.').map(str::to_owned));
            if let Some(inner) = value.get_ref().as_table() {
                expectations.extend(self.expect(inner, &path));
            } else if let Some(plain) = self.plain(value) {
                let allowed = match plain {
                    Value::List(items) => items.to_vec(),
                    one => vec![one],
                };
                expectations.push(Expectation { path, allowed, span: key.span().start..value.span().end });
            }
        }
        expectations
    }

    /// Follows each derived key through those it names.
    fn cycles(&mut self, description: &Description, spans: &BTreeMap<String, Span>) {
        let mut cleared: BTreeSet<&str> = BTreeSet::new();
        for start in description.derive.keys() {
            let mut path: Vec<&str> = Vec::new();
            if let Some(cycle) = find_cycle(&description.derive, start, &mut path, &mut cleared) {
                let shown: Vec<_> = cycle.iter().map(|key| format!("`{key}`")).collect();
                let message = format!("derived keys need each other in a circle: {}", shown.join(" → "));
                self.push(Diagnostic::new(Code::CyclicDerive, message).at(spans[cycle[0]].clone(), ""));
                cleared.extend(&cycle);
            }
        }
    }
}

fn find_cycle<'a>(
    derive: &'a BTreeMap<String, Expr>,
    key: &'a str,
    path: &mut Vec<&'a str>,
    cleared: &mut BTreeSet<&'a str>,
) -> Option<Vec<&'a str>> {
    let expr = derive.get(key).filter(|_| !cleared.contains(key))?;
    if let Some(start) = path.iter().position(|other| *other == key) {
        let mut cycle = path[start..].to_vec();
        cycle.push(key);
        return Some(cycle);
    }
    path.push(key);
    let mut named = Vec::new();
    expr.visit_keys(&mut |key| named.push(key));
    let cycle = named.into_iter().find_map(|key| find_cycle(derive, key, path, cleared));
    path.pop();
    if cycle.is_none() {
        cleared.insert(key);
    }
    cycle
}

/// Every configuration key that the description names or that the facts of a model need.
fn mentioned(description: &Description) -> BTreeSet<String> {
    let mut keys: BTreeSet<String> = features::FACTS.iter().map(|key| (*key).to_owned()).collect();
    keys.extend(description.expect.iter().map(|expectation| expectation.path[0].clone()));
    let mut add = |key: &str| keys.extend([key.to_owned()]);
    expressions(description).into_iter().for_each(|expr| expr.visit_keys(&mut add));
    let lines = description.sections.iter().flat_map(|section| &section.lines);
    for attribute in lines.flat_map(|line| line.signature.attributes) {
        if let Default::Key(key) | Default::KeyWith(_, key) = attribute.default {
            keys.insert(key.to_owned());
        }
    }
    keys
}

/// The configuration keys that the description takes for lists.
fn lists(description: &Description) -> BTreeSet<String> {
    let mut keys: BTreeSet<String> = features::LISTS.iter().map(|key| (*key).to_owned()).collect();
    let mut add = |key: &str| keys.extend([key.to_owned()]);
    expressions(description).into_iter().for_each(|expr| expr.visit_lists(&mut add));
    keys
}

/// Every expression of the description.
fn expressions(description: &Description) -> Vec<&Expr> {
    let mut all = vec![&description.count];
    all.extend(description.derive.values());
    for line in description.sections.iter().flat_map(|section| &section.lines) {
        all.extend(&line.when);
        for (_, given) in &line.attributes {
            let mut found = Vec::new();
            let mut conditions = Vec::new();
            given.visit(&mut |expr| conditions.push(expr), &mut |expr| found.push(expr));
            all.extend(found.into_iter().chain(conditions));
        }
        for (_, given) in &line.weights {
            given.visit(&mut |expr| all.push(expr), &mut |_| {});
        }
    }
    all
}
