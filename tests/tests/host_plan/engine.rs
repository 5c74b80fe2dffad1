//! Launches of a whole plan on the host, step by step.

use anyhow::{Context, Result, ensure};
use fuse_tests::host_build::{HostBuffer, HostKernel, HostStep};
use fuse_tests::{nmse, replaced};
use fusec::plan::{Plan, PlanOptions, RING, StepKind};
use fuserun::model::{ModelName, OpenModel};
use fuserun::sampling::SamplingParameters;
use fuserun::step::{Addresses, IoAddresses, PARAMETER_BYTES, Pointers, Sequence, record};
use fuserun::weights::pack;

use crate::{BOUND, Case};

const CONTEXT: usize = 24;
const SEQUENCES: usize = 16;
/// Rows of the one prompt step.
const ROWS: usize = 16;
const EMPTY: u64 = 0;
const GENERATION: u32 = 7;

/// A plan, the sources of its kernels and its packed weights: all that it runs with but tokens.
pub struct Prepared {
    pub plan: Plan,
    pub sources: Vec<(String, String)>,
    pub weights: Vec<Vec<u8>>,
}

impl Prepared {
    pub fn of(case: &Case) -> Result<Prepared> {
        let name = ModelName {
            model: Some(case.golden.folder.clone()),
            passes: Some(case.passes.clone()),
            ..ModelName::default()
        };
        let open = OpenModel::open(&name)?;
        let tuning = case.tuning.clone();
        let options = PlanOptions {
            batches: if case.many { vec![SEQUENCES] } else { vec![1, 2] },
            prompts: vec![ROWS],
            tuning,
            clusters: case.hopper,
            wgmma: case.hopper,
            ..PlanOptions::default()
        };
        let mut plan = open.compile_for(options, Some(case.golden.tokens.len()))?.plan;
        (case.change)(&mut plan);
        let checkpoint = open.checkpoint().context("a golden has a checkpoint")?;
        let mut planted = false;
        let sources = plan.kernels.iter().map(|kernel| {
            let source = kernel.source()?;
            let mutated = case.mutation.and_then(|(from, to)| replaced(&source, from, to));
            planted |= mutated.is_some();
            Ok((mutated.unwrap_or(source), kernel.name.clone()))
        });
        let sources = sources.collect::<Result<Vec<(String, String)>>>()?;
        if let Some((from, _)) = case.mutation {
            assert!(planted, "no source has `{from}` to mutate");
        }
        let packed = plan.weights.iter().map(|weight| {
            let bytes = pack(&weight.recipe, checkpoint)?;
            ensure!(bytes.len() == weight.bytes, "{} has {} bytes, not {}", weight.name, bytes.len(), weight.bytes);
            Ok(bytes)
        });
        let weights = packed.collect::<Result<Vec<Vec<u8>>>>()?;
        Ok(Prepared { plan, sources, weights })
    }
}

/// A plan with its kernels and buffers, as the engine of the runtime has them on a GPU.
pub struct HostEngine {
    pub plan: Plan,
    kernels: Vec<HostKernel>,
    addresses: Addresses,
    arena: HostBuffer,
    tokens: HostBuffer,
    positions: HostBuffer,
    prompt: [HostBuffer; 3],
    ring: HostBuffer,
    _kept: Vec<HostBuffer>,
}

impl HostEngine {
    pub fn load(prepared: Prepared) -> Result<HostEngine> {
        let Prepared { plan, sources, weights } = prepared;
        let kernels = HostKernel::build_all(&sources)?;
        let mut kept: Vec<HostBuffer> = weights.iter().map(|bytes| HostBuffer::input(bytes)).collect();
        let weights = kept.iter().map(HostBuffer::address).collect();
        let sizes = plan.states.iter().map(|state| SEQUENCES * state.bytes(CONTEXT));
        let state_buffers: Vec<HostBuffer> = sizes.map(HostBuffer::output::<u8>).collect();
        let states = state_buffers.iter().map(HostBuffer::address).collect();
        kept.extend(state_buffers);

        let arena = HostBuffer::output::<u8>(plan.arena_bytes);
        let idle = [-1i32; SEQUENCES];
        let (tokens, positions) = (HostBuffer::inout(&idle), HostBuffer::inout(&idle));
        let sequences = HostBuffer::input(&std::array::from_fn::<i32, SEQUENCES, _>(|sequence| sequence as i32));
        let prompt = [(); 3].map(|()| HostBuffer::input(&[-1i32; ROWS]));
        let rest = Sequence { generation: GENERATION, ..Sequence::default() };
        let greedy = record(&SamplingParameters::default(), &rest, &Pointers::default());
        let parameters = HostBuffer::input(&[greedy; SEQUENCES].concat());
        ensure!(parameters.bytes() == SEQUENCES * PARAMETER_BYTES, "a record of parameters has another size");
        let ring = HostBuffer::inout(&[EMPTY; SEQUENCES * RING]);
        let io = IoAddresses {
            tokens: tokens.address(),
            positions: positions.address(),
            sequences: sequences.address(),
            prompt_tokens: prompt[0].address(),
            prompt_positions: prompt[1].address(),
            prompt_sequences: prompt[2].address(),
            parameters: parameters.address(),
            ring: ring.address(),
        };
        kept.extend([sequences, parameters]);
        let addresses = Addresses { weights, states, arena: arena.address(), context: CONTEXT, io };
        Ok(HostEngine { plan, kernels, addresses, arena, tokens, positions, prompt, ring, _kept: kept })
    }

