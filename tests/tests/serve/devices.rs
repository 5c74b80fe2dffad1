//! The same of each device: a request's answer does not depend on who else asks, and log probabilities are those of its tokens.

use fuse_tests::gpu;
use fuse_tests::server::Server;
use serde_json::{Value, json};

/// The devices that are here, and how many slots each has where three are asked for.
fn devices() -> Vec<(&'static str, u64)> {
    [("cpu", 3)].into_iter().chain(gpu().map(|_| ("cuda:0", 4))).collect()
}

/// Prompts too short to be gone on with, greedy and drawn, with each kind of change to logits.
fn requests() -> Vec<Value> {
    let ways = [
        json!({"temperature": 0}),
        json!({"temperature": 0.9, "seed": 1}),
        json!({"temperature": 1.2, "seed": 2, "top_k": 40, "top_p": 0.9, "min_p": 0.02}),
        json!({"temperature": 0, "repetition_penalty": 1.3}),
        json!({"temperature": 0.9, "seed": 3, "frequency_penalty": 0.7, "presence_penalty": 0.3}),
        json!({"temperature": 0.9, "seed": 4, "logit_bias": {"300": 4.0, "442": -100}, "n": 2}),
    ];
    let texts = ["Call me", "The whale", "Of the sea", "A ship", "He said", "In the morning"];
    let whole = |(text, mut way): (&str, Value)| {
        way["prompt"] = json!(text);
        way["max_tokens"] = json!(10);
        way["ignore_eos"] = json!(true);
        way
    };
    texts.into_iter().zip(ways).map(whole).collect()
}

#[test]
fn answers_do_not_depend_on_who_else_asks() {
    for (device, slots) in devices() {
        let server = Server::start_on(device, &["--slots", "3"]);
        assert_eq!(server.get("/props").json()["total_slots"], slots, "{device}");
        let ask = |request: &Value| {
            let reply = server.post("/v1/completions", request);
            assert_eq!(reply.status, 200, "{device}: {reply:?}");
            reply.json()["choices"].clone()
        };
        let requests = requests();
        let alone: Vec<Value> = requests.iter().map(ask).collect();
        for round in 0..2 {
            let beside: Vec<Value> = std::thread::scope(|scope| {
                let asked: Vec<_> = requests.iter().map(|request| scope.spawn(|| ask(request))).collect();
                asked.into_iter().map(|asked| asked.join().expect("it is answered")).collect()
            });
            assert_eq!(beside, alone, "{device}, round {round}");
        }
    }
}

#[test]
fn log_probabilities_are_those_of_the_tokens() {
    for (device, _) in devices() {
        let server = Server::start_on(device, &[]);
        let chat = |more: Value| {
            let mut request = json!({
                "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 12, "ignore_eos": true,
                "logprobs": true, "top_logprobs": 20, "seed": 5,
            });
            request.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            let reply = server.post("/v1/chat/completions", &request);
            assert_eq!(reply.status, 200, "{device}: {reply:?}");
            reply.json()["choices"][0]["logprobs"]["content"].as_array().expect("a list").clone()
        };
        let ways = [
            json!({"temperature": 0}),
            json!({"temperature": 0.8}),
            json!({"temperature": 0, "frequency_penalty": 2.0, "logit_bias": {"300": 3.0}}),
        ];
        for (index, way) in ways.into_iter().enumerate() {
            let told = chat(way);
            assert!(told.len() >= 8, "{device}: {told:?}");
            for token in &told {
                let top = token["top_logprobs"].as_array().expect("a list");
                let scores: Vec<f64> = top.iter().filter_map(|other| other["logprob"].as_f64()).collect();
                assert_eq!(scores.len(), 20, "{device}: {token}");
                assert!(scores.windows(2).all(|pair| pair[0] >= pair[1]), "the likeliest first: {token}");
                let whole: f64 = scores.iter().map(|score| score.exp()).sum();
                assert!(whole <= 1.0 + 1e-4 && scores[0] < 0.0, "{device}: {whole}");
                let own = top.iter().find(|other| other["token"] == token["token"]);
                assert!(own.is_none_or(|own| own["logprob"] == token["logprob"]), "{device}: {token}");
                assert!(index > 0 || top[0]["token"] == token["token"], "greedy takes the likeliest: {token}");
            }
        }
    }
}
