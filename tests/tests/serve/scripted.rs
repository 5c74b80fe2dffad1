//! A device that says what a test has written down: calls of tools, thoughts, and what breaks.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, bail};
use fuse_tests::server::{Reply, Stream, ask};
use fuserun::demo;
use fuserun::generate::chat::ChatTemplate;
use fuserun::generate::defaults::GenerationDefaults;
use fuserun::grammar::{Grammar, Matcher};
use fuserun::serve::{Options, Subject, run};
use fuserun::slots::{Chosen, Limits, Request, Slots, Steps};
use serde_json::{Value, json};

/// What the device does after a prompt.
#[derive(Clone)]
enum Script {
    /// It says this, and ends; where that is not allowed, anything that is.
    Says(String),
    /// Its logits are not finite after this.
    Breaks(String),
    /// It fails.
    Fails,
}

struct Scripted {
    script: Arc<Mutex<Script>>,
    slots: Vec<Option<Speaker>>,
}

struct Speaker {
    /// What it is to say, from the last token to the first.
    tokens: Vec<u32>,
    /// Whether it breaks then.
    breaks: bool,
    matcher: Option<Matcher>,
    draws: usize,
}

impl Speaker {
    fn next(&mut self) -> Chosen {
        let mut token = match self.tokens.pop() {
            Some(token) => token,
            None if self.breaks => return Chosen::Broken("the logits at position 9 are not finite".into()),
            None => 0,
        };
        if let Some(matcher) = &mut self.matcher {
            let allowed = matcher.allowed().unwrap();
            if !allowed.has(token as usize) {
                let all: Vec<u32> = (0..4096).filter(|&token| allowed.has(token as usize)).collect();
                self.draws += 1;
                token = all[self.draws * 7919 % all.len()];
            }
            matcher.take(token).unwrap();
        }
        Chosen::Token(token)
    }
}

impl Steps for Scripted {
    fn limits(&self) -> Limits {
        Limits { slots: 2, context: 512, vocabulary: 4096, resumes: true }
    }

    fn part(&self, left: usize, _: bool) -> usize {
        left
    }

    fn begin(&mut self, slot: usize, _: usize, request: &Request) -> Result<()> {
        let (text, breaks) = match self.script.lock().unwrap().clone() {
            Script::Says(text) => (text, false),
            Script::Breaks(text) => (text, true),
            Script::Fails => bail!("the device is gone"),
        };
        let tokens = demo::tokenizer()?.encode(&text, false)?;
        let matcher = request.sampling.grammar.as_ref().map(Grammar::begin);
        self.slots[slot] = Some(Speaker { tokens: tokens.into_iter().rev().collect(), breaks, matcher, draws: 0 });
        Ok(())
    }

    fn prompt(&mut self, _: usize, _: usize, _: &[u32], _: bool) -> Result<Duration> {
        Ok(Duration::ZERO)
    }

    fn step(&mut self, take: &mut dyn FnMut(usize, Chosen)) -> Result<Duration> {
        for (slot, speaker) in self.slots.iter_mut().enumerate() {
            if let Some(speaker) = speaker {
                take(slot, speaker.next());
            }
        }
        Ok(Duration::ZERO)
    }

    fn leave(&mut self, slot: usize) -> Result<()> {
        self.slots[slot] = None;
        Ok(())
    }
}

struct Server {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    ended: Receiver<Result<()>>,
}

impl Server {
    /// A server whose model has a template with this in it.
    fn start(mentions: &str) -> Server {
        let source = format!("{{# {mentions} #}}{{{{ messages | tojson }}}}{{{{ tools | tojson }}}}");
        let subject = Subject {
            name: "scripted".into(),
            tokenizer: demo::tokenizer().unwrap(),
            template: Some(ChatTemplate::new(&source, serde_json::Map::new()).unwrap()),
            defaults: GenerationDefaults::default(),
            chat_stops: Vec::new(),
            context: 512,
            slots: 2,
            architecture: None,
            dtype: None,
            device: "script".into(),
        };
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let options = Options { address, keys: Vec::new(), origins: Vec::new(), deadline: Duration::from_secs(1) };
        let script = Arc::new(Mutex::new(Script::Says(String::new())));
        let device = Scripted { script: script.clone(), slots: vec![None, None] };
        let ((tell, told), (ready, loaded), (end, ended)) = (channel(), channel(), channel());
        std::thread::spawn(move || {
            let load = move |inbox: &fuserun::serve::Inbox| {
                inbox.serve(Slots::new(device), || ready.send(()).expect("the test waits")).map(|_| ())
            };
            let done = run(|| Ok(subject), options, load, |address| tell.send(address).expect("the test waits"));
            // The test may be over.
            let _ = end.send(done);
        });
        let patience = Duration::from_secs(60);
        let address = told.recv_timeout(patience).unwrap();
        loaded.recv_timeout(patience).unwrap();
        Server { address, script, ended }
    }

