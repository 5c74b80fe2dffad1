//! `sample.cu` against the runtime's own rules for the CPU: what penalties, biases and filters leave, what is drawn of it, and how likely it was.

use anyhow::{Context, Result, ensure};
use fuse_kernels::{RING, SCORES_RING, Sample};
use fuse_tests::host_build::HostBuffer;
use fuserun::sampling::{Marks, SamplingParameters, Scores, check_logits, none_left, sample};
use fuserun::step::{Pointers, Sequence, record};

use crate::caught::caught;
use crate::support::*;

const GENERATION: u32 = 0x8000_0001;
/// What is in the ring instead of a token: a logit is NaN or +inf, or all are -inf.
const NOT_FINITE: u32 = u32::MAX - 1;
const NONE_LEFT: u32 = u32::MAX - 2;
/// Beyond the end of both rings.
const POSITION: usize = 2 * RING + 63;

/// `Scores` of sample.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Told {
    sum: u64,
    largest: f32,
    chosen: f32,
    count: u32,
    unused: u32,
    top: [[u32; 2]; 20],
}

/// How a row is sampled, and what of its text is known.
#[derive(Clone, Debug, Default)]
struct Case {
    sampling: SamplingParameters,
    prompt: Vec<u32>,
    text: Vec<u32>,
    choice: u32,
    scored: Option<usize>,
}

/// Runs each case on a row of logits of its own, and compares with what the CPU does.
fn check(shape: &Sample, logits: &[Vec<f32>], cases: &[Case], mutation: Option<Mutation>) -> Result<()> {
    let kernel = build(shape, mutation)?;
    let &Sample { vocabulary, maxima, .. } = shape;
    let mut rules = Vec::new();
    let mut kept = Vec::new();
    let mut records = Vec::new();
    let rings = HostBuffer::output::<u8>(cases.len() * SCORES_RING * size_of::<Told>());
    let raw = HostBuffer::output::<f32>(cases.len() * vocabulary);
    for (index, case) in cases.iter().enumerate() {
        let mut marks = Marks::new(&case.sampling, &case.prompt, vocabulary)?;
        marks.iter_mut().for_each(|marks| case.text.iter().for_each(|&token| marks.note(token)));
        let mut at = Pointers::default();
        if let Some(marks) = &marks {
            let (words, biases) = (HostBuffer::inout(marks.words()), HostBuffer::input(&biases(marks)));
            at = Pointers {
                marks: words.address(),
                biases: biases.address(),
                bias_count: marks.biases().len(),
                ..Pointers::default()
            };
            kept.push(biases);
            rules.push((index, words));
        }
        if case.scored.is_some() {
            at.scores = rings.address() + (index * SCORES_RING * size_of::<Told>()) as u64;
            at.raw = raw.address() + (4 * index * vocabulary) as u64;
        }
        let (choice, scored) = (case.choice, case.scored.map(|top| top.min(vocabulary)));
        let rest = Sequence { choice, scored, generation: GENERATION, ..Sequence::default() };
        records.push(record(&case.sampling, &rest, &at));
    }
    let parts = |row: &Vec<f32>| -> Vec<[u32; 2]> {
        let part = |part: usize| {
            let mine = (part..vocabulary).step_by(maxima).map(|token| (row[token], token as u32));
            mine.reduce(|best, other| if other.0.is_nan() || other.0 > best.0 { other } else { best })
                .unwrap_or((f32::NEG_INFINITY, 0))
        };
        (0..maxima).map(part).map(|(value, token)| [value.to_bits(), token]).collect()
    };
    let tops = HostBuffer::input(&logits.iter().flat_map(parts).collect::<Vec<[u32; 2]>>());
    let on_device = HostBuffer::inout(&logits.concat());
    let positions = HostBuffer::input(&vec![POSITION as i32; cases.len()]);
    let sequences = HostBuffer::input(&(0..cases.len() as i32).collect::<Vec<i32>>());
    let records = HostBuffer::input(&records.concat());
    let next = [(); 2].map(|()| HostBuffer::output::<i32>(cases.len()));
    let ring = HostBuffer::inout(&vec![0u64; cases.len() * RING]);
    let arguments = [
        ("logits", on_device.address()),
        ("maxima", given(maxima > 0, &tops)),
        ("positions", positions.address()),
        ("sequences", sequences.address()),
        ("parameters", records.address()),
        ("next_tokens", next[0].address()),
        ("next_positions", next[1].address()),
        ("ring", ring.address()),
    ];
    kernel.launch(cases.len(), &arguments)?;

    let ring = ring.values::<u64>()?;
    let told = rings.values::<Told>()?;
    let places = next[1].values::<i32>()?;
    for (index, (case, row)) in cases.iter().zip(logits).enumerate() {
        let entry = ring[index * RING + (POSITION + 1) % RING];
        ensure!((entry >> 32) as u32 == GENERATION, "the ring's token is of generation {}", entry >> 32);
        let token = entry as u32;
        let mut marks = Marks::new(&case.sampling, &case.prompt, vocabulary)?;
        let mut changed = row.clone();
        if let Some(marks) = &mut marks {
            case.text.iter().for_each(|&token| marks.note(token));
            marks.apply(&case.sampling, &mut changed);
        }
        let fault = check_logits(&changed, POSITION).err().map(|error| error.to_string());
        let expected = match &fault {
            None => sample(&changed, &case.sampling, POSITION as u32, case.choice),
            Some(fault) if *fault == none_left(POSITION) => NONE_LEFT,
            Some(_) => NOT_FINITE,
        };
        ensure!(token == expected, "case {index}: token {token}, expected {expected}: {case:?}");
        let place = places[index];
        ensure!((place == -1) == fault.is_some(), "case {index}: the next position is {place} after {fault:?}");
        if fault.is_some() {
            continue;
        }
        if let Some(marks) = &mut marks {
            marks.note(token);
            let words = &rules.iter().find(|(of, _)| *of == index).context("it has marks")?.1;
            ensure!(words.values::<u16>()? == marks.words(), "case {index}: the marks are not those of its text");
        }
        // Where a logit is no number, neither is any score.
        let broken = check_logits(row, POSITION).is_err();
        let Some(top) = case.scored.filter(|_| !broken) else { continue };
        let told = &told[index * SCORES_RING + (POSITION + 1) % SCORES_RING];
        let likeliest = told.top[..told.top.len().min(told.count as usize)]
            .iter()
            .map(|&[token, logit]| (token, f32::from_bits(logit)));
        let scores = Scores::of_logits(told.largest, told.sum as f64 / (1u64 << 40) as f64, told.chosen, likeliest);
        let expected = Scores::new(row, token, top);
        let tokens = |scores: &Scores| scores.top.iter().map(|(token, _)| *token).collect::<Vec<u32>>();
        ensure!(
            tokens(&scores) == tokens(&expected),
            "case {index}: the likeliest are {:?}, expected {:?}",
            scores.top,
            expected.top
        );
        let pairs = scores.top.iter().zip(&expected.top).map(|(a, b)| (a.1, b.1));
        for (told, expected) in pairs.chain([(scores.chosen, expected.chosen)]) {
            let near = told == expected || (told - expected).abs() <= 2e-6 * expected.abs().max(1.0);
            ensure!(near, "case {index}: a score of {told}, expected {expected}");
        }
    }
    Ok(())
}

