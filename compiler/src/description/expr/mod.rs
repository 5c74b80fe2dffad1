//! The expression language: typed arithmetic, comparison and choice over configuration keys and the layer index.
//!
//! ```text
//! choice   a if c else b                                        loosest
//! logic    a or b     a and b     not a
//! compare  == != < <= > >=   in   not in                        does not chain
//! default  a ?? b     b where a is absent or null; groups to the right
//! sum      a + b   a - b
//! product  a * b   a / b   a // b   a % b
//! sign     -a
//! power    a ** b                                               groups to the right
//! part     list[index]   table.key   f(a, …)                    tightest
//! atom     12   1e-6   'text'   true   false   null   [a, b]   key   layer   (a)
//! ```
//! `/` of two ints is an int and an error where it is not exact; `//` and `%` round down; `**` of ints is an int unless the exponent is negative.
//! `==` of two types that can never be equal is an error, except that anything may be compared with null. Functions: `default(a, b)` (the same as
//! `a ?? b`), `min`, `max`, `sqrt`, `len`. A key that is absent or null is an error, unless it stands left of `??`.

mod eval;
mod parse;

pub use eval::{Environment, Failure};
pub use parse::Locator;

use super::diagnostics::{Diagnostic, Span};
use super::value::Value;

/// A checked expression; spans are of the description's text.
#[derive(Clone, Debug)]
pub struct Expr {
    kind: Kind,
    /// Where it stands.
    pub span: Span,
}

#[derive(Clone, Debug)]
enum Kind {
    Literal(Value),
    Key(String),
    Layer,
    List(Vec<Expr>),
    Index(Box<Expr>, Box<Expr>),
    Member(Box<Expr>, String),
    Negate(Box<Expr>),
    Not(Box<Expr>),
    Binary(Operator, Box<Expr>, Box<Expr>),
    Default(Box<Expr>, Box<Expr>),
    Choice { condition: Box<Expr>, then: Box<Expr>, otherwise: Box<Expr> },
    Call(Function, Vec<Expr>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Or,
    And,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
    NotIn,
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Remainder,
    Power,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Min,
    Max,
    Sqrt,
    Len,
}

impl Expr {
    /// Reads `text`; `locator` maps its bytes to the file's.
    pub fn parse(text: &str, locator: &Locator) -> Result<Expr, Diagnostic> {
        parse::parse(text, locator)
    }

    /// A value that stands in the file outright.
    pub fn literal(value: Value, span: Span) -> Expr {
        Expr { kind: Kind::Literal(value), span }
    }

    /// The value, where the whole expression is one literal.
    pub fn constant(&self) -> Option<&Value> {
        match &self.kind {
            Kind::Literal(value) => Some(value),
            _ => None,
        }
    }

    /// The value in `environment`.
    pub fn evaluate(&self, environment: &dyn Environment) -> Result<Value, Failure> {
        eval::evaluate(self, environment)
    }

    /// Calls `visit` with each configuration key that the expression names.
    pub fn visit_keys<'a>(&'a self, visit: &mut dyn FnMut(&'a str)) {
        match &self.kind {
            Kind::Key(name) => visit(name),
            Kind::Literal(_) | Kind::Layer => {}
            Kind::List(items) | Kind::Call(_, items) => items.iter().for_each(|item| item.visit_keys(visit)),
            Kind::Member(a, _) | Kind::Negate(a) | Kind::Not(a) => a.visit_keys(visit),
            Kind::Index(a, b) | Kind::Binary(_, a, b) | Kind::Default(a, b) => {
                a.visit_keys(visit);
                b.visit_keys(visit);
            }
            Kind::Choice { condition, then, otherwise } => {
                condition.visit_keys(visit);
                then.visit_keys(visit);
                otherwise.visit_keys(visit);
            }
        }
    }
}
