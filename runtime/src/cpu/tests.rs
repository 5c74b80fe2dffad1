//! The executor against the interpreter: every op by itself, whole models fused and not, batches, cuts of a prompt, threads.

use std::ops::Range;

use anyhow::{Context, Result};
use fusec::ir::{Format, Graph, Interpreter, Op, Results, Tensor, WeightRef, nmse, random_tensor, verify};

use super::{CpuModel, CpuOptions, Logits, Needed, Row, WeightSource, check_memory};

/// Random weights, exact in bf16, in the shapes that a graph says.
struct Random<'a>(&'a Graph);

impl Random<'_> {
    fn tensor(&self, weight: &WeightRef) -> Result<Tensor> {
        let shape = self.shape(weight)?;
        let Some(index) = weight.matrix else { return Ok(random_tensor(&weight.to_string(), &shape, 11)) };
        let whole = self.tensor(&WeightRef { matrix: None, ..weight.clone() })?;
        Ok(Tensor::new(shape, whole.row(index)))
    }
}

impl WeightSource for Random<'_> {
    fn shape(&self, wanted: &WeightRef) -> Result<Vec<usize>> {
        let graph = self.0;
        let is_wanted = |op: &Op| matches!(op, Op::Weight(weight) if weight == wanted);
        let node = graph.ordered().into_iter().find(|&node| is_wanted(graph.op(node)));
        if let (None, Some(index)) = (node, wanted.matrix) {
            // One matrix of several.
            let whole = self.shape(&WeightRef { matrix: None, ..wanted.clone() })?;
            anyhow::ensure!(index < whole[0], "{wanted} of {whole:?}");
            return Ok(whole[1..].to_vec());
        }
        Ok(graph.type_of(node.with_context(|| format!("no weight {wanted}"))?.result(0)).fixed_sizes().collect())
    }

    fn read_f32(&self, weight: &WeightRef) -> Result<Vec<f32>> {
        Ok(self.tensor(weight)?.data)
    }

    fn read_rows_f32(&self, weight: &WeightRef, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let tensor = self.tensor(weight)?;
        rows.for_each(|row| out.extend(tensor.row(row)));
        Ok(())
    }

    fn raw_format(&self, _: &WeightRef) -> Result<Option<Format>> {
        Ok(None)
    }

    fn raw_rows(&self, weight: &WeightRef, _: Range<usize>, _: &mut Vec<u8>) -> Result<()> {
        anyhow::bail!("{weight} is not stored as rows of blocks")
    }
}

const CONTEXT: usize = 300;

fn parse(text: &str) -> Graph {
    let graph = Graph::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    verify(&graph).unwrap_or_else(|error| panic!("{error}\n{text}"));
    graph
}

fn load(graph: &Graph, threads: usize, sequences: usize) -> CpuModel {
    CpuModel::load(graph, &Random(graph), CpuOptions { threads, context: CONTEXT, sequences }).expect("it loads")
}

/// Tokens of a sequence, below the smallest vocabulary here.
fn token(sequence: u32, position: u32) -> u32 {
    (position * 7 + sequence * 5 + position * position) % 31
}

fn rows(sequence: u32, positions: Range<u32>) -> Vec<Row> {
    positions.map(|position| Row { token: token(sequence, position), position, sequence }).collect()
}

/// The interpreter's first output for a whole sequence.
fn reference(graph: &Graph, sequence: u32, length: u32) -> Vec<f32> {
    let mut interpreter = Interpreter::new(graph, |name| Random(graph).tensor(name), CONTEXT).expect("it is a graph");
    let tokens: Vec<i32> = (0..length).map(|position| token(sequence, position) as i32).collect();
    let positions: Vec<i32> = (0..length as i32).collect();
    interpreter.run(&tokens, &positions).expect("it runs").swap_remove(0).data
}

#[track_caller]
fn assert_near(found: &[f32], expected: &[f32], text: &str) {
    let error = nmse(found, expected);
    assert!(error < 1e-11, "{error:e} is too far from the interpreter:\n{text}");
    assert!(expected.iter().any(|value| *value != 0.0), "the reference is all zeros:\n{text}");
}

