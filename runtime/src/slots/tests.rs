//! The slots over a device that is a function of tokens: each next token is a digest of all before it and the seed.

use std::collections::BTreeMap;

use super::*;
use crate::sampling::SamplingParameters;

const CONTEXT: usize = 64;
const VOCABULARY: usize = 97;
/// A token that stands for logits that are not finite once the text has it.
const POISON: u32 = 96;

struct Fake {
    limits: Limits,
    /// The tokens whose states each slot holds.
    states: Vec<Vec<u32>>,
    /// The seed and the token that is known but not in the states, of each slot that decodes.
    next: Vec<Option<(u64, Chosen)>>,
    /// Tokens that a step gives each slot: as if steps had been in flight.
    at_once: usize,
    /// What was called, a letter each: `p`art, `s`tep, `l`eave.
    calls: String,
    computed: usize,
    /// What is measured of parts and steps, on a clock of its own.
    parts: Parts,
    clock: Duration,
    /// Whether parts are as large as that lets them be.
    measures: bool,
    /// How often each slot is still said to be waiting.
    waits: Vec<usize>,
}

/// How long the fake takes for a part of so many tokens, and for a step.
fn time_of(count: usize) -> Duration {
    Duration::from_micros(2000 + 125 * count as u64)
}
const STEP: Duration = Duration::from_millis(3);

impl Fake {
    fn new(slots: usize, at_once: usize) -> Fake {
        let limits = Limits { slots, context: CONTEXT, vocabulary: VOCABULARY, resumes: true };
        let (states, next) = (vec![Vec::new(); slots], vec![None; slots]);
        let (calls, parts, clock) = (String::new(), Parts::new(), Duration::ZERO);
        Fake { limits, states, next, at_once, calls, computed: 0, parts, clock, measures: false, waits: vec![0; slots] }
    }

    fn after(tokens: &[u32], seed: u64) -> Chosen {
        if tokens.contains(&POISON) {
            return Chosen::Broken("poison at position 2".into());
        }
        let digest = tokens.iter().fold(seed ^ 0xcbf2_9ce4_8422_2325, |digest, &token| {
            (digest ^ u64::from(token)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
        });
        Chosen::Token((digest >> 20) as u32 % POISON)
    }
}

impl Steps for Fake {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn part(&self, left: usize, beside: bool) -> usize {
        match beside {
            true if self.measures => self.parts.most(left),
            true => left.min(4),
            false => left,
        }
    }

    fn is_waiting(&mut self, slot: usize) -> bool {
        let waits = &mut self.waits[slot];
        *waits = waits.saturating_sub(1);
        *waits > 0
    }

    fn begin(&mut self, slot: usize, position: usize, request: &Request) -> Result<()> {
        assert!(self.next[slot].is_none(), "the slot is free");
        assert!(position < request.prompt.len());
        assert_eq!(self.states[slot][..position], request.prompt[..position], "what is reused is there");
        self.states[slot].truncate(position);
        self.next[slot] = Some((request.sampling.seed, Chosen::Broken("nothing is read".into())));
        Ok(())
    }

    fn prompt(&mut self, slot: usize, position: usize, tokens: &[u32], last: bool) -> Result<Duration> {
        self.calls.push('p');
        self.computed += tokens.len();
        assert_eq!(self.states[slot].len(), position);
        self.states[slot].extend_from_slice(tokens);
        if last {
            let (seed, _) = self.next[slot].clone().expect("the slot has begun");
            self.next[slot] = Some((seed, Fake::after(&self.states[slot], seed)));
        }
        if !self.measures {
            return Ok(Duration::from_millis(tokens.len() as u64));
        }
        let took = time_of(tokens.len());
        self.clock += took;
        self.parts.read(tokens.len(), took);
        Ok(took)
    }

    fn step(&mut self, take: &mut dyn FnMut(usize, Chosen)) -> Result<Duration> {
        self.calls.push('s');
        for slot in 0..self.limits.slots {
            for _ in 0..self.at_once {
                // A slot whose prompt is not read has no state that decodes: its token would be wrong, and is not asked for.
                let Some((seed, chosen)) = self.next[slot].clone() else { break };
                take(slot, chosen.clone());
                let Chosen::Token(token) = chosen else { break };
                self.states[slot].push(token);
                self.next[slot] = Some((seed, Fake::after(&self.states[slot], seed)));
            }
        }
        if !self.measures {
            return Ok(Duration::from_millis(1));
        }
        self.clock += STEP;
        self.parts.stepped(STEP);
        Ok(STEP)
    }

