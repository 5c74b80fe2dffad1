//! What is done where the first choice of a device fails: what is chosen in its place, and the line that says so.

use std::process::Command;

use fuse_tests::host_driver::{TRACE, with_fake_driver};
use fuserun::backend::Device;
use fuserun::llm::{LlmOptions, start};
use fuserun::model::{ModelName, OpenModel};
use fuserun::serve::{Came, Local};
use serde_json::{Map, json};

fn started(model: OpenModel, options: &LlmOptions) -> (Result<Local, String>, Vec<String>) {
    let mut told = Vec::new();
    let local = start(model, options, &mut |line| told.push(line));
    assert!(told.iter().all(|line| !line.contains('\n')), "a line each: {told:?}");
    (local.map_err(|error| format!("{error:#}")), told)
}

/// The tokens after a prompt.
fn tokens(local: &Local) -> usize {
    let (tell, told) = std::sync::mpsc::channel();
    let fields = json!({"temperature": 0, "max_tokens": 3, "ignore_eos": true});
    let fields = fields.as_object().cloned().unwrap_or_else(Map::new);
    let question = local.completion(vec![1, 2, 3], fields).unwrap();
    let _answering = local.ask(question, move |came| tell.send(came).expect("the test waits"));
    loop {
        match told.recv().expect("it comes to an end") {
            Came::Piece(_) => {}
            Came::Ended(taken) => return taken.tokens,
            Came::Failed(refusal) => panic!("{refusal}"),
        }
    }
}

fn demo() -> OpenModel {
    OpenModel::open(&ModelName::default()).unwrap()
}

#[test]
fn without_a_gpu_it_is_the_cpu() {
    if std::env::var("CUDA_VISIBLE_DEVICES").as_deref() != Ok("") {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "without_a_gpu_it_is_the_cpu"]).env("CUDA_VISIBLE_DEVICES", "");
        return assert!(again.status().unwrap().success());
    }
    let (local, told) = started(demo(), &LlmOptions::default());
    let local = local.unwrap();
    assert_eq!(told, ["no NVIDIA GPU found: running on the CPU"]);
    assert_eq!((local.device(), local.slots(), tokens(&local)), ("cpu", 4, 3));
    let (local, told) = started(demo(), &LlmOptions { device: Device::Cuda(0), ..LlmOptions::default() });
    let error = local.err().expect("there is none");
    assert!(told.is_empty() && !error.contains('\n'), "{error}");
}

#[test]
fn without_nvrtc_it_is_the_cpu() {
    if std::env::var_os(TRACE).is_none() {
        let trace = with_fake_driver("without_nvrtc_it_is_the_cpu", &[("FUSE_NVRTC", "/nowhere")]);
        return assert_eq!(trace, "", "the GPU is left alone");
    }
    let (local, told) = started(demo(), &LlmOptions::default());
    let local = local.unwrap();
    let [line] = &told[..] else { panic!("{told:?}") };
    assert!(line.starts_with("a GPU is here, but NVRTC, the CUDA compiler library, is missing"), "{line}");
    assert!(line.ends_with(": running on the CPU"), "{line}");
    assert_eq!((local.device(), tokens(&local)), ("cpu", 3));
}

#[test]
fn on_a_gpu_that_nothing_is_built_for_it_is_the_cpu() {
    if std::env::var_os(TRACE).is_none() {
        with_fake_driver("on_a_gpu_that_nothing_is_built_for_it_is_the_cpu", &[("FAKE_CUDA_MAJOR", "99")]);
        return;
    }
    let (local, told) = started(demo(), &LlmOptions::default());
    let said = "nothing can be built for compute capability 99.0; supported: ";
    let [line] = &told[..] else { panic!("{told:?}") };
    assert!(line.starts_with(said) && line.ends_with(": running on the CPU"), "{line}");
    assert_eq!(tokens(&local.unwrap()), 3);
    let (local, told) = started(demo(), &LlmOptions { device: Device::Cuda(0), ..LlmOptions::default() });
    assert!(local.err().expect("it is named").starts_with(said) && told.is_empty());
}

#[test]
fn what_does_not_fit_on_a_gpu_gets_fewer_slots_and_then_the_cpu() {
    const NAME: &str = "what_does_not_fit_on_a_gpu_gets_fewer_slots_and_then_the_cpu";
    // Bytes that hold the demo model's weights, and some of its caches.
    const SOME: &str = "24000000";
    // Bytes that hold its weights in 8 bits, and not in 16.
    const FEWER_BITS: &str = "16000000";
    if std::env::var_os(TRACE).is_none() {
        with_fake_driver(NAME, &[("FAKE_CUDA_FREE", "1000")]);
        with_fake_driver(NAME, &[("FAKE_CUDA_FREE", SOME)]);
        with_fake_driver(NAME, &[("FAKE_CUDA_FREE", FEWER_BITS)]);
        return;
    }
    if std::env::var("FAKE_CUDA_FREE").as_deref() == Ok(SOME) {
        // What is there for more than the weights is there for fewer positions.
        let options = LlmOptions { device: Device::Cuda(0), slots: Some(8), ..LlmOptions::default() };
        let error = started(demo(), &options).0.err().expect("it does not fit");
        let (_, advice) = error.rsplit_once("; ").expect("it says what would");
        let context =
            advice.strip_prefix("--max-context ").and_then(|rest| rest.strip_suffix(" would, or fewer sequences"));
        let context: usize = context.unwrap_or_else(|| panic!("{error}")).parse().expect("a number");
        assert!(context.is_multiple_of(64) && (64..1024).contains(&context), "{error}");
        return;
    }
    let options = LlmOptions { context: Some(64), ..LlmOptions::default() };
    if std::env::var("FAKE_CUDA_FREE").as_deref() == Ok(FEWER_BITS) {
        let named = LlmOptions { device: Device::Cuda(0), slots: Some(1), ..options };
        let error = started(demo(), &named).0.err().expect("it does not fit");
        assert!(error.contains(" GiB of weights (0.01 in bf16, 0.00 in f16, 0.00 in f32), "), "{error}");
        assert!(error.ends_with("; --weights q8_0 would"), "{error}");
        return;
    }
    let (local, told) = started(demo(), &options);
    let local = local.unwrap();
    let ends = [": trying 4 slots", ": trying 2 slots", ": trying 1 slot", ": running on the CPU"];
    assert_eq!(told.len(), ends.len(), "{told:#?}");
    for (line, end) in told.iter().zip(ends) {
        assert!(line.contains(" does not fit: ") && line.ends_with(end), "{line}");
    }
    assert_eq!((local.device(), local.slots(), tokens(&local)), ("cpu", 4, 3));
    // What is named is not replaced.
    let (local, told) = started(demo(), &LlmOptions { device: Device::Cuda(0), slots: Some(2), ..options });
    let error = local.err().expect("it does not fit");
    assert!(told.is_empty() && error.contains("2 sequences of 64 positions"), "{error}");
    assert!(error.ends_with("; take weights of fewer bits (--weights), or --device cpu"), "{error}");
}
