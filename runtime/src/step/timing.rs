//! How long things take on the GPU: steps, prompts, and the launches of a step.

use std::time::Instant;

use anyhow::{Result, ensure};
use fusec::plan::{Launch, StepKind};

use super::ceiling::{MemoryReader, compile_kernel};
use super::engine::{GpuEngine, launch_name};
use crate::device::{Event, GraphExec, LaunchOptions, nvtx};
use crate::sampling::SamplingParameters;

/// A kernel that does nothing, called `nothing`.
pub const NOTHING: &str = "extern \"C\" __global__ void nothing() {}\n";

/// Launches that are put into the stream at a time: the driver's queue holds them and their events.
const QUEUED: usize = 200;

/// Reads before timed launches begin with this many caches full, and grow at most this often: they last while the host is putting in the launches.
const CACHES_READ: usize = 8;
const GROWTHS: usize = 5;

/// The launches of a decode step, each in microseconds, in order.
#[derive(Clone, Debug, Default)]
pub struct LaunchTimes {
    /// Each by itself: the interval between an event before it and one after it, less the same interval around a kernel that does nothing.
    /// Nothing overlaps it, and its weights are in no cache.
    pub alone: Vec<f64>,
    /// From the start of a captured step that ends after the launch to its end: as launches overlap in the whole step, so here.
    pub ends: Vec<f64>,
    /// Whether the launches lay ready when those by themselves were timed. Where not (under a tool that runs them one by one), the host's time is in them.
    pub queued: bool,
}

impl GpuEngine {
    /// From here on, steps that are timed sample with these parameters; until then they are greedy.
    pub fn time_with(&mut self, sampling: SamplingParameters) {
        self.timed_sampling = sampling;
    }

    /// Microseconds of each of `count` decode steps, each run by itself, the sequences at `depth` when they begin.
    pub fn time_decode(&mut self, batch: usize, depth: usize, count: usize) -> Result<Vec<f64>> {
        self.begin_decode(batch, depth, count)?;
        let (begin, end) = (self.gpu.event()?, self.gpu.event()?);
        (0..count)
            .map(|step| {
                let (graph, _) = self.graph(self.plan.decode_at(batch, depth + step))?;
                self.time_one(graph, &begin, &end)
            })
            .collect()
    }

    /// Microseconds of `count` runs of a prompt of `length` tokens and its first token, each from an empty cache.
    pub fn time_prompt(&mut self, length: usize, count: usize) -> Result<Vec<f64>> {
        let prompt: Vec<u32> = (0..length as u32).map(|i| 1 + i % 97 % self.plan.vocabulary as u32).collect();
        self.check_prompt(&prompt)?;
        self.set_parameters(0, &SamplingParameters::default())?;
        (0..count)
            .map(|_| {
                self.stream.synchronize()?;
                let begin = Instant::now();
                self.run_prompt(0, &prompt)?;
                self.stream.synchronize()?;
                Ok(begin.elapsed().as_secs_f64() * 1e6)
            })
            .collect()
    }

    /// The launches of the decode step of this batch at this depth, each the median of `runs` runs with cold caches.
    ///
    /// # Errors
    /// A batch without a step, a context that is too short, no NVRTC, a fault on the device.
    pub fn time_launches(
        &mut self,
        batch: usize,
        depth: usize,
        runs: usize,
        reader: &MemoryReader,
    ) -> Result<LaunchTimes> {
        let kind = self.plan.decode_at(batch, depth + runs);
        let launches = &self.step(kind)?.launches;
        // Sampling moves the sequences on: each run begins with them in their place.
        let begin = || self.begin_decode(batch, depth, runs);
        let (busy, queued) = self.intervals(kind, launches, runs, reader, &begin, false)?;
        let (idle, _) = self.intervals(kind, launches, runs, reader, &begin, true)?;
        let alone = busy.iter().zip(&idle).map(|(busy, idle)| (busy - idle).max(0.0)).collect();
        let ends = (1..=launches.len())
            .map(|count| {
                begin()?;
                self.end_of(kind, &launches[..count], runs, reader)
            })
            .collect::<Result<Vec<f64>>>()?;
        Ok(LaunchTimes { alone, ends, queued })
    }

