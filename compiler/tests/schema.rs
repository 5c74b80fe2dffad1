//! The JSON Schema and the reader agree on every shipped description and on the broken ones of the tests.

use std::fs;
use std::path::{Path, PathBuf};

use fusec::description::json_schema;
use serde_json::Value;

/// Errors that a schema can see: keys, operations, types and names.
const STRUCTURAL: &[&str] = &["F0101", "F0102", "F0103", "F0104", "F0105", "F0106", "F0108"];

/// Cases whose structural code comes from what a value means, which only the reader knows.
const BEYOND: &[&str] = &[
    // The branch that a configuration chooses gives no weight.
    "no_branch",
    // What an expression yields has the wrong type, or is out of range.
    "wrong_type_condition",
    "wrong_type_value",
    "numbers_out_of_range",
    "bad_part",
    // Where `{layer}` and `{expert}` have a meaning.
    "expert_outside",
];

#[test]
fn the_committed_schema_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/schema.json");
    let text = serde_json::to_string_pretty(&json_schema()).expect("JSON") + "\n";
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, text).expect("the schema can be written");
    } else {
        assert!(fs::read_to_string(&path).unwrap_or_default() == text, "models/schema.json is old; BLESS=1 writes it");
    }
}

#[test]
fn the_schema_accepts_what_is_shipped() {
    let models = files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../models"), "toml");
    assert!(models.len() >= 3);
    for path in models {
        let text = fs::read_to_string(&path).expect("a description can be read");
        assert_eq!(validate(&text), Ok(()), "{}", path.display());
    }
}

#[test]
fn the_schema_and_the_reader_agree_on_the_broken_ones() {
    let (mut accepted, mut refused, mut wrong) = (0, 0, Vec::new());
    for path in files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/description"), "toml") {
        let text = fs::read_to_string(&path).expect("a case can be read");
        let expected = fs::read_to_string(path.with_extension("txt")).expect("each case has a result");
        let name = path.file_stem().expect("a file").to_string_lossy().into_owned();
        if expected.contains("error[F0001]") {
            assert!(toml::from_str::<Value>(&text).is_err(), "{name}");
            continue;
        }
        let structural = STRUCTURAL.iter().any(|code| expected.contains(&format!("error[{code}]")));
        match (validate(&text), structural && !BEYOND.contains(&name.as_str())) {
            (Ok(()), false) => accepted += 1,
            (Err(_), true) => refused += 1,
            (Ok(()), true) => wrong.push(format!("{name}: the reader refuses it, the schema does not\n{expected}")),
            (Err(error), false) => wrong.push(format!("{name}: the schema refuses it: {error}\n{expected}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(accepted > 15 && refused > 8, "{accepted} accepted, {refused} refused");
}

fn validate(text: &str) -> Result<(), String> {
    let value: Value = toml::from_str(text).map_err(|error| error.to_string())?;
    let schema = json_schema();
    check(&schema, &schema, &value, "")
}

/// Validates by the keywords that the schema uses; one that it does not know is a failure of the test.
fn check(root: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let fields = schema.as_object().ok_or_else(|| format!("{at}: a schema is an object"))?;
    let fail = |what: String| Err(format!("{at}: {what}"));
    let object = value.as_object();
    for (keyword, rule) in fields {
        let list = || rule.as_array().into_iter().flatten();
        let passes = |schema: &Value| check(root, schema, value, at);
        match keyword.as_str() {
            "$schema" | "title" | "description" | "definitions" | "then" => {}
            "$ref" => {
                let name =
                    rule.as_str().and_then(|text| text.strip_prefix("#/definitions/")).expect("a local reference");
                passes(&root["definitions"][name])?;
            }
            "type" => {
                let names: Vec<&str> = rule.as_str().into_iter().chain(list().filter_map(Value::as_str)).collect();
                let is = |name: &&str| match *name {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "number" => value.is_number(),
                    "integer" => value.is_i64() || value.is_u64(),
                    "boolean" => value.is_boolean(),
                    other => panic!("the type {other}"),
                };
                if !names.iter().any(is) {
                    return fail(format!("{value} is not {names:?}"));
                }
            }
            "const" if value != rule => return fail(format!("{value} is not {rule}")),
            "enum" if !list().any(|one| one == value) => return fail(format!("{value} is none of {rule}")),
            "minimum" if value.as_f64() < rule.as_f64() => return fail(format!("{value} is below {rule}")),
            "const" | "enum" | "minimum" => {}
            "pattern" => {
                let pattern = rule.as_str().expect("a pattern is text");
                if !value.as_str().is_none_or(|text| matches(pattern, text)) {
                    return fail(format!("{value} is not {pattern}"));
                }
            }
            "propertyNames" => {
                for key in object.into_iter().flat_map(|object| object.keys()) {
                    check(root, rule, &key.as_str().into(), at)?;
                }
            }
            "properties" => {
                for (key, value) in object.into_iter().flatten() {
                    if let Some(schema) = rule.get(key) {
                        check(root, schema, value, &format!("{at}/{key}"))?;
                    }
                }
            }
            "additionalProperties" => {
                for (key, value) in object.into_iter().flatten() {
                    if fields.get("properties").is_some_and(|known| known.get(key).is_some()) {
                        continue;
                    }
                    match rule {
                        Value::Bool(false) => return fail(format!("{key} is unknown")),
                        schema => check(root, schema, value, &format!("{at}/{key}"))?,
                    }
                }
            }
            "required" => {
                let lacks =
                    |key: &&Value| object.is_some_and(|object| !object.contains_key(key.as_str().expect("a key")));
                if let Some(key) = list().find(lacks) {
                    return fail(format!("{key} is missing"));
                }
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(root, rule, item, &format!("{at}/{index}"))?;
                }
            }
            "allOf" => list().try_for_each(passes)?,
            "anyOf" if !list().any(|schema| passes(schema).is_ok()) => {
                return fail(format!("{value} is none of these"));
            }
            "oneOf" if list().filter(|schema| passes(schema).is_ok()).count() != 1 => {
                return fail(format!("not one of {rule}"));
            }
            "anyOf" | "oneOf" => {}
            "if" if passes(rule).is_ok() => passes(&fields["then"])?,
            "if" => {}
            other => panic!("the schema has the keyword {other}, which this test does not know"),
        }
    }
    Ok(())
}

/// Whether a text is as the pattern says: `^`, classes of characters each with `*`, `+` or nothing after it, `$`.
fn matches(pattern: &str, text: &str) -> bool {
    let mut rest = pattern.strip_prefix("^[").and_then(|rest| rest.strip_suffix('$')).expect("a pattern of classes");
    let mut text = text;
    loop {
        let (class, after) = rest.split_once(']').expect("a class ends");
        let letters: Vec<char> = class.chars().collect();
        let ranged =
            |letter: char| letters.windows(3).any(|range| range[1] == '-' && (range[0]..=range[2]).contains(&letter));
        let held = |letter: char| letters.contains(&letter) || ranged(letter);
        let many = after.starts_with(['*', '+']);
        let long = text.chars().take_while(|letter| held(*letter)).take(if many { usize::MAX } else { 1 }).count();
        if long == 0 && !after.starts_with('*') {
            return false;
        }
        text = &text[long..];
        match after.trim_start_matches(['*', '+']).strip_prefix('[') {
            Some(next) => rest = next,
            None => return text.is_empty(),
        }
    }
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder is there");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    paths.sort();
    paths
}
