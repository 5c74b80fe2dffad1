//! Threads that stay, and how they share the steps of a job without waiting for one another.
//!
//! Each step is cut into chunks that threads claim. A step is over when its chunks are done, not when all threads have come by: a thread that the
//! system holds back on a busy machine, holding no chunk, keeps nobody waiting.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// A fixed number of threads that run one job at a time. The caller of [`Pool::run`] is thread 0.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// What a job is given: which thread it is on, of how many, and what is done.
pub(crate) struct Worker<'a> {
    /// This thread's number, from 0.
    pub index: usize,
    /// How many threads the pool has. Not all of them need take part in a job.
    pub count: usize,
    job: u32,
    shared: &'a Shared,
}

type Job = *const (dyn Fn(&Worker<'_>) + Sync);

struct Shared {
    threads: usize,
    /// The number of the job, and how many workers are in it. The lowest bit says that it takes more.
    gate: Padded<AtomicU64>,
    job: UnsafeCell<Option<Job>>,
    steps: Vec<StepCounters>,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: Mutex<usize>,
    wake: Condvar,
}

/// Each a [`tagged`] count.
struct StepCounters {
    /// Chunks claimed of each thread's own part.
    claimed: Vec<Padded<AtomicU64>>,
    /// Chunks done.
    done: Padded<AtomicU64>,
}

/// The only one on its pair of cache lines, so that waiting on one does not slow another.
#[repr(align(128))]
struct Padded<T>(T);

// SAFETY: `job` is written by the caller of `run` while the gate is shut and no worker is in; workers read it after they came through the gate,
// which was opened, with Release, after the write. `Pool::run` takes `&mut self`, so there is one caller.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is only followed while `run` keeps what it points at alive.
unsafe impl Send for Shared {}

/// Rounds of spinning before a waiting thread offers its core to others.
const SPINS: usize = 2000;
/// Offers of the core before a worker without a job goes to sleep.
const YIELDS: usize = 100;

const OPEN: u64 = 1;
const ONE_WORKER: u64 = 2;
const NUMBER_SHIFT: u32 = 32;

impl Pool {
    /// Starts `threads - 1` threads, or as many of them as the system does start, for jobs of at most `steps` steps.
    pub fn new(threads: usize, steps: usize) -> Pool {
        let threads = threads.max(1);
        let counter = || Padded(AtomicU64::new(0));
        let counters = || StepCounters { claimed: (0..threads).map(|_| counter()).collect(), done: counter() };
        let shared = Arc::new(Shared {
            threads,
            gate: counter(),
            job: UnsafeCell::new(None),
            steps: (0..steps).map(|_| counters()).collect(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
        });
        let mut pool = Pool { shared, workers: Vec::with_capacity(threads - 1) };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(format!("fuserun-cpu-{index}"));
            // Where the system starts no more, those that there are take all chunks.
            let Ok(worker) = thread.spawn(move || shared.work(index)) else { break };
            pool.workers.push(worker);
        }
        pool
    }

    /// Threads that there are, the caller's among them.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs the job on this thread and on each worker that comes while it lasts. The job waits for all its steps itself; then it is over for
    /// every thread. A panic on any thread is raised again here.
    pub fn run(&mut self, job: &(dyn Fn(&Worker<'_>) + Sync)) {
        let shared = &*self.shared;
        shared.panicked.store(false, Ordering::Relaxed);
        // Number 0 tags counters that were never used.
        let number = ((shared.gate.0.load(Ordering::Relaxed) >> NUMBER_SHIFT) as u32).wrapping_add(1).max(1);
        // SAFETY: the gate is shut and no worker is in, so none reads `job`. The lifetime is widened for the time of this call only: the wait
        // below returns when the gate is shut again and every worker has left, also when this thread panics.
        unsafe {
            let job: Job = std::mem::transmute::<&(dyn Fn(&Worker<'_>) + Sync), Job>(job);
            *shared.job.get() = Some(job);
        }
        shared.gate.0.store(u64::from(number) << NUMBER_SHIFT | OPEN, Ordering::SeqCst);
        if shared.threads > 1 && *shared.sleepers.lock().unwrap_or_else(PoisonError::into_inner) > 0 {
            shared.wake.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| {
            job(&Worker { index: 0, count: shared.threads, job: number, shared });
        }));
        if own.is_err() {
            shared.panicked.store(true, Ordering::Release);
        }
        shared.gate.0.fetch_and(!OPEN, Ordering::AcqRel);
        wait(|| shared.gate.0.load(Ordering::Acquire) == u64::from(number) << NUMBER_SHIFT);
        match own {
            Err(panic) => resume_unwind(panic),
            Ok(()) if shared.panicked.load(Ordering::Acquire) => panic!("a CPU thread panicked"),
            Ok(()) => {}
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(self.shared.sleepers.lock());
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker's panic was raised by `run` already.
            let _ = worker.join();
        }
    }
}

impl Worker<'_> {
    /// Claims chunks of a step until none is left: first those of this thread's own part, which follow each other, then those of others.
    /// All threads give the same number of chunks.
    pub fn for_each_chunk(&self, step: usize, chunks: usize, mut run: impl FnMut(usize)) {
        let counters = &self.shared.steps[step];
        for offset in 0..self.count {
            let owner = (self.index + offset) % self.count;
            let part = share(chunks, owner, self.count);
            while let Some(claimed) = self.claim(&counters.claimed[owner].0, part.len()) {
                run(part.start + claimed);
                self.finish_one(&counters.done.0);
            }
        }
    }

    /// Waits until that many chunks of a step are done. What was written in them is visible after.
    pub fn wait_for(&self, step: usize, chunks: usize) {
        let done = &self.shared.steps[step].done.0;
        let goal = tagged(self.job, chunks as u32);
        if chunks > 0 {
            wait(|| done.load(Ordering::Acquire) == goal || self.shared.panicked.load(Ordering::Relaxed));
            assert!(!self.shared.panicked.load(Ordering::Acquire), "another CPU thread panicked");
        }
    }

    /// The number of a chunk that nobody else has, if fewer than `limit` are taken.
    fn claim(&self, counter: &AtomicU64, limit: usize) -> Option<usize> {
        let next = |value: u64| {
            let count = count_of(self.job, value);
            ((count as usize) < limit).then(|| tagged(self.job, count + 1))
        };
        let before = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()?;
        Some(count_of(self.job, before) as usize)
    }

    fn finish_one(&self, counter: &AtomicU64) {
        let next = |value: u64| Some(tagged(self.job, count_of(self.job, value) + 1));
        let _ = counter.fetch_update(Ordering::AcqRel, Ordering::Relaxed, next);
    }
}

/// Part `index` of `count` of some items: contiguous, all parts of nearly one size.
pub(crate) fn share(items: usize, index: usize, count: usize) -> Range<usize> {
    items * index / count..items * (index + 1) / count
}

/// A count that belongs to a job. One of another job counts as 0: nobody has to clear counters between jobs.
fn tagged(job: u32, count: u32) -> u64 {
    u64::from(job) << 32 | u64::from(count)
}

fn count_of(job: u32, value: u64) -> u32 {
    if (value >> 32) as u32 == job { value as u32 } else { 0 }
}

impl Shared {
    fn work(&self, index: usize) {
        let mut last = 0;
        loop {
            let Some(job_number) = self.enter(last) else { return };
            last = job_number;
            // SAFETY: `run` stored the job before it opened the gate, and keeps it alive until this worker has left.
            let job = unsafe { &*(*self.job.get()).expect("a job is stored before the gate opens") };
            let worker = Worker { index, count: self.threads, job: job_number, shared: self };
            if catch_unwind(AssertUnwindSafe(|| job(&worker))).is_err() {
                self.panicked.store(true, Ordering::Release);
            }
            self.gate.0.fetch_sub(ONE_WORKER, Ordering::Release);
        }
    }

    /// Waits for an open gate other than the last one and goes through. Spins, then offers the core, then sleeps. `None` when the pool ends.
    fn enter(&self, last: u32) -> Option<u32> {
        let number_of = |gate: u64| (gate >> NUMBER_SHIFT) as u32;
        let ready = || {
            let gate = self.gate.0.load(Ordering::SeqCst);
            (gate & OPEN != 0 && number_of(gate) != last) || self.stop.load(Ordering::SeqCst)
        };
        let mut rounds = 0;
        loop {
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            let through = |gate: u64| (gate & OPEN != 0 && number_of(gate) != last).then_some(gate + ONE_WORKER);
            if let Ok(gate) = self.gate.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, through) {
                return Some(number_of(gate));
            }
            rounds += 1;
            if rounds < SPINS {
                std::hint::spin_loop();
            } else if rounds < SPINS + YIELDS {
                std::thread::yield_now();
            } else {
                let mut sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
                *sleepers += 1;
                while !ready() {
                    sleepers = self.wake.wait(sleepers).unwrap_or_else(PoisonError::into_inner);
                }
                *sleepers -= 1;
                rounds = 0;
            }
        }
    }
}

/// Spins for a while, then offers the core between looks: on a busy machine the thread that is waited for needs it.
fn wait(done: impl Fn() -> bool) {
    for _ in 0..SPINS {
        if done() {
            return;
        }
        std::hint::spin_loop();
    }
    while !done() {
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn every_chunk_is_run_once_and_before_the_wait_ends() {
        let mut pool = Pool::new(3, 40);
        let counts: Vec<AtomicUsize> = (0..40 * 7).map(|_| AtomicUsize::new(0)).collect();
        for round in 1..=50 {
            pool.run(&|worker| {
                for step in 0..40 {
                    let chunks = step % 8;
                    worker.for_each_chunk(step, chunks, |chunk| {
                        counts[step * 7 + chunk].fetch_add(1, Ordering::Relaxed);
                    });
                    worker.wait_for(step, chunks);
                    assert!(counts[step * 7..][..chunks].iter().all(|count| count.load(Ordering::Relaxed) == round));
                }
            });
        }
    }

    #[test]
    fn a_sleeping_pool_wakes() {
        let mut pool = Pool::new(2, 1);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(30));
            let threads = Mutex::new(std::collections::BTreeSet::new());
            pool.run(&|worker| {
                threads.lock().unwrap().insert(worker.index);
                // The caller waits for its worker here, which no real job does.
                while threads.lock().unwrap().len() < 2 {
                    std::thread::yield_now();
                }
            });
            assert_eq!(threads.into_inner().unwrap().len(), 2);
        }
    }

    #[test]
    fn a_panic_on_any_thread_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(2, 1);
        for planted in [0, 1] {
            let failed = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|worker| {
                    worker.for_each_chunk(0, 4, |chunk| {
                        assert_ne!(chunk, 2 * planted, "planted");
                    });
                    worker.wait_for(0, 4);
                });
            }));
            assert!(failed.is_err());
            let runs = AtomicUsize::new(0);
            pool.run(&|worker| {
                worker.for_each_chunk(0, 5, |_| {
                    runs.fetch_add(1, Ordering::Relaxed);
                });
                worker.wait_for(0, 5);
            });
            assert_eq!(runs.load(Ordering::Relaxed), 5);
        }
    }

    #[test]
    fn shares_cover_everything_once() {
        for (items, count) in [(10, 3), (1, 2), (0, 2), (7, 7)] {
            let all: Vec<usize> = (0..count).flat_map(|index| share(items, index, count)).collect();
            assert_eq!(all, (0..items).collect::<Vec<_>>());
        }
    }
}
