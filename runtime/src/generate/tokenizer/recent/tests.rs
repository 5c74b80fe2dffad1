use super::super::Tokenizer;
use super::*;
use serde_json::{Value, json};
use std::cell::Cell;
use std::path::Path;

/// What texts are made of at random, beside the tokenizer's own special tokens.
const CHUNKS: &[&str] = &[
    "the",
    "The",
    "a",
    " ",
    " ",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    " sea",
    "whale",
    "I'll",
    "it's",
    "'S",
    "DON'T",
    "camelCase",
    "12",
    "1234567",
    ".",
    ",",
    "!?",
    "::",
    "//",
    "/",
    "<",
    "<|",
    "|>",
    "</",
    "{\"key\": 1}",
    "é",
    "e\u{301}",
    "\u{301}",
    "日本語",
    "🦀",
    "👩‍👩‍👧",
    "\u{212a}",
    "\u{a0}",
    "\u{3000}",
    "\u{2581}",
    "ſ",
    "ﬁ",
    "שלום",
    "١٢",
    "\u{200b}",
    "_x",
    "x_",
    "\u{0}",
];

/// Numbers that are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    fn text(&mut self, special: &[String], bytes: usize) -> String {
        let mut text = String::new();
        while text.len() < bytes {
            match self.below(12) {
                0 if !special.is_empty() => text.push_str(&special[self.below(special.len())]),
                _ => text.push_str(CHUNKS[self.below(CHUNKS.len())]),
            }
        }
        text
    }
}

/// Added tokens, those first that texts may be cut before.
fn special(tokenizer: &Tokenizer) -> Vec<String> {
    let added = tokenizer.inner.get_added_tokens_decoder();
    let mut texts: Vec<String> = added.into_values().map(|token| token.content).collect();
    texts.sort_by_key(|text| (!tokenizer.cuts.tokens.contains(text), text.clone()));
    texts.truncate(12);
    texts
}

/// A tokenizer.json of words and characters, with these added tokens, and with these parts instead.
fn small(added: &[Value], parts: Value) -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    for token in
        ["[UNK]", "▁", "a", "b", "x", "t", "h", "e", "th", "the", "▁the", "Ġ", "Ġthe", "s", "<", ">", "|", "<x"]
    {
        vocab.insert(token.to_owned(), json!(vocab.len()));
    }
    let ids = 40..;
    let added: Vec<Value> = added
        .iter()
        .zip(ids)
        .map(|(token, id)| {
            let mut whole = json!({"id": id, "special": true, "normalized": false, "lstrip": false, "rstrip": false, "single_word": false});
            whole.as_object_mut().unwrap().extend(token.as_object().unwrap().clone());
            whole
        })
        .collect();
    let model = json!({"type": "BPE", "unk_token": "[UNK]", "vocab": vocab, "merges": ["t h", "th e", "▁ the", "Ġ the", "< x"]});
    let mut whole = json!({"version": "1.0", "added_tokens": added, "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": model});
    whole.as_object_mut().unwrap().extend(parts.as_object().unwrap().clone());
    Tokenizer::from_bytes(whole.to_string().as_bytes(), &Value::Null, &[]).unwrap()
}

fn byte_level() -> Value {
    json!({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}})
}

/// Every vocabulary of the tests, the demo model's, and small ones with what vocabularies out of files do not have.
fn all() -> Vec<(String, Tokenizer)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vocabularies");
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "gguf") {
            all.push((path.display().to_string(), Tokenizer::open(&path).unwrap()));
        }
    }
    assert!(all.len() >= 8, "{}", all.len());
    all.push(("the demo model".into(), crate::demo::tokenizer().unwrap()));
    let mark = json!({"content": "<x>"});
    let metaspace = |scheme: &str| json!({"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true}});
    let tokens = [mark.clone(), json!({"content": "<b>", "rstrip": true}), json!({"content": "<a>", "lstrip": true})];
    for scheme in ["first", "always", "never"] {
        all.push((format!("metaspace {scheme}"), small(&tokens, metaspace(scheme))));
    }
    let around = json!({"post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<b>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<x>": {"id": "<x>", "ids": [40], "tokens": ["<x>"]}, "<b>": {"id": "<b>", "ids": [41], "tokens": ["<b>"]}},
    }});
    let mut parts = byte_level();
    parts.as_object_mut().unwrap().extend(around.as_object().unwrap().clone());
    let wrapped = small(&tokens, parts);
    assert_eq!(wrapped.around, Some((vec![40], vec![41])));
    all.push(("a template around texts".into(), wrapped));
    for token in TROUBLE {
        let added = [mark.clone(), serde_json::from_str(token).unwrap()];
        all.push(((*token).into(), small(&added, byte_level())));
    }
    all
}