    /// Microseconds between the events around each launch, nothing overlapping, and whether all of them lay ready. `empty`: a kernel that does
    /// nothing, with the launch's blocks, threads and shared memory, in the place of each.
    fn intervals(
        &self,
        kind: StepKind,
        launches: &[Launch],
        runs: usize,
        reader: &MemoryReader,
        begin: &dyn Fn() -> Result<()>,
        empty: bool,
    ) -> Result<(Vec<f64>, bool)> {
        let most_shared = self.plan.kernels.iter().map(|kernel| kernel.shared_bytes).max().unwrap_or(0);
        let idle = compile_kernel(&self.gpu, "nothing", NOTHING.into(), most_shared)?;
        let mut reads = CACHES_READ * self.gpu.l2_bytes()?;
        let mut growths = 0;
        let mut medians = Vec::with_capacity(launches.len());
        let mut all_queued = true;
        for part in launches.chunks(QUEUED) {
            let events = (0..=part.len()).map(|_| self.gpu.event()).collect::<Result<Vec<Event>>>()?;
            let mut times = vec![Vec::with_capacity(runs); part.len()];
            // The first run warms up: code and page tables.
            let mut run = 0;
            while run <= runs {
                begin()?;
                reader.read(&self.stream, reads)?;
                self.stream.record(&events[0])?;
                for (launch, end) in part.iter().zip(&events[1..]) {
                    let kernel = &self.plan.kernels[launch.kernel];
                    if empty {
                        let block = [kernel.threads, 1, 1];
                        let options = LaunchOptions::default();
                        self.stream.launch(&idle, launch.grid, block, kernel.shared_bytes, &[], options)?;
                    } else {
                        let _range = nvtx::range(|| format!("alone, {}", launch_name(launch, &kernel.name)));
                        self.enqueue(&self.stream, kind, std::slice::from_ref(launch), false)?;
                    }
                    self.stream.record(end)?;
                }
                let queued = !events[0].query()?;
                self.stream.synchronize()?;
                if !queued && growths < GROWTHS {
                    (reads, growths) = (2 * reads, growths + 1);
                    continue;
                }
                if run > 0 {
                    all_queued &= queued;
                    for (times, pair) in times.iter_mut().zip(events.windows(2)) {
                        times.push(f64::from(pair[1].elapsed_ms_since(&pair[0])?) * 1e3);
                    }
                }
                run += 1;
            }
            medians.extend(times.iter_mut().map(|times| median(times)));
        }
        Ok((medians, all_queued))
    }

    /// Microseconds from the start of a captured step of these launches to its end.
    fn end_of(&self, kind: StepKind, launches: &[Launch], runs: usize, reader: &MemoryReader) -> Result<f64> {
        let graph = self.stream.capture(|stream| self.enqueue(stream, kind, launches, true))?;
        let graph = graph.instantiate(&self.stream)?;
        let (begin, end) = (self.gpu.event()?, self.gpu.event()?);
        let reads = 2 * self.gpu.l2_bytes()?;
        let mut times = Vec::with_capacity(runs);
        for run in 0..=runs {
            reader.read(&self.stream, reads)?;
            let time = self.time_one(&graph, &begin, &end)?;
            if run > 0 {
                times.push(time);
            }
        }
        Ok(median(&mut times))
    }

    /// Puts the sequences of a batch at `depth`, from where `count` steps fit.
    pub(super) fn begin_decode(&self, batch: usize, depth: usize, count: usize) -> Result<()> {
        ensure!(
            depth + count < self.options.context,
            "{count} steps from depth {depth} on need a context of more than {}",
            self.options.context
        );
        for sequence in 0..batch {
            self.begin(sequence)?;
            self.set_parameters(sequence, &self.timed_sampling)?;
        }
        let rows: Vec<(u32, Option<usize>)> = (0..batch).map(|row| (row as u32 + 1, Some(depth))).collect();
        self.set_rows(&rows)
    }

    /// Microseconds of one run of a graph on an idle GPU.
    pub(super) fn time_one(&self, graph: &GraphExec, begin: &Event, end: &Event) -> Result<f64> {
        self.stream.synchronize()?;
        self.stream.record(begin)?;
        self.stream.replay(graph)?;
        self.stream.record(end)?;
        end.synchronize()?;
        Ok(f64::from(end.elapsed_ms_since(begin)?) * 1e3)
    }
}

/// Sorts, and returns the middle.
///
/// # Panics
/// Of no values.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
