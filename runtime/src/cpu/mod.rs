//! The CPU executor: any graph, fused or not, on threads and SIMD.
//!
//! Weights keep the graph's storage type (bf16 or a checkpoint's quantised blocks as a rule) and are packed once; activations, caches and sums are `f32`,
//! and a product with quantised blocks takes activations in 16 bits. The order of each sum depends only on its length, so the same rows give the same bits whatever the threads, the batch, or the cut of the prompt.

mod attention;
mod bandwidth;
mod blocks;
mod execute;
mod experts;
mod lower;
mod math;
mod memory;
mod pack;
mod plan;
mod pool;
mod recurrent;
mod step;
mod tail;
#[cfg(test)]
mod tests;
mod tile;

pub use bandwidth::{ReadBandwidth, measure_read_bandwidth};
pub use pack::WeightSource;

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use fusec::ir::Graph;

use execute::{Execution, GROUP_ROWS, Rows, Scratch};
use math::Isa;
use memory::SharedFloats;
use pack::{RowScratch, Weights};
use plan::Plan;
use pool::Pool;
use step::{CacheShape, Step};

/// A graph with its weights and caches, ready to run.
pub struct CpuModel {
    plan: Plan,
    weights: Weights,
    pool: Pool,
    memory: SharedFloats,
    caches: Vec<SharedFloats>,
    scratch: Vec<Mutex<Scratch>>,
    options: CpuOptions,
    rows: Rows,
    logits: Vec<f32>,
    isa: Isa,
    /// Tokens that each sequence's states hold, where they are not caches by position.
    held: Vec<u32>,
}

/// How much of the machine a [`CpuModel`] takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads, the caller's included. At least 1.
    pub threads: usize,
    /// Positions that each sequence's caches hold.
    pub context: usize,
    /// Sequences that have caches of their own.
    pub sequences: usize,
}

/// One token to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The token's id.
    pub token: u32,
    /// Its place in its sequence, from 0. All places before it have been run, in this call or in earlier ones.
    pub position: u32,
    /// The sequence whose caches it reads and appends to, from 0.
    pub sequence: u32,
}

/// The rows whose logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// None: a part of a prompt that only fills the caches.
    None,
    /// The last row's.
    Last,
    /// Every row's.
    All,
}

/// Threads that share a step, at most: each has counters of its own for each step.
const MOST_THREADS: usize = 1024;
/// Rows that pass through the body together.
const CHUNK: usize = 128;
/// Rows that pass through the tail together: a row of logits is large.
const TAIL_CHUNK: usize = 32;

impl CpuModel {
    /// Plans the graph, packs its weights and reserves its caches.
    ///
    /// The graph takes `tokens` and `positions` and returns the logits first. What else it returns is not looked at: the caches are kept, and
    /// sampling is the caller's.
    ///
    /// # Errors
    /// A weight that is missing or of another shape, a context beyond the positions that the model has learned, more memory than the machine has
    /// to give, or an op in a place where the CPU cannot run it.
    pub fn load(graph: &Graph, weights: &dyn WeightSource, options: CpuOptions) -> Result<CpuModel> {
        let CpuOptions { threads, context, sequences } = options;
        ensure!(threads > 0, "the CPU needs at least one thread");
        ensure!(
            threads <= MOST_THREADS,
            "{threads} threads are more than the {MOST_THREADS} that share a step: give fewer"
        );
        ensure!(context > 0 && sequences > 0, "the caches need at least one position and one sequence");
        let plan = Plan::new(graph, weights, context, CHUNK, TAIL_CHUNK)?;
        let weight_bytes: usize = plan.recipes.iter().map(pack::Recipe::bytes).sum();
        let cache_floats = cache_floats(&plan.caches, options)?;
        check_memory(weight_bytes, 4 * cache_floats.iter().sum::<usize>(), 4 * plan.floats, options)?;
        let pool = Pool::new(threads, plan.body.len() + plan.tail.len());
        let options = CpuOptions { threads: pool.threads(), ..options };
        let weights = Weights::pack(plan.recipes.clone(), weights, threads)?;
        let scratch = || {
            let gated = vec![0.0; CHUNK * GROUP_ROWS];
            Mutex::new(Scratch { gated, scores: vec![0.0; context], row: RowScratch::default() })
        };
        Ok(CpuModel {
            memory: SharedFloats::new(plan.floats),
            caches: cache_floats.into_iter().map(SharedFloats::new).collect(),
            scratch: (0..threads).map(|_| scratch()).collect(),
            plan,
            weights,
            pool,
            options,
            rows: Rows::default(),
            logits: Vec::new(),
            isa: Isa::detect(),
            held: vec![0; sequences],
        })
    }