/// Prompt, decode and both at once agree with the interpreter of `judge`, bit for bit among themselves.
fn check(text: &str, judge: &str) {
    let graph = parse(text);
    let expected = reference(&parse(judge), 0, 9);
    let width = expected.len() / 9;
    let prompt = load(&graph, 2, 1).forward(&rows(0, 0..9), Logits::All).expect("it runs").to_vec();
    assert_near(&prompt, &expected, text);
    let mut model = load(&graph, 1, 1);
    let mut stepped = model.forward(&rows(0, 0..4), Logits::All).expect("it runs").to_vec();
    for position in 4..9 {
        stepped.extend(model.forward(&rows(0, position..position + 1), Logits::Last).expect("it runs"));
    }
    assert_eq!(model.vocabulary(), width);
    assert_eq!(prompt, stepped, "the cut of the prompt shows in the bits:\n{text}");
}

/// Before each case: an activation of 24, one of 3 heads of 8, and weights.
const LEAVES: &str = r#"
%t = input "tokens" : i32[T]
%p = input "positions" : i32[T]
%e = weight "e" : bf16[31, 24]
%pe = weight "pe" : bf16[300, 24]
%x = embedding %t %e : f32[T, 24]
%r = embedding %p %pe : f32[T, 24]
%q = reshape %x : f32[T, 3, 8]
%n = weight "n" : f32[24]
%nb = weight "nb" : f32[24]
%hn = weight "hn" : bf16[8]
%w = weight "w" : bf16[24, 24]
%u = weight "u" : bf16[24, 24]
%w7 = weight "w7" : bf16[7, 24]
%f = weight "f" : f32[13, 24]
%h = weight "h" : f16[13, 24]
%wt = weight "wt" : bf16[24, 13]
%b = weight "b" : f32[24]
%c = weight "c" : bf16[24]
%s = weight "s" : f32[3]
%kv = weight "kv" : bf16[24, 24]
%kc = state "keys.0" : bf16[C, 1, 8]
%vc = state "values.0" : bf16[C, 1, 8]
%k8 = weight "k8" : bf16[8, 24]
%v8 = weight "v8" : bf16[8, 24]
%k = matmul %x %k8 : f32[T, 1, 8]
%v = matmul %r %v8 : f32[T, 1, 8]
%in = state "inputs.0" {start=zeros, replay=once} : f32[3, 24]
%cw = weight "cw" : f32[24, 1, 4]
%q3 = weight "q3" : bf16[3, 24]
%h3 = matmul %r %q3 : f32[T, 3]
%me = state "memory.0" {start=zeros, replay=once} : f32[3, 8, 8]
%w1 = weight "w1" : f32[1]
"#;

