use crate::ir::*;

fn norm(kind: NormKind) -> Norm {
    Norm { kind, eps: 1e-5, offset: 0.0, weight: true, bias: false }
}

fn rope(scaling: RopeScaling) -> Rope {
    Rope { theta: 10000.0, dim: 16, interleaved: false, scaling }
}

/// Every op, with every attribute away from its default at least once, and numbers that are hard to print.
fn every_op() -> Vec<Op> {
    let mut ops = vec![
        Op::Input("tokens".into()),
        Op::Weight("odd \"name\" \\ ; % \n\u{7} ü {layer}".into()),
        Op::Weight("".into()),
        Op::State(State::cache("keys.0")),
        Op::State(State { name: "memory.0".into(), start: Start::Zeros, replay: Replay::Once }),
        Op::Embedding,
        Op::KvAppend,
        Op::HeadProduct,
        Op::Concat,
        Op::Attention(Attention { latent: Some(512), ..Attention::plain(0.5) }),
        Op::Add,
        Op::Mul,
        Op::Glu,
        Op::Route(Route {
            top_k: 2,
            scoring: Scoring::Softmax,
            bias: false,
            normalise: true,
            scale: 1.0,
            groups: None,
            expert_scale: true,
        }),
        Op::Route(Route {
            top_k: 8,
            scoring: Scoring::Sigmoid,
            bias: true,
            normalise: false,
            scale: 2.5,
            groups: Some([8, 4]),
            expert_scale: false,
        }),
        Op::Experts(Experts::plain(Activation::Silu, true)),
        Op::Experts(Experts { biased: true, ..Experts::plain(Activation::Relu2, false) }),
        Op::Experts(Experts {
            gating: Gating { limit: Some(7.0), slope: 1.702, offset: 1.0 },
            down_bias: true,
            ..Experts::plain(Activation::Silu, true)
        }),
        Op::Scale(0.1),
        Op::Scale(-0.0),
        Op::Scale(f32::MIN_POSITIVE),
        Op::Scale(f32::MAX),
        Op::Scale(16_777_217.0),
        Op::Softcap(30.0),
        Op::Clamp(8.0),
        Op::Decay,
        Op::Recall(Recall { delta: false }),
        Op::Recall(Recall { delta: true }),
        Op::Conv(Conv { bias: false }),
        Op::Conv(Conv { bias: true }),
        Op::Reshape,
        Op::Sample,
    ];
    ops.extend(Activation::ALL.map(Op::Activation));
    ops.extend(Function::ALL.map(Op::Function));
    let odd_norm = Norm { kind: NormKind::Layer, eps: 1.0 / 3.0, offset: 1.0, weight: false, bias: true };
    let norms = [norm(NormKind::Rms), norm(NormKind::Layer), odd_norm, Norm { offset: -0.0, ..norm(NormKind::Rms) }];
    ops.extend(norms.iter().cloned().map(Op::Norm));
    let scalings = [
        RopeScaling::None,
        RopeScaling::Linear { factor: 2.5 },
        RopeScaling::Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original: 8192.0 },
        RopeScaling::Yarn {
            factor: 40.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original: 4096.0,
            attention_factor: 0.1 + 0.2,
            truncate: true,
        },
        RopeScaling::Yarn {
            factor: 1e300,
            beta_fast: 1e-300,
            beta_slow: -1.0,
            original: 0.0,
            attention_factor: 1.0,
            truncate: false,
        },
        RopeScaling::LongRope { factors: vec![1.0, 1.1, 1e20], attention_factor: 1.19 },
        RopeScaling::LongRope { factors: vec![], attention_factor: 1.0 },
        RopeScaling::Proportional { factor: 1.0, part: 0.25 },
    ];
    let ropes: Vec<Rope> = scalings.into_iter().map(rope).collect();
    ops.extend(ropes.iter().cloned().map(Op::Rope));
    ops.push(Op::Rope(Rope { theta: 1e6 + 1.0 / 3.0, dim: 6, interleaved: true, scaling: RopeScaling::None }));

    let mut epilogues = vec![Epilogue::None];
    epilogues.extend(Activation::ALL.map(Epilogue::Activate));
    epilogues.extend(Activation::ALL.map(Epilogue::Gate));
    for norm in [None, Some(norms[0].clone()), Some(norms[2].clone())] {
        for biases in [vec![false], vec![true], vec![false, false], vec![false, true, true]] {
            for &epilogue in &epilogues {
                for flags in 0..8 {
                    ops.push(Op::Matmul(Matmul {
                        norm: norm.clone(),
                        biases: biases.clone(),
                        transposed: flags & 1 != 0,
                        epilogue,
                        residual: flags & 2 != 0,
                        sample: flags & 4 != 0,
                    }));
                }
            }
        }
    }
    let plain = Attention::plain(0.088_388_346);
    ops.push(Op::Attention(plain.clone()));
    ops.push(Op::Attention(Attention { window: Some(8), softcap: Some(50.0), sinks: true, ..plain.clone() }));
    for flags in 0..64 {
        let set = |bit: usize| flags & (1 << bit) != 0;
        ops.push(Op::Attention(Attention {
            append: set(0),
            q_norm: set(1).then(|| norms[0].clone()),
            k_norm: set(2).then(|| norms[2].clone()),
            rope: set(3).then(|| ropes[2].clone()),
            proj: set(4).then(|| Projection { bias: set(5), residual: set(3), transposed: set(2) }),
            ..plain.clone()
        }));
    }
    ops
}

