//! Expression to value.

use super::super::diagnostics::{Code, Diagnostic, Span};
use super::super::value::Value;
use super::tree::{Expr, Function, Kind, Operator};

/// Where names get their values.
pub trait Environment {
    /// The value of a configuration key; `None` where it is absent.
    fn key(&self, name: &str) -> Result<Option<Value>, Failure>;

    /// Whether a configuration key is there, and null.
    fn is_null(&self, name: &str) -> bool;

    /// The index of the layer; `None` outside layers.
    fn layer(&self) -> Option<usize>;
}

/// Why an expression has no value.
#[derive(Debug)]
pub enum Failure {
    /// A key is absent or null: `??` catches this one.
    Missing {
        /// The key, with its path where it is a table's.
        key: String,
        /// Where it is named.
        span: Span,
    },
    /// Anything else.
    Wrong(Box<Diagnostic>),
}

fn wrong(span: &Span, message: impl Into<String>) -> Failure {
    Failure::Wrong(Box::new(Diagnostic::new(Code::ExpressionValue, message).at(span.clone(), "")))
}

fn with_help(failure: Failure, help: &str) -> Failure {
    match failure {
        Failure::Wrong(diagnostic) => Failure::Wrong(Box::new(diagnostic.help(help))),
        missing => missing,
    }
}

pub(super) fn evaluate(expr: &Expr, environment: &dyn Environment) -> Result<Value, Failure> {
    let value = |expr: &Expr| evaluate(expr, environment);
    match &expr.kind {
        Kind::Literal(literal) => Ok(literal.clone()),
        Kind::Key(key) => {
            environment.key(key)?.ok_or_else(|| Failure::Missing { key: key.clone(), span: expr.span.clone() })
        }
        Kind::Layer => match environment.layer() {
            Some(layer) => Ok(Value::Int(layer as i64)),
            None => Err(wrong(&expr.span, "`layer` has a value only inside [layer]")),
        },
        Kind::List(items) => Ok(Value::List(items.iter().map(value).collect::<Result<_, _>>()?)),
        Kind::Index(table, key) => match (value(table)?, value(key)?) {
            (items @ Value::Table(_), Value::Str(name)) => member(table, &items, &name, &expr.span),
            (items @ Value::Table(_), Value::Int(number)) => member(table, &items, &number.to_string(), &expr.span),
            (items, at) => element(table, &items, key, &at),
        },
        Kind::Member(table, key) => member(table, &value(table)?, key, &expr.span),
        Kind::Negate(operand) => match value(operand)? {
            Value::Int(number) => number.checked_neg().map(Value::Int).ok_or_else(|| overflow(&expr.span)),
            Value::Float(number) => Ok(Value::Float(-number)),
            other => Err(wrong(&operand.span, format!("`-` needs a number, this is {}", other.kind()))),
        },
        Kind::Not(operand) => Ok(Value::Bool(!truth(operand, environment, "`not`")?)),
        Kind::Binary(Operator::Or, a, b) => {
            Ok(Value::Bool(truth(a, environment, "`or`")? || truth(b, environment, "`or`")?))
        }
        Kind::Binary(Operator::And, a, b) => {
            Ok(Value::Bool(truth(a, environment, "`and`")? && truth(b, environment, "`and`")?))
        }
        Kind::Binary(operator, a, b) => binary(*operator, (&value(a)?, &a.span), (&value(b)?, &b.span), &expr.span),
        Kind::Default(given, fallback) => match value(given) {
            Ok(Value::Null) | Err(Failure::Missing { .. }) => value(fallback),
            other => other,
        },
        Kind::Given(key, _) if environment.is_null(key) => Ok(Value::Null),
        Kind::Given(key, fallback) => environment.key(key)?.map_or_else(|| value(fallback), Ok),
        Kind::Choice { condition, then, otherwise } => {
            if truth(condition, environment, "`if`")? {
                value(then)
            } else {
                value(otherwise)
            }
        }
        Kind::Call(function, arguments) => call(*function, arguments, environment, &expr.span),
    }
}

fn truth(expr: &Expr, environment: &dyn Environment, what: &str) -> Result<bool, Failure> {
    match evaluate(expr, environment)? {
        Value::Bool(value) => Ok(value),
        other => Err(wrong(&expr.span, format!("{what} needs a bool, this is {}: {other}", other.kind()))),
    }
}

