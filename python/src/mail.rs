//! What comes of work that runs beside Python: it waits in a box until it is fetched, by a thread or by an event loop.

use std::collections::{BTreeSet, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;

/// How long a thread waits before it looks for signals.
const PATIENCE: Duration = Duration::from_millis(50);

/// A box that work puts things into.
pub struct Mailbox<T> {
    things: Mutex<VecDeque<T>>,
    filled: Condvar,
    bell: Option<Ring>,
}

impl<T: Send> Mailbox<T> {
    /// An empty one. `bell`: what rings when something comes.
    pub fn new(bell: Option<Ring>) -> Arc<Mailbox<T>> {
        Arc::new(Mailbox { things: Mutex::new(VecDeque::new()), filled: Condvar::new(), bell })
    }

    pub fn put(&self, thing: T) {
        locked(&self.things).push_back(thing);
        self.filled.notify_all();
        if let Some(bell) = &self.bell {
            bell.ring();
        }
    }

    /// All that is there.
    pub fn take(&self) -> Vec<T> {
        locked(&self.things).drain(..).collect()
    }

    /// All that is there, once something is. Other threads of Python run meanwhile, and a signal ends the wait.
    pub fn wait(&self, py: Python<'_>) -> PyResult<Vec<T>> {
        loop {
            let things = py.detach(|| {
                let waiting = |things: &mut VecDeque<T>| things.is_empty();
                let waited = self.filled.wait_timeout_while(locked(&self.things), PATIENCE, waiting);
                let (mut things, _) = waited.unwrap_or_else(PoisonError::into_inner);
                things.drain(..).collect::<Vec<T>>()
            });
            if !things.is_empty() {
                return Ok(things);
            }
            py.check_signals()?;
        }
    }
}

/// The side of a box that work has. Work that is given up before its end, because the model is ended, says so.
pub struct Work<T: Send> {
    mail: Arc<Mailbox<T>>,
    /// What is put where nothing else came last.
    given_up: Option<T>,
}

impl<T: Send> Work<T> {
    pub fn new(mail: &Arc<Mailbox<T>>, given_up: T) -> Work<T> {
        Work { mail: mail.clone(), given_up: Some(given_up) }
    }

    pub fn put(&self, thing: T) {
        self.mail.put(thing);
    }

    /// Puts what comes last.
    pub fn end(&mut self, thing: T) {
        self.given_up = None;
        self.mail.put(thing);
    }
}

impl<T: Send> Drop for Work<T> {
    fn drop(&mut self) {
        if let Some(thing) = self.given_up.take() {
            self.mail.put(thing);
        }
    }
}

/// Tells an event loop which boxes have something: by a file that can be read, and by the numbers of the boxes.
#[pyclass(frozen)]
pub struct Bell {
    read: UnixStream,
    shared: Arc<Shared>,
    next: AtomicU64,
}

struct Shared {
    write: UnixStream,
    rung: Mutex<BTreeSet<u64>>,
}

/// A box's own way to a bell.
pub struct Ring {
    number: u64,
    shared: Arc<Shared>,
}

#[pymethods]
impl Bell {
    #[new]
    fn new() -> PyResult<Bell> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        let shared = Arc::new(Shared { write, rung: Mutex::new(BTreeSet::new()) });
        Ok(Bell { read, shared, next: AtomicU64::new(0) })
    }

    /// The file that an event loop is to watch.
    fn fileno(&self) -> i32 {
        self.read.as_raw_fd()
    }

    /// The numbers of the boxes that something came into since the last time.
    fn rung(&self) -> PyResult<Vec<u64>> {
        let mut bytes = [0; 64];
        loop {
            match (&self.read).read(&mut bytes) {
                Ok(count) if count == bytes.len() => {}
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(std::mem::take(&mut *locked(&self.shared.rung)).into_iter().collect())
    }
}

impl Bell {
    /// A box's way to it, and the number that the box has.
    pub fn ring(&self) -> (u64, Ring) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number, Ring { number, shared: self.shared.clone() })
    }
}

impl Ring {
    fn ring(&self) {
        let mut rung = locked(&self.shared.rung);
        if rung.insert(self.number) && rung.len() == 1 {
            // A file that is full is read anyway, and one that is closed has no reader.
            let _ = (&self.shared.write).write(&[0]);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is done at once.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