    fn says(&self, text: &str) {
        *self.script.lock().unwrap() = Script::Says(text.to_owned());
    }

    fn post(&self, path: &str, body: Value) -> Reply {
        ask(self.address, "POST", path, &[], body.to_string().as_bytes())
    }

    fn events(&self, path: &str, mut body: Value) -> Vec<Value> {
        body["stream"] = json!(true);
        Stream::open(self.address, "POST", path, &[], body.to_string().as_bytes()).objects()
    }
}

fn chat() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    let tool = json!({"type": "function", "function": {"name": "weather", "parameters": parameters}});
    json!({"messages": [{"role": "user", "content": "Is it cold in Oslo?"}], "tools": [tool]})
}

/// The same as Anthropic's API has it.
fn message() -> Value {
    let tool = json!({"name": "weather", "input_schema": {"type": "object"}});
    json!({"messages": [{"role": "user", "content": "Is it cold in Oslo?"}], "tools": [tool], "max_tokens": 200})
}

const CHAT: &str = "/v1/chat/completions";
/// As a model writes them: spaces stay as they are.
const ARGUMENTS: &str = "{\"city\":\"Oslo\", \"n\": 1.0}";

#[test]
fn calls_are_found_in_the_form_that_the_template_writes() {
    for (mentions, text) in [
        ("<tool_call>", format!("<tool_call>\n{{\"name\": \"weather\", \"arguments\": {ARGUMENTS}}}\n</tool_call>")),
        ("<|python_tag|>", format!("{{\"name\": \"weather\", \"parameters\": {ARGUMENTS}}}")),
        ("[TOOL_CALLS]", format!("[TOOL_CALLS][{{\"name\": \"weather\", \"arguments\": {ARGUMENTS}}}]")),
        ("[TOOL_CALLS] [ARGS]", format!("[TOOL_CALLS]weather[ARGS]{ARGUMENTS}")),
    ] {
        let server = Server::start(mentions);
        server.says(&text);
        let object = server.post(CHAT, chat()).json();
        let choice = &object["choices"][0];
        assert_eq!(
            (&choice["finish_reason"], &choice["message"]["content"]),
            (&json!("tool_calls"), &Value::Null),
            "{object}"
        );
        let call = &choice["message"]["tool_calls"][0];
        assert_eq!(call["function"], json!({"name": "weather", "arguments": ARGUMENTS}));
        let id = call["id"].as_str().unwrap();
        let nine = id.len() == 9 && id.chars().all(|letter| letter.is_ascii_alphanumeric());
        assert!(if mentions.starts_with("[TOOL_CALLS]") { nine } else { id.starts_with("call_") }, "{id}");

        let events = server.events(CHAT, chat());
        let deltas: Vec<&Value> = events
            .iter()
            .map(|event| &event["choices"][0]["delta"]["tool_calls"][0])
            .filter(|call| !call.is_null())
            .collect();
        assert!(deltas.len() > 3, "the arguments come in pieces: {deltas:?}");
        assert_eq!((&deltas[0]["function"]["name"], &deltas[0]["index"]), (&json!("weather"), &json!(0)));
        assert!(deltas[0]["id"].is_string() && deltas[1..].iter().all(|delta| delta.get("id").is_none()));
        let arguments: String = deltas.iter().filter_map(|delta| delta["function"]["arguments"].as_str()).collect();
        assert_eq!(arguments, ARGUMENTS);
        assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
        // With no tools it is text.
        let mut none = chat();
        none["tool_choice"] = json!("none");
        let object = server.post(CHAT, none).json();
        assert_eq!(
            (&object["choices"][0]["message"]["content"], &object["choices"][0]["finish_reason"]),
            (&json!(text), &json!("stop"))
        );
    }
}