    fn leave(&mut self, slot: usize) -> Result<()> {
        self.calls.push('l');
        self.next[slot] = None;
        Ok(())
    }
}

fn request(prompt: &[u32], seed: u64, limit: usize) -> Request {
    let sampling = SamplingParameters { seed, ..SamplingParameters::default() };
    Request { prompt: prompt.to_vec(), sampling, choice: 0, limit, stops: Vec::new(), scores: None }
}

/// What a request makes with no device at all.
fn expected(request: &Request) -> Vec<u32> {
    let mut tokens = request.prompt.clone();
    while tokens.len() < request.prompt.len() + request.limit && tokens.len() <= CONTEXT {
        let Chosen::Token(token) = Fake::after(&tokens, request.sampling.seed) else { break };
        tokens.push(token);
        if request.stops.contains(&token) {
            break;
        }
    }
    tokens.split_off(request.prompt.len())
}

/// Polls until all is done; the tokens of each request, and how it ended.
fn run(slots: &mut Slots<Fake>) -> BTreeMap<Ticket, (Vec<u32>, Vec<Event>)> {
    let mut all: BTreeMap<Ticket, (Vec<u32>, Vec<Event>)> = BTreeMap::new();
    for _ in 0..10_000 {
        if slots.is_idle() {
            return all;
        }
        for (ticket, event) in slots.poll().expect("the fake has no faults") {
            let (tokens, others) = all.entry(ticket).or_default();
            match event {
                Event::Token(token) => tokens.push(token),
                other => others.push(other),
            }
        }
    }
    panic!("it does not come to an end");
}

#[test]
fn tokens_depend_on_the_request_only() {
    let requests: Vec<Request> = (0..23)
        .map(|i| {
            request(
                &(0..1 + i * 5 % 19).map(|at| (at * 7 + i) as u32 % POISON).collect::<Vec<_>>(),
                i as u64,
                1 + i * 3 % 11,
            )
        })
        .collect();
    for (count, at_once) in [(1, 1), (2, 1), (4, 1), (4, 3), (8, 2)] {
        let mut slots = Slots::new(Fake::new(count, at_once));
        let tickets: Vec<Ticket> =
            requests.iter().map(|request| slots.submit(request.clone()).expect("there is room")).collect();
        let all = run(&mut slots);
        for (ticket, request) in tickets.iter().zip(&requests) {
            let (tokens, events) = &all[ticket];
            assert_eq!(*tokens, expected(request), "{count} slots, {at_once} at once, {request:?}");
            assert!(matches!(events[..], [Event::Read { .. }, Event::Ended(End::Limit)]), "{events:?}");
        }
    }
}

#[test]
fn a_request_ends_at_its_stop_its_limit_or_the_end_of_the_context() {
    let mut slots = Slots::new(Fake::new(2, 2));
    let plain = request(&[1, 2, 3], 5, 9);
    let stop = expected(&plain)[4];
    let tickets = [
        slots.submit(Request { stops: vec![stop], ..plain.clone() }).unwrap(),
        slots.submit(plain.clone()).unwrap(),
        slots.submit(request(&[4, 5], 6, usize::MAX)).unwrap(),
    ];
    let all = run(&mut slots);
    let first = expected(&plain).iter().position(|&token| token == stop).unwrap();
    assert_eq!(all[&tickets[0]].0, expected(&plain)[..=first]);
    let ends: Vec<&Event> = tickets.iter().filter_map(|ticket| all[ticket].1.last()).collect();
    assert_eq!(ends, [&Event::Ended(End::Stop), &Event::Ended(End::Limit), &Event::Ended(End::Context)]);
    assert_eq!(all[&tickets[2]].0.len(), CONTEXT + 1 - 2, "the last token needs no place");
}

#[test]
fn leaving_is_possible_after_every_token_and_changes_nobody_else() {
    let (one, other) = (request(&[9; 20], 1, 30), request(&[8, 7, 6], 2, 40));
    for polls in 0..60 {
        let mut slots = Slots::new(Fake::new(2, 2));
        // The other one decodes first, so that this one's prompt is read in parts.
        let stays = slots.submit(other.clone()).unwrap();
        let ticket = slots.submit(one.clone()).unwrap();
        let mut tokens = Vec::new();
        for _ in 0..polls {
            tokens.extend(slots.poll().unwrap());
        }
        slots.leave(ticket).unwrap();
        slots.leave(ticket).unwrap();
        let next = slots.submit(one.clone()).unwrap();
        let all = run(&mut slots);
        assert!(!all.contains_key(&ticket), "nothing comes after it left");
        assert_eq!(all[&next].0, expected(&one), "after {polls} polls");
        let before = tokens.into_iter().filter_map(|(of, event)| match event {
            Event::Token(token) if of == stays => Some(token),
            _ => None,
        });
        let mut whole: Vec<u32> = before.collect();
        whole.extend(all.get(&stays).map_or(&[][..], |(tokens, _)| tokens));
        assert_eq!(whole, expected(&other), "after {polls} polls");
    }
}

#[test]
fn a_second_turn_computes_only_what_is_new() {
    let mut slots = Slots::new(Fake::new(2, 1));
    let first = request(&(0..30).collect::<Vec<u32>>(), 3, 6);
    slots.submit(first.clone()).unwrap();
    slots.submit(request(&[50; 20], 4, 6)).unwrap();
    run(&mut slots);
    let computed = slots.steps.computed;
    // The text so far, and two tokens more.
    let mut prompt = first.prompt.clone();
    prompt.extend(expected(&first));
    prompt.extend([11, 12]);
    let turn = request(&prompt, 3, 4);
    let ticket = slots.submit(turn.clone()).unwrap();
    let all = run(&mut slots);
    assert_eq!(all[&ticket].0, expected(&turn));
    assert_eq!(all[&ticket].1[0], Event::Read { reused: 35 }, "all but the newest token was in the states");
    assert_eq!(slots.steps.computed - computed, 3);
    // The same again: its last token is computed, for its logits.
    let ticket = slots.submit(turn.clone()).unwrap();
    assert_eq!(run(&mut slots)[&ticket].1[0], Event::Read { reused: prompt.len() - 1 });
    // A short common prefix is none, and a device whose states change for good has none.
    let ticket = slots.submit(request(&(0..15).collect::<Vec<u32>>(), 0, 1)).unwrap();
    assert_eq!(run(&mut slots)[&ticket].1[0], Event::Read { reused: 0 });
    let mut fake = Fake::new(1, 1);
    fake.limits.resumes = false;
    let mut slots = Slots::new(fake);
    for _ in 0..2 {
        let ticket = slots.submit(turn.clone()).unwrap();
        assert_eq!(run(&mut slots)[&ticket].1[0], Event::Read { reused: 0 });
    }
}

#[test]
fn the_slot_that_was_used_longest_ago_is_given_away_first() {
    let mut slots = Slots::new(Fake::new(2, 1));
    let texts = [[1u32; 20], [2; 20], [3; 20]];
    for text in texts {
        slots.submit(request(&text, 0, 1)).unwrap();
        run(&mut slots);
    }
    let reused = |slots: &mut Slots<Fake>, text: [u32; 20]| {
        let ticket = slots.submit(request(&text, 0, 1)).unwrap();
        run(slots)[&ticket].1[0].clone()
    };
    assert_eq!(reused(&mut slots, texts[1]), Event::Read { reused: 19 });
    assert_eq!(reused(&mut slots, texts[2]), Event::Read { reused: 19 });
    assert_eq!(reused(&mut slots, texts[0]), Event::Read { reused: 0 });
}

#[test]
fn prompts_are_read_beside_those_who_decode() {
    let mut slots = Slots::new(Fake::new(2, 1));
    slots.submit(request(&[1], 0, 40)).unwrap();
    for _ in 0..3 {
        slots.poll().unwrap();
    }
    slots.submit(request(&[2; 12], 0, 1)).unwrap();
    run(&mut slots);
    // Alone the prompt goes in one part. Beside another one, as many steps follow each part as take as long.
    assert!(slots.steps.calls.starts_with("psspsssspsssspsl"), "{}", slots.steps.calls);
}

/// The end of its prompt is read when it need not wait, or when there is nothing else to do.
#[test]
fn who_waits_is_passed_over() {
    let mut fake = Fake::new(3, 1);
    fake.waits = vec![0, 5, 0];
    let mut slots = Slots::new(fake);
    let all = [request(&[1], 0, 40), request(&[2; 6], 1, 3), request(&[3; 6], 2, 3)];
    let tickets = all.clone().map(|request| slots.submit(request).unwrap());
    let (mut read, mut tokens) = (Vec::new(), BTreeMap::<Ticket, Vec<u32>>::new());
    while !slots.is_idle() {
        for (ticket, event) in slots.poll().unwrap() {
            match event {
                Event::Read { .. } => read.push(ticket),
                Event::Token(token) => tokens.entry(ticket).or_default().push(token),
                _ => {}
            }
        }
    }
    assert_eq!(read, [tickets[0], tickets[2], tickets[1]]);
    assert_eq!(tickets.map(|ticket| tokens[&ticket].clone()), all.map(|request| expected(&request)));
    // Nobody else is there.
    let mut fake = Fake::new(1, 1);
    fake.waits = vec![1000];
    let mut slots = Slots::new(fake);
    let ticket = slots.submit(request(&[1, 2], 0, 1)).unwrap();
    assert_eq!(slots.poll().unwrap(), [(ticket, Event::Read { reused: 0 })]);
}

/// Nobody waits longer than a part may take, and after each the others go on for as long as it took.
#[test]
fn a_long_prompt_keeps_others_waiting_for_a_short_time() {
    let mut fake = Fake::new(2, 1);
    (fake.limits.context, fake.measures) = (4096, true);
    let mut slots = Slots::new(fake);
    let decodes = slots.submit(request(&[1], 0, 400)).unwrap();
    slots.poll().unwrap();
    let long = slots.submit(request(&[2; 2000], 0, 1)).unwrap();
    let (begun, mut came, mut longest, mut tokens) = (slots.steps.clock, slots.steps.clock, Duration::ZERO, 0);
    'read: loop {
        for (ticket, event) in slots.poll().unwrap() {
            match event {
                Event::Token(_) if ticket == decodes => {
                    let now = slots.steps.clock;
                    (longest, came, tokens) = (longest.max(now - came), now, tokens + 1);
                }
                Event::Read { .. } if ticket == long => break 'read,
                _ => {}
            }
        }
    }
    assert!(longest <= BESIDE + STEP, "{longest:?}");
    let parts = slots.steps.calls.matches('p').count() - 1;
    assert!(parts < 30, "they grow: {parts} of 2000 tokens");
    let (steps, took) = (STEP * tokens, slots.steps.clock - begun);
    assert!(steps + BESIDE >= took - steps, "{steps:?} of {took:?} are steps");
}

