use std::sync::atomic::{AtomicU32, Ordering};

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

/// What a directory with these files renders, with and without tools; or what is wrong with it.
fn rendered(files: &[(&str, String)]) -> Result<Option<[String; 2]>, String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("fuserun-chat-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir(&folder).unwrap();
    for (name, text) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let template = ChatTemplate::open(&folder).map_err(|error| format!("{error:#}"));
    std::fs::remove_dir_all(&folder).unwrap();
    let template = template?;
    Ok(template.map(|template| {
        [Value::Null, json!([])].map(|tools| {
            let variables = Map::from_iter([("tools".to_owned(), tools)]);
            template.render_json(json!([]), true, variables).unwrap()
        })
    }))
}

#[test]
fn named_templates_give_the_default_and_another_for_tools() {
    let (default, tools) =
        (json!({ "name": "default", "template": "d" }), json!({ "name": "tool_use", "template": "t" }));
    let both = Ok(Some(["d".to_owned(), "t".to_owned()]));
    let file = |template: Value| json!({ "chat_template": template }).to_string();
    let rag = json!({ "name": "rag", "template": "r" });
    for template in [json!([tools, default, rag]), json!({ "default": "d", "tool_use": "t" })] {
        for name in ["tokenizer_config.json", "chat_template.json"] {
            assert_eq!(rendered(&[(name, file(template.clone()))]), both, "{name}: {template}");
        }
    }
    let more = "additional_chat_templates/tool_use.jinja";
    assert_eq!(rendered(&[("chat_template.jinja", "d".to_owned()), (more, "t".to_owned())]), both);
    let said = rendered(&[("tokenizer_config.json", file(json!([tools])))]).unwrap_err();
    assert!(said.contains("no template called 'default', but these: tool_use"), "{said}");
    for broken in [json!(1), json!([{ "template": "d" }]), json!({ "default": 1 }), json!([])] {
        assert!(rendered(&[("tokenizer_config.json", file(broken.clone()))]).is_err(), "{broken}");
    }
}

#[test]
fn a_template_is_found_in_each_of_its_places() {
    let file = |template: &str| json!({ "chat_template": template }).to_string();
    let alike = |text: &str| Ok(Some([text.to_owned(), text.to_owned()]));
    let jinja = ("chat_template.jinja", "jinja".to_owned());
    let (config, processor) = (("tokenizer_config.json", file("config")), ("chat_template.json", file("processor")));
    assert_eq!(rendered(&[jinja, config.clone(), processor.clone()]), alike("jinja"));
    assert_eq!(rendered(&[config, processor.clone()]), alike("config"));
    assert_eq!(rendered(&[("tokenizer_config.json", "{}".to_owned()), processor]), alike("processor"));
    assert_eq!(rendered(&[("tokenizer_config.json", json!({ "chat_template": null }).to_string())]), Ok(None));
}

#[test]
fn a_gguf_file_has_a_template_for_tools_too() {
    let text = |text: &str| gguf::Value::Text(text.to_owned());
    let metadata = gguf::Metadata::from_pairs([
        ("tokenizer.chat_template", text("d")),
        ("tokenizer.chat_template.tool_use", text("t")),
    ]);
    let template = ChatTemplate::from_gguf(&metadata).unwrap().expect("it has one");
    let variables = Map::from_iter([("tools".to_owned(), json!([{"name": "f"}]))]);
    assert_eq!(template.render_json(json!([]), true, variables).unwrap(), "t");
    assert_eq!(template.render(&[], true).unwrap(), "d");
}

#[test]
fn a_template_takes_so_much_and_no_more() {
    let limits = Limits { steps: 60_000, depth: LIMITS.depth, bytes: 1 << 20 };
    let said = |source: &str| {
        let template = ChatTemplate::limited(source, None, Map::new(), limits).unwrap();
        // As the threads of a server, and less.
        let thread = std::thread::Builder::new().stack_size(1 << 20);
        let render = move || template.render(&[Message::new("user", "x")], true).map_err(|error| error.to_string());
        thread.spawn(render).unwrap().join().expect("it stays within the stack")
    };
    let rest = "shorten it, or mend the template";
    let endless = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}";
    let refused = said(endless).unwrap_err();
    assert!(refused.starts_with("the chat template takes more than 60000 steps for this conversation"), "{refused}");
    assert!(refused.contains("(line 1 of the template)") && refused.ends_with(rest), "{refused}");
    let deep = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}\n{{ f(0) }}";
    let refused = said(deep).unwrap_err();
    assert!(refused.contains("more than 100 calls within calls") && refused.ends_with(rest), "{refused}");
    let long = "{% set x = messages[0].content * 600000 %}{{ x }}{{ x }}";
    let refused = said(long).unwrap_err();
    assert!(refused.contains("more than 1 MiB of text") && refused.ends_with(rest), "{refused}");
    assert_eq!(said("{{ messages[0].content * 3 }}").unwrap(), "xxx");
    let template = ChatTemplate::limited("a", Some("{{ tools | length }}".into()), Map::new(), limits).unwrap();
    let with = |tools: Value| template.render_json(json!([]), true, Map::from_iter([("tools".to_owned(), tools)]));
    assert_eq!((with(Value::Null).unwrap(), with(json!([1, 2])).unwrap()), ("a".into(), "2".into()));
    let error = ChatTemplate::limited("a", Some("{% if".into()), Map::new(), limits).unwrap_err().to_string();
    assert!(error.contains("not one that can be read"), "{error}");
}
