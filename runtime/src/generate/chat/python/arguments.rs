//! The arguments of methods and filters, and what is said where they are refused.

use minijinja::value::{Kwargs, from_args};
use minijinja::{Error, ErrorKind, Value};

pub(super) fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// The text that an argument must be.
pub(super) fn string(value: Value) -> Result<String, Error> {
    value.as_str().map(str::to_owned).ok_or_else(|| refused(format!("an argument is a {}, not text", value.kind())))
}

/// Arguments by name: positional ones in the order of `names`, then those given by keyword. None is as good as absent.
pub(super) fn named<const N: usize>(arguments: &[Value], names: [&str; N]) -> Result<[Option<Value>; N], Error> {
    let (positional, by_keyword): (&[Value], Kwargs) = from_args(arguments)?;
    if positional.len() > N {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let mut found = [const { None }; N];
    for (at, name) in names.into_iter().enumerate() {
        found[at] = match positional.get(at) {
            Some(value) => Some(value.clone()).filter(|value| !value.is_none()),
            None => by_keyword.get(name)?,
        };
    }
    by_keyword.assert_all_used()?;
    Ok(found)
}
