//! The JSON Schema of descriptions, for editors, from the tables that the reader uses.

use serde_json::{Map, Value, json};

use super::read::{SCHEMA, TOP_KEYS};
use super::signature::{Default, INPUTS, Kind, SIGNATURES, Signature};

/// A name of a value, a key or an architecture.
const IDENTIFIER: &str = "^[A-Za-z_][A-Za-z0-9_]*$";

/// The architecture of a model of several parts, with the `model_type` of its language model.
const OF_SEVERAL_PARTS: &str = "^[A-Za-z_][A-Za-z0-9_]*[:][A-Za-z_][A-Za-z0-9_]*$";

/// What a weight's name is written with; `{layer}` and `{expert}` stand for numbers.
const WEIGHT: &str = "^[A-Za-z0-9._{}-]+$";

/// The JSON Schema (draft 7) of a description. It says which keys, operations and types there are; what an expression or a value means, only
/// [`super::Description::parse`] checks.
pub fn json_schema() -> Value {
    let section = |more: &[(&str, Value)], required: &[&str]| {
        let mut properties = Map::new();
        for (key, value) in more {
            properties.insert((*key).to_owned(), value.clone());
        }
        properties.insert(
            "weights".into(),
            described(json!({"$ref": "#/definitions/weight"}), "Put before each weight's name."),
        );
        properties.insert("ops".into(), json!({"type": "array", "items": {"$ref": "#/definitions/operation"}}));
        json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
    };
    let count = described(json!({"$ref": "#/definitions/expression"}), "How many layers there are.");
    let mut properties = Map::new();
    for key in TOP_KEYS {
        let value = match *key {
            "schema" => described(json!({"const": SCHEMA}), "The version of the language."),
            "name" => described(json!({"$ref": "#/definitions/identifier"}), "The family's name."),
            "serves" => described(
                json!({"type": "array", "items": {"anyOf": [
                    {"$ref": "#/definitions/identifier"},
                    {"type": "string", "pattern": OF_SEVERAL_PARTS},
                ]}}),
                "The `architectures` of config.json that it describes; of a model of several parts with the `model_type` of its text_config after a colon.",
            ),
            "config" => described(
                json!({"type": "object", "propertyNames": {"pattern": IDENTIFIER}}),
                "The preset: keys as config.json has them.",
            ),
            "defaults" => described(
                json!({
                    "type": "object",
                    "propertyNames": {"pattern": IDENTIFIER},
                    "additionalProperties": {"type": "object", "propertyNames": {"pattern": IDENTIFIER}},
                }),
                "What the configuration class of a `model_type` has where a config.json lacks the key.",
            ),
            "derive" => described(
                json!({
                    "type": "object",
                    "propertyNames": {"pattern": IDENTIFIER},
                    "additionalProperties": {"$ref": "#/definitions/expression"},
                }),
                "Keys that a config.json may lack, as expressions; they may use `layer`.",
            ),
            "expect" => described(json!({"type": "object"}), "The values of keys that the description honours."),
            "layer" => section(&[("count", count.clone())], &["count", "ops"]),
            _ => section(&[], &["ops"]),
        };
        properties.insert((*key).to_owned(), value);
    }
    let names: Vec<&str> = SIGNATURES.iter().map(|signature| signature.op.name()).collect();
    let cases: Vec<Value> = SIGNATURES
        .iter()
        .map(|signature| {
            let is = json!({"properties": {"op": {"const": signature.op.name()}}, "required": ["op"]});
            json!({"if": is, "then": operation(signature)})
        })
        .collect();
    let choice = |of: &str| {
        let one = json!({"$ref": format!("#/definitions/{of}")});
        json!({
            "type": "object",
            "properties": {"if": {"$ref": "#/definitions/expression"}, "then": one, "else": one},
            "required": ["if", "then"],
            "additionalProperties": false,
        })
    };
    let mut definitions = Map::new();
    definitions.insert("identifier".into(), json!({"type": "string", "pattern": IDENTIFIER}));
    definitions.insert("value".into(), json!({
        "type": "string", "pattern": IDENTIFIER, "description": format!("A value's name; {} are given.", INPUTS.join(" and ")),
    }));
    definitions.insert("weight".into(), json!({"type": "string", "pattern": WEIGHT}));
    let given = json!({"anyOf": [{"$ref": "#/definitions/weight"}, choice("given_weight")]});
    definitions.insert("given_weight".into(), given);
    let expression = json!({"type": ["string", "number", "boolean"], "description": "An expression over keys of the configuration, or a literal."});
    definitions.insert("expression".into(), expression);
    for (kind, name, literal) in KINDS {
        let literal: Value = serde_json::from_str(literal).expect("the table holds JSON");
        let given = json!({"anyOf": [literal, choice(name)], "description": kind.needs()});
        definitions.insert((*name).to_owned(), given);
    }
    definitions.insert(
        "operation".into(),
        json!({
            "type": "object",
            "properties": {"op": {"enum": names}},
            "required": ["op"],
            "allOf": cases,
        }),
    );
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A description of a language model, for fusec",
        "type": "object",
        "properties": properties,
        "required": ["schema", "name", "serves", "embed", "layer", "head"],
        "additionalProperties": false,
        "definitions": definitions,
    })
}