#[test]
fn what_is_not_finite_ends_its_own_request() {
    let mut slots = Slots::new(Fake::new(2, 2));
    let bad = slots.submit(request(&[1, POISON, 3], 0, 5)).unwrap();
    let good = request(&[1, 2], 0, 9);
    let ticket = slots.submit(good.clone()).unwrap();
    let all = run(&mut slots);
    assert_eq!(all[&ticket].0, expected(&good));
    assert!(all[&bad].0.is_empty());
    let [Event::Read { .. }, Event::Failed(message)] = &all[&bad].1[..] else { panic!("{all:?}") };
    assert!(message.contains("position 2"), "{message}");
}

#[test]
fn what_cannot_be_served_is_refused_at_once() {
    let mut slots = Slots::new(Fake::new(1, 1));
    let refused = |slots: &mut Slots<Fake>, request: Request| slots.submit(request).expect_err("it is refused");
    for (request, said) in [
        (request(&[], 0, 1), "empty"),
        (request(&[1; CONTEXT + 1], 0, 1), "64"),
        (request(&[VOCABULARY as u32], 0, 1), "97"),
        (request(&[1], 0, 0), "nothing to generate"),
        (Request { scores: Some(21), ..request(&[1], 0, 1) }, "at most 20"),
    ] {
        let Refused::Invalid(message) = refused(&mut slots, request) else { panic!("it is not busy") };
        assert!(message.contains(said), "{message}");
    }
    for _ in 0..QUEUE {
        slots.submit(request(&[1], 0, 1)).unwrap();
    }
    assert_eq!(refused(&mut slots, request(&[1], 0, 1)), Refused::Busy);
    assert_eq!(slots.load(), (0, QUEUE));
    slots.poll().unwrap();
    assert_eq!(slots.load(), (1, QUEUE - 1));
    slots.submit(request(&[1], 0, 1)).unwrap();
    // Who is patient waits, however many do; what cannot be served is refused all the same.
    slots.submit_patiently(request(&[1], 0, 1)).unwrap();
    assert_eq!(slots.load(), (1, QUEUE + 1));
    assert!(matches!(slots.submit_patiently(request(&[], 0, 1)), Err(Refused::Invalid(_))));
    assert_eq!(run(&mut slots).len(), QUEUE + 2);
}
