//! Kernels that go from token to token, against their ops in the interpreter, one sequence after the other.

use anyhow::{Context, Result, ensure};
use fuse_kernels::{Conv, Family, Recall};
use fuse_tests::host_build::{HostBuffer, HostKernel};
use fusec::ir::{self, Op, Tensor, evaluate};

use crate::caught::caught;
use crate::support::*;

const SEQUENCES: usize = 3;

/// Rows of a launch: position and sequence of each; those at position -1 are idle.
type Rows = Vec<(i32, usize)>;

/// Launches one after the other, each with its rows.
#[derive(Clone, Debug)]
struct ConvCase {
    channels: usize,
    taps: usize,
    bias: bool,
    launches: Vec<(bool, Rows)>,
}

/// Prompts of one row, of fewer rows than are kept and of more, with idle ones before them; decode steps of several sequences, idle ones between them, and a
/// sequence that begins again.
fn launches() -> Vec<(bool, Rows)> {
    let prompt = |sequence: usize, idle: usize, positions: std::ops::Range<i32>| {
        let rows = std::iter::repeat_n(-1, idle).chain(positions).map(|position| (position, sequence)).collect();
        (true, rows)
    };
    vec![
        prompt(0, 3, 0..13),
        prompt(2, 7, 0..1),
        (false, vec![(13, 0), (-1, 1), (1, 2)]),
        prompt(2, 1, 2..4),
        prompt(1, 0, 0..8),
        prompt(0, 0, 14..23),
        (false, vec![(23, 0), (8, 1), (4, 2)]),
        prompt(1, 6, 0..2),
        (false, vec![(0, 0), (2, 1), (-1, 2)]),
        (false, vec![(1, 0)]),
    ]
}

impl ConvCase {
    fn of(channels: usize, taps: usize, bias: bool) -> ConvCase {
        ConvCase { channels, taps, bias, launches: launches() }
    }

    fn kernel(&self, prompt: bool) -> Conv {
        Conv { channels: self.channels, taps: self.taps, prompt }
    }

    fn check(&self, mutation: Option<Mutation>) -> Result<()> {
        let ConvCase { channels, taps, bias, .. } = *self;
        let mut random = Random(channels as u64);
        let [weight, offset] = [channels * taps, channels].map(|count| random.floats(count));
        let (prompt, decode) = (self.kernel(true), self.kernel(false));
        let (prompt, decode) = (build(&prompt, mutation)?, build(&decode, mutation)?);
        // What no row has written is not read.
        let nothing = vec![f32::NAN; SEQUENCES * (taps - 1) * channels];
        let kept = HostBuffer::inout(&nothing);
        let mut states = vec![Tensor::zeros([taps - 1, channels]); SEQUENCES];
        let (weights, offsets) = (HostBuffer::input(&weight), HostBuffer::input(&offset));
        let mut rest = vec![Tensor::new([channels, 1, taps], weight)];
        rest.extend(bias.then(|| Tensor::new([channels], offset)));
        let op = Op::Conv(ir::Conv { bias });
        for (is_prompt, rows) in &self.launches {
            let x = random.floats(rows.len() * channels);
            let mut expected = vec![0.0; x.len()];
            for (row, &(position, sequence)) in rows.iter().enumerate().filter(|(_, row)| row.0 >= 0) {
                let (own, position) = (&x[row * channels..][..channels], Tensor::ints(&[position]));
                let own = Tensor::new([1, channels], own);
                let operands: Vec<&Tensor> = [&own, &states[sequence], &position].into_iter().chain(&rest).collect();
                let results = evaluate(&op, &operands, &[vec![1, channels], vec![taps - 1, channels]])?;
                let [result, after] = <[Tensor; 2]>::try_from(results).expect("a result and a state");
                result.data.iter().zip(&mut expected[row * channels..]).for_each(|(&from, to)| *to = from.into());
                states[sequence] = after;
            }
            let [x, out] = [HostBuffer::input(&x), HostBuffer::output::<f32>(x.len())];
            let positions = HostBuffer::input(&rows.iter().map(|row| row.0).collect::<Vec<i32>>());
            let sequences = HostBuffer::input(&rows.iter().map(|row| row.1 as i32).collect::<Vec<i32>>());
            let arguments = [
                ("x", x.address()),
                ("weight", weights.address()),
                ("bias", given(bias, &offsets)),
                ("inputs", kept.address()),
                ("positions", positions.address()),
                ("sequences", sequences.address()),
                ("out", out.address()),
                ("rows", rows.len() as u64),
            ];
            if *is_prompt { &prompt } else { &decode }.launch(rows.len(), &arguments)?;
            compare("conv", &expected, &out.written::<f32>()?, Bound::Exact)?;
        }
        // What is kept, as far as the sequences are long.
        let values = kept.values::<f32>()?;
        for ((sequence, state), length) in states.iter().enumerate().zip([2, 3, 5]) {
            let from = (taps - 1).saturating_sub(length) * channels;
            let got = &values[sequence * (taps - 1) * channels..][from..(taps - 1) * channels];
            ensure!(*got == state.data[from..], "the inputs that sequence {sequence} keeps differ");
        }
        Ok(())
    }
}