#[test]
fn a_call_that_is_begun_cannot_fail_to_parse() {
    let properties =
        json!({"city": {"enum": ["Oslo", "Bergen"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}});
    let parameters = json!({"type": "object", "properties": properties, "required": ["city", "days"], "additionalProperties": false});
    for (mentions, mark) in [
        ("<tool_call>", "<tool_call>"),
        ("<|python_tag|>", "<|python_tag|>"),
        ("<|python_tag|>", "{\"name\": \"weather\""),
        ("[TOOL_CALLS]", "[TOOL_CALLS]"),
        ("[TOOL_CALLS] [ARGS]", "[TOOL_CALLS]"),
        ("<tool_call> <function= <parameter=", "<tool_call>"),
        ("<tool_call> <function= <parameter=", "<function="),
    ] {
        let server = Server::start(mentions);
        let before = if mark.starts_with('{') { "" } else { "Let me see. " };
        server.says(&format!("{before}{mark} I call the whale, and would rather not say what I want of it."));
        let mut body = chat();
        body["tools"][0]["function"]["parameters"] = parameters.clone();
        body["parallel_tool_calls"] = json!(false);
        // No stop text ends a call, once it is known to be one.
        body["stop"] = if before.is_empty() { json!(["\n"]) } else { json!(["\n", ":"]) };
        let object = server.post(CHAT, body.clone()).json();
        let choice = &object["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{object}");
        let calls = choice["message"]["tool_calls"].as_array().unwrap();
        assert_eq!((calls.len(), &calls[0]["function"]["name"]), (1, &json!("weather")), "{object}");
        let arguments: Value = serde_json::from_str(calls[0]["function"]["arguments"].as_str().unwrap()).unwrap();
        assert!(["Oslo", "Bergen"].map(Value::from).contains(&arguments["city"]), "{arguments}");
        assert!((1..=9).contains(&arguments["days"].as_i64().unwrap()), "{arguments}");
        assert_eq!(choice["message"]["content"].as_str().unwrap_or_default(), before, "{object}");
        // A schema that is not understood is left out, or refused where it must be held to.
        body["tools"][0]["function"]["parameters"]["properties"]["city"] = json!({"type": "king"});
        let object = server.post(CHAT, body.clone()).json();
        assert!(object["warnings"][0].as_str().unwrap().contains("weather"), "{object}");
        assert_eq!(object["choices"][0]["message"]["tool_calls"][0]["function"]["name"], "weather", "{object}");
        body["tools"][0]["function"]["strict"] = json!(true);
        let refused = server.post(CHAT, body);
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("tools[0].function.parameters")));
    }
}

#[test]
fn calls_in_the_words_of_the_other_apis() {
    let server = Server::start("<tool_call>");
    let call = format!("<tool_call>\n{{\"name\": \"weather\", \"arguments\": {ARGUMENTS}}}\n</tool_call>");
    server.says(&format!("I will see.\n{call}\n{call}"));
    let input: Value = serde_json::from_str(ARGUMENTS).unwrap();

    let object = server.post("/v1/messages", message()).json();
    assert_eq!(
        (&object["stop_reason"], object["content"].as_array().unwrap().len()),
        (&json!("tool_use"), 3),
        "{object}"
    );
    assert_eq!((&object["content"][0]["text"], &object["content"][2]["input"]), (&json!("I will see.\n"), &input));
    let events = server.events("/v1/messages", message());
    let started: Vec<&str> = events.iter().filter_map(|event| event["content_block"]["type"].as_str()).collect();
    assert_eq!(started, ["text", "tool_use", "tool_use"]);
    let second = |event: &&Value| event["index"] == 2;
    let json: String =
        events.iter().filter(second).filter_map(|event| event["delta"]["partial_json"].as_str()).collect();
    assert_eq!(json, ARGUMENTS);

    let mut ollama = chat();
    ollama["stream"] = json!(false);
    let object = server.post("/api/chat", ollama).json();
    assert_eq!(object["message"]["tool_calls"][1]["function"], json!({"name": "weather", "arguments": input}));

    let tool = json!({"type": "function", "name": "weather", "parameters": {"type": "object"}});
    let body = json!({"input": "Is it cold in Oslo?", "tools": [tool]});
    let object = server.post("/v1/responses", body.clone()).json();
    let kinds: Vec<&Value> = object["output"].as_array().unwrap().iter().map(|item| &item["type"]).collect();
    assert_eq!(kinds, ["message", "function_call", "function_call"]);
    assert_eq!(object["output"][1]["arguments"], ARGUMENTS);
    let events = server.events("/v1/responses", body);
    let first =
        |event: &&Value| event["type"] == "response.function_call_arguments.delta" && event["output_index"] == 1;
    let streamed: String = events.iter().filter(first).filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(streamed, ARGUMENTS);

    // A tool that runs on the vendor's servers is left out.
    let mut body = message();
    body["tools"].as_array_mut().unwrap().push(json!({"type": "web_search_20250305", "name": "web_search"}));
    let object = server.post("/v1/messages", body).json();
    assert!(object["warnings"][0].as_str().unwrap().contains("\"web_search_20250305\" is left out"), "{object}");

    // A tool that must be held to its schema, which is not understood: else it is left out.
    let king = json!({"type": "object", "properties": {"city": {"type": "king"}}});
    for (strict, status) in [(true, 400), (false, 200)] {
        let tool = json!({"type": "function", "name": "weather", "parameters": king, "strict": strict});
        let reply = server.post("/v1/responses", json!({"input": "Is it cold in Oslo?", "tools": [tool]}));
        assert_eq!(reply.status, status, "{reply:?}");
        let mut body = message();
        (body["tools"][0]["input_schema"], body["tools"][0]["strict"]) = (king.clone(), json!(strict));
        let reply = server.post("/v1/messages", body);
        assert_eq!(reply.status, status, "{reply:?}");
    }
}

