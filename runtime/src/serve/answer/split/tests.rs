use serde_json::json;

use super::*;

fn shape(may_think: bool, calls: Option<CallFormat>) -> Shape {
    let days = json!({"properties": {"days": {"type": "integer"}, "city": {"type": "string"}}});
    let tools = Arc::new([("get_weather".to_owned(), days), ("f".to_owned(), json!({}))].into());
    Shape { thinks: false, goes_on: false, may_think, calls: calls.map(|format| Calls { format, tools }) }
}

/// What comes of a text, however it is cut: reasoning, text, and calls.
fn split(shape: &Shape, text: &str) -> (String, String, Vec<(String, String)>) {
    let mut results = Vec::new();
    let letters: Vec<char> = text.chars().collect();
    for size in [1, 2, 3, 7, letters.len().max(1)] {
        let mut splitter = Splitter::new(shape.clone());
        let pieces = letters.chunks(size).map(|piece| piece.iter().collect::<String>());
        let mut parts: Vec<Part> = pieces.flat_map(|piece| splitter.push(&piece)).collect();
        parts.extend(splitter.finish());
        let (mut reasoning, mut said, mut calls) = (String::new(), String::new(), Vec::new());
        for part in parts {
            match part {
                Part::Text(text) => said.push_str(&text),
                Part::Reasoning(text) => reasoning.push_str(&text),
                Part::Call { index, name } => {
                    assert_eq!(index, calls.len());
                    calls.push((name, String::new()));
                }
                Part::Arguments { index, text } => calls[index].1.push_str(&text),
            }
        }
        assert_eq!(splitter.calls(), calls.len());
        results.push((reasoning, said, calls));
    }
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{text}: {results:#?}");
    results.swap_remove(0)
}

fn calls(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, arguments)| (name.to_string(), arguments.to_string())).collect()
}

#[test]
fn what_is_thought_is_told_apart_from_what_is_said() {
    let thinks = shape(true, None);
    let of = |text| {
        let (reasoning, said, _) = split(&thinks, text);
        (reasoning, said)
    };
    assert_eq!(of("<think>\nWell…\n</think>\n\nYes."), ("\nWell…\n".into(), "Yes.".into()));
    assert_eq!(of("Yes. <think>no</think>"), (String::new(), "Yes. <think>no</think>".into()));
    assert_eq!(of("<think>cut off</thin"), ("cut off</thin".into(), String::new()));
    assert_eq!(of("<thin air>"), (String::new(), "<thin air>".into()));
    let inside = Shape { thinks: true, ..thinks };
    assert_eq!(split(&inside, "Hm</think>A"), ("Hm".into(), "A".into(), vec![]));
    assert_eq!(split(&shape(false, None), "<think>a</think>").1, "<think>a</think>");
}

#[test]
fn calls_within_tags() {
    let tags = shape(true, Some(CallFormat::Tags));
    let text = "<think>hm</think>\nLet me see.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\",\"n\": 1.0}}\n</tool_call>\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>";
    let wanted = calls(&[("get_weather", "{\"city\": \"Oslo\",\"n\": 1.0}"), ("f", "{}")]);
    assert_eq!(split(&tags, text), ("hm".into(), "Let me see.\n".into(), wanted));
    // What does not parse is text, and so is what only looks like a mark.
    for text in ["<tool_call>\n{\"name\": 5", "<tool_call> none </tool_call>", "a <tool b", "<tool_call>"] {
        assert_eq!(split(&tags, text), (String::new(), text.into(), vec![]), "{text}");
    }
    assert_eq!(split(&tags, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1").2, calls(&[("f", "{\"a\": 1")]));
    let after = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call> and more";
    assert_eq!(split(&tags, after), (String::new(), "and more".into(), calls(&[("f", "{}")])));
}

#[test]
fn calls_that_are_the_whole_answer() {
    let whole = shape(false, Some(CallFormat::Whole));
    let call = "{\"name\": \"f\", \"parameters\": {\"a\": \"}\"}}";
    assert_eq!(split(&whole, call).2, calls(&[("f", "{\"a\": \"}\"}")]));
    assert_eq!(split(&whole, &format!("<|python_tag|>{call}; {call}")).2.len(), 2);
    for text in ["{\"name\": \"stranger\", \"parameters\": {}}", "{\"a\": {\"name\": 1}} yes", "Yes: {\"name\"", "{"] {
        assert_eq!(split(&whole, text), (String::new(), text.into(), vec![]), "{text}");
    }
}

#[test]
fn calls_after_marks() {
    let marks = shape(false, Some(CallFormat::Marks));
    let list =
        "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"a\": [1]}}, {\"name\": \"get_weather\", \"arguments\": {}}]";
    assert_eq!(split(&marks, list).2, calls(&[("f", "{\"a\": [1]}"), ("get_weather", "{}")]));
    let named = "ok[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{\"a\": 1}[TOOL_CALLS]get_weather[ARGS]{}";
    assert_eq!(
        split(&marks, named),
        (String::new(), "ok".into(), calls(&[("f", "{\"a\": 1}"), ("get_weather", "{}")]))
    );
    assert_eq!(split(&marks, "[TOOL_CALLS]nothing").1, "[TOOL_CALLS]nothing");
    assert_eq!(split(&marks, "a [TOOL] b").1, "a [TOOL] b");
}

#[test]
fn calls_whose_parameters_are_tags() {
    let functions = shape(true, Some(CallFormat::Functions));
    let call = "<function=get_weather>\n<parameter=city>\nOslo \"N\"\n\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>";
    let wanted = ("get_weather", "{\"city\": \"Oslo \\\"N\\\"\\n\", \"days\": 3}");
    let tagged =
        format!("Let me see.\n<tool_call>\n{call}\n</tool_call>\n<tool_call>\n<function=f>\n</function>\n</tool_call>");
    let two = calls(&[wanted, ("f", "{}")]);
    assert_eq!(split(&functions, &tagged), (String::new(), "Let me see.\n".into(), two));
    assert_eq!(split(&functions, &format!("{call} and more")), (String::new(), "and more".into(), calls(&[wanted])));
    // What no schema says is JSON where it can be.
    let free = "<function=f><parameter=a>[1]</parameter><parameter=b>x</parameter></function>";
    assert_eq!(split(&functions, free).2, calls(&[("f", "{\"a\": [1], \"b\": \"x\"}")]));
    let wrong = "<function=get_weather><parameter=days>few</parameter></function>";
    assert_eq!(split(&functions, wrong).2, calls(&[("get_weather", "{\"days\": \"few\"}")]));
    for text in [
        "<tool_call>\n{\"name\": 5",
        "<function>",
        "<function=",
        "<function=f\n",
        "<tool_call> <tool_call>",
        "<function=>",
    ] {
        assert_eq!(split(&functions, text), (String::new(), text.into(), vec![]), "{text}");
    }
    let cut = "<function=f>\n<parameter=a>\n1\n</parameter>\n and so on";
    assert_eq!(split(&functions, cut), (String::new(), "\n and so on".into(), calls(&[("f", "{\"a\": 1}")])));
}
