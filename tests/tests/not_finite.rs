//! A model whose logits are no numbers ends in one message that names the position, on every device and by every command.

use std::path::{Path, PathBuf};

use fuse_tests::{Finished, TempFolder, fuserun, gpu, root};
use safetensors::SafeTensors;

const FAULT: &str = "the weights or their type are at fault";

/// A copy of a checkpoint with `bits` in the place of one bfloat16 of a weight.
fn planted(model: &str, weight: &str, at: usize, bits: u16) -> TempFolder {
    let folder = TempFolder::copy_of(&root().join(model));
    let mut bytes = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    let begin = {
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        tensors.tensor(weight).unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize
    };
    bytes[begin + 2 * at..][..2].copy_from_slice(&bits.to_le_bytes());
    folder.write("model.safetensors", bytes);
    folder
}

const NAN: u16 = 0x7fc0;
const INF: u16 = 0x7f80;

fn run(command: &str, device: &str, model: &Path, more: &[&str]) -> Finished {
    fuserun(&[&[command, "--device", device, "-m", model.to_str().unwrap()], more].concat(), "")
}

/// Exit code 1, and one error that names this position.
fn assert_named(done: &Finished, position: usize) {
    assert_named_one_of(done, &[position]);
}

fn assert_named_one_of(done: &Finished, positions: &[usize]) {
    assert_eq!(done.code, 1, "{}", done.stderr);
    let errors: Vec<&str> = done.stderr.lines().filter(|line| line.starts_with("error")).collect();
    let named =
        |position: &usize| errors[0].starts_with(&format!("error: the logits at position {position} are not finite"));
    assert!(errors.len() == 1 && positions.iter().any(named) && errors[0].contains(FAULT), "{}", done.stderr);
    assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
}

fn devices() -> Vec<&'static str> {
    gpu().map_or(vec!["cpu"], |_| vec!["cpu", "cuda:0"])
}

#[test]
fn generate_ends_at_the_first_token() {
    let model = planted("models/demo", "model.norm.weight", 3, NAN);
    for device in devices() {
        for way in [&["--temperature", "0"][..], &["--seed", "3"], &["--temperature", "0.7", "--top-p", "0.9"]] {
            let done = run("generate", device, model.path(), &[&["Call me", "-n", "8"], way].concat());
            assert_named(&done, 2);
            assert_eq!(done.stdout, "", "nothing is made up");
        }
        let done = run("generate", device, model.path(), &["Call me", "-n", "8", "--json"]);
        assert_named(&done, 2);
        assert_eq!(done.stdout, "");
    }
}

/// A token whose logit is no number, though another is the largest.
#[test]
fn one_logit_is_enough() {
    let output = TempFolder::new();
    let file: PathBuf = output.path().join("logits.safetensors");
    let tokens = ["--tokens", "1,2,3", "-o", file.to_str().unwrap()];
    // The first value of what the weight multiplies is below 0 at position 0, and above at position 1.
    for (bits, position) in [(NAN, 0), (INF, 1), (INF | 0x8000, 0), (NAN | 0x8000, 0)] {
        let model = planted("tests/goldens/llama-untied", "lm_head.weight", 96 * 200, bits);
        for device in devices().into_iter().chain(["interpreter"]) {
            for step in [&[][..], &["--step"]] {
                // Two parts of an activation times infinity are NaN on a GPU where their signs differ.
                let positions = if device.starts_with("cuda") { &[0, position][..] } else { &[position] };
                assert_named_one_of(&run("logits", device, model.path(), &[&tokens, step].concat()), positions);
                assert!(!file.exists(), "a failed run leaves no file");
            }
        }
    }
}

#[test]
fn the_position_is_that_of_the_token_that_breaks_them() {
    let model = planted("tests/goldens/llama-untied", "model.embed_tokens.weight", 96 * 7 + 5, NAN);
    let output = TempFolder::new();
    let file = output.path().join("logits.safetensors");
    let logits = |tokens| ["--tokens", tokens, "-o", file.to_str().unwrap()];
    for device in devices().into_iter().chain(["interpreter"]) {
        // The rows of a prompt meet in one product of attention on a GPU, where zero weights do not hide a NaN.
        let positions = if device.starts_with("cuda") { &[0, 1, 2][..] } else { &[2] };
        assert_named_one_of(&run("logits", device, model.path(), &logits("1,2,7,3")), positions);
        assert_eq!(run("logits", device, model.path(), &logits("1,2,3")).code, 0);
    }
}

#[test]
fn verify_says_so_too() {
    let model = planted("tests/goldens/llama-untied", "model.norm.weight", 3, NAN);
    let expected = model.path().join("expected.safetensors");
    let against = ["--against", expected.to_str().unwrap()];
    for device in devices() {
        assert_named(&run("verify", device, model.path(), &against), 0);
    }
    let done = run("verify", "interpreter", model.path(), &against);
    assert!(done.code == 1 && done.stderr.starts_with("error[F0701]"), "{}", done.stderr);
    assert!(done.stderr.contains("the logits at position 0 are not finite") && done.stderr.contains(FAULT));
}

/// What is never chosen may be anything; nothing but it is an error.
#[test]
fn a_token_that_is_suppressed_may_be_no_number() {
    let model = planted("models/demo", "model.embed_tokens.weight", 4000 * 256, NAN);
    let ask = ["Call me", "-n", "4", "--temperature", "0"];
    let rest: Vec<String> = (0..4096).filter(|token| *token != 4000).map(|token| token.to_string()).collect();
    for device in devices() {
        model.write("generation_config.json", "{}");
        assert_named(&run("generate", device, model.path(), &ask), 2);
        model.write("generation_config.json", r#"{"suppress_tokens": [4000]}"#);
        let done = run("generate", device, model.path(), &ask);
        assert_eq!(done.code, 0, "{}", done.stderr);
        model.write("generation_config.json", format!("{{\"suppress_tokens\": [{}]}}", rest.join(", ")));
        assert_named(&run("generate", device, model.path(), &ask), 2);
    }
}
