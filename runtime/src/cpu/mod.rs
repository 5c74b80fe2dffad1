//! The CPU executor: any graph, fused or not, on threads and SIMD.
//!
//! Weights keep the graph's storage type (bf16 or a checkpoint's quantised blocks as a rule) and are packed once; activations, caches and sums are `f32`,
//! and a product with quantised blocks takes activations in 16 bits. The order of each sum depends only on its length, so the same rows give the same bits whatever the threads, the batch, or the cut of the prompt.

mod attention;
mod bandwidth;
mod blocks;
mod execute;
mod experts;
mod heads;
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

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use fusec::classes::formats_for;
use fusec::ir::{Format, Graph, WeightRef};

use execute::{Execution, GROUP_ROWS, Rows, Scratch};
use math::Isa;
use memory::SharedFloats;
use pack::Weights;
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
        let needed = Needed {
            weights: weight_bytes,
            caches: 4 * cache_floats.iter().sum::<usize>(),
            activations: 4 * plan.floats,
            by_format: by_format(&plan.recipes),
        };
        check_memory(&needed, available_memory(), options, &|format| bytes_as(&plan, format))?;
        let pool = Pool::new(threads, plan.body.len() + plan.tail.len());
        let options = CpuOptions { threads: pool.threads(), ..options };
        let weights = Weights::pack(plan.recipes.clone(), weights, threads)?;
        let scratch = || {
            let gated = vec![0.0; CHUNK * GROUP_ROWS];
            Mutex::new(Scratch { gated, scores: vec![0.0; context], ..Scratch::default() })
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
            Step::HeadProduct(step) => Some((step.matrices.len(), step.matrices[0])),
            Step::Conv(_) | Step::Recall(_) | Step::Concat { .. } => None,
        });
        products.map(|(times, matrix)| times * self.weights.recipe(matrix).value_bytes()).sum()
    }

    /// The weights of each matrix with the format that it is held in, its bytes, and those that a decode step reads, as a checkpoint stores them.
    pub fn weights(&self) -> Vec<(Vec<&WeightRef>, Format, usize, usize)> {
        let mut times = vec![0; self.plan.recipes.len()];
        for scheduled in self.plan.body.iter().chain(&self.plan.tail) {
            match &scheduled.step {
                Step::Matmul(step) => times[step.matrix] += 1,
                Step::ExpertHidden(step) => times[step.matrices[0]] += step.top_k,
                Step::ExpertSum(step) => times[step.matrices[0]] += step.top_k,
                _ => {}
            }
        }
        let mut all = Vec::new();
        for (recipe, times) in self.plan.recipes.iter().zip(times) {
            for i in 0..recipe.names.len() {
                let bytes = recipe.units(i) * recipe.unit_bytes(i);
                let values = recipe.rows[i] * recipe.formats[i].bytes(recipe.columns).unwrap_or(0);
                all.push((vec![&recipe.names[i]], recipe.formats[i], bytes, times * values));
            }
        }
        all
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

/// What a model takes of the machine's memory, in bytes.
struct Needed {
    weights: usize,
    caches: usize,
    activations: usize,
    /// The weights' formats and what each takes, in words.
    by_format: String,
}

/// Formats that may be told of, the largest first.
const FORMATS: [Format; 4] = [Format::Q8_0, Format::Q6K, Format::Q5K, Format::Q4K];
/// What contexts that would fit are a multiple of.
const CONTEXTS: usize = 64;

/// Refuses what the machine cannot hold, where the system says what it can, and says what would fit.
fn check_memory(
    needed: &Needed,
    available: Option<usize>,
    options: CpuOptions,
    bytes_as: &dyn Fn(Format) -> usize,
) -> Result<()> {
    let Needed { weights, caches, activations, by_format } = needed;
    let CpuOptions { context, sequences, .. } = options;
    let Some(available) = available.filter(|available| weights + caches + activations > *available) else {
        return Ok(());
    };
    // Caches of which each position takes as much.
    let left = available.saturating_sub(weights + activations);
    let fewer = (left as f64 / *caches as f64 * context as f64) as usize / CONTEXTS * CONTEXTS;
    let format = FORMATS.into_iter().find(|format| bytes_as(*format) + caches + activations <= available);
    let advice = match (fewer, format) {
        (0, None) => "take weights of fewer bits (--weights), or a smaller context or batch".to_owned(),
        (0, Some(format)) => format!("--weights {} would fit", format.name()),
        (context, None) => format!("--max-context {context} would fit, or a smaller batch"),
        (context, Some(format)) => format!("--max-context {context} would fit, or --weights {}", format.name()),
    };
    let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
    bail!(
        "{:.2} GiB are needed ({:.2} of weights: {by_format}; {:.2} of caches for {sequences} sequences of {context} positions; {:.2} of activations) \
         and {:.2} are free: {advice}",
        gib(weights + caches + activations),
        gib(*weights),
        gib(*caches),
        gib(*activations),
        gib(available)
    )
}

/// The formats of the weights and the bytes of each, in words.
fn by_format(recipes: &[pack::Recipe]) -> String {
    let mut bytes: BTreeMap<Format, usize> = BTreeMap::new();
    for recipe in recipes {
        for (i, format) in recipe.formats.iter().enumerate() {
            *bytes.entry(*format).or_default() += recipe.units(i) * recipe.unit_bytes(i);
        }
    }
    let mut bytes: Vec<(Format, usize)> = bytes.into_iter().collect();
    bytes.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let words =
        bytes.iter().map(|(format, bytes)| format!("{:.2} in {}", *bytes as f64 / (1u64 << 30) as f64, format.name()));
    words.collect::<Vec<_>>().join(", ")
}

/// Bytes of the weights where those of 16 bits and more are quantised to `target`.
fn bytes_as(plan: &Plan, target: Format) -> usize {
    let vocabulary = plan.places[plan.logits].size;
    let bytes = |recipe: &pack::Recipe| {
        let format = |(format, rows): (&Format, &usize)| {
            let choices = formats_for(target, *rows >= vocabulary).iter();
            let whole = format.block().0 == 1 && !recipe.transposed;
            choices.copied().find(|wanted| whole && wanted.bytes(recipe.columns).is_some()).unwrap_or(*format)
        };
        let formats = recipe.formats.iter().zip(&recipe.rows).map(format).collect();
        pack::Recipe { formats, ..recipe.clone() }.bytes()
    };
    plan.recipes.iter().map(bytes).sum()
}
