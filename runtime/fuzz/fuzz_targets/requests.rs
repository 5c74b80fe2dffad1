//! Any bytes as a request to any route: `cargo +nightly fuzz run requests`, in runtime/. `tests/tests/requests.rs` sends some to the same entry.

#![no_main]

use std::sync::LazyLock;

use fuse_tests::requests::Requests;
use libfuzzer_sys::fuzz_target;

static REQUESTS: LazyLock<Requests> = LazyLock::new(Requests::start);

fuzz_target!(|data: &[u8]| {
    REQUESTS.send(data);
});