fn element(list: &Expr, items: &Value, index: &Expr, at: &Value) -> Result<Value, Failure> {
    let Value::Int(number) = at else {
        return Err(wrong(&index.span, format!("an index is an int, this is {}: {at}", at.kind())));
    };
    let at = usize::try_from(*number).ok();
    let (found, whole, count) = match items {
        Value::List(items) => (at.and_then(|at| items.get(at).cloned()), "list", items.len()),
        Value::Str(text) => {
            let letter = at.and_then(|at| text.chars().nth(at));
            (letter.map(|letter| Value::from(letter.to_string().as_str())), "text", text.chars().count())
        }
        _ => {
            return Err(wrong(
                &list.span,
                format!("only a list, a text or a table has elements, this is {}: {items}", items.kind()),
            ));
        }
    };
    found.ok_or_else(|| wrong(&index.span, format!("index {number} is outside the {whole}'s {count} elements")))
}

fn member(table: &Expr, items: &Value, key: &str, span: &Span) -> Result<Value, Failure> {
    let missing = || Failure::Missing { key: path(table, key), span: span.clone() };
    match items {
        Value::Table(items) => items.get(key).filter(|value| **value != Value::Null).cloned().ok_or_else(missing),
        Value::Null => Err(missing()),
        other => Err(wrong(&table.span, format!("only a table has keys, this is {}: {other}", other.kind()))),
    }
}

fn path(table: &Expr, key: &str) -> String {
    match &table.kind {
        Kind::Key(name) => format!("{name}.{key}"),
        Kind::Member(outer, name) => format!("{}.{key}", path(outer, name)),
        _ => key.to_owned(),
    }
}

fn binary(
    operator: Operator,
    (a, a_span): (&Value, &Span),
    (b, b_span): (&Value, &Span),
    span: &Span,
) -> Result<Value, Failure> {
    use Operator::*;
    match operator {
        Equal | NotEqual => Ok(Value::Bool(equal(a, b, span)? == (operator == Equal))),
        In | NotIn => {
            let found = match (a, b) {
                (_, Value::List(items)) => items.iter().any(|item| item.same(a)),
                (Value::Str(key), Value::Table(items)) => items.contains_key(&**key),
                _ => {
                    return Err(wrong(
                        b_span,
                        format!("`in` needs a list, or a key and a table; this is {}", b.kind()),
                    ));
                }
            };
            Ok(Value::Bool(found == (operator == In)))
        }
        _ => {
            let number = |value: &Value, span: &Span| {
                value.number().ok_or_else(|| {
                    wrong(span, format!("`{}` needs numbers, this is {}: {value}", symbol(operator), value.kind()))
                })
            };
            let (left, right) = (number(a, a_span)?, number(b, b_span)?);
            match operator {
                Less => return Ok(Value::Bool(left < right)),
                LessEqual => return Ok(Value::Bool(left <= right)),
                Greater => return Ok(Value::Bool(left > right)),
                GreaterEqual => return Ok(Value::Bool(left >= right)),
                _ => {}
            }
            if let (Value::Int(a), Value::Int(b)) = (a, b)
                && !(operator == Power && *b < 0)
            {
                return integers(operator, *a, *b, span);
            }
            if right == 0.0 && matches!(operator, Divide | FloorDivide | Remainder) {
                return Err(wrong(span, "division by zero"));
            }
            let result = match operator {
                Add => left + right,
                Subtract => left - right,
                Multiply => left * right,
                Divide => left / right,
                FloorDivide => (left / right).floor(),
                Remainder => left - right * (left / right).floor(),
                _ => left.powf(right),
            };
            finite(result, span)
        }
    }
}

fn equal(a: &Value, b: &Value, span: &Span) -> Result<bool, Failure> {
    let comparable = matches!((a, b), (Value::Null, _) | (_, Value::Null))
        || (a.number().is_some() && b.number().is_some())
        || std::mem::discriminant(a) == std::mem::discriminant(b);
    if comparable {
        return Ok(a.same(b));
    }
    Err(wrong(span, format!("{} never equals {}: {a} and {b}", a.kind(), b.kind())))
}