#[test]
fn each_op_agrees_with_the_interpreter() {
    let cases = [
        "%y = add %x %r : f32[T, 24]",
        "%y = mul %x %r : f32[T, 24]",
        "%y = scale %x {factor=-0.3} : f32[T, 24]",
        "%y = glu %x %r : f32[T, 24]",
        "%y = glu %q %q : f32[T, 3, 8]",
        "%g = weight \"g\" : bf16[1, 24]\n%o = matmul %x %g : f32[T, 1]\n%y = glu %x %o : f32[T, 24]",
        "%lg = matmul %x %w7 : f32[T, 7]\n%ch, %sh = route %lg {top_k=3, scoring=softmax, normalise} : i32[T, 3], f32[T, 3]\n%gw = weight \"gw\" : bf16[7, 13, 24]\n%uw = weight \"uw\" : bf16[7, 13, 24]\n%dw = weight \"dw\" : bf16[7, 10, 13]\n%y = experts %x %ch %sh %gw %uw %dw {activation=silu, gated} : f32[T, 10]",
        "%lg = matmul %x %w7 : f32[T, 7]\n%ch, %sh = route %lg {top_k=2, scoring=sigmoid, scale=1.5} : i32[T, 2], f32[T, 2]\n%uw = weight \"uw\" : f32[7, 5, 24]\n%dw = weight \"dw\" : f16[7, 24, 5]\n%y = experts %r %ch %sh %uw %dw {activation=gelu} : f32[T, 24]",
        "%lg = matmul %x %w7 : f32[T, 7]\n%cb = weight \"cb\" : f32[7]\n%ch, %sh = route %lg %cb {top_k=3, scoring=sigmoid, bias, normalise, scale=2.5} : i32[T, 3], f32[T, 3]\n%uw = weight \"uw\" : bf16[7, 5, 24]\n%dw = weight \"dw\" : bf16[7, 24, 5]\n%y = experts %x %ch %sh %uw %dw {activation=gelu} : f32[T, 24]",
        "%lg = matmul %x %w7 : f32[T, 7]\n%cb = weight \"cb\" : f32[7]\n%ch, %sh = route %lg %cb {top_k=2, scoring=softmax, bias} : i32[T, 2], f32[T, 2]\n%uw = weight \"uw\" : bf16[7, 5, 24]\n%dw = weight \"dw\" : bf16[7, 24, 5]\n%y = experts %x %ch %sh %uw %dw {activation=silu} : f32[T, 24]",
        "%y = mul %q %h3 : f32[T, 3, 8]",
        "%y = add %q %h3 : f32[T, 3, 8]",
        "%y = glu %q %h3 : f32[T, 3, 8]",
        "%y = mul %q %s : f32[T, 3, 8]",
        "%y = add %x %c : f32[T, 24]",
        "%y = mul %x %w1 : f32[T, 24]",
        "%y = decay %h3 %s : f32[T, 3]",
        "%y = sigmoid %x : f32[T, 24]",
        "%y = softplus %x : f32[T, 24]",
        "%y = exp %x : f32[T, 24]",
        "%d = decay %h3 %s : f32[T, 3]\n%y, %s1 = recall %k %k %q %d %me %p : f32[T, 3, 8], f32[3, 8, 8]",
        "%d = decay %h3 %s : f32[T, 3]\n%be = sigmoid %h3 : f32[T, 3]\n%n1 = rms_norm %k {eps=0.01, weight=0} : f32[T, 1, 8]\n%kk = scale %n1 {factor=0.35} : f32[T, 1, 8]\n%y, %s1 = recall %k %kk %q %d %be %me %p {delta} : f32[T, 3, 8], f32[3, 8, 8]",
        "%so = softplus %q : f32[T, 3, 8]\n%d = decay %so %s : f32[T, 3, 8]\n%y, %s1 = recall %k %k %q %d %me %p : f32[T, 3, 8], f32[3, 8, 8]",
        "%y, %s1 = conv %x %in %p %cw : f32[T, 24], f32[3, 24]",
        "%y, %s1 = conv %q %in %p %cw %b {bias} : f32[T, 3, 8], f32[3, 24]",
        "%y = softcap %x {cap=0.7} : f32[T, 24]",
        "%y = clamp %x {limit=0.4} : f32[T, 24]",
        "%y = silu %x : f32[T, 24]",
        "%y = gelu %x : f32[T, 24]",
        "%y = gelu_tanh %x : f32[T, 24]",
        "%y = relu %x : f32[T, 24]",
        "%y = relu2 %x : f32[T, 24]",
        "%y = rms_norm %x %n {eps=0.01, offset=1} : f32[T, 24]",
        "%y = rms_norm %q %hn {eps=0.01} : f32[T, 3, 8]",
        "%y = rms_norm %x {eps=0.01, weight=0} : f32[T, 24]",
        "%y = layer_norm %x %n %nb {eps=0.01, bias} : f32[T, 24]",
        "%y = layer_norm %x {eps=0.01, weight=0} : f32[T, 24]",
        "%y = rope %q %p {theta=100, dim=8} : f32[T, 3, 8]",
        "%y = rope %q %p {theta=100, dim=6, interleaved} : f32[T, 3, 8]",
        "%y = rope %q %p {theta=100, dim=4, scaling=llama3(factor=32, low_freq_factor=1, high_freq_factor=4, original=64)} : f32[T, 3, 8]",
        "%y = rope %q %p {theta=100, dim=4, scaling=longrope(factors=[1, 3], attention_factor=1.2)} : f32[T, 3, 8]",
        "%y = matmul %x %w : f32[T, 24]",
        "%y = matmul %x %w7 : f32[T, 7]",
        "%y = matmul %x %f : f32[T, 13]",
        "%y = matmul %x %h : f32[T, 13]",
        "%y = matmul %x %wt {transposed} : f32[T, 13]",
        "%y = matmul %x %w %b {biases=[1]} : f32[T, 24]",
        "%y = matmul_activated %x %w %b {biases=[1], activation=gelu_tanh} : f32[T, 24]",
        "%y = matmul_add %x %w %r : f32[T, 24]",
        "%y = matmul_gated_add %x %w %u %b %c %r {biases=[1, 1], activation=silu} : f32[T, 24]",
        "%y = norm_matmul_gated %x %n %nb %w %u %c {norm=layer_norm(eps=0.1, bias), biases=[0, 1], activation=gelu} : f32[T, 24]",
        "%a, %z, %d = norm_matmul %x %n %w %w7 %u %b {norm=rms_norm(eps=0.1), biases=[0, 0, 1]} : f32[T, 24], f32[T, 7], f32[T, 24]\n%y = add %a %d : f32[T, 24]",
        "%a, %z = norm_matmul %x %n %w %w7 {norm=rms_norm(eps=0.1)} : f32[T, 24], f32[T, 7]\n%y = silu %z : f32[T, 7]",
        "%y, %i = norm_matmul_sample %x %n %w7 {norm=rms_norm(eps=0.1)} : f32[T, 7], i32[T]",
        "%a, %i = matmul_sample %x %w7 : f32[T, 7], i32[T]\n%d = scale %a {factor=0.5} : f32[T, 7]\n%y = softcap %d {cap=2} : f32[T, 7]",
        "%a = kv_append %kc %k %p : bf16[C, 1, 8]\n%d = kv_append %vc %v %p : bf16[C, 1, 8]\n%y = attention %q %a %d %p {scale=0.4} : f32[T, 3, 8]",
        "%a = kv_append %kc %k %p : bf16[C, 1, 8]\n%d = kv_append %vc %v %p : bf16[C, 1, 8]\n%o = attention %q %a %d %p %s {scale=0.4, window=3, softcap=0.5, sinks} : f32[T, 3, 8]\n%y = matmul %o %w : f32[T, 24]",
        "%y, %a, %d = append_attention %q %k %v %kc %vc %p {scale=0.5, window=2} : f32[T, 3, 8], bf16[C, 1, 8], bf16[C, 1, 8]",
        "%y, %a, %d = norm_rope_append_attention_proj_add %q %k %v %kc %vc %p %hn %w %b %r {scale=0.5, proj_bias, q_norm=rms_norm(eps=0.1), k_norm=rms_norm(eps=0.2, weight=0), rope=rope(theta=100, dim=8, interleaved)} : f32[T, 24], bf16[C, 1, 8], bf16[C, 1, 8]",
        "%a = kv_append %kc %k %p : bf16[C, 1, 8]\n%d = kv_append %vc %v %p : bf16[C, 1, 8]\n%y = attention_proj %q %a %d %p %wt2 {scale=0.4, proj_transposed} : f32[T, 5]",
    ];
    for case in cases {
        let extra = if case.contains("%wt2") { "%wt2 = weight \"wt2\" : bf16[24, 5]\n" } else { "" };
        let text = format!("{LEAVES}{extra}{case}\nreturn %y\n");
        check(&text, &text);
    }
}