/// A graph of that one op over `f32[T, 4]`s. Its types are nonsense: the text form does not mind.
fn graph_of(op: Op, results: usize) -> Graph {
    let mut graph = Graph::new("one op");
    let x = graph.value(Op::Input("x".into()), &[], Type::activation(&[4]), None);
    let operands = vec![x; op.roles().len()];
    let types =
        [Type::activation(&[4]), Type::cache(Format::BF16, 2, 16), Type::tokens(), Type::weight(Format::F16, &[])];
    let node = graph.add(op, &operands, (0..results).map(|i| types[i % 4].clone()).collect(), Some(3));
    graph.outputs = (0..results).map(|result| node.result(result)).collect();
    graph
}

#[test]
fn every_op_reads_back_exactly() {
    for op in every_op() {
        for results in 1..5 {
            let graph = graph_of(op.clone(), results);
            let text = graph.to_string();
            let read = Graph::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
            assert_eq!(read.name, "one op");
            assert_eq!(read.to_string(), text);
            let [a, b] = [&graph, &read].map(|graph| graph.node(graph.outputs[0].node));
            // -0.0 == 0.0, so the comparison of nodes goes through their Debug form.
            assert_eq!(format!("{a:?}"), format!("{b:?}"), "\n{text}");
            assert_eq!(read.operands(read.outputs[0].node).len(), op.roles().len());
        }
    }
}

#[test]
fn values_are_renumbered_in_graph_order_and_comments_dropped() {
    let text = r#"
; a comment
%unused = input "unused" : f32[T]
%b = input "b" : f32[T, 8]  ; another
  %a.1 = input "a" : f32[T, 8]
%sum=add %a.1 %b:f32[T,8] @ 2
return %sum , %b
"#;
    let graph = Graph::parse(text).expect("it is a graph");
    assert_eq!(
        graph.to_string(),
        r#"%0 = input "a" : f32[T, 8]
%1 = input "b" : f32[T, 8]
%2 = add %0 %1 : f32[T, 8] @2
return %2, %1
"#
    );
}

const FUSED: &str = r#"graph "llama"
%0 = input "x" : f32[T, 64]
%1 = weight "n" : bf16[64]
%2, %3, %4 = norm_matmul %0 %1 %1 %1 %1 %1 %1 {norm=rms_norm(eps=1e-5), biases=[0, 1, 1]} : f32[T, 4, 16], f32[T, 2, 16], f32[T, 2, 16] @0
%5, %6, %7 = norm_rope_append_attention_proj_add %2 %3 %4 %1 %1 %1 %1 %1 %1 %0 {scale=0.25, window=8, q_norm=rms_norm(eps=1e-5), k_norm=rms_norm(eps=1e-5), rope=rope(theta=500000, dim=16, scaling=llama3(factor=32, low_freq_factor=1, high_freq_factor=4, original=8192))} : f32[T, 64], bf16[C, 2, 16], bf16[C, 2, 16] @0
%8 = norm_matmul_gated %0 %1 %1 %1 {norm=rms_norm(eps=1e-6, offset=1), activation=silu} : f32[T, 128]
return %5, %6, %8
"#;

#[test]
fn the_readable_shape_of_fused_ops() {
    assert_eq!(Graph::parse(FUSED).expect("it is a graph").to_string(), FUSED);
}

#[test]
fn damaged_text_is_read_or_refused_without_a_panic() {
    for at in 0..FUSED.len() {
        for damage in ["", "%", "\"", "0", "-", "T", "(", "[", "}", "é", "\n", "18446744073709551616"] {
            let text = format!("{}{damage}{}", &FUSED[..at], &FUSED[at + 1..]);
            if let Ok(graph) = Graph::parse(&text) {
                verify_all(&graph);
                assert_eq!(
                    Graph::parse(&graph.to_string()).expect("what is printed reads").to_string(),
                    graph.to_string()
                );
            }
        }
    }
}

