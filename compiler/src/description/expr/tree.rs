//! The nodes of an expression.

use super::super::diagnostics::Span;
use super::super::value::Value;

/// A checked expression; spans are of the description's text.
#[derive(Clone, Debug)]
pub struct Expr {
    pub(super) kind: Kind,
    /// Where it stands.
    pub span: Span,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
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
    /// A key, null where it is null, or else what holds where it is absent.
    Given(String, Box<Expr>),
    Choice {
        condition: Box<Expr>,
        then: Box<Expr>,
        otherwise: Box<Expr>,
    },
    Call(Function, Vec<Expr>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
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
pub(super) enum Function {
    Min,
    Max,
    Sqrt,
    Log,
    Exp,
    Len,
    Int,
}

impl Expr {
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

    /// Calls `visit` with each configuration key that the expression names.
    pub fn visit_keys<'a>(&'a self, visit: &mut dyn FnMut(&'a str)) {
        if let Kind::Key(name) | Kind::Given(name, _) = &self.kind {
            visit(name);
        }
        self.parts().into_iter().for_each(|part| part.visit_keys(visit));
    }

    /// Calls `visit` with each configuration key that the expression takes elements from, or counts.
    pub fn visit_lists<'a>(&'a self, visit: &mut dyn FnMut(&'a str)) {
        match &self.kind {
            Kind::Index(list, _) | Kind::Binary(Operator::In | Operator::NotIn, _, list) => list.visit_keys(visit),
            Kind::Call(Function::Len, lists) => lists.iter().for_each(|list| list.visit_keys(visit)),
            _ => {}
        }
        self.parts().into_iter().for_each(|part| part.visit_lists(visit));
    }

    /// Its parts.
    fn parts(&self) -> Vec<&Expr> {
        match &self.kind {
            Kind::Literal(_) | Kind::Layer | Kind::Key(_) => Vec::new(),
            Kind::List(items) | Kind::Call(_, items) => items.iter().collect(),
            Kind::Member(a, _) | Kind::Negate(a) | Kind::Not(a) | Kind::Given(_, a) => vec![a],
            Kind::Index(a, b) | Kind::Binary(_, a, b) | Kind::Default(a, b) => vec![a, b],
            Kind::Choice { condition, then, otherwise } => vec![condition, then, otherwise],
        }
    }
}
