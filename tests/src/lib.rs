//! What the tests that see both the compiler and the runtime share.

pub mod host_build;
