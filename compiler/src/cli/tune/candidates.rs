//! What is tried for each shape.

use std::fmt;

use super::judge::Measured;
use crate::plan::kernels::{KernelSpec, TuningKey};
use crate::plan::tuning::{AttentionTuning, MatvecTuning};
use crate::plan::{MULTIPROCESSORS, Tuning};

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
        let (warps, depth, late) = match spec {
            KernelSpec::Matvec(spec) => (spec.warps, spec.depth, spec.late),
            KernelSpec::ExpertsHidden(spec) => (spec.warps, spec.depth, false),
            KernelSpec::ExpertsSum(spec) => (spec.warps, spec.depth, spec.late),
            KernelSpec::Attention(spec) => (spec.attention.warps, spec.attention.splits.keys, spec.attention.late),
            _ => return None,
        };
        Some(match spec.family().tuning(batch)? {
            TuningKey::Product(kind, k, tiles, batch) => {
                let key = MatvecTuning { kind, k, tiles, batch, ..MatvecTuning::default() };
                let blocks = blocks.div_ceil(MULTIPROCESSORS).max(1);
                Shape::Matvec(MatvecTuning { warps, depth, blocks, late, ..key })
            }
            TuningKey::Attention(heads, key_heads, head_dim, window, batch) => {
                let key = AttentionTuning { heads, key_heads, head_dim, window, batch, ..AttentionTuning::default() };
                Shape::Attention(AttentionTuning { warps, keys: depth, late, ..key })
            }
        })
    }

    /// A record with this shape in the place of its key's.
    pub(super) fn beside(&self, record: &Tuning) -> Tuning {
        let mut tuning = record.clone();
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

    /// What a record has for its key.
    pub(super) fn entered(&self, record: &Tuning) -> Option<Shape> {
        match self {
            Shape::Matvec(entry) => {
                record.matvecs.iter().find(|other| other.key() == entry.key()).cloned().map(Shape::Matvec)
            }
            Shape::Attention(entry) => {
                record.attentions.iter().find(|other| other.key() == entry.key()).cloned().map(Shape::Attention)
            }
        }
    }
}

/// Shapes to begin with, all at once.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
    /// What the record has for fewer rows.
    FewerRows,
    /// What it has, each trigger after its wait.
    Late,
}

impl Start {
    /// The shapes, of which some may be what they are anyway.
    pub(super) fn of(self, shapes: &[Shape], record: &Tuning) -> Vec<Shape> {
        let now = |shape: &Shape| shape.entered(record).unwrap_or_else(|| shape.clone());
        match self {
            Start::FewerRows => shapes.iter().filter_map(|shape| shape.of_fewer_rows(record)).collect(),
            Start::Late => shapes.iter().map(|shape| now(shape).late()).collect(),
        }
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Start::FewerRows => "as with fewer rows",
            Start::Late => "each next kernel late",
        })
    }
}

impl Shape {
    fn late(self) -> Shape {
        match self {
            Shape::Matvec(entry) => Shape::Matvec(MatvecTuning { late: true, ..entry }),
            Shape::Attention(entry) => Shape::Attention(AttentionTuning { late: true, ..entry }),
        }
    }

    /// What the record has for the most rows below this shape's, if it fits its rows, too.
    fn of_fewer_rows(&self, record: &Tuning) -> Option<Shape> {
        (0..3).rev().map(|shift| 1 << shift).find_map(|rows| match self {
            Shape::Matvec(own) => {
                let batch = own.batch;
                let key = MatvecTuning { batch: rows, ..own.clone() }.key();
                let entry = record.product(&key).filter(|_| rows < batch)?;
                entry.warps.is_multiple_of(batch).then(|| Shape::Matvec(MatvecTuning { batch, ..entry.clone() }))
            }
            Shape::Attention(own) => {
                let batch = own.batch;
                let key = AttentionTuning { batch: rows, ..own.clone() }.key();
                let entry = record.attention(&key).filter(|_| rows < batch)?;
                // A cluster has as many rows as it had.
                let near_rows = entry.near_rows.or(entry.slice.map(|_| rows));
                Some(Shape::Attention(AttentionTuning { batch, near_rows, ..entry.clone() }))
            }
        })
    }
}

/// Every shape worth trying in the place of `shape`, in a fixed order.
pub(super) fn candidates(shape: &Shape) -> Vec<Shape> {
    match shape {
        Shape::Matvec(entry) => matvecs(entry).into_iter().map(Shape::Matvec).collect(),
        Shape::Attention(entry) => attentions(entry).into_iter().map(Shape::Attention).collect(),
    }
}