fn biases(marks: &Marks) -> Vec<[u32; 2]> {
    // No buffer is empty.
    marks.biases().iter().map(|&(token, bias)| [token, bias.to_bits()]).chain([[0, 0]]).collect()
}

/// Each way that logits are changed, with each way to choose, told of and not.
fn cases(vocabulary: usize) -> Vec<Case> {
    let tokens = |step: usize| -> Vec<u32> { (0..vocabulary as u32).step_by(step).collect() };
    let plain = SamplingParameters::default();
    let changes = [
        plain.clone(),
        SamplingParameters { repetition_penalty: 1.3, ..plain.clone() },
        SamplingParameters { frequency_penalty: 0.7, presence_penalty: -0.4, ..plain.clone() },
        SamplingParameters { logit_bias: vec![(3, 2.5), (1, -100.0), (3, 1.0), (99_999, 5.0)], ..plain.clone() },
        SamplingParameters {
            suppress: tokens(3),
            logit_bias: tokens(2).into_iter().rev().take(700).map(|token| (token, (token % 7) as f32 - 3.0)).collect(),
            repetition_penalty: 0.8,
            frequency_penalty: -0.3,
            presence_penalty: 1.1,
            ..plain
        },
    ];
    let ways = [(0.0, 0, 1.0, 0.0), (1.3, 0, 1.0, 0.0), (0.9, 5, 1.0, 0.0), (1.1, 40, 0.9, 0.05), (1.5, 0, 0.8, 0.0)];
    let mut cases = Vec::new();
    for (index, change) in changes.iter().enumerate() {
        for (at, &(temperature, top_k, top_p, min_p)) in ways.iter().enumerate() {
            let seed = (index * 7 + at) as u64 | 5 << 32;
            let sampling = SamplingParameters { temperature, top_k, top_p, min_p, seed, ..change.clone() };
            let scored = [None, Some(20), Some(0), Some(5), Some(1)][(index + at) % 5];
            let text = [tokens(5), tokens(10), tokens(10)].concat();
            cases.push(Case { sampling, prompt: tokens(4), text, choice: at as u32 % 3, scored });
        }
    }
    cases
}

fn rows(vocabulary: usize, count: usize) -> Vec<Vec<f32>> {
    let mut random = Random(vocabulary as u64);
    // Coarse values: ties happen.
    (0..count).map(|_| (0..vocabulary).map(|_| (random.value() * 40.0).round() / 8.0).collect()).collect()
}