fn integers(operator: Operator, a: i64, b: i64, span: &Span) -> Result<Value, Failure> {
    use Operator::*;
    if b == 0 && matches!(operator, Divide | FloorDivide | Remainder) {
        return Err(wrong(span, "division by zero"));
    }
    let result = match operator {
        Add => a.checked_add(b),
        Subtract => a.checked_sub(b),
        Multiply => a.checked_mul(b),
        Divide => match a.checked_rem(b) {
            Some(0) => a.checked_div(b),
            Some(_) => {
                let failure = wrong(span, format!("{a} / {b} is not a whole number"));
                return Err(with_help(failure, "`//` rounds down; make one side a float for a real number"));
            }
            None => None,
        },
        FloorDivide => a.checked_div_euclid(b).map(|quotient| {
            let exact_or_positive = b > 0 || a.wrapping_rem(b) == 0;
            if exact_or_positive { quotient } else { quotient - 1 }
        }),
        Remainder => a.checked_rem(b).map(|rest| if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }),
        _ => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
    };
    result.map(Value::Int).ok_or_else(|| overflow(span))
}

fn call(function: Function, arguments: &[Expr], environment: &dyn Environment, span: &Span) -> Result<Value, Failure> {
    let first = evaluate(&arguments[0], environment)?;
    let needs_number = |value: &Value, span: &Span| {
        value.number().ok_or_else(|| wrong(span, format!("a number is needed here, this is {}: {value}", value.kind())))
    };
    match function {
        Function::Sqrt => {
            let number = needs_number(&first, &arguments[0].span)?;
            if number < 0.0 {
                return Err(wrong(&arguments[0].span, format!("{first} has no square root")));
            }
            Ok(Value::Float(number.sqrt()))
        }
        Function::Log => {
            let number = needs_number(&first, &arguments[0].span)?;
            if number <= 0.0 {
                return Err(wrong(&arguments[0].span, format!("{first} has no logarithm")));
            }
            Ok(Value::Float(number.ln()))
        }
        Function::Exp => {
            let number = needs_number(&first, &arguments[0].span)?.exp();
            if number.is_finite() { Ok(Value::Float(number)) } else { Err(overflow(span)) }
        }
        Function::Int => match &first {
            Value::Int(_) => Ok(first),
            _ => {
                let number = needs_number(&first, &arguments[0].span)?.trunc();
                // Beyond this not every whole number is one of f64.
                if number.abs() < 2f64.powi(53) { Ok(Value::Int(number as i64)) } else { Err(overflow(span)) }
            }
        },
        Function::Len => match &first {
            Value::List(items) => Ok(Value::Int(items.len() as i64)),
            Value::Table(items) => Ok(Value::Int(items.len() as i64)),
            Value::Str(text) => Ok(Value::Int(text.chars().count() as i64)),
            other => {
                let message = format!("`len` needs a list, a table or a text, this is {}", other.kind());
                Err(wrong(&arguments[0].span, message))
            }
        },
        Function::Min | Function::Max => {
            let mut best = (needs_number(&first, &arguments[0].span)?, first);
            for argument in &arguments[1..] {
                let value = evaluate(argument, environment)?;
                let number = needs_number(&value, &argument.span)?;
                if (number < best.0) == (function == Function::Min) && number != best.0 {
                    best = (number, value);
                }
            }
            finite(best.0, span)?;
            Ok(best.1)
        }
    }
}

fn finite(number: f64, span: &Span) -> Result<Value, Failure> {
    if number.is_finite() { Ok(Value::Float(number)) } else { Err(wrong(span, "the result is not a finite number")) }
}

fn overflow(span: &Span) -> Failure {
    wrong(span, "the result does not fit 64 bits")
}

fn symbol(operator: Operator) -> &'static str {
    use Operator::*;
    match operator {
        Or => "or",
        And => "and",
        Equal => "==",
        NotEqual => "!=",
        Less => "<",
        LessEqual => "<=",
        Greater => ">",
        GreaterEqual => ">=",
        In => "in",
        NotIn => "not in",
        Add => "+",
        Subtract => "-",
        Multiply => "*",
        Divide => "/",
        FloorDivide => "//",
        Remainder => "%",
        Power => "**",
    }
}

#[cfg(test)]
mod tests {
    use super::super::Locator;
    use super::*;

    struct Sample;

    impl Environment for Sample {
        fn key(&self, name: &str) -> Result<Option<Value>, Failure> {
            let types = ["full", "sliding"].map(Value::from);
            Ok(match name {
                "hidden_size" => Some(Value::Int(2048)),
                "heads" => Some(Value::Int(32)),
                "theta" => Some(Value::Float(5e5)),
                "layer_types" => Some(Value::List(types.into())),
                "rope" => Some((&serde_json::json!({"factor": 8.0, "extra": null})).into()),
                "nothing" => Some(Value::Null),
                _ => None,
            })
        }

