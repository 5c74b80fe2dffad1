//! Slots of the demo model: a request's tokens are the same to the bit alone and beside others, whoever comes and goes.

use std::collections::BTreeMap;

use fuse_tests::gpu;
use fuserun::backend::{Backend, Device, LoadOptions};
use fuserun::grammar::{Grammars, Source, Words};
use fuserun::model::{ModelName, OpenModel};
use fuserun::sampling::{SamplingParameters, none_left};
use fuserun::slots::{Event, Request, Slots, Ticket};

const CONTEXT: usize = 96;

fn load(sequences: usize, threads: usize) -> Backend {
    load_on(&Device::Cpu, sequences, threads)
}

fn load_on(device: &Device, sequences: usize, threads: usize) -> Backend {
    let options = LoadOptions { context: CONTEXT, sequences, batches: vec![sequences], threads: Some(threads) };
    let model = OpenModel::open(&ModelName::default()).expect("the demo model is in the binary");
    model.load(device, &options).expect("it fits")
}

/// Prompts of several lengths with `beginnings` beginnings, greedy and drawn, with a penalty and without.
fn requests(beginnings: usize) -> Vec<Request> {
    let request = |index: usize| {
        let prompt = (0..1 + index * 7 % 40).map(|at| ((at * 31 + index % beginnings * 17) % 200) as u32).collect();
        let drawn = SamplingParameters { temperature: 0.9, top_p: 0.95, seed: index as u64, ..Default::default() };
        let sampling = match index % 4 {
            0 => SamplingParameters::default(),
            1 => drawn,
            2 => SamplingParameters { repetition_penalty: 1.3, ..drawn },
            _ => SamplingParameters {
                frequency_penalty: 0.5,
                presence_penalty: -0.3,
                logit_bias: vec![(7, 2.5), (300, -100.0)],
                ..drawn
            },
        };
        let limit = 3 + index * 5 % 17;
        Request { prompt, sampling, choice: index as u32 % 2, limit, stops: Vec::new(), scores: None }
    };
    (0..12).map(request).collect()
}

/// The tokens of each request. A request that is never to end comes with each, and leaves after some polls.
fn run(backend: &mut Backend, requests: &[Request], leavers: bool) -> Vec<Vec<u32>> {
    let mut slots = Slots::new(backend.slots().expect("the device has slots"));
    let endless = Request { limit: usize::MAX, ..requests[0].clone() };
    let (mut tickets, mut left): (Vec<Ticket>, Vec<Ticket>) = Default::default();
    for request in requests {
        tickets.push(slots.submit(request.clone()).expect("it is taken"));
        if leavers {
            left.push(slots.submit(endless.clone()).expect("it is taken"));
        }
    }
    let mut tokens: BTreeMap<Ticket, Vec<u32>> = BTreeMap::new();
    let mut polls = 0;
    while !slots.is_idle() {
        for (ticket, event) in slots.poll().expect("no fault") {
            match event {
                Event::Token(token) => tokens.entry(ticket).or_default().push(token),
                Event::Failed(message) => panic!("{message}"),
                Event::Read { .. } | Event::Scores(_) | Event::Ended(_) => {}
            }
        }
        polls += 1;
        if polls % 9 == 0
            && let Some(ticket) = left.pop()
        {
            slots.leave(ticket).expect("no fault");
        }
    }
    tickets.iter().map(|ticket| tokens.remove(ticket).unwrap_or_default()).collect()
}

#[test]
fn tokens_depend_on_the_request_only() {
    let requests = requests(3);
    // Each in a model of its own: nothing was there before it.
    let alone: Vec<Vec<u32>> =
        requests.iter().flat_map(|request| run(&mut load(1, 1), std::slice::from_ref(request), false)).collect();
    assert!(alone.iter().zip(&requests).all(|(tokens, request)| tokens.len() == request.limit));
    assert!(alone.iter().collect::<std::collections::BTreeSet<_>>().len() > 8, "they differ: {alone:?}");
    for (slots, threads, leavers) in [(1, 2, false), (2, 1, false), (4, 2, false), (4, 1, true), (3, 2, true)] {
        let beside = run(&mut load(slots, threads), &requests, leavers);
        assert_eq!(beside, alone, "{slots} slots, {threads} threads, leavers {leavers}");
    }
}

