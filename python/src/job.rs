//! Work that runs beside Python, and is taken back when its job is dropped.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use fuserun::serve::{Answering, Asked, Came, Local, Piece, Question, Refusal, Sent};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::convert::{failed, piece, refused};
use crate::mail::{Bell, Mailbox, Ring, Work};

/// Why nothing more comes of what was asked.
pub const ENDED: &str = "the model has been ended: load it again";

/// Questions that are being answered.
#[pyclass(frozen)]
pub struct Job {
    mail: Arc<Mailbox<(usize, Came)>>,
    answering: Mutex<Vec<Answering>>,
    number: Option<u64>,
}

/// Logits that are being computed.
#[pyclass(frozen)]
pub struct LogitsJob {
    mail: Arc<Mailbox<Result<Vec<f32>, String>>>,
    _answering: Answering,
}

/// A request of HTTP that is being answered.
#[pyclass(frozen)]
pub struct ResponseJob {
    mail: Arc<Mailbox<Sent>>,
    answering: Mutex<Option<Answering>>,
    number: Option<u64>,
}

/// The number of a box and what rings for it.
fn ring(bell: Option<&Bell>) -> (Option<u64>, Option<Ring>) {
    bell.map(Bell::ring).unzip()
}

impl Job {
    /// Puts questions into the queue. `whole`: nothing is told of an answer before it has ended.
    pub fn start(local: &Local, questions: Vec<Question>, whole: bool, bell: Option<&Bell>) -> Job {
        let (number, ring) = ring(bell);
        let mail = Mailbox::new(ring);
        let start = |(index, question): (usize, Question)| {
            let given_up = Came::Failed(Refusal::Model(ENDED.into()));
            let (mut work, mut held) = (Work::new(&mail, (index, given_up)), BTreeMap::<usize, Piece>::new());
            local.ask(question, move |came| match came {
                Came::Piece(piece) if whole => {
                    let (choice, ended) = (piece.choice, piece.finish.is_some());
                    held.entry(choice).or_insert_with(|| Piece { choice, ..Piece::default() }).append(piece);
                    if ended && let Some(piece) = held.remove(&choice) {
                        work.put((index, Came::Piece(piece)));
                    }
                }
                came @ Came::Piece(_) => work.put((index, came)),
                last => work.end((index, last)),
            })
        };
        let answering = questions.into_iter().enumerate().map(start).collect();
        Job { mail, answering: Mutex::new(answering), number }
    }

    fn list<'py>(&self, py: Python<'py>, came: Vec<(usize, Came)>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for (index, came) in came {
            let thing = match came {
                Came::Piece(more) => (index, "piece", piece(py, &more)?).into_bound_py_any(py)?,
                Came::Ended(taken) => {
                    let (prompt, cached) = taken.prompt;
                    let (read, answered) = taken.milliseconds;
                    (index, "ended", (prompt, cached, taken.tokens, taken.seed, read, answered))
                        .into_bound_py_any(py)?
                }
                Came::Failed(refusal) => (index, "failed", refused(&refusal)).into_bound_py_any(py)?,
            };
            list.append(thing)?;
        }
        Ok(list)
    }
}

#[pymethods]
impl Job {
    /// What has come, once something has: question, what it is, and that.
    fn wait<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let came = self.mail.wait(py)?;
        self.list(py, came)
    }

    /// What has come; nothing where there is nothing.
    fn poll<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        self.list(py, self.mail.take())
    }

    /// Its number on the bell.
    #[getter]
    fn number(&self) -> Option<u64> {
        self.number
    }

    /// Takes all questions back.
    fn cancel(&self) {
        self.answering.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl LogitsJob {
    pub fn start(local: &Local, tokens: Vec<u32>) -> LogitsJob {
        let mail = Mailbox::new(None);
        let mut work = Work::new(&mail, Err(ENDED.to_owned()));
        let answering = local.logits(tokens, move |logits| work.end(logits.map_err(|error| format!("{error:#}"))));
        LogitsJob { mail, _answering: answering }
    }
}

#[pymethods]
impl LogitsJob {
    /// The logits as bytes of 32-bit floats, once they are there.
    fn wait<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let mut came = self.mail.wait(py)?;
        match came.pop() {
            Some(Ok(logits)) => PyBytes::new_with(py, logits.len() * 4, |bytes| {
                for (place, logit) in bytes.chunks_exact_mut(4).zip(&logits) {
                    place.copy_from_slice(&logit.to_ne_bytes());
                }
                Ok(())
            }),
            Some(Err(message)) => Err(failed(message)),
            None => Err(failed("nothing was computed")),
        }
    }
}

impl ResponseJob {
    pub fn start(local: &Local, asked: Asked, bell: Option<&Bell>) -> PyResult<ResponseJob> {
        let (number, ring) = ring(bell);
        let mail = Mailbox::new(ring);
        let mut work = Work::new(&mail, Sent::End);
        let take = move |sent| if sent == Sent::End { work.end(sent) } else { work.put(sent) };
        let answering = local.request(asked, take).map_err(|refusal| refused(&refusal))?;
        Ok(ResponseJob { mail, answering: Mutex::new(Some(answering)), number })
    }
}

fn sent<'py>(py: Python<'py>, all: Vec<Sent>) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for sent in all {
        list.append(match sent {
            Sent::Head(status, headers) => {
                let bytes = |text: &Vec<u8>| PyBytes::new(py, text);
                let headers: Vec<_> = headers.iter().map(|(name, value)| (bytes(name), bytes(value))).collect();
                ("head", status, headers).into_bound_py_any(py)?
            }
            Sent::Body(body) => ("body", PyBytes::new(py, &body)).into_bound_py_any(py)?,
            Sent::End => ("end",).into_bound_py_any(py)?,
        })?;
    }
    Ok(list)
}

#[pymethods]
impl ResponseJob {
    /// What has come, once something has: the head, parts of the body, the end.
    fn wait<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let all = self.mail.wait(py)?;
        sent(py, all)
    }

    /// What has come; nothing where there is nothing.
    fn poll<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        sent(py, self.mail.take())
    }

    /// Its number on the bell.
    #[getter]
    fn number(&self) -> Option<u64> {
        self.number
    }

    /// Takes the request back.
    fn cancel(&self) {
        self.answering.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}
