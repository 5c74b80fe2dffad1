use std::process::Command;
use std::sync::OnceLock;

use fusec::build::Nvrtc;

/// NVRTC, through `tests/nvrtc` where the machine has none.
///
/// # Panics
/// When it cannot be had: a test that needs it must not pass without.
pub fn nvrtc() -> Nvrtc {
    static NVRTC: OnceLock<Nvrtc> = OnceLock::new();
    *NVRTC.get_or_init(|| {
        Nvrtc::find().unwrap_or_else(|_| {
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/nvrtc");
            let status = Command::new(script).status();
            assert!(status.as_ref().is_ok_and(|status| status.success()), "{script}: {status:?}");
            Nvrtc::find().unwrap_or_else(|missing| panic!("{missing}"))
        })
    })
}
