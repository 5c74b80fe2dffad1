//! Answers that are held to a form, with the demo model, which by itself writes nothing of the kind.

use fuse_tests::server::Server;
use fuse_tests::{TempFolder, fuserun};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn chat(more: Value) -> Value {
    with(json!({"messages": [{"role": "user", "content": "Hast seen the whale?"}], "max_tokens": 80}), more)
}

fn whale() -> Value {
    json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "length": {"type": "integer", "minimum": 1, "maximum": 99}},
        "required": ["name", "length"],
        "additionalProperties": false,
    })
}

/// Checks a text against [`whale`].
fn check_whale(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["name", "length"], "{text}");
    assert!(value["name"].as_str().unwrap().chars().count() <= 8, "{text}");
    assert!((1..=99).contains(&value["length"].as_i64().unwrap()), "{text}");
}

#[test]
fn an_answer_is_what_the_schema_says_and_neighbours_change_nothing() {
    let server = Server::start(&["--slots", "3"]);
    let format = json!({"type": "json_schema", "json_schema": {"name": "whale", "strict": true, "schema": whale()}});
    let body = |seed: u64| {
        let temperature = if seed == 0 { 0.0 } else { 1.0 };
        chat(json!({"response_format": format, "temperature": temperature, "seed": seed}))
    };
    let held = |seed| server.post(CHAT, &body(seed)).json()["choices"][0].clone();
    let free =
        || server.post(CHAT, &chat(json!({"seed": 7, "temperature": 1, "max_tokens": 20}))).json()["choices"].clone();
    let (alone, free_alone) = ((0..3).map(held).collect::<Vec<Value>>(), free());
    for choice in &alone {
        assert_eq!(choice["finish_reason"], "stop", "{choice}");
        check_whale(choice["message"]["content"].as_str().unwrap());
    }
    assert_ne!(alone[1], alone[2], "seeds give other answers");
    std::thread::scope(|scope| {
        let beside: Vec<_> = (0..3).map(|seed| scope.spawn(move || held(seed))).collect();
        assert_eq!(free(), free_alone);
        for (thread, alone) in beside.into_iter().zip(&alone) {
            assert_eq!(&thread.join().unwrap(), alone);
        }
    });
    let objects = server.stream(CHAT, &with(body(1), json!({"stream": true}))).objects();
    let said: String = objects.iter().filter_map(|one| one["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(json!(said), alone[1]["message"]["content"]);
}

#[test]
fn every_api_has_its_way_to_say_it() {
    let server = Server::start(&[]);
    let served = |path: &str, body: Value| {
        let reply = server.post(path, &body);
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()
    };
    for temperature in [0, 1] {
        let format = json!({"response_format": {"type": "json_object"}, "temperature": temperature, "max_tokens": 30});
        let text = served(CHAT, chat(format))["choices"][0]["message"]["content"].clone();
        assert!(text.as_str().unwrap().starts_with('{'), "{text}");

        let text = json!({"format": {"type": "json_schema", "name": "whale", "schema": whale()}});
        let body = json!({"input": "Hast seen the whale?", "text": text, "temperature": temperature, "seed": 3});
        let object = served("/v1/responses", body);
        assert_eq!(object["text"], text);
        check_whale(object["output"][0]["content"][0]["text"].as_str().unwrap());

        let options = json!({"temperature": temperature, "seed": 3});
        let body = json!({"prompt": "Call me", "format": whale(), "options": options, "stream": false});
        check_whale(served("/api/generate", body.clone())["response"].as_str().unwrap());
        check_whale(served("/api/generate", with(body, json!({"raw": true})))["response"].as_str().unwrap());

        let completion = |more: Value| {
            let body = json!({"prompt": "Call me", "temperature": temperature, "max_tokens": 80, "ignore_eos": true});
            served("/v1/completions", with(body, more))["choices"][0]["text"].as_str().unwrap().to_owned()
        };
        let text = completion(json!({"regex": "[A-Z][a-z]{2,5} [0-9]{4}"}));
        let (name, year) = text.split_once(' ').unwrap();
        assert!((3..=6).contains(&name.len()) && name.starts_with(|c: char| c.is_ascii_uppercase()), "{text}");
        assert!(year.len() == 4 && year.bytes().all(|byte| byte.is_ascii_digit()), "{text}");
        let text = completion(json!({"grammar": "start: \"the \" (\"whale\" | \"sea\") END\nEND: /[.!]/"}));
        assert!(["the whale.", "the whale!", "the sea.", "the sea!"].contains(&text.as_str()), "{text}");
        check_whale(&completion(json!({"json_schema": whale()})));
    }
}

#[test]
fn a_call_that_is_asked_for_is_made() {
    let server = Server::start(&[]);
    let sink = json!({"type": "object", "properties": {"now": {"type": "boolean"}}, "required": ["now"]});
    let tool = |name: &str, parameters: Value| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    let tools = json!([tool("look_out", whale()), tool("sink", with(sink, json!({"additionalProperties": false})))]);
    for temperature in [0, 1] {
        let named = json!({"type": "function", "function": {"name": "look_out"}});
        for choice in [json!("required"), named] {
            let body = chat(json!({"tools": tools, "tool_choice": choice, "temperature": temperature, "seed": 3}));
            let object = server.post(CHAT, &body).json();
            let (message, finish) = (&object["choices"][0]["message"], &object["choices"][0]["finish_reason"]);
            assert_eq!((finish, &message["content"]), (&json!("tool_calls"), &Value::Null), "{object}");
            assert_eq!(message["tool_calls"].as_array().unwrap().len(), 1);
            let function = &message["tool_calls"][0]["function"];
            let arguments = function["arguments"].as_str().unwrap();
            match function["name"].as_str().unwrap() {
                "look_out" => check_whale(arguments),
                "sink" if choice == "required" => {
                    assert!(serde_json::from_str::<Value>(arguments).unwrap()["now"].is_boolean(), "{arguments}");
                }
                other => panic!("{other} is called"),
            }
            assert!(object["warnings"][0].as_str().unwrap().contains("knows no tools"), "{object}");
        }
        let body = json!({
            "max_tokens": 80, "messages": [{"role": "user", "content": "Look out!"}], "temperature": temperature,
            "tools": [{"name": "look_out", "input_schema": whale()}], "tool_choice": {"type": "tool", "name": "look_out"},
        });
        let object = server.post("/v1/messages", &body).json();
        assert_eq!((&object["stop_reason"], &object["content"][0]["name"]), (&json!("tool_use"), &json!("look_out")));
        assert_eq!(object["content"][0]["caller"], json!({"type": "direct"}));
        check_whale(&object["content"][0]["input"].to_string());
    }
    let tool = json!({"type": "function", "name": "look_out", "parameters": whale()});
    let body = json!({"input": "Look out!", "tools": [tool], "tool_choice": "required", "seed": 3});
    let object = server.post("/v1/responses", &body).json();
    assert_eq!((&object["output"][0]["type"], &object["tool_choice"]), (&json!("function_call"), &json!("required")));
    check_whale(object["output"][0]["arguments"].as_str().unwrap());
}

#[test]
fn what_cannot_be_held_to_is_refused_by_name() {
    let server = Server::start(&[]);
    let schema = |schema: Value, strict: bool| {
        let inner = json!({"name": "x", "strict": strict, "schema": schema});
        json!({"response_format": {"type": "json_schema", "json_schema": inner}})
    };
    let of_schema = "response_format.json_schema.schema";
    let colour = json!({"type": "string", "format": "colour", "maxLength": 5});
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let unknown = json!({"type": "function", "function": {"name": "g"}});
    for (more, param, message) in [
        (schema(json!({"type": "king"}), true), of_schema, "king"),
        (schema(colour.clone(), true), of_schema, "colour"),
        (schema(json!("x"), true), of_schema, "a schema is a JSON object"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.schema", "is missing"),
        (json!({"regex": "a("}), "regex", "`regex` cannot be held to"),
        (json!({"grammar": "root ::= \"a\""}), "grammar", "`grammar` cannot be held to"),
        (json!({"regex": "a", "response_format": {"type": "json_object"}}), "regex", "are both given"),
        (json!({"tools": tools, "tool_choice": unknown}), "tool_choice", "names \"g\""),
    ] {
        let reply = server.post(CHAT, &chat(more.clone()));
        let object = reply.json();
        assert_eq!((reply.status, &object["error"]["param"]), (400, &json!(param)), "{more}: {object}");
        assert!(object["error"]["message"].as_str().unwrap().contains(message), "{more}: {object}");
    }
    let object = server.post(CHAT, &chat(schema(colour, false))).json();
    let text = object["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(serde_json::from_str::<String>(text).unwrap().chars().count() <= 5, "{object}");
}

#[test]
fn the_command_holds_texts_too() {
    let folder = TempFolder::new();
    let schema = folder.write("whale.json", whale().to_string());
    let schema = schema.to_str().unwrap();
    for temperature in ["0", "1"] {
        let run = |form: &[&str]| {
            let arguments = ["generate", "--device", "cpu", "-n", "80", "--temperature", temperature, "Call me"];
            fuserun(&[&arguments[..], form].concat(), "").stdout
        };
        check_whale(run(&["--schema", schema, "--chat", "--ignore-eos"]).trim());
        let said = run(&["--regex", "aye|nay"]);
        assert!(["aye", "nay"].contains(&said.trim()), "{said}");
    }
    let grammar = folder.write("broken.lark", "start: nothing");
    let refused = fuserun(&["generate", "--grammar", grammar.to_str().unwrap(), "Call me"], "");
    assert!(refused.code == 1 && refused.stderr.contains("broken.lark"), "{}", refused.stderr);
    let both = fuserun(&["generate", "--regex", "a", "--schema", schema, "Call me"], "");
    assert_eq!(both.code, 2, "{}", both.stderr);
}
