//! `router.cuh`: what a product adds to the logits of the router that reads its result, against sums in f64.

use anyhow::Result;
use fuse_kernels::{ExpertsHidden, ExpertsSum, Matvec, ROUTER_COPIES, Splits};
use fuse_tests::host_build::HostBuffer;

use crate::caught::caught;
use crate::experts::{self, hidden, sum};
use crate::matvec::{self, Case, check_all, combining};
use crate::support::*;

/// The router that reads the result of a case.
pub struct Router {
    weight: Matrix,
    norm_weight: Vec<f32>,
    packed: HostBuffer,
    norm: HostBuffer,
    logits: HostBuffer,
}

impl Router {
    pub fn new(case: &Case, random: &mut Random) -> Option<Router> {
        let Matvec { router, tiles, batch, .. } = &case.kernel;
        let (experts, rows) = ((*router)?, tiles.rows[0]);
        let weight = Matrix::of(case.kernel.router_weights(), random, experts, rows);
        let norm_weight = random.floats(rows);
        let packed = HostBuffer::input(&pack(std::slice::from_ref(&weight), false));
        let (norm, logits) =
            (HostBuffer::input(&norm_weight), HostBuffer::inout(&vec![0u64; ROUTER_COPIES * batch * experts]));
        Some(Router { weight, norm_weight, packed, norm, logits })
    }

    pub fn arguments(&self, case: &Case) -> [(&'static str, u64); 3] {
        [
            ("router", self.packed.address()),
            ("router_norm", given(case.norm_weight, &self.norm)),
            ("logits", self.logits.address()),
        ]
    }

    /// `results`: what the case makes.
    pub fn check(&self, case: &Case, results: &[f64]) -> Result<()> {
        let weight = |i: usize| if case.norm_weight { f64::from(self.norm_weight[i]) } else { 1.0 };
        let logit = |row: &[f64], expert: usize| -> f64 {
            let terms = self.weight.row(expert).iter().zip(row).enumerate();
            terms.map(|(i, (&w, y))| f64::from(w) * y * weight(i)).sum()
        };
        let expected: Vec<f64> = results
            .chunks(self.weight.columns)
            .flat_map(|row| (0..self.weight.rows).map(|expert| logit(row, expert)).collect::<Vec<f64>>())
            .collect();
        let sums = self.logits.values::<i64>()?;
        let sum_of = |at: usize| sums[at..].iter().step_by(expected.len()).sum::<i64>();
        let got: Vec<f32> = (0..expected.len()).map(|at| (sum_of(at) as f64 / 2f64.powi(32)) as f32).collect();
        compare("logits", &expected, &got, if case.kernel.combine.is_some() { Bound::Rounded } else { Bound::Exact })
    }
}

/// A product whose result a router of `experts` logits reads.
fn routed(experts: usize, k: usize, rows: usize, batch: usize) -> Matvec {
    Matvec { router: Some(experts), residual: true, ..matvec::plain(k, &[rows], batch) }
}

#[test]
fn logits_of_routers() -> Result<()> {
    let splits = Splits { max: 7, keys: 2, window: 0, merged: 1 };
    check_all(&[
        Case::of(routed(8, 64, 48, 1)),
        // Row tiles of the router that are not whole, more of them than warps; a result that is no whole number of pairs; no weights in the norm.
        Case::of(routed(70, 100, 80, 2)),
        Case { norm_weight: false, ..Case::of(Matvec { warps: 4, blocks: 9, ..routed(128, 256, 144, 1) }) },
        // Both halves of a sum, row tiles that are finished together, eight rows, the parts of a split attention.
        Case::of(Matvec { split: 2, blocks: 4, ahead: true, ..routed(40, 256, 48, 4) }),
        Case { bias: true, ..Case::of(Matvec { unit: 3, depth: 3, ..routed(20, 100, 112, 2) }) },
        Case::of(routed(6, 32, 64, 8)),
        Case::of(combining(4, splits, Matvec { late: true, ..routed(33, 40, 32, 2) })),
    ])
}

#[test]
fn in_a_router() {
    // Six units over four blocks, so that every copy of the sums is added to.
    let case = Case::of(Matvec { unit: 2, depth: 2, blocks: ROUTER_COPIES, ..routed(24, 100, 176, 2) });
    caught(
        "in_a_router",
        |mutation| case.check(mutation),
        &[
            ("ROUTER_STEPS + tile / 2)", "ROUTER_STEPS + tile)", "buffer of"),
            ("(unit * UNIT + tile) % 2", "0", "logits"),
            ("quad / 2 == half && logit", "logit", "logits"),
            ("logit < ROUTED) accumulate", "true) accumulate", "buffer of"),
            ("quad % 2 ? high : low", "low", "logits"),
            (
                "accumulate(logits + (copy * BATCH + row) * ROUTED + logit, fixed_of",
                "(logits[row * ROUTED + logit] += fixed_of",
                "race",
            ),
            ("await_copies();\n", "", "await_copies"),
            ("block_barrier();\n    add_logits", "add_logits", "shared memory"),
            ("      block_barrier();\n      copy_router", "      copy_router", "shared memory"),
            ("copy_router(slice, norm, router, router_norm, unit + teams)", "", "logits"),
            ("y * ((const float*)norm)[at]", "y", "logits"),
        ],
    );
}

#[test]
fn in_the_choice_of_one_row() {
    let case = experts::Hidden::of(ExpertsHidden { summed: true, blocks: 40, ..hidden(70, 4, 1) });
    caught(
        "in_the_choice_of_one_row",
        |mutation| case.check(mutation),
        &[
            ("copy < COPIES; copy++", "copy < COPIES - 1; copy++", "hidden"),
            ("copy * BATCH * EXPERTS", "copy * EXPERTS / 2", "hidden"),
            ("logit[e] *= rms", "logit[e] *= 1.0f", "hidden"),
            ("if (slot == blockIdx.x / TILES) load_first", "if (slot == 0) load_first", "hidden"),
            ("blockIdx.x % TILES, warp, lane);\n    });", "0, warp, lane);\n    });", "hidden"),
            ("lists[warp][slot] = expert", "lists[0][slot] = expert", "shared memory"),
        ],
    );
    let case = experts::Sum::of(ExpertsSum { summed: true, blocks: 40, ..sum(70, 4, 1) });
    caught(
        "in_the_choice_of_one_row_2",
        |mutation| case.check(mutation),
        &[
            ("if (lane == slot) own = expert", "if (lane == TOP_K - 1 - slot) own = expert", "sum"),
            ("    warp_barrier();\n  } else", "  } else", "shared memory"),
            ("shuffle_from(own, slot) < own", "0", "shared memory"),
            ("slots[warp][place] = lane", "slots[warp][place] = place", "sum"),
            ("ALONE ? slots[warp][row / BATCH]", "ALONE ? row / BATCH", "sum"),
        ],
    );
}