/// A layer of 9 heads of 8 that share 3 key heads, widths that fill no panel and no group, biases, norms of heads, a tied head.
fn model(fused: bool) -> String {
    let mut text = String::from(
        r#"
%t = input "tokens" : i32[T]
%p = input "positions" : i32[T]
%e = weight "e" : bf16[257, 72]
%x0 = embedding %t %e : f32[T, 72]
"#,
    );
    let cache = "bf16[C, 3, 8]";
    for layer in 0..2 {
        let next = layer + 1;
        for (name, shape) in [
            ("n1", "f32[72]"),
            ("n2", "f32[72]"),
            ("qn", "bf16[8]"),
            ("kn", "bf16[8]"),
            ("wq", "bf16[72, 72]"),
            ("wk", "bf16[24, 72]"),
            ("wv", "bf16[24, 72]"),
            ("bq", "bf16[72]"),
            ("wo", "bf16[72, 72]"),
            ("wg", "bf16[101, 72]"),
            ("wu", "bf16[101, 72]"),
            ("wd", "bf16[72, 101]"),
        ] {
            text += &format!("%{name}{layer} = weight \"{layer}.{name}\" : {shape}\n");
        }
        text += &format!(
            "%kc{layer} = state \"keys.{layer}\" : {cache}\n%vc{layer} = state \"values.{layer}\" : {cache}\n"
        );
        let rope = "theta=10000, dim=8";
        let lines = if fused {
            format!(
                "%q, %k, %v = norm_matmul %x# %n1# %wq# %wk# %wv# %bq# {{norm=rms_norm(eps=1e-5), biases=[1, 0, 0]}} : f32[T, 9, 8], f32[T, 3, 8], f32[T, 3, 8]
%y, %ka, %va = norm_rope_append_attention_proj_add %q %k %v %kc# %vc# %p %qn# %kn# %wo# %x# {{scale=0.35, q_norm=rms_norm(eps=1e-5), k_norm=rms_norm(eps=1e-5), rope=rope({rope})}} : f32[T, 72], {cache}, {cache}
%g = norm_matmul_gated %y %n2# %wg# %wu# {{norm=rms_norm(eps=1e-5), activation=silu}} : f32[T, 101]
%x{next} = matmul_add %g %wd# %y : f32[T, 72]
"
            )
        } else {
            format!(
                "%h = rms_norm %x# %n1# {{eps=1e-5}} : f32[T, 72]
%q0 = matmul %h %wq# %bq# {{biases=[1]}} : f32[T, 9, 8]
%k0 = matmul %h %wk# : f32[T, 3, 8]
%v0 = matmul %h %wv# : f32[T, 3, 8]
%q1 = rms_norm %q0 %qn# {{eps=1e-5}} : f32[T, 9, 8]
%k1 = rms_norm %k0 %kn# {{eps=1e-5}} : f32[T, 3, 8]
%q2 = rope %q1 %p {{{rope}}} : f32[T, 9, 8]
%k2 = rope %k1 %p {{{rope}}} : f32[T, 3, 8]
%ka = kv_append %kc# %k2 %p : {cache}
%va = kv_append %vc# %v0 %p : {cache}
%o = attention %q2 %ka %va %p {{scale=0.35}} : f32[T, 9, 8]
%o1 = reshape %o : f32[T, 72]
%o2 = matmul %o1 %wo# : f32[T, 72]
%y = add %x# %o2 : f32[T, 72]
%h2 = rms_norm %y %n2# {{eps=1e-5}} : f32[T, 72]
%g0 = matmul %h2 %wg# : f32[T, 101]
%u0 = matmul %h2 %wu# : f32[T, 101]
%g1 = silu %g0 : f32[T, 101]
%g = mul %g1 %u0 : f32[T, 101]
%d = matmul %g %wd# : f32[T, 72]
%x{next} = add %y %d : f32[T, 72]
"
            )
        };
        // Names of one layer are told apart by its number.
        let numbered = lines.replace('#', &layer.to_string());
        text += &rename(&numbered, layer);
    }
    text += "%n = weight \"n\" : f32[72]\n";
    text += if fused {
        "%l, %i = norm_matmul_sample %x2 %n %e {norm=rms_norm(eps=1e-5)} : f32[T, 257], i32[T]\nreturn %l, %i, %ka_0, %va_0, %ka_1, %va_1\n"
    } else {
        "%hl = rms_norm %x2 %n {eps=1e-5} : f32[T, 72]\n%l = matmul %hl %e : f32[T, 257]\n%i = sample %l : i32[T]\nreturn %l, %i, %ka_0, %va_0, %ka_1, %va_1\n"
    };
    text
}

