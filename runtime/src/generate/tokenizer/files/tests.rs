use super::super::Tokenizer;
use super::*;
use crate::generate::chat::ChatTemplate;

/// A folder with a tokenizer of the letters a to d and of `<s>` with the id 4, and files beside it.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str, files: &[(&str, Value)]) -> Folder {
        let path = std::env::temp_dir().join(format!("fuse-tokenizer-files-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let added = json!({ "id": 4, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true });
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [added], "normalizer": null,
            "pre_tokenizer": { "type": "Split", "pattern": { "Regex": "." }, "behavior": "Isolated", "invert": false },
            "post_processor": null, "decoder": { "type": "Fuse" },
            "model": { "type": "WordLevel", "vocab": { "a": 0, "b": 1, "c": 2, "d": 3, "<s>": 4, "</s>": 5 }, "unk_token": "a" },
        });
        std::fs::write(path.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        for (name, value) in files {
            std::fs::write(path.join(name), value.to_string()).unwrap();
        }
        Folder(path)
    }

    fn open(&self) -> Tokenizer {
        Tokenizer::open(&self.0).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

#[test]
fn names_only_in_special_tokens_map_hold() {
    let map = json!({ "bos_token": "<s>", "eos_token": { "content": "</s>", "lstrip": false }, "pad_token": "<pad>" });
    let folder = Folder::new("names", &[("special_tokens_map.json", map)]);
    let tokenizer = folder.open();
    assert_eq!((tokenizer.bos(), tokenizer.eos().collect::<Vec<_>>()), (Some(4), vec![5]));
    assert_eq!(tokenizer.token_to_id("<pad>"), Some(6), "a name without an id has the next");
    assert_eq!(
        tokenizer.encode("a</s>b", false).unwrap(),
        [0, 5, 1],
        "a special token of the vocabulary is found whole"
    );
    assert_eq!(tokenizer.decode(&[0, 5, 1], true).unwrap(), "ab");
    std::fs::write(folder.0.join("chat_template.jinja"), "{{ bos_token }}|{{ eos_token }}").unwrap();
    let chat = ChatTemplate::open(&folder.0).unwrap().unwrap();
    let text = chat.render(&[], false).unwrap();
    assert_eq!((text.as_str(), tokenizer.encode(&text, false).unwrap()[0]), ("<s>|</s>", 4));
}

#[test]
fn tokens_only_in_added_tokens_decoder_are_added() {
    let decoder = json!({
        "4": { "content": "<s>", "special": true, "normalized": false, "lstrip": false, "rstrip": false, "single_word": false },
        "6": { "content": "<|tool|>", "special": true },
        "7": { "content": "<think>", "special": false },
    });
    let tokenizer =
        Folder::new("decoder", &[("tokenizer_config.json", json!({ "added_tokens_decoder": decoder }))]).open();
    let ids = tokenizer.encode("a<|tool|><think>b", false).unwrap();
    assert_eq!(ids, [0, 6, 7, 1]);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "a<think>b", "only the special one is left out");
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "a<|tool|><think>b");
}

#[test]
fn added_tokens_json_is_added_where_the_configuration_lists_none() {
    let added = ("added_tokens.json", json!({ "<x>": 7, "<y>": 6, "<other>": 4 }));
    let map = ("special_tokens_map.json", json!({ "additional_special_tokens": ["<y>", { "content": "<z>" }] }));
    let tokenizer = Folder::new("added", &[added.clone(), map.clone()]).open();
    assert_eq!(tokenizer.encode("a<y><x>b<s>", false).unwrap(), [0, 6, 7, 1, 4]);
    assert_eq!(tokenizer.token_to_id("<z>"), Some(8));
    assert_eq!(tokenizer.token_to_id("<other>"), None, "the id is another token's in tokenizer.json");
    assert_eq!((tokenizer.is_special(6), tokenizer.is_special(7)), (true, false));
    let config = ("tokenizer_config.json", json!({ "added_tokens_decoder": {}, "eos_token": "d" }));
    let tokenizer = Folder::new("listed", &[added, map, config]).open();
    assert_eq!((tokenizer.token_to_id("<x>"), tokenizer.token_to_id("<z>")), (None, None), "as in transformers");
    assert!(tokenizer.is_eos(3));
}

#[test]
fn special_tokens_map_overrides_a_configuration_that_lists_no_tokens() {
    let config = json!({ "eos_token": "a", "bos_token": "b", "additional_special_tokens": ["c"] });
    let map = json!({ "eos_token": "d", "additional_special_tokens": ["c", "d"] });
    let files = [("tokenizer_config.json", config), ("special_tokens_map.json", map)];
    let folder = Folder::new("overrides", &files);
    let tokenizer = folder.open();
    assert_eq!((tokenizer.bos(), tokenizer.eos().collect::<Vec<_>>()), (Some(1), vec![3]));
    assert_eq!(read_tokenizer_config(&folder.0).unwrap()["additional_special_tokens"], json!(["c", "d"]));
}

#[test]
fn templates_know_every_named_token() {
    let config = json!({
        "bos_token": { "content": "<s>" }, "eos_token": null, "mask_token": "c", "additional_special_tokens": ["a", { "content": "b" }],
        "extra_special_tokens": { "image_token": "d" },
    });
    let names =
        json!({ "bos_token": "<s>", "mask_token": "c", "image_token": "d", "additional_special_tokens": ["a", "b"] });
    assert_eq!(Value::Object(template_names(&config)), names);
    assert_eq!(special_texts(&config), ["<s>", "c", "a", "b", "d"]);
}

#[test]
fn an_id_that_another_token_has_is_not_taken_from_it() {
    let decoder = json!({ "4": { "content": "<y>", "special": true }, "9": { "content": "<z>" } });
    let tokenizer =
        Folder::new("conflict", &[("tokenizer_config.json", json!({ "added_tokens_decoder": decoder }))]).open();
    assert_eq!(tokenizer.encode("<s><y><z>", false).unwrap(), [4, 6, 7]);
}

#[test]
fn broken_files_are_named() {
    let said = |name: &str, value: Value| {
        let folder = Folder::new("broken", &[(name, value)]);
        let error = Tokenizer::open(&folder.0).err().unwrap();
        format!("{error:#}").replace(&folder.0.display().to_string(), "DIR")
    };
    assert_eq!(said("special_tokens_map.json", json!([])), "DIR/special_tokens_map.json: not a JSON object");
    let config = |decoder: Value| json!({ "added_tokens_decoder": decoder });
    assert_eq!(
        said("tokenizer_config.json", config(json!([]))),
        "DIR/tokenizer.json: added_tokens_decoder of tokenizer_config.json is not an object of tokens by id"
    );
    assert_eq!(
        said("tokenizer_config.json", config(json!({ "x": "a" }))),
        "DIR/tokenizer.json: added_tokens_decoder of tokenizer_config.json has \"x\", which is no id of a token"
    );
    assert_eq!(
        said("tokenizer_config.json", config(json!({ "6": {} }))),
        "DIR/tokenizer.json: added_tokens_decoder of tokenizer_config.json has no content for the token 6"
    );
}
