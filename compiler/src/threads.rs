//! Work that is shared by threads: as many as the system starts, and without any by the caller itself.

use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};
use std::thread::Builder;

/// As many threads as the machine has cores.
pub fn available() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Runs `work` on the calling thread and beside it on up to `threads - 1` others, until all are done. Where the system starts no more of them,
/// those that there are do it all: `work` takes what is left to do until nothing is.
pub fn run(threads: usize, work: impl Fn() + Sync) {
    std::thread::scope(|scope| {
        let start = |_| Builder::new().spawn_scoped(scope, &work).ok();
        let others: Vec<_> = (1..threads).map_while(start).collect();
        work();
        // The scope ends after the work. A join also waits for what ends a thread: a library's own, which must not meet the program's end.
        others.into_iter().for_each(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
    });
}

/// Gives each item to `work`, on up to `threads` threads, each with a state of its own. Items are taken in their order.
///
/// # Errors
/// That of the first item which fails. Items after it may be left out.
pub fn for_each<T: Send, S, E: Send>(
    threads: usize,
    items: impl IntoIterator<Item = T, IntoIter: Send>,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let items = Mutex::new(Some(items.into_iter().enumerate()));
    let failed: Mutex<Option<(usize, E)>> = Mutex::new(None);
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).as_mut().and_then(Iterator::next);
    run(threads, || {
        let mut state = state();
        while let Some((index, item)) = next() {
            let Err(error) = work(&mut state, item) else { continue };
            items.lock().unwrap_or_else(PoisonError::into_inner).take();
            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
            if failed.as_ref().is_none_or(|(first, _)| index < *first) {
                *failed = Some((index, error));
            }
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), |(_, error)| Err(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_item_is_taken_once() {
        for threads in [0, 1, 3] {
            let mut squares = vec![0; 100];
            let double = |_: &mut (), (at, to): (usize, &mut usize)| {
                *to += at * at;
                Ok::<(), ()>(())
            };
            for_each(threads, squares.iter_mut().enumerate(), || (), double).unwrap();
            assert!(squares.iter().enumerate().all(|(at, square)| *square == at * at));
        }
    }

    #[test]
    fn the_first_failure_counts() {
        for _ in 0..50 {
            let failed = for_each(4, 0..1000, || (), |_, item| if item % 10 == 7 { Err(item) } else { Ok(()) });
            assert_eq!(failed, Err(7));
        }
    }
}
