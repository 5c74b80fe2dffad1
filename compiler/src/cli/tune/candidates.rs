//! What is tried for each shape.

use std::fmt;

use super::judge::Measured;
use crate::plan::tuning::{AttentionTuning, MatvecTuning};
use crate::plan::{KernelSpec, MULTIPROCESSORS, Tuning};

/// A launch shape with the key that it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Shape {
    Matvec(MatvecTuning),
    Attention(AttentionTuning),
}

/// Registers of a multiprocessor, and about how many a thread takes besides the weights it has in flight.
const REGISTERS: usize = 65536;
const REGISTERS_BESIDES: usize = 56;

impl Shape {
    /// The shape of a kernel of a decode step, launched over `blocks` blocks; none where nothing of it is tuned.
    pub(super) fn of(spec: &KernelSpec, blocks: usize, batch: usize) -> Option<Shape> {
        let (us, default_us) = (0.0, 0.0);
        match spec {
            KernelSpec::Matvec(spec) => {
                let (k, tiles) = (spec.tiles.k, spec.tiles.count());
                Some(Shape::Matvec(MatvecTuning {
                    kind: spec.kind(),
                    k,
                    tiles,
                    batch,
                    warps: spec.warps,
                    depth: spec.depth,
                    blocks: blocks.div_ceil(MULTIPROCESSORS).max(1),
                    late: spec.late,
                    us,
                    default_us,
                }))
            }
            KernelSpec::Attention(spec) => {
                let (heads, key_heads, head_dim, window, batch) = spec.tuning_key(batch);
                let (warps, keys) = (spec.warps, spec.splits.keys);
                Some(Shape::Attention(AttentionTuning {
                    heads,
                    key_heads,
                    head_dim,
                    window,
                    batch,
                    warps,
                    keys,
                    slice: None,
                    us,
                    default_us,
                }))
            }
            _ => None,
        }
    }

    /// A record of this shape alone.
    pub(super) fn alone(&self) -> Tuning {
        let mut tuning = Tuning::default();
        match self {
            Shape::Matvec(entry) => tuning.set_matvec(entry.clone()),
            Shape::Attention(entry) => tuning.set_attention(entry.clone()),
        }
        tuning
    }

    /// Puts it into a record with what was measured, to a hundredth of a microsecond.
    pub(super) fn enter(&self, record: &mut Tuning, measured: &Measured) {
        let round = |us: f64| (us * 100.0).round() / 100.0;
        let (us, default_us) = (round(measured.us), round(measured.default_us));
        match self {
            Shape::Matvec(entry) => record.set_matvec(MatvecTuning { us, default_us, ..entry.clone() }),
            Shape::Attention(entry) => record.set_attention(AttentionTuning { us, default_us, ..entry.clone() }),
        }
    }

    /// Takes the entry of its key out of a record.
    pub(super) fn remove(&self, record: &mut Tuning) {
        match self {
            Shape::Matvec(entry) => record.matvecs.retain(|other| other.key() != entry.key()),
            Shape::Attention(entry) => record.attentions.retain(|other| other.key() != entry.key()),
        }
    }
}

/// Every shape worth trying in the place of `shape`, in a fixed order.
pub(super) fn candidates(shape: &Shape) -> Vec<Shape> {
    match shape {
        Shape::Matvec(entry) => matvecs(entry).into_iter().map(Shape::Matvec).collect(),
        Shape::Attention(entry) => attentions(entry).into_iter().map(Shape::Attention).collect(),
    }
}

/// Warps that all get a pair, depths that a warp's pairs fill within a few tiles, and no more blocks than the registers hold.
fn matvecs(entry: &MatvecTuning) -> Vec<MatvecTuning> {
    let pairs = entry.k.div_ceil(32);
    let mut found = vec![MatvecTuning { late: !entry.late, ..entry.clone() }];
    for warps in [4, 8, 16] {
        for depth in [2, 4, 6, 8, 12, 16] {
            for blocks in [1, 2, 3, 4] {
                // A pair in flight is 8 registers of each lane.
                let registers = blocks * warps * 32 * (REGISTERS_BESIDES + 8 * depth);
                let idle = warps > pairs || depth > 4 * pairs.div_ceil(warps);
                if registers <= REGISTERS && !idle && warps.is_multiple_of(entry.batch) {
                    found.push(MatvecTuning { warps, depth, blocks, ..entry.clone() });
                }
            }
        }
    }
    found.retain(|other| other != entry);
    found
}

