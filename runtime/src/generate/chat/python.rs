//! What templates expect of Python and Jinja2: methods, constants, tests, filters, JSON and dates. `tests/jinja` compares them one by one.

mod arguments;
mod filters;
mod json;
mod methods;
mod percent;
mod text;

use arguments::refused;
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, Output, State, Value, context, escape_formatter};
use std::time::{SystemTime, UNIX_EPOCH};

use super::syntax::REMAINDER;

/// Gives an environment the methods, functions, tests and filters that transformers' has.
pub(super) fn imitate(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(print);
    filters::add(environment);
    environment.add_test("callable", |value: &Value| matches!(value.kind(), ValueKind::Undefined | ValueKind::Plain));
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    // Slices and sums of lists are iterables here, and lists in Python.
    environment.add_test("sequence", |value: &Value| {
        use ValueKind::{Iterable, Map, Seq, String, Undefined};
        matches!(value.kind(), Undefined | String | Seq | Iterable | Map)
    });
    environment.add_test("lower", |value: &Value| methods::is_lower(&text::of(value)));
    environment.add_test("upper", |value: &Value| methods::is_upper(&text::of(value)));
    environment.add_test("filter", |state: &State<'_, '_>, value: &Value| {
        value.as_str().is_some_and(|name| minijinja::tests::is_filter(state, name))
    });
    environment.add_test("test", |state: &State<'_, '_>, value: &Value| {
        value.as_str().is_some_and(|name| minijinja::tests::is_test(state, name))
    });
    environment
        .add_function("cycler", |items: minijinja::value::Rest<Value>| minijinja_contrib::globals::cycler(items.0));
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.add_function(REMAINDER, |state: &State<'_, '_>, left: Value, right: Value| match left.as_str() {
        Some(template) => percent::format(template, &right).map(Value::from),
        None => state.env().compile_expression("left % right")?.eval(context! { left, right }),
    });
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> { Err(refused(message)) });
    environment.add_function("strftime_now", |format: String| -> Result<String, Error> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        strftime(&format, since).map_err(|code| refused(format!("strftime_now does not know %{code}")))
    });
}

/// Prints what Python spells otherwise than the crate: constants, lists, mappings and floats.
fn print(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None
        | ValueKind::Bool
        | ValueKind::Number
        | ValueKind::Seq
        | ValueKind::Iterable
        | ValueKind::Map => out.write_str(&text::of(value)).map_err(Error::from),
        _ => escape_formatter(out, state, value),
    }
}

/// The UTC time `seconds` after 1970 in strftime's codes for days and times; the code itself where it is not one of them.
fn strftime(format: &str, seconds: u64) -> Result<String, char> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, second) = (seconds / 86400, seconds % 86400);
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        // glibc's mark for a number without its padding.
        let bare = characters.as_str().starts_with('-');
        if bare {
            characters.next();
        }
        let begin = out.len();
        match characters.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&format!("{:02}", year % 100)),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('H') => out.push_str(&format!("{:02}", second / 3600)),
            Some('M') => out.push_str(&format!("{:02}", second / 60 % 60)),
            Some('S') => out.push_str(&format!("{:02}", second % 60)),
            Some('e') => out.push_str(&format!("{day:2}")),
            Some('j') => out.push_str(&format!("{:03}", days - first_day(year) + 1)),
            Some('I') => out.push_str(&format!("{:02}", (second / 3600 + 11) % 12 + 1)),
            Some('p') => out.push_str(if second < 43200 { "AM" } else { "PM" }),
            Some('w') => out.push_str(&((days + 4) % 7).to_string()),
            Some('u') => out.push_str(&((days + 3) % 7 + 1).to_string()),
            Some('f') => out.push_str("000000"),
            Some('F') => out.push_str(&strftime("%Y-%m-%d", seconds)?),
            Some('T' | 'X') => out.push_str(&strftime("%H:%M:%S", seconds)?),
            Some('R') => out.push_str(&strftime("%H:%M", seconds)?),
            Some('D' | 'x') => out.push_str(&strftime("%m/%d/%y", seconds)?),
            Some('c') => out.push_str(&strftime("%a %b %e %H:%M:%S %Y", seconds)?),
            // A time without a zone, as datetime.now() is.
            Some('z' | 'Z') => {}
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('%') => out.push('%'),
            other => return Err(other.unwrap_or('%')),
        }
        if bare {
            let padding = out[begin..].chars().take_while(|&c| c == '0' || c == ' ').count();
            out.drain(begin..begin + padding.min(out.len() - begin - 1));
        }
    }
    Ok(out)
}

/// The day of January 1st, counted from 1970-01-01.
fn first_day(year: u64) -> u64 {
    let before = year - 1;
    365 * (year - 1970) + (before / 4 - before / 100 + before / 400) - 477
}

/// Year, month and day of a day counted from 1970-01-01 (the Gregorian calendar in eras of 400 years that begin in March).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_around_leap_days() {
        assert_eq!(strftime("%d %b %Y", 0).unwrap(), "01 Jan 1970");
        assert_eq!(strftime("%A %d %B %Y %H:%M:%S", 951_827_696).unwrap(), "Tuesday 29 February 2000 12:34:56");
        assert_eq!(strftime("%Y-%m-%d %a %y%%", 1_735_689_599).unwrap(), "2024-12-31 Tue 24%");
        assert_eq!(strftime("%j %-j %e %-d %I%p %u %w", 0).unwrap(), "001 1  1 1 12AM 4 4");
        assert_eq!(strftime("%j", 1_735_689_599).unwrap(), "366");
        assert_eq!(
            strftime("%c|%F %T|%-I %p|%Z", 951_827_696).unwrap(),
            "Tue Feb 29 12:34:56 2000|2000-02-29 12:34:56|12 PM|"
        );
        assert_eq!(strftime("%Q", 0), Err('Q'));
    }
}
