//! The operations of the language, as one table: reading, checking, messages and documentation all come from it.

/// Every operation, in the order the documentation lists them.
pub const SIGNATURES: &[Signature] = &[
    Signature {
        op: OpName::Embedding,
        doc: "Rows of a table, one for each id.",
        values: &[value("ids", "`tokens` or `positions`")],
        weights: &[weight("weight", "`[rows, features]`")],
        attributes: &[
            attribute("rows", Kind::Count, Default::Key("vocab_size"), "rows of the table"),
            attribute("features", Kind::Count, Default::Key("hidden_size"), "size of a row"),
            attribute(
                "offset",
                Kind::Count,
                Default::Absent,
                "rows of the tensor before that of id 0; not counted in `rows`",
            ),
        ],
        one_of: &[],
    },
    Signature {
        op: OpName::Linear,
        doc: "W x + b over all that `x` has for a token.",
        values: &[value("x", "input")],
        weights: &[
            weight("weight", "`[out, in]`, or `[in, out]` where transposed"),
            optional_weight("bias", "`[out]`"),
        ],
        attributes: &[
            attribute("features", Kind::Count, Default::Absent, "size of the result, in one piece"),
            attribute("heads", Kind::Count, Default::Absent, "the result is split into that many heads"),
            attribute("head_dim", Kind::Count, Default::KeyWith("heads", "head_dim"), "size of a head"),
            attribute("transposed", Kind::Bool, Default::Bool(false), "the weight is stored `[in, out]`"),
            attribute(
                "part",
                Kind::Part,
                Default::Absent,
                "of every `step` outputs of a fused weight, `size` from `first` on",
            ),
        ],
        one_of: &["features", "heads"],
    },
    Signature {
        op: OpName::HeadLinear,
        doc: "Each head of `x` by a matrix of its own.",
        values: &[value("x", "with heads")],
        weights: &[weight(
            "weight",
            "`[heads of x · out, in]`, the rows of one head after the other's; or `[heads of x · in, out]` where transposed",
        )],
        attributes: &[
            attribute("features", Kind::Count, Default::Required, "size of a head of the result"),
            attribute("transposed", Kind::Bool, Default::Bool(false), "the matrix of a head is stored `[in, out]`"),
            attribute(
                "part",
                Kind::Part,
                Default::Absent,
                "of every `step` rows of a fused weight, `size` from `first` on",
            ),
        ],
        one_of: &[],
    },
    Signature {
        op: OpName::Concat,
        doc: "The values of each head of `a`, then those of `b`.",
        values: &[value("a", "with heads"), value("b", "with as many heads")],
        ..PLAIN
    },
    Signature {
        op: OpName::RmsNorm,
        doc: "x / sqrt(mean(x²) + eps) · (w + offset), over the last axis: the whole row, or each head of a value that has heads.",
        values: &[value("x", "input")],
        weights: &[optional_weight("weight", "`[size of the last axis]`")],
        attributes: &[
            attribute("eps", Kind::Float, Default::Required, "added to the mean square"),
            attribute("offset", Kind::Float, Default::Float(0.0), "added to the weight"),
        ],
        one_of: &[],
    },
    Signature {
        op: OpName::LayerNorm,
        doc: "(x - mean(x)) / sqrt(var(x) + eps) · (w + offset) + b, over the last axis.",
        values: &[value("x", "input")],
        weights: &[
            optional_weight("weight", "`[size of the last axis]`"),
            optional_weight("bias", "`[size of the last axis]`"),
        ],
        attributes: &[
            attribute("eps", Kind::Float, Default::Required, "added to the variance"),
            attribute("offset", Kind::Float, Default::Float(0.0), "added to the weight"),
        ],
        one_of: &[],
    },
    Signature {
        op: OpName::Rope,
        doc: "Rotary position embedding of each head.",
        values: &[value("x", "a value with heads")],
        weights: &[],
        attributes: &[
            attribute("theta", Kind::Float, Default::Required, "base of the frequencies"),
            attribute("scaling", Kind::RopeScaling, Default::Absent, "a rope_scaling table, or null"),
            attribute("dim", Kind::Count, Default::Absent, "how much of a head rotates; all of it unless given"),
            attribute("interleaved", Kind::Bool, Default::Bool(false), "pairs are neighbours, not halves"),
        ],
        one_of: &[],
    },
    Signature {
        op: OpName::Attention,
        doc: "Causal attention over this layer's cache, to which k and v are appended first. Query heads share key heads in consecutive groups.",
        values: &[
            value("q", "queries, with heads"),
            value("k", "keys, with heads"),
            optional_value("v", "values, with heads"),
        ],
        weights: &[optional_weight(
            "sinks",
            "`[heads of q]`, a logit that takes part in the softmax and adds no value",
        )],
        attributes: &[
            attribute("scale", Kind::Float, Default::Required, "multiplies q · k"),
            attribute("window", Kind::Count, Default::Absent, "each token sees itself and the window - 1 before it"),
            attribute("softcap", Kind::Float, Default::Absent, "cap · tanh(score / cap)"),
            attribute(
                "values",
                Kind::Count,
                Default::Absent,
                "in the place of v: values are that many of their key, the first, and only keys are kept",
            ),
        ],
        one_of: &["v", "values"],
    },
    Signature {
        op: OpName::Reshape,
        doc: "The same values, in heads or in one piece.",
        attributes: &[
            attribute("features", Kind::Count, Default::Absent, "values of a token, in one piece"),
            attribute("heads", Kind::Count, Default::Absent, "heads they fall into"),
        ],
        one_of: &["features", "heads"],
        ..PLAIN
    },
    Signature { op: OpName::Add, doc: "a + b, or a + w, element by element.", ..PAIR },
    Signature { op: OpName::Mul, doc: "a · b, or a · w, element by element.", ..PAIR },
    Signature {
        op: OpName::Glu,
        doc: "a · sigmoid(b).",
        values: &[value("a", "left"), value("b", "right, of `a`'s size or one value per token or per head")],
        ..PLAIN
    },
    Signature {
        op: OpName::Experts,
        doc: "Σ share · down(f(gate x) · up x) over the experts of the largest `top_k` router logits; f(up x) without a gate. \
              Shares are the softmax over all logits, in fp32. With `choice_bias`, the experts are those of the largest sums of it and the softmax or sigmoid. \
              With `limit`, `slope` and `up_offset` an expert is down(f(slope · g) / slope · (u + up_offset)), g = gate x at most `limit`, u = up x within ±limit.",
        values: &[value("x", "input"), value("router", "a logit for each expert")],
        weights: &[
            optional_weight(
                "gate",
                "`[features, in]` of each expert, `{expert}` in its name; or one tensor whose first axis is the experts",
            ),
            weight("up", "as `gate`"),
            weight("down", "`[out, features]` of each expert, named alike"),
            optional_weight("gate_bias", "`[features]` of each expert, named or stacked as its weight"),
            optional_weight("up_bias", "likewise; with a gate both have one, or neither"),
            optional_weight("down_bias", "`[out]` of each expert, likewise"),
            optional_weight("choice_bias", "`[experts]`, fp32; counts only for the choice, not for the shares"),
            optional_weight("expert_scale", "`[experts]`, multiplies the share of each"),
        ],
        attributes: &[
            attribute("top_k", Kind::Count, Default::Required, "experts per token"),
            attribute("features", Kind::Count, Default::Required, "values inside an expert"),
            attribute("out_features", Kind::Count, Default::Key("hidden_size"), "size of the result"),
            attribute("kind", Kind::Activation, Default::Required, "a Hugging Face name: `hidden_act`"),
            attribute("gate_part", Kind::Part, Default::Absent, "of a fused weight, as `part` of `linear`"),
            attribute("up_part", Kind::Part, Default::Absent, "likewise"),
            attribute(
                "transposed",
                Kind::Bool,
                Default::Bool(false),
                "the weights of each expert are stored `[in, out]`",
            ),
            attribute("limit", Kind::Float, Default::Absent, "bounds the two products of an expert with a gate"),
            attribute("slope", Kind::Float, Default::Float(1.0), "of the activation function of the gate"),
            attribute("up_offset", Kind::Float, Default::Float(0.0), "added to the product that is not the gate"),
            attribute("normalise", Kind::Bool, Default::Bool(false), "divide the shares by their sum"),
            attribute(
                "groups",
                Kind::Count,
                Default::Absent,
                "consecutive groups of experts, the best of which are chosen from: by their best expert, with a `choice_bias` by their two best",
            ),
            attribute("kept_groups", Kind::Count, Default::Absent, "how many of the groups are chosen from"),
            attribute("sigmoid", Kind::Bool, Default::Bool(false), "shares are the sigmoid of each logit"),
            attribute("scale", Kind::Float, Default::Float(1.0), "multiplies the shares"),
        ],
        one_of: &[],
    },
    Signature {
        op: OpName::Conv,
        doc: "For each value of a token the sum of w · x over the last `taps` tokens, its own being the last: a short causal convolution. The last inputs are kept from step to \
              step; before the first token they are zeros.",
        values: &[value("x", "input")],
        weights: &[weight("weight", "`[values of x, 1, taps]`"), optional_weight("bias", "`[values of x]`")],
        attributes: &[
            attribute("taps", Kind::Count, Default::Required, "tokens that a result depends on, its own included"),
            attribute("part", Kind::Part, Default::Absent, "of a fused weight, as `part` of `linear`"),
        ],
        ..PLAIN
    },
    Signature {
        op: OpName::Recall,
        doc: "A memory S of each head of `v`, kept from step to step; zeros before the first token. S = exp(decay) S; with `beta` the delta rule, \
              S = S + k (beta (v - S^T k))^T, without it S = S + k v^T; the result is S^T q. Heads of `v` share those of `q` and `k` in consecutive groups.",
        values: &[
            value("q", "with heads"),
            value("k", "as `q`"),
            value("v", "with heads"),
            value("decay", "logarithms: one per head of `v`, or as many per head as `k` has"),
            optional_value("beta", "one per head of `v`"),
        ],
        ..PLAIN
    },
    Signature {
        op: OpName::Decay,
        doc: "-exp(w) · x: the logarithm of a decay.",
        weights: &[weight("weight", "as of `mul`")],
        attributes: &[SHARED],
        ..PLAIN
    },
    Signature { op: OpName::Sigmoid, doc: "1 / (1 + exp(-x)).", ..PLAIN },
    Signature { op: OpName::Softplus, doc: "ln(1 + exp(x)).", ..PLAIN },
    Signature { op: OpName::Exp, doc: "exp(x).", ..PLAIN },
    Signature { op: OpName::Silu, doc: "x · sigmoid(x).", ..PLAIN },
    Signature { op: OpName::Gelu, doc: "x · Φ(x), exact.", ..PLAIN },
    Signature { op: OpName::GeluTanh, doc: "The tanh approximation of gelu.", ..PLAIN },
    Signature { op: OpName::Relu, doc: "max(x, 0).", ..PLAIN },
    Signature { op: OpName::Relu2, doc: "max(x, 0)².", ..PLAIN },
    Signature {
        op: OpName::Activation,
        doc: "The activation function that a configuration names.",
        attributes: &[attribute("kind", Kind::Activation, Default::Required, "a Hugging Face name: `hidden_act`")],
        ..PLAIN
    },
    Signature {
        op: OpName::Scale,
        doc: "factor · x.",
        attributes: &[attribute("factor", Kind::Float, Default::Required, "the factor")],
        ..PLAIN
    },
    Signature {
        op: OpName::Clamp,
        doc: "x, bounded by ±limit.",
        attributes: &[attribute("limit", Kind::Float, Default::Required, "the bound")],
        ..PLAIN
    },
    Signature {
        op: OpName::Softcap,
        doc: "cap · tanh(x / cap).",
        attributes: &[attribute("cap", Kind::Float, Default::Required, "the bound")],
        ..PLAIN
    },
];

