//! Planted mistakes in what only experts with biases and bounds have.

use fuse_kernels::{Activation, ExpertsHidden, ExpertsSum, Gather, Matmul, Route, Scoring};

use crate::caught::caught;
use crate::experts::{BOUNDED, Hidden, Rows, Sum, hidden, inside, route, sum};
use crate::support::tiles;

#[test]
fn in_bounds_and_biases_of_insides() {
    let case = Hidden::of(ExpertsHidden { gating: BOUNDED, biased: true, ..hidden(40, 3, 4) });
    caught(
        "in_bounds_and_biases_of_insides",
        |mutation| case.check(mutation),
        &[
            ("list[item / TILES] * TILES + item % TILES) * 16", "item % TILES) * 16", "hidden"),
            ("item % TILES) * 16 + lane % 16", "item % TILES) * 16 + lane % 8", "hidden"),
            ("gate > LIMIT ? LIMIT : gate", "gate", "hidden"),
            ("up > LIMIT ? LIMIT : up <", "up <", "hidden"),
            ("up < -LIMIT ? -LIMIT : up", "up", "hidden"),
            ("SLOPE * gate", "gate", "hidden"),
            (") / SLOPE", ")", "hidden"),
            ("up + OFFSET", "up", "hidden"),
        ],
    );
}

#[test]
fn in_biases_of_a_sum() {
    let case = Sum::of(ExpertsSum { biased: true, split: 2, blocks: 6, ..sum(40, 3, 4) });
    caught(
        "in_biases_of_a_sum",
        |mutation| case.check(mutation),
        &[
            ("writes && rank == 0 && i < count", "writes && i < count", "sum"),
            ("* TILES + tile) * 16 + lane]", "* TILES) * 16 + lane]", "sum"),
            ("((u64)lists[warp][i] * TILES", "((u64)0 * TILES", "sum"),
            ("shares[warp][32 * w + lane] = share[w]", "shares[warp][32 * w + lane] = 1.0f", "sum"),
        ],
    );
}

#[test]
fn in_biases_of_many_rows() {
    let biased = |mut case: Rows| {
        let gather = case.product.gather.map(|gather| Gather { biased: true, ..gather });
        case.product = Matmul { gather, ..case.product };
        case
    };
    let mut case = biased(Rows::inside(route(40, 3), inside(70, 43), Activation::Silu, 70, 1));
    case.product.gating = BOUNDED;
    caught(
        "in_biases_of_many_rows",
        |mutation| case.check([None, mutation]),
        &[
            ("bias += (u64)blockIdx.z * TILES * 16;", "", "product"),
            ("gated(low, high)", "gated(high, low)", "product"),
        ],
    );
    let case = biased(Rows::by_pair(route(40, 3), tiles(43, &[37]), 70, 1));
    caught(
        "in_biases_of_many_rows_2",
        |mutation| case.check([None, mutation]),
        &[
            ("share * bias[tile * 16 + group];", "bias[tile * 16 + group];", "product"),
            ("share * bias[tile * 16 + group + 8]", "share * bias[tile * 16 + group]", "product"),
        ],
    );
}

#[test]
fn in_groups_of_experts() {
    let route = Route { groups: Some([8, 3]), biased: true, scoring: Scoring::Sigmoid, ..route(120, 10) };
    let case = Hidden::of(ExpertsHidden { route, ..hidden(120, 10, 4) });
    caught(
        "in_groups_of_experts",
        |mutation| case.check(mutation),
        &[
            ("e / GROUP_SIZE == g && ", "", "not written"),
            (" && e != taken", "", "buffer of"),
            ("if (lane == g) own = score", "own = score", "not written"),
            ("if (lane == first) order = LEAST", "", "buffer of"),
            ("& 1)) order[w] = LEAST", "& 1)) order[w] = order[w]", "not written"),
        ],
    );
}
