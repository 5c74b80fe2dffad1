//! TOML values of known types, and what is wrong with them.

use std::collections::BTreeMap;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostics::{Code, Diagnostic, Diagnostics, Source, Span};
use super::expr::{Expr, Locator};
use super::value::Value;

/// Reads values of known types and collects what is wrong.
pub(super) struct Reader {
    pub source: Arc<Source>,
    pub diagnostics: Diagnostics,
}

impl Reader {
    /// The section's header line, `[layer]`, rather than all of its body.
    pub(super) fn header(&self, table: &Spanned<DeValue<'_>>) -> Span {
        let span = table.span();
        let text = &self.source.text[span.clone()];
        span.start..span.start + text.find('\n').unwrap_or(text.len())
    }

    /// The expression in a string, or a plain number or flag.
    pub(super) fn expression(&mut self, value: &Spanned<DeValue<'_>>) -> Option<Expr> {
        match value.get_ref() {
            DeValue::String(text) => {
                let locator = Locator::of_string(&self.source.text, value.span(), text);
                match Expr::parse(text, &locator) {
                    Ok(expr) => Some(expr),
                    Err(diagnostic) => {
                        self.push(diagnostic);
                        None
                    }
                }
            }
            DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) => {
                Some(Expr::literal(self.plain(value)?, value.span()))
            }
            _ => {
                self.wrong_type(value, "an expression, a number or a flag");
                None
            }
        }
    }

    /// A TOML value with no expressions in it.
    pub(super) fn plain(&mut self, value: &Spanned<DeValue<'_>>) -> Option<Value> {
        let number = |reader: &mut Self| {
            reader.push(Diagnostic::new(Code::WrongType, "the number is out of range").at(value.span(), ""));
        };
        match value.get_ref() {
            DeValue::String(text) => Some(Value::from(&**text)),
            DeValue::Boolean(flag) => Some(Value::Bool(*flag)),
            DeValue::Integer(digits) => match i64::from_str_radix(digits.as_str(), digits.radix()) {
                Ok(number) => Some(Value::Int(number)),
                Err(_) => {
                    number(self);
                    None
                }
            },
            // What is read of a number that is not finite refuses it; under [expect] nothing is.
            DeValue::Float(digits) => match digits.as_str().parse::<f64>() {
                Ok(number) if number.is_finite() || digits.as_str().ends_with("inf") => Some(Value::Float(number)),
                _ => {
                    number(self);
                    None
                }
            },
            DeValue::Array(items) => {
                let items: Vec<Option<Value>> = items.iter().map(|item| self.plain(item)).collect();
                Some(Value::List(items.into_iter().collect::<Option<_>>()?))
            }
            DeValue::Table(items) => {
                let mut table = BTreeMap::new();
                for (key, item) in in_file_order(items) {
                    table.insert(key.get_ref().to_string(), self.plain(item)?);
                }
                Some(Value::Table(Arc::new(table)))
            }
            DeValue::Datetime(_) => {
                self.wrong_type(value, "a number, a flag, a string, a list or a table");
                None
            }
        }
    }

    pub(super) fn string(&mut self, value: &Spanned<DeValue<'_>>, what: &str) -> Option<String> {
        let text = value.get_ref().as_str().map(str::to_owned);
        if text.is_none() {
            self.wrong_type(value, what);
        }
        text
    }

    pub(super) fn identifier(&mut self, value: &Spanned<DeValue<'_>>, what: &str) -> Option<String> {
        let text = self.string(value, &format!("{what}, a string"))?;
        self.is_identifier(&Spanned::new(value.span(), text.as_str().into()), what).then_some(text)
    }

    /// Names as [`super::architectures`] gives them.
    pub(super) fn architectures(&mut self, value: &Spanned<DeValue<'_>>) -> Option<Vec<String>> {
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_type(value, "a list of architecture names");
            return None;
        };
        items.iter().map(|item| self.architecture(item)).collect()
    }

    pub(super) fn architecture(&mut self, value: &Spanned<DeValue<'_>>) -> Option<String> {
        const WHAT: &str = "an architecture's name";
        let text = self.string(value, &format!("{WHAT}, a string"))?;
        let parts = text.split_once(':').map_or(vec![text.as_str()], |(whole, kind)| vec![whole, kind]);
        let named = |part: &str| self.is_identifier(&Spanned::new(value.span(), part.into()), WHAT);
        parts.into_iter().all(named).then_some(text)
    }

    pub(super) fn is_identifier(&mut self, text: &Spanned<std::borrow::Cow<'_, str>>, what: &str) -> bool {
        let name = text.get_ref();
        let start = |c: char| c.is_ascii_alphabetic() || c == '_';
        let good = name.starts_with(start) && name.chars().all(|c| start(c) || c.is_ascii_digit());
        if !good {
            let message = format!("{what} has letters, digits and `_`, and begins with no digit");
            self.push(Diagnostic::new(Code::BadName, message).at(text.span(), ""));
        } else if &**name == "layer" && what.ends_with("key") {
            self.push(Diagnostic::new(Code::BadName, "`layer` is the index of the layer").at(text.span(), ""));
        }
        good
    }

    pub(super) fn table<'a, 'i>(&mut self, value: &'a Spanned<DeValue<'i>>) -> Option<&'a DeTable<'i>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.wrong_type(value, "a table");
        }
        table
    }

    pub(super) fn needed<'a, 'i>(
        &mut self,
        table: &'a DeTable<'i>,
        key: &str,
        span: Span,
        what: &str,
    ) -> Option<&'a Spanned<DeValue<'i>>> {
        let found = table.get(key);
        if found.is_none() {
            let diagnostic = Diagnostic::new(Code::MissingKey, format!("{what} has no `{key}`"));
            // What the file as a whole lacks has no place in it.
            let diagnostic = if span.is_empty() { diagnostic } else { diagnostic.at(span, "") };
            self.push(diagnostic.suggest(key, table.iter().map(|(key, _)| &**key.get_ref())));
        }
        found
    }

    pub(super) fn known_keys(&mut self, table: &DeTable<'_>, known: &[&str], what: &str) {
        for (key, _) in in_file_order(table).into_iter().filter(|(key, _)| !known.contains(&&**key.get_ref())) {
            let name = key.get_ref();
            let shown: Vec<_> = known.iter().map(|known| format!("`{known}`")).collect();
            self.push(
                Diagnostic::new(Code::UnknownKey, format!("{what} has no key `{name}`"))
                    .at(key.span(), "unknown key")
                    .suggest(name, known.iter().copied())
                    .help(format!("it can have {}", shown.join(", "))),
            );
        }
    }

    pub(super) fn wrong_type(&mut self, value: &Spanned<DeValue<'_>>, needed: &str) {
        let found = match value.get_ref().type_str() {
            kind @ ("integer" | "array") => format!("an {kind}"),
            kind => format!("a {kind}"),
        };
        self.push(
            Diagnostic::new(Code::WrongType, format!("{needed} is needed here"))
                .at(value.span(), format!("this is {found}")),
        );
    }

    pub(super) fn push(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    pub(super) fn text(&self) -> &str {
        &self.source.text
    }
}

/// A table's entries as the file has them: `DeTable` sorts by key.
pub(super) fn in_file_order<'a, 'i>(
    table: &'a DeTable<'i>,
) -> Vec<(&'a Spanned<std::borrow::Cow<'i, str>>, &'a Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}
