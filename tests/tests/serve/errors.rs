//! What is refused: the status, the words, and that the next request is served.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use fuse_tests::server::{Server, ask};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn works(server: &Server) {
    let reply = server.post(COMPLETIONS, &json!({"prompt": "Call me", "max_tokens": 2, "temperature": 0}));
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.json()["choices"][0]["text"], ", I");
}

#[test]
fn fields_that_are_wrong() {
    let server = Server::start(&["--max-context", "64"]);
    let user = || json!([{"role": "user", "content": "Hi"}]);
    for (path, body, param, part) in [
        (CHAT, json!({}), "messages", "`messages` is missing"),
        (CHAT, json!({"messages": []}), "messages", "give one at least"),
        (CHAT, json!({"messages": "Hi"}), "messages", "is a string; give a list"),
        (CHAT, json!({"messages": [{"role": "king", "content": "x"}]}), "messages[0].role", "king"),
        (CHAT, json!({"messages": user(), "temperature": -1}), "temperature", "give 0 to"),
        (CHAT, json!({"messages": user(), "temperature": "hot"}), "temperature", "give a number"),
        (CHAT, json!({"messages": user(), "top_p": 1.5}), "top_p", "`top_p` is 1.5; give 0 to 1"),
        (CHAT, json!({"messages": user(), "presence_penalty": 3}), "presence_penalty", "give -2 to 2"),
        (CHAT, json!({"messages": user(), "n": 9}), "n", "give 1 to 8"),
        (CHAT, json!({"messages": user(), "n": 0}), "n", "give 1 to 8"),
        (CHAT, json!({"messages": user(), "max_tokens": 0}), "max_tokens", "nothing to generate"),
        (CHAT, json!({"messages": user(), "max_tokens": 1.5}), "max_tokens", "give a whole number"),
        (CHAT, json!({"messages": user(), "logprobs": true, "top_logprobs": 21}), "top_logprobs", "give 0 to 20"),
        (CHAT, json!({"messages": user(), "top_logprobs": 2}), "top_logprobs", "without `logprobs`"),
        (CHAT, json!({"messages": user(), "stream_options": {}}), "stream_options", "without `stream`"),
        (CHAT, json!({"messages": user(), "logit_bias": {"4096": 1}}), "logit_bias", "give ids below 4096"),
        (CHAT, json!({"messages": user(), "logit_bias": {"5": 101}}), "logit_bias", "from -100 to 100"),
        (CHAT, json!({"messages": user(), "stop": ["a", 5]}), "stop", "no string"),
        (CHAT, json!({"messages": user(), "stop": vec!["x"; 17]}), "stop", "give 16 at most"),
        (CHAT, json!({"messages": user(), "stop_token_ids": [-1]}), "stop_token_ids", "no token"),
        (CHAT, json!({"messages": user(), "tools": [{"type": "web_search"}]}), "tools[0].type", "function"),
        (CHAT, json!({"messages": user(), "tool_choice": "required"}), "tool_choice", "`tools` has none"),
        (CHAT, json!({"messages": user(), "tool_choice": "maybe"}), "tool_choice", "give auto, none, required"),
        (
            CHAT,
            json!({"messages": user(), "response_format": {"type": "xml"}}),
            "response_format.type",
            "give text, json_object or json_schema",
        ),
        (
            CHAT,
            json!({"messages": user(), "chat_template_kwargs": {"loop": 1}}),
            "chat_template_kwargs.loop",
            "no variable",
        ),
        (COMPLETIONS, json!({}), "prompt", "`prompt` is missing"),
        (COMPLETIONS, json!({"prompt": []}), "prompt", "0 prompts"),
        (COMPLETIONS, json!({"prompt": [{}]}), "prompt", "a list of token ids"),
        (COMPLETIONS, json!({"prompt": "x", "suffix": "y"}), "suffix", "not supported"),
        ("/detokenize", json!({"tokens": [1, 4096]}), "tokens", "give ids below 4096"),
        ("/tokenize", json!({}), "content", "`content` is missing"),
    ] {
        for stream in [false, true] {
            let mut body = body.clone();
            if stream && param != "stream_options" {
                body["stream"] = json!(true);
            }
            let reply = server.post(path, &body);
            let object = reply.json();
            let error = &object["error"];
            assert_eq!((reply.status, &error["type"]), (400, &json!("invalid_request_error")), "{body}: {reply:?}");
            assert_eq!(error["param"], param, "{body}: {error}");
            assert!(error["message"].as_str().unwrap().contains(part), "{body}: {error}");
        }
    }
    works(&server);
    for (prompt, code, part) in [
        (json!("the whale ".repeat(90)), json!("context_length_exceeded"), "the context holds 64"),
        (json!(""), Value::Null, "the prompt has no tokens"),
        (json!([4096]), Value::Null, "token 4096 is not below the vocabulary's size"),
    ] {
        let reply = server.post(COMPLETIONS, &json!({"prompt": prompt, "stream": true}));
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (400, &code), "{reply:?}");
        assert!(reply.body.contains(part), "{reply:?}");
    }
    // More than the context has left is cut to it.
    let reply =
        server.post(COMPLETIONS, &json!({"prompt": "Call me", "max_tokens": 1_000_000, "ignore_eos": true})).json();
    assert_eq!(
        (&reply["usage"]["completion_tokens"], &reply["choices"][0]["finish_reason"]),
        (&json!(62), &json!("length"))
    );
    works(&server);
}