/// Values that exist before the first operation.
pub const INPUTS: &[&str] = &["tokens", "positions"];

/// The value that `[head]` must define.
pub const RESULT: &str = "logits";

/// What one operation takes.
#[derive(Debug)]
pub struct Signature {
    /// Which operation.
    pub op: OpName,
    /// One line for the documentation.
    pub doc: &'static str,
    /// Values it reads.
    pub values: &'static [Role],
    /// Tensors of the checkpoint it reads.
    pub weights: &'static [Role],
    /// Numbers and flags.
    pub attributes: &'static [Attribute],
    /// Exactly one of these keys must be given; empty where there is no such rule.
    pub one_of: &'static [&'static str],
}

/// A value or a weight that an operation reads.
#[derive(Debug)]
pub struct Role {
    /// The key.
    pub name: &'static str,
    /// Whether it must be given.
    pub required: bool,
    /// What it is; a weight's shape.
    pub doc: &'static str,
}

/// A number or a flag of an operation.
#[derive(Debug)]
pub struct Attribute {
    /// The key.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// What holds where it is not given or yields null.
    pub default: Default,
    /// What it is.
    pub doc: &'static str,
}

/// The type of an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An int from 1 to 2^30.
    Count,
    /// A finite number.
    Float,
    /// True or false.
    Bool,
    /// The name of an activation function.
    Activation,
    /// A `rope_scaling` table.
    RopeScaling,
    /// A list `[first, size, step]`.
    Part,
}

