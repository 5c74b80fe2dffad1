use super::*;
use serde_json::{Value, json};

const END: u32 = 256;
const MARK: u32 = 257;

/// A token for each byte, one that ends a text, one with a name, and one of several bytes.
fn grammars() -> Grammars {
    let mut words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    words.extend([b"</s>".to_vec(), b"<mark>".to_vec(), b"\": ".to_vec()]);
    Grammars::new(move || Ok(Words { words, special: vec![END, MARK], ends: vec![END, 9999] }))
}

/// Whether a text is one of the grammar's, as a whole.
fn holds(grammar: &Grammar, text: &str) -> bool {
    let mut matcher = grammar.begin();
    for byte in text.bytes() {
        if !matcher.allowed().is_ok_and(|allowed| allowed.has(usize::from(byte))) {
            return false;
        }
        matcher.take(u32::from(byte)).unwrap();
    }
    matcher.allowed().unwrap().has(END as usize)
}

fn schema(schema: Value, strict: bool) -> Result<Grammar> {
    grammars().compile(&Source::Schema { schema, strict })
}

#[test]
fn a_schema_holds_a_text() {
    let point = json!({"type": "object", "properties": {"x": {"type": "integer"}, "y": {"enum": ["a", null]}}, "required": ["x"],
        "additionalProperties": false});
    let grammar = schema(point, true).unwrap();
    for text in ["{\"x\":1}", "{\"x\": -12, \"y\": null}", "{ \"x\": 0, \"y\": \"a\" }"] {
        assert!(holds(&grammar, text), "{text}");
    }
    let endless = format!("{{{}\"x\":1}}", " ".repeat(2));
    for text in ["{\"x\":1.5}", "{\"y\":\"a\"}", "{\"x\":1,\"z\":2}", "{\"x\":1", "", &endless] {
        assert!(!holds(&grammar, text), "{text}");
    }
}

#[test]
fn regular_expressions_and_grammars_hold_texts() {
    let of = |source| grammars().compile(&source).unwrap();
    let regex = of(Source::Regex(r"(yes|no)/[0-9]{2}".into()));
    assert!(holds(&regex, "yes/07") && !holds(&regex, "yes/7") && !holds(&regex, "maybe/07"));
    let lark = of(Source::Lark("start: \"a\" pair+\npair: \"(\" /[b-d]/ \")\"".into()));
    assert!(holds(&lark, "a(b)(d)") && !holds(&lark, "a") && !holds(&lark, "a(e)"));
}

#[test]
fn tokens_with_names_are_no_text_and_a_token_may_have_several_bytes() {
    let grammar = grammars().compile(&Source::Lark("start: <mark> \"x\"".into())).unwrap();
    let mut matcher = grammar.begin();
    let allowed = matcher.allowed().unwrap();
    assert!(allowed.has(MARK as usize) && !allowed.has(usize::from(b'<')) && !allowed.has(100_000));
    matcher.take(MARK).unwrap();
    matcher.take(u32::from(b'x')).unwrap();
    let mut logits = [0.0; 300];
    matcher.allowed().unwrap().apply(&mut logits);
    let left: Vec<usize> = (0..300).filter(|&token| logits[token] == 0.0).collect();
    assert_eq!(left, [END as usize]);

    let mut matcher = schema(json!({"properties": {"k": {"type": "null"}}, "type": "object"}), true).unwrap().begin();
    for token in [u32::from(b'{'), u32::from(b'"'), u32::from(b'k'), 258, u32::from(b'n')] {
        matcher.take(token).unwrap();
    }
    assert!(matcher.allowed().unwrap().has(usize::from(b'u')));
}

#[test]
fn texts_of_one_grammar_go_on_apart() {
    let grammar = grammars().compile(&Source::Regex("ab|cd".into())).unwrap();
    let (mut one, mut other) = (grammar.begin(), grammar.begin());
    one.take(u32::from(b'a')).unwrap();
    other.take(u32::from(b'c')).unwrap();
    assert!(one.allowed().unwrap().has(usize::from(b'b')) && other.allowed().unwrap().has(usize::from(b'd')));
    let error = one.take(u32::from(b'd')).unwrap_err().to_string();
    assert!(error.contains("no token that the grammar allows can be chosen"), "{error}");
}

