//! `text % values`: Python's formatting in the style of printf.

use std::iter::Peekable;
use std::str::Chars;

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::arguments::refused;
use super::text;

/// The widest field, and the most digits: what no text needs is refused.
const WIDEST: usize = 1 << 16;

/// `template % values`: of a tuple each value in turn, of a mapping those that `%(name)s` names.
pub(super) fn format(template: &str, values: &Value) -> Result<String, Error> {
    let given = if values.is_tuple() { values.try_iter()?.collect() } else { vec![values.clone()] };
    let mut left = given.into_iter();
    let mut named = false;
    let mut out = String::new();
    let mut characters = template.chars().peekable();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let key = key(&mut characters)?;
        let mut next = || left.next().ok_or_else(|| refused("not enough arguments for format string"));
        let spec = Spec::read(&mut characters, &mut next)?;
        if spec.conversion == '%' {
            out.push('%');
            continue;
        }
        let value = match key {
            None => next()?,
            Some(key) if values.kind() == ValueKind::Map => {
                named = true;
                let value = values.get_attr(&key)?;
                if value.is_undefined() {
                    return Err(refused(format!("the format names {key:?}, which the mapping lacks")));
                }
                value
            }
            Some(_) => return Err(refused("format requires a mapping")),
        };
        out.push_str(&spec.apply(&value)?);
    }
    let may_be_left = named || matches!(values.kind(), ValueKind::Map | ValueKind::Undefined) || is_list(values);
    if !may_be_left && left.next().is_some() {
        return Err(refused("not all arguments converted during string formatting"));
    }
    Ok(out)
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) && !value.is_tuple()
}

/// The name in `%(name)s`, whose brackets may hold others.
fn key(characters: &mut Peekable<Chars<'_>>) -> Result<Option<String>, Error> {
    if characters.next_if_eq(&'(').is_none() {
        return Ok(None);
    }
    let (mut key, mut depth) = (String::new(), 1);
    for character in characters.by_ref() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Ok(Some(key));
        }
        key.push(character);
    }
    Err(refused("incomplete format key"))
}

/// What stands between `%` and its letter, and the letter.
#[derive(Default)]
struct Spec {
    left: bool,
    zero: bool,
    alternate: bool,
    plus: bool,
    blank: bool,
    width: usize,
    precision: Option<usize>,
    conversion: char,
}

impl Spec {
    fn read(
        characters: &mut Peekable<Chars<'_>>,
        next: &mut dyn FnMut() -> Result<Value, Error>,
    ) -> Result<Spec, Error> {
        let mut spec = Spec::default();
        while let Some(flag) = characters.next_if(|c| matches!(c, '-' | '0' | '#' | '+' | ' ')) {
            match flag {
                '-' => spec.left = true,
                '0' => spec.zero = true,
                '#' => spec.alternate = true,
                '+' => spec.plus = true,
                _ => spec.blank = true,
            }
        }
        let width = number(characters, next)?.unwrap_or(0);
        spec.left |= width < 0;
        spec.width = checked(width.unsigned_abs())?;
        if characters.next_if_eq(&'.').is_some() {
            spec.precision = Some(checked(number(characters, next)?.unwrap_or(0).max(0).unsigned_abs())?);
        }
        characters.next_if(|c| matches!(c, 'h' | 'l' | 'L'));
        spec.conversion = characters.next().ok_or_else(|| refused("incomplete format"))?;
        Ok(spec)
    }

    fn apply(&self, value: &Value) -> Result<String, Error> {
        let plain = match self.conversion {
            's' => text::of(value),
            'r' => text::representation(value),
            'a' => ascii(&text::representation(value)),
            'c' => return character(value).map(|character| self.padded("", &character.to_string(), ' ')),
            'd' | 'i' | 'u' => return self.integer(&integer(value, true)?, "", 10),
            'x' | 'X' => return self.integer(&integer(value, false)?, "0x", 16),
            'o' => return self.integer(&integer(value, false)?, "0o", 8),
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => return self.float(value),
            other => return Err(refused(format!("unsupported format character {other:?}"))),
        };
        let cut: String = plain.chars().take(self.precision.unwrap_or(usize::MAX)).collect();
        Ok(self.padded("", &cut, ' '))
    }

    /// An integer, given in decimal digits.
    fn integer(&self, decimal: &str, prefix: &str, radix: u32) -> Result<String, Error> {
        let (sign, digits) = self.signed(decimal);
        let magnitude = || digits.parse::<u128>().map_err(|_| refused(format!("{decimal} is too large")));
        let digits = match radix {
            10 => digits.to_owned(),
            16 => format!("{:x}", magnitude()?),
            _ => format!("{:o}", magnitude()?),
        };
        let missing = self.precision.unwrap_or(0).saturating_sub(digits.len());
        let prefix = if self.alternate { prefix } else { "" };
        let (head, body) = (format!("{sign}{prefix}"), "0".repeat(missing) + &digits);
        let made = self.padded(&head, &body, if self.zero { '0' } else { ' ' });
        Ok(if self.conversion == 'X' { made.to_uppercase() } else { made })
    }

