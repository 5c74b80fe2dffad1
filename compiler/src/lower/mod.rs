//! A resolved description to a graph: one call, one or a few nodes. What does not fit together is an error on the call's line.

mod attributes;
mod experts;
mod heads;
mod pairs;
mod recurrent;
mod rope;
mod shapes;

use std::collections::BTreeMap;

use crate::description::{Call, Code, Diagnostic, Diagnostics, OpName, RESULT, Resolved};
use crate::ir::{
    Activation, Attention, Format, Function, Graph, Matmul, Norm, NormKind, Op, Part, Rope, State, Type, Value,
    WeightRef,
};

use attributes::{count, mismatch, number, part, positive};
use shapes::{Heads, words};

/// Values of a weight, at most: hundreds of times the largest that there is.
const LARGEST_WEIGHT: usize = 1 << 40;

/// The graph of a model. A weight has the format that `formats` gives for its tensor, caches are `bf16`, activations `f32`.
///
/// `context` is the longest sequence that is meant to run, in positions; none: what the configuration says. Some scalings of RoPE depend on it.
/// Inputs are `tokens` and `positions`. Outputs, in order: the logits `f32[T, vocabulary]`, the sampled token `i32[T]`, each layer's caches after the
/// step, keys before values (`keys.N`, `values.N`), and what else outlives it, in the order of the layers (`inputs.N`, `memory.N`). Attention appends to its layer's caches before it reads them. A weight that is named twice is one
/// node.
///
/// # Errors
/// Shapes that do not fit together, on the lines at fault.
pub fn lower(
    resolved: &Resolved,
    formats: &dyn Fn(&str) -> Format,
    context: Option<usize>,
) -> Result<Graph, Diagnostics> {
    lower_traced(resolved, formats, context).map(|(graph, _)| graph)
}

/// As [`lower`], with the value in the graph that each of the calls defines, in their order.
///
/// # Errors
/// As [`lower`].
pub fn lower_traced(
    resolved: &Resolved,
    formats: &dyn Fn(&str) -> Format,
    context: Option<usize>,
) -> Result<(Graph, Vec<Value>), Diagnostics> {
    let mut trace = Vec::with_capacity(resolved.calls.len());
    let mut lowering = Lowering {
        graph: Graph::new(&resolved.name),
        formats,
        context: context.or(resolved.facts.max_position_embeddings),
        values: BTreeMap::new(),
        weights: BTreeMap::new(),
        caches: BTreeMap::new(),
        states: Vec::new(),
    };
    for input in ["tokens", "positions"] {
        let value = lowering.graph.value(Op::Input(input.to_owned()), &[], Type::tokens(), None);
        lowering.values.insert(input.to_owned(), value);
    }
    let mut diagnostics = Diagnostics::new(resolved.source.clone());
    for call in &resolved.calls {
        // What depends on a wrong value would only echo its error.
        match lowering.call(call) {
            Ok(value) => trace.push(value),
            Err(diagnostic) => {
                diagnostics.push(diagnostic);
                return Err(diagnostics);
            }
        }
    }
    if let Err(diagnostic) = lowering.finish(resolved) {
        diagnostics.push(diagnostic);
    }
    diagnostics.into_result((lowering.graph, trace))
}

struct Lowering<'f> {
    graph: Graph,
    /// Of a tensor.
    formats: &'f dyn Fn(&str) -> Format,
    context: Option<usize>,
    /// The node that each name stands for at this point.
    values: BTreeMap<String, Value>,
    weights: BTreeMap<WeightRef, Value>,
    /// Keys and values, or keys only, of each layer after the step.
    caches: BTreeMap<usize, Vec<Value>>,
    /// Name and value of each other state after the step.
    states: Vec<(String, Value)>,
}

type Lowered = Result<Value, Diagnostic>;

