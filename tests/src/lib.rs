//! tests

mod nvrtc;

pub use nvrtc::nvrtc;
