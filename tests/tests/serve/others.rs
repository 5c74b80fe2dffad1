//! Anthropic's and Ollama's APIs, and OpenAI's responses.

use fuse_tests::server::{Server, Stream, ask};
use serde_json::{Value, json};

const MESSAGES: &str = "/v1/messages";

fn message(more: Value) -> Value {
    let mut body = json!({
        "model": "demo", "max_tokens": 300, "seed": 5, "system": [{"type": "text", "text": "A gam."}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hast seen the whale?", "cache_control": {"type": "ephemeral"}}]}],
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// What OpenAI's API answers to the same conversation.
fn same(server: &Server) -> Value {
    let messages =
        json!([{"role": "system", "content": "A gam."}, {"role": "user", "content": "Hast seen the whale?"}]);
    server.post("/v1/chat/completions", &json!({"messages": messages, "seed": 5})).json()
}

#[test]
fn anthropics_messages_whole_and_as_they_come() {
    let server = Server::start(&[]);
    let same = same(&server);
    let text = &same["choices"][0]["message"]["content"];
    let reply = server.post(MESSAGES, &message(json!({})));
    assert_eq!(reply.status, 200, "{reply:?}");
    let whole = reply.json();
    assert!(whole["id"].as_str().unwrap().starts_with("msg_"));
    assert_eq!((&whole["type"], &whole["role"]), (&json!("message"), &json!("assistant")));
    assert_eq!((&whole["content"][0]["type"], &whole["content"][0]["text"]), (&json!("text"), text));
    assert_eq!((&whole["stop_reason"], &whole["stop_sequence"]), (&json!("end_turn"), &Value::Null));
    let read =
        whole["usage"]["input_tokens"].as_u64().unwrap() + whole["usage"]["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(json!(read), same["usage"]["prompt_tokens"]);
    assert_eq!(whole["usage"]["output_tokens"], same["usage"]["completion_tokens"]);

    let objects = server.stream(MESSAGES, &message(json!({"stream": true}))).objects();
    let kinds: Vec<&str> = objects.iter().map(|object| object["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[..3], ["message_start", "ping", "content_block_start"]);
    assert_eq!(kinds[kinds.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    assert!(kinds[3..kinds.len() - 3].iter().all(|kind| *kind == "content_block_delta"), "{kinds:?}");
    let said: String = objects.iter().filter_map(|object| object["delta"]["text"].as_str()).collect();
    assert_eq!(json!(said), *text);
    assert_eq!(objects[kinds.len() - 2]["delta"]["stop_reason"], "end_turn");

    let stop: String = said.chars().last().into_iter().collect();
    let cut = server.post(MESSAGES, &message(json!({"stop_sequences": [stop]}))).json();
    assert_eq!((&cut["stop_reason"], &cut["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
    let short = server.post(MESSAGES, &message(json!({"max_tokens": 2}))).json();
    assert_eq!((&short["stop_reason"], &short["usage"]["output_tokens"]), (&json!("max_tokens"), &json!(2)));
    let many = server.post(MESSAGES, &message(json!({"max_tokens": 128_000}))).json();
    assert_eq!(many["content"][0]["text"], *text, "a limit beyond the context is cut to it");
    let counted = server.post("/v1/messages/count_tokens", &message(json!({}))).json();
    assert_eq!(counted, json!({"input_tokens": same["usage"]["prompt_tokens"]}));
}

#[test]
fn anthropics_blocks_of_tools_are_read() {
    let server = Server::start(&[]);
    let messages = json!([
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": ""},
            {"type": "text", "text": "I count."},
            {"type": "tool_use", "id": "t", "name": "count", "input": {"what": "whales"}},
        ]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "7"}]}]},
    ]);
    let tools = json!([{"name": "count", "description": "Counts.", "input_schema": {"type": "object"}}]);
    let reply =
        server.post(MESSAGES, &message(json!({"messages": messages, "tools": tools, "metadata": {"user_id": "me"}})));
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(reply.json()["warnings"][0].as_str().unwrap().contains("knows no tools"), "{reply:?}");
}

#[test]
fn anthropics_errors_are_in_its_words() {
    let server = Server::start(&["--api-key", "sesame"]);
    let post = |key: &str, body: &Value| {
        ask(server.address(), "POST", MESSAGES, &[("x-api-key", key)], body.to_string().as_bytes())
    };
    for (key, body, status, kind, part) in [
        ("sesame", message(json!({"max_tokens": null})), 400, "invalid_request_error", "`max_tokens` is missing"),
        (
            "sesame",
            message(json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]})),
            400,
            "invalid_request_error",
            "reads text",
        ),
        (
            "sesame",
            message(json!({"messages": [{"role": "tool", "content": "x"}]})),
            400,
            "invalid_request_error",
            "messages[0].role",
        ),
        ("sesame", message(json!({"tool_choice": {"type": "any"}})), 400, "invalid_request_error", "`tools` has none"),
        ("open", message(json!({})), 401, "authentication_error", "not one of this server's"),
    ] {
        let reply = post(key, &body);
        let object = reply.json();
        assert_eq!(
            (reply.status, &object["type"], &object["error"]["type"]),
            (status, &json!("error"), &json!(kind)),
            "{reply:?}"
        );
        assert!(object["error"]["message"].as_str().unwrap().contains(part), "{object}");
        assert_eq!(post("sesame", &message(json!({}))).status, 200);
    }
}

/// The objects of a stream of lines.
fn lines(mut stream: Stream) -> Vec<Value> {
    let mut text = String::new();
    while let Some(piece) = stream.piece() {
        text.push_str(&piece);
    }
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn ollamas_chat_and_generate() {
    let server = Server::start(&[]);
    let same = same(&server);
    let text = &same["choices"][0]["message"]["content"];
    let messages =
        json!([{"role": "system", "content": "A gam."}, {"role": "user", "content": "Hast seen the whale?"}]);
    let body = json!({
        "model": "demo", "messages": messages, "keep_alive": "5m",
        "options": {"seed": 5, "num_predict": 300, "num_ctx": 512, "mirostat": 1},
    });
    let stream = server.stream("/api/chat", &body);
    assert_eq!(stream.head.header("content-type"), Some("application/x-ndjson"));
    let objects = lines(stream);
    let said: String = objects.iter().filter_map(|object| object["message"]["content"].as_str()).collect();
    assert_eq!(json!(said), *text);
    let last = objects.last().unwrap();
    assert!(objects[..objects.len() - 1].iter().all(|object| object["done"] == false));
    assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!("stop")));
    assert_eq!(last["eval_count"], same["usage"]["completion_tokens"]);
    assert_eq!(last["warnings"], json!(["`options.mirostat` is not known here and has no effect"]));
    assert!(last["total_duration"].as_u64().unwrap() > 0 && last["created_at"].as_str().unwrap().ends_with('Z'));
    let mut whole = body.clone();
    whole["stream"] = json!(false);
    let reply = server.post("/api/chat", &whole).json();
    assert_eq!((&reply["message"]["content"], &reply["done"]), (text, &json!(true)));

    let generate = json!({"model": "demo", "prompt": "Hast seen the whale?", "system": "A gam.", "stream": false, "options": {"seed": 5, "num_predict": 300}});
    assert_eq!(server.post("/api/generate", &generate).json()["response"], *text);
    let raw =
        json!({"model": "demo", "prompt": "Call me", "raw": true, "options": {"temperature": 0, "num_predict": 8}});
    let said: String =
        lines(server.stream("/api/generate", &raw)).iter().filter_map(|object| object["response"].as_str()).collect();
    let completion =
        server.post("/v1/completions", &json!({"prompt": "Call me", "temperature": 0, "max_tokens": 8})).json();
    assert_eq!(completion["choices"][0]["text"], json!(said));
}

#[test]
fn ollamas_models_and_errors() {
    let server = Server::start(&[]);
    assert_eq!(server.get("/").status, 200);
    assert_eq!(server.get("/api/tags").json()["models"][0]["name"], "demo");
    assert_eq!(server.get("/api/ps").json()["models"][0]["context_length"], 1024);
    assert_eq!(server.get("/api/version").json()["version"], env!("CARGO_PKG_VERSION"));
    let show = server.post("/api/show", &json!({"model": "demo"})).json();
    assert_eq!(
        (&show["capabilities"], &show["model_info"]["LlamaForCausalLM.context_length"]),
        (&json!(["completion"]), &json!(1024))
    );
    for (path, body, part) in [
        ("/api/chat", json!({"messages": []}), "give one at least"),
        ("/api/chat", json!({"messages": [{"role": "user", "content": "x", "images": ["AA"]}]}), "reads text only"),
        ("/api/chat", json!({"messages": [{"role": "user", "content": "x"}], "format": "xml"}), "or a JSON schema"),
        ("/api/generate", json!({"prompt": "x", "options": {"temperature": -1}}), "`options.temperature`"),
        ("/api/generate", json!({"prompt": "", "raw": true}), "the prompt has no tokens"),
    ] {
        let reply = server.post(path, &body);
        assert_eq!(reply.status, 400, "{reply:?}");
        assert!(reply.json()["error"].as_str().unwrap().contains(part), "{reply:?}");
        let works = json!({"prompt": "Call me", "raw": true, "stream": false, "options": {"num_predict": 1}});
        assert_eq!(server.post("/api/generate", &works).status, 200);
    }
}

const RESPONSES: &str = "/v1/responses";

#[test]
fn responses_whole_and_as_they_come() {
    let server = Server::start(&[]);
    let same = same(&server);
    let text = &same["choices"][0]["message"]["content"];
    let body =
        json!({"model": "demo", "instructions": "A gam.", "input": "Hast seen the whale?", "seed": 5, "store": true});
    let reply = server.post(RESPONSES, &body);
    assert_eq!(reply.status, 200, "{reply:?}");
    let whole = reply.json();
    assert_eq!(
        (&whole["object"], &whole["status"], &whole["store"]),
        (&json!("response"), &json!("completed"), &json!(false))
    );
    assert_eq!(whole["output"].as_array().unwrap().len(), 1);
    assert_eq!((&whole["output"][0]["type"], &whole["output"][0]["content"][0]["text"]), (&json!("message"), text));
    assert_eq!(whole["usage"]["total_tokens"], same["usage"]["total_tokens"]);
    for key in [
        "completed_at",
        "created_at",
        "error",
        "incomplete_details",
        "instructions",
        "max_output_tokens",
        "metadata",
        "previous_response_id",
        "tools",
        "tool_choice",
        "truncation",
        "text",
    ] {
        assert!(whole.get(key).is_some(), "{key}: {whole}");
    }

    let items = json!([
        {"type": "message", "role": "developer", "content": "A gam."},
        {"role": "user", "content": [{"type": "input_text", "text": "Hast seen the whale?"}]},
    ]);
    let mut stream = body.clone();
    stream["stream"] = json!(true);
    stream["instructions"] = Value::Null;
    stream["input"] = items;
    let objects = server.stream(RESPONSES, &stream).objects();
    let kinds: Vec<&str> = objects.iter().map(|object| object["type"].as_str().unwrap()).collect();
    let begun =
        ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"];
    assert_eq!(kinds[..4], begun);
    let ended =
        ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"];
    assert_eq!(kinds[kinds.len() - 4..], ended);
    assert!(objects.iter().enumerate().all(|(number, object)| object["sequence_number"] == number));
    let said: String = objects.iter().filter_map(|object| object["delta"].as_str()).collect();
    assert_eq!(json!(said), *text);
    let response = &objects.last().unwrap()["response"];
    assert_eq!(response["output"][0]["content"], whole["output"][0]["content"]);
    assert_eq!(objects[2]["item"]["id"], response["output"][0]["id"]);

    let mut short = body.clone();
    short["max_output_tokens"] = json!(2);
    let short = server.post(RESPONSES, &short).json();
    assert_eq!(
        (&short["status"], &short["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
}

#[test]
fn responses_keep_nothing_and_leave_out_tools_that_are_no_functions() {
    let server = Server::start(&[]);
    let input = json!([
        {"role": "user", "content": "How many?"},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "c", "name": "count", "arguments": "{\"what\": \"whales\"}"},
        {"type": "function_call_output", "call_id": "c", "output": "7"},
    ]);
    let tools =
        json!([{"type": "web_search"}, {"type": "function", "name": "count", "parameters": {"type": "object"}}]);
    let reply = server.post(RESPONSES, &json!({"input": input, "tools": tools, "max_output_tokens": 4}));
    assert_eq!(reply.status, 200, "{reply:?}");
    let object = reply.json();
    assert!(object["warnings"][0].as_str().unwrap().contains("\"web_search\" is left out"), "{reply:?}");
    let whole = json!({
        "type": "function",
        "name": "count",
        "description": null,
        "parameters": {"type": "object"},
        "strict": null
    });
    assert_eq!(object["tools"], json!([{"type": "web_search"}, whole]));
    for (body, param) in [
        (json!({}), "input"),
        (json!({"input": "x", "previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"input": "x", "background": true}), "background"),
        (json!({"input": "x", "text": {"format": {"type": "json_schema"}}}), "text.format.schema"),
        (json!({"input": [{"type": "item_reference"}]}), "input[0].type"),
        (json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}), "messages[0].content[0].type"),
    ] {
        let reply = server.post(RESPONSES, &body);
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!(param)), "{reply:?}");
        assert_eq!(server.post(RESPONSES, &json!({"input": "x", "max_output_tokens": 1})).status, 200);
    }
}
