//! `attention_projection.cu` against softmax and sums in f64.

use anyhow::Result;
use fuse_kernels::{AttentionProjection, Heads, Splits, Storage, Tiles};
use fuse_tests::host_build::HostBuffer;

use crate::attention::{Inputs, NORM, Problem, ZEROS, appending, check_zeros, rotation};
use crate::support::*;

/// One attention with its projection, as the compiler may emit it.
#[derive(Clone, Debug)]
pub struct Case {
    pub kernel: AttentionProjection,
    /// The norms of q and k have weights; under `norm`.
    pub norm_weights: bool,
    /// Position and sequence of each row of x; -1: it has no keys.
    pub rows: Vec<(i32, i32)>,
    pub bias: bool,
    pub residual: bool,
}

impl Case {
    /// Heads of the size, in clusters that share the key heads.
    pub fn new([heads, key_heads, head_dim]: [usize; 3], cluster: usize, rows: usize, slice: usize) -> Case {
        let rope = Some(rotation(head_dim, false, 1.0));
        let attention = Heads { rope, ..appending(heads, key_heads, head_dim) };
        let tiles = tiles(heads * head_dim, &[rows]);
        let kernel = AttentionProjection { attention, tiles, batch: 1, cluster, slice };
        Case { kernel, norm_weights: true, rows: vec![(270, 0)], bias: false, residual: true }
    }

    /// With rows of x at these positions, each of its own sequence, all of them in one cluster.
    pub fn at(mut self, positions: &[i32]) -> Case {
        self.rows = positions.iter().enumerate().map(|(row, &position)| (position, row as i32)).collect();
        self.kernel.batch = positions.len();
        self
    }

    /// With this many clusters that share the rows of x.
    fn shared_by(mut self, clusters: usize) -> Case {
        self.kernel.batch = self.rows.len() / clusters;
        self
    }

    /// With heads that are changed.
    fn with(mut self, change: impl Fn(&mut Heads)) -> Case {
        change(&mut self.kernel.attention);
        self
    }

    pub fn check(&self, mutation: Option<Mutation>) -> Result<()> {
        let kernel = build(&self.kernel, mutation)?;
        let AttentionProjection { attention, tiles, .. } = &self.kernel;
        let Tiles { k, out: storage, .. } = *tiles;
        let (rows, batch) = (tiles.rows[0], self.rows.len());
        let mut problem = Problem::new(attention, self.norm_weights, &self.rows);
        let inputs = Inputs::new(&problem);
        let mut random = Random(rows as u64 * 10 + batch as u64);
        let weight = Matrix::of(tiles.weights, &mut random, rows, k);
        let (bias, residual) = (random.floats(rows), random.floats(batch * rows));
        let packed = pack(std::slice::from_ref(&weight), false);

        let weights = HostBuffer::input(&packed);
        let (bias_buffer, residual_buffer) = (HostBuffer::input(&bias), HostBuffer::input(&residual));
        let out = room(batch * rows, storage);
        let zeros = HostBuffer::output::<f32>(ZEROS);
        let mut arguments = inputs.arguments();
        arguments.extend([("weights", weights.address()), ("out", out.address())]);
        arguments.extend([("bias", given(self.bias, &bias_buffer))]);
        arguments.extend([("residual", given(self.residual, &residual_buffer))]);
        arguments.extend([("zeros", zeros.address()), ("zero_count", ZEROS as u64)]);
        kernel.launch(batch, &arguments)?;
        check_zeros(&zeros)?;
        problem.check_caches(&inputs.caches)?;

        let mut expected = Vec::new();
        for b in 0..batch {
            let x = (0..attention.heads).flat_map(|head| problem.attended(b, head));
            let x: Vec<f64> = x.map(|value| round_operand(tiles.weights, value)).collect();
            expected.extend((0..rows).map(|row| {
                let product: f64 = weight.row(row).iter().zip(&x).map(|(&weight, x)| f64::from(weight) * x).sum();
                let bias = if self.bias { f64::from(bias[row]) } else { 0.0 };
                product + bias + if self.residual { f64::from(residual[b * rows + row]) } else { 0.0 }
            }));
        }
        compare("output", &expected, &written(&out, storage)?, Bound::Rounded)
    }
}

