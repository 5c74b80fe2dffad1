use std::fmt::Write as _;

/// How many of a log's errors an error message repeats.
const SHOWN: usize = 3;

/// The first errors of a compile log, each with the source line it points at; the whole log where no line of it reads as an error.
pub(super) fn first_errors(log: &str, file: &str, source: &str) -> String {
    let errors: Vec<&str> = log.lines().filter(|line| is_error(line)).collect();
    if errors.is_empty() {
        return format!("\n{}", log.trim_end());
    }
    let mut text = String::new();
    for error in errors.iter().take(SHOWN) {
        let _ = write!(text, "\n{error}");
        if let Some((number, line)) = source_line(error, file, source) {
            let _ = write!(text, "\n{number:>5} | {line}");
        }
    }
    if errors.len() > SHOWN {
        let _ = write!(text, "\n… and {} more", errors.len() - SHOWN);
    }
    text
}

/// `k.cu(3): error: …`, `k.cu(3): catastrophic error: …` and `ptxas application ptx input, line 9; error   : …`.
fn is_error(line: &str) -> bool {
    line.contains(": error")
        || line.contains(" error: ")
        || line.contains("; error ")
        || line.starts_with("ptxas fatal")
}

fn source_line<'a>(error: &str, file: &str, source: &'a str) -> Option<(usize, &'a str)> {
    let number: usize = error.strip_prefix(file)?.strip_prefix('(')?.split(')').next()?.parse().ok()?;
    Some((number, source.lines().nth(number.checked_sub(1)?)?.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_carries_its_line() {
        let log = "k.cu(2): error: identifier \"foo\" is undefined\n   foo = 1;\n   ^\n\n1 error detected in the compilation of \"k.cu\".\n";
        let shown = first_errors(log, "k.cu", "void k() {\n  foo = 1;\n}\n");
        assert_eq!(shown, "\nk.cu(2): error: identifier \"foo\" is undefined\n    2 |   foo = 1;");
    }

    #[test]
    fn later_errors_are_counted() {
        let log: String = (1..=5).map(|line| format!("k.cu({line}): error: bad\n")).collect();
        let shown = first_errors(&log, "k.cu", "a\nb\nc\nd\ne\n");
        assert!(shown.contains("    3 | c") && !shown.contains("    4 | d"), "{shown}");
        assert!(shown.ends_with("… and 2 more"), "{shown}");
    }

    #[test]
    fn an_assembler_error_is_shown_as_it_is() {
        let log = "ptxas application ptx input, line 21; error   : Not a name of any known instruction: 'bogus'\n";
        assert_eq!(first_errors(log, "k.cu", ""), format!("\n{}", log.trim_end()));
    }

    #[test]
    fn a_log_without_errors_is_shown_whole() {
        assert_eq!(first_errors("nvrtc: no good\n", "k.cu", ""), "\nnvrtc: no good");
    }
}