/// Added tokens that make some places no cuts.
const TROUBLE: &[&str] = &[
    r#"{"content": "the a"}"#,
    r#"{"content": "the", "rstrip": true}"#,
    r#"{"content": " the", "single_word": true}"#,
    r#"{"content": "the a", "normalized": true, "special": false}"#,
    r#"{"content": "the<x"}"#,
    r#"{"content": "<x>the", "lstrip": true}"#,
    r#"{"content": "the", "single_word": true}"#,
];

#[test]
fn ids_are_those_of_the_whole_text() {
    for (name, tokenizer) in all() {
        let mut numbers = Numbers(7);
        let special = special(&tokenizer);
        let mut texts = vec![String::new()];
        let mut long = 0;
        for _ in 0..40 {
            // Most go on with a part of an earlier one.
            let earlier: &str = &texts[numbers.below(texts.len())];
            let mut begin = earlier.len().saturating_sub(numbers.below(700));
            while !earlier.is_char_boundary(begin) {
                begin -= 1;
            }
            let bytes = numbers.below(1500);
            let text = format!("{}{}", &earlier[..begin], numbers.text(&special, bytes));
            let whole = |special| tokenizer.encode_whole(&text, special).ok();
            assert!(tokenizer.encode(&text, false).ok() == whole(false), "{name}: {text:?}");
            if tokenizer.pipeline_specials {
                assert!(tokenizer.encode(&text, true).ok() == whole(true), "{name}: {text:?}");
            }
            long += usize::from(text.len() >= SHORTEST);
            texts.push(text);
        }
        assert!(long > 12, "{name}: {long} texts are long");
    }
}

#[test]
fn every_cut_leaves_the_ids_as_they_are() {
    let mut cut = Vec::new();
    for (name, tokenizer) in all() {
        let mut numbers = Numbers(11);
        let special = special(&tokenizer);
        let mut count = 0;
        for _ in 0..150 {
            let text = numbers.text(&special, 60);
            let whole = tokenizer.encode_whole(&text, false).unwrap();
            for at in (0..=text.len()).filter(|&at| tokenizer.cuts.is_cut(&text, at)) {
                let parts = [&text[..at], &text[at..]].map(|part| tokenizer.encode_whole(part, false).unwrap());
                assert_eq!(parts.concat(), whole, "{name}: {text:?} at {at}");
                count += 1;
            }
        }
        cut.push((count, name));
    }
    cut.sort();
    let none: Vec<&str> = cut.iter().filter(|(count, _)| *count < 50).map(|(_, name)| &name[..]).collect();
    assert!(none.is_empty(), "few cuts: {none:?}");
}

