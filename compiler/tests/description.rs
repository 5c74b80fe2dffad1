//! Whole rendered results of reading and resolving descriptions, one file per case; `BLESS=1` rewrites the expected texts.
//!
//! `description/*.toml` is a description; its first line may name a configuration beside it: `# config: NAME.json`. `description/configs/*.json` is
//! a config.json that a shipped description serves. What is expected stands beside each in a `.txt`.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use fusec::description::{
    Call, Description, Diagnostics, Resolved, SIGNATURES, architectures, find_for, operations, shipped,
};

#[test]
fn descriptions_give_these_results() {
    let cases = files(&folder(), "toml");
    assert!(cases.len() >= 20, "the cases are there");
    for_each_case(cases, |path| {
        let text = fs::read_to_string(path).expect("a case can be read");
        let config = text.lines().next().and_then(|line| line.strip_prefix("# config: "));
        let config = config.map(|name| json(&folder().join(name)));
        let name = path.file_name().expect("a file").to_string_lossy();
        shown(Description::parse(&text, &name).and_then(|description| description.resolve(config.as_ref())))
    });
}

#[test]
fn shipped_descriptions_serve_these_configurations() {
    let cases = files(&folder().join("configs"), "json");
    assert!(cases.len() >= 8, "the cases are there");
    for_each_case(cases, |path| {
        let config = json(path);
        let (name, text) = find_for(&architectures(&config)).expect("a shipped description serves it");
        shown(Description::parse(text, name).and_then(|description| description.resolve(Some(&config))))
    });
}

#[test]
fn shipped_descriptions_resolve_with_their_presets() {
    for (name, text) in shipped() {
        let description = Description::parse(text, name).unwrap_or_else(|errors| panic!("{errors}"));
        let resolved = description.resolve(None).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(resolved.name, name.trim_end_matches(".toml"));
        assert!(resolved.unread.is_empty());
    }
}

#[test]
fn no_input_makes_the_reader_panic() {
    // Each shipped file, cut anywhere and with any one line left out or doubled.
    for (name, text) in shipped() {
        for end in (0..text.len()).step_by(7).filter(|end| text.is_char_boundary(*end)) {
            let _ = Description::parse(&text[..end], name).map(|description| description.resolve(None).is_ok());
        }
        let lines: Vec<&str> = text.lines().collect();
        for changed in 0..lines.len() {
            let mut fewer = lines.clone();
            let line = fewer.remove(changed);
            let mut more = lines.clone();
            more.insert(changed, line);
            for text in [fewer.join("\n"), more.join("\n")] {
                if let Err(errors) = Description::parse(&text, name).and_then(|description| description.resolve(None)) {
                    assert!(!errors.list().is_empty() && !errors.to_string().is_empty());
                }
            }
        }
    }
}

#[test]
fn every_signature_is_found_by_name() {
    for signature in SIGNATURES {
        let found = fusec::description::Signature::find(signature.op.name()).expect("it is in the table");
        assert_eq!(found.op, signature.op);
    }
}

fn shown(result: Result<Resolved, Diagnostics>) -> String {
    match result.and_then(|resolved| resolved.refuse_unread().map(|()| resolved)) {
        Ok(resolved) => summary(&resolved),
        Err(errors) => errors.to_string(),
    }
}

/// Facts, and the calls outside layers, of the first layer, and of each layer that differs from the one before it.
fn summary(resolved: &Resolved) -> String {
    let mut text = format!("{}\n{:#?}\n", resolved.name, resolved.facts);
    let line = |call: &Call| {
        let name = |name: &String| match call.layer {
            Some(layer) => name.replace(&format!(".{layer}."), ".{layer}."),
            None => name.clone(),
        };
        let values = call.values.iter().map(|(role, value)| format!(" {role}={value}"));
        let weights = call.weights.iter().map(|(role, weight)| format!(" {role}={}", name(weight)));
        let attributes = call.attributes.iter().map(|(key, value)| format!(" {key}={value:?}"));
        let all: String = values.chain(weights).chain(attributes).collect();
        format!("  {} = {}{all}\n", call.outs.join(", "), call.op.name())
    };
    let of = |layer: Option<usize>| {
        let calls = resolved.calls.iter().filter(|call| call.layer == layer);
        calls.map(line).collect::<String>()
    };
    writeln!(text, "outside layers\n{}", of(None).trim_end()).expect("writing to a string");
    let mut last = String::new();
    for layer in 0..resolved.facts.num_layers {
        let calls = of(Some(layer));
        if calls != last {
            writeln!(text, "from layer {layer}\n{}", calls.trim_end()).expect("writing to a string");
        }
        last = calls;
    }
    text
}

#[test]
fn the_reference_has_the_table_of_operations() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/description.md");
    let text = fs::read_to_string(&path).expect("the reference is there");
    let (before, rest) = text.split_once("<!-- operations").expect("a mark before the table");
    let (mark, rest) = rest.split_once("-->\n").expect("the mark ends");
    let (_, after) = rest.split_once("<!-- end of operations").expect("a mark after the table");
    let whole = format!("{before}<!-- operations{mark}-->\n{}<!-- end of operations{after}", operations());
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, whole).expect("the reference can be written");
    } else {
        assert!(text == whole, "docs/description.md is not what the table says; BLESS=1 writes it");
    }
}

fn for_each_case(cases: Vec<PathBuf>, run: impl Fn(&Path) -> String) {
    let mut wrong = Vec::new();
    for path in cases {
        let got = format!("{}\n", run(&path).trim_end());
        let expected_path = path.with_extension("txt");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&expected_path, &got).expect("an expected text can be written");
        } else if fs::read_to_string(&expected_path).unwrap_or_default() != got {
            wrong.push(format!("== {} gives\n{got}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}\nBLESS=1 accepts these results", wrong.join("\n"));
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/description")
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder of cases");
    let paths = entries.map(|entry| entry.expect("an entry of the folder").path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    paths.sort();
    paths
}

fn json(path: &Path) -> serde_json::Value {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
