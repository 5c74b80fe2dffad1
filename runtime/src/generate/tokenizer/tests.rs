use super::*;
use crate::weights::gguf::{Metadata, Value as Stored};
use serde_json::json;

fn text(text: &str) -> Stored {
    Stored::Text(text.to_owned())
}

fn list(texts: &[&str]) -> Stored {
    Stored::List(texts.iter().map(|token| text(token)).collect())
}

/// A byte-level tokenizer of the 256 bytes, "he", "Ġhe", "12", "123", a control and a user-defined token.
fn byte_level(pre: &str) -> Result<Tokenizer> {
    let mut alphabet: Vec<char> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
    alphabet.sort();
    let mut tokens: Vec<String> = alphabet.iter().map(char::to_string).collect();
    tokens.extend(["he", "Ġhe", "12", "123", "<|im_end|>", "<tag>"].map(str::to_owned));
    let mut kinds = vec![Stored::Signed(1); tokens.len()];
    kinds[260] = Stored::Signed(3);
    kinds[261] = Stored::Signed(4);
    Tokenizer::from_gguf(&Metadata::from_pairs([
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text(pre)),
        ("tokenizer.ggml.tokens", list(&tokens.iter().map(String::as_str).collect::<Vec<_>>())),
        ("tokenizer.ggml.merges", list(&["h e", "Ġ he", "1 2", "12 3"])),
        ("tokenizer.ggml.token_type", Stored::List(kinds)),
        ("tokenizer.ggml.bos_token_id", Stored::Unsigned(260)),
    ]))
}

fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    tokenizer.encode(text, false).unwrap().into_iter().map(|id| tokenizer.id_to_token(id).unwrap()).collect()
}

#[test]
fn each_kind_cuts_digits_its_own_way() {
    assert_eq!(pieces(&byte_level("gpt-2").unwrap(), "he he1231"), ["he", "Ġhe", "123", "1"]);
    assert_eq!(pieces(&byte_level("smollm").unwrap(), "he he123"), ["he", "Ġhe", "1", "2", "3"]);
    assert_eq!(pieces(&byte_level("qwen2").unwrap(), "he 123"), ["he", "Ġ", "1", "2", "3"]);
    assert_eq!(pieces(&byte_level("llama-bpe").unwrap(), "he1231"), ["he", "123", "1"]);
    assert_eq!(pieces(&byte_level("tekken").unwrap(), "heHe 12"), ["he", "H", "e", "Ġ", "1", "2"]);
    assert_eq!(pieces(&byte_level("default").unwrap(), "he he1231"), ["he", "Ġhe", "123", "1"]);
    assert_eq!(pieces(&byte_level("olmo").unwrap(), "e\u{301}"), pieces(&byte_level("qwen2").unwrap(), "é"));
    let stablelm = byte_level("stablelm2").unwrap();
    assert_eq!(pieces(&stablelm, "he 12e\u{301}"), pieces(&byte_level("qwen2").unwrap(), "he 12é"));
    assert_eq!(pieces(&byte_level("mpt").unwrap(), "he he1231"), ["he", "Ġhe", "123", "1"]);
}

#[test]
fn a_cut_that_is_not_known_is_refused_by_name() {
    assert_eq!(
        byte_level("gpt-4o").err().unwrap().to_string(),
        "tokenizer.ggml.pre 'gpt-4o' is not known (known: gpt-2, gpt2, smollm, starcoder, refact, llama-bpe, llama3, llama-v3, dbrx, smaug-bpe, qwen2, \
         deepseek-r1-qwen, stablelm2, olmo, mpt, tekken, default); use the model's Hugging Face directory instead"
    );
    let silent = Metadata::from_pairs([
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.tokens", list(&["a"])),
        ("tokenizer.ggml.merges", list(&[])),
    ]);
    assert_eq!(
        Tokenizer::from_gguf(&silent).err().unwrap().to_string(),
        "tokenizer.ggml.pre is missing: the file does not say how its tokenizer cuts text; convert the model again, or use its Hugging Face directory instead"
    );
}

