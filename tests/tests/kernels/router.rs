//! `router.cuh`: what a product adds to the logits of the router that reads its result, against sums in f64.

use anyhow::Result;
use fuse_templates::Splits;
use fuse_tests::host_build::HostBuffer;

use crate::experts;
use crate::matvec::{Case, check_all};
use crate::mutations::caught;
use crate::support::*;

/// Of the sums.
pub const COPIES: usize = 3;

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
        let (weight, norm_weight) = (Matrix::random(random, case.router, case.rows[0]), random.floats(case.rows[0]));
        let packed = HostBuffer::input(&pack(std::slice::from_ref(&weight), false));
        let (norm, logits) =
            (HostBuffer::input(&norm_weight), HostBuffer::inout(&vec![0u64; COPIES * case.batch * case.router]));
        (case.router > 0).then_some(Router { weight, norm_weight, packed, norm, logits })
    }

    pub fn arguments(&self, case: &Case) -> [u64; 3] {
        [self.packed.address(), if case.norm_weight { self.norm.address() } else { 0 }, self.logits.address()]
    }

    /// `results`: what the case makes.
    pub fn check(&self, case: &Case, results: &[f64]) -> Result<()> {
        let weight = |i: usize| if case.norm_weight { f64::from(self.norm_weight[i]) } else { 1.0 };
        let logit = |row: &[f64], expert: usize| -> f64 {
            let terms = self.weight.row(expert).iter().zip(row).enumerate();
            terms.map(|(i, (&w, y))| f64::from(w) * y * weight(i)).sum()
        };
        let expected: Vec<f64> = results
            .chunks(case.rows[0])
            .flat_map(|row| (0..case.router).map(|expert| logit(row, expert)).collect::<Vec<f64>>())
            .collect();
        let sums = self.logits.values::<i64>()?;
        let sum_of = |at: usize| sums[at..].iter().step_by(expected.len()).sum::<i64>();
        let got: Vec<f32> = (0..expected.len()).map(|at| (sum_of(at) as f64 / 2f64.powi(32)) as f32).collect();
        compare("logits", &expected, &got, if case.combine.is_some() { Bound::Rounded } else { Bound::Exact })
    }
}

fn case(k: usize, rows: usize, batch: usize) -> Case {
    Case { residual: true, ..Case::new(k, &[rows], batch) }
}

#[test]
fn logits_of_routers() -> Result<()> {
    check_all(&[
        Case { router: 8, ..case(64, 48, 1) },
        // Row tiles of the router that are not whole, more of them than warps; a result that is no whole number of pairs; no weights in the norm.
        Case { router: 70, ..case(100, 80, 2) },
        Case { router: 128, norm_weight: false, warps: 4, grid: 9, ..case(256, 144, 1) },
        // Both halves of a sum, row tiles that are finished together, eight rows, the parts of a split attention.
        Case { router: 40, split: 2, ahead: true, ..case(256, 48, 4) },
        Case { router: 20, unit: 3, depth: 3, bias: true, ..case(100, 112, 2) },
        Case { router: 6, ..case(32, 64, 8) },
        Case { router: 33, late: true, combine: Some((4, Splits { max: 7, keys: 2, window: 0 })), ..case(40, 32, 2) },
    ])
}

#[test]
fn in_a_router() {
    let case = Case { router: 24, unit: 2, depth: 2, grid: 3, ..case(100, 112, 2) };
    caught(
        |mutation| case.check(mutation),
        &[
            ("ROUTER_PAIRS + tile / 2)", "ROUTER_PAIRS + tile)", "buffer of"),
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
    let case = experts::Case { copies: 3, grid: 40, ..experts::Case::new(70, 4, 1) };
    caught(
        |mutation| experts::check_hidden(&case, mutation),
        &[
            ("copy < COPIES; copy++", "copy < COPIES - 1; copy++", "hidden"),
            ("copy * BATCH * EXPERTS", "copy * EXPERTS / 2", "hidden"),
            ("logit[e] *= scale", "logit[e] *= 1.0f", "hidden"),
            ("if (slot == blockIdx.x / TILES) load_first", "if (slot == 0) load_first", "hidden"),
            ("blockIdx.x % TILES, warp, lane);\n    });", "0, warp, lane);\n    });", "hidden"),
            ("lists[warp][slot] = expert", "lists[0][slot] = expert", "shared memory"),
        ],
    );
    caught(
        |mutation| experts::check_sum(&case, mutation),
        &[
            ("if (lane == slot) own = expert", "if (lane == TOP_K - 1 - slot) own = expert", "sum"),
            ("    warp_barrier();\n  } else", "  } else", "shared memory"),
            ("shuffle_from(own, slot) < own", "0", "shared memory"),
            ("slots[warp][place] = lane", "slots[warp][place] = place", "sum"),
            ("ALONE ? slots[warp][row / BATCH]", "ALONE ? row / BATCH", "sum"),
        ],
    );
}