/// Warps that all get a step, depths that a warp's steps fill within a few tiles, and no more blocks than the registers hold.
fn matvecs(entry: &MatvecTuning) -> Vec<MatvecTuning> {
    let steps = entry.packed().steps(entry.k);
    let mut found = vec![MatvecTuning { late: !entry.late, ..entry.clone() }];
    found.extend([false, true].map(|ahead| MatvecTuning { ahead: Some(ahead), ..entry.clone() }));
    let units = |depth: usize| {
        let held =
            [1, 2, 3, 4].into_iter().filter(move |&unit| !entry.packed().is_whole() && depth.is_multiple_of(unit));
        held.map(Some).chain([None])
    };
    for warps in [4, 8, 16] {
        for depth in [1, 2, 3, 4, 6, 8, 12, 16] {
            for blocks in [1, 2, 3, 4] {
                let registers = blocks * warps * 32 * (REGISTERS_BESIDES + entry.packed().registers * depth);
                let idle = warps > steps || depth > 4 * steps.div_ceil(warps);
                if registers <= REGISTERS && !idle && warps.is_multiple_of(entry.batch) {
                    found.extend(units(depth).map(|unit| MatvecTuning { warps, depth, blocks, unit, ..entry.clone() }));
                }
            }
        }
    }
    found.retain(|other| other != entry);
    found
}

/// A split of one, two, four or eight rounds of a block; and what few keys have for themselves.
fn attentions(entry: &AttentionTuning) -> Vec<AttentionTuning> {
    let mut found = Vec::new();
    for warps in [4, 8, 16] {
        for rounds in [1, 2, 4, 8] {
            found.push(AttentionTuning { warps, keys: rounds * warps * 16, ..entry.clone() });
        }
    }
    found.push(AttentionTuning { late: !entry.late, ..entry.clone() });
    found.extend([1, 2].map(|chains| AttentionTuning { chains: Some(chains), ..entry.clone() }));
    // One cluster, and several whose results are combined.
    for (splits, merged) in [(3, 3), (5, 5), (6, 6), (8, 8), (12, 6), (16, 8), (24, 8), (28, 4), (32, 2), (32, 1)] {
        let (splits, merged) = (Some(splits), Some(merged));
        for (held, warps) in [(1, 4), (2, 4), (3, 4), (1, 8), (2, 8), (4, 8)] {
            found.push(AttentionTuning { splits, merged, held: Some(held), warps, keys: 16 * warps, ..entry.clone() });
        }
    }
    found.extend([4, 8, 16].map(|warps| AttentionTuning { near_warps: Some(warps), ..entry.clone() }));
    found.extend((1..=8).map(|group| AttentionTuning { near_group: Some(group), ..entry.clone() }));
    // In one kernel with the projection; 0: not so.
    for slice in [0, 1, 2, 3, 5, 6, 7, 9, 11] {
        let slice = AttentionTuning { slice: Some(slice), ..entry.clone() };
        for rows in (0..4).map(|shift| 1 << shift).filter(|&rows| rows < entry.batch) {
            found.push(AttentionTuning { near_rows: Some(rows), ..slice.clone() });
        }
        found.push(AttentionTuning { near_rows: None, ..slice.clone() });
        found.push(AttentionTuning { near_rows: None, near_warps: Some(16), ..slice.clone() });
        found.push(AttentionTuning { late: !entry.late, ..slice });
    }
    found.retain(|other| other != entry);
    found
}

/// The key; `{:#}` is the shape.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shape::Matvec(entry) if f.alternate() => {
                let MatvecTuning { warps, depth, blocks, late, ahead, unit, .. } = entry;
                write!(f, "{warps} warps by {depth} steps, {blocks} to a multiprocessor{}", if_late(*late))?;
                unit.map_or(Ok(()), |unit| write!(f, ", {unit} row tiles at once"))?;
                match ahead {
                    Some(true) => write!(f, ", addends before the products"),
                    Some(false) => write!(f, ", addends after the products"),
                    None => Ok(()),
                }
            }
            Shape::Matvec(entry) => write!(f, "{entry}"),
            Shape::Attention(entry) if f.alternate() => {
                let AttentionTuning { warps, keys, slice, near_warps, near_rows, near_group, chains, late, .. } = entry;
                let (splits, merged, held) = (&entry.splits, &entry.merged, &entry.held);
                write!(f, "{warps} warps, {keys} keys per split{}", if_late(*late))?;
                let options = [
                    (slice, "row tiles per cluster"),
                    (near_warps, "warps for few keys"),
                    (near_rows, "rows per cluster"),
                    (near_group, "query heads per block for few keys"),
                    (chains, "sums of a product"),
                    (splits, "splits at most"),
                    (merged, "splits per cluster"),
                    (held, "tiles in flight per warp"),
                ];
                options
                    .iter()
                    .try_for_each(|(option, what)| option.map_or(Ok(()), |count| write!(f, ", {count} {what}")))
            }
            Shape::Attention(entry) => write!(f, "{entry}"),
        }
    }
}

