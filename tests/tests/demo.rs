//! The demo model inside the binary writes recognisable English.

use std::collections::BTreeSet;

use fuse_tests::{fuserun, root};
use fuserun::backend::{Device, LoadOptions};
use fuserun::demo;
use fuserun::model::{ModelName, OpenModel};
use serde_json::Value;

fn json(seed: &str) -> Value {
    let arguments = ["generate", "--device", "cpu", "Call me", "-n", "128", "--ignore-eos", "--json", "--seed", seed];
    let done = fuserun(&arguments, "");
    assert_eq!(done.code, 0, "{}", done.stderr);
    serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {}", done.stdout))
}

#[test]
fn the_demo_model_writes_english() {
    let vocabulary = words_of_the_demo();
    let (mut known, mut all) = (0, 0);
    for seed in ["0", "1", "2", "3"] {
        let object = json(seed);
        let text = object["text"].as_str().unwrap().to_lowercase();
        let words = text.split(|letter: char| !letter.is_alphabetic()).filter(|word| word.len() > 1);
        for word in words {
            all += 1;
            known += usize::from(vocabulary.contains(word));
        }
    }
    println!("{known} of {all} words are common ones");
    assert!(all > 200 && known * 4 >= all * 3, "{known} of {all} words are common ones");
}

/// The words that have a token of their own, in small letters: those that are common in what the model read.
fn words_of_the_demo() -> BTreeSet<String> {
    let tokenizer = demo::tokenizer().unwrap();
    let word = |id: u32| {
        let text = tokenizer.decode(&[id], true).unwrap();
        let word = text.strip_prefix(' ')?.to_lowercase();
        word.chars().all(char::is_alphabetic).then_some(word)
    };
    (0..tokenizer.vocabulary_size() as u32).filter_map(word).filter(|word| word.len() > 1).collect()
}

/// A chapter's beginning that the model was not trained on, in windows of its context, as `models/demo/train.py` measures.
#[test]
fn the_demo_model_knows_its_book() {
    let record = std::fs::read_to_string(root().join("models/demo/training.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    let recorded = record["held_out_nats_a_token"]["moby-dick"].as_f64().unwrap();
    let text = std::fs::read_to_string(root().join("tests/texts/moby-dick-held-out.txt")).unwrap();
    let tokens = demo::tokenizer().unwrap().encode(text.trim_end(), true).unwrap();
    let model = OpenModel::open(&ModelName::default()).unwrap();
    let options = LoadOptions { context: 1024, sequences: 1, batches: vec![1], threads: Some(2) };
    let mut backend = model.load(&Device::Cpu, &options).unwrap();
    let (mut nats, mut count) = (0.0, 0);
    for window in tokens.chunks(1024) {
        let logits = backend.logits(window, false).unwrap();
        for (row, &next) in logits.chunks(logits.len() / window.len()).zip(&window[1..]) {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|logit| f64::from(logit - largest).exp()).sum();
            nats += sum.ln() - f64::from(row[next as usize] - largest);
            count += 1;
        }
    }
    let nats = nats / f64::from(count);
    println!("{nats:.3} nats per token over {count} tokens; {recorded:.3} over all that was held out");
    assert!(
        count > 1000 && nats < 1.1 * recorded,
        "{nats:.3} nats per token over {count} tokens; recorded: {recorded:.3}"
    );
}