#[test]
fn added_tokens_are_whole_and_special_ones_can_be_skipped() {
    let tokenizer = byte_level("smollm").unwrap();
    let ids = tokenizer.encode("he<|im_end|><tag>", false).unwrap();
    assert_eq!(ids, [256, 260, 261]);
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "he<|im_end|><tag>");
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "he<tag>");
    assert_eq!(
        (tokenizer.bos(), tokenizer.eos().collect::<Vec<_>>(), tokenizer.is_eos(260)),
        (Some(260), vec![260], true)
    );
}

#[test]
fn bos_is_added_where_the_kind_or_the_file_says_so() {
    assert_eq!(byte_level("smollm").unwrap().encode("he", true).unwrap(), [256]);
    let llama = byte_level("llama-bpe").unwrap();
    assert_eq!((llama.encode("he", true).unwrap(), llama.encode("he", false).unwrap()), (vec![260, 256], vec![256]));
}

#[test]
fn a_stream_gives_whole_characters() {
    let tokenizer = byte_level("gpt-2").unwrap();
    let text = "hé 🦀!";
    let mut stream = tokenizer.decode_stream(true);
    let parts: Vec<_> = tokenizer.encode(text, false).unwrap().into_iter().map(|id| stream.step(id).unwrap()).collect();
    assert_eq!(parts, ["h", "", "é", " ", "", "", "", "🦀", "!"]);
    assert_eq!(stream.step(260).unwrap(), "", "a skipped token gives nothing");
    let crab = tokenizer.encode("🦀", false).unwrap();
    assert_eq!(stream.step(crab[0]).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{FFFD}", "what is incomplete at the end is not lost");
    let mut stream = tokenizer.decode_stream(true);
    let garbage: String = (0..20).map(|_| stream.step(crab[0]).unwrap()).collect();
    assert!(garbage.chars().count() >= 16, "bytes that are no text do not hold the stream up: {garbage:?}");
}

/// A SentencePiece tokenizer of the bytes and a few pieces, with further metadata.
fn sentence_piece(more: Vec<(&'static str, Stored)>) -> Result<Tokenizer> {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["▁", "a", "b", "c", "ab", "bc", "abc", "▁ab", "▁▁", "<b>"].map(str::to_owned));
    let mut scores = vec![0.0; 259];
    scores.extend([-10.0, -11.0, -12.0, -13.0, -2.0, -1.0, -3.0, -4.0, -1000.0, 0.0]);
    let mut kinds = vec![2, 3, 3];
    kinds.extend([6; 256]);
    kinds.extend([1, 1, 1, 1, 1, 1, 1, 1, 4, 4]);
    let mut pairs = vec![
        ("tokenizer.ggml.model", text("llama")),
        ("tokenizer.ggml.tokens", list(&tokens.iter().map(String::as_str).collect::<Vec<_>>())),
        ("tokenizer.ggml.scores", Stored::List(scores.into_iter().map(Stored::Float).collect())),
        ("tokenizer.ggml.token_type", Stored::List(kinds.into_iter().map(Stored::Signed).collect())),
        ("tokenizer.ggml.bos_token_id", Stored::Unsigned(1)),
        ("tokenizer.ggml.eos_token_id", Stored::Unsigned(2)),
    ];
    pairs.extend(more);
    Tokenizer::from_gguf(&Metadata::from_pairs(pairs))
}

#[test]
fn sentence_piece_merges_by_score_and_falls_back_to_bytes() {
    let tokenizer = sentence_piece(vec![]).unwrap();
    assert_eq!(pieces(&tokenizer, "ab abc"), ["▁ab", "▁", "abc"], "bc (-1) merges before ab (-2)");
    assert_eq!(pieces(&tokenizer, "é"), ["▁", "<0xC3>", "<0xA9>"]);
    assert_eq!(pieces(&tokenizer, "a<b>a"), ["▁", "a", "<b>", "▁", "a"], "a user-defined token is found first");
    let ids = tokenizer.encode("ab é</s>", true).unwrap();
    assert_eq!((ids[0], *ids.last().unwrap()), (1, 2));
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "ab é");
}

#[test]
fn the_space_before_a_text_can_be_left_out() {
    let prefix = |adds| sentence_piece(vec![("tokenizer.ggml.add_space_prefix", Stored::Bool(adds))]).unwrap();
    assert_eq!(pieces(&prefix(true), "ab"), ["▁ab"]);
    let none = prefix(false);
    assert_eq!(pieces(&none, "ab"), ["ab"]);
    assert_eq!(pieces(&none, "  ab"), ["▁▁", "ab"], "a run of spaces is one token, whatever its score");
    assert_eq!(none.decode(&none.encode("  ab", false).unwrap(), false).unwrap(), "  ab");
}

#[test]
fn the_special_tokens_of_phi_3_take_the_space_after_them() {
    let of = |architecture| sentence_piece(vec![("general.architecture", text(architecture))]).unwrap();
    assert_eq!(pieces(&of("phi3"), "<s> ab</s>\n ab"), ["<s>", "▁", "▁ab", "</s>", "▁ab"], "not of <s>");
    assert_eq!(pieces(&of("llama"), "ab</s>\n"), ["▁ab", "</s>", "▁", "<0x0A>"]);
}

#[test]
fn eos_is_added_where_the_file_says_so_but_not_to_a_prompt() {
    let tokenizer = sentence_piece(vec![("tokenizer.ggml.add_eos_token", Stored::Bool(true))]).unwrap();
    assert_eq!(tokenizer.encode("ab", true).unwrap(), [1, 266, 2]);
    assert_eq!(tokenizer.encode_prompt("ab").unwrap(), [1, 266]);
    assert_eq!(tokenizer.encode_prompt("ab</s>").unwrap(), [1, 266, 2], "an end that is written out stays");
    assert_eq!(tokenizer.encode("ab", false).unwrap(), [266]);
}

#[test]
fn what_rewrites_a_text_is_refused_by_name() {
    let error = |key, value| sentence_piece(vec![(key, value)]).err().unwrap().to_string();
    assert!(
        error("tokenizer.ggml.remove_extra_whitespaces", Stored::Bool(true))
            .starts_with("tokenizer.ggml.remove_extra_whitespaces is set: ")
    );
    let map = Stored::List(vec![Stored::Unsigned(1)]);
    assert!(
        error("tokenizer.ggml.precompiled_charsmap", map).starts_with("tokenizer.ggml.precompiled_charsmap is set: ")
    );
}

#[test]
fn a_stream_keeps_the_spaces_of_sentence_piece() {
    let tokenizer = sentence_piece(vec![]).unwrap();
    let streamed = |mut stream: DecodeStream<&Tokenizer>, ids: &[u32]| -> String {
        let text: String = ids.iter().map(|&id| stream.step(id).unwrap()).collect();
        text + &stream.finish().unwrap()
    };
    let (space, word) = (tokenizer.token_to_id("▁").unwrap(), tokenizer.token_to_id("▁ab").unwrap());
    assert_eq!(streamed(tokenizer.decode_stream(true), &[word, word]), "ab ab");
    assert_eq!(
        streamed(tokenizer.decode_stream(true), &[space, word]),
        " ab",
        "only the first space is the tokenizer's"
    );
    assert_eq!(
        streamed(tokenizer.decode_stream_after(&[1, word], true), &[word, 2, word]),
        " ab ab",
        "after a prompt none is"
    );
    let long = [word; 100];
    assert_eq!(streamed(tokenizer.decode_stream_after(&long, true), &[word]), " ab");
}

#[test]
fn broken_metadata_is_named() {
    let error = |pairs: Vec<(&'static str, Stored)>| {
        Tokenizer::from_gguf(&Metadata::from_pairs(pairs)).err().unwrap().to_string()
    };
    assert_eq!(error(vec![]), "the metadata has no tokenizer (tokenizer.ggml.model)");
    assert_eq!(
        error(vec![("tokenizer.ggml.model", text("gpt2"))]),
        "the metadata key tokenizer.ggml.tokens is missing"
    );
    let model = |kind| vec![("tokenizer.ggml.model", text(kind)), ("tokenizer.ggml.tokens", list(&["a", "b"]))];
    assert!(error(model("t5")).starts_with("tokenizers of model 't5' are not read from GGUF"));
    let mut merges = model("gpt2");
    merges.push(("tokenizer.ggml.pre", text("gpt-2")));
    merges.push(("tokenizer.ggml.merges", list(&["a b"])));
    assert_eq!(error(merges), "merge 0 'a b' needs the token 'ab', which is not in the vocabulary");
}

/// A tokenizer.json of whole words, with a template that adds <s> where `bos` says so, and a truncation that must not hold.
fn word_level(bos: bool) -> Vec<u8> {
    let single = if bos {
        json!([{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }])
    } else {
        Value::Null
    };
    let post = bos.then(|| {
        json!({ "type": "TemplateProcessing", "single": single, "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
                "special_tokens": { "<s>": { "id": "<s>", "ids": [0], "tokens": ["<s>"] } } })
    });
    let special = |id: u32, content: &str| json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true });
    serde_json::to_vec(&json!({
        "version": "1.0", "padding": null,
        "truncation": { "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0 },
        "added_tokens": [special(0, "<s>"), special(1, "</s>")],
        "normalizer": null, "pre_tokenizer": { "type": "Whitespace" }, "post_processor": post, "decoder": null,
        "model": { "type": "WordLevel", "vocab": { "<s>": 0, "</s>": 1, "call": 2, "me": 3, "?": 4 }, "unk_token": "?" },
    }))
    .unwrap()
}

