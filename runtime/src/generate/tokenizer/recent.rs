//! The ids of recent texts: a text that begins as one of them is encoded only from where it differs.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;

use super::cuts::Cuts;

/// Shorter texts are encoded whole, and not kept.
pub(super) const SHORTEST: usize = 1024;

/// A text is encoded in parts of this many bytes, and a few more up to a place where it may be cut.
const PART: usize = 256;

/// Bytes that are kept at most.
const KEPT: usize = 8 << 20;

/// Texts that are kept at most.
const TEXTS: usize = 64;

/// Recent texts, the latest last.
#[derive(Default)]
pub(super) struct Recent {
    texts: Mutex<VecDeque<Encoded>>,
}

#[derive(Default)]
struct Encoded {
    text: String,
    ids: Vec<u32>,
    /// Cuts of the text, and how many ids are before each; its end is the last.
    cuts: Vec<(usize, usize)>,
}

impl Recent {
    /// The ids of a text by `encode`, which is given parts of it.
    pub fn encode(&self, text: &str, cuts: &Cuts, encode: impl Fn(&str) -> Result<Vec<u32>>) -> Result<Vec<u32>> {
        if text.len() < SHORTEST {
            return encode(text);
        }
        let mut known = self.longest(text, cuts);
        let mut at = known.text.len();
        if at == text.len() {
            return Ok(known.ids);
        }
        while at < text.len() {
            let end = cuts.next(text, at + PART).unwrap_or(text.len());
            known.ids.extend(encode(&text[at..end])?);
            known.cuts.push((end, known.ids.len()));
            at = end;
        }
        let ids = known.ids.clone();
        known.text = text.to_owned();
        self.keep(known);
        Ok(ids)
    }

    /// The longest beginning of a text whose ids are known.
    fn longest(&self, text: &str, cuts: &Cuts) -> Encoded {
        let mut texts = self.locked();
        let mut best = (0, 0, 0);
        for (index, known) in texts.iter().enumerate() {
            let same = common(&known.text, text);
            let within = known.cuts.partition_point(|&(at, _)| at <= same);
            let holds = |&(at, _): &(usize, usize)| at == text.len() || cuts.is_cut(text, at);
            if let Some(last) = known.cuts[..within].iter().rposition(holds) {
                best = best.max((known.cuts[last].0, index, last));
            }
        }
        let (at, index, last) = best;
        if at == 0 {
            return Encoded::default();
        }
        let Some(known) = texts.remove(index) else { return Encoded::default() };
        let ids = known.cuts[last].1;
        let found =
            Encoded { text: text[..at].to_owned(), ids: known.ids[..ids].to_vec(), cuts: known.cuts[..=last].to_vec() };
        // The last to be dropped.
        texts.push_back(known);
        found
    }

    fn keep(&self, new: Encoded) {
        if new.bytes() > KEPT {
            return;
        }
        let mut texts = self.locked();
        // What a text begins with is known by it.
        texts.retain(|known| !new.text.starts_with(&known.text));
        texts.push_back(new);
        while texts.len() > TEXTS || texts.iter().map(Encoded::bytes).sum::<usize>() > KEPT {
            texts.pop_front();
        }
    }

    fn locked(&self) -> MutexGuard<'_, VecDeque<Encoded>> {
        // Nothing between two changes of it can panic.
        self.texts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Encoded {
    fn bytes(&self) -> usize {
        self.text.len() + size_of_val(&self.ids[..]) + size_of_val(&self.cuts[..])
    }
}

/// How many bytes two texts begin with alike.
fn common(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let blocks = a.chunks_exact(64).zip(b.chunks_exact(64)).take_while(|(a, b)| a == b).count() * 64;
    blocks + a[blocks..].iter().zip(&b[blocks..]).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests;
