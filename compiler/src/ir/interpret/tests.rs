use super::*;
use crate::ir::*;

/// The results of one op on operands given with their shapes.
fn results(op: Op, operands: &[(&[usize], &[f32])], shapes: &[&[usize]]) -> Vec<Vec<f32>> {
    let tensors: Vec<Tensor> = operands.iter().map(|(shape, data)| Tensor::new(*shape, *data)).collect();
    let shapes: Vec<Vec<usize>> = shapes.iter().map(|shape| shape.to_vec()).collect();
    let results = evaluate(&op, &tensors.iter().collect::<Vec<_>>(), &shapes).expect("the op computes");
    for (result, shape) in results.iter().zip(&shapes) {
        assert_eq!(result.shape, *shape);
    }
    results.into_iter().map(|result| result.data).collect()
}

#[track_caller]
fn near(found: &[f32], expected: &[f32]) {
    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 2e-6 * b.abs().max(1.0);
    assert!(found.len() == expected.len() && found.iter().zip(expected).all(close), "{found:?} is not {expected:?}");
}

fn rms(eps: f32) -> Norm {
    Norm { kind: NormKind::Rms, eps, offset: 0.0, weight: true, bias: false }
}

fn rope(theta: f64, dim: usize) -> Rope {
    Rope { theta, dim, interleaved: false, scaling: RopeScaling::None }
}

#[test]
fn embedding_looks_rows_up() {
    let table: (&[usize], &[f32]) = (&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let found = results(Op::Embedding, &[(&[2], &[2.0, 0.0]), table], &[&[2, 2]]);
    near(&found[0], &[5.0, 6.0, 1.0, 2.0]);
    for id in [3.0, -1.0] {
        let (ids, table) = (Tensor::new([1], [id]), Tensor::new(table.0, table.1));
        let error = evaluate(&Op::Embedding, &[&ids, &table], &[vec![1, 2]]).expect_err("no such row");
        assert_eq!(error.to_string(), format!("the id {id} is outside the table of 3 rows"));
    }
}

#[test]
fn norms_with_offset_and_bias() {
    // mean square (9 + 16) / 2 = 12.5; with eps 12.5 the divisor is 5.
    let norm = rms(12.5);
    near(&results(Op::Norm(norm.clone()), &[(&[1, 2], &[3.0, 4.0]), (&[2], &[10.0, 1.0])], &[&[1, 2]])[0], &[6.0, 0.8]);
    let offset = Norm { offset: 1.0, ..norm.clone() };
    near(&results(Op::Norm(offset), &[(&[1, 2], &[3.0, 4.0]), (&[2], &[10.0, 1.0])], &[&[1, 2]])[0], &[6.6, 1.6]);
    let bare = Norm { weight: false, ..norm.clone() };
    near(&results(Op::Norm(bare), &[(&[1, 2], &[3.0, 4.0])], &[&[1, 2]])[0], &[0.6, 0.8]);
    // mean 4, variance 1; with eps 3 the divisor is 2. Each row of the last axis is normalised by itself.
    let layer = Norm { kind: NormKind::Layer, eps: 3.0, bias: true, ..norm };
    let operands: [(&[usize], &[f32]); 3] =
        [(&[1, 2, 2], &[3.0, 5.0, 13.0, 15.0]), (&[2], &[2.0, 4.0]), (&[2], &[0.5, 0.25])];
    near(&results(Op::Norm(layer), &operands, &[&[1, 2, 2]])[0], &[-0.5, 2.25, -0.5, 2.25]);
}

#[test]
fn rope_halves_pairs_and_passes_the_rest() {
    // Two pairs: frequencies 1 and 100^(-2/4) = 0.1. Positions 2 and 0.
    let x: (&[usize], &[f32]) = (&[2, 1, 5], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]);
    let positions: (&[usize], &[f32]) = (&[2], &[2.0, 0.0]);
    let (c0, s0, c1, s1) = (2f32.cos(), 2f32.sin(), 0.2f32.cos(), 0.2f32.sin());
    let half = results(Op::Rope(rope(100.0, 4)), &[x, positions], &[&[2, 1, 5]]);
    let turned = [c0 - 3.0 * s0, 2.0 * c1 - 4.0 * s1, 3.0 * c0 + s0, 4.0 * c1 + 2.0 * s1, 5.0];
    near(&half[0][..5], &turned);
    near(&half[0][5..], &x.1[5..]);
    let interleaved = Rope { interleaved: true, ..rope(100.0, 4) };
    let found = results(Op::Rope(interleaved), &[x, positions], &[&[2, 1, 5]]);
    near(&found[0][..5], &[c0 - 2.0 * s0, 2.0 * c0 + s0, 3.0 * c1 - 4.0 * s1, 4.0 * c1 + 3.0 * s1, 5.0]);
    // Magnitude 2, and the one frequency 1 divided by 4.
    let scaling = RopeScaling::LongRope { factors: vec![4.0], attention_factor: 2.0 };
    let found = results(
        Op::Rope(Rope { scaling, ..rope(100.0, 2) }),
        &[(&[1, 1, 2], &[1.0, 0.0]), (&[1], &[2.0])],
        &[&[1, 1, 2]],
    );
    near(&found[0], &[2.0 * 0.5f32.cos(), 2.0 * 0.5f32.sin()]);
}

