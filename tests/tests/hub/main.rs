//! `fuserun pull` and `-m OWNER/NAME`, against a hub on this machine.

mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fuse_tests::gguf::gguf_of;
use fuse_tests::{Finished, TempFolder, command, finish, root};

use server::{COMMIT, Faults, Hub, REPOSITORY, Request, checksum, is_large};

const GOLDEN: &str = "tests/goldens/llama-sharded-f32";

/// A model in shards, with a tokenizer, and what nobody needs.
fn shards() -> Vec<(&'static str, Vec<u8>)> {
    let golden = |name: &'static str| (name, fs::read(root().join(GOLDEN).join(name)).expect("a file of the golden"));
    let demo =
        |name: &'static str| (name, fs::read(root().join("models/demo").join(name)).expect("a file of the demo"));
    let other = |name: &'static str| (name, b"not needed".to_vec());
    let template = ("additional_chat_templates/tool_use.jinja", b"{{ tools }}".to_vec());
    vec![
        golden("config.json"),
        golden("model.safetensors.index.json"),
        golden("model-00001-of-00004.safetensors"),
        golden("model-00002-of-00004.safetensors"),
        golden("model-00003-of-00004.safetensors"),
        golden("model-00004-of-00004.safetensors"),
        demo("tokenizer.json"),
        demo("tokenizer_config.json"),
        template,
        other("README.md"),
        other("pytorch_model.bin"),
        other("original/consolidated.00.pth"),
        other("adapter_model.safetensors"),
    ]
}

/// What of it is needed.
fn needed(name: &str) -> bool {
    !["README.md", "pytorch_model.bin", "original/consolidated.00.pth", "adapter_model.safetensors"].contains(&name)
}

/// A command that sees this hub, and a cache of its own.
fn with(hub: &Hub, home: &TempFolder) -> Command {
    let mut command = command("fuserun");
    command.env("HF_HOME", home.path()).env("HF_ENDPOINT", hub.endpoint()).env_remove("HF_HUB_OFFLINE");
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(name);
    }
    command
}

fn pull(hub: &Hub, home: &TempFolder, name: &str) -> Finished {
    finish(with(hub, home).args(["pull", name]), "")
}

/// Pulls what must come, and gives its path.
fn pulled(hub: &Hub, home: &TempFolder, name: &str) -> PathBuf {
    let done = pull(hub, home, name);
    assert_eq!((done.code, done.stderr.lines().count()), (0, 1), "{}", done.stderr);
    PathBuf::from(done.stdout.trim_end())
}

/// The one message of a failure, which holds each of `parts`.
fn refused(done: &Finished, parts: &[&str]) -> String {
    assert_eq!((done.code, done.stdout.as_str()), (1, ""), "{}", done.stderr);
    assert_eq!(done.stderr.lines().filter(|line| line.starts_with("error")).count(), 1, "{}", done.stderr);
    for part in parts {
        assert!(done.stderr.contains(part), "no `{part}` in: {}", done.stderr);
    }
    done.stderr.clone()
}

fn folder_of(home: &TempFolder) -> PathBuf {
    home.path().join("hub/models--owner--Tiny-1.5")
}

/// The path of a file's contents.
fn blob(home: &TempFolder, name: &str, bytes: &[u8]) -> PathBuf {
    folder_of(home).join("blobs").join(checksum(name, bytes))
}