/// Appends `_LAYER` to the values that a layer defines, but to what the next one reads.
fn rename(lines: &str, layer: usize) -> String {
    let defined: Vec<String> = lines
        .lines()
        .filter_map(|line| line.split_once(" = "))
        .flat_map(|(results, _)| results.split(", ").map(str::to_owned))
        .filter(|name| !name.starts_with("%x"))
        .collect();
    let separators = [' ', ',', '\n'];
    lines
        .split_inclusive(separators)
        .map(|word| {
            let name = word.trim_end_matches(separators);
            match defined.iter().any(|known| known == name) {
                true => format!("{name}_{layer}{}", &word[name.len()..]),
                false => word.to_owned(),
            }
        })
        .collect()
}

#[test]
fn whole_models_fused_and_not_agree_with_the_interpreter() {
    let plain = model(false);
    check(&plain, &plain);
    check(&model(true), &plain);
}

#[test]
fn sequences_of_a_batch_do_not_touch_each_other() {
    for fused in [false, true] {
        let graph = parse(&model(fused));
        let mut batch = load(&graph, 2, 3);
        // Prompts of different lengths in one call, then a step of all three.
        let prompts: Vec<Row> = [rows(0, 0..5), rows(1, 0..3), rows(2, 0..8)].concat();
        batch.forward(&prompts, Logits::None).expect("it runs");
        let step = [rows(2, 8..9), rows(0, 5..6), rows(1, 3..4)].concat();
        let found = batch.forward(&step, Logits::All).expect("it runs").to_vec();
        for (i, (sequence, length)) in [(2, 9), (0, 6), (1, 4)].into_iter().enumerate() {
            let expected = reference(&graph, sequence, length);
            assert_near(&found[i * 257..][..257], &expected[expected.len() - 257..], "a batch of three");
        }
    }
}

