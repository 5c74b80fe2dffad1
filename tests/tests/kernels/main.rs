//! Every kernel family on the host, on tiny odd shapes, against plain Rust. No GPU needed.

mod matvec;
mod support;
