//! Tokenizers out of GGUF files against the reference implementations: `tests/vocabularies` has a trimmed vocabulary of each kind and what its reference
//! makes of a page of mixed text. Whole vocabularies, too large to commit, are tried too where `tests/vocabularies/make.py --whole` has put them.

use std::fs;
use std::path::{Path, PathBuf};

use fuse_tests::root;
use fuserun::generate::chat::ChatTemplate;
use fuserun::generate::tokenizer::Tokenizer;
use serde_json::{Map, Value};

#[test]
fn gpt_2() {
    check("gpt-2");
}

#[test]
fn smollm() {
    check("smollm");
}

#[test]
fn qwen2() {
    check("qwen2");
}

#[test]
fn llama_bpe() {
    check("llama-bpe");
}

#[test]
fn tekken() {
    check("tekken");
}

#[test]
fn default() {
    check("default");
}

#[test]
fn llama_sentence_piece() {
    check("llama-spm");
}

#[test]
fn gemma_sentence_piece() {
    check("gemma");
}

#[test]
fn every_vocabulary_has_a_test() {
    let source = fs::read_to_string(root().join("tests/tests/vocabularies.rs")).unwrap();
    let mut names = Vec::new();
    for entry in fs::read_dir(root().join("tests/vocabularies")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "gguf") {
            names.push(path.file_stem().unwrap().to_str().unwrap().to_owned());
        }
    }
    assert!(names.len() >= 8, "{names:?}");
    for name in names {
        assert!(source.contains(&format!("check(\"{name}\")")), "tests/vocabularies/{name}.gguf is not tested");
    }
}

/// Compares the committed vocabulary of a name, and the whole one where it is there.
fn check(name: &str) {
    compare(&root().join("tests/vocabularies"), name);
    let whole = root().join(".cache/vocabularies");
    if whole.join(format!("{name}.gguf")).exists() {
        compare(&whole, name);
    }
}

fn compare(folder: &Path, name: &str) {
    let file = folder.join(format!("{name}.gguf"));
    let expected = Expected::read(&folder.join(format!("{name}.json")));
    let tokenizer = Tokenizer::open(&file).unwrap();
    let page = fs::read_to_string(root().join("tests/vocabularies/page.txt")).unwrap();

    let mut cases = vec![(page, &expected.page)];
    cases.extend(expected.cases.iter().map(|case| (case["text"].as_str().unwrap().to_owned(), case)));
    assert!(cases.len() >= 50, "{name}: {} cases", cases.len());
    let mut wrong = Vec::new();
    for (text, case) in &cases {
        let ids = ids(case);
        let found = tokenizer.encode(text, false).unwrap();
        if found != ids {
            wrong.push(format!(
                "{text:?}\n  encoded  {}\n  expected {}",
                spelled(&tokenizer, &found),
                spelled(&tokenizer, &ids)
            ));
        }
        let decoded = case.get("decoded").map_or(text.as_str(), |decoded| decoded.as_str().unwrap());
        let found = tokenizer.decode(&ids, false).unwrap();
        if found != decoded {
            wrong.push(format!("{text:?}\n  decoded  {found:?}\n  expected {decoded:?}"));
        }
        let streamed = streamed(&tokenizer, &ids);
        if streamed != decoded {
            wrong.push(format!("{text:?}\n  streamed {streamed:?}\n  expected {decoded:?}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{}: {} of {} cases differ\n{}",
        file.display(),
        wrong.len(),
        cases.len(),
        wrong[..wrong.len().min(12)].join("\n")
    );

    check_specials(&tokenizer, &expected, name);
    check_chat(&tokenizer, &file, expected.chat.as_ref());
}

/// bos is put where the kind has it put, once, and the two ends are known.
fn check_specials(tokenizer: &Tokenizer, expected: &Expected, name: &str) {
    let id = |token: &Option<String>| token.as_deref().map(|token| tokenizer.token_to_id(token).unwrap());
    assert_eq!(tokenizer.bos(), id(&expected.bos), "{name}: bos");
    if let Some(eos) = id(&expected.eos) {
        assert!(tokenizer.is_eos(eos), "{name}: eos");
    }
    let adds_bos = matches!(name, "llama-bpe" | "tekken" | "llama-spm" | "gemma");
    let plain = tokenizer.encode("Hi", false).unwrap();
    let mut special = tokenizer.encode("Hi", true).unwrap();
    assert_eq!(tokenizer.encode_prompt("Hi").unwrap(), special, "{name}: no kind here ends a text");
    if adds_bos {
        assert_eq!(special.remove(0), tokenizer.bos().unwrap(), "{name}: bos comes first");
    }
    assert_eq!(special, plain, "{name}");
}

/// The template of the metadata, rendered and encoded, against jinja2's rendering.
fn check_chat(tokenizer: &Tokenizer, file: &Path, chat: Option<&Value>) {
    let template = ChatTemplate::open(file).unwrap();
    let Some(chat) = chat else {
        assert!(template.is_none(), "{}: a template out of nothing", file.display());
        return;
    };
    let rendered = template.unwrap().render_json(chat["messages"].clone(), true, Map::new()).unwrap();
    assert_eq!(rendered, chat["text"].as_str().unwrap(), "{}", file.display());
    assert_eq!(tokenizer.encode(&rendered, false).unwrap(), ids(chat), "{}: {rendered:?}", file.display());
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.decode_stream(false);
    let mut text: String = ids.iter().map(|&id| stream.step(id).unwrap()).collect();
    text.push_str(&stream.finish().unwrap());
    text
}

fn spelled(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let tokens: Vec<String> = ids.iter().map(|&id| tokenizer.id_to_token(id).unwrap_or(format!("({id})"))).collect();
    format!("{tokens:?}")
}

fn ids(case: &Value) -> Vec<u32> {
    case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// What a reference gave.
struct Expected {
    bos: Option<String>,
    eos: Option<String>,
    page: Value,
    cases: Vec<Value>,
    chat: Option<Value>,
}

impl Expected {
    fn read(path: &PathBuf) -> Expected {
        let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let json: Value = serde_json::from_slice(&bytes).unwrap();
        let text = |key: &str| json[key].as_str().map(str::to_owned);
        Expected {
            bos: text("bos"),
            eos: text("eos"),
            page: json["page"].clone(),
            cases: json["cases"].as_array().unwrap().clone(),
            chat: json.get("chat").cloned(),
        }
    }
}