impl Lowering<'_> {
    fn call(&mut self, call: &Call) -> Lowered {
        let value = match call.op {
            OpName::Embedding => self.embedding(call),
            OpName::Linear => self.linear(call),
            OpName::HeadLinear => self.head_linear(call),
            OpName::Concat => self.concat(call),
            OpName::RmsNorm => self.norm(call, NormKind::Rms),
            OpName::LayerNorm => self.norm(call, NormKind::Layer),
            OpName::Rope => self.rope(call),
            OpName::Attention => self.attention(call),
            OpName::Reshape => self.reshape(call),
            OpName::Glu => self.pair(call, Op::Glu),
            OpName::Decay => self.decay(call),
            OpName::Sigmoid => self.plain(call, Op::Function(Function::Sigmoid)),
            OpName::Softplus => self.plain(call, Op::Function(Function::Softplus)),
            OpName::Exp => self.plain(call, Op::Function(Function::Exp)),
            OpName::Experts => self.experts(call),
            OpName::Conv => self.conv(call),
            OpName::Recall => self.recall(call),
            OpName::Add => self.pair(call, Op::Add),
            OpName::Mul => self.pair(call, Op::Mul),
            OpName::Silu => self.plain(call, Op::Activation(Activation::Silu)),
            OpName::Gelu => self.plain(call, Op::Activation(Activation::Gelu)),
            OpName::GeluTanh => self.plain(call, Op::Activation(Activation::GeluTanh)),
            OpName::Relu => self.plain(call, Op::Activation(Activation::Relu)),
            OpName::Relu2 => self.plain(call, Op::Activation(Activation::Relu2)),
            OpName::Activation => unreachable!("resolving names the activation"),
            OpName::Scale => self.plain(call, Op::Scale(number(call, "factor"))),
            OpName::Clamp => {
                let limit = positive(call, "limit")?;
                self.plain(call, Op::Clamp(limit))
            }
            OpName::Softcap => {
                let cap = positive(call, "cap")?;
                self.plain(call, Op::Softcap(cap))
            }
        }?;
        self.values.insert(call.outs[0].clone(), value);
        Ok(value)
    }

    fn embedding(&mut self, call: &Call) -> Lowered {
        let ids = self.operand(call, "ids");
        if *self.graph.type_of(ids) != Type::tokens() {
            let name = &call.values["ids"];
            return Err(mismatch(call, format!("`ids` is `tokens` or `positions`; `{name}` is an activation")));
        }
        let (rows, features) = (count(call, "rows"), count(call, "features"));
        let part = call.count("offset").map(|first| Part { axis: 0, first, size: rows, step: first + rows });
        let table = self.named_weight(call, &WeightRef::of(&call.weights["weight"], None, part), &[rows, features])?;
        Ok(self.node(call, Op::Embedding, &[ids, table], Type::activation(&[features])))
    }

    fn linear(&mut self, call: &Call) -> Lowered {
        let x = self.activation(call, "x")?;
        let inputs = self.graph.type_of(x).row_size();
        let sizes = match (call.count("heads"), call.count("head_dim")) {
            (Some(heads), Some(head_dim)) => vec![heads, head_dim],
            (None, None) => vec![count(call, "features")],
            (Some(_), None) | (None, Some(_)) => {
                return Err(mismatch(call, "`heads` and `head_dim` are given together, or neither is"));
            }
        };
        let outputs = sizes.iter().product();
        let transposed = call.flag("transposed");
        let shape = if transposed { [inputs, outputs] } else { [outputs, inputs] };
        let name = |role: &str, axis: usize| -> Result<WeightRef, Diagnostic> {
            Ok(WeightRef::of(&call.weights[role], None, part(call, "part", axis, outputs)?))
        };
        let mut operands = vec![x, self.named_weight(call, &name("weight", usize::from(transposed))?, &shape)?];
        let bias = call.weights.contains_key("bias");
        if bias {
            operands.push(self.named_weight(call, &name("bias", 0)?, &[outputs])?);
        }
        let matmul = Matmul { transposed, ..Matmul::plain(bias) };
        Ok(self.node(call, Op::Matmul(matmul), &operands, Type::activation(&sizes)))
    }

    fn norm(&mut self, call: &Call, kind: NormKind) -> Lowered {
        let x = self.activation(call, "x")?;
        let result = self.graph.type_of(x).clone();
        let size = result.last_size().expect("an activation has a last axis");
        let mut operands = vec![x];
        for role in ["weight", "bias"] {
            if call.weights.contains_key(role) {
                operands.push(self.weight(call, role, &[size])?);
            }
        }
        let eps = number(call, "eps");
        if eps < 0.0 {
            return Err(mismatch(call, format!("`eps` is {eps}, and must be at least 0")));
        }
        let norm = Norm {
            kind,
            eps,
            offset: call.float("offset").unwrap_or(0.0) as f32,
            weight: call.weights.contains_key("weight"),
            bias: call.weights.contains_key("bias"),
        };
        Ok(self.node(call, Op::Norm(norm), &operands, result))
    }

    fn reshape(&mut self, call: &Call) -> Lowered {
        let x = self.activation(call, "x")?;
        let ty = self.graph.type_of(x).clone();
        let values = ty.row_size();
        let sizes = match call.count("heads") {
            Some(heads) if !values.is_multiple_of(heads) => {
                return Err(mismatch(call, format!("`x` is {}, which {heads} heads cannot share evenly", words(&ty))));
            }
            Some(heads) => vec![heads, values / heads],
            None => vec![count(call, "features")],
        };
        if sizes.iter().product::<usize>() != values {
            return Err(mismatch(call, format!("`x` is {}, and cannot be {} in one piece", words(&ty), sizes[0])));
        }
        Ok(self.node(call, Op::Reshape, &[x], Type::activation(&sizes)))
    }

    fn rope(&mut self, call: &Call) -> Lowered {
        let x = self.activation(call, "x")?;
        let heads = self.heads(call, "x")?;
        let dim = call.count("dim").unwrap_or(heads.size);
        if dim > heads.size || !dim.is_multiple_of(2) {
            let message = format!("`x` has {heads}: RoPE cannot turn {dim} values of each");
            return Err(mismatch(call, message).help("`dim` is even and at most the size of a head"));
        }
        positive(call, "theta")?;
        let (theta, scaling) = rope::scaled(call, dim, self.context)?;
        let rope = Rope { theta, dim, interleaved: call.flag("interleaved"), scaling };
        let result = self.graph.type_of(x).clone();
        let positions = self.values["positions"];
        Ok(self.node(call, Op::Rope(rope), &[x, positions], result))
    }

    /// Caches of the layer, appended to, and attention over them.
    fn attention(&mut self, call: &Call) -> Lowered {
        let (q, k) = (self.heads(call, "q")?, self.heads(call, "k")?);
        let latent = call.count("values");
        let v = if latent.is_some() { self.heads(call, "k")? } else { self.heads(call, "v")? };
        let differ = |message: String| Err(mismatch(call, message));
        if k != v {
            return differ(format!("`k` has {k}, `v` has {v}: they must be alike"));
        }
        if q.size != k.size {
            return differ(format!("`q` has {q}, `k` has {k}: heads must be of one size"));
        }
        if !q.count.is_multiple_of(k.count) {
            return differ(format!("`q` has {q}, `k` has {k}: the heads of `q` cannot share those of `k` evenly"));
        }
        let Some(layer) = call.layer else {
            return differ("attention needs its layer's cache, and [embed] and [head] have none".to_owned());
        };
        if self.caches.contains_key(&layer) {
            return differ("a layer has one attention: its cache is the layer's".to_owned());
        }
        let positions = self.values["positions"];
        let cache = Type::cache(Format::BF16, k.count, k.size);
        if let Some(values) = latent.filter(|values| *values > k.size) {
            return differ(format!("`values` is {values}, and `k` has {k}"));
        }
        let kept = [("keys", "k"), ("values", "v")].into_iter().take(if latent.is_some() { 1 } else { 2 });
        let append = |(state, role): (&str, &str)| {
            let before = self.node(call, Op::State(State::cache(format!("{state}.{layer}"))), &[], cache.clone());
            let step = self.operand(call, role);
            self.node(call, Op::KvAppend, &[before, step, positions], cache.clone())
        };
        let caches: Vec<Value> = kept.map(append).collect();
        let softcap = match call.float("softcap") {
            Some(_) => Some(positive(call, "softcap")?),
            None => None,
        };
        let sinks = call.weights.contains_key("sinks");
        let plain = Attention::plain(number(call, "scale"));
        let attention = Attention { window: call.count("window"), softcap, sinks, latent, ..plain };
        let heads = q.count;
        let q = self.operand(call, "q");
        let result = match latent {
            Some(values) => Type::activation(&[heads, values]),
            None => self.graph.type_of(q).clone(),
        };
        let mut operands = vec![q];
        operands.extend(&caches);
        operands.push(positions);
        self.caches.insert(layer, caches);
        if sinks {
            operands.push(self.weight(call, "sinks", &[heads])?);
        }
        Ok(self.node(call, Op::Attention(attention), &operands, result))
    }

    fn plain(&mut self, call: &Call, op: Op) -> Lowered {
        let x = self.activation(call, "x")?;
        let result = self.graph.type_of(x).clone();
        Ok(self.node(call, op, &[x], result))
    }

    /// Samples from the logits and names the outputs.
    fn finish(&mut self, resolved: &Resolved) -> Result<(), Diagnostic> {
        let logits = self.values[RESULT];
        let ty = self.graph.type_of(logits).clone();
        let vocabulary = resolved.facts.vocab_size;
        if ty != Type::activation(&[vocabulary]) {
            let message = format!("`{RESULT}` is {}, and the vocabulary has {vocabulary} tokens", words(&ty));
            let call = resolved.calls.iter().rev().find(|call| call.outs.iter().any(|out| out == RESULT));
            let diagnostic = Diagnostic::new(Code::ShapeMismatch, message);
            return Err(match call {
                Some(call) => diagnostic.at(call.span.clone(), ""),
                None => diagnostic,
            });
        }
        let token = self.graph.value(Op::Sample, &[logits], Type::tokens(), None);
        self.graph.outputs = vec![logits, token];
        self.graph.outputs.extend(self.caches.values().flatten());
        self.graph.outputs.extend(self.states.iter().map(|(_, state)| state));
        Ok(())
    }

    fn node(&mut self, call: &Call, op: Op, operands: &[Value], result: Type) -> Value {
        self.graph.value(op, operands, result, call.layer)
    }

    fn operand(&self, call: &Call, role: &str) -> Value {
        // Resolving has made sure that each value that is read is defined.
        self.values[&call.values[role]]
    }

    /// An operand that is not token ids or positions.
    fn activation(&self, call: &Call, role: &str) -> Lowered {
        let value = self.operand(call, role);
        if *self.graph.type_of(value) == Type::tokens() {
            let name = &call.values[role];
            let message = format!("`{role}` must be an activation; `{name}` is one int per token");
            return Err(mismatch(call, message).help("only `embedding` reads `tokens` and `positions`"));
        }
        Ok(value)
    }

    fn heads(&self, call: &Call, role: &str) -> Result<Heads, Diagnostic> {
        let value = self.activation(call, role)?;
        let ty = self.graph.type_of(value);
        Heads::of(ty).ok_or_else(|| {
            let message = format!("`{role}` (`{}`) must have heads, and is {}", call.values[role], words(ty));
            mismatch(call, message).help("the `linear` that makes it has `heads` in place of `features`")
        })
    }

    fn weight(&mut self, call: &Call, role: &str, shape: &[usize]) -> Lowered {
        self.named_weight(call, &WeightRef::whole(&call.weights[role]), shape)
    }

    fn named_weight(&mut self, call: &Call, name: &WeightRef, shape: &[usize]) -> Lowered {
        self.named(call, name, shape, shape.len() > 1)
    }

    /// A weight, of blocks only where it `may` be.
    fn named(&mut self, call: &Call, name: &WeightRef, shape: &[usize], may: bool) -> Lowered {
        let formats: Vec<Format> = name.tensors().iter().map(|tensor| (self.formats)(tensor)).collect();
        if let Some((tensor, other)) = name.tensors().iter().zip(&formats).find(|(_, format)| **format != formats[0]) {
            let message = format!("`{name}` is {} and {tensor} {}", formats[0].name(), other.name());
            return Err(mismatch(call, message).help("the experts of a layer are one weight, which has one format"));
        }
        // What cuts blocks has no rows of them: its values are widened, exactly.
        let blocks = may && name.has_whole_blocks(shape, formats[0]);
        let format = if blocks || formats[0].block().0 == 1 { formats[0] } else { Format::F32 };
        self.weight_of_type(call, name, Type::weight(format, shape))
    }

    fn weight_of_type(&mut self, call: &Call, name: &WeightRef, ty: Type) -> Lowered {
        if let Some(known) = self.weights.get(name) {
            let before = self.graph.type_of(*known);
            if *before == ty {
                return Ok(*known);
            }
            let message = format!("`{name}` is {} here and {} where it was used before", words(&ty), words(before));
            return Err(mismatch(call, message));
        }
        let values = ty.fixed_sizes().try_fold(1usize, |product, size| product.checked_mul(size));
        if values.is_none_or(|values| values > LARGEST_WEIGHT) {
            let message = format!("`{name}` would be {}: no weight has more than 2^40 values", words(&ty));
            return Err(mismatch(call, message).help("look for a size in the configuration that is far too large"));
        }
        let value = self.graph.value(Op::Weight(name.clone()), &[], ty, call.layer);
        self.weights.insert(name.clone(), value);
        Ok(value)
    }
}
