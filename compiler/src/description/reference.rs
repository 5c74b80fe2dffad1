//! The documentation of the operations, from their table.

use super::signature::{Attribute, Default, Role, SIGNATURES, Signature};

/// Every operation with its values, weights and attributes, as a Markdown table for `docs/description.md`.
pub fn operations() -> String {
    let rows = SIGNATURES.iter().map(row);
    format!("| operation | reads | attributes | what |\n| --- | --- | --- | --- |\n{}", rows.collect::<String>())
}

fn row(signature: &Signature) -> String {
    let reads: Vec<String> = signature.values.iter().chain(signature.weights).map(role).collect();
    let attributes: Vec<String> = signature.attributes.iter().map(|it| attribute(signature, it)).collect();
    format!("| `{}` | {} | {} | {} |\n", signature.op.name(), reads.join("; "), attributes.join("; "), signature.doc)
}

fn role(role: &Role) -> String {
    format!("`{}`{}: {}", role.name, if role.required { "" } else { "?" }, role.doc)
}

fn attribute(signature: &Signature, attribute: &Attribute) -> String {
    let Attribute { name, kind, default, doc } = attribute;
    let (mark, rest) = match default {
        Default::Absent if signature.one_of.contains(name) => ("", format!("; one of {}", signature.one_of.join(", "))),
        Default::Required => ("", String::new()),
        Default::Absent => ("?", String::new()),
        Default::Bool(value) => ("?", format!("; {value}")),
        Default::Float(value) => ("?", format!("; {value:?}")),
        Default::Key(key) => ("?", format!("; the configuration's `{key}`")),
        Default::KeyWith(with, key) => ("?", format!("; with {with} the configuration's `{key}`")),
    };
    format!("`{name}`{mark}: {doc} ({}{rest})", kind.needs())
}