    /// Runs the rows in their order and returns the logits asked for, `[rows, vocabulary]`, rows in order.
    ///
    /// Does not allocate once it has run as many rows before.
    ///
    /// # Errors
    /// A token beyond the vocabulary, a position beyond the context, a sequence that has no caches, two rows at one place, or, where each token changes a state,
    /// a row that neither begins a sequence nor follows its last one. Nothing has run then.
    pub fn forward(&mut self, rows: &[Row], logits: Logits) -> Result<&[f32]> {
        self.check(rows)?;
        for row in rows {
            self.held[row.sequence as usize] = row.position + 1;
        }
        let width = self.vocabulary();
        self.logits.clear();
        let mut done = 0;
        for chunk in rows.chunks(CHUNK) {
            let last = done + chunk.len() == rows.len();
            self.rows.take(chunk, logits, last);
            done += chunk.len();
            let wanted = self.rows.selected.len();
            // The first rows of the tail come in the body's run: a decode step is one run.
            let mut part = 0..wanted.min(TAIL_CHUNK);
            self.run(part.clone(), true);
            while !part.is_empty() {
                let start = self.plan.places[self.plan.logits].start;
                self.logits.extend_from_slice(self.memory.read_alone(start, part.len() * width));
                part = part.end..wanted.min(part.end + TAIL_CHUNK);
                if !part.is_empty() {
                    self.run(part.clone(), false);
                }
            }
        }
        Ok(&self.logits)
    }

    /// Runs the body where `body` is set, then the tail for some of the selected rows.
    fn run(&mut self, selected: std::ops::Range<usize>, body: bool) {
        let Self { plan, weights, memory, caches, scratch, rows, .. } = self;
        let selected = &rows.selected[selected];
        let execution = Execution { plan, weights, memory, caches, context: self.options.context, rows, isa: self.isa };
        self.pool.run(&|worker| {
            // A thread that panicked left only what the next step overwrites.
            let mut scratch = scratch[worker.index].lock().unwrap_or_else(PoisonError::into_inner);
            if body {
                execution.run_body(worker, &mut scratch);
            }
            if !selected.is_empty() {
                execution.run_tail(selected, worker, &mut scratch);
            }
        });
    }

    /// The width of a row of logits.
    pub fn vocabulary(&self) -> usize {
        self.plan.places[self.plan.logits].size
    }

    /// Whether a sequence may go on from any part of another one's states: all of them are caches by position.
    pub fn resumes(&self) -> bool {
        self.plan.caches.iter().all(|cache| cache.by_position)
    }

    /// What the model was loaded with.
    pub fn options(&self) -> CpuOptions {
        self.options
    }

    /// Bytes of weights that one decode step reads: every matrix that is multiplied, of experts the chosen ones. Rows looked up, norms and biases are not counted.
    pub fn weight_bytes_per_step(&self) -> usize {
        let products = self.plan.body.iter().chain(&self.plan.tail).filter_map(|scheduled| match &scheduled.step {
            Step::Matmul(step) => Some((1, step.matrix)),
            Step::ExpertHidden(step) => Some((step.top_k, step.matrices[0])),
            Step::ExpertSum(step) => Some((step.top_k, step.matrices[0])),
            Step::Angles { .. } | Step::Embed { .. } | Step::Gather { .. } | Step::Heads(_) | Step::Attention(_) => {
                None
            }
            Step::Combine { .. } | Step::Glu { .. } | Step::Map { .. } | Step::Route(_) | Step::Code { .. } => None,
            Step::Conv(_) | Step::Recall(_) => None,
        });
        products.map(|(times, matrix)| times * self.weights.recipe(matrix).value_bytes()).sum()
    }

