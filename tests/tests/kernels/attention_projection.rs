//! `attention_projection.cu` against softmax and sums in f64.

use anyhow::{Context, Result};
use askama::Template;
use fuse_templates::{AttentionProjection, Splits, Storage, Tiles};
use fuse_tests::host_build::{HostBuffer, HostKernel};
use fusec::plan::{self, AttentionProjectionSpec, AttentionSpec, RopeTable};

use crate::attention::{self, CONTEXT, Inputs, Problem, ZEROS, check_zeros, frequencies};
use crate::support::*;

/// One attention with its projection, as the compiler may emit it.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its rows are the batch; its type is that of y.
    pub attention: attention::Case,
    /// Rows of the projection.
    pub rows: usize,
    /// Blocks that share the heads.
    pub cluster: usize,
    /// Row tiles of a cluster.
    pub slice: usize,
    /// Clusters that share the rows of x.
    pub parts: usize,
    pub bias: bool,
    pub residual: bool,
}

impl Case {
    /// Heads of the size, in clusters that share the key heads.
    pub fn new([heads, key_heads, head_dim]: [usize; 3], cluster: usize, rows: usize, slice: usize) -> Case {
        let attention = attention::Case {
            append: true,
            rope: Some((head_dim, false, 1.0)),
            rows: vec![(270, 0)],
            ..attention::Case::new(heads, key_heads, head_dim)
        };
        Case { attention, rows, cluster, slice, parts: 1, bias: false, residual: true }
    }

    /// With rows of x at these positions, each of its own sequence.
    pub fn at(self, positions: &[i32]) -> Case {
        let rows = positions.iter().enumerate().map(|(sequence, &position)| (position, sequence as i32)).collect();
        Case { attention: attention::Case { rows, ..self.attention }, ..self }
    }

    fn columns(&self) -> usize {
        self.attention.heads * self.attention.head_dim
    }

    fn batch(&self) -> usize {
        self.attention.rows.len()
    }

    pub fn source(&self) -> String {
        AttentionProjection {
            name: "kernel".into(),
            splits: self.attention.splits.clone(),
            rope: self.attention.rope_template(),
            attention: self.attention.heads_template(),
            tiles: Tiles {
                k: self.columns(),
                outputs: 1,
                rows: [self.rows, 0, 0],
                gated: false,
                out_type: self.attention.out_type,
            },
            batch: self.batch() / self.parts,
            cluster: self.cluster,
            slice: self.slice,
        }
        .render()
        .expect("the template renders")
    }

    /// As the compiler counts them.
    fn shared_bytes(&self) -> usize {
        let attention::Case { heads, key_heads, head_dim, group, warps, .. } = self.attention;
        let rope = self.attention.rope.map(|(dim, interleaved, magnitude)| RopeTable {
            dim,
            interleaved,
            magnitude,
            frequencies: frequencies(dim),
        });
        let attention = AttentionSpec {
            heads,
            key_heads,
            head_dim,
            group,
            warps,
            splits: plan::Splits { max: 1, keys: 1, window: 0 },
            chains: self.attention.chains,
            late: self.attention.late,
            scale: self.attention.scale(),
            softcap: None,
            append: true,
            norm: None,
            rope,
            sinks: false,
            out: plan::Storage::F32,
        };
        let tiles = plan::Tiles { k: self.columns(), rows: vec![self.rows], gated: false, out: plan::Storage::F32 };
        let batch = self.batch() / self.parts;
        AttentionProjectionSpec { attention, tiles, batch, cluster: self.cluster, slice: self.slice }.shared_bytes()
    }

