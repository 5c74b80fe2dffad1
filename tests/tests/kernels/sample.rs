//! `sample.cu` against the rule written down plainly: sort, add up, draw.

use anyhow::{Result, ensure};
use fuse_kernels::{RING, Sample};
use fuse_tests::host_build::HostBuffer;

use crate::caught::caught;
use crate::support::*;

/// `Parameters` of sample.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Parameters {
    pub temperature: f32,
    pub top_k: u32,
    pub top_p: f32,
    pub min_p: f32,
    pub seed: [u32; 2],
    pub limit: u32,
    pub stops: u32,
    pub stop: [i32; 8],
    /// The address of the sequence's marks, which [`check`] fills in where there is a penalty.
    pub marks: u64,
    pub repetition: f32,
    pub choice: u32,
    pub generation: u32,
    pub frequency: f32,
    pub presence: f32,
    pub biases: u32,
    pub bias: u64,
    pub scores: u64,
    pub scored: u32,
    pub unused: u32,
    pub raw: u64,
}

pub const GREEDY: Parameters = Parameters {
    temperature: 0.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    seed: [7, 9],
    limit: 100_000,
    stops: 0,
    stop: [-5; 8],
    marks: 0,
    repetition: 1.0,
    choice: 2,
    generation: 77,
    frequency: 0.0,
    presence: 0.0,
    biases: 0,
    bias: 0,
    scores: 0,
    scored: 0,
    unused: 0,
    raw: 0,
};

/// Marks of a token: never chosen, of the prompt, and how often the text has it.
const SUPPRESSED: u16 = 0x8000;
const IN_PROMPT: u16 = 0x4000;
const MOST: u16 = IN_PROMPT - 1;

/// First word of Philox4x32-10 with the counter (position, choice, 0, 0).
fn philox(seed: [u32; 2], position: u32, choice: u32) -> u32 {
    let (mut counter, mut key) = ([position, choice, 0, 0], seed);
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter[0]
}

/// Logits as marks change them.
fn changed(logits: &[f32], marks: &[u16], repetition: f32) -> Vec<f32> {
    let change = |(&logit, &mark): (&f32, &u16)| match mark {
        0 => logit,
        _ if mark & SUPPRESSED != 0 => f32::NEG_INFINITY,
        _ if logit > 0.0 => logit / repetition,
        _ => logit * repetition,
    };
    logits.iter().zip(marks).map(change).collect()
}

/// The token that the rule gives.
fn expected(logits: &[f32], p: &Parameters, position: u32) -> usize {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if p.temperature == 0.0 {
        return logits.iter().position(|&logit| logit == largest).expect("it is one of them");
    }
    let steepness = std::f32::consts::LOG2_E / p.temperature;
    let weight = |logit: f32| (((logit - largest) * steepness).exp2() * (1u64 << 31) as f32) as u64;
    let mut sorted = logits.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let mut least = f32::NEG_INFINITY;
    if p.top_k > 0 && (p.top_k as usize) < logits.len() {
        least = sorted[p.top_k as usize - 1];
    }
    let sum = |least: f32| logits.iter().filter(|&&logit| logit >= least).map(|&logit| weight(logit)).sum::<u64>();
    if p.top_p < 1.0 {
        let wanted = ((f64::from(p.top_p) * sum(least) as f64) as u64).max(1);
        // The largest logit such that all at or above it weigh enough. Equal ones stay together.
        least = *sorted
            .iter()
            .find(|&&logit| logit == *sorted.last().expect("logits") || sum(logit) >= wanted)
            .expect("the last");
    }
    if p.min_p > 0.0 {
        least = least.max(largest + p.temperature * p.min_p.ln());
    }
    let bits = philox(p.seed, position, p.choice) >> 8;
    let target = (f64::from(bits) / f64::from(1u32 << 24) * sum(least) as f64) as u64;
    let mut reached = 0;
    for (token, &logit) in logits.iter().enumerate().filter(|(_, logit)| **logit >= least) {
        reached += weight(logit);
        if reached > target {
            return token;
        }
    }
    unreachable!("the target is below the sum")
}

/// What the host sees in a ring slot in the place of a token.
const NOT_FINITE: u32 = u32::MAX - 1;
const NONE_LEFT: u32 = u32::MAX - 2;

/// What a launch leaves.
struct Left {
    tokens: Vec<i32>,
    positions: Vec<i32>,
    ring: Vec<u64>,
    marks: Vec<Vec<u16>>,
}