fn if_late(late: bool) -> &'static str {
    if late { ", the next kernel late" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{CompileOptions, compile};
    use crate::description::{Description, find_for};
    use crate::plan::{Launch, PlanOptions, StepKind};

    fn entry(k: usize, batch: usize) -> MatvecTuning {
        let (kind, tiles) = ("norm_matvec".to_owned(), 192);
        MatvecTuning { kind, k, tiles, batch, warps: 8, depth: 8, blocks: 2, ..MatvecTuning::default() }
    }

    #[test]
    fn candidates_fit_the_registers_and_give_every_warp_work() {
        let found = matvecs(&entry(2048, 1));
        assert!(found.len() > 15 && found.len() < 60, "{}", found.len());
        assert!(!found.contains(&entry(2048, 1)), "the shape itself is no candidate");
        assert!(found.iter().any(|entry| entry.warps == 16) && found.iter().any(|entry| entry.blocks == 1));
        assert!(found.iter().all(|entry| entry.blocks * entry.warps <= 36), "a multiprocessor holds them");
        let (same, small): (Vec<_>, Vec<_>) =
            matvecs(&entry(128, 1)).into_iter().partition(|entry| entry.late || entry.ahead.is_some());
        let ahead = [false, true].map(|ahead| MatvecTuning { ahead: Some(ahead), ..entry(128, 1) });
        let late = MatvecTuning { late: true, ..entry(128, 1) };
        assert_eq!(same, [vec![late], ahead.to_vec()].concat(), "the shape itself, in another order of its work");
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
            keys: 384,
            ..AttentionTuning::default()
        };
        let found = attentions(&base);
        let of_both = |entry: &&AttentionTuning| entry.slice.is_none() && (entry.late || entry.chains.is_some());
        assert_eq!(found.iter().filter(of_both).count(), 3);
        let is_near = |entry: &&AttentionTuning| {
            [entry.slice, entry.near_warps, entry.near_rows, entry.near_group].iter().any(|option| option.is_some())
        };
        assert_eq!((found.len(), found.iter().filter(is_near).count()), (12 + 3 + 60 + 38, 38));
        assert!(found.iter().all(|entry| entry.keys % (entry.warps * 16) == 0));
        for shape in candidates(&Shape::Attention(base)) {
            Tuning::parse(&with_header(&shape), "candidate").expect("each is a sound entry");
        }
    }

    /// Shapes of a family's decode step, as the heuristics choose them.
    fn shapes(architecture: &str, batch: usize) -> Vec<Shape> {
        let (file, text) = find_for(&[architecture]).expect("it is shipped");
        let description = Description::parse(text, file).expect("a shipped description");
        let plan = PlanOptions { batches: vec![batch], prompts: Vec::new(), ..PlanOptions::default() };
        let model = compile(&description, None, &CompileOptions { plan, ..CompileOptions::default() });
        let plan = model.expect("it compiles").plan;
        let step = plan.step(StepKind::Decode { batch }).expect("a decode step");
        let of = |launch: &Launch| Shape::of(&plan.kernels[launch.kernel].spec, launch.grid[0] as usize, batch);
        step.launches.iter().filter_map(of).collect()
    }

    #[test]
    fn what_is_begun_with_is_a_sound_record() {
        for architecture in ["LlamaForCausalLM", "Qwen3MoeForCausalLM"] {
            let mut record = Tuning { arch: "sm_90a".into(), ..Tuning::default() };
            for batch in [1, 2, 4] {
                let shapes = shapes(architecture, batch);
                assert_eq!(Start::FewerRows.of(&shapes, &record).is_empty(), batch == 1);
                for start in [Start::FewerRows, Start::Late] {
                    record = start.of(&shapes, &record).iter().fold(record, |record, shape| shape.beside(&record));
                    Tuning::parse(&record.to_string(), "begun").expect("each is a sound entry");
                }
                assert!(shapes.iter().all(|shape| shape.entered(&record).is_some()));
            }
        }
        let attention = |batch, slice, near_rows| {
            let entry = AttentionTuning {
                heads: 9,
                key_heads: 3,
                head_dim: 64,
                warps: 8,
                keys: 256,
                ..AttentionTuning::default()
            };
            Shape::Attention(AttentionTuning { batch, slice, near_rows, ..entry })
        };
        let record = attention(1, Some(5), None).beside(&Tuning::default());
        let begun = Start::FewerRows.of(&[attention(4, None, None)], &record);
        assert_eq!(begun, [attention(4, Some(5), Some(1))], "a cluster for each row, as it was");
    }

    fn with_header(shape: &Shape) -> String {
        Tuning { arch: "sm_90a".into(), ..shape.beside(&Tuning::default()) }.to_string()
    }
}
