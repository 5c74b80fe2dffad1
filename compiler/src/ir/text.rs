//! The text form, written: what dumps, tests and errors show. [`Graph::parse`] reads it back, exactly.
//!
//! ```text
//! graph "llama"
//! %0 = input "tokens" : i32[T]
//! %1 = weight "embed.weight" : bf16[256, 64]
//! %2 = embedding %0 %1 : f32[T, 64]
//! %3 = weight "layers.0.norm.weight" : bf16[64] @0
//! %4 = rms_norm %2 %3 {eps=1e-5} : f32[T, 64] @0
//! return %4
//! ```
//! A line is a node: its results, the op, operands as [`Op::roles`] orders them, attributes that differ from their
//! defaults, the type of each result, `@` and the layer. Values are numbered in [`Graph::ordered`] order.

use std::collections::HashMap;
use std::fmt::{self, Write};

use super::{
    Epilogue, Graph, Matmul, NodeId, Norm, NormKind, Op, Projection, Replay, Results, Rope, RopeScaling, Start, Value,
};

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Names::of(self);
        if !self.name.is_empty() {
            writeln!(f, "graph {}", quoted(&self.name))?;
        }
        for &node in names.live() {
            writeln!(f, "{}", names.line(self, node))?;
        }
        f.write_str("return")?;
        for (i, &output) in self.outputs.iter().enumerate() {
            write!(f, "{} {}", if i == 0 { "" } else { "," }, names.name(output))?;
        }
        f.write_char('\n')
    }
}

impl Graph {
    /// The number of each node in the text form: that of its first result.
    pub fn numbers(&self) -> HashMap<NodeId, usize> {
        let names = Names::of(self);
        names.order.iter().map(|&node| (node, names.numbers[&node.result(0)])).collect()
    }
}

/// The number of each value in the text form of one graph.
pub(super) struct Names {
    order: Vec<NodeId>,
    live: usize,
    numbers: HashMap<Value, usize>,
}

impl Names {
    /// Numbers the values that the outputs need, then the others. A cyclic graph has no order but that of its nodes.
    pub(super) fn of(graph: &Graph) -> Names {
        let mut order = if graph.has_cycle() { graph.node_ids() } else { graph.ordered() };
        order.retain(|node| graph.contains(*node));
        let live = order.len();
        let known: std::collections::HashSet<NodeId> = order.iter().copied().collect();
        order.extend(graph.node_ids().into_iter().filter(|node| !known.contains(node)));
        let mut numbers = HashMap::new();
        for &node in &order {
            for result in 0..graph.node(node).results.len() {
                numbers.insert(node.result(result), numbers.len());
            }
        }
        Names { order, live, numbers }
    }

    /// The nodes that the text form shows, in its order.
    pub(super) fn live(&self) -> &[NodeId] {
        &self.order[..self.live]
    }

    /// `%7`, or `%?` for a value that the graph lacks.
    pub(super) fn name(&self, value: Value) -> String {
        self.numbers.get(&value).map_or("%?".into(), |number| format!("%{number}"))
    }

    /// The line of a node, without its end.
    pub(super) fn line(&self, graph: &Graph, id: NodeId) -> String {
        let node = graph.node(id);
        let results: Vec<String> = (0..node.results.len()).map(|result| self.name(id.result(result))).collect();
        let mut line = format!("{} = {}", results.join(", "), node.op.name());
        if let Some(name) = node.op.leaf() {
            write!(line, " {}", quoted(&name)).expect("writing to a string");
        }
        for operand in graph.operands(id) {
            write!(line, " {}", self.name(operand)).expect("writing to a string");
        }
        let attributes = attributes(&node.op, node.results.len());
        if !attributes.is_empty() {
            write!(line, " {{{attributes}}}").expect("writing to a string");
        }
        let types: Vec<String> = node.results.iter().map(ToString::to_string).collect();
        write!(line, " : {}", types.join(", ")).expect("writing to a string");
        if let Some(layer) = node.layer {
            write!(line, " @{layer}").expect("writing to a string");
        }
        line
    }
}