#[test]
fn requests_that_are_none() {
    let server = Server::start(&[]);
    let post = |path: &str, body: &[u8]| ask(server.address(), "POST", path, &[], body);
    for (reply, status, part) in [
        (post(CHAT, b""), 400, "the body is empty"),
        (post(CHAT, b"{\"messages\": "), 400, "not JSON"),
        (post(CHAT, b"[]"), 400, "a list, not a JSON object"),
        (post(CHAT, b"\xff\xfe{}"), 400, "not JSON"),
        (post(CHAT, "[".repeat(100_000).as_bytes()), 400, "recursion limit"),
        (post(CHAT, &vec![b' '; 9 << 20]), 413, "more than 8 MiB"),
        (post("/v1/nothing", b"{}"), 404, "/v1/nothing"),
        (post("/v1/embeddings", b"{}"), 501, "embeddings are not supported"),
        (server.get(CHAT), 405, "does not take GET"),
        (server.get("/v1/models/other"), 404, "there is no model"),
    ] {
        assert_eq!(reply.status, status, "{reply:?}");
        let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(part), "{message}");
    }
    works(&server);
    // What is no HTTP at all ends its connection only.
    for bytes in [
        &b"\x16\x03\x01\x02\x00"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ] {
        let mut socket = TcpStream::connect(server.address()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket.write_all(bytes).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        // A reset is an end too.
        let _ = socket.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
    works(&server);
}

#[test]
fn keys_are_asked_for_on_every_route_that_tells_or_does_something() {
    let server = Server::start(&["--api-key", "sesame", "--api-key", "second-key"]);
    let body = json!({"prompt": "Call me", "max_tokens": 1}).to_string();
    let with = |headers: &[(&str, &str)]| ask(server.address(), "POST", COMPLETIONS, headers, body.as_bytes());
    for headers in [
        &[][..],
        &[("Authorization", "Bearer wrong")],
        &[("Authorization", "Bearer sesam")],
        &[("Authorization", "Bearer sesame2")],
        &[("Authorization", "Basic sesame")],
        &[("x-api-key", "")],
    ] {
        let reply = with(headers);
        assert_eq!(
            (reply.status, &reply.json()["error"]["type"]),
            (401, &json!("authentication_error")),
            "{headers:?}"
        );
        assert!(!reply.body.contains("sesame"), "{reply:?}");
    }
    for headers in [("Authorization", "Bearer sesame"), ("authorization", "bearer second-key"), ("X-Api-Key", "sesame")]
    {
        assert_eq!(with(&[headers]).status, 200, "{headers:?}");
    }
    for path in ["/v1/models", "/metrics", "/slots", "/props", "/nothing"] {
        assert_eq!(server.get(path).status, 401, "{path}");
    }
    // The page asks for the key by itself.
    for path in ["/health", "/"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    assert!(!server.said().contains("sesame"), "{}", server.said());
}

#[test]
fn browsers_are_told_which_pages_may_ask() {
    let server = Server::start(&["--allow-origin", "app://page"]);
    let allowed = |origin: &str| {
        let reply = ask(server.address(), "GET", "/v1/models", &[("Origin", origin)], b"");
        reply.header("access-control-allow-origin").map(str::to_owned)
    };
    for origin in ["http://localhost:3000", "http://127.0.0.1", "app://page"] {
        assert_eq!(allowed(origin).as_deref(), Some(origin));
    }
    assert_eq!(allowed("app://localhost.attacker"), None);
    let asked = [
        ("Origin", "http://localhost:3000"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "x-stainless-os"),
    ];
    let reply = ask(server.address(), "OPTIONS", CHAT, &asked, b"");
    assert_eq!((reply.status, reply.header("access-control-allow-headers")), (204, Some("x-stainless-os")));
}
