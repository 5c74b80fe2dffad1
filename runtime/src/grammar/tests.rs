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