#[test]
fn errors_say_where_and_what() {
    let one = r#"%0 = input "x" : f32[T, 4]"#;
    let cases: &[(&str, usize, usize, &str)] = &[
        ("", 1, 1, "the graph has no `return` line"),
        ("%0 = frobnicate : f32[T]", 1, 6, "unknown op `frobnicate`"),
        ("%0 = add %1 %1 : f32[T]", 1, 10, "%1 is not defined above"),
        ("%0 = input : f32[T]", 1, 6, "input needs a name in double quotes"),
        ("%0 = input \"x : f32[T]", 1, 12, "the double quote is not closed"),
        ("%0 = input \"\\q\" : f32[T]", 1, 13, "not an escape; there are \\\", \\\\, \\n and \\u{hex}"),
        (
            "%0 = input \"x\" : f8[T]",
            1,
            18,
            "unknown element type `f8`; there are f32, i32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs, mxfp4, fp8, fp8_128, int8, int8_128, int4_32, int4_128, nvfp4",
        ),
        ("%0 = input \"x\" : f32[T, -1]", 1, 25, "expected a size, `T` or `C`, found `-1`"),
        ("%0 = input \"x\" : f32[Tokens]", 1, 23, "expected `,` or `]`, found `okens]`"),
        ("%0, %1 = input \"x\" : f32[T]", 1, 22, "2 values named, but 1 type"),
        ("%0 = input \"x\" : f32[T] @", 1, 26, "expected the layer's number, found the end of the line"),
        ("% 0 = input \"x\" : f32[T]", 1, 3, "expected the value's name directly after `%`, found `0`"),
        ("hello", 1, 1, "expected `%name = …`, `graph` or `return`, found `hello`"),
        ("X\n%0 = input \"y\" : f32[T]", 2, 1, "%0 is defined already"),
        ("X\ngraph \"late\"", 2, 1, "`graph` belongs on the first line"),
        ("X\nreturn %0 %0", 2, 11, "expected `,`, found `%0`"),
        ("X\nreturn %0\nreturn %0", 3, 1, "nothing may follow `return`"),
        ("X\n%1 = add %0 \"x\" : f32[T]", 2, 13, "expected a value, `{` or `:` and the type, found `\"x\"`"),
        ("X\n%1 = add \"x\" %0 %0 : f32[T]", 2, 6, "add takes no name in quotes"),
        ("X\n%1 = add %0 %0 {a=1} : f32[T]", 2, 17, "add has no attributes"),
        ("X\n%1 = rms_norm %0 : f32[T]", 2, 6, "rms_norm needs the attribute `eps`"),
        ("X\n%1 = rms_norm %0 {eps=x} : f32[T]", 2, 23, "expected a finite number, found `x`"),
        ("X\n%1 = scale %0 {factor=1e99} : f32[T]", 2, 23, "expected a finite number, found `1e99`"),
        ("X\n%1 = rms_norm %0 {eps=1, eps=2} : f32[T]", 2, 26, "`eps` is written twice"),
        ("X\n%1 = rms_norm %0 {eps=1, bias=2} : f32[T]", 2, 31, "expected 0 or 1"),
        ("X\n%1 = rms_norm %0 {eps=1 bias} : f32[T]", 2, 25, "expected `,` or `}`, found `bias}`"),
        (
            "X\n%1 = rms_norm %0 {eps=1, epps=2} : f32[T]",
            2,
            26,
            "rms_norm has no attribute `epps`; it has eps, offset, weight, bias",
        ),
        ("X\n%1 = norm_matmul %0 : f32[T]", 2, 6, "the name is norm_matmul, but by its attributes this is matmul"),
        ("X\n%1 = matmul %0 {norm=max(eps=1)} : f32[T]", 2, 22, "`norm` knows no `max`"),
        ("X\n%1 = matmul %0 {norm} : f32[T]", 2, 17, "`norm` needs a value such as `call(…)`"),
        ("X\n%1 = matmul %0 {biases=1} : f32[T]", 2, 24, "expected a list in square brackets"),
        ("X\n%1 = matmul_activated %0 {activation=elu} : f32[T]", 2, 38, "unknown activation `elu`"),
        ("X\n%1 = rope %0 {theta=1, dim=2, scaling=linear()} : f32[T]", 2, 39, "linear needs the attribute `factor`"),
        ("X\n%1 = matmul %0 {biases=[[[[[[[[[[]]]]]]]]]]} : f32[T]", 2, 32, "attributes nest more than 8 deep"),
        (
            "X\n%1 = attention %0 {scale=1, proj_bias} : f32[T]",
            2,
            6,
            "attention has no projection for proj_bias or proj_transposed to speak of",
        ),
    ];
    for &(text, line, column, message) in cases {
        let text = text.replace('X', one);
        let error = Graph::parse(&text).expect_err(&text);
        assert_eq!((error.line, error.column, error.message.as_str()), (line, column, message), "\n{text}");
    }
}
