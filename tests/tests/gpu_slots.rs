//! Slots on the GPU, on a driver without one: kernels run as they are built for the host, and what goes into a stream happens late. A request's tokens are the
//! same to the bit alone and beside others, whoever comes and goes, and whatever the device is behind the host.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fuse_tests::host_driver::{TRACE, fault, on_fake_driver, run_kernels};
use fuse_tests::{TempFolder, nvrtc, root};
use fusec::build::{Options, compile_all};
use fusec::plan::{PlanOptions, TuningSource};
use fuserun::backend::{Device, GpuSlots, LoadOptions};
use fuserun::device::Gpu;
use fuserun::grammar::{Allowed, Grammar, Grammars, Mark, Marked, Rule, Source, Words};
use fuserun::model::{ModelName, OpenModel};
use fuserun::sampling::{SamplingParameters, none_left};
use fuserun::slots::{End, Event, Request, Slots, Ticket};
use fuserun::step::{EngineOptions, GpuEngine, WeightSource};

/// Rows of a chunk: longer prompts take several.
const ROWS: usize = 16;
const CONTEXT: usize = 48;
/// The embedding of this token is no number.
const POISON: u32 = 7;

/// Runs `test` on the fake, or there `work` with an engine of up to `sequences` rows.
fn with_engine(test: &str, late: Option<u32>, sequences: usize, work: impl FnOnce(&mut GpuEngine)) {
    let folder = poisoned();
    let name = ModelName { model: Some(folder.path().into()), tuning: TuningSource::None, ..ModelName::default() };
    let open = OpenModel::open(&name).expect("the golden is committed");
    let options = PlanOptions {
        batches: vec![sequences],
        prompts: vec![ROWS],
        clusters: true,
        wgmma: true,
        ..PlanOptions::default()
    };
    let model = open.compile(options).expect("it is planned");
    // NVRTC asks the driver library for more than the fake has: there, device code comes from what is kept.
    let cached = Options { cache: Some(root().join(".cache/kernels")), ..Options::default() };
    let arch = "sm_90a".parse().expect("it is supported");
    let code = compile_all(nvrtc(), &model.sources, arch, &cached).expect("the kernels compile");
    if std::env::var_os(TRACE).is_none() {
        on_fake_driver(test, late);
        return;
    }
    run_kernels(&model.sources).expect("the kernels compile for the host");
    let cubins = code.iter().map(|(name, kernel)| (name.as_str(), kernel.cubin.as_slice())).collect();
    let weights = WeightSource::Checkpoint(open.checkpoint().expect("a golden has a checkpoint"));
    let sizes = EngineOptions { context: CONTEXT, sequences };
    let gpu = Gpu::open(0).expect("the fake is there");
    let mut engine = GpuEngine::load(gpu, model.plan, &cubins, weights, sizes).expect("it fits");
    work(&mut engine);
    assert_eq!(fault(), None);
}