    /// Runs a step and gives its logits, if it has any.
    fn step(&self, kind: StepKind) -> Result<Vec<f32>> {
        let step = self.plan.step(kind).with_context(|| format!("the plan has no {kind:?} step"))?;
        let running = HostStep::begin();
        for launch in &step.launches {
            let arguments: Vec<u64> = launch.args.iter().map(|&arg| self.addresses.resolve(arg)).collect();
            let kernel = &self.plan.kernels[launch.kernel];
            self.kernels[launch.kernel]
                .launch_in(&running, launch.grid, kernel.threads, kernel.shared_bytes, &arguments)
                .with_context(|| format!("{kind:?}, {}, layer {:?}", launch.node, launch.layer))?;
        }
        let rows = match kind {
            StepKind::Decode { batch } | StepKind::Near { batch, .. } => batch,
            StepKind::Score { rows } => rows,
            StepKind::Last { .. } => 1,
            StepKind::Prompt { .. } => 0,
        };
        let Some(offset) = step.logits.filter(|_| rows > 0) else { return Ok(Vec::new()) };
        let arena = self.arena.values::<f32>()?;
        Ok(arena[offset / 4..][..rows * self.plan.vocabulary].to_vec())
    }

    /// Puts a prompt into the cache of a sequence and samples its next token; the logits of each of its tokens.
    pub fn prompt(&mut self, sequence: usize, tokens: &[u32]) -> Result<Vec<f32>> {
        let idle = ROWS - tokens.len();
        let row = |first: i32, of: &dyn Fn(usize) -> i32| -> Vec<i32> {
            (0..ROWS).map(|row| if row < idle { first } else { of(row - idle) }).collect()
        };
        self.prompt[0].set(0, &row(-1, &|at| tokens[at] as i32));
        self.prompt[1].set(0, &row(-1, &|at| at as i32));
        self.prompt[2].set(0, &row(sequence as i32, &|_| sequence as i32));
        self.step(StepKind::Prompt { rows: ROWS })?;
        let scores = self.step(StepKind::Score { rows: ROWS })?;
        let last = self.step(StepKind::Last { rows: ROWS })?;
        let scores = scores[idle * self.plan.vocabulary..].to_vec();
        // One row goes through the kernels of decoding, many through those of prompts.
        let error = nmse(&last, &scores[scores.len() - self.plan.vocabulary..]);
        ensure!(error <= BOUND, "the last row's logits differ from the scored ones by an NMSE of {error:.2e}");
        self.sampled(sequence, tokens.len(), &last)?;
        Ok(scores)
    }

    /// One decode step of the first rows: token and position each. Its logits, row after row.
    pub fn decode(&mut self, rows: &[(u32, usize)]) -> Result<Vec<f32>> {
        self.decode_as(StepKind::Decode { batch: rows.len() }, rows)
    }

    pub fn decode_as(&mut self, kind: StepKind, rows: &[(u32, usize)]) -> Result<Vec<f32>> {
        let rows: Vec<_> = rows.iter().enumerate().map(|(row, &(token, position))| (row, token, position)).collect();
        self.decode_rows(kind, &rows)
    }

    /// One decode step of some rows, each with its token and position; the others are idle.
    pub fn decode_rows(&mut self, kind: StepKind, rows: &[(usize, u32, usize)]) -> Result<Vec<f32>> {
        let mut words = [[-1i32; SEQUENCES]; 2];
        for &(row, token, position) in rows {
            (words[0][row], words[1][row]) = (token as i32, position as i32);
        }
        self.tokens.set(0, &words[0]);
        self.positions.set(0, &words[1]);
        let logits = self.step(kind)?;
        for &(row, _, position) in rows {
            self.sampled(row, position + 1, &logits[row * self.plan.vocabulary..][..self.plan.vocabulary])?;
        }
        Ok(logits)
    }

    /// The ring and the next step have the largest of these logits as the token at a position.
    fn sampled(&self, sequence: usize, position: usize, logits: &[f32]) -> Result<()> {
        let best = (0..logits.len()).fold(0, |best, token| if logits[token] > logits[best] { token } else { best });
        let entry = self.ring.values::<u64>()?[sequence * RING + position % RING];
        let (generation, ring) = ((entry >> 32) as u32, entry as u32);
        ensure!(generation == GENERATION, "position {position}: the ring's token is of generation {generation}");
        let next = (self.tokens.values::<i32>()?[sequence], self.positions.values::<i32>()?[sequence]);
        ensure!(ring as usize == best, "position {position}: the ring has token {ring}, the largest logit is {best}");
        ensure!(
            next == (best as i32, position as i32),
            "the next step is given {next:?}, not token {best} at {position}"
        );
        Ok(())
    }
}