#[test]
fn thoughts_are_told_apart_from_the_answer() {
    let server = Server::start("<think> </think>");
    server.says("<think>\nIt is “November”.\n</think>\n\nYes, it is — très froid.");
    let (thought, answer) = ("\nIt is “November”.\n", "Yes, it is — très froid.");
    let object = server.post(CHAT, chat()).json();
    let message_of_chat = &object["choices"][0]["message"];
    assert_eq!((&message_of_chat["reasoning_content"], &message_of_chat["content"]), (&json!(thought), &json!(answer)));
    assert!(object["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 3);
    let events = server.events(CHAT, chat());
    let of = |key: &str| -> String {
        events.iter().filter_map(|event| event["choices"][0]["delta"][key].as_str()).collect()
    };
    assert_eq!((of("reasoning_content").as_str(), of("content").as_str()), (thought, answer), "no character is split");
    assert!(!events.iter().any(|event| event.to_string().contains('\u{FFFD}')));

    let object = server.post("/v1/messages", message()).json();
    assert_eq!((&object["content"][0]["thinking"], &object["content"][1]["text"]), (&json!(thought), &json!(answer)));
    let mut ollama = chat();
    ollama["stream"] = json!(false);
    let object = server.post("/api/chat", ollama.clone()).json();
    assert_eq!((&object["message"]["thinking"], &object["message"]["content"]), (&json!(thought), &json!(answer)));
    ollama["think"] = json!(false);
    assert!(server.post("/api/chat", ollama).json()["message"].get("thinking").is_none());
    let object = server.post("/v1/responses", json!({"input": "Is it cold?"})).json();
    assert_eq!(
        (&object["output"][0]["type"], &object["output"][0]["content"][0]["text"]),
        (&json!("reasoning"), &json!(thought))
    );
    assert_eq!(object["output"][1]["content"][0]["text"], answer);
}

#[test]
fn logits_that_are_not_finite_fail_their_request_only() {
    let server = Server::start("");
    *server.script.lock().unwrap() = Script::Breaks("So far".into());
    let reply = server.post(CHAT, chat());
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (500, &json!("server_error")), "{reply:?}");
    assert!(reply.body.contains("not finite"), "{reply:?}");
    let events = server.events(CHAT, chat());
    assert_eq!(events[events.len() - 2]["choices"][0]["delta"]["content"], " far");
    assert!(events.last().unwrap()["error"]["message"].as_str().unwrap().contains("not finite"), "{events:?}");
    let events = server.events("/v1/messages", message());
    assert_eq!(
        (&events.last().unwrap()["type"], &events.last().unwrap()["error"]["type"]),
        (&json!("error"), &json!("api_error"))
    );
    server.says("Yes.");
    assert_eq!(server.post(CHAT, chat()).json()["choices"][0]["message"]["content"], "Yes.");
}

#[test]
fn a_device_that_fails_ends_the_server_with_its_words() {
    let server = Server::start("");
    *server.script.lock().unwrap() = Script::Fails;
    let reply = server.post(CHAT, chat());
    assert_eq!(reply.status, 503, "{reply:?}");
    let ended = server.ended.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(format!("{:#}", ended.unwrap_err()), "the device is gone");
}
