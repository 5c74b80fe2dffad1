//! Chat templates against Jinja2 as transformers sets it up: each of its tests, filters, methods and operators over every type of value.
//! `tests/jinja/make.py` writes what Jinja2 makes of them.

use fuse_tests::root;
use fuserun::generate::chat::ChatTemplate;
use serde_json::{Map, Value, json};

/// What differs, by a part of the templates that have it, and why that stands. No chat template that was seen leans on any of it.
const DIFFERENCES: &[(&str, &str)] = &[
    // For web pages and prose.
    ("filesizeformat", "a filter that no chat template has a use for"),
    ("random", "a filter whose text is another one each time"),
    ("striptags", "a filter for HTML"),
    ("wordwrap", "a filter for prose"),
    ("xmlattr", "a filter for HTML"),
    ("| urlencode", "of a mapping or a list it makes a query, which no prompt has"),
    ("lipsum", "a function for mock-ups"),
    ("pprint", "for debugging: Jinja2 sorts keys and breaks lines"),
    ("self is defined", "blocks are of templates that extend others"),
    // Of the language, inside the crate.
    ("-true", "a truth has no minus"),
    ("minus ** half", "there are no complex numbers"),
    ("[1.0]", "a float that is whole is an index"),
    ("varargs", "a macro takes the arguments that it names"),
    ("missing is sameas(missing)", "what is not defined is one value"),
    ("['upper']()", "a method is called by its name after a dot"),
    ("['items']()", "a method is called by its name after a dot"),
    ("map.get is defined", "a method is no value"),
    ("| attr('a')", "it finds the keys of a mapping too"),
    // What is printed as a lone value only.
    (".items() }}", "a view of a mapping prints as the list it gives"),
    (".keys() }}", "a view of a mapping prints as the list it gives"),
    (".values() }}", "a view of a mapping prints as the list it gives"),
    ("range(", "a range prints as the list it gives"),
    ("groupby('name') | list", "a group prints as a list, not as a tuple"),
    // What Python has and prompts do not.
    (".encode()", "there are no bytes"),
    (".fromkeys(", "a constructor"),
    (".real", "a number has no parts"),
    (".imag", "a number has no parts"),
    (".numerator", "a number has no parts"),
    ("{!r}", "a conversion within format"),
    ("dict([", "a mapping of pairs"),
    ("c.current", "a cycler tells its next item only"),
    ("zero | ", "zero is no empty list to a filter of lists"),
    ("no | ", "false is no empty list to a filter of lists"),
    ("truncate(", "of a list it cuts the text of it"),
    ("accents | sort", "letters beyond ASCII are sorted with their case"),
    ("accents | max", "letters beyond ASCII are sorted with their case"),
];

/// Where Jinja2 raises, a template may go on here: what is compared with what and added to what is not refused as Python refuses it.
#[test]
fn templates_say_what_jinja2_says() {
    let text = std::fs::read_to_string(root().join("tests/jinja/expected.json")).unwrap();
    let table: Value = serde_json::from_str(&text).unwrap();
    let variables = table["variables"].as_object().unwrap();
    let cases = table["cases"].as_array().unwrap();
    assert!(cases.len() > 9000, "{} cases", cases.len());
    let mut wrong = Vec::new();
    let mut found = vec![0; DIFFERENCES.len()];
    let (mut equal, mut refused) = (0, 0);
    for case in cases {
        let source = case[0].as_str().unwrap();
        let template = ChatTemplate::new(source, Map::new());
        let made = template.and_then(|template| template.render_json(json!([]), false, variables.clone()));
        let made = made.map_err(|error| format!("{error:#}"));
        match case[1].as_str() {
            None => refused += usize::from(made.is_err()),
            Some(expected) if made.as_deref() == Ok(expected) => equal += 1,
            Some(expected) => match DIFFERENCES.iter().position(|(part, _)| source.contains(part)) {
                Some(listed) => found[listed] += 1,
                None => wrong.push(format!("{source:?}\n  made     {made:?}\n  expected {expected:?}")),
            },
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ\n{}", wrong.len(), cases.len(), wrong[..wrong.len().min(40)].join("\n"));
    let stale = DIFFERENCES.iter().zip(&found).filter(|(_, count)| **count == 0).map(|(difference, _)| difference.0);
    assert_eq!(stale.collect::<Vec<_>>(), [""; 0], "these differ no more: take them out of the list");
    assert!(equal > 5500 && refused > 2000, "{equal} equal, {refused} refused by both");
}
