use super::*;

fn template(source: &str) -> ChatTemplate {
    let specials = Map::from_iter([("bos_token".to_owned(), json!("<s>")), ("eos_token".to_owned(), json!("</s>"))]);
    ChatTemplate::new(source, specials).unwrap()
}

fn said(source: &str) -> String {
    template(source).render(&[Message::new("user", "Hi <&>")], true).unwrap()
}

#[test]
fn chatml_renders_with_trimmed_blocks() {
    let source = "{%- for message in messages %}\n    {{- '<|im_start|>' + message['role'] + '\\n' + message.content + '<|im_end|>\\n' }}\n{%- endfor %}\n\
                  {%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n";
    let messages = [Message::new("system", "Be kind."), Message::new("user", "Hi")];
    let chat = template(source);
    let turns = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n";
    assert_eq!(chat.render(&messages, true).unwrap(), format!("{turns}<|im_start|>assistant\n"));
    assert_eq!(chat.render(&messages, false).unwrap(), turns);
    assert_eq!(said("  {% if true %}\nx\n  {% endif %}\ny"), "x\ny");
}

#[test]
fn pythons_ways_hold() {
    assert_eq!(
        said("{{ bos_token }}{{ messages[0].content.split(' ')[-1].strip('<>') }}{{ messages[0]['role'].upper() }}"),
        "<s>&USER"
    );
    assert_eq!(said("{{ true }} {{ none }} {{ nothing }} {{ tools is none }}"), "True None  True");
    assert_eq!(said("{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}"), "13");
    assert_eq!(
        said("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ messages[::-1][0].content }}"),
        "2Hi <&>"
    );
    assert_eq!(said("{{ strftime_now('%Y')|length }}"), "4");
}

/// The turns of phrase that current families' templates lean on, each against what Jinja in Python gives.
#[test]
fn current_families_turns_of_phrase_hold() {
    let messages = json!([
        { "role": "system", "content": " Be kind. " },
        { "role": "user", "content": "Why?" },
        { "role": "assistant", "content": "<think>hm</think>\n\nBecause." },
    ]);
    let cases = [
        ("{{ messages[0]['content']|trim }}{% set messages = messages[1:] %}{{ messages|length }}", "Be kind.2"),
        ("{{ messages[2].content.split('</think>')[-1].lstrip('\\n') }}", "Because."),
        ("{{ messages[2].content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] }}", "hm"),
        (
            "{% if messages[1]['tool_calls'] %}a{% endif %}{% if messages[1].reasoning_content is string %}b{% endif %}c",
            "c",
        ),
        ("{% for i in range(messages|length - 1, -1, -1) %}{{ messages[i].role[0] }}{% endfor %}", "aus"),
        (
            "{% for m in messages[::-1] %}{{ loop.index0 }}{{ m.role.startswith('u') }}{% if not loop.last %} {% endif %}{% endfor %}",
            "0False 1True 2False",
        ),
        ("{% if (messages[1].role == 'user') != (1 % 2 == 0) %}alternate{% endif %}", "alternate"),
        ("{% if enable_thinking is defined and enable_thinking is false %}quiet{% endif %}", "quiet"),
        (
            "{% if tools is not none %}Environment: ipython{% endif %}{{ date_string if date_string is defined else 'today' }}",
            "today",
        ),
        ("{% macro turn(m) %}[{{ m.role }}]{% endmacro %}{{ turn(messages[1]) ~ '!' }}", "[user]!"),
        (
            "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ {'a': 1}.items() | list | length }}",
            "11",
        ),
    ];
    for (source, expected) in cases {
        let variables = Map::from_iter([("enable_thinking".to_owned(), json!(false))]);
        let text = template(source).render_json(messages.clone(), true, variables);
        assert_eq!(text.unwrap_or_else(|error| error.to_string()), expected, "{source}");
    }
}

#[test]
fn json_is_spaced_as_python_spaces_it() {
    assert_eq!(said("{{ messages | tojson }}"), r#"[{"role": "user", "content": "Hi <&>"}]"#);
    assert_eq!(
        said("{{ {'a': [1, 2.5, none, true], 'é': {}} | tojson(indent=2) }}"),
        "{\n  \"a\": [\n    1,\n    2.5,\n    null,\n    true\n  ],\n  \"é\": {}\n}"
    );
    assert_eq!(said("{{ {'a': [1, 2]} | tojson(separators=(',', ':'), ensure_ascii=False) }}"), r#"{"a":[1,2]}"#);
}

#[test]
fn generation_blocks_change_nothing() {
    assert_eq!(said("a {%- generation %} b {% endgeneration -%} c"), "a b c");
    assert_eq!(said("{% set generation = 'x' %}{{ generation }}"), "x");
}

#[test]
fn further_variables_reach_the_template() {
    let chat = template("{{ tools[0].name }} {{ messages[0].tool_calls | length }}");
    let variables = Map::from_iter([("tools".to_owned(), json!([{ "name": "look" }]))]);
    assert_eq!(
        chat.render_json(json!([{ "role": "assistant", "tool_calls": [1, 2] }]), false, variables).unwrap(),
        "look 2"
    );
}

#[test]
fn refusals_and_broken_templates_are_one_line() {
    let refused = template("{% if messages|length < 2 %}\n{{ raise_exception('roles must alternate') }}{% endif %}")
        .render(&[], false)
        .unwrap_err();
    assert_eq!(refused.to_string(), "the chat template failed: roles must alternate (line 2 of the template)");
    let broken = ChatTemplate::new("{% for %}", Map::new()).unwrap_err().to_string();
    assert!(
        broken.starts_with("the chat template is not one that can be read: ")
            && broken.ends_with("(line 1 of the template)"),
        "{broken}"
    );
}

#[test]
fn named_templates_give_the_default() {
    let named = [json!({ "name": "tool_use", "template": "t" }), json!({ "name": "default", "template": "d" })];
    assert_eq!(default_of(&named).unwrap(), "d");
    assert!(default_of(&named[..1]).is_err());
}