#[test]
fn long_prompts_pass_in_chunks() {
    let graph = parse(&model(true));
    let expected = reference(&graph, 0, 290);
    let mut model = load(&graph, 2, 1);
    let found = model.forward(&rows(0, 0..290), Logits::All).expect("it runs").to_vec();
    assert_near(&found, &expected, "290 rows, all logits");
    let last = model.forward(&rows(0, 0..290), Logits::Last).expect("it runs");
    assert_eq!(last, &found[289 * 257..]);
    assert!(model.forward(&rows(0, 0..290), Logits::None).expect("it runs").is_empty());
}

#[test]
fn threads_and_runs_do_not_show_in_the_bits() {
    let graph = parse(&model(true));
    let run = |threads| {
        let mut model = load(&graph, threads, 1);
        let mut logits = model.forward(&rows(0, 0..40), Logits::All).expect("it runs").to_vec();
        for position in 40..60 {
            logits.extend(model.forward(&rows(0, position..position + 1), Logits::All).expect("it runs"));
        }
        logits.iter().map(|logit| logit.to_bits()).collect::<Vec<u32>>()
    };
    let one = run(1);
    for threads in [1, 2, 3, 7] {
        assert!(run(threads) == one, "{threads} threads differ from one");
    }
}

#[test]
fn portable_code_agrees_too() {
    let graph = parse(&model(true));
    let mut model = load(&graph, 2, 1);
    model.isa = super::math::Isa::portable();
    let found = model.forward(&rows(0, 0..9), Logits::All).expect("it runs").to_vec();
    assert_near(&found, &reference(&graph, 0, 9), "portable");
}

#[test]
fn bad_rows_and_weights_are_refused() {
    let graph = parse(&model(true));
    let mut loaded = load(&graph, 1, 1);
    let row = Row { token: 1, position: 0, sequence: 0 };
    let mut refused = |rows: &[Row]| loaded.forward(rows, Logits::Last).expect_err("refused").to_string();
    assert_eq!(refused(&[Row { token: 257, ..row }]), "token 257 is beyond the vocabulary of 257");
    assert_eq!(
        refused(&[Row { position: 300, ..row }]),
        "position 300 is beyond the context of 300: ask for a larger one, or for less text"
    );
    assert_eq!(refused(&[Row { sequence: 1, ..row }]), "sequence 1 is beyond the 1 that have caches");
    assert_eq!(refused(&[row, row]), "two rows are at position 0 of sequence 0");

    let learned = parse(&format!("{LEAVES}%y = add %x %r : f32[T, 24]\nreturn %y\n"));
    let options = CpuOptions { threads: 1, context: 301, sequences: 1 };
    let error = CpuModel::load(&learned, &Random(&learned), options).err().expect("refused");
    let message = "a context of 301 positions is beyond the 300 that the model has learned; ask for at most 300";
    assert_eq!(error.root_cause().to_string(), message);

    struct Wrong;
    impl WeightSource for Wrong {
        fn shape(&self, _: &WeightRef) -> Result<Vec<usize>> {
            Ok(vec![3, 72])
        }
        fn read_f32(&self, _: &WeightRef) -> Result<Vec<f32>> {
            Ok(vec![0.0; 216])
        }
        fn read_rows_f32(&self, _: &WeightRef, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
            out.resize(rows.len() * 72, 0.0);
            Ok(())
        }

        fn raw_format(&self, _: &WeightRef) -> Result<Option<Format>> {
            Ok(None)
        }

        fn raw_rows(&self, weight: &WeightRef, _: Range<usize>, _: &mut Vec<u8>) -> Result<()> {
            anyhow::bail!("{weight} is not stored as rows of blocks")
        }
    }
    let error = CpuModel::load(&graph, &Wrong, CpuOptions { context: 300, ..options }).err().expect("refused");
    assert_eq!(error.root_cause().to_string(), "weight 0.n1 is [3, 72] in the checkpoint, [72] in the graph");
    let huge = CpuOptions { context: 1 << 40, ..options };
    let error = CpuModel::load(&graph, &Random(&graph), huge).err().expect("refused").to_string();
    assert!(error.contains("would fit, or a smaller batch"), "{error}");
}

