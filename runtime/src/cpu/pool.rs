//! Threads that stay, and a barrier between the steps they run together.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};

/// A fixed number of threads that run one job at a time. The caller of [`Pool::run`] is thread 0.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// What a job is told: which thread it is on, of how many, and where they meet.
pub(crate) struct Worker<'a> {
    /// This thread's number, from 0.
    pub index: usize,
    /// How many threads run the job.
    pub count: usize,
    shared: &'a Shared,
}

type Job = *const (dyn Fn(&Worker<'_>) + Sync);

struct Shared {
    threads: usize,
    /// Grows by one a job. Read by waiting workers.
    job_number: Padded<AtomicUsize>,
    job: UnsafeCell<Option<Job>>,
    /// Workers that have not finished the job.
    running: Padded<AtomicUsize>,
    /// Threads that reached the barrier, and how often it has opened.
    arrived: Padded<AtomicUsize>,
    opened: Padded<AtomicUsize>,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: Mutex<usize>,
    wake: Condvar,
}

/// Alone on its pair of cache lines, so that waiting on one does not slow another.
#[repr(align(128))]
struct Padded<T>(T);

// SAFETY: `job` is written by the caller of `run` while no worker runs (`running` is 0) and read by workers only after they see
// the `job_number` that was stored, with Release, after the write. `Pool::run` takes `&mut self`, so there is one caller.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is only followed while `run` keeps what it points at alive.
unsafe impl Send for Shared {}

/// Rounds of spinning before a waiting thread offers its core to others.
const SPINS: usize = 4000;
/// Offers of the core before a worker without a job goes to sleep.
const YIELDS: usize = 200;

impl Pool {
    /// Starts `threads - 1` threads.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn new(threads: usize) -> Result<Pool> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            threads,
            job_number: Padded(AtomicUsize::new(0)),
            job: UnsafeCell::new(None),
            running: Padded(AtomicUsize::new(0)),
            arrived: Padded(AtomicUsize::new(0)),
            opened: Padded(AtomicUsize::new(0)),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
        });
        let mut pool = Pool { shared, workers: Vec::with_capacity(threads - 1) };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new()
                .name(format!("fuserun-cpu-{index}"))
                .spawn(move || shared.work(index))
                .with_context(|| format!("cannot start CPU thread {index} of {threads}"))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// The number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Runs the job on every thread and returns when all are done. A panic on any thread is raised again here.
    pub fn run(&mut self, job: &(dyn Fn(&Worker<'_>) + Sync)) {
        let shared = &*self.shared;
        shared.arrived.0.store(0, Ordering::Relaxed);
        shared.panicked.store(false, Ordering::Relaxed);
        shared.running.0.store(shared.threads - 1, Ordering::Relaxed);
        // SAFETY: no worker runs, so none reads `job`. The lifetime is widened for the time of this call only: the wait below does
        // not return before every worker has finished with it, and `finish` waits also when this thread panics.
        unsafe {
            let job: Job = std::mem::transmute::<&(dyn Fn(&Worker<'_>) + Sync), Job>(job);
            *shared.job.get() = Some(job);
        }
        shared.job_number.0.fetch_add(1, Ordering::Release);
        if *shared.sleepers.lock().unwrap_or_else(PoisonError::into_inner) > 0 {
            shared.wake.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| job(&Worker { index: 0, count: shared.threads, shared })));
        if own.is_err() {
            shared.panicked.store(true, Ordering::Release);
        }
        wait(SPINS, || shared.running.0.load(Ordering::Acquire) == 0);
        match own {
            Err(panic) => resume_unwind(panic),
            Ok(()) if shared.panicked.load(Ordering::Acquire) => panic!("a CPU thread panicked"),
            Ok(()) => {}
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.job_number.0.fetch_add(1, Ordering::Release);
        drop(self.shared.sleepers.lock());
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker's panic was raised by `run` already.
            let _ = worker.join();
        }
    }
}

impl Worker<'_> {
    /// Waits until every thread is here. What they wrote before is visible after.
    pub fn barrier(&self) {
        let shared = self.shared;
        if shared.threads == 1 {
            return;
        }
        let opened = shared.opened.0.load(Ordering::Acquire);
        if shared.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == shared.threads {
            shared.arrived.0.store(0, Ordering::Relaxed);
            shared.opened.0.store(opened.wrapping_add(1), Ordering::Release);
            return;
        }
        wait(SPINS, || shared.opened.0.load(Ordering::Acquire) != opened || shared.panicked.load(Ordering::Relaxed));
        assert!(!shared.panicked.load(Ordering::Acquire), "another CPU thread panicked");
    }

    /// This thread's part of `items`: contiguous, and in order of the threads.
    pub fn share(&self, items: usize) -> std::ops::Range<usize> {
        items * self.index / self.count..items * (self.index + 1) / self.count
    }
}

impl Shared {
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            self.wait_for_job(seen);
            seen += 1;
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            // SAFETY: `run` stored the job before the number that `wait_for_job` saw, and keeps it alive until `running` is 0.
            let job = unsafe { &*(*self.job.get()).expect("a job is stored before its number") };
            let worker = Worker { index, count: self.threads, shared: self };
            if catch_unwind(AssertUnwindSafe(|| job(&worker))).is_err() {
                self.panicked.store(true, Ordering::Release);
            }
            self.running.0.fetch_sub(1, Ordering::Release);
        }
    }

    /// Spins, then offers the core, then sleeps, until there is a job after `seen`.
    fn wait_for_job(&self, seen: usize) {
        let ready = || self.job_number.0.load(Ordering::Acquire) != seen;
        for round in 0..SPINS + YIELDS {
            if ready() {
                return;
            }
            if round < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        let mut sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        *sleepers += 1;
        while !ready() {
            sleepers = self.wake.wait(sleepers).unwrap_or_else(PoisonError::into_inner);
        }
        *sleepers -= 1;
    }
}

/// Spins for a while, then offers the core between looks: on a busy machine the thread that is waited for needs it.
fn wait(spins: usize, done: impl Fn() -> bool) {
    for _ in 0..spins {
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
    use super::*;

    #[test]
    fn barriers_order_the_rounds_of_all_threads() {
        let mut pool = Pool::new(3).unwrap();
        let counts: Vec<AtomicUsize> = (0..3).map(|_| AtomicUsize::new(0)).collect();
        for _ in 0..20 {
            pool.run(&|worker| {
                for _ in 0..50 {
                    let round = counts[worker.index].fetch_add(1, Ordering::Relaxed) + 1;
                    worker.barrier();
                    for count in &counts {
                        assert_eq!(count.load(Ordering::Relaxed), round);
                    }
                    worker.barrier();
                }
            });
        }
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1000));
    }

    #[test]
    fn a_sleeping_pool_wakes() {
        let mut pool = Pool::new(2).unwrap();
        let runs = AtomicUsize::new(0);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(30));
            pool.run(&|_| {
                runs.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert_eq!(runs.load(Ordering::Relaxed), 6);
    }

    #[test]
    fn a_panic_on_a_worker_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(2).unwrap();
        let failed = catch_unwind(AssertUnwindSafe(|| {
            pool.run(&|worker| {
                assert_ne!(worker.index, 1, "planted");
                worker.barrier();
            });
        }));
        assert!(failed.is_err());
        let runs = AtomicUsize::new(0);
        pool.run(&|worker| {
            worker.barrier();
            runs.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(runs.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn shares_cover_everything_once() {
        let mut pool = Pool::new(3).unwrap();
        let seen: Vec<AtomicUsize> = (0..10).map(|_| AtomicUsize::new(0)).collect();
        pool.run(&|worker| {
            for item in worker.share(10) {
                seen[item].fetch_add(1, Ordering::Relaxed);
            }
        });
        assert!(seen.iter().all(|count| count.load(Ordering::Relaxed) == 1));
    }
}
