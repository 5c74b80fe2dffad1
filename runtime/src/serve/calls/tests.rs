use serde_json::Map;

use super::super::answer::{Part, Splitter};
use super::*;
use crate::demo;

/// The demo's tokenizer, with tokens that are no text.
fn tokenizer(special: &[&str]) -> Arc<Tokenizer> {
    let mut file: Value = serde_json::from_slice(include_bytes!("../../../../models/demo/tokenizer.json")).unwrap();
    let plain = demo::tokenizer().unwrap().vocabulary_size();
    for (index, text) in special.iter().enumerate() {
        let token = json!({
            "id": plain + index, "content": text, "special": true, "normalized": false, "single_word": false, "lstrip": false,
            "rstrip": false,
        });
        file["added_tokens"].as_array_mut().unwrap().push(token);
    }
    let config: Value = serde_json::from_str(include_str!("../../../../models/demo/tokenizer_config.json")).unwrap();
    Arc::new(
        Tokenizer::from_bytes(file.to_string().as_bytes(), &config, &[&demo::generation_config().unwrap()]).unwrap(),
    )
}

fn tools() -> Vec<Tool> {
    let weather = json!({
        "type": "object",
        "properties": {
            "city": {"enum": ["Oslo", "Bergen"]}, "days": {"$ref": "#/$defs/days"}, "note": {"type": "string", "maxLength": 5},
        },
        "required": ["city", "days"],
        "additionalProperties": false,
        "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
    });
    let sink = json!({"properties": {"now": {"type": "boolean"}}, "required": ["now"], "additionalProperties": false});
    [("weather", weather), ("sink", sink)]
        .map(|(name, parameters)| Tool::of(&json!({"function": {"name": name, "parameters": parameters}})))
        .to_vec()
}

/// Checks a call against [`tools`].
fn check(name: &str, arguments: &str, text: &str) {
    let value: Map<String, Value> = serde_json::from_str(arguments).unwrap_or_else(|error| panic!("{error}: {text}"));
    match name {
        "sink" => assert!(value.len() == 1 && value["now"].is_boolean(), "{text}"),
        "weather" => {
            assert!(["Oslo", "Bergen"].map(Value::from).contains(&value["city"]), "{text}");
            assert!((1..=9).contains(&value["days"].as_i64().unwrap()), "{text}");
            let note = value.get("note").map(|note| note.as_str().unwrap().chars().count());
            assert!(
                note.is_none_or(|letters| letters <= 5) && value.len() == 2 + usize::from(note.is_some()),
                "{text}"
            );
        }
        other => panic!("{other} is called: {text}"),
    }
}

/// What a model writes that wants to say this, and anything else where that is not allowed.
fn write(grammar: &Grammar, tokenizer: &Tokenizer, wish: &str, seed: usize) -> String {
    let mut wish: Vec<u32> = tokenizer.encode(wish, false).unwrap().into_iter().rev().collect();
    let (mut matcher, mut text, mut draw) = (grammar.begin(), Vec::new(), seed);
    let end = tokenizer.eos().next().unwrap();
    for _ in 0..600 {
        let allowed = matcher.allowed().unwrap();
        let wanted = wish.pop().unwrap_or(end);
        let mut token = wanted;
        if !allowed.has(wanted as usize) {
            let all: Vec<usize> = (0..tokenizer.vocabulary_size()).filter(|&token| allowed.has(token)).collect();
            draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            token = all[(draw >> 33) % all.len()] as u32;
        }
        if token == end {
            return tokenizer.decode(&text, false).unwrap();
        }
        matcher.take(token).unwrap();
        text.push(token);
    }
    panic!("it does not end: {}", tokenizer.decode(&text, false).unwrap());
}

/// What is said and what is called.
fn read(format: CallFormat, thinks: bool, text: &str) -> (String, Vec<(String, String)>) {
    let tools = tools().into_iter().map(|tool| (tool.name, tool.parameters)).collect();
    let calls = Some(Calls { format, tools: Arc::new(tools) });
    let mut splitter = Splitter::new(Shape { thinks: false, goes_on: false, may_think: thinks, calls });
    let mut parts: Vec<Part> = text.chars().flat_map(|letter| splitter.push(&letter.to_string())).collect();
    parts.extend(splitter.finish());
    let (mut said, mut calls) = (String::new(), Vec::new());
    for part in parts {
        match part {
            Part::Text(text) => said += &text,
            Part::Reasoning(_) => {}
            Part::Call { name, .. } => calls.push((name, String::new())),
            Part::Arguments { index, text } => calls[index].1 += &text,
        }
    }
    (said, calls)
}

