//! Requests of any bytes, to a server without a network whose device says anything that is allowed.

use std::sync::mpsc;
use std::time::Duration;

use anyhow::Result;
use fuserun::demo;
use fuserun::generate::chat::ChatTemplate;
use fuserun::generate::defaults::GenerationDefaults;
use fuserun::grammar::{Grammar, Matcher};
use fuserun::serve::{Asked, Inbox, Local, Sent, Subject};
use fuserun::slots::{Chosen, Limits, Request, Slots, Steps};
use serde_json::Value;

/// The routes, by the first byte of what is sent.
pub const ROUTES: [&str; 12] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/api/chat",
    "/api/generate",
    "/api/show",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/v1/embeddings",
];

/// Bodies that are served, each with the index of its route.
pub const SERVED: [(u8, &str); 12] = [
    (
        0,
        r#"{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5, "temperature": 0.5, "stop": ["x"], "seed": 3}"#,
    ),
    (
        0,
        r#"{"messages": [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, {"role": "user", "content": "Hello"}],
        "stream": true, "stream_options": {"include_usage": true}, "logprobs": true, "top_logprobs": 2, "n": 2, "logit_bias": {"5": -100}}"#,
    ),
    (
        0,
        r#"{"messages": [{"role": "user", "content": "Hello"}], "tool_choice": "required", "tools": [{"type": "function", "function":
        {"name": "f", "parameters": {"type": "object", "properties": {"a": {"enum": ["b", 1]}}, "required": ["a"]}}}]}"#,
    ),
    (
        0,
        r#"{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": null, "tool_calls": [{"id": "c", "type": "function",
        "function": {"name": "f", "arguments": "{\"a\": 1}"}}]}, {"role": "tool", "tool_call_id": "c", "content": "7"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object", "additionalProperties": false}}}}"#,
    ),
    (
        1,
        r#"{"prompt": ["Call", [5, 6]], "max_tokens": 4, "echo": true, "logprobs": 1, "regex": "[a-z]{2}", "min_p": 0.1, "top_k": 3}"#,
    ),
    (
        1,
        r#"{"prompt": "Call", "grammar": "start: \"a\" | \"b\"", "presence_penalty": 1, "repetition_penalty": 1.1, "stop_token_ids": [9]}"#,
    ),
    (
        2,
        r#"{"input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]}], "stream": true,
        "max_output_tokens": 5, "tools": [{"type": "function", "name": "f", "parameters": {}}, {"type": "web_search"}]}"#,
    ),
    (
        3,
        r#"{"max_tokens": 5, "system": "Be brief.", "messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a",
        "content": "b"}]}], "tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "any"}, "stream": true}"#,
    ),
    (
        5,
        r#"{"messages": [{"role": "user", "content": "x", "images": []}], "options": {"num_predict": 4, "temperature": 0}, "format": "json"}"#,
    ),
    (6, r#"{"prompt": "x", "raw": true, "stream": false, "options": {"stop": ["a"], "seed": 1}, "keep_alive": 5}"#),
    (8, r#"{"content": "Call me", "add_special": true, "with_pieces": true}"#),
    (10, r#"{"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"enable_thinking": false}}"#),
];

/// Tokens of an answer, before it ends where it may.
const LENGTH: usize = 6;

/// A server that is sent requests.
pub struct Requests {
    local: Local,
}

impl Requests {
    /// Starts it.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start() -> Requests {
        let source = "{# <tool_call> </think> #}{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}";
        let subject = Subject {
            name: "any".into(),
            tokenizer: demo::tokenizer().expect("the demo has a tokenizer"),
            template: Some(ChatTemplate::new(source, serde_json::Map::new()).expect("a template")),
            defaults: GenerationDefaults::default(),
            chat_stops: Vec::new(),
            context: 256,
            slots: 2,
            architecture: None,
            dtype: None,
            device: "any".into(),
        };
        let load =
            |inbox: &Inbox| inbox.serve(Slots::new(Anything { slots: [None, None], draws: 1 }), || {}).map(|_| ());
        Requests { local: Local::start(|| Ok(subject), load).expect("it starts") }
    }

    /// Sends a body to the route that the first byte says; the status.
    ///
    /// # Panics
    /// When the answer is not what a server may say: an error of its own, or what is neither an object nor events.
    pub fn send(&self, data: &[u8]) -> u16 {
        let (route, body) = data.split_first().map_or((0, &[][..]), |(first, rest)| (usize::from(*first), rest));
        let path = ROUTES[route % ROUTES.len()];
        let asked = Asked { method: "POST".into(), path: path.into(), body: body.to_vec(), ..Asked::default() };
        let (send, sent) = mpsc::channel();
        let take = move |piece| send.send(piece).expect("the test waits");
        let _answering = self.local.request(asked, take).expect("the request is one");
        let (mut status, mut answer) = (0, Vec::new());
        for piece in sent {
            match piece {
                Sent::Head(code, _) => status = code,
                Sent::Body(more) => answer.extend(more),
                Sent::End => break,
            }
        }
        let text = String::from_utf8(answer).expect("answers are text");
        assert!([200, 400, 404, 413, 501].contains(&status), "{status} of {path}: {text}");
        let is_object = |text: &str| serde_json::from_str::<Value>(text).is_ok();
        let is_event = |line: &str| {
            let data = line.strip_prefix("data: ").unwrap_or(line);
            line.is_empty()
                || line.starts_with("event: ")
                || line.starts_with(':')
                || data == "[DONE]"
                || is_object(data)
        };
        assert!(is_object(&text) || text.lines().all(is_event), "{path} answers {text}");
        if status != 200 {
            let error: Value = serde_json::from_str(&text).unwrap_or_default();
            assert!(error["error"].is_object() || error["error"].is_string(), "{path} answers {text}");
        }
        status
    }
}

/// A device that says any token that is allowed.
struct Anything {
    slots: [Option<(Option<Matcher>, usize)>; 2],
    draws: usize,
}

impl Steps for Anything {
    fn limits(&self) -> Limits {
        Limits { slots: 2, context: 256, vocabulary: 4096, resumes: true }
    }

    fn part(&self, left: usize, _: bool) -> usize {
        left
    }

    fn begin(&mut self, slot: usize, _: usize, request: &Request) -> Result<()> {
        self.slots[slot] = Some((request.sampling.grammar.as_ref().map(Grammar::begin), 0));
        Ok(())
    }

    fn prompt(&mut self, _: usize, _: usize, _: &[u32], _: bool) -> Result<Duration> {
        Ok(Duration::ZERO)
    }

    fn step(&mut self, take: &mut dyn FnMut(usize, Chosen)) -> Result<Duration> {
        for (slot, text) in self.slots.iter_mut().enumerate() {
            let Some((matcher, length)) = text else { continue };
            *length += 1;
            self.draws = self.draws.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut token = if *length > LENGTH { 0 } else { (self.draws >> 33) as u32 % 4096 };
            if let Some(matcher) = matcher {
                let allowed = match matcher.allowed() {
                    Ok(allowed) => allowed,
                    Err(error) => {
                        take(slot, Chosen::Broken(format!("{error:#}")));
                        continue;
                    }
                };
                if !allowed.has(token as usize) {
                    let all: Vec<u32> = (0..4096).filter(|&token| allowed.has(token as usize)).collect();
                    token = all[(self.draws >> 33) % all.len()];
                }
                if let Err(error) = matcher.take(token) {
                    take(slot, Chosen::Broken(format!("{error:#}")));
                    continue;
                }
            }
            take(slot, Chosen::Token(token));
        }
        Ok(Duration::ZERO)
    }

    fn leave(&mut self, slot: usize) -> Result<()> {
        self.slots[slot] = None;
        Ok(())
    }
}