/// Runs rows of logits; row r is at position `rows[r].0` of sequence `rows[r].1`, which has its own parameters, and its marks where these have a penalty.
fn run(
    sample: &Sample,
    logits: &[f32],
    rows: &[(i32, i32)],
    parameters: &[Parameters],
    marks: &[&[u16]],
    mutation: Option<Mutation>,
) -> Result<Left> {
    let kernel = build(sample, mutation)?;
    let &Sample { vocabulary, maxima, .. } = sample;
    // The maxima of parts of each row, as a head's blocks leave them.
    let part = |row: usize, part: usize| {
        let mine = (part..vocabulary).step_by(maxima).map(|token| (logits[row * vocabulary + token], token as u32));
        let wins = |best: f32, other: f32| other.is_nan() || other > best;
        mine.reduce(|best, other| if wins(best.0, other.0) { other } else { best }).unwrap_or((f32::NEG_INFINITY, 0))
    };
    let tops: Vec<u32> = (0..rows.len() * maxima)
        .map(|i| part(i / maxima, i % maxima))
        .flat_map(|(value, token)| [value.to_bits(), token])
        .collect();
    let tops = HostBuffer::input(&tops);
    let positions = HostBuffer::input(&rows.iter().map(|row| row.0).collect::<Vec<i32>>());
    let sequences = HostBuffer::input(&rows.iter().map(|row| row.1).collect::<Vec<i32>>());
    let marks: Vec<HostBuffer> = marks.iter().map(|marks| HostBuffer::inout(marks)).collect();
    let with_marks = |(p, marks): (&Parameters, &HostBuffer)| Parameters {
        marks: if p.repetition == 1.0 { 0 } else { marks.address() },
        ..*p
    };
    let with_marks: Vec<Parameters> = parameters.iter().zip(&marks).map(with_marks).collect();
    let logits = HostBuffer::inout(logits);
    let records = HostBuffer::input(&with_marks);
    let next_tokens = HostBuffer::inout(&vec![-7i32; parameters.len()]);
    let next_positions = HostBuffer::inout(&vec![-7i32; parameters.len()]);
    let ring = HostBuffer::inout(&vec![777u64; parameters.len() * RING]);
    let arguments = [
        ("logits", logits.address()),
        ("maxima", given(maxima > 0, &tops)),
        ("positions", positions.address()),
        ("sequences", sequences.address()),
        ("parameters", records.address()),
        ("next_tokens", next_tokens.address()),
        ("next_positions", next_positions.address()),
        ("ring", ring.address()),
    ];
    kernel.launch(rows.len(), &arguments)?;
    Ok(Left {
        tokens: next_tokens.values()?,
        positions: next_positions.values()?,
        ring: ring.values()?,
        marks: marks.iter().map(|marks| marks.values()).collect::<Result<_>>()?,
    })
}

/// Runs rows of random logits and compares with the rule.
pub fn check(
    sample: &Sample,
    rows: &[(i32, i32)],
    parameters: &[Parameters],
    mutation: Option<Mutation>,
) -> Result<()> {
    let mut random = Random(sample.vocabulary as u64);
    // Coarse values: ties happen.
    let logits: Vec<f32> = (0..rows.len() * sample.vocabulary).map(|_| (random.value() * 40.0).round() / 8.0).collect();
    compare_with_the_rule(sample, &logits, rows, parameters, mutation, &mut random)
}

fn compare_with_the_rule(
    sample: &Sample,
    logits: &[f32],
    rows: &[(i32, i32)],
    parameters: &[Parameters],
    mutation: Option<Mutation>,
    random: &mut Random,
) -> Result<()> {
    let vocabulary = sample.vocabulary;
    let kinds = [0, 0, SUPPRESSED, IN_PROMPT, 3, IN_PROMPT | 1, MOST, IN_PROMPT | MOST];
    let marks: Vec<u16> =
        (0..parameters.len() * vocabulary).map(|_| kinds[random.bits() as usize % kinds.len()]).collect();
    let marks: Vec<&[u16]> = marks.chunks(vocabulary).collect();
    let left = run(sample, logits, rows, parameters, &marks, mutation)?;
    let (mut tokens, mut places) = (vec![-7i32; parameters.len()], vec![-7i32; parameters.len()]);
    let mut slots = vec![777u64; parameters.len() * RING];
    let mut marked: Vec<Vec<u16>> = marks.iter().map(|marks| marks.to_vec()).collect();
    for (row, &(position, sequence)) in rows.iter().enumerate().filter(|(_, row)| row.0 >= 0) {
        let p = &parameters[sequence as usize];
        let own = &mut marked[sequence as usize];
        let mut logits = logits[row * vocabulary..][..vocabulary].to_vec();
        if p.repetition != 1.0 {
            logits = changed(&logits, own, p.repetition);
        }
        let token = expected(&logits, p, position as u32);
        if p.repetition != 1.0 && own[token] & MOST < MOST {
            own[token] += 1;
        }
        let stop = position as u32 + 1 >= p.limit || p.stop[..p.stops as usize].contains(&(token as i32));
        tokens[sequence as usize] = token as i32;
        places[sequence as usize] = if stop { -1 } else { position + 1 };
        slots[sequence as usize * RING + (position as usize + 1) % RING] = u64::from(p.generation) << 32 | token as u64;
    }
    ensure!(left.tokens == tokens, "tokens {:?}, expected {tokens:?}", left.tokens);
    ensure!(left.positions == places, "positions {:?}, expected {places:?}", left.positions);
    for (sequence, (marks, expected)) in left.marks.iter().zip(&marked).enumerate() {
        ensure!(marks == expected, "the marks of sequence {sequence} are not those of its token");
    }
    ensure!(left.ring == slots, "the ring is not {tokens:?} in its slots");
    Ok(())
}

