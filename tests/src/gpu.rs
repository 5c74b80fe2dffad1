//! Whether a test can use a GPU.

use std::io::Write;

use fuserun::backend::Device;
use fuserun::device::Gpu;

/// The first GPU; none where there is none, which says so and counts: `tests/run` names in FUSE_SKIPPED a file that gets a line for each test that
/// was left out.
pub fn gpu() -> Option<Device> {
    if Gpu::count() > 0 {
        return Some(Device::Cuda(0));
    }
    println!("skipped: no GPU");
    if let Some(path) = std::env::var_os("FUSE_SKIPPED") {
        let test = std::thread::current();
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        let written = file.and_then(|mut file| writeln!(file, "{}: no GPU", test.name().unwrap_or("a test")));
        written.unwrap_or_else(|error| panic!("FUSE_SKIPPED={}: {error}", path.display()));
    }
    None
}
