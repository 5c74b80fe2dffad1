//! Buffers by lifetime: two values share bytes when one is dead before the other is made.

/// A buffer whose place is not yet known.
#[derive(Clone, Debug)]
pub struct Lifetime {
    /// Bytes.
    pub bytes: usize,
    /// The launch that writes it first.
    pub first: usize,
    /// The launch that uses it last.
    pub last: usize,
}

/// What a place starts on.
const ALIGNMENT: usize = 256;

/// A byte offset for each buffer, and the size of the whole: largest first, each at the lowest place that no contemporary takes.
pub fn place(lifetimes: &[Lifetime]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..lifetimes.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(lifetimes[i].bytes), i));
    let mut offsets = vec![0; lifetimes.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut size = 0;
    for &i in &order {
        let wanted = &lifetimes[i];
        let mut taken: Vec<(usize, usize)> = placed
            .iter()
            .filter(|&&j| lifetimes[j].first <= wanted.last && wanted.first <= lifetimes[j].last)
            .map(|&j| (offsets[j], offsets[j] + rounded(lifetimes[j].bytes)))
            .collect();
        taken.sort_unstable();
        let mut offset = 0;
        for (begin, end) in taken {
            if offset + rounded(wanted.bytes) <= begin {
                break;
            }
            offset = offset.max(end);
        }
        offsets[i] = offset;
        size = size.max(offset + rounded(wanted.bytes));
        placed.push(i);
    }
    (offsets, size)
}

fn rounded(bytes: usize) -> usize {
    bytes.div_ceil(ALIGNMENT) * ALIGNMENT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contemporaries_never_overlap_and_the_dead_are_reused() {
        let lifetimes: Vec<Lifetime> = [(1000, 0, 1), (500, 1, 2), (1000, 2, 3), (300, 3, 4), (700, 0, 4)]
            .map(|(bytes, first, last)| Lifetime { bytes, first, last })
            .to_vec();
        let (offsets, size) = place(&lifetimes);
        for i in 0..lifetimes.len() {
            for j in 0..i {
                let alive = lifetimes[i].first <= lifetimes[j].last && lifetimes[j].first <= lifetimes[i].last;
                let apart =
                    offsets[i] + lifetimes[i].bytes <= offsets[j] || offsets[j] + lifetimes[j].bytes <= offsets[i];
                assert!(!alive || apart, "{i} and {j} overlap");
            }
        }
        assert_eq!(offsets[0], offsets[2], "the third takes the place of the first");
        assert!(size < 1024 + 512 + 1024 + 512 + 768);
    }
}