#[test]
fn convolutions() -> Result<()> {
    let cases = [ConvCase::of(150, 4, true), ConvCase::of(32, 3, false), ConvCase::of(5, 2, true)];
    let kernels = cases.iter().flat_map(|case| [true, false].map(|prompt| case.kernel(prompt)));
    let sources = kernels.map(|kernel| Ok((kernel.source()?, kernel.name())));
    HostKernel::build_all(&sources.collect::<Result<Vec<(String, String)>>>()?)?;
    cases.iter().try_for_each(|case| case.check(None).with_context(|| format!("{case:?}")))
}

#[test]
fn in_a_convolution() {
    let case = ConvCase::of(150, 4, true);
    caught(
        "in_a_convolution",
        |mutation| case.check(mutation),
        &[
            ("if (back > position) break;", "", "conv"),
            ("row >= begin && positions[row] >= 0", "row >= begin", "conv"),
            ("row >= begin && positions[row] >= 0", "row >= 0 && positions[row] >= 0", "conv"),
            ("KEPT - before", "KEPT - 1", "conv"),
            ("TAPS - 1 - back", "back", "conv"),
            ("sum = start;", "", "conv"),
            ("  if (PROMPT) block_barrier();\n", "", "conv"),
            ("lane > 0 || channel", "channel", "conv"),
            ("kept[(i + fresh) * CHANNELS]", "kept[i * CHANNELS]", "conv"),
            ("input(end - KEPT + i)", "input(end - 1)", "conv"),
            ("sequences[begin] * KEPT", "0 * KEPT", "conv"),
            ("  wait_for_dependencies();\n", "", "wait_for_dependencies"),
            ("  launch_dependents();\n", "", "launch_dependents"),
        ],
    );
}

/// A memory, and the same launches.
#[derive(Clone, Debug)]
struct RecallCase {
    kernel: Recall,
    launches: Vec<(bool, Rows)>,
}

impl RecallCase {
    fn of(heads: [usize; 2], dims: [usize; 2], delta: bool, per_channel: bool) -> RecallCase {
        let ([heads, key_heads], [key_dim, dim]) = (heads, dims);
        let kernel = Recall { heads, key_heads, key_dim, dim, delta, per_channel, prompt: true };
        RecallCase { kernel, launches: launches() }
    }

    fn kernels(&self) -> [Recall; 2] {
        [true, false].map(|prompt| Recall { prompt, ..self.kernel.clone() })
    }

