//! One operation of a description: a TOML table to a [`Line`], by the table of signatures.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostics::{Code, Diagnostic};
use super::document::{Given, Line, Place};
use super::expr::Expr;
use super::reader::{Reader, in_file_order};
use super::signature::{Default, INPUTS, Kind, OpName, SIGNATURES, Signature};
use super::value::Value;

/// Conditions nested deeper than this are refused.
const DEPTH: usize = 8;

pub(super) fn read(reader: &mut Reader, op: &Spanned<DeValue<'_>>, place: Place) -> Option<Line> {
    let Some(table) = op.get_ref().as_table() else {
        reader.wrong_type(op, "an operation, `{ out = …, op = … }`,");
        return None;
    };
    let span = op.span();
    let name_value = reader.needed(table, "op", span.clone(), "the operation")?;
    let name = reader.string(name_value, "the name of an operation")?;
    let Some(signature) = Signature::find(&name) else {
        let names: Vec<&str> = SIGNATURES.iter().map(|signature| signature.op.name()).collect();
        let diagnostic = Diagnostic::new(Code::UnknownOp, format!("there is no operation `{name}`"))
            .at(name_value.span(), "unknown operation")
            .suggest(&name, names.iter().copied());
        reader.push(match diagnostic.helps.is_empty() {
            true => diagnostic.help(format!("operations: {}", names.join(", "))),
            false => diagnostic,
        });
        return None;
    };
    let keys: Vec<&str> = signature.keys().collect();
    reader.known_keys(table, &keys, &format!("`{name}`"));
    let what = format!("`{name}`");
    let out = reader.needed(table, "out", span.clone(), &what).and_then(|value| out_name(reader, value));
    let values = values(reader, table, signature, &what, span.clone());
    let experts = signature.op == OpName::Experts;
    let mut weights = Vec::new();
    for role in signature.weights {
        let given = match role.required {
            true => reader.needed(table, role.name, span.clone(), &what),
            false => table.get(role.name),
        };
        if let Some(given) = given {
            let read = given_by(reader, given, DEPTH, &mut |reader, value| {
                Some((weight_name(reader, value, place, experts)?, value.span()))
            });
            weights.push((role.name, read?));
        }
    }
    let mut attributes = Vec::new();
    for attribute in signature.attributes {
        let given = match attribute.default {
            Default::Required => Some(reader.needed(table, attribute.name, span.clone(), &what)?),
            _ => table.get(attribute.name),
        };
        if let Some(given) = given {
            let kind = attribute.kind;
            let read = given_by(reader, given, DEPTH, &mut |reader, value| attribute_value(reader, value, kind));
            attributes.push((attribute.name, read?));
        }
    }
    one_of(reader, table, signature, span.clone());
    let when = match table.get("when") {
        Some(value) => Some(reader.expression(value)?),
        None => None,
    };
    Some(Line { signature, out: out?, values: values?, weights, attributes, when, span })
}

/// A weight's name: the characters that checkpoints use, `{layer}` inside `[layer]`, and once `{expert}` where `experts`.
pub(super) fn weight_name(
    reader: &mut Reader,
    value: &Spanned<DeValue<'_>>,
    place: Place,
    experts: bool,
) -> Option<String> {
    let name = reader.string(value, "a weight's name")?;
    let rest = if place == Place::Layer { name.replace("{layer}", "0") } else { name.clone() };
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let rest = if experts { rest.replacen("{expert}", "0", 1) } else { rest };
    if !rest.is_empty() && rest.chars().all(good) {
        return Some(name);
    }
    let diagnostic = Diagnostic::new(Code::BadName, "a weight's name has letters, digits, `.`, `_` and `-`");
    let help = match place {
        Place::Layer => {
            "`{layer}` stands for the index of the layer; choose between names with `{ if = …, then = …, else = … }`"
        }
        _ => "`{layer}` has a meaning only inside [layer]; choose between names with `{ if = …, then = …, else = … }`",
    };
    reader.push(diagnostic.at(value.span(), "").help(help));
    None
}