/// Greedy, and each way to draw.
fn ways() -> [Parameters; 4] {
    let warm = Parameters { temperature: 1.3, ..GREEDY };
    [GREEDY, warm, Parameters { top_k: 5, ..warm }, Parameters { top_k: 40, top_p: 0.9, min_p: 0.01, ..warm }]
}

const NO_MARKS: [&[u16]; 4] = [&[]; 4];

/// A position for each of the ways.
const WAYS: [(i32, i32); 4] = [(3, 0), (4, 1), (5, 2), (6, 3)];

/// One such logit, wherever it is, ends its sequence, and no other.
#[test]
fn the_host_is_told_of_logits_that_are_not_finite() -> Result<()> {
    let (vocabulary, parameters) = (2333, ways());
    for (cluster, maxima) in [(1, 0), (3, 0), (1, 9), (2, 9), (2, 40)] {
        for (broken, value) in [(0, f32::NAN), (2332, f32::NAN), (2100, -f32::NAN), (17, f32::INFINITY)] {
            let mut random = Random(7);
            let mut logits: Vec<f32> = (0..4 * vocabulary).map(|_| random.value()).collect();
            let sound = logits.clone();
            for row in [0, 2, 3] {
                logits[row * vocabulary + broken] = value;
            }
            // The last row has nothing to choose from, but for what is broken.
            let rest = if value == f32::INFINITY { NONE_LEFT } else { NOT_FINITE };
            logits[3 * vocabulary..].fill(f32::NEG_INFINITY);
            if rest == NOT_FINITE {
                logits[3 * vocabulary + broken] = value;
            }
            let sample = Sample { vocabulary, maxima, cluster };
            let left = run(&sample, &logits, &WAYS, &parameters, &NO_MARKS, None)?;
            let token = expected(&sound[vocabulary..2 * vocabulary], &parameters[1], 4) as u32;
            let slots: Vec<u32> = (0..4).map(|sequence| left.ring[sequence * RING + 4 + sequence] as u32).collect();
            ensure!(slots == [NOT_FINITE, token, NOT_FINITE, rest], "{cluster}, {maxima}, {value}: {slots:?}");
            ensure!(left.positions == [-1, 5, -1, -1], "{:?}", left.positions);
        }
    }
    Ok(())
}

/// Tokens that are never to be drawn have -inf.
#[test]
fn some_logits_may_be_without_weight() -> Result<()> {
    let vocabulary = 2333;
    let mut logits = vec![f32::NEG_INFINITY; 4 * vocabulary];
    for (at, logit) in logits.iter_mut().enumerate().filter(|(at, _)| at % 111 == 5) {
        *logit = (at / 111 % 3) as f32;
    }
    for (cluster, maxima) in [(1, 0), (3, 0), (2, 9)] {
        let sample = Sample { vocabulary, maxima, cluster };
        compare_with_the_rule(&sample, &logits, &WAYS, &ways(), None, &mut Random(1))?;
    }
    Ok(())
}

/// A sampler that is given no maxima. A round of a block is 2,048 logits.
fn sample(vocabulary: usize, cluster: usize) -> Sample {
    Sample { vocabulary, maxima: 0, cluster }
}

#[test]
fn greedy_takes_the_first_largest() -> Result<()> {
    for sample in [sample(5, 1), sample(2500, 1), sample(10_001, 2), sample(1002, 4)] {
        let parameters = [GREEDY, Parameters { limit: 1024, ..GREEDY }, Parameters { limit: 1025, ..GREEDY }, GREEDY];
        // The last two are at the end of the ring.
        check(&sample, &[(3, 0), (1023, 1), (-1, 3), (1023, 2)], &parameters, None)?;
    }
    Ok(())
}

