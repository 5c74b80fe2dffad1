//! Kernels that go from token to token, against their ops in the interpreter, one sequence after the other.

use anyhow::{Context, Result, ensure};
use fuse_kernels::{Conv, Family};
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