/// Each form, the tokens of its model that are no text, and how a call begins.
const FORMS: [(CallFormat, &[&str], &str); 8] = [
    (CallFormat::Tags, &[], "<tool_call>"),
    (CallFormat::Tags, &["<tool_call>", "</tool_call>"], "<tool_call>"),
    (CallFormat::Marks, &[], "[TOOL_CALLS]"),
    (CallFormat::Marks, &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"], "[TOOL_CALLS]"),
    (CallFormat::Whole, &[], "<|python_tag|>"),
    (CallFormat::Whole, &["<|python_tag|>"], "<|python_tag|>"),
    (CallFormat::Functions, &[], "<function="),
    (CallFormat::Functions, &["<tool_call>", "</tool_call>"], "<tool_call>"),
];

#[test]
fn a_call_at_any_place_is_as_its_tool_says() {
    for (format, special, begin) in FORMS {
        let tokenizer = tokenizer(special);
        let grammars = tokenizer.grammars();
        let compile = |thought, once| {
            let writing = Writing::new(format, &tokenizer, false);
            let marked = marked(format, &writing, &tools(), thought, once).unwrap();
            grammars.compile(&Source::Marked(marked)).unwrap()
        };
        let grammar = compile(Thought::None, false);
        for seed in 0..6 {
            // Nothing is changed where no mark is.
            let free = "Call me <tool, or [TOOL, or {\"name\": \"Ishmael\"}.\n\nThe whale";
            assert_eq!(write(&grammar, &tokenizer, free, seed), free, "{format:?}");
            let text = write(&grammar, &tokenizer, &format!("Let me see.\n{begin}call the whale, I say"), seed);
            let (said, calls) = read(format, false, &text);
            assert!(said.starts_with("Let me see.\n") && !calls.is_empty(), "{format:?}: {text}");
            calls.iter().for_each(|(name, arguments)| check(name, arguments, &text));
            let wish = format!("{begin}no{begin}{begin}x");
            let text = write(&grammar, &tokenizer, &wish, seed);
            read(format, false, &text).1.iter().for_each(|(name, arguments)| check(name, arguments, &text));
        }
        let one = compile(Thought::None, true);
        for seed in 0..6 {
            let text = write(&one, &tokenizer, &format!("{begin}{begin}{begin}"), seed);
            let calls = read(format, false, &text).1;
            assert_eq!(calls.len(), 1, "{text}");
        }
        let thoughtful = compile(Thought::Open, false);
        let thought = format!("<think>\nI may {begin} none</think>\n\nNo.");
        assert_eq!(write(&thoughtful, &tokenizer, &thought, 0), thought, "{format:?}");
        let text = write(&thoughtful, &tokenizer, &format!("{thought}{begin}?"), 1);
        let (said, calls) = read(format, true, &text);
        assert!(said.starts_with("No.") && calls.len() == 1, "{format:?}: {text}");
        check(&calls[0].0, &calls[0].1, &text);
        let begun = compile(Thought::Begun, false);
        let thought = format!("I may {begin} none</think> No.");
        assert_eq!(write(&begun, &tokenizer, &thought, 0), thought, "{format:?}");
    }
}

#[test]
fn an_object_that_names_a_tool_is_a_call_where_nothing_is_before_it() {
    let tokenizer = tokenizer(&[]);
    let grammars = tokenizer.grammars();
    let writing = Writing::new(CallFormat::Whole, &tokenizer, false);
    let marked = marked(CallFormat::Whole, &writing, &tools(), Thought::None, false).unwrap();
    let grammar = grammars.compile(&Source::Marked(marked)).unwrap();
    for begin in ["{\"name\": \"weather\"", " {\"name\":\"sink\"", "{\"type\": \"function\", \"name\": \"sink\""] {
        for seed in 0..6 {
            let text = write(&grammar, &tokenizer, &format!("{begin} is what I call it"), seed);
            let calls = read(CallFormat::Whole, false, &text).1;
            assert_eq!(calls.len(), 1, "{text}");
            check(&calls[0].0, &calls[0].1, &text);
            let later = format!("So: {begin} is what I call it");
            assert_eq!(write(&grammar, &tokenizer, &later, seed), later);
        }
    }
    let two =
        "{\"name\": \"sink\", \"parameters\": {\"now\": true}}; {\"name\": \"sink\", \"parameters\": {\"now\": 5}}";
    let calls = read(CallFormat::Whole, false, &write(&grammar, &tokenizer, two, 0)).1;
    assert_eq!(calls.len(), 2);
    calls.iter().for_each(|(name, arguments)| check(name, arguments, arguments));
}

#[test]
fn a_call_that_is_asked_for_is_one_call_in_each_form() {
    for (format, special, _) in FORMS {
        let tokenizer = tokenizer(special);
        let writing = Writing::new(format, &tokenizer, false);
        let rules = format!("start: {}\n{}", writing.whole("call"), writing.call(&tools()).unwrap());
        let grammar = tokenizer.grammars().compile(&Source::Lark(rules)).unwrap();
        for seed in 0..8 {
            let text = write(&grammar, &tokenizer, "I would rather talk.", seed);
            let (said, calls) = read(format, false, &text);
            assert_eq!((said.as_str(), calls.len()), ("", 1), "{format:?}: {text}");
            check(&calls[0].0, &calls[0].1, &text);
        }
    }
}