/// The definition of each kind of attribute: its name, and what may be given outright. Strings are expressions.
const KINDS: &[(Kind, &str, &str)] = &[
    (Kind::Count, "count", r#"{"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 1}]}"#),
    (Kind::Float, "number", r#"{"type": ["string", "number"]}"#),
    (Kind::Bool, "flag", r#"{"type": ["string", "boolean"]}"#),
    (Kind::Activation, "activation", r#"{"type": "string"}"#),
    (Kind::RopeScaling, "rope_scaling", r#"{"type": "string"}"#),
    (Kind::Part, "part", r#"{"type": "string"}"#),
];

fn operation(signature: &Signature) -> Value {
    let mut properties = Map::new();
    let mut required = vec!["op", "out"];
    properties.insert("op".into(), described(json!({"const": signature.op.name()}), signature.doc));
    properties.insert("out".into(), described(json!({"$ref": "#/definitions/value"}), "The value that it defines."));
    properties
        .insert("when".into(), described(json!({"$ref": "#/definitions/expression"}), "Where false, it is left out."));
    for role in signature.values {
        properties.insert(role.name.into(), described(json!({"$ref": "#/definitions/value"}), role.doc));
    }
    for role in signature.weights {
        properties.insert(role.name.into(), described(json!({"$ref": "#/definitions/given_weight"}), role.doc));
    }
    required
        .extend(signature.values.iter().chain(signature.weights).filter(|role| role.required).map(|role| role.name));
    for attribute in signature.attributes {
        let (_, name, _) =
            KINDS.iter().find(|(kind, _, _)| *kind == attribute.kind).expect("each kind has a definition");
        let value = json!({"$ref": format!("#/definitions/{name}")});
        properties.insert(attribute.name.into(), described(value, attribute.doc));
        if attribute.default == Default::Required {
            required.push(attribute.name);
        }
    }
    let mut then = json!({"properties": properties, "required": required, "additionalProperties": false});
    if !signature.one_of.is_empty() {
        then["oneOf"] = signature.one_of.iter().map(|name| json!({"required": [name]})).collect();
    }
    then
}

/// A schema with the text that an editor shows; after a reference it stands in an `allOf`, where draft 7 heeds both.
fn described(schema: Value, text: &str) -> Value {
    match schema {
        Value::Object(mut fields) if !fields.contains_key("$ref") => {
            fields.insert("description".into(), text.into());
            Value::Object(fields)
        }
        reference => json!({"allOf": [reference], "description": text}),
    }
}