#[test]
fn special_tokens_come_from_all_of_a_directorys_files() {
    let tokenizer_config = json!({ "bos_token": { "content": "<s>" }, "eos_token": "</s>" });
    let generation = json!({ "eos_token_id": [3, 4] });
    let tokenizer =
        Tokenizer::from_bytes(&word_level(true), &tokenizer_config, &[&generation, &json!({ "eos_token_id": 2 })])
            .unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos().collect::<Vec<_>>()), (Some(0), vec![1, 2, 3, 4]));
    assert_eq!(tokenizer.encode("call me call", true).unwrap(), [0, 2, 3, 2], "nothing is truncated");
    assert_eq!(tokenizer.encode("call me", false).unwrap(), [2, 3]);
    assert_eq!(tokenizer.vocabulary_size(), 5);
}

#[test]
fn add_bos_token_overrules_the_pipeline() {
    let with = |bos, adds: Option<bool>| {
        let config = json!({ "bos_token": "<s>", "add_bos_token": adds });
        Tokenizer::from_bytes(&word_level(bos), &config, &[]).unwrap().encode("me", true).unwrap()
    };
    assert_eq!((with(true, None), with(true, Some(true)), with(true, Some(false))), (vec![0, 3], vec![0, 3], vec![3]));
    assert_eq!((with(false, None), with(false, Some(true)), with(false, Some(false))), (vec![3], vec![0, 3], vec![3]));
}

#[test]
fn what_is_missing_is_said() {
    let error = Tokenizer::from_bytes(b"{", &Value::Null, &[]).err().unwrap().to_string();
    assert!(error.starts_with("not a usable tokenizer.json: "), "{error}");
    let error = Tokenizer::open(Path::new(env!("CARGO_MANIFEST_DIR"))).err().unwrap().to_string();
    assert!(error.contains("there is no tokenizer.json; save the model's tokenizer with transformers"), "{error}");
}