    /// Bytes of caches that a decode step at this position reads, for one sequence, windows left aside.
    pub fn cache_bytes_per_step(&self, position: usize) -> usize {
        let positions = |cache: &CacheShape| if cache.by_position { position + 1 } else { 1 };
        self.plan.caches.iter().map(|cache| 4 * cache.heads * cache.dim * positions(cache)).sum()
    }

    fn check(&self, rows: &[Row]) -> Result<()> {
        let CpuOptions { context, sequences, .. } = self.options;
        for (i, row) in rows.iter().enumerate() {
            let Row { token, position, sequence } = *row;
            if let Some(vocabulary) = self.plan.vocabulary {
                ensure!((token as usize) < vocabulary, "token {token} is beyond the vocabulary of {vocabulary}");
            }
            ensure!(
                (position as usize) < context,
                "position {position} is beyond the context of {context}: ask for a larger one, or for less text"
            );
            ensure!((sequence as usize) < sequences, "sequence {sequence} is beyond the {sequences} that have caches");
            // Rows of one chunk are appended at once, by several threads.
            let chunk = &rows[i / CHUNK * CHUNK..i];
            let twice = chunk.iter().any(|other| (other.position, other.sequence) == (position, sequence));
            ensure!(!twice, "two rows are at position {position} of sequence {sequence}");
        }
        if self.resumes() {
            return Ok(());
        }
        let mut held = self.held.clone();
        for &Row { position, sequence, .. } in rows {
            let held = &mut held[sequence as usize];
            ensure!(
                position == 0 || position == *held,
                "position {position} of sequence {sequence} does not follow the {held} tokens that its state holds: \
                 begin it again at position 0"
            );
            *held = position + 1;
        }
        Ok(())
    }
}

impl Rows {
    fn take(&mut self, chunk: &[Row], logits: Logits, last_chunk: bool) {
        self.tokens.clear();
        self.positions.clear();
        self.sequences.clear();
        self.selected.clear();
        self.tokens.extend(chunk.iter().map(|row| row.token));
        self.positions.extend(chunk.iter().map(|row| row.position));
        self.sequences.extend(chunk.iter().map(|row| row.sequence));
        self.selected.extend(match logits {
            Logits::None => 0..0,
            Logits::Last if last_chunk => chunk.len() - 1..chunk.len(),
            Logits::Last => 0..0,
            Logits::All => 0..chunk.len(),
        });
    }
}

/// Floats of each cache.
///
/// # Errors
/// Together they are more bytes than a number holds.
fn cache_floats(caches: &[CacheShape], options: CpuOptions) -> Result<Vec<usize>> {
    let CpuOptions { context, sequences, .. } = options;
    let product = |factors: [usize; 4]| factors.into_iter().try_fold(1usize, usize::checked_mul);
    let positions = |cache: &CacheShape| if cache.by_position { context } else { 1 };
    let floats = caches.iter().map(|cache| product([sequences, positions(cache), cache.heads, cache.dim]));
    let floats: Option<Vec<usize>> = floats.collect();
    let sum = |floats: &[usize]| floats.iter().try_fold(0usize, |sum, &floats| sum.checked_add(floats));
    floats.filter(|floats| sum(floats).is_some_and(|floats| floats <= usize::MAX / 16)).with_context(|| {
        format!("the caches of {sequences} sequences of {context} positions fit no memory: ask for a smaller context or batch")
    })
}

/// The vector instructions that are used on this machine, by name; empty where there are none.
pub fn instructions() -> &'static str {
    Isa::detect().name()
}

/// Bytes of memory that programs may still take, where the system says it.
pub fn available_memory() -> Option<usize> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let mut lines = info.lines();
    let kib = lines.find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.map(|kib: usize| kib.saturating_mul(1024))
}

/// Refuses what the machine cannot hold, where the system says what it can.
fn check_memory(weights: usize, caches: usize, activations: usize, options: CpuOptions) -> Result<()> {
    let available = available_memory();
    let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
    let needed = weights + caches + activations;
    ensure!(
        available.is_none_or(|available| needed <= available),
        "{:.1} GiB are needed ({:.1} of weights, {:.1} of caches for {} sequences of {} positions) and {:.1} are free: \
         ask for a smaller context or batch",
        gib(needed),
        gib(weights),
        gib(caches),
        options.sequences,
        options.context,
        gib(available.unwrap_or(0))
    );
    Ok(())
}