#[test]
fn changes_draws_and_scores_are_those_of_the_cpu() -> Result<()> {
    for (vocabulary, cluster) in [(5, 1), (61, 2), (333, 3), (5002, 4), (10_000, 2)] {
        let cases = cases(vocabulary);
        for maxima in [0, 9, 160] {
            check(&Sample { vocabulary, maxima, cluster }, &rows(vocabulary, cases.len()), &cases, None)?;
        }
    }
    Ok(())
}

/// More equal logits than a list holds, all of them or behind a few larger ones, and tokens without weight.
fn equal_ones(maxima: usize, mutation: Option<Mutation>) -> Result<()> {
    let (vocabulary, cluster) = (3001, 2);
    let told = |scored| Case { scored: Some(scored), ..Case::default() };
    let cases = [20, 19, 1, 20, 20].map(told);
    let mut logits = vec![vec![0.5; vocabulary]; cases.len()];
    for (row, place) in [(1, 2999), (1, 7), (3, 1500), (3, 3000)] {
        logits[row][place] = 4.0;
    }
    logits[4].fill(f32::NEG_INFINITY);
    logits[4][17] = 1.0;
    logits[4][2700] = 2.0;
    check(&Sample { vocabulary, maxima, cluster }, &logits, &cases, mutation)
}

#[test]
fn of_many_equal_ones_the_first_are_told() -> Result<()> {
    [0, 160].into_iter().try_for_each(|maxima| equal_ones(maxima, None))
}

/// Planted mistakes, as those of the other kernels.
#[test]
fn mistakes_in_changes_and_scores_are_caught() {
    let vocabulary = 3000;
    let (cases, logits) = (cases(vocabulary), rows(vocabulary, 25));
    let shape = Sample { vocabulary, maxima: 160, cluster: 2 };
    caught(
        "in_a_sample_4",
        |mutation| check(&shape, &logits, &cases, mutation),
        &[
            ("if (count > 0) logit = plain_sum", "if (mark > 0) logit = plain_sum", "token"),
            ("p.frequency * (float)count", "p.frequency", "token"),
            ("-p.presence", "p.presence", "token"),
            ("position, p.choice)", "position, 0)", "token"),
            ("(u64)p.generation << 32", "(u64)p.choice << 32", "generation"),
            ("token >= first && token < end", "token >= first", "race"),
            ("i < (int)p.biases; i += THREADS", "i < (int)p.biases && i < THREADS; i += THREADS", "token"),
            ("p.raw[at] = logits[at]", "p.raw[at] = 0.0f", "score"),
            ("1099511627776.0f", "549755813888.0f", "score"),
            ("(u32)other < (u32)entry)) rank++", "(u32)other > (u32)entry)) rank++", "likeliest"),
            ("(position + 1) % SCORES_RING", "position % SCORES_RING", "likeliest"),
        ],
    );
    caught(
        "in_a_sample_5",
        |mutation| equal_ones(160, mutation),
        &[
            ("count = list(row, floor + 1, high, false)", "count = list(row, floor, high, false)", "shared memory"),
            ("next = token + 1", "next = token", "likeliest"),
            ("bits == bits_wanted && ", "", "likeliest"),
        ],
    );
}

/// Logits that are broken, or that leave nothing to choose, where what is suppressed may be anything: as the CPU judges them.
#[test]
fn logits_without_a_choice_are_those_of_the_cpu() -> Result<()> {
    const VOCABULARY: usize = 300;
    let (bad, good) = (VOCABULARY - 3, 4);
    let all: Vec<u32> = (0..VOCABULARY as u32).collect();
    let all_but = |token: usize| all.iter().copied().filter(|&other| other != token as u32).collect::<Vec<u32>>();
    let mut logits = Vec::new();
    let mut cases = Vec::new();
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for suppress in [vec![], vec![bad as u32], all_but(good), all_but(bad)] {
            for (temperature, scored, bias) in [(0.0, None, 0.0), (0.8, None, 5.0), (0.0, Some(2), -5.0)] {
                let sampling = SamplingParameters {
                    suppress: suppress.clone(),
                    temperature,
                    logit_bias: if bias == 0.0 { vec![] } else { vec![(bad as u32, bias), (good as u32, bias)] },
                    ..SamplingParameters::default()
                };
                let mut row = vec![0.5; VOCABULARY];
                row[bad] = value;
                logits.push(row);
                cases.push(Case { sampling, prompt: vec![1], text: vec![2], choice: 0, scored });
            }
        }
    }
    for (cluster, maxima) in [(1, 0), (2, 9)] {
        check(&Sample { vocabulary: VOCABULARY, maxima, cluster }, &logits, &cases, None)?;
    }
    Ok(())
}