/// What an op of this many results says between its braces; empty where all is default.
pub(super) fn attributes(op: &Op, results: usize) -> String {
    let mut list = List::default();
    match op {
        Op::Norm(norm) => list.norm(norm),
        Op::Rope(rope) => list.rope(rope),
        Op::Scale(factor) => list.add("factor", number(factor)),
        Op::Softcap(cap) => list.add("cap", number(cap)),
        Op::Clamp(limit) => list.add("limit", number(limit)),
        Op::Route(route) => {
            list.add("top_k", route.top_k.to_string());
            list.add("scoring", route.scoring.name().into());
            list.flag("bias", route.bias);
            list.flag("normalise", route.normalise);
            if route.scale != 1.0 {
                list.add("scale", number(&route.scale));
            }
            list.flag("expert_scale", route.expert_scale);
            if let Some([count, kept]) = route.groups {
                list.add("groups", count.to_string());
                list.add("kept", kept.to_string());
            }
        }
        Op::Experts(experts) => {
            list.add("activation", experts.activation.name().into());
            list.flag("gated", experts.gated);
            if let Some(limit) = experts.gating.limit {
                list.add("limit", number(&limit));
            }
            if experts.gating.slope != 1.0 {
                list.add("slope", number(&experts.gating.slope));
            }
            if experts.gating.offset.to_bits() != 0 {
                list.add("offset", number(&experts.gating.offset));
            }
            list.flag("biased", experts.biased);
            list.flag("down_bias", experts.down_bias);
        }
        Op::Matmul(matmul) => {
            list.call("norm", matmul.norm.as_ref(), norm_call);
            if matmul.biases.contains(&true) || matmul.biases.len() != weights_implied(matmul, results) {
                let flags: Vec<&str> = matmul.biases.iter().map(|bias| if *bias { "1" } else { "0" }).collect();
                list.add("biases", format!("[{}]", flags.join(", ")));
            }
            list.flag("transposed", matmul.transposed);
            if let Epilogue::Activate(activation) | Epilogue::Gate(activation) = matmul.epilogue {
                list.add("activation", activation.name().into());
            }
        }
        Op::Attention(attention) => {
            list.add("scale", number(&attention.scale));
            if let Some(window) = attention.window {
                list.add("window", window.to_string());
            }
            if let Some(cap) = attention.softcap {
                list.add("softcap", number(&cap));
            }
            list.flag("sinks", attention.sinks);
            if let Some(values) = attention.latent {
                list.add("latent", values.to_string());
            }
            list.call("q_norm", attention.q_norm.as_ref(), norm_call);
            list.call("k_norm", attention.k_norm.as_ref(), norm_call);
            list.call("rope", attention.rope.as_ref(), rope_call);
            if let Some(Projection { bias, residual: _, transposed }) = attention.proj {
                list.flag("proj_bias", bias);
                list.flag("proj_transposed", transposed);
            }
        }
        Op::Conv(conv) => list.flag("bias", conv.bias),
        Op::Recall(recall) => list.flag("delta", recall.delta),
        Op::State(state) => {
            if state.start != Start::default() {
                list.add("start", state.start.name().into());
            }
            if state.replay != Replay::default() {
                list.add("replay", state.replay.name().into());
            }
        }
        Op::Input(_) | Op::Weight(_) | Op::Embedding | Op::KvAppend | Op::HeadProduct | Op::Concat => {}
        Op::Add | Op::Mul | Op::Glu | Op::Decay | Op::Activation(_) | Op::Function(_) | Op::Reshape | Op::Sample => {}
    }
    list.text
}

/// How many weights a matmul has where `biases` is not written: two gated ones, else one per product.
pub(super) fn weights_implied(matmul: &Matmul, results: usize) -> usize {
    match matmul.epilogue {
        Epilogue::Gate(_) => 2,
        _ => results.saturating_sub(usize::from(matmul.sample)),
    }
}

/// Text between quotes, on one line.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            c if c.is_control() => write!(quoted, "\\u{{{:x}}}", c as u32).expect("writing to a string"),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn norm_call(norm: &Norm) -> String {
    let mut list = List::default();
    list.norm(norm);
    format!("{}({})", norm.kind.name(), list.text)
}

fn rope_call(rope: &Rope) -> String {
    let mut list = List::default();
    list.rope(rope);
    format!("rope({})", list.text)
}

fn scaling_call(scaling: &RopeScaling) -> Option<String> {
    let mut list = List::default();
    let name = match scaling {
        RopeScaling::None => return None,
        RopeScaling::Linear { factor } => {
            list.add("factor", number(factor));
            "linear"
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
            list.add("factor", number(factor));
            list.add("low_freq_factor", number(low_freq_factor));
            list.add("high_freq_factor", number(high_freq_factor));
            list.add("original", number(original));
            "llama3"
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original, attention_factor, truncate } => {
            list.add("factor", number(factor));
            list.add("beta_fast", number(beta_fast));
            list.add("beta_slow", number(beta_slow));
            list.add("original", number(original));
            list.add("attention_factor", number(attention_factor));
            list.flag("truncate", *truncate);
            "yarn"
        }
        RopeScaling::Proportional { factor, part } => {
            list.add("factor", number(factor));
            list.add("part", number(part));
            "proportional"
        }
        RopeScaling::LongRope { factors, attention_factor } => {
            let factors: Vec<String> = factors.iter().map(number).collect();
            list.add("factors", format!("[{}]", factors.join(", ")));
            list.add("attention_factor", number(attention_factor));
            "longrope"
        }
    };
    Some(format!("{name}({})", list.text))
}

/// The shortest digits that read back as the same number: `1e-5`, `10000`, `0.125`.
fn number<N: fmt::Debug>(value: &N) -> String {
    let text = format!("{value:?}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

/// Attributes, joined by commas.
#[derive(Default)]
struct List {
    text: String,
}

impl List {
    fn add(&mut self, name: &str, value: String) {
        let comma = if self.text.is_empty() { "" } else { ", " };
        write!(self.text, "{comma}{name}={value}").expect("writing to a string");
    }

    fn flag(&mut self, name: &str, set: bool) {
        if set {
            let comma = if self.text.is_empty() { "" } else { ", " };
            write!(self.text, "{comma}{name}").expect("writing to a string");
        }
    }

    fn call<V>(&mut self, name: &str, value: Option<&V>, text: impl Fn(&V) -> String) {
        if let Some(value) = value {
            self.add(name, text(value));
        }
    }

    fn norm(&mut self, norm: &Norm) {
        let Norm { kind: NormKind::Rms | NormKind::Layer, eps, offset, weight, bias } = norm;
        self.add("eps", number(eps));
        if offset.to_bits() != 0 {
            self.add("offset", number(offset));
        }
        if !weight {
            self.add("weight", "0".into());
        }
        self.flag("bias", *bias);
    }

    fn rope(&mut self, rope: &Rope) {
        self.add("theta", number(&rope.theta));
        self.add("dim", rope.dim.to_string());
        self.flag("interleaved", rope.interleaved);
        self.call("scaling", scaling_call(&rope.scaling).as_ref(), String::clone);
    }
}