/// With as many slots as steps have rows. Prompts share no beginning: what another request has left of one is computed by other kernels than a prompt is.
#[test]
fn tokens_depend_on_the_request_only_on_the_gpu() {
    let Some(device) = gpu() else { return };
    let requests = requests(12);
    for slots in [1, 2, 4, 8, 16, 32] {
        let mut backend = load_on(&device, slots, 1);
        let alone: Vec<Vec<u32>> =
            requests.iter().flat_map(|request| run(&mut backend, std::slice::from_ref(request), false)).collect();
        assert!(alone.iter().zip(&requests).all(|(tokens, request)| tokens.len() == request.limit));
        for leavers in [false, true, false] {
            assert_eq!(run(&mut backend, &requests, leavers), alone, "{slots} slots, leavers {leavers}");
        }
    }
}

/// Each token's scores come right before it, and say of greedy ones that they are the likeliest.
#[test]
fn scores_come_before_their_tokens() {
    let mut backend = load(2, 1);
    let mut slots = Slots::new(backend.slots().expect("the CPU has slots"));
    let mut asked = requests(3).swap_remove(0);
    asked.scores = Some(3);
    let ticket = slots.submit(asked.clone()).expect("it is taken");
    let silent = slots.submit(Request { scores: None, ..asked }).expect("it is taken");
    let mut events: BTreeMap<Ticket, Vec<Event>> = BTreeMap::new();
    while !slots.is_idle() {
        for (ticket, event) in slots.poll().expect("no fault") {
            events.entry(ticket).or_default().push(event);
        }
    }
    let scored = &events[&ticket][1..events[&ticket].len() - 1];
    let mut tokens = Vec::new();
    for pair in scored.chunks(2) {
        let [Event::Scores(scores), Event::Token(token)] = pair else { panic!("{pair:?}") };
        assert_eq!(scores.top.len(), 3);
        assert_eq!(scores.top[0], (*token, scores.chosen), "greedy takes the likeliest");
        assert!(scores.top.windows(2).all(|pair| pair[0].1 >= pair[1].1) && scores.chosen < 0.0, "{scores:?}");
        tokens.push(Event::Token(*token));
    }
    assert_eq!(tokens, events[&silent][1..events[&silent].len() - 1]);
}

/// Where the grammar allows nothing but what the request suppresses; the others go on.
#[test]
fn a_request_that_leaves_no_token_fails_by_itself() {
    let words = || {
        let words = (0..4096u32).map(|token| u8::try_from(token).map_or(Vec::new(), |byte| vec![byte])).collect();
        Ok(Words { words, special: vec![2], ends: vec![2] })
    };
    let grammar = Grammars::new(words).compile(&Source::Regex("ab".into())).expect("it is a regex");
    let sampling = SamplingParameters { grammar: Some(grammar), suppress: vec![98], ..SamplingParameters::default() };
    let prompt = vec![5, 6, 7];
    let request = Request { prompt, sampling, choice: 0, limit: 9, stops: vec![2], scores: None };
    let other = requests(1).swap_remove(0);
    let mut backend = load(2, 1);
    let expected = run(&mut backend, std::slice::from_ref(&other), false);
    let mut slots = Slots::new(backend.slots().expect("the device has slots"));
    let [held, beside] = [request, other].map(|request| slots.submit(request).expect("it is taken"));
    let (mut failed, mut tokens) = (Vec::new(), [Vec::new(), Vec::new()]);
    while !slots.is_idle() {
        for (ticket, event) in slots.poll().expect("no fault") {
            match event {
                Event::Token(token) => tokens[usize::from(ticket == beside)].push(token),
                Event::Failed(message) => failed.push((ticket, message)),
                _ => {}
            }
        }
    }
    assert_eq!(tokens, [vec![97], expected[0].clone()]);
    assert_eq!(failed, [(held, none_left(3))]);
}