#[test]
fn what_is_not_understood_is_an_error() {
    let said = |source: Source| format!("{:#}", grammars().compile(&source).expect_err("not understood"));
    let of_schema = |schema, strict| said(Source::Schema { schema, strict });
    assert!(of_schema(json!([1]), true).contains("a schema is a JSON object, not [1]"));
    assert!(of_schema(json!({"type": "king"}), true).contains("king"), "{}", of_schema(json!({"type": "king"}), true));
    let unknown = json!({"type": "string", "format": "colour"});
    assert!(of_schema(unknown.clone(), true).contains("colour"));
    assert!(schema(unknown, false).is_ok(), "a format that is not known is left out unless it must be held to");
    assert!(said(Source::Regex("a(".into())).contains("regex"), "{}", said(Source::Regex("a(".into())));
    assert_eq!(said(Source::Lark(" ".into())), "it is empty");
    assert!(!said(Source::Lark("root ::= \"a\"".into())).is_empty());
    assert!(!said(Source::Lark(format!("start: {}\"a\"{}", "(".repeat(50_000), ")".repeat(50_000)))).is_empty());
    assert!(said(Source::Lark("x".repeat(300 << 10))).contains("262144 are read at most"));
    let endless = Grammars::new(|| Ok(Words { words: vec![b"a".to_vec()], special: vec![], ends: vec![3] }));
    let error = endless.compile(&Source::Regex("a".into())).unwrap_err().to_string();
    assert!(error.contains("name no token that ends a text"), "{error}");
}

fn marked(marks: Vec<Mark>, then: &str) -> Marked {
    Marked { marks, then: then.into(), aside: None, once: false }
}

fn any(text: &str) -> Mark {
    Mark { text: text.into(), first: false, part: false }
}

#[test]
fn a_text_is_free_but_for_what_follows_a_mark() {
    // 258 is `": `, 259 a mark with more in it, 260 what ends a mark with more after it, 261 the same with what may follow.
    let mut words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    words.extend(["</s>", "<call>", "\": ", "a<go>x", ">no", ">12"].map(|word| word.as_bytes().to_vec()));
    let grammars = Grammars::new(move || Ok(Words { words, special: vec![END, MARK], ends: vec![END] }));
    let source = Source::Marked(marked(vec![any("<go>"), any("<call>")], "start: /[0-9]{2}/ \"!\""));
    let grammar = grammars.compile(&source).unwrap();
    assert_eq!(grammars.compile(&source).unwrap(), grammar, "it is kept");
    let mut matcher = grammar.begin();
    let take = |matcher: &mut Matcher, text: &str| text.bytes().for_each(|byte| matcher.take(u32::from(byte)).unwrap());
    take(&mut matcher, "a<g");
    let allowed = matcher.allowed().unwrap();
    assert!(allowed.has(260) && !allowed.has(259), "what has a whole mark within it and goes on wrongly");
    take(&mut matcher, "o");
    let allowed = matcher.allowed().unwrap();
    assert!(!allowed.has(260) && allowed.has(261) && allowed.has(usize::from(b'>')) && allowed.has(usize::from(b'x')));
    assert!(!allowed.is_all());
    let mut logits = [0.0; 262];
    allowed.apply(&mut logits);
    assert_eq!(logits.iter().filter(|logit| **logit != 0.0).count(), 2);
    matcher.take(261).unwrap();
    let allowed = matcher.allowed().unwrap();
    assert!(allowed.has(usize::from(b'!')) && !allowed.has(usize::from(b'1')) && !allowed.has(END as usize));
    take(&mut matcher, "!");
    take(&mut matcher, " and ");
    assert!(matcher.allowed().unwrap().has(END as usize));
    matcher.take(MARK).unwrap();
    let error = matcher.take(u32::from(b'x')).unwrap_err().to_string();
    assert!(error.contains("no token that the grammar allows"), "{error}");
    let free = grammars.compile(&Source::Marked(marked(vec![any("<off>")], "start: \"!\""))).unwrap();
    assert!(free.begin().allowed().unwrap().is_all());
    assert!(grammars.compile(&Source::Marked(marked(vec![any("")], "start: \"!\""))).is_err());
}

#[test]
fn marks_may_have_to_be_first_and_be_followed_by_one_thing_only() {
    let first = Mark { text: "{a".into(), first: true, part: true };
    let source = Source::Marked(Marked { once: true, ..marked(vec![first], "start: \"{a\" /b+/ \"}\"") });
    let grammar = grammars().compile(&source).unwrap();
    assert!(holds(&grammar, " {abb}") && holds(&grammar, "so {a is free}") && holds(&grammar, "{ab}"));
    assert!(!holds(&grammar, "{ac") && !holds(&grammar, "{abb} and more"));
    let aside = Some(Aside { begin: "<t>", end: "</t>", begun: false });
    let grammar = |begun| {
        let aside = aside.clone().map(|aside| Aside { begun, ..aside });
        let source = Source::Marked(Marked { aside, ..marked(vec![any("[!]")], "start: \"1\"") });
        grammars().compile(&source).unwrap()
    };
    assert!(holds(&grammar(false), "<t>[!]2</t>[!]1, [!]1") && !holds(&grammar(false), "<t>[!]2</t>[!]2"));
    assert!(
        holds(&grammar(true), "[!]2</t>[!]1")
            && !holds(&grammar(true), "</t>[!]2")
            && !holds(&grammar(false), "a<t>[!]2")
    );
}