/// A model in which one embedding is no number.
fn poisoned() -> TempFolder {
    let folder = TempFolder::copy_of(&root().join("tests/goldens/llama-untied"));
    let path = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("it was copied");
    let begin = {
        let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("it is sound");
        let tensor = tensors.tensor("model.embed_tokens.weight").expect("it has embeddings");
        let row = 2 * tensor.shape()[1] * POISON as usize;
        tensor.data().as_ptr() as usize - bytes.as_ptr() as usize + row
    };
    bytes[begin..begin + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    std::fs::write(&path, bytes).expect("the folder is ours");
    folder
}

/// Prompts of one to 37 tokens that share no beginning, greedy and drawn, with a penalty and without.
fn requests(count: usize) -> Vec<Request> {
    let request = |index: usize| {
        let tokens = (0..1 + index * 11 % 37).map(|at| ((at * 31 + index * 17) % 190) as u32 + POISON + 1);
        let drawn = SamplingParameters { temperature: 0.9, top_p: 0.95, seed: index as u64, ..Default::default() };
        let sampling = match index % 3 {
            0 => SamplingParameters::default(),
            1 => drawn,
            _ => SamplingParameters { repetition_penalty: 1.3, top_k: 40, ..drawn },
        };
        let (choice, limit) = (index as u32 % 2, 1 + index * 2 % 5);
        Request { prompt: tokens.collect(), sampling, choice, limit, stops: Vec::new(), scores: None }
    };
    (0..count).map(request).collect()
}

/// What has become of a request: its tokens, and how it ended.
type Outcome = (Vec<u32>, Option<Event>);

/// Polls until all is done, `between` after each poll.
fn finish(
    slots: &mut Slots<GpuSlots<'_>>,
    mut between: impl FnMut(&mut Slots<GpuSlots<'_>>),
) -> BTreeMap<Ticket, Outcome> {
    let mut all: BTreeMap<Ticket, Outcome> = BTreeMap::new();
    while !slots.is_idle() {
        for (ticket, event) in slots.poll().unwrap_or_else(|error| panic!("{error:#}: {:?}", fault())) {
            let (tokens, end) = all.entry(ticket).or_default();
            assert_eq!(*end, None, "nothing comes after the end");
            match event {
                Event::Token(token) => tokens.push(token),
                Event::Ended(_) | Event::Failed(_) => *end = Some(event),
                Event::Read { .. } | Event::Scores(_) => {}
            }
        }
        between(slots);
    }
    all
}

fn submit(slots: &mut Slots<GpuSlots<'_>>, requests: &[Request]) -> Vec<Ticket> {
    requests.iter().map(|request| slots.submit(request.clone()).expect("it is taken")).collect()
}

/// The outcome of each request by itself, in slots that nobody had before.
fn alone(engine: &mut GpuEngine, slots: usize, requests: &[Request]) -> Vec<Outcome> {
    let one = |request: &Request| {
        let mut slots = Slots::new(GpuSlots::new(engine, slots).expect("no fault"));
        let ticket = slots.submit(request.clone()).expect("it is taken");
        finish(&mut slots, |_| {}).remove(&ticket).expect("it has an outcome")
    };
    requests.iter().map(one).collect()
}

#[test]
fn tokens_depend_on_the_request_only() {
    with_engine("tokens_depend_on_the_request_only", Some(300), 2, |engine| {
        let mut requests = requests(6);
        // One fails, and a later one gets its slot.
        requests[2].prompt[1] = POISON;
        let apart = alone(engine, 2, &requests);
        for (index, ((tokens, end), request)) in apart.iter().zip(&requests).enumerate() {
            if index == 2 {
                let Some(Event::Failed(message)) = end else { panic!("{end:?}") };
                assert!(message.starts_with("the logits at position 2"), "{message}");
                assert!(message.contains("are not finite"), "{message}");
            } else {
                assert_eq!((tokens.len(), end), (request.limit, &Some(Event::Ended(End::Limit))), "{index}");
            }
        }
        // More than there are slots; another one, that never ends, leaves between.
        for leavers in [0, 1] {
            let mut slots = Slots::new(GpuSlots::new(engine, 2).expect("no fault"));
            let endless = Request { limit: usize::MAX, ..requests[0].clone() };
            let mut left = submit(&mut slots, &vec![endless; leavers]);
            let tickets = submit(&mut slots, &requests);
            let mut polls = 0;
            let all = finish(&mut slots, |slots| {
                polls += 1;
                if polls == 7
                    && let Some(ticket) = left.pop()
                {
                    slots.leave(ticket).expect("no fault");
                }
            });
            let beside: Vec<Outcome> = tickets.iter().map(|ticket| all[ticket].clone()).collect();
            assert_eq!(beside, apart, "{leavers} leavers");
        }
    });
}

/// The tokens of a text that is held to a grammar are chosen from those it allows, drawn or not, with scores or not; who decodes beside it has its own; and where nothing is
/// left to choose only that request fails.
#[test]
fn a_grammar_holds_its_own_request_only() {
    const END: u32 = 2;
    with_engine("a_grammar_holds_its_own_request_only", Some(300), 2, |engine| {
        let words = || {
            let words = (0..317u32).map(|token| u8::try_from(token).map_or(Vec::new(), |byte| vec![byte])).collect();
            Ok(Words { words, special: vec![END], ends: vec![END] })
        };
        let grammars = Grammars::new(words);
        let compiled = grammars.compile(&Source::Regex("(ab|ba){3}".into())).expect("it is a regex");
        let all = requests(6);
        let beside = [4, 5].map(|index: usize| Request { limit: 5, ..all[index].clone() });
        let apart = alone(engine, 2, &beside);
        let held = |index: usize, suppress: &[u32]| {
            let sampling = SamplingParameters {
                grammar: Some(compiled.clone()),
                suppress: suppress.to_vec(),
                ..all[index].sampling.clone()
            };
            Request { sampling, limit: 20, stops: vec![END], ..all[index].clone() }
        };
        let scored = Request { scores: Some(2), ..held(1, &[]) };
        let held = [held(0, &[]), scored, held(2, &[]), held(3, &[97, 98])];
        let mut slots = Slots::new(GpuSlots::new(engine, 2).expect("no fault"));
        let order = [&held[0], &beside[0], &held[1], &held[3], &beside[1], &held[2]].map(Clone::clone);
        let tickets = submit(&mut slots, &order);
        let outcomes = finish(&mut slots, |_| {});
        for index in [0, 2, 5] {
            let (tokens, end) = &outcomes[&tickets[index]];
            let (end_token, text) = tokens.split_last().expect("it has tokens");
            assert_eq!((end, *end_token, text.len()), (&Some(Event::Ended(End::Stop)), END, 6), "{tokens:?}");
            assert!(text.chunks(2).all(|two| two == [97, 98] || two == [98, 97]), "{tokens:?}");
        }
        let Some(Event::Failed(message)) = &outcomes[&tickets[3]].1 else { panic!("{:?}", outcomes[&tickets[3]]) };
        assert_eq!(*message, none_left(held[3].prompt.len() - 1));
        assert_eq!([1, 4].map(|index| outcomes[&tickets[index]].clone()).to_vec(), apart);
        // A text in which no mark comes is as without a grammar, penalties of its tokens among it.
        let mark = Mark { text: "<go>".into(), first: false, part: false };
        let marked = Marked { marks: vec![mark], then: "start: \"!\"".into(), aside: None, once: false };
        let free = Some(grammars.compile(&Source::Marked(marked)).expect("it is a grammar"));
        let penalised = Request { limit: 5, ..all[2].clone() };
        let sampling = SamplingParameters { grammar: free, ..penalised.sampling.clone() };
        let unmarked = Request { sampling, ..penalised.clone() };
        assert_eq!(alone(engine, 2, &[unmarked]), alone(engine, 2, &[penalised]));
    });
}

/// A rule that allows each second token in turn, and is late where it is said to be.
struct Late {
    count: usize,
    late_at: usize,
    wait: Arc<AtomicBool>,
}

impl Rule for Late {
    fn allowed(&mut self) -> anyhow::Result<Allowed> {
        while self.count == self.late_at && self.wait.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok((0..317).filter(|token| *token as usize % 2 == self.count % 2).collect())
    }

    fn take(&mut self, _token: u32) -> anyhow::Result<()> {
        self.count += 1;
        Ok(())
    }
}

/// While it is not known what a text may go on with, at its beginning or later, who decodes beside it goes on to its end, and others come and go. Afterwards the text has
/// the tokens that it has by itself.
#[test]
fn a_late_grammar_keeps_nobody_else() {
    with_engine("a_late_grammar_keeps_nobody_else", Some(300), 2, |engine| {
        let all = requests(6);
        let wait = Arc::new(AtomicBool::new(false));
        let held = |late_at: usize| {
            let wait = wait.clone();
            let rule = move || -> Box<dyn Rule> { Box::new(Late { count: 0, late_at, wait: wait.clone() }) };
            let sampling = SamplingParameters { grammar: Some(Grammar::of_rule(rule)), ..all[2].sampling.clone() };
            Request { sampling, limit: 4, ..all[2].clone() }
        };
        let others = [1, 4].map(|index: usize| Request { limit: 3, ..all[index].clone() });
        let apart = alone(engine, 2, &others);
        for late_at in [0, 2] {
            let expected = alone(engine, 2, &[held(late_at)]).swap_remove(0);
            assert!(expected.0.iter().enumerate().all(|(at, token)| *token as usize % 2 == at % 2), "{expected:?}");
            let mut slots = Slots::new(GpuSlots::new(engine, 2).expect("no fault"));
            wait.store(true, Ordering::Release);
            let ticket = submit(&mut slots, &[held(late_at)])[0];
            let tickets = submit(&mut slots, &others);
            let outcomes = finish(&mut slots, |slots| {
                if slots.load() == (1, 0) {
                    wait.store(false, Ordering::Release);
                }
            });
            assert_eq!(tickets.iter().map(|ticket| outcomes[ticket].clone()).collect::<Vec<_>>(), apart, "{late_at}");
            assert_eq!(outcomes[&ticket], expected, "{late_at}");
        }
    });
}

/// What is computed from weights that came to the device in pieces is what the CPU computes from them.
#[test]
fn weights_arrive_whole() {
    with_engine("weights_arrive_whole", Some(300), 1, |engine| {
        let tokens = [10, 200, 33];
        let logits = engine.logits(&tokens, true).expect("no fault");
        let folder = poisoned();
        let name = ModelName { model: Some(folder.path().into()), ..ModelName::default() };
        let options = LoadOptions { context: CONTEXT, sequences: 1, batches: vec![1], threads: Some(1) };
        let mut cpu = OpenModel::open(&name).and_then(|open| open.load(&Device::Cpu, &options)).expect("it loads");
        let expected = cpu.logits(&tokens, true).expect("they are finite");
        let error: f32 = logits.iter().zip(&expected).map(|(one, other)| (one - other).powi(2)).sum();
        let size: f32 = expected.iter().map(|value| value.powi(2)).sum();
        assert!(error / size < 1e-4, "{error} of {size}");
    });
}

/// In the middle of a prompt, before the first token, after each token: whoever decodes beside, and whoever gets the slot, has its own tokens.
#[test]
fn leaving_is_possible_at_any_time() {
    with_engine("leaving_is_possible_at_any_time", Some(300), 2, |engine| {
        let all = requests(6);
        let [stays, leaves, next] = [&all[4], &all[3], &all[1]].map(|request| Request { limit: 4, ..request.clone() });
        assert!(leaves.prompt.len() > 2 * ROWS, "it has three chunks");
        let apart = alone(engine, 2, &[stays.clone(), next.clone()]);
        for polls in 0..7 {
            let mut slots = Slots::new(GpuSlots::new(engine, 2).expect("no fault"));
            let tickets = submit(&mut slots, &[stays.clone(), leaves.clone(), next.clone()]);
            let mut before: Vec<u32> = Vec::new();
            for _ in 0..polls {
                let events = slots.poll().expect("no fault").into_iter();
                before.extend(events.filter_map(|(ticket, event)| match event {
                    Event::Token(token) if ticket == tickets[0] => Some(token),
                    _ => None,
                }));
            }
            slots.leave(tickets[1]).expect("no fault");
            let mut rest = finish(&mut slots, |_| {});
            assert!(!rest.contains_key(&tickets[1]), "nothing comes after it left");
            before.extend(rest.remove(&tickets[0]).map(|(tokens, _)| tokens).unwrap_or_default());
            assert_eq!(before, apart[0].0, "it stays, after {polls} polls");
            assert_eq!(rest[&tickets[2]], apart[1], "it comes next, after {polls} polls");
        }
    });
}

/// On a device that is always done, one slot at a time: stops, the end of the context, and a text that goes on with one before it.
#[test]
fn one_slot_comes_to_each_end() {
    with_engine("one_slot_comes_to_each_end", None, 1, |engine| {
        let mut slots = Slots::new(GpuSlots::new(engine, 1).expect("no fault"));
        let greedy = Request { limit: usize::MAX, ..requests(4).swap_remove(3) };
        let mut run = |request: &Request| {
            let ticket = slots.submit(request.clone()).expect("it is taken");
            finish(&mut slots, |_| {}).remove(&ticket).expect("it has an outcome")
        };
        let whole = run(&greedy);
        assert_eq!(whole.1, Some(Event::Ended(End::Context)));
        assert_eq!(whole.0.len(), CONTEXT + 1 - greedy.prompt.len(), "the last token needs no place");
        let stop = whole.0[5];
        let until = whole.0.iter().position(|&token| token == stop).expect("it is one of them") + 1;
        let stopped = run(&Request { stops: vec![stop], ..greedy.clone() });
        assert_eq!(stopped, (whole.0[..until].to_vec(), Some(Event::Ended(End::Stop))));
        let limited = run(&Request { limit: 3, ..greedy.clone() });
        assert_eq!(limited, (whole.0[..3].to_vec(), Some(Event::Ended(End::Limit))));
        // Only the last token of this prompt is computed.
        let turn = Request { prompt: [&greedy.prompt[..], &whole.0[..2]].concat(), limit: 2, ..greedy.clone() };
        assert_eq!(run(&turn).0, whole.0[2..4]);
        // Scores go before each token. Where penalties and biases choose another one than the likeliest, they are those of the logits before that.
        let biased = SamplingParameters {
            frequency_penalty: 2.0,
            presence_penalty: 2.0,
            logit_bias: vec![(whole.0[0], -100.0)],
            ..SamplingParameters::default()
        };
        for sampling in [SamplingParameters::default(), biased] {
            let changed = sampling != SamplingParameters::default();
            slots.submit(Request { scores: Some(3), limit: 3, sampling, ..greedy.clone() }).expect("it is taken");
            let mut events = Vec::new();
            while !slots.is_idle() {
                events.extend(slots.poll().expect("no fault").into_iter().map(|(_, event)| event));
            }
            let [Event::Read { .. }, told @ .., Event::Ended(End::Limit)] = &events[..] else { panic!("{events:?}") };
            for (index, pair) in told.chunks(2).enumerate() {
                let [Event::Scores(scores), Event::Token(token)] = pair else { panic!("{pair:?}") };
                assert_eq!(scores.top.len(), 3);
                if index == 0 {
                    assert_eq!(scores.top[0].0, whole.0[0], "the likeliest");
                    assert_eq!(*token == whole.0[0], !changed);
                }
                let own = scores.top.iter().find(|(other, _)| other == token);
                assert!(own.is_none_or(|own| own.1 == scores.chosen) && scores.chosen < 0.0, "{scores:?}");
            }
            assert_eq!(told.len(), 6);
        }
    });
}