#[test]
fn stops_at_a_stop_token() -> Result<()> {
    // Every token stops.
    let parameters = Parameters { stops: 5, stop: [0, 1, 2, 3, 4, -5, -5, -5], ..GREEDY };
    check(&sample(5, 1), &[(3, 0)], &[parameters], None)
}

/// Block maxima that have all bits in common.
#[test]
fn draws_where_all_maxima_are_equal() -> Result<()> {
    let parameters = Parameters { temperature: 0.7, top_k: 1, ..GREEDY };
    for cluster in [1, 2] {
        check(&Sample { maxima: 1, ..sample(50, cluster) }, &[(3, 0)], &[parameters], None)?;
    }
    Ok(())
}

#[test]
fn draws_as_the_rule_says() -> Result<()> {
    let warm = Parameters { temperature: 1.3, ..GREEDY };
    let kinds = [
        warm,
        Parameters { temperature: 0.4, ..warm },
        Parameters { top_k: 1, ..warm },
        Parameters { top_k: 7, ..warm },
        Parameters { top_p: 0.6, ..warm },
        Parameters { top_p: 0.0, ..warm },
        Parameters { min_p: 0.2, ..warm },
        Parameters { top_k: 40, top_p: 0.9, min_p: 0.05, ..warm },
        Parameters { top_k: 50_000, top_p: 0.95, ..warm },
    ];
    for shape in [sample(61, 1), sample(333, 1), sample(333, 3), sample(10_000, 2)] {
        for seed in 0..4 {
            let parameters = kinds.map(|kind| Parameters { seed: [seed, 3], choice: seed % 3, ..kind });
            let rows: Vec<(i32, i32)> = (0..parameters.len() as i32).map(|s| (s + 340 * seed as i32, s)).collect();
            for maxima in [0, 9] {
                check(&Sample { maxima, ..shape.clone() }, &rows, &parameters, None)?;
            }
        }
    }
    Ok(())
}

/// Marks change logits before all else, whatever maxima a head left, and the chosen token is counted.
#[test]
fn marks_change_what_is_chosen() -> Result<()> {
    let kinds = [
        GREEDY,
        Parameters { repetition: 1.5, ..GREEDY },
        Parameters { repetition: 0.5, ..GREEDY },
        Parameters { repetition: 1.5, temperature: 1.3, ..GREEDY },
        Parameters { repetition: 4.0, temperature: 0.9, top_k: 5, ..GREEDY },
        Parameters { repetition: 1.1, temperature: 0.9, top_k: 40, top_p: 0.9, min_p: 0.05, ..GREEDY },
        Parameters { repetition: 1.1, temperature: 1.5, top_p: 0.8, ..GREEDY },
        Parameters { temperature: 1.3, top_k: 7, ..GREEDY },
    ];
    for shape in [sample(61, 1), sample(333, 3), sample(5002, 4), sample(10_000, 2)] {
        for seed in 0..2 {
            let parameters = kinds.map(|kind| Parameters { seed: [seed, 3], choice: seed % 3, ..kind });
            let mut rows: Vec<(i32, i32)> = (0..parameters.len() as i32).map(|s| (s + 10 * seed as i32, s)).collect();
            // One that is idle: its token is not counted.
            rows[2].0 = -1;
            for maxima in [0, 1, 9, 300] {
                check(&Sample { maxima, ..shape.clone() }, &rows, &parameters, None)?;
            }
        }
    }
    Ok(())
}

#[test]
fn greedy_from_the_maxima_of_a_head() -> Result<()> {
    let family = Sample { maxima: 5, ..sample(100, 2) };
    let kernel = build(&family, None)?;
    let maxima = [
        (1.0f32, 9),
        (2.5, 80),
        (2.5, 33),
        (-1.0, 2),
        (0.0, 4),
        (-3.0, 7),
        (-2.0, 99),
        (-9.0, 1),
        (-2.5, 0),
        (-2.0, 98),
    ];
    let maxima: Vec<u32> = maxima.iter().flat_map(|&(value, row)| [value.to_bits(), row]).collect();
    let logits = HostBuffer::inout(&vec![f32::NAN; 200]);
    let (maxima, positions, sequences) =
        (HostBuffer::input(&maxima), HostBuffer::input(&[4, 4]), HostBuffer::input(&[1, 0]));
    let parameters = HostBuffer::input(&[GREEDY; 2]);
    let (tokens, places, ring) =
        (HostBuffer::output::<i32>(2), HostBuffer::output::<i32>(2), HostBuffer::output::<u64>(2 * RING));
    let arguments = [
        ("logits", logits.address()),
        ("maxima", maxima.address()),
        ("positions", positions.address()),
        ("sequences", sequences.address()),
        ("parameters", parameters.address()),
        ("next_tokens", tokens.address()),
        ("next_positions", places.address()),
        ("ring", ring.address()),
    ];
    kernel.launch(2, &arguments)?;
    ensure!(tokens.written::<i32>()? == [98, 33], "tokens {:?}", tokens.written::<i32>()?);
    ensure!(places.written::<i32>()? == [5, 5]);
    Ok(())
}

