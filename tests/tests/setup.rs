//! What lets every start work: the cache of kernels.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use fuse_tests::{TempFolder, finish, nvrtc};
use fusec::build::{Compiled, Options, compile_all};

/// Names the cache of a run that is started by a test, and compiles into it.
const CACHE: &str = "FUSE_TEST_CACHE";

/// Compiles a few kernels into a cache.
fn compile(cache: &Path) -> BTreeMap<String, Compiled> {
    let source = |number: u32| {
        format!("extern \"C\" __global__ void k{number}(float* x) {{ x[threadIdx.x] = x[threadIdx.x] * {number}.5f; }}")
    };
    let sources = (0..8).map(|number| (format!("k{number}"), source(number))).collect();
    let options = Options { cache: Some(cache.to_owned()), ..Options::default() };
    compile_all(nvrtc(), &sources, "sm_90a".parse().unwrap(), &options).unwrap()
}

/// However an earlier start ended, and whoever compiles beside it, the next one has the same code, and keeps it.
#[test]
fn the_cache_outlives_kills_and_is_shared() {
    if let Some(cache) = std::env::var_os(CACHE) {
        compile(Path::new(&cache));
        return;
    }
    let folder = TempFolder::new();
    let cache = folder.path().join("kernels");
    let again = || {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again
            .args(["--exact", "the_cache_outlives_kills_and_is_shared"])
            .env(CACHE, &cache)
            .env("FUSE_NVRTC", nvrtc().path());
        again.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    for wait in [20, 60, 100, 140, 180, 250] {
        let mut killed = again();
        sleep(Duration::from_millis(wait));
        killed.kill().unwrap();
        killed.wait().unwrap();
    }
    let both = [again(), again()];
    for mut run in both {
        assert!(run.wait().unwrap().success());
    }
    let other = TempFolder::new();
    assert_eq!(compile(&cache), compile(other.path()));
    let kept = |end: &str| {
        let names = fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(end) && !name.starts_with('.')).count()
    };
    assert_eq!((kept(".cubin"), kept(".log")), (8, 8));
}

/// A cache that takes nothing is no reason not to start: a line says so.
#[test]
fn a_cache_that_cannot_be_written_is_done_without() {
    if let Some(cache) = std::env::var_os(CACHE) {
        assert_eq!(compile(Path::new(&cache)).len(), 8);
        return;
    }
    let folder = TempFolder::new();
    let said = "compiled kernels are not kept, and the next start compiles them again: ";
    let run = |program: &mut Command, cache: &Path| {
        program.args(["--exact", "a_cache_that_cannot_be_written_is_done_without", "--nocapture"]);
        let done = finish(program.env(CACHE, cache).env("FUSE_NVRTC", nvrtc().path()), "");
        assert!(done.code == 0 && done.stderr.matches(said).count() == 1, "{done:?}");
        done.stderr
    };
    let own = std::env::current_exe().unwrap();
    let below_a_file = folder.write("file", "").join("kernels");
    let stderr = run(&mut Command::new(&own), &below_a_file);
    assert!(stderr.contains("cannot make the cache folder"), "{stderr}");

    // As on a full disk, no file takes a byte.
    let full = folder.path().join("full");
    let stderr = run(Command::new("prlimit").args(["--fsize=0", "--"]).arg(&own), &full);
    assert!(stderr.contains("cannot write "), "{stderr}");
    assert_eq!(fs::read_dir(&full).unwrap().count(), 0, "nothing half is left");
}
