//! The Python module `fuserun._native`: a model in this process, asked by the fields of the HTTP API. What users see is Python, in `fuserun/`.

mod convert;
mod engine;
mod job;
mod mail;

use pyo3::prelude::*;

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::engine::Engine;
    #[pymodule_export]
    use super::job::{Job, LogitsJob, ResponseJob};
    #[pymodule_export]
    use super::mail::Bell;
    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
