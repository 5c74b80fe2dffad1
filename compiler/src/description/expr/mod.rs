//! The expression language of `docs/description.md`: typed arithmetic, comparison and choice over configuration keys and the layer index.

mod eval;
mod parse;
mod tree;

pub use eval::{Environment, Failure};
pub use parse::Locator;
pub use tree::Expr;

use super::diagnostics::Diagnostic;
use super::value::Value;

impl Expr {
    /// Reads `text`; `locator` maps its bytes to the file's.
    pub fn parse(text: &str, locator: &Locator) -> Result<Expr, Diagnostic> {
        parse::parse(text, locator)
    }

    /// The value in `environment`.
    pub fn evaluate(&self, environment: &dyn Environment) -> Result<Value, Failure> {
        eval::evaluate(self, environment)
    }
}