fn check_all(cases: &[Case]) -> Result<()> {
    check_each(cases, |case| &case.kernel, |case| case.check(None))
}

/// Slices of one row tile to more than there are warps, the last of them ragged or whole; shares of the results that clusters divide or not.
#[test]
fn head_sizes_clusters_and_slices() -> Result<()> {
    let group = |group, case: Case| case.with(|heads| heads.group = group);
    let warps = |warps, case: Case| case.with(|heads| heads.warps = warps);
    let ordered = |case: Case| case.with(|heads| (heads.chains, heads.late) = (1, true));
    check_all(&[
        Case::new([4, 2, 64], 2, 70, 2),
        Case::new([4, 4, 64], 4, 37, 1).at(&[40, 3]),
        Case::new([9, 3, 64], 3, 33, 1),
        Case { bias: true, ..Case::new([8, 2, 24], 2, 90, 5) },
        ordered(warps(8, Case { residual: false, ..Case::new([14, 2, 64], 2, 48, 3) })),
        Case::new([16, 2, 24], 2, 20, 4),
        Case::new([4, 2, 128], 2, 37, 3).at(&[100, 17]),
        // Two groups share a key head, and two key heads are a block's.
        group(2, Case::new([16, 4, 24], 2, 37, 2)),
        warps(1, Case::new([2, 2, 32], 1, 16, 1)),
    ])
}

/// Rows without keys, with the newest alone, at a tile's end and over several rounds, and more jobs than warps.
#[test]
fn positions() -> Result<()> {
    check_all(&[
        Case { bias: true, ..Case::new([4, 2, 64], 2, 37, 2).at(&[0, -1]) },
        Case::new([4, 4, 32], 2, 37, 2).at(&[270, -1, 0, 15]),
        Case::new([8, 4, 32], 4, 50, 2).at(&[16, 128, 1, 31]),
        // Clusters that have rows of x to themselves.
        Case { bias: true, ..Case::new([8, 4, 32], 4, 50, 2).at(&[16, 128, -1, 31]).shared_by(4) },
        Case { residual: false, ..Case::new([4, 2, 64], 2, 37, 3).at(&[5, 70, 270, 0]).shared_by(2) },
        Case::new([2, 2, 64], 2, 16, 1).at(&[-1]),
        Case::new([2, 2, 64], 2, 16, 1).at(&[64]),
    ])
}

#[test]
fn norms_rotations_windows_caps_and_sinks() -> Result<()> {
    let case = || Case::new([6, 2, 64], 2, 37, 2).at(&[70, 3]);
    let with = |change: fn(&mut Heads)| case().with(change);
    let stored = AttentionProjection { tiles: Tiles { out: Storage::BF16, ..case().kernel.tiles }, ..case().kernel };
    check_all(&[
        with(|heads| heads.rope = None),
        with(|heads| (heads.norm, heads.rope) = (NORM, Some(rotation(32, true, 1.25)))),
        Case { norm_weights: false, ..with(|heads| (heads.norm, heads.rope) = (NORM, None)) },
        with(|heads| heads.splits = window(20)),
        with(|heads| (heads.splits, heads.softcap) = (window(1), Some(1.5))),
        with(|heads| heads.sinks = true),
        with(|heads| (heads.sinks, heads.softcap, heads.splits) = (true, Some(3.0), window(64))),
        Case { kernel: stored, ..case() },
        // The sink alone weighs where there are no keys.
        Case { rows: vec![(-1, 1), (9, 0)], ..with(|heads| heads.sinks = true) },
    ])
}

fn window(window: usize) -> Splits {
    Splits { max: 1, keys: 1, window, merged: 1 }
}