    fn float(&self, value: &Value) -> Result<String, Error> {
        let value = match value.kind() {
            ValueKind::Number => f64::try_from(value.clone())?,
            ValueKind::Bool => f64::from(u8::from(value.is_true())),
            other => return Err(refused(format!("%{} needs a number, not {other}", self.conversion))),
        };
        let precision = self.precision.unwrap_or(6);
        let magnitude = value.abs();
        let digits = match self.conversion.to_ascii_lowercase() {
            _ if value.is_nan() => "nan".to_owned(),
            _ if value.is_infinite() => "inf".to_owned(),
            'f' => self.with_point(format!("{magnitude:.precision$}")),
            'e' => self.with_point(exponential(magnitude, precision)),
            _ => self.general(magnitude, precision.max(1)),
        };
        let negative = value.is_sign_negative() && !value.is_nan();
        let signed = if negative { format!("-{digits}") } else { digits };
        let (sign, digits) = self.signed(&signed);
        let made = self.padded(sign, digits, if self.zero { '0' } else { ' ' });
        Ok(if self.conversion.is_ascii_uppercase() { made.to_uppercase() } else { made })
    }

    /// As many digits as are asked for, without trailing zeros, in the shorter form.
    fn general(&self, magnitude: f64, digits: usize) -> String {
        let long = exponential(magnitude, digits - 1);
        let Some((mantissa, exponent)) = long.split_once('e') else { return long };
        let exponent: i64 = exponent.parse().unwrap_or(0);
        let places = digits as i64 - 1 - exponent;
        let bare = |text: &str| match text.contains('.') && !self.alternate {
            true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
            false => text.to_owned(),
        };
        match usize::try_from(places) {
            Ok(places) if exponent >= -4 => bare(&self.with_point(format!("{magnitude:.places$}"))),
            _ => self.with_point(format!("{}e{}", bare(mantissa), &long[mantissa.len() + 1..])),
        }
    }

    /// With `#`, a point follows whole numbers too.
    fn with_point(&self, text: String) -> String {
        match (self.alternate && !text.contains('.'), text.split_once('e')) {
            (false, _) => text,
            (true, None) => text + ".",
            (true, Some((mantissa, exponent))) => format!("{mantissa}.e{exponent}"),
        }
    }

    fn signed<'t>(&self, text: &'t str) -> (&'static str, &'t str) {
        match text.strip_prefix('-') {
            Some(digits) => ("-", digits),
            None if self.plus => ("+", text),
            None if self.blank => (" ", text),
            None => ("", text),
        }
    }

    fn padded(&self, head: &str, body: &str, fill: char) -> String {
        let missing = self.width.saturating_sub(head.chars().count() + body.chars().count());
        let fill = if self.left { ' ' } else { fill };
        let padding = fill.to_string().repeat(missing);
        match (self.left, fill) {
            (true, _) => format!("{head}{body}{padding}"),
            (false, '0') => format!("{head}{padding}{body}"),
            (false, _) => format!("{padding}{head}{body}"),
        }
    }
}

/// A width or a precision: digits, or `*` for the next of the values.
fn number(
    characters: &mut Peekable<Chars<'_>>,
    next: &mut dyn FnMut() -> Result<Value, Error>,
) -> Result<Option<i64>, Error> {
    if characters.next_if_eq(&'*').is_some() {
        let value = next()?;
        return if value.is_integer() { Ok(Some(i64::try_from(value)?)) } else { Err(refused("* wants int")) };
    }
    let mut digits = String::new();
    while let Some(digit) = characters.next_if(char::is_ascii_digit) {
        digits.push(digit);
    }
    match digits.as_str() {
        "" => Ok(None),
        digits => digits.parse().map(Some).map_err(|_| refused(format!("{digits} is too wide"))),
    }
}

fn checked(width: u64) -> Result<usize, Error> {
    usize::try_from(width).ok().filter(|width| *width <= WIDEST).ok_or_else(|| refused(format!("{width} is too wide")))
}

/// A number's decimal digits; a float loses its fraction where that is allowed.
fn integer(value: &Value, floats: bool) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Bool => Ok(u8::from(value.is_true()).to_string()),
        ValueKind::Number if value.is_integer() => Ok(value.to_string()),
        ValueKind::Number if floats => match f64::try_from(value.clone())?.trunc() {
            whole if whole.is_finite() => Ok(format!("{:.0}", whole + 0.0)),
            other => Err(refused(format!("cannot convert float {other} to integer"))),
        },
        other => Err(refused(format!("the format needs an integer, not {other}"))),
    }
}

/// One character: itself, or the one of this number.
fn character(value: &Value) -> Result<char, Error> {
    let mut characters = value.as_str().unwrap_or_default().chars();
    let found = match (characters.next(), characters.next()) {
        (Some(character), None) => Some(character),
        _ => integer(value, false).ok().and_then(|code| char::from_u32(code.parse().ok()?)),
    };
    found.ok_or_else(|| refused("%c needs one character or its number"))
}

/// Digits and an exponent of two digits at least.
fn exponential(magnitude: f64, precision: usize) -> String {
    let text = format!("{magnitude:.precision$e}");
    let Some((mantissa, exponent)) = text.split_once('e') else { return text };
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    format!("{mantissa}e{sign}{exponent:0>2}")
}

/// The text with what is beyond ASCII as escapes.
fn ascii(text: &str) -> String {
    let escaped = |c: char| match u32::from(c) {
        0..0x80 => c.to_string(),
        code @ 0x80..0x100 => format!("\\x{code:02x}"),
        code @ 0x100..0x10000 => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    };
    text.chars().map(escaped).collect()
}