#[test]
fn append_replaces_rows_and_leaves_the_old_cache() {
    let cache = Tensor::new([3, 1, 2], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let (x, positions) = (Tensor::new([2, 1, 2], [7.0, 8.0, 9.0, 10.0]), Tensor::ints(&[2, 0]));
    let found = evaluate(&Op::KvAppend, &[&cache, &x, &positions], &[vec![3, 1, 2]]).expect("it fits");
    near(&found[0].data, &[9.0, 10.0, 3.0, 4.0, 7.0, 8.0]);
    let error = evaluate(&Op::KvAppend, &[&cache, &x, &Tensor::ints(&[1, 3])], &[vec![3, 1, 2]]).expect_err("no room");
    assert_eq!(error.to_string(), "the position 3 is outside the cache of 3");
}

#[test]
fn sums_products_scales_caps_shapes_and_samples() {
    let a: (&[usize], &[f32]) = (&[1, 2], &[1.0, -2.0]);
    let b: (&[usize], &[f32]) = (&[1, 2], &[3.0, 5.0]);
    near(&results(Op::Add, &[a, b], &[&[1, 2]])[0], &[4.0, 3.0]);
    near(&results(Op::Mul, &[a, b], &[&[1, 2]])[0], &[3.0, -10.0]);
    near(&results(Op::Scale(0.5), &[a], &[&[1, 2]])[0], &[0.5, -1.0]);
    near(&results(Op::Softcap(2.0), &[a], &[&[1, 2]])[0], &[0.924_234_3, -1.523_188_3]);
    near(&results(Op::Clamp(1.5), &[a], &[&[1, 2]])[0], &[1.0, -1.5]);
    near(&results(Op::Reshape, &[(&[1, 4], &[1.0, 2.0, 3.0, 4.0])], &[&[1, 2, 2]])[0], &[1.0, 2.0, 3.0, 4.0]);
    // The first of equals wins, and row by row.
    near(&results(Op::Sample, &[(&[2, 3], &[1.0, 4.0, 4.0, -3.0, -5.0, -4.0])], &[&[2]])[0], &[1.0, 0.0]);
}

#[test]
fn routes_choose_the_largest_and_experts_add_up_by_their_shares() {
    let logits: (&[usize], &[f32]) = (&[2, 3], &[0.0, 2f32.ln(), 2f32.ln(), 1.0, 0.0, -1.0]);
    let route = |scoring, normalise, scale| {
        Op::Route(Route { top_k: 2, scoring, bias: false, normalise, scale, groups: None, expert_scale: false })
    };
    let shapes: [&[usize]; 2] = [&[2, 2], &[2, 2]];
    let plain = results(route(Scoring::Softmax, false, 1.0), &[logits], &shapes);
    // The first of equals comes first.
    near(&plain[0], &[1.0, 2.0, 0.0, 1.0]);
    near(&plain[1][..2], &[0.4, 0.4]);
    near(&results(route(Scoring::Softmax, true, 3.0), &[logits], &shapes)[1][..2], &[1.5, 1.5]);
    let sigmoid = results(route(Scoring::Sigmoid, false, 1.0), &[logits], &shapes);
    near(&sigmoid[1], &[2.0 / 3.0, 2.0 / 3.0, 0.731_058_6, 0.5]);

    // A bias makes another choice, best first, and leaves the shares: scores are 1/2, 2/3, 2/3 and 0.731, 1/2, 0.269.
    let bias: (&[usize], &[f32]) = (&[3], &[0.2, -0.1, 0.0]);
    let plain = |scoring, normalise| Route {
        top_k: 2,
        scoring,
        bias: true,
        normalise,
        scale: 3.0,
        groups: None,
        expert_scale: false,
    };
    let biased = |scoring, normalise| Op::Route(plain(scoring, normalise));
    let found = results(biased(Scoring::Sigmoid, false), &[logits, bias], &shapes);
    near(&found[0], &[0.0, 2.0, 0.0, 1.0]);
    near(&found[1], &[1.5, 2.0, 3.0 * 0.731_058_6, 1.5]);
    let found = results(biased(Scoring::Sigmoid, true), &[logits, bias], &shapes);
    near(&found[1][..2], &[9.0 / 7.0, 12.0 / 7.0]);
    // Two groups of two: with a bias the second is better by its sum, though the first has the best.
    let four: (&[usize], &[f32]) = (&[1, 4], &[2.0, -9.0, 1.0, 1.0]);
    let groups = |bias| Op::Route(Route { groups: Some([2, 1]), bias, scale: 1.0, ..plain(Scoring::Sigmoid, false) });
    let shapes_of_four: [&[usize]; 2] = [&[1, 2], &[1, 2]];
    near(&results(groups(true), &[four, (&[4], &[0.0; 4])], &shapes_of_four)[0], &[2.0, 3.0]);
    near(&results(groups(false), &[four], &shapes_of_four)[0], &[0.0, 1.0]);
    // Expert 0 counts twice, expert 2 by half.
    let scaled = Op::Route(Route { expert_scale: true, ..plain(Scoring::Sigmoid, true) });
    let found = results(scaled, &[logits, bias, (&[3], &[2.0, 1.0, 0.5])], &shapes);
    near(&found[1][..2], &[2.0 * 9.0 / 7.0, 0.5 * 12.0 / 7.0]);
    // Softmaxes of the first row are 0.2, 0.4 and 0.4.
    let found = results(biased(Scoring::Softmax, false), &[logits, (&[3], &[0.15, -0.1, 0.0])], &shapes);
    near(&found[0][..2], &[2.0, 0.0]);
    near(&found[1][..2], &[1.2, 0.6]);

    // Two experts of one value inside: x·(1, 0) and x·(0, 1), put out as (1, 2) and (10, 20) times that.
    let x: (&[usize], &[f32]) = (&[1, 2], &[3.0, 5.0]);
    let chosen: (&[usize], &[f32]) = (&[1, 2], &[1.0, 0.0]);
    let shares: (&[usize], &[f32]) = (&[1, 2], &[0.5, 2.0]);
    let up: (&[usize], &[f32]) = (&[2, 1, 2], &[1.0, 0.0, 0.0, 1.0]);
    let gate: (&[usize], &[f32]) = (&[2, 1, 2], &[0.0, 1.0, -1.0, 0.0]);
    let down: (&[usize], &[f32]) = (&[2, 2, 1], &[1.0, 2.0, 10.0, 20.0]);
    let experts = |gated| Op::Experts(Experts::plain(Activation::Relu, gated));
    let found = results(experts(false), &[x, chosen, shares, up, down], &[&[1, 2]]);
    near(&found[0], &[0.5 * 10.0 * 5.0 + 2.0 * 3.0, 0.5 * 20.0 * 5.0 + 2.0 * 2.0 * 3.0]);
    // Expert 1's gate is relu(-3) = 0; expert 0's is relu(5).
    let found = results(experts(true), &[x, chosen, shares, gate, up, down], &[&[1, 2]]);
    near(&found[0], &[2.0 * 15.0, 2.0 * 30.0]);
    // With their biases gates are 0.25 and 1, of which 0.5 is left; the others -3, of which -0.5 is left, and 0.25.
    let gating = Gating { limit: Some(0.5), slope: 2.0, offset: 1.0 };
    let biased = Experts { gating, biased: true, down_bias: true, ..Experts::plain(Activation::Relu2, true) };
    let biases: [(&[usize], &[f32]); 3] =
        [(&[2, 1], &[-4.75, 4.0]), (&[2, 1], &[-6.0, -4.75]), (&[2, 2], &[0.0, 1.0, 2.0, 0.0])];
    let operands = [[x, chosen, shares, gate].as_slice(), &[up, down], &biases].concat();
    let found = results(Op::Experts(biased), &operands, &[&[1, 2]]);
    // relu²(2 · 0.5) / 2 · (0.25 + 1) = 0.625, and relu²(2 · 0.25) / 2 · (-0.5 + 1) = 0.0625.
    near(&found[0], &[0.5 * (6.25 + 2.0) + 2.0 * 0.0625, 0.5 * 12.5 + 2.0 * (0.125 + 1.0)]);
    let absent = [x, (&[1, 2], &[2.0, 0.0]), shares, up, down];
    let tensors: Vec<Tensor> = absent.iter().map(|&(shape, data)| Tensor::new(shape, data)).collect();
    let error = evaluate(&experts(false), &tensors.iter().collect::<Vec<_>>(), &[vec![1, 2]]).expect_err("of two");
    assert_eq!(error.to_string(), "expert 2 is chosen, and there are 2");

    near(&results(Op::Glu, &[x, (&[1, 2], &[0.0, 3f32.ln()])], &[&[1, 2]])[0], &[1.5, 3.75]);
    near(&results(Op::Glu, &[x, (&[1, 1], &[0.0])], &[&[1, 2]])[0], &[1.5, 2.5]);
}

#[test]
fn activations_follow_their_definitions() {
    // Their definitions, computed in f64 with the error function of the C library.
    let x: (&[usize], &[f32]) = (&[1, 4], &[-3.0, -0.5, 0.0, 2.0]);
    let cases: [(Activation, [f32; 4]); 5] = [
        (Activation::Silu, [-0.142_277_62, -0.188_770_34, 0.0, 1.761_594_2]),
        (Activation::Gelu, [-0.004_049_694, -0.154_268_77, 0.0, 1.954_499_7]),
        (Activation::GeluTanh, [-0.003_637_392, -0.154_286, 0.0, 1.954_597_7]),
        (Activation::Relu, [0.0, 0.0, 0.0, 2.0]),
        (Activation::Relu2, [0.0, 0.0, 0.0, 4.0]),
    ];
    for (activation, expected) in cases {
        near(&results(Op::Activation(activation), &[x], &[&[1, 4]])[0], &expected);
    }
    let known = [(0.1, 0.112_462_916_018_284_9), (1.0, 0.842_700_792_949_714_9), (3.0, 0.999_977_909_503_001_4)];
    for (x, expected) in known {
        assert!((erf(x) - expected).abs() < 1e-14 && erf(-x) == -erf(x));
    }
    assert!(erf(0.0) == 0.0 && erf(5.999) > 1.0 - 1e-14 && erf(7.0) == 1.0);
}

#[test]
fn matmul_with_bias_transposed_and_any_shape() {
    let x: (&[usize], &[f32]) = (&[2, 3, 1], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let weight: [f32; 6] = [1.0, 0.0, -1.0, 2.0, 2.0, 2.0];
    let plain = results(Op::Matmul(Matmul::plain(false)), &[x, (&[2, 3], &weight)], &[&[2, 2, 1]]);
    near(&plain[0], &[-2.0, 12.0, -2.0, 30.0]);
    let bias = results(Op::Matmul(Matmul::plain(true)), &[x, (&[2, 3], &weight), (&[2], &[0.5, -1.0])], &[&[2, 2]]);
    near(&bias[0], &[-1.5, 11.0, -1.5, 29.0]);
    let stored = [1.0, 2.0, 0.0, 2.0, -1.0, 2.0];
    let transposed = Matmul { transposed: true, ..Matmul::plain(false) };
    near(&results(Op::Matmul(transposed), &[x, (&[3, 2], &stored)], &[&[2, 2]])[0], &[-2.0, 12.0, -2.0, 30.0]);
}

#[test]
fn a_large_matmul_agrees_with_the_sum_written_out() {
    let (tokens, inputs, outputs) = (3, 117, 401);
    let x = random_tensor("x", &[tokens, inputs], 1);
    let bias = random_tensor("b", &[outputs], 1);
    for transposed in [false, true] {
        let shape = if transposed { [inputs, outputs] } else { [outputs, inputs] };
        let weight = random_tensor("w", &shape, 1);
        let matmul = Matmul { transposed, ..Matmul::plain(true) };
        let found =
            evaluate(&Op::Matmul(matmul), &[&x, &weight, &bias], &[vec![tokens, outputs]]).expect("it computes");
        for token in 0..tokens {
            for output in 0..outputs {
                let at = |i: usize| if transposed { i * outputs + output } else { output * inputs + i };
                let terms = (0..inputs).map(|i| f64::from(x.data[token * inputs + i]) * f64::from(weight.data[at(i)]));
                let expected = terms.sum::<f64>() + f64::from(bias.data[output]);
                assert!((f64::from(found[0].data[token * outputs + output]) - expected).abs() < 1e-6);
            }
        }
    }
}

/// One head of one value: scores are `q · keys`, here all zero, so that attention is the mean of what it sees.
fn mean_of_seen(attention: Attention, position: f32, sinks: Option<f32>) -> f32 {
    let mut operands: Vec<(&[usize], &[f32])> =
        vec![(&[1, 1, 1], &[0.0]), (&[4, 1, 1], &[1.0, 1.0, 1.0, 1.0]), (&[4, 1, 1], &[1.0, 2.0, 4.0, 8.0])];
    let (positions, sinks) = ([position], sinks.map(|sink| [sink]));
    operands.push((&[1], &positions));
    operands.extend(sinks.as_ref().map(|sinks| (&[1][..], &sinks[..])));
    results(Op::Attention(attention), &operands, &[&[1, 1, 1]])[0][0]
}

#[test]
fn attention_is_causal_windowed_and_drained_by_sinks() {
    let plain = Attention::plain(1.0);
    near(&[mean_of_seen(plain.clone(), 0.0, None)], &[1.0]);
    near(&[mean_of_seen(plain.clone(), 2.0, None)], &[7.0 / 3.0]);
    let window = Attention { window: Some(2), ..plain.clone() };
    near(&[mean_of_seen(window.clone(), 0.0, None)], &[1.0]);
    near(&[mean_of_seen(window.clone(), 2.0, None)], &[3.0]);
    near(&[mean_of_seen(window, 3.0, None)], &[6.0]);
    // e^ln2 takes part in the sum as two more tokens of value nothing.
    let sinks = Attention { sinks: true, ..plain };
    near(&[mean_of_seen(sinks, 2.0, Some(2f32.ln()))], &[7.0 / 5.0]);
}

#[test]
fn attention_scores_scale_softcap_and_share_key_heads() {
    // Heads 0, 1 read key head 0, heads 2, 3 key head 1; keys of head 1 are exchanged.
    let q: (&[usize], &[f32]) = (&[1, 4, 1], &[1.0, 2.0, 1.0, 2.0]);
    let keys: (&[usize], &[f32]) = (&[2, 2, 1], &[0.0, 4.0, 4.0, 0.0]);
    let values: (&[usize], &[f32]) = (&[2, 2, 1], &[0.0, 0.0, 1.0, 1.0]);
    let attention = Attention::plain(0.25);
    let found = results(Op::Attention(attention.clone()), &[q, keys, values, (&[1], &[1.0])], &[&[1, 4, 1]]);
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    near(&found[0], &[sigmoid(1.0), sigmoid(2.0), sigmoid(-1.0), sigmoid(-2.0)]);
    let capped = Attention { softcap: Some(0.5), ..attention };
    let found = results(Op::Attention(capped), &[q, keys, values, (&[1], &[1.0])], &[&[1, 4, 1]]);
    let cap = |x: f32| 0.5 * (x / 0.5).tanh();
    near(&found[0], &[sigmoid(cap(1.0)), sigmoid(cap(2.0)), sigmoid(-cap(1.0)), sigmoid(-cap(2.0))]);
}

#[test]
fn attention_heads_dot_and_sum_all_their_values() {
    // Score of position 0 is 0, of position 1 is (1·3 + 2·4) · 0.1 = 1.1.
    let q: (&[usize], &[f32]) = (&[1, 1, 2], &[1.0, 2.0]);
    let keys: (&[usize], &[f32]) = (&[2, 1, 2], &[0.0, 0.0, 3.0, 4.0]);
    let values: (&[usize], &[f32]) = (&[2, 1, 2], &[0.0, 10.0, 1.0, 20.0]);
    let found = results(Op::Attention(Attention::plain(0.1)), &[q, keys, values, (&[1], &[1.0])], &[&[1, 1, 2]]);
    let share = 1.0 / (1.0 + (-1.1f32).exp());
    near(&found[0], &[share, 10.0 + 10.0 * share]);
}

#[test]
fn heads_have_products_and_stand_side_by_side() {
    // Two tokens of two heads of two values: the first head's matrix sums and doubles, the second's has one row of the other.
    let x: (&[usize], &[f32]) = (&[2, 2, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let weight: (&[usize], &[f32]) = (&[2, 1, 2], &[1.0, 1.0, 0.0, -2.0]);
    let found = results(Op::HeadProduct, &[x, weight], &[&[2, 2, 1]]);
    near(&found[0], &[3.0, -8.0, 11.0, -16.0]);
    let other: (&[usize], &[f32]) = (&[2, 2, 1], &[0.1, 0.2, 0.3, 0.4]);
    let found = results(Op::Concat, &[x, other], &[&[2, 2, 3]]);
    near(&found[0], &[1.0, 2.0, 0.1, 3.0, 4.0, 0.2, 5.0, 6.0, 0.3, 7.0, 8.0, 0.4]);
}

#[test]
fn latent_values_are_the_first_of_their_keys() {
    let q: (&[usize], &[f32]) = (&[1, 2, 3], &[0.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
    // The third value of a key scores, and is no value.
    let keys: (&[usize], &[f32]) = (&[2, 1, 3], &[1.0, 10.0, 0.0, 3.0, 30.0, 3f32.ln()]);
    let attention = Attention { latent: Some(2), ..Attention::plain(1.0) };
    let found = results(Op::Attention(attention), &[q, keys, (&[1], &[1.0])], &[&[1, 2, 2]]);
    near(&found[0], &[2.5, 25.0, 2.0, 20.0]);
}

#[test]
fn caches_persist_from_run_to_run() {
    let text = r#"
%p = input "positions" : i32[T]
%t = input "tokens" : i32[T]
%w = weight "table" : f32[3, 2]
%e = embedding %t %w : f32[T, 2]
%x = reshape %e : f32[T, 1, 2]
%keys = state "keys.0" : f32[C, 1, 2]
%k = kv_append %keys %x %p : f32[C, 1, 2]
%values = state "values.0" : f32[C, 1, 2]
%v = kv_append %values %x %p : f32[C, 1, 2]
%a = attention %x %k %v %p {scale=0.5} : f32[T, 1, 2]
return %a, %k"#;
    let graph = Graph::parse(text).expect("it is a graph");
    let weight = |weight: &WeightRef| Ok(random_tensor(&weight.to_string(), &[3, 2], 7));
    let mut whole = Interpreter::new(&graph, weight, 4).expect("it verifies");
    let at_once = whole.run(&[0, 1, 2, 1], &[0, 1, 2, 3]).expect("it runs");
    let mut steps = Interpreter::new(&graph, weight, 4).expect("it verifies");
    steps.run(&[0, 1, 2], &[0, 1, 2]).expect("it runs");
    let last = steps.run(&[1], &[3]).expect("it runs");
    assert_eq!(at_once[0].row(3), last[0].row(0));
    assert_eq!(at_once[1], last[1]);
    assert_eq!(whole.state("keys.0"), Some(&last[1]));
    let error = steps.run(&[1], &[4]).expect_err("no room");
    assert_eq!(format!("{error:#}"), "computing kv_append: the position 4 is outside the cache of 4");
    assert!(steps.run(&[1], &[]).is_err());
}

#[test]
fn weights_are_checked_against_the_graph() {
    let graph = Graph::parse("%w = weight \"w\" : f32[3, 2]\nreturn %w").expect("it is a graph");
    let error = Interpreter::new(&graph, |_| Ok(Tensor::zeros([2, 3])), 1).err().expect("another shape");
    assert_eq!(error.to_string(), "the weight w has shape [2, 3], but the graph says f32[3, 2]");
    let error = Interpreter::new(&graph, |_| bail!("no such file"), 1).err().expect("no weight");
    assert_eq!(format!("{error:#}"), "fetching the weight w: no such file");
}

/// The two graphs return the same on the same random leaves, and something that is not zero.
fn assert_same(composed: &str, fused: &str) {
    let [composed, fused] =
        [composed, fused].map(|text| Graph::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}")));
    for seed in 0..3 {
        let runs =
            [&composed, &fused].map(|graph| random_run(graph, seed, 5, 24).unwrap_or_else(|error| panic!("{error:#}")));
        assert_eq!(runs[0].len(), runs[1].len());
        assert!(runs[0].len() >= 2, "both steps run");
        for (composed, fused) in runs[0].iter().zip(&runs[1]) {
            assert!(composed.data.iter().any(|x| *x != 0.0) && composed.data.iter().all(|x| x.is_finite()));
            assert_eq!(composed, fused);
        }
    }
}

const LEAVES: &str = r#"
%x = input "x" : f32[T, 6]
%r = input "r" : f32[T, 10]
%n = weight "n" : f32[6]
%nb = weight "nb" : f32[6]
%w = weight "w" : bf16[10, 6]
%u = weight "u" : bf16[10, 6]
%b = weight "b" : f32[10]
%c = weight "c" : f32[10]
"#;

#[test]
fn fused_matmuls_equal_their_parts() {
    let cases = [
        (
            "%h = rms_norm %x %n {eps=0.1, offset=1} : f32[T, 6]\n%y = matmul %h %w : f32[T, 10]\nreturn %y",
            "%y = norm_matmul %x %n %w {norm=rms_norm(eps=0.1, offset=1)} : f32[T, 10]\nreturn %y",
        ),
        (
            "%h = layer_norm %x %n %nb {eps=0.1, bias} : f32[T, 6]\n%y = matmul %h %w %b {biases=[1]} : f32[T, 10]
%z = matmul %h %u : f32[T, 5, 2]\nreturn %y, %z",
            "%y, %z = norm_matmul %x %n %nb %w %u %b {norm=layer_norm(eps=0.1, bias), biases=[1, 0]} : f32[T, 10], f32[T, 5, 2]
return %y, %z",
        ),
        (
            "%g = matmul %x %w %b {biases=[1]} : f32[T, 10]\n%a = silu %g : f32[T, 10]
%v = matmul %x %u %c {biases=[1]} : f32[T, 10]\n%y = mul %a %v : f32[T, 10]\n%z = add %y %r : f32[T, 10]\nreturn %z",
            "%y = matmul_gated_add %x %w %u %b %c %r {biases=[1, 1], activation=silu} : f32[T, 10]\nreturn %y",
        ),
        (
            "%g = matmul %x %w : f32[T, 10]\n%a = gelu %g : f32[T, 10]\n%z = add %a %r : f32[T, 10]\nreturn %z",
            "%y = matmul_activated_add %x %w %r {activation=gelu} : f32[T, 10]\nreturn %y",
        ),
        (
            "%g = matmul %x %w : f32[T, 10]\n%s = sample %g : i32[T]\nreturn %g, %s",
            "%g, %s = matmul_sample %x %w : f32[T, 10], i32[T]\nreturn %g, %s",
        ),
    ];
    for (composed, fused) in cases {
        assert_same(&format!("{LEAVES}{composed}"), &format!("{LEAVES}{fused}"));
    }
}

#[test]
fn fused_attention_equals_its_parts() {
    let leaves = r#"
%p = input "positions" : i32[T]
%q = input "q" : f32[T, 6, 8]
%k = input "k" : f32[T, 2, 8]
%v = input "v" : f32[T, 2, 8]
%r = input "r" : f32[T, 10]
%qn = weight "qn" : f32[8]
%kn = weight "kn" : f32[8]
%s = weight "s" : f32[6]
%w = weight "w" : f32[10, 48]
%wt = weight "wt" : f32[48, 10]
%b = weight "b" : f32[10]
%kc = state "keys.3" : bf16[C, 2, 8]
%vc = state "values.3" : bf16[C, 2, 8]
"#;
    let caches = "bf16[C, 2, 8], bf16[C, 2, 8]";
    let append = "%ka = kv_append %kc %k %p : bf16[C, 2, 8]\n%va = kv_append %vc %v %p : bf16[C, 2, 8]";
    let cases = [
        (
            format!("{append}\n%o = attention %q %ka %va %p {{scale=0.5, window=9}} : f32[T, 6, 8]\nreturn %o, %ka, %va"),
            format!("%o, %ka, %va = append_attention %q %k %v %kc %vc %p {{scale=0.5, window=9}} : f32[T, 6, 8], {caches}
return %o, %ka, %va"),
        ),
        (
            format!("%qr = rope %q %p {{theta=100, dim=6}} : f32[T, 6, 8]
%kr = rope %k %p {{theta=100, dim=6}} : f32[T, 2, 8]
{}\n%o = attention %qr %ka %va %p %s {{scale=0.5, softcap=2, sinks}} : f32[T, 6, 8]\nreturn %o, %ka, %va", append.replace("%k ", "%kr ")),
            format!("%o, %ka, %va = rope_append_attention %q %k %v %kc %vc %p %s {{scale=0.5, softcap=2, sinks, rope=rope(theta=100, dim=6)}} : f32[T, 6, 8], {caches}
return %o, %ka, %va"),
        ),
        (
            format!("%qh = rms_norm %q %qn {{eps=0.1}} : f32[T, 6, 8]\n%kh = rms_norm %k %kn {{eps=0.2, offset=1}} : f32[T, 2, 8]
%qr = rope %qh %p {{theta=100, dim=8, interleaved}} : f32[T, 6, 8]
%kr = rope %kh %p {{theta=100, dim=8, interleaved}} : f32[T, 2, 8]
{}\n%o = attention %qr %ka %va %p {{scale=0.5}} : f32[T, 6, 8]
%y = matmul %o %w %b {{biases=[1]}} : f32[T, 10]\n%z = add %y %r : f32[T, 10]\nreturn %z, %ka, %va", append.replace("%k ", "%kr ")),
            format!("%o, %ka, %va = norm_rope_append_attention_proj_add %q %k %v %kc %vc %p %qn %kn %w %b %r {{scale=0.5, proj_bias, \
q_norm=rms_norm(eps=0.1), k_norm=rms_norm(eps=0.2, offset=1), rope=rope(theta=100, dim=8, interleaved)}} : f32[T, 10], {caches}
return %o, %ka, %va"),
        ),
        (
            format!("{append}\n%o = attention %q %ka %va %p {{scale=0.5}} : f32[T, 6, 8]\n%y = matmul %o %wt {{transposed}} : f32[T, 10]\nreturn %y, %ka"),
            format!("{append}\n%o = attention_proj %q %ka %va %p %wt {{scale=0.5, proj_transposed}} : f32[T, 10]\nreturn %o, %ka"),
        ),
    ];
    for (composed, fused) in cases {
        assert_same(&format!("{leaves}{composed}"), &format!("{leaves}{fused}"));
    }
}

#[test]
fn random_runs_depend_on_seed_and_names_alone() {
    let graph = Graph::parse(&format!("{LEAVES}%y = matmul %x %w : f32[T, 10]\nreturn %y")).expect("it is a graph");
    let renamed =
        Graph::parse(&format!("{}%y = matmul %x %w : f32[T, 10]\nreturn %y", LEAVES.replace("\"w\"", "\"v\"")));
    let run = |graph: &Graph, seed| random_run(graph, seed, 2, 8).expect("it runs");
    assert_eq!(run(&graph, 1), run(&graph, 1));
    assert_ne!(run(&graph, 1), run(&graph, 2));
    assert_ne!(run(&graph, 1), run(&renamed.expect("it is a graph"), 1));
    let steps = run(&graph, 1);
    assert_eq!(steps.iter().map(|step| step.shape.clone()).collect::<Vec<_>>(), [[2, 10], [1, 10]]);
}

#[test]
fn nmse_is_relative_to_the_reference() {
    assert_eq!(nmse(&[1.0, 2.0], &[1.0, 2.0]), 0.0);
    assert_eq!(nmse(&[0.0], &[0.0]), 0.0);
    assert_eq!(nmse(&[1.0, 3.0], &[2.0, 4.0]), 2.0 / 20.0);
    assert_eq!(nmse(&[1.0], &[1.0, 2.0]), f64::INFINITY);
    assert!(nmse(&[f32::NAN], &[1.0]).is_nan());
}

/// `evaluate` on rows of a sequence, in one go and cut into two: the same results, and the same state after them.
#[track_caller]
fn in_one_go_and_in_two(op: &Op, rows: &[Tensor], state: &Tensor, rest: &[Tensor], first: i32) -> Vec<Tensor> {
    let count = rows[0].shape[0];
    let run = |part: std::ops::Range<usize>, state: &Tensor| {
        let cut = |x: &Tensor| {
            let shape: Vec<usize> = [part.len()].into_iter().chain(x.shape[1..].iter().copied()).collect();
            Tensor::new(shape, part.clone().flat_map(|row| x.row(row).to_vec()).collect::<Vec<_>>())
        };
        let cut: Vec<Tensor> = rows.iter().map(cut).collect();
        let positions: Vec<i32> = part.clone().map(|row| first + row as i32).collect();
        let positions = Tensor::ints(&positions);
        let operands: Vec<&Tensor> = cut.iter().chain([state, &positions]).chain(rest).collect();
        evaluate(op, &operands, &[cut[0].shape.clone(), state.shape.clone()]).expect("it computes")
    };
    let whole = run(0..count, state);
    let before = run(0..1, state);
    let after = run(1..count, &before[1]);
    near(&[before[0].data.clone(), after[0].data.clone()].concat(), &whole[0].data);
    near(&after[1].data, &whole[1].data);
    whole
}

#[test]
fn convolutions_keep_their_last_inputs() {
    // Channel 0: a_t + 10 a_(t-1) + 100 a_(t-2); channel 1: the same with other factors, and both less a bias.
    let x = Tensor::new([3, 2], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let kept = Tensor::new([2, 2], [7.0, 8.0, 9.0, 10.0]);
    let weight = Tensor::new([2, 1, 3], [100.0, 10.0, 1.0, 0.0, -1.0, 0.5]);
    let conv = |bias| Op::Conv(Conv { bias });
    let found = {
        let (x, weight) = (std::slice::from_ref(&x), std::slice::from_ref(&weight));
        in_one_go_and_in_two(&conv(false), x, &kept, weight, 4)
    };
    near(&found[0].data, &[791.0, -9.0, 913.0, 0.0, 135.0, -1.0]);
    near(&found[1].data, &[3.0, 4.0, 5.0, 6.0]);
    // At the beginning of a sequence nothing is before it, whatever is kept.
    let bias = Tensor::new([2], [0.5, -1.0]);
    let found = in_one_go_and_in_two(&conv(true), &[x], &kept, &[weight, bias], 0);
    near(&found[0].data, &[1.5, 0.0, 13.5, -1.0, 135.5, -2.0]);
}

#[test]
fn functions_and_values_that_several_share() {
    let x: (&[usize], &[f32]) = (&[1, 3], &[-3.0, 0.0, 2.0]);
    let of = |function| results(Op::Function(function), &[x], &[&[1, 3]]).remove(0);
    near(&of(Function::Sigmoid), &[0.047_425_874, 0.5, 0.880_797_1]);
    near(&of(Function::Softplus), &[0.048_587_352, std::f32::consts::LN_2, 2.126_928]);
    near(&of(Function::Exp), &[0.049_787_07, 1.0, 7.389_056]);

    // Two tokens of two heads of two.
    let a: (&[usize], &[f32]) = (&[2, 2, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let of = |op: Op, b: (&[usize], &[f32])| results(op, &[a, b], &[&[2, 2, 2]]).remove(0);
    near(&of(Op::Mul, (&[2, 2], &[1.0, 10.0, 2.0, -1.0])), &[1.0, 2.0, 30.0, 40.0, 10.0, 12.0, -7.0, -8.0]);
    near(&of(Op::Add, (&[2, 1], &[1.0, 10.0])), &[2.0, 3.0, 4.0, 5.0, 15.0, 16.0, 17.0, 18.0]);
    // Weights are the same for all tokens.
    near(&of(Op::Mul, (&[2], &[1.0, 10.0])), &[1.0, 2.0, 30.0, 40.0, 5.0, 6.0, 70.0, 80.0]);
    near(&of(Op::Add, (&[4], &[1.0, 2.0, 3.0, 4.0])), &[2.0, 4.0, 6.0, 8.0, 6.0, 8.0, 10.0, 12.0]);
    near(&of(Op::Mul, (&[1], &[2.0])), &[2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0]);
    let half = 0.5f32.ln();
    near(&of(Op::Decay, (&[2], &[0.0, half])), &[-1.0, -2.0, -1.5, -2.0, -5.0, -6.0, -3.5, -4.0]);
    near(&of(Op::Glu, (&[2, 2], &[0.0, 3f32.ln(), 0.0, 0.0])), &[0.5, 1.0, 2.25, 3.0, 2.5, 3.0, 3.5, 4.0]);
}

#[test]
fn memories_are_kept_and_recalled() {
    // Two heads share a key of two places; values of one.
    let q = Tensor::new([2, 1, 2], [1.0, 2.0, 0.0, 1.0]);
    let k = Tensor::new([2, 1, 2], [1.0, 0.0, 1.0, -1.0]);
    let v = Tensor::new([2, 2, 1], [3.0, 4.0, 5.0, 6.0]);
    let memory = Tensor::new([2, 2, 1], [2.0, 4.0, 8.0, 16.0]);
    let (half, quarter) = (0.5f32.ln(), 0.25f32.ln());
    let decay = Tensor::new([2, 2], [half, quarter, 0.0, half]);
    // Head 0: (1 + 3, 2), then (4 + 5, 2 - 5). Head 1: (2 + 4, 4), then (3 + 6, 2 - 6).
    let rows = [q.clone(), k.clone(), v.clone(), decay.clone()];
    let found = in_one_go_and_in_two(&Op::Recall(Recall { delta: false }), &rows, &memory, &[], 7);
    near(&found[0].data, &[8.0, 14.0, -3.0, -4.0]);
    near(&found[1].data, &[9.0, -3.0, 9.0, -4.0]);
    // At the beginning of a sequence the memory is empty: (3, 0), then (3 + 5, -5); (4, 0), then (2 + 6, -6).
    let found = in_one_go_and_in_two(&Op::Recall(Recall { delta: false }), &rows, &memory, &[], 0);
    near(&found[0].data, &[3.0, 4.0, -5.0, -6.0]);
    // By the delta rule. Head 0: 3 replaces half of the 1 at the key, (1 + (3 - 1) / 2, 2), of which the next key has 0; all of it: 5. Head 1: beta is 0, then
    // 2 (6 - (1 - 2)).
    let beta = Tensor::new([2, 2], [0.5, 0.0, 1.0, 2.0]);
    let rows = [q, k, v, decay, beta];
    let found = in_one_go_and_in_two(&Op::Recall(Recall { delta: true }), &rows, &memory, &[], 7);
    near(&found[0].data, &[6.0, 10.0, -3.0, -12.0]);
    near(&found[1].data, &[7.0, -3.0, 15.0, -12.0]);
    // A decay for each place of a key.
    let decay = Tensor::new([2, 2, 2], [half, 0.0, 0.0, half, 0.0, 0.0, 0.0, 0.0]);
    let rows = [rows[0].clone(), rows[1].clone(), rows[2].clone(), decay];
    let found = in_one_go_and_in_two(&Op::Recall(Recall { delta: false }), &rows, &memory, &[], 7);
    near(&found[0].data, &[12.0, 28.0, -1.0, 2.0]);
    near(&found[1].data, &[9.0, -1.0, 18.0, 2.0]);
}