#[test]
fn weights_of_a_step_are_counted_once_a_product() {
    let layer = 72 * 72 + 2 * 24 * 72 + 72 * 72 + 3 * 101 * 72;
    for fused in [false, true] {
        let loaded = load(&parse(&model(fused)), 1, 1);
        assert_eq!(loaded.weight_bytes_per_step(), 2 * (2 * layer + 257 * 72));
        assert_eq!(loaded.cache_bytes_per_step(9), 4 * 4 * 24 * 10);
    }
}

/// Where each token changes a state: sequences side by side, one begun again, and rows that follow nothing.
#[test]
fn states_go_on_and_begin_anew() {
    let text = format!("{LEAVES}%y, %s1 = conv %x %in %p %cw : f32[T, 24], f32[3, 24]\nreturn %y\n");
    let graph = parse(&text);
    let mut model = load(&graph, 2, 2);
    assert!(!model.resumes());
    let expected = [0, 1].map(|sequence| reference(&graph, sequence, 6));
    model.forward(&rows(0, 0..3), Logits::None).expect("it runs");
    model.forward(&rows(1, 0..5), Logits::None).expect("it runs");
    let both = [rows(0, 3..4), rows(1, 5..6)].concat();
    let found = model.forward(&both, Logits::All).expect("it runs").to_vec();
    assert_near(&found, &[&expected[0][72..96], &expected[1][120..]].concat(), &text);
    for (rows, said) in [
        (rows(0, 3..4), "position 3 of sequence 0 does not follow the 4 tokens"),
        (rows(1, 7..8), "position 7 of sequence 1 does not follow the 6 tokens"),
    ] {
        let error = model.forward(&rows, Logits::All).expect_err("a state cannot go there").to_string();
        assert!(error.starts_with(said), "{error}");
    }
    let again = model.forward(&rows(0, 0..6), Logits::All).expect("it runs").to_vec();
    assert_near(&again, &expected[0], &text);
}

#[test]
fn what_does_not_fit_is_said_with_what_would() {
    const MIB: usize = 1 << 20;
    let options = CpuOptions { threads: 1, context: 1024, sequences: 2 };
    let said = |weights: usize, caches: usize, available: usize| {
        let by_format = format!("{:.2} in bf16", weights as f64 / 1024.0);
        let needed = Needed { weights: weights * MIB, caches: caches * MIB, activations: 10 * MIB, by_format };
        let bytes_as = |format: Format| match format {
            Format::Q8_0 => weights * MIB / 2,
            _ => weights * MIB / 4,
        };
        let error = check_memory(&needed, Some(available * MIB), options, &bytes_as).err();
        error.map(|error| error.to_string())
    };
    assert_eq!(said(1000, 100, 1110), None);
    assert_eq!(
        check_memory(
            &Needed { weights: 9, caches: 0, activations: 0, by_format: String::new() },
            None,
            options,
            &|_| 0
        )
        .ok(),
        Some(())
    );
    let parts = "1.08 GiB are needed (0.98 of weights: 0.98 in bf16; 0.10 of caches for 2 sequences of 1024 positions; 0.01 of activations) and";
    assert_eq!(
        said(1000, 100, 1100).as_deref(),
        Some(&*format!("{parts} 1.07 are free: --max-context 896 would fit, or --weights q8_0"))
    );
    assert_eq!(said(1000, 100, 900).as_deref(), Some(&*format!("{parts} 0.88 are free: --weights q8_0 would fit")));
    assert_eq!(said(1000, 100, 500).as_deref(), Some(&*format!("{parts} 0.49 are free: --weights q6_k would fit")));
    let none = said(1000, 100, 300).expect("it does not fit");
    assert!(none.ends_with("take weights of fewer bits (--weights), or a smaller context or batch"), "{none}");
}
