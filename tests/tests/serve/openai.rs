//! Chat completions, completions, models, and the routes about the model.

use std::collections::BTreeSet;

use fuse_tests::server::Server;
use fuserun::backend::{Backend, Device, LoadOptions};
use fuserun::demo;
use fuserun::model::{ModelName, OpenModel};
use fuserun::sampling::SamplingParameters;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn chat(more: Value) -> Value {
    let mut body =
        json!({"model": "demo", "messages": [{"role": "user", "content": "Where is the whale?"}], "seed": 5});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn completion(prompt: &str, more: Value) -> Value {
    let mut body = json!({"model": "demo", "prompt": prompt, "seed": 5});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// What the deltas of a stream's first choice say.
fn said(objects: &[Value]) -> String {
    objects.iter().filter_map(|object| object["choices"][0]["delta"]["content"].as_str()).collect()
}

#[test]
fn a_chat_is_the_same_whole_and_as_it_comes() {
    let server = Server::start(&[]);
    let reply = server.post(CHAT, &chat(json!({})));
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")), "{reply:?}");
    let whole = reply.json();
    let choice = &whole["choices"][0];
    assert!(whole["id"].as_str().unwrap().starts_with("chatcmpl-"), "{whole}");
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!((&choice["finish_reason"], &choice["logprobs"]), (&json!("stop"), &Value::Null));
    let text = choice["message"]["content"].as_str().unwrap();
    assert!(!text.is_empty() && !text.contains('"') && !text.contains("\n\n"), "the answer ends with its turn: {text}");
    assert_eq!(
        whole["usage"]["total_tokens"],
        whole["usage"]["prompt_tokens"].as_u64().unwrap() + whole["usage"]["completion_tokens"].as_u64().unwrap()
    );
    assert_eq!((&whole["warnings"], &whole["seed"]), (&json!([]), &json!(5)));
    assert!(whole["timings"]["predicted_per_second"].as_f64().unwrap() > 0.0);

    let stream = server.stream(CHAT, &chat(json!({"stream": true, "stream_options": {"include_usage": true}})));
    assert_eq!(stream.head.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let objects = stream.objects();
    assert_eq!(objects[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(said(&objects), text);
    let [before, last] = &objects[objects.len() - 2..] else { panic!("{objects:?}") };
    assert_eq!((&before["choices"][0]["delta"], &before["choices"][0]["finish_reason"]), (&json!({}), &json!("stop")));
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    assert_eq!(last["usage"]["prompt_tokens_details"]["cached_tokens"], 0, "the prompt is shorter than what is kept");
    assert!(
        objects.iter().all(|object| object["object"] == "chat.completion.chunk" && object["id"] == objects[0]["id"])
    );
}

/// The server's greedy tokens are those of the model by itself.
#[test]
fn greedy_is_what_the_model_gives() {
    let server = Server::start(&[]);
    let reply = server.post(COMPLETIONS, &completion("Call me", json!({"temperature": 0, "max_tokens": 24}))).json();
    let tokenizer = demo::tokenizer().unwrap();
    let options = LoadOptions { context: 128, sequences: 1, batches: vec![1], threads: Some(1) };
    let mut backend: Backend = OpenModel::open(&ModelName::default()).unwrap().load(&Device::Cpu, &options).unwrap();
    let mut tokens = Vec::new();
    let prompt = tokenizer.encode_prompt("Call me").unwrap();
    let mut take = |_, token| {
        tokens.push(token);
        true
    };
    backend.generate(&[prompt], &SamplingParameters::default(), 24, &[], &mut take).unwrap();
    assert_eq!(reply["choices"][0]["text"], tokenizer.decode(&tokens, true).unwrap());
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
}

#[test]
fn tokens_depend_on_the_request_and_not_on_who_else_asks() {
    let server = Server::start(&["--slots", "4"]);
    let prompts = ["Call me", "The whale", "It was a cold, bleak night, and the sea", "Fellow citizens of the Senate"];
    let request = |index: usize| {
        let more = match index % 3 {
            0 => json!({"temperature": 0}),
            1 => json!({"temperature": 1.0, "top_k": 0, "seed": index}),
            _ => {
                json!({"temperature": 0.9, "top_p": 0.9, "presence_penalty": 0.6, "frequency_penalty": 0.2, "seed": index})
            }
        };
        let mut body = completion(prompts[index % 4], json!({"max_tokens": 20 + index * 7 % 30}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let text = |index: usize| server.post(COMPLETIONS, &request(index)).json()["choices"].clone();
    let alone: Vec<Value> = (0..12).map(text).collect();
    assert!(alone.iter().map(Value::to_string).collect::<BTreeSet<_>>().len() > 9, "they differ: {alone:?}");
    for _ in 0..2 {
        let beside: Vec<Value> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..12).map(|index| scope.spawn(move || text(index))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(beside, alone);
    }
}

#[test]
fn choices_differ_by_their_number_and_each_has_its_scores() {
    let server = Server::start(&[]);
    let more = json!({"n": 3, "max_tokens": 8, "logprobs": true, "top_logprobs": 20, "temperature": 1.5});
    let reply = server.post(CHAT, &chat(more.clone())).json();
    let choices = reply["choices"].as_array().unwrap();
    let texts: BTreeSet<&str> = choices.iter().map(|choice| choice["message"]["content"].as_str().unwrap()).collect();
    assert_eq!((choices.len(), texts.len()), (3, 3), "{texts:?}");
    let content = choices[0]["logprobs"]["content"].as_array().unwrap();
    assert!(!content.is_empty());
    for token in content {
        let top = token["top_logprobs"].as_array().unwrap();
        let values: Vec<f64> = top.iter().map(|entry| entry["logprob"].as_f64().unwrap()).collect();
        assert!(
            values.len() == 20 && values.windows(2).all(|pair| pair[0] >= pair[1]) && values[0] < 0.0,
            "{values:?}"
        );
        let text = token["token"].as_str().unwrap();
        assert!(token["bytes"] == json!(text.as_bytes()) || token["bytes"].is_null(), "{token}");
    }
    // The first choice is what one choice alone is, and a stream tells the same scores.
    let mut single = chat(more);
    single["n"] = json!(1);
    assert_eq!(server.post(CHAT, &single).json()["choices"][0], choices[0]);
    single["stream"] = json!(true);
    let objects = server.stream(CHAT, &single).objects();
    let streamed: Vec<Value> = objects
        .iter()
        .filter_map(|object| object["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .cloned()
        .collect();
    assert_eq!(streamed, *content);
}

#[test]
fn fields_change_what_they_name() {
    let server = Server::start(&[]);
    let text = |body: Value| -> (String, String) {
        let reply = server.post(COMPLETIONS, &body);
        assert_eq!(reply.status, 200, "{reply:?}");
        let choice = &reply.json()["choices"][0];
        (choice["text"].as_str().unwrap().into(), choice["finish_reason"].as_str().unwrap().into())
    };
    let greedy = |more: Value| {
        let mut body = completion("Call me", json!({"temperature": 0, "max_tokens": 24}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        text(body)
    };
    let (plain, _) = greedy(json!({}));
    let words: Vec<&str> = plain.split(' ').collect();
    // A stop text ends the answer before it, whether it is one or in a list.
    let stop = words[5];
    let (before, _) = plain.split_once(stop).unwrap();
    assert_eq!(greedy(json!({"stop": stop})), (before.to_owned(), "stop".into()));
    assert_eq!(greedy(json!({"stop": ["never to be found", stop]})), (before.to_owned(), "stop".into()));
    // So does a token.
    let third = demo::tokenizer().unwrap().encode(&plain, false).unwrap()[2];
    let (short, finish) = greedy(json!({"stop_token_ids": [third]}));
    assert!(plain.starts_with(&short) && short.len() < plain.len() && finish == "stop", "{short}");
    // A bias forbids, and one brings in.
    let first = demo::tokenizer().unwrap().encode(&plain, false).unwrap()[0];
    assert!(!greedy(json!({"logit_bias": {first.to_string(): -100}})).0.starts_with(&plain[..1]));
    let (only, _) = greedy(json!({"logit_bias": {"452": 100}, "max_tokens": 3}));
    assert_eq!(only, "allallall");
    assert_ne!(greedy(json!({"frequency_penalty": 2})).0, plain);
    assert_ne!(greedy(json!({"presence_penalty": 2})).0, plain);
    assert_eq!(greedy(json!({"top_p": 0})).0, plain);
    assert_eq!(greedy(json!({"temperature": 2, "top_k": 1})).0, plain, "one token is left to draw");
    assert_eq!(greedy(json!({"temperature": null, "top_k": 1, "seed": null, "stop": null})).0, plain, "null is absent");
    assert!(greedy(json!({"echo": true})).0.starts_with("Call me"));
    // Each draw has its seed, and says it.
    let drawn = server.post(COMPLETIONS, &json!({"prompt": "Call me", "temperature": 1.2})).json();
    let again = json!({"prompt": "Call me", "temperature": 1.2, "seed": drawn["seed"]});
    assert_eq!(server.post(COMPLETIONS, &again).json()["choices"], drawn["choices"]);
    let negative = completion("Call me", json!({"seed": -7}));
    assert_eq!(text(negative.clone()), text(negative));
    // Several prompts, as texts and as ids.
    let several = server.post(COMPLETIONS, &json!({"prompt": ["Call me", [35, 452, 442]], "temperature": 0})).json();
    assert_eq!(several["choices"][0]["text"], several["choices"][1]["text"]);
    assert_eq!((&several["choices"][1]["index"], &several["usage"]["prompt_tokens"]), (&json!(1), &json!(6)));
}

#[test]
fn what_is_not_known_is_named_and_runs() {
    let server = Server::start(&["--alias", "whale"]);
    let body = chat(json!({
        "model": "gpt-4o", "max_tokens": 4, "top_a": 0.3, "user": "me", "store": true, "metadata": {}, "service_tier": "auto",
        "parallel_tool_calls": true, "stream_options": null,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    }));
    let reply = server.post(CHAT, &body);
    let object = reply.json();
    assert_eq!((reply.status, &object["model"]), (200, &json!("whale")));
    assert_eq!(
        object["warnings"],
        json!([
            "the model's chat template knows no tools: none will be called",
            "this server runs whale, not gpt-4o",
            "`top_a` is not known here and has no effect",
        ])
    );
}

#[test]
fn a_last_message_of_the_assistant_goes_on() {
    let server = Server::start(&[]);
    let body = json!({"messages": [
        {"role": "developer", "content": "A gam."},
        {"role": "user", "content": [{"type": "text", "text": "Hast seen "}, {"type": "text", "text": "the whale?"}]},
        {"role": "assistant", "content": "Aye, yester"},
    ]});
    let rendered = server.post("/apply-template", &body).json();
    let wanted = "A gam.\n\n\"Hast seen the whale?\" said the stranger.\n\n\"Aye, yester";
    assert_eq!(rendered["prompt"], wanted);
    assert_eq!(rendered["tokens"], json!(demo::tokenizer().unwrap().encode(wanted, false).unwrap()));
    let reply = server.post(CHAT, &body);
    assert_eq!(reply.status, 200, "{reply:?}");
}

#[test]
fn a_second_turn_reads_only_what_is_new() {
    let server = Server::start(&["--slots", "2"]);
    let question = "Tell me of the white whale, of the ship and of her captain, of the men and of the sea.";
    let mut messages = vec![json!({"role": "user", "content": question})];
    let first = server.post(CHAT, &json!({"messages": messages, "seed": 1, "max_tokens": 30})).json();
    messages.push(first["choices"][0]["message"].clone());
    messages.push(json!({"role": "user", "content": "And then?"}));
    let second = server.post(CHAT, &json!({"messages": messages, "seed": 1, "max_tokens": 30})).json();
    let cached = second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    let before = first["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(cached >= before, "{cached} of {before} tokens were there: {second}");
    assert_eq!(second["timings"]["cache_n"], cached);
}

#[test]
fn routes_about_the_model() {
    let server = Server::start(&["--slots", "3", "--max-context", "200"]);
    let json = |path: &str| {
        let reply = server.get(path);
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        reply.json()
    };
    for path in ["/v1/models", "/models"] {
        assert_eq!(json(path)["data"][0]["id"], "demo");
    }
    assert_eq!(
        (&json("/v1/models/demo")["object"], &json("/v1/models/demo")["max_model_len"]),
        (&json!("model"), &json!(200))
    );
    assert_eq!(json("/health"), json!({"status": "ok"}));
    let props = json("/props");
    assert_eq!((&props["total_slots"], &props["default_generation_settings"]["n_ctx"]), (&json!(3), &json!(200)));
    assert_eq!(props["default_generation_settings"]["params"]["temperature"], 0.8);
    assert!(props["chat_template"].as_str().unwrap().contains("said the sailor"));
    let slots = json("/slots");
    assert_eq!((slots.as_array().unwrap().len(), &slots[2]["is_processing"]), (3, &json!(false)));
    let text = "Call me “Ishmael”";
    let tokens = server.post("/tokenize", &json!({"content": text})).json();
    assert_eq!(tokens["tokens"], json!(demo::tokenizer().unwrap().encode(text, false).unwrap()));
    assert_eq!(server.post("/detokenize", &json!({"tokens": tokens["tokens"]})).json()["content"], text);
    let pieces = server.post("/tokenize", &json!({"content": "Call me", "with_pieces": true})).json();
    assert_eq!(pieces["tokens"][2], json!({"id": 442, "piece": " me"}));
    server.post(COMPLETIONS, &completion("Call me", json!({"max_tokens": 5, "ignore_eos": true})));
    let metrics = server.get("/metrics");
    assert!(metrics.header("content-type").unwrap().starts_with("application/openmetrics-text; version=1.0.0"));
    for line in ["fuserun_requests_total 1", "fuserun_generated_tokens_total 5", "fuserun_slots_busy 0", "# EOF"] {
        assert!(metrics.body.lines().any(|found| found == line), "{line} in {}", metrics.body);
    }
}
