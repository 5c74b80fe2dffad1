//! A prompt in chunks of the sizes that were planned.

use std::ops::Range;

/// One chunk: which tokens of the prompt, in a step of how many rows. The tokens are the last of the rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Tokens, as indices into the prompt.
    pub tokens: Range<usize>,
    /// Rows of the step.
    pub rows: usize,
}

/// Splits a prompt of `length` tokens: the largest chunks first, then the smallest that holds the rest.
///
/// # Panics
/// If no size was planned.
pub fn chunks(length: usize, sizes: &[usize]) -> Vec<Chunk> {
    let largest = *sizes.iter().max().expect("a plan has prompt steps");
    let mut chunks = Vec::new();
    let mut begin = 0;
    while begin < length {
        let rest = length - begin;
        let rows = sizes.iter().copied().filter(|&size| size >= rest).min().unwrap_or(largest);
        let end = begin + rest.min(rows);
        chunks.push(Chunk { tokens: begin..end, rows });
        begin = end;
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_the_prompt_in_order() {
        for length in [1, 31, 32, 33, 128, 129, 512, 513, 1100] {
            let chunks = chunks(length, &[32, 128, 512]);
            let mut next = 0;
            for chunk in &chunks {
                assert_eq!(chunk.tokens.start, next);
                assert!(chunk.tokens.len() <= chunk.rows && !chunk.tokens.is_empty());
                next = chunk.tokens.end;
            }
            assert_eq!(next, length);
        }
        assert_eq!(
            chunks(600, &[32, 128, 512]),
            [Chunk { tokens: 0..512, rows: 512 }, Chunk { tokens: 512..600, rows: 128 }]
        );
    }
}