#[test]
fn what_reaches_over_a_place_makes_it_no_cut() {
    let cuts =
        |token: &str| small(&[json!({"content": "<x>"}), serde_json::from_str(token).unwrap()], byte_level()).cuts;
    for (token, words, special) in [
        (TROUBLE[0], false, true),
        (TROUBLE[1], false, true),
        (TROUBLE[2], false, true),
        (TROUBLE[3], false, true),
        (TROUBLE[4], true, false),
        (TROUBLE[5], true, false),
        (TROUBLE[6], true, true),
    ] {
        let cuts = cuts(token);
        assert_eq!((cuts.is_cut("the a", 3), cuts.is_cut("the<x>", 3)), (words, special), "{token}");
        assert!(!cuts.is_cut("the  a", 4) && !cuts.is_cut("1 a", 1) && !cuts.is_cut("ab", 1) && !cuts.is_cut("a", 1));
    }
    let mut prefixed = byte_level();
    prefixed["pre_tokenizer"]["add_prefix_space"] = json!(true);
    let lower = json!({"normalizer": {"type": "Lowercase"}, "pre_tokenizer": byte_level()["pre_tokenizer"]});
    let split = |pattern: &str, behavior: &str| {
        let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": false});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes]}})
    };
    for (parts, words) in [
        (prefixed, false),
        (lower, false),
        (json!({}), false),
        (split(r"\p{N}| ?\p{L}+|\s+", "Isolated"), true),
        (split(r"\p{N}| ?\p{L}+|\s+", "Removed"), false),
        (split(r"\p{N}|\s+", "Isolated"), false),
        (split(r"\p{L}+ ?|\s+", "Isolated"), false),
        (split(r"(?<=a)b| ?\p{L}+", "Isolated"), false),
    ] {
        assert_eq!(small(&[], parts.clone()).cuts.is_cut("the a", 3), words, "{parts}");
    }
}

/// The bytes of each text that are encoded, with the tokenizer of a name, and whether its ids are right.
fn encoded(tokenizer: &Tokenizer, texts: &[String]) -> Vec<usize> {
    let recent = Recent::default();
    let count = |text: &String| {
        let bytes = Cell::new(0);
        let ids = recent.encode(text, &tokenizer.cuts, |part| {
            bytes.set(bytes.get() + part.len());
            tokenizer.encode_whole(part, false)
        });
        assert_eq!(ids.unwrap(), tokenizer.encode_whole(text, false).unwrap());
        bytes.get()
    };
    texts.iter().map(count).collect()
}

#[test]
fn a_turn_costs_what_is_new_in_it() {
    for (name, tokenizer) in all().into_iter().take(9) {
        let special =
            if tokenizer.cuts.next("the a", 1).is_some() { String::new() } else { tokenizer.cuts.tokens[0].clone() };
        let turn =
            |index: usize| format!("{special}It was a cold, bleak night of the year 18{index}, and the sea rose.\n");
        let first: String = (0..150).map(turn).collect();
        let second = format!("{first}{special}Call me\n{}", turn(1));
        let other = format!("{}{}", turn(77), &first);
        let back = format!("{}{special}Then he left.", &first[..first.len() / 2]);
        let texts = [first.clone(), first.clone(), second.clone(), other.clone(), back, second.clone()];
        let bytes = encoded(&tokenizer, &texts);
        assert_eq!((bytes[0], bytes[1], bytes[3], bytes[5]), (first.len(), 0, other.len(), 0), "{name}");
        let most = 2 * PART + 200;
        assert!(bytes[2] <= most && bytes[4] <= most, "{name}: {bytes:?} with {most} at most");
    }
}

#[test]
fn what_is_kept_is_bounded() {
    let tokenizer = crate::demo::tokenizer().unwrap();
    let recent = Recent::default();
    // Ids cost nothing here.
    let take = |text: &str| recent.encode(text, &tokenizer.cuts, |part| Ok(vec![0; part.len() / 4])).unwrap();
    for index in 0..2 * TEXTS {
        take(&format!("{index} {}", "word ".repeat(300)));
    }
    assert_eq!(recent.locked().len(), TEXTS);
    for index in 0..8 {
        take(&format!("{index} {}", "word ".repeat(KEPT / 20)));
    }
    let kept = |recent: &Recent| recent.locked().iter().map(Encoded::bytes).sum::<usize>();
    assert!(kept(&recent) <= KEPT && kept(&recent) > KEPT / 2, "{}", kept(&recent));
    take(&"word ".repeat(KEPT / 4));
    assert!(kept(&recent) <= KEPT && !recent.locked().is_empty());
}