    fn check(&self, mutation: Option<Mutation>) -> Result<()> {
        let &Recall { heads, key_heads, key_dim, dim, delta, per_channel, .. } = &self.kernel;
        let [prompt, decode] = &self.kernels();
        let (prompt, decode) = (build(prompt, mutation)?, build(decode, mutation)?);
        let mut random = Random(dim as u64);
        let size = heads * key_dim * dim;
        let memory = HostBuffer::inout(&vec![f32::NAN; SEQUENCES * size]);
        let mut states = vec![Tensor::zeros([heads, key_dim, dim]); SEQUENCES];
        let op = Op::Recall(ir::Recall { delta });
        let decays = if per_channel { vec![heads, key_dim] } else { vec![heads] };
        for (is_prompt, rows) in &self.launches {
            let mut values = |shape: &[usize], map: fn(f32) -> f32| {
                let data: Vec<f32> = random.floats(rows.len() * shape.iter().product::<usize>());
                (shape.to_vec(), data.into_iter().map(map).collect::<Vec<f32>>())
            };
            let mut inputs = vec![values(&[key_heads, key_dim], |x| x), values(&[key_heads, key_dim], |x| 0.3 * x)];
            // Decays between e^-1 and 1, betas between 0 and 2.
            inputs.extend([values(&[heads, dim], |x| x), values(&decays, |x| -x.abs())]);
            inputs.extend(delta.then(|| values(&[heads], |x| 1.0 + x)));
            let mut expected = vec![0.0; rows.len() * heads * dim];
            for (row, &(position, sequence)) in rows.iter().enumerate().filter(|(_, row)| row.0 >= 0) {
                let own = |(shape, data): &(Vec<usize>, Vec<f32>)| {
                    let size: usize = shape.iter().product();
                    Tensor::new([&[1], &shape[..]].concat(), &data[row * size..][..size])
                };
                let own: Vec<Tensor> = inputs.iter().map(own).collect();
                let position = Tensor::ints(&[position]);
                let operands: Vec<&Tensor> = own.iter().chain([&states[sequence], &position]).collect();
                let results = evaluate(&op, &operands, &[vec![1, heads, dim], vec![heads, key_dim, dim]])?;
                let [result, after] = <[Tensor; 2]>::try_from(results).expect("a result and a state");
                let to = &mut expected[row * heads * dim..];
                result.data.iter().zip(to).for_each(|(&from, to)| *to = from.into());
                states[sequence] = after;
            }
            let buffers: Vec<HostBuffer> = inputs.iter().map(|(_, data)| HostBuffer::input(data)).collect();
            let out = HostBuffer::output::<f32>(expected.len());
            let positions = HostBuffer::input(&rows.iter().map(|row| row.0).collect::<Vec<i32>>());
            let sequences = HostBuffer::input(&rows.iter().map(|row| row.1 as i32).collect::<Vec<i32>>());
            let mut arguments: Vec<(&str, u64)> =
                ["q", "k", "v", "decay", "beta"].into_iter().zip(buffers.iter().map(HostBuffer::address)).collect();
            arguments.extend([("memory", memory.address()), ("out", out.address())]);
            arguments.extend([("positions", positions.address()), ("sequences", sequences.address())]);
            arguments.push(("rows", rows.len() as u64));
            if *is_prompt { &prompt } else { &decode }.launch(rows.len(), &arguments)?;
            compare("recall", &expected, &out.written::<f32>()?, Bound::Exact)?;
        }
        let expected: Vec<f64> = states.iter().flat_map(|state| &state.data).map(|&value| f64::from(value)).collect();
        compare("memory", &expected, &memory.values::<f32>()?, Bound::Exact)
    }
}

/// Memories of one warp and of several, of rows that the warps do not share evenly, of columns that fill no block, with heads that share keys.
#[test]
fn memories() -> Result<()> {
    let cases = [
        RecallCase::of([4, 2], [40, 33], true, false),
        RecallCase::of([3, 3], [8, 5], false, false),
        RecallCase::of([2, 1], [128, 64], false, false),
        RecallCase::of([2, 2], [17, 32], true, true),
    ];
    let kernels = cases.iter().flat_map(RecallCase::kernels);
    let sources = kernels.map(|kernel| Ok((kernel.source()?, kernel.name())));
    HostKernel::build_all(&sources.collect::<Result<Vec<(String, String)>>>()?)?;
    cases.iter().try_for_each(|case| case.check(None).with_context(|| format!("{case:?}")))
}

#[test]
fn in_a_memory() {
    let case = RecallCase::of([4, 2], [40, 33], true, false);
    caught(
        "in_a_memory",
        |mutation| case.check(mutation),
        &[
            ("head / SHARE", "head % KEY_HEADS", "recall"),
            ("* KEY_DIM + first_row) * DIM + column;", "* KEY_DIM) * DIM + column;", "recall"),
            ("load_early(positions + first) > 0 && inside", "inside", "recall"),
            ("(u64)load_early(sequences + begin) * HEADS", "(u64)0 * HEADS", "recall"),
            ("expf(decay[of_head])", "expf(decay[row * HEADS])", "recall"),
            ("recalled += key[r] * state[r];", "recalled = key[r] * state[r];", "recall"),
            ("beta[of_head] * (value", "(value", "recall"),
            ("beta[of_head] * (value - over", "beta[of_head] * (value + over", "recall"),
            ("w < WARPS; w++", "w < WARPS - 1; w++", "recall"),
            ("    block_barrier();\n    float sum", "    float sum", "shared memory"),
            ("DELTA ? 1 : row % 2", "0", "race"),
            ("inside && exists(r)) kept", "inside) kept", "buffer of"),
            ("if (PROMPT) first = warp_min(first);", "", "recall"),
            ("first < end && inside && exists(r)) kept", "inside && exists(r)) kept", "memory"),
            ("warp == 0 && inside) out[of_head", "warp == 0) out[of_head", "buffer of"),
            ("  wait_for_dependencies();\n", "", "wait_for_dependencies"),
            ("  launch_dependents();\n", "", "launch_dependents"),
        ],
    );
    // Without the delta rule, rows take turns.
    let case = RecallCase::of([2, 1], [128, 64], false, false);
    caught("in_a_memory_2", |mutation| case.check(mutation), &[("DELTA ? 1 : row % 2", "1", "race")]);
}