/// What holds where an attribute is not given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Default {
    /// It must be given.
    Required,
    /// Nothing.
    Absent,
    /// A flag.
    Bool(bool),
    /// A number.
    Float(f64),
    /// The value of a configuration key.
    Key(&'static str),
    /// The value of a configuration key (second) where another attribute (first) is given; else nothing.
    KeyWith(&'static str, &'static str),
}

macro_rules! ops {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal;)*) => {
        /// An operation of the language.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum OpName { $($(#[$doc])+ $variant,)* }

        impl OpName {
            /// The name in a description.
            pub fn name(self) -> &'static str {
                match self { $(OpName::$variant => $name,)* }
            }
        }
    };
}

ops! {
    /// Rows of a table.
    Embedding = "embedding";
    /// A matrix product.
    Linear = "linear";
    /// A product of each head.
    HeadLinear = "head_linear";
    /// Heads side by side.
    Concat = "concat";
    /// RMSNorm.
    RmsNorm = "rms_norm";
    /// LayerNorm.
    LayerNorm = "layer_norm";
    /// Rotary position embedding.
    Rope = "rope";
    /// Causal attention over a cache.
    Attention = "attention";
    /// Another shape.
    Reshape = "reshape";
    /// Sum.
    Add = "add";
    /// Product.
    Mul = "mul";
    /// A product with a sigmoid.
    Glu = "glu";
    /// Routed experts.
    Experts = "experts";
    /// A short causal convolution.
    Conv = "conv";
    /// A recurrent memory.
    Recall = "recall";
    /// The logarithm of a decay.
    Decay = "decay";
    /// The logistic function.
    Sigmoid = "sigmoid";
    /// A smooth ReLU.
    Softplus = "softplus";
    /// The exponential function.
    Exp = "exp";
    /// SiLU.
    Silu = "silu";
    /// GELU.
    Gelu = "gelu";
    /// GELU by tanh.
    GeluTanh = "gelu_tanh";
    /// ReLU.
    Relu = "relu";
    /// Squared ReLU.
    Relu2 = "relu2";
    /// An activation that the configuration names.
    Activation = "activation";
    /// A constant factor.
    Scale = "scale";
    /// A hard bound.
    Clamp = "clamp";
    /// A soft bound.
    Softcap = "softcap";
}