/// Whether the cache has the needed files, right and by relative links, and nothing that is not whole.
fn check_layout(home: &TempFolder, files: &[(&str, Vec<u8>)]) {
    let folder = folder_of(home);
    assert_eq!(fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
    let snapshot = folder.join("snapshots").join(COMMIT);
    for (name, bytes) in files {
        let path = snapshot.join(name);
        let target = fs::read_link(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let up = if name.contains('/') { "../../../" } else { "../../" };
        assert_eq!(target, Path::new(&format!("{up}blobs/{}", checksum(name, bytes))));
        assert!(fs::read(&path).unwrap() == *bytes, "{name} is as the hub has it");
    }
    let blobs: Vec<PathBuf> = fs::read_dir(folder.join("blobs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(blobs.len(), files.len(), "no other contents, and none that are not whole: {blobs:?}");
}

fn needed_files() -> Vec<(&'static str, Vec<u8>)> {
    shards().into_iter().filter(|(name, _)| needed(name)).collect()
}

fn of_large(requests: &[Request]) -> Vec<&Request> {
    requests.iter().filter(|request| request.host.starts_with("localhost")).collect()
}

#[test]
fn a_model_is_pulled_once_and_named_as_on_the_hub() {
    let (hub, home) = (Hub::start(&shards()), TempFolder::new());
    let path = pulled(&hub, &home, REPOSITORY);
    assert_eq!(path, folder_of(&home).join("snapshots").join(COMMIT));
    check_layout(&home, &needed_files());
    assert_eq!(of_large(&hub.requests()).len(), 4, "a request for each shard");
    assert!(hub.requests().iter().all(|request| request.headers["accept-encoding"] == "identity"));

    // The next time only the list is asked for.
    hub.with(Faults::default());
    let again = pull(&hub, &home, REPOSITORY);
    assert!(again.code == 0 && again.stderr.contains("nothing was to be fetched"), "{}", again.stderr);
    assert_eq!((again.stdout.trim_end(), hub.requests().len()), (path.to_str().unwrap(), 1));

    // Offline nothing is.
    hub.with(Faults::default());
    for name in [REPOSITORY, &format!("{REPOSITORY}@{COMMIT}")] {
        let offline = finish(with(&hub, &home).args(["pull", name]).env("HF_HUB_OFFLINE", "1"), "");
        assert_eq!((offline.code, offline.stdout.trim_end()), (0, path.to_str().unwrap()), "{}", offline.stderr);
    }
    let logits = |model: &str, file: &str| {
        let out = home.path().join(file);
        let arguments = ["logits", "--device", "cpu", "--tokens", "1,2,3", "-m", model, "-o", out.to_str().unwrap()];
        let done = finish(with(&hub, &home).args(arguments), "");
        assert_eq!(done.code, 0, "{}", done.stderr);
        fs::read(out).unwrap()
    };
    let direct = logits(root().join(GOLDEN).to_str().unwrap(), "direct");
    assert!(logits(REPOSITORY, "named") == direct, "the same model");
    assert!(logits(&format!("{}/{REPOSITORY}", "https://huggingface.co"), "address") == direct);
    let ids = |model: &str| finish(with(&hub, &home).args(["tokenize", "-m", model, "Call me"]), "");
    let demo = root().join("models/demo");
    assert_eq!(ids(REPOSITORY).stdout, ids(demo.to_str().unwrap()).stdout);
    assert_eq!(hub.requests().len(), 0, "a model in the cache needs no hub");
}

#[test]
fn a_name_alone_fetches_nothing() {
    let (hub, home) = (Hub::start(&shards()), TempFolder::new());
    let tokenize = |more: &[&str]| {
        let arguments = [&["tokenize", "-m", REPOSITORY, "Call me"], more].concat();
        finish(with(&hub, &home).args(arguments), "")
    };
    refused(&tokenize(&[]), &[REPOSITORY, &format!("get it first (`fuserun pull {REPOSITORY}`)")]);
    assert_eq!(hub.requests().len(), 0);
    let done = tokenize(&["--pull"]);
    assert!(done.code == 0 && !done.stdout.is_empty(), "{}", done.stderr);
    check_layout(&home, &needed_files());
    hub.with(Faults::default());
    assert_eq!((tokenize(&["--pull"]).code, hub.requests().len()), (0, 0), "it is there");

    // What is there in part is not taken for the whole.
    let shard = "model-00002-of-00004.safetensors";
    fs::remove_file(folder_of(&home).join("snapshots").join(COMMIT).join(shard)).unwrap();
    refused(&tokenize(&[]), &[&format!("`fuserun pull {REPOSITORY}` gets what is missing"), "1 of 4 shards"]);
    assert_eq!(tokenize(&["--pull"]).code, 0);
    check_layout(&home, &needed_files());
}

#[test]
fn a_list_without_checksums_and_paths_that_move() {
    let (hub, home) = (Hub::start(&shards()), TempFolder::new());
    hub.with(Faults { bare_list: true, moved: true, ..Faults::default() });
    pulled(&hub, &home, REPOSITORY);
    check_layout(&home, &needed_files());
    let heads: Vec<Request> = hub.requests().into_iter().filter(|request| request.method == "HEAD").collect();
    assert!(heads.iter().any(|request| is_large(&request.path)));
    assert!(heads.iter().all(|request| !request.host.starts_with("localhost")), "a HEAD stays at the hub");
}

#[test]
fn the_token_is_for_the_hub_only() {
    let (hub, home) = (Hub::start(&shards()), TempFolder::new());
    hub.with(Faults { token: Some("hf_secret"), ..Faults::default() });
    let agree = "its owner asks who wants it: agree on its page, then set HF_TOKEN";
    refused(&pull(&hub, &home, REPOSITORY), &[REPOSITORY, agree, "(GatedRepo, it says)"]);
    let wrong = finish(with(&hub, &home).args(["pull", REPOSITORY]).env("HF_TOKEN", "hf_wrong"), "");
    let said = refused(&wrong, &["with the account of the token"]);
    assert!(!said.contains("hf_wrong"), "{said}");

    home.write("token", "hf_secret\n");
    hub.with(Faults { token: Some("hf_secret"), ..Faults::default() });
    pulled(&hub, &home, REPOSITORY);
    check_layout(&home, &needed_files());
    let requests = hub.requests();
    assert_eq!(of_large(&requests).len(), 4);
    for request in &requests {
        let at_hub = !request.host.starts_with("localhost");
        assert_eq!(request.headers.contains_key("authorization"), at_hub, "{request:?}");
    }
}

#[test]
fn what_is_not_there_is_said() {
    let (hub, home) = (Hub::start(&shards()), TempFolder::new());
    let closed =
        |name: &str| finish(with(&hub, &home).args(["pull", name]).env("HF_ENDPOINT", "http://127.0.0.1:1"), "");
    refused(&pull(&hub, &home, "owner/none"), &["owner/none", "there is no such model, or it is not public"]);
    refused(&pull(&hub, &home, &format!("{REPOSITORY}@v9")), &["there is no such branch, tag or commit"]);
    refused(&pull(&hub, &home, &format!("{REPOSITORY}:Q4_0")), &["there is neither", ".gguf file"]);
    refused(&pull(&hub, &home, "owner"), &["'owner' names no model on the hub: write OWNER/NAME"]);
    let offline = finish(with(&hub, &home).args(["pull", REPOSITORY]).env("HF_HUB_OFFLINE", "1"), "");
    refused(&offline, &["HF_HUB_OFFLINE is set"]);
    refused(&closed(REPOSITORY), &["http://127.0.0.1:1: ", "look at the network, HTTPS_PROXY and HF_ENDPOINT"]);
    let file = home.write("file", "");
    let no_folder = finish(with(&hub, &home).args(["pull", REPOSITORY]).env("HF_HUB_CACHE", file.join("x")), "");
    refused(&no_folder, &["cannot make the folder", "HF_HUB_CACHE or HF_HOME names another"]);
    hub.with(Faults { round: true, ..Faults::default() });
    refused(&pull(&hub, &home, REPOSITORY), &["redirects lead on without an end"]);
    hub.with(Faults { busy: 2, ..Faults::default() });
    pulled(&hub, &home, REPOSITORY);
    assert!(!folder_of(&home).join("refs/v9").exists());
}

#[test]
fn a_connection_that_breaks_is_taken_up_where_it_ended() {
    let (hub, home) = (Hub::start(&shards()), TempFolder::new());
    hub.with(Faults { breaks: Some((5000, 6)), ..Faults::default() });
    pulled(&hub, &home, REPOSITORY);
    check_layout(&home, &needed_files());
    let requests = hub.requests();
    let ranges: Vec<&str> =
        of_large(&requests).iter().filter_map(|request| Some(request.headers.get("range")?.as_str())).collect();
    assert_eq!(ranges.len(), 6, "{ranges:?}");
    assert!(ranges.contains(&"bytes=5000-") && ranges.contains(&"bytes=10000-"), "{ranges:?}");
}

#[test]
fn what_an_earlier_run_left_is_used_where_it_is_right() {
    let hub = Hub::start(&shards());
    let shard = "model-00001-of-00004.safetensors";
    let (_, bytes) = shards().into_iter().find(|(name, _)| *name == shard).unwrap();
    let half = bytes.len() / 2;
    let wrong = vec![7; half];
    let long = [&bytes[..], b"more"].concat();
    let left = [(&bytes[..half], Faults::default(), Some(half)), (&bytes, Faults::default(), None)];
    let other = [
        (&wrong[..], Faults::default(), Some(half)),
        (&long[..], Faults::default(), None),
        (&bytes[..half], Faults { no_ranges: true, ..Faults::default() }, Some(half)),
        (&bytes[..half], Faults { bad_ranges: true, ..Faults::default() }, Some(half)),
    ];
    for (left, faults, range) in left.into_iter().chain(other) {
        let home = TempFolder::new();
        let incomplete = blob(&home, shard, &bytes).with_extension("incomplete");
        fs::create_dir_all(incomplete.parent().unwrap()).unwrap();
        fs::write(&incomplete, left).unwrap();
        hub.with(faults.clone());
        pulled(&hub, &home, REPOSITORY);
        check_layout(&home, &needed_files());
        let asked = format!("/{}", checksum(shard, &bytes));
        let first = hub.requests().into_iter().find(|request| request.path == asked);
        let first = first.and_then(|request| request.headers.get("range").cloned());
        assert_eq!(first, range.map(|from| format!("bytes={from}-")), "{faults:?}");
    }
}

#[test]
fn contents_are_checked() {
    let (hub, home) = (Hub::start(&shards()), TempFolder::new());
    hub.with(Faults { damage: 1, ..Faults::default() });
    pulled(&hub, &home, REPOSITORY);
    check_layout(&home, &needed_files());
    let home = TempFolder::new();
    hub.with(Faults { damage: 1000, ..Faults::default() });
    refused(&pull(&hub, &home, REPOSITORY), &["what came is not what the hub has by its checksum", "twice"]);
    assert!(!folder_of(&home).join("refs/main").exists(), "a branch names a commit that is whole");
    hub.with(Faults::default());
    pulled(&hub, &home, REPOSITORY);
    check_layout(&home, &needed_files());
}

#[test]
fn a_pull_that_is_killed_goes_on() {
    let (hub, home) = (Hub::start(&shards()), TempFolder::new());
    for after in [0, 3, 10, 30, 100] {
        hub.with(Faults { breaks: Some((1000, usize::MAX)), ..Faults::default() });
        let mut child = with(&hub, &home);
        let mut child = child.args(["pull", REPOSITORY]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let began = Instant::now();
        while after > 0 && of_large(&hub.requests()).is_empty() && began.elapsed() < Duration::from_secs(20) {
            sleep(Duration::from_millis(1));
        }
        sleep(Duration::from_millis(after));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    hub.with(Faults::default());
    pulled(&hub, &home, REPOSITORY);
    check_layout(&home, &needed_files());
}

#[test]
fn several_pulls_at_once_fetch_each_file_once() {
    let (hub, home) = (Hub::start(&shards()), TempFolder::new());
    std::thread::scope(|scope| {
        let started: Vec<_> = (0..3).map(|_| scope.spawn(|| pulled(&hub, &home, REPOSITORY))).collect();
        started.into_iter().for_each(|pull| drop(pull.join().expect("a pull that comes to its end")));
    });
    check_layout(&home, &needed_files());
    assert_eq!(of_large(&hub.requests()).len(), 4, "each shard came once");
}

#[test]
fn one_of_several_gguf_files() {
    let gguf = gguf_of(&root().join("tests/goldens/llama-tied"), &[]);
    let other = [&gguf[..], &[0; 32]].concat();
    let files = [("Tiny-Q8_0.gguf", gguf.clone()), ("Tiny-F16.gguf", other), ("mmproj-Q8_0.gguf", b"picture".to_vec())];
    let (hub, home) = (Hub::start(&files), TempFolder::new());
    let both = "there are several GGUF files: name one, such as owner/Tiny-1.5:Tiny-F16: Tiny-F16 (0.0 GB), Tiny-Q8_0 (0.0 GB)";
    refused(&pull(&hub, &home, REPOSITORY), &[both]);
    let name = format!("{REPOSITORY}:q8_0");
    let path = pulled(&hub, &home, &name);
    assert_eq!(path, folder_of(&home).join("snapshots").join(COMMIT).join("Tiny-Q8_0.gguf"));
    check_layout(&home, &files[..1]);
    let logits = |model: &str| {
        let out = home.path().join("out");
        let arguments = ["logits", "--device", "cpu", "--tokens", "1,2", "-m", model, "-o", out.to_str().unwrap()];
        let done = finish(with(&hub, &home).args(arguments), "");
        (done.code, done.stderr)
    };
    for model in [&name, REPOSITORY, path.to_str().unwrap()] {
        assert_eq!(logits(model).0, 0, "{model}: {}", logits(model).1);
    }
    let (code, said) = logits(&format!("{REPOSITORY}:F16"));
    assert!(code == 1 && said.contains("`fuserun pull owner/Tiny-1.5:F16` gets what is missing"), "{said}");
}