/// Planted mistakes, as those of the other kernels.
#[test]
fn mistakes_are_caught() {
    let warm = Parameters { temperature: 1.1, limit: 1025, ..GREEDY };
    let of_two = |vocabulary, maxima, parameters: Parameters, mutation| {
        let parameters: Vec<_> = (0..12).map(|seed| Parameters { seed: [seed, 1], ..parameters }).collect();
        let rows: Vec<(i32, i32)> = (0..12).map(|sequence| (1014 + sequence, sequence)).collect();
        check(&Sample { maxima, ..sample(vocabulary, 2) }, &rows, &parameters, mutation)
    };
    // From a list of what top-k keeps, to which both blocks add.
    caught(
        "in_a_sample",
        |mutation| of_two(3000, 160, Parameters { top_k: 100, top_p: 0.5, ..warm }, mutation),
        &[
            ("shared.found = 0, ", "", "shared memory"),
            ("  cluster_barrier();\n  const int of_lane", "  block_barrier();\n  const int of_lane", "shared memory"),
            ("listed[rank][i - before]", "listed[0][i - before]", "shared memory"),
            ("    begin_cluster();\n", "", "without cluster_begin"),
            ("  if (!searched && warm) join_cluster();\n", "", "cluster_arrive between cluster_begin and cluster_join"),
            ("shared.counts[row.rank], shared.found", "shared.counts[0], shared.found", "race"),
            ("rank >= p.top_k", "rank >= 2 * p.top_k", "tokens"),
            ("weight >= (wanted", "weight >= 2 * (wanted", "tokens"),
            ("if (bits_in(other) < floor) continue;", "", "tokens"),
            ("(u32)other < (u32)entry", "(u32)other > (u32)entry", "tokens"),
            ("(position + 1) % RING", "position % RING", "ring"),
            ("(u32)position + 1 >= p.limit", "(u32)position >= p.limit", "positions"),
            ("c2 = high0 ^ c3 ^ k1", "c2 = high0 ^ c3 ^ k0", "tokens"),
            ("1.0 / 16777216.0", "1.0 / 8388608.0", "tokens"),
        ],
    );
    // By marks.
    caught(
        "in_a_sample_2",
        |mutation| of_two(3000, 9, Parameters { repetition: 0.5, ..GREEDY }, mutation),
        &[
            ("logit > 0.0f ? logit / p.repetition", "logit < 0.0f ? logit / p.repetition", "tokens"),
            ("mark & SUPPRESSED ?", "mark & IN_PROMPT ?", "tokens"),
            ("searched = MAXIMA == 0 || changed", "searched = MAXIMA == 0", "race"),
            ("at / 4 % 32 != threadIdx.x % 32", "at / 4 % 32 > threadIdx.x % 32", "marks"),
            ("(p.marks[token] & (IN_PROMPT - 1)) < IN_PROMPT - 1", "true", "marks"),
            ("shared.given = position >= 0 ? token : -1", "shared.given = -1", "marks"),
            ("row.begin);\n    cluster_barrier();", "row.begin);", "which has ended"),
        ],
    );
    // From all logits.
    caught(
        "in_a_sample_3",
        |mutation| of_two(10_000, 40, Parameters { top_p: 0.8, ..warm }, mutation),
        &[
            ("before += in_front_of_block", "before = in_front_of_block", "race"),
            ("if (target >= before) found = round", "found = round", "tokens"),
            ("if (lane >= delta) reached += below;", "reached += below;", "race"),
            ("if (bits >= pivots[i]) sums[i] += amount;", "sums[i] += amount;", "tokens"),
            ("above += beyond", "above = 0", "tokens"),
            ("lane < row.rank ? of_lane", "lane <= row.rank ? of_lane", "tokens"),
            ("  if (searched || (warm && count > LIST)) cluster_barrier();\n", "", "may still read"),
        ],
    );
}