/// A split of one, two, four or eight rounds of a block.
fn attentions(entry: &AttentionTuning) -> Vec<AttentionTuning> {
    let mut found = Vec::new();
    for warps in [4, 8, 16] {
        for rounds in [1, 2, 4, 8] {
            found.push(AttentionTuning { warps, keys: rounds * warps * 16, ..entry.clone() });
        }
    }
    // In one kernel with the projection, for few keys; 0: not so.
    found.extend([0, 1, 2, 3, 5, 6, 7, 9, 11].map(|slice| AttentionTuning { slice: Some(slice), ..entry.clone() }));
    found.retain(|other| other != entry);
    found
}

/// The key; `{:#}` is the shape.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shape::Matvec(entry) if f.alternate() => {
                let MatvecTuning { warps, depth, blocks, late, .. } = entry;
                let late = if *late { ", the next kernel late" } else { "" };
                write!(f, "{warps} warps by {depth} pairs, {blocks} to a multiprocessor{late}")
            }
            Shape::Matvec(entry) => write!(f, "{entry}"),
            Shape::Attention(AttentionTuning { warps, keys, slice, .. }) if f.alternate() => match slice {
                Some(slice) => write!(f, "{warps} warps, {keys} keys a split, {slice} row tiles a cluster"),
                None => write!(f, "{warps} warps, {keys} keys a split"),
            },
            Shape::Attention(entry) => write!(f, "{entry}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(k: usize, batch: usize) -> MatvecTuning {
        let (kind, tiles, us) = ("norm_matvec".to_owned(), 192, 0.0);
        MatvecTuning { kind, k, tiles, batch, warps: 8, depth: 8, blocks: 2, late: false, us, default_us: us }
    }

    #[test]
    fn candidates_fit_the_registers_and_give_every_warp_work() {
        let found = matvecs(&entry(2048, 1));
        assert!(found.len() > 15 && found.len() < 60, "{}", found.len());
        assert!(!found.contains(&entry(2048, 1)), "the shape itself is no candidate");
        assert!(found.iter().any(|entry| entry.warps == 16) && found.iter().any(|entry| entry.blocks == 1));
        assert!(found.iter().all(|entry| entry.blocks * entry.warps <= 36), "a multiprocessor holds them");
        let (late, small): (Vec<_>, Vec<_>) = matvecs(&entry(128, 1)).into_iter().partition(|entry| entry.late);
        assert_eq!(late, [MatvecTuning { late: true, ..entry(128, 1) }], "the shape itself, the next kernel late");
        assert!(!small.is_empty() && small.iter().all(|entry| entry.warps == 4 && entry.depth <= 4), "{small:?}");
        for shape in candidates(&Shape::Matvec(entry(2048, 8))) {
            Tuning::parse(&with_header(&shape), "candidate").expect("each is a sound entry");
        }
    }

    #[test]
    fn an_attentions_candidates_are_whole_rounds() {
        let (heads, key_heads, head_dim, window) = (32, 8, 64, 0);
        let base = AttentionTuning {
            heads,
            key_heads,
            head_dim,
            window,
            batch: 1,
            warps: 8,
            keys: 64,
            slice: None,
            us: 0.0,
            default_us: 0.0,
        };
        let found = attentions(&base);
        let (near, far): (Vec<_>, Vec<_>) = found.into_iter().partition(|entry| entry.slice.is_some());
        assert_eq!((near.len(), far.len()), (9, 12));
        assert!(far.iter().all(|entry| entry.keys % (entry.warps * 16) == 0));
        for shape in candidates(&Shape::Attention(base)) {
            Tuning::parse(&with_header(&shape), "candidate").expect("each is a sound entry");
        }
    }

    fn with_header(shape: &Shape) -> String {
        Tuning { arch: "sm_90a".into(), ..shape.alone() }.to_string()
    }
}