    pub fn check(&self, mutation: Option<Mutation>) -> Result<()> {
        let kernel = build(self.source(), mutation)?;
        let (rows, batch, attention) = (self.rows, self.batch(), &self.attention);
        let mut problem = Problem::new(attention);
        let inputs = Inputs::new(attention, &problem);
        let mut random = Random(rows as u64 * 10 + batch as u64);
        let weight = Matrix::random(&mut random, rows, self.columns());
        let (bias, residual) = (random.floats(rows), random.floats(batch * rows));
        let packed = pack(std::slice::from_ref(&weight), false);

        let weights = HostBuffer::input(&packed);
        let (bias_buffer, residual_buffer) = (HostBuffer::input(&bias), HostBuffer::input(&residual));
        let size = if attention.out_type == Storage::F32 { 4 } else { 2 };
        let out = HostBuffer::output::<u8>(batch * rows * size);
        let zeros = HostBuffer::output::<f32>(ZEROS);
        let given = |present: bool, buffer: &HostBuffer| if present { buffer.address() } else { 0 };
        let mut arguments = vec![weights.address()];
        arguments.extend(inputs.arguments());
        arguments.extend([
            given(self.bias, &bias_buffer),
            given(self.residual, &residual_buffer),
            out.address(),
            CONTEXT as u64,
            zeros.address(),
            ZEROS as u64,
        ]);
        let grid = [self.cluster as u32, rows.div_ceil(16).div_ceil(self.slice) as u32, self.parts as u32];
        kernel.launch(grid, 32 * attention.warps as u32, self.shared_bytes() as u32, &arguments)?;
        check_zeros(&zeros)?;
        problem.check_caches(attention, &inputs.caches)?;

        let mut expected = Vec::new();
        for b in 0..batch {
            let x = (0..attention.heads).flat_map(|head| problem.attended(attention, b, head));
            // What the weights multiply is a bfloat16.
            let x: Vec<f64> = x.map(|value| f64::from(round(value as f32))).collect();
            expected.extend((0..rows).map(|row| {
                let product: f64 = weight.row(row).iter().zip(&x).map(|(&weight, x)| f64::from(weight) * x).sum();
                let bias = if self.bias { f64::from(bias[row]) } else { 0.0 };
                product + bias + if self.residual { f64::from(residual[b * rows + row]) } else { 0.0 }
            }));
        }
        let got = match attention.out_type {
            Storage::F32 => out.written::<f32>()?,
            Storage::BF16 => from_bf16(&out.written::<u16>()?),
        };
        compare("output", &expected, &got, Bound::Rounded)
    }
}

fn check_all(cases: &[Case]) -> Result<()> {
    let sources: Vec<(String, String)> = cases.iter().map(|case| (case.source(), "kernel".into())).collect();
    HostKernel::build_all(&sources)?;
    cases.iter().try_for_each(|case| case.check(None).with_context(|| format!("{case:?}")))
}

/// Slices of one row tile to more than there are warps, the last of them ragged or whole; shares of the results that clusters divide or not.
#[test]
fn head_sizes_clusters_and_slices() -> Result<()> {
    let group = |group, case: Case| Case { attention: attention::Case { group, ..case.attention }, ..case };
    let ordered = |case: Case| Case { attention: attention::Case { chains: 1, late: true, ..case.attention }, ..case };
    let warps = |warps, case: Case| Case { attention: attention::Case { warps, ..case.attention }, ..case };
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
        Case { parts: 4, bias: true, ..Case::new([8, 4, 32], 4, 50, 2).at(&[16, 128, -1, 31]) },
        Case { parts: 2, residual: false, ..Case::new([4, 2, 64], 2, 37, 3).at(&[5, 70, 270, 0]) },
        Case::new([2, 2, 64], 2, 16, 1).at(&[-1]),
        Case::new([2, 2, 64], 2, 16, 1).at(&[64]),
    ])
}

#[test]
fn norms_rotations_windows_caps_and_sinks() -> Result<()> {
    let with = |change: &dyn Fn(&mut attention::Case)| {
        let mut case = Case::new([6, 2, 64], 2, 37, 2).at(&[70, 3]);
        change(&mut case.attention);
        case
    };
    let window = |window| Splits { max: 1, keys: 1, window };
    check_all(&[
        with(&|case| case.rope = None),
        with(&|case| (case.norm, case.rope) = (true, Some((32, true, 1.25)))),
        with(&|case| (case.norm, case.norm_weights, case.rope) = (true, false, None)),
        with(&|case| case.splits = window(20)),
        with(&|case| (case.splits, case.softcap) = (window(1), 1.5)),
        with(&|case| case.sinks = true),
        with(&|case| (case.sinks, case.softcap, case.splits) = (true, 3.0, window(64))),
        with(&|case| case.out_type = Storage::BF16),
        // The sink alone weighs where there are no keys.
        with(&|case| (case.sinks, case.rows) = (true, vec![(-1, 1), (9, 0)])),
    ])
}