impl Signature {
    /// The signature of the operation of that name.
    pub fn find(name: &str) -> Option<&'static Signature> {
        SIGNATURES.iter().find(|signature| signature.op.name() == name)
    }

    /// The attribute of that name.
    pub fn attribute(&self, name: &str) -> Option<&'static Attribute> {
        self.attributes.iter().find(|attribute| attribute.name == name)
    }

    /// Every key that a line of this operation may have.
    pub fn keys(&self) -> impl Iterator<Item = &'static str> {
        let roles = self.values.iter().chain(self.weights).map(|role| role.name);
        ["out", "op", "when"].into_iter().chain(roles).chain(self.attributes.iter().map(|attribute| attribute.name))
    }
}

impl Kind {
    /// What a message says an attribute of this kind needs.
    pub fn needs(self) -> &'static str {
        match self {
            Kind::Count => "an int from 1 to 2^30",
            Kind::Float => "a number that fits f32",
            Kind::Bool => "true or false",
            Kind::Activation => "the name of an activation function",
            Kind::RopeScaling => "a rope_scaling table",
            Kind::Part => "a list `[first, size, step]` of ints, with first + size at most step",
        }
    }
}

/// A value with another one or with a weight.
const PAIR: Signature = Signature {
    op: OpName::Add,
    doc: "",
    values: &[value("a", "left"), optional_value("b", "right, of `a`'s size or one value per token or per head")],
    weights: &[optional_weight("weight", "`[values of a]`, `[heads of a]` or `[1]`, the same for all tokens")],
    attributes: &[SHARED],
    one_of: &["b", "weight"],
};

/// How many values of a row share one of a weight, by its size.
const SHARED: Attribute = attribute(
    "features",
    Kind::Count,
    Default::Absent,
    "values of the weight, where they are fewer than those of a token: one for each head, or 1",
);

/// One value in, one out.
const PLAIN: Signature =
    Signature { op: OpName::Silu, doc: "", values: &[value("x", "input")], weights: &[], attributes: &[], one_of: &[] };

const fn value(name: &'static str, doc: &'static str) -> Role {
    Role { name, required: true, doc }
}

const fn optional_value(name: &'static str, doc: &'static str) -> Role {
    Role { name, required: false, doc }
}

const fn weight(name: &'static str, doc: &'static str) -> Role {
    Role { name, required: true, doc }
}

const fn optional_weight(name: &'static str, doc: &'static str) -> Role {
    Role { name, required: false, doc }
}

const fn attribute(name: &'static str, kind: Kind, default: Default, doc: &'static str) -> Attribute {
    Attribute { name, kind, default, doc }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_has_one_signature_and_distinct_keys() {
        for (index, signature) in SIGNATURES.iter().enumerate() {
            assert!(!signature.doc.is_empty());
            assert_eq!(SIGNATURES.iter().position(|other| other.op == signature.op), Some(index));
            let keys: Vec<_> = signature.keys().collect();
            let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
            assert_eq!(keys.len(), distinct.len(), "{}", signature.op.name());
            assert!(signature.one_of.iter().all(|name| keys.contains(name)));
        }
    }
}