fn out_name(reader: &mut Reader, value: &Spanned<DeValue<'_>>) -> Option<(String, std::ops::Range<usize>)> {
    let name = reader.identifier(value, "a value's name")?;
    if INPUTS.contains(&name.as_str()) {
        reader.push(Diagnostic::new(Code::BadName, format!("`{name}` is given to the model")).at(value.span(), ""));
        return None;
    }
    Some((name, value.span()))
}

fn values(
    reader: &mut Reader,
    table: &DeTable<'_>,
    signature: &Signature,
    what: &str,
    span: std::ops::Range<usize>,
) -> Option<Vec<(&'static str, String, std::ops::Range<usize>)>> {
    let roles: Vec<Option<_>> = signature
        .values
        .iter()
        .filter(|role| role.required || table.contains_key(role.name))
        .map(|role| {
            let value = reader.needed(table, role.name, span.clone(), what)?;
            Some((role.name, reader.identifier(value, "a value's name")?, value.span()))
        })
        .collect();
    roles.into_iter().collect()
}

fn attribute_value(reader: &mut Reader, value: &Spanned<DeValue<'_>>, kind: Kind) -> Option<Expr> {
    let expr = reader.expression(value)?;
    let fits = match expr.constant() {
        Some(Value::Bool(_)) => kind == Kind::Bool,
        Some(Value::Int(number)) => kind == Kind::Float || (kind == Kind::Count && *number >= 1),
        Some(Value::Float(_)) => kind == Kind::Float,
        Some(Value::Str(_)) => kind == Kind::Activation,
        _ => true,
    };
    if !fits {
        let message = format!("{} is needed here", kind.needs());
        let raw = reader.text()[value.span()].to_owned();
        reader.push(Diagnostic::new(Code::WrongType, message).at(value.span(), format!("this is {raw}")));
        return None;
    }
    Some(expr)
}

/// `read` applied to the value, or to the branches of `{ if = …, then = …, else = … }`.
fn given_by<T>(
    reader: &mut Reader,
    value: &Spanned<DeValue<'_>>,
    depth: usize,
    read: &mut dyn FnMut(&mut Reader, &Spanned<DeValue<'_>>) -> Option<T>,
) -> Option<Given<T>> {
    let Some(table) = value.get_ref().as_table() else { return read(reader, value).map(Given::One) };
    if depth == 0 {
        reader.push(Diagnostic::new(Code::WrongType, "conditions are nested too deeply").at(value.span(), ""));
        return None;
    }
    reader.known_keys(table, &["if", "then", "else"], "a choice");
    let condition = reader.needed(table, "if", value.span(), "the choice").and_then(|value| reader.expression(value));
    let then = reader
        .needed(table, "then", value.span(), "the choice")
        .and_then(|value| given_by(reader, value, depth - 1, read));
    let otherwise = match table.get("else") {
        Some(value) => Some(Box::new(given_by(reader, value, depth - 1, read)?)),
        None => None,
    };
    Some(Given::Choice { condition: condition?, then: Box::new(then?), otherwise })
}

fn one_of(reader: &mut Reader, table: &DeTable<'_>, signature: &Signature, span: std::ops::Range<usize>) {
    if signature.one_of.is_empty() {
        return;
    }
    let given: Vec<_> = in_file_order(table)
        .into_iter()
        .filter(|(key, _)| signature.one_of.contains(&&**key.get_ref()))
        .map(|(key, _)| key.span())
        .collect();
    let names: Vec<_> = signature.one_of.iter().map(|name| format!("`{name}`")).collect();
    let name = signature.op.name();
    match &given[..] {
        [_] => {}
        [] => {
            let message = format!("`{name}` needs one of {}", names.join(" and "));
            reader.push(Diagnostic::new(Code::Conflict, message).at(span, ""));
        }
        [first, second, ..] => {
            let message = format!("`{name}` takes only one of {}", names.join(" and "));
            reader.push(Diagnostic::new(Code::Conflict, message).at(second.clone(), "").at(first.clone(), ""));
        }
    }
}
