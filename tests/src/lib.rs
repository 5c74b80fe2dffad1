//! What the tests of both sides share.

pub mod checked;
mod folder;
pub mod gguf;
mod golden;
mod gpu;
pub mod host_build;
pub mod host_driver;
mod layout;
mod nvrtc;
mod programs;
pub mod reference;
mod replaced;
pub mod requests;
pub mod server;

pub use folder::TempFolder;
pub use golden::{Golden, argmax_disagreement, goldens, nmse};
pub use gpu::gpu;
pub use layout::without_layout;
pub use nvrtc::nvrtc;
pub use programs::{Finished, as_nobody, command, finish, fusec, fuserun, on_terminal, root};
pub use replaced::replaced;

use std::path::PathBuf;
use std::process::Command;

/// A kernel's stem without its sizes: `norm_matvec_f32` of `norm_matvec_f32_k2048_n2048_b1`.
pub fn kind_of(stem: &str) -> String {
    let stays =
        |part: &&str| !part.contains(|c: char| c.is_ascii_digit()) || part.starts_with("bf16") || *part == "f32";
    stem.split('_').filter(stays).collect::<Vec<&str>>().join("_")
}

/// The SmolLM2-135M-Instruct GGUF that `tests/fetch` gets; fetched on first use, however many tests ask at once.
///
/// Panics with fetch's own message where the file cannot be had: a test that needs it fails, it does not pass by skipping.
pub fn smollm2_gguf() -> PathBuf {
    let path = root().join(".cache/models/SmolLM2-135M-Instruct.gguf");
    if !path.exists() {
        let done = Command::new("python3").arg(root().join("tests/fetch")).output();
        let done = done.unwrap_or_else(|error| panic!("tests/fetch needs python3: {error}"));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr).trim_end());
    }
    path
}