        fn is_null(&self, name: &str) -> bool {
            name == "nothing"
        }

        fn layer(&self) -> Option<usize> {
            Some(1)
        }
    }

    fn run(text: &str) -> Result<Value, String> {
        let file = format!("{text:?}");
        let locator = Locator::of_string(&file, 0..file.len(), text);
        let expr = Expr::parse(text, &locator).map_err(|error| error.message)?;
        expr.evaluate(&Sample).map_err(|failure| match failure {
            Failure::Missing { key, .. } => format!("missing {key}"),
            Failure::Wrong(error) => error.message,
        })
    }

    #[test]
    fn expressions_have_these_values() {
        for (text, expected) in [
            ("1 + 2 * 3", "7"),
            ("2 ** 3 ** 2", "512"),
            ("-2 ** 2", "-4"),
            ("4 ** -0.5", "0.5"),
            ("2 ** -1", "0.5"),
            ("hidden_size / heads", "64"),
            ("7 // 2", "3"),
            ("-7 // 2", "-4"),
            ("7 // -2", "-4"),
            ("-7 // -2", "3"),
            ("-7 % 2", "1"),
            ("7 % -2", "-1"),
            ("7.5 // 2", "3.0"),
            ("1 / 4.0", "0.25"),
            ("absent ?? 3", "3"),
            ("absent ?? other ?? 3", "3"),
            ("nothing ?? 2", "2"),
            ("default(absent, 4) + 1", "5"),
            ("given(heads, 4)", "32"),
            ("given(absent, 2 + 2)", "4"),
            ("given(nothing, 4)", "null"),
            ("given(nothing, 4) ?? 5", "5"),
            ("rope.factor ?? 1.0", "8.0"),
            ("rope.extra ?? 1.0", "1.0"),
            ("absent.factor ?? 1.0", "1.0"),
            ("layer_types[layer]", "\"sliding\""),
            ("layer_types[layer] == 'sliding' and layer >= 1", "true"),
            ("absent ?? false or not true", "false"),
            ("'full' in layer_types", "true"),
            ("3 not in [1, 2.0]", "true"),
            ("1 == 1.0", "true"),
            ("nothing == null", "true"),
            ("1 if heads > 40 else 2 if heads > 20 else 3", "2"),
            ("min(3, 2.5, 9)", "2.5"),
            ("max(3, 2, 9)", "9"),
            ("sqrt(16)", "4.0"),
            ("len(layer_types)", "2"),
            ("int(0.4 * 80)", "32"),
            ("int(-2.5)", "-2"),
            ("[1, 2][0]", "1"),
            ("1e3", "1000.0"),
            ("(1 + 2) * 3", "9"),
        ] {
            assert_eq!(run(text).map(|value| value.to_string()), Ok(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn wrong_expressions_say_why() {
        for (text, expected) in [
            ("7 / 2", "7 / 2 is not a whole number"),
            ("1 / 0", "division by zero"),
            ("absent", "missing absent"),
            ("rope.low", "missing rope.low"),
            ("layer_types[2]", "index 2 is outside the list's 2 elements"),
            ("heads and true", "`and` needs a bool, this is an int: 32"),
            ("'a' == 1", "a string never equals an int: \"a\" and 1"),
            ("'a' + 1", "`+` needs numbers, this is a string: \"a\""),
            ("1 < 2 < 3", "comparisons do not chain"),
            ("1 +", "the expression ends too early"),
            ("1 2", "`2` is not expected here"),
            ("(1", "this `(` has no closing `)`"),
            ("'a", "this text has no closing quote"),
            ("2x", "`2x` is not a number"),
            ("a = 1", "`=` has no meaning in an expression"),
            ("1 if true", "`a if condition else b` needs its `else`"),
            ("given(1, 2)", "`given` needs a configuration key first"),
            ("floor(1)", "there is no function `floor`"),
            ("9223372036854775807 + 1", "the result does not fit 64 bits"),
            ("10.0 ** 400", "the result is not a finite number"),
            ("int(1e300)", "the result does not fit 64 bits"),
            ("int('a')", "a number is needed here, this is a string: \"a\""),
            ("", "the expression ends too early"),
        ] {
            assert_eq!(run(text), Err(expected.to_owned()), "{text}");
        }
        assert!(run(&"(".repeat(10_000)).is_err());
        assert!(run(&"-".repeat(10_000)).is_err());
    }
}
