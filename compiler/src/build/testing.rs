//! What the tests of this crate share: NVRTC, fetched where the machine has none, and folders to write in.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use super::Nvrtc;

/// NVRTC, through `tests/nvrtc` where the machine has none.
///
/// # Panics
/// When it cannot be had: a test that needs it must not pass without.
pub(crate) fn nvrtc() -> Nvrtc {
    static NVRTC: OnceLock<Nvrtc> = OnceLock::new();
    *NVRTC.get_or_init(|| {
        Nvrtc::find().unwrap_or_else(|_| {
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/nvrtc");
            let status = Command::new(script).status();
            assert!(status.as_ref().is_ok_and(|status| status.success()), "{script}: {status:?}");
            Nvrtc::find().unwrap_or_else(|missing| panic!("{missing}"))
        })
    })
}

/// An empty folder below cargo's target folder, of this test only.
pub(crate) fn scratch(test: &str) -> PathBuf {
    let target = std::env::current_exe().expect("a test has a path").parent().expect("and a folder").to_owned();
    let folder = target.join("scratch").join(test);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).expect("a scratch folder can be emptied");
    }
    std::fs::create_dir_all(&folder).expect("a scratch folder can be made");
    folder
}
