//! An op from its name and attributes.

use std::str::FromStr;

use super::error::ParseError;
use super::scan::{Attribute, AttributeValue, Form, Scan};
use crate::ir::text::weights_implied;
use crate::ir::{
    Activation, Attention, Conv, Epilogue, Experts, Function, Gating, Matmul, Norm, NormKind, Op, Projection, Rope,
    RopeScaling,
};
use crate::ir::{Recall, Replay, Route, Scoring, Start, State};

/// The op of that name. `leaf` is the text in quotes after it, `results` how many types follow.
pub(super) fn build(
    scan: &Scan,
    column: usize,
    name: &str,
    leaf: Option<String>,
    attributes: Vec<Attribute>,
    results: usize,
) -> Result<Op, ParseError> {
    let mut attributes = Attributes::new(scan, name, column, attributes);
    let (has_leaf, leaf) = (leaf.is_some(), leaf.unwrap_or_default());
    let op = match name {
        "input" => Op::Input(leaf),
        "weight" => Op::Weight(leaf.into()),
        "state" => Op::State(State {
            name: leaf,
            start: named(&mut attributes, "start", &Start::ALL, Start::name)?.unwrap_or_default(),
            replay: named(&mut attributes, "replay", &Replay::ALL, Replay::name)?.unwrap_or_default(),
        }),
        "embedding" => Op::Embedding,
        "rms_norm" => Op::Norm(norm(&mut attributes, NormKind::Rms)?),
        "layer_norm" => Op::Norm(norm(&mut attributes, NormKind::Layer)?),
        "rope" => Op::Rope(rope(&mut attributes)?),
        "kv_append" => Op::KvAppend,
        "head_product" => Op::HeadProduct,
        "concat" => Op::Concat,
        "add" => Op::Add,
        "mul" => Op::Mul,
        "glu" => Op::Glu,
        "decay" => Op::Decay,
        "route" => Op::Route(Route {
            top_k: attributes.number("top_k")?,
            scoring: named(&mut attributes, "scoring", &Scoring::ALL, Scoring::name)?
                .ok_or_else(|| attributes.missing("scoring"))?,
            bias: attributes.flag("bias", false)?,
            normalise: attributes.flag("normalise", false)?,
            scale: attributes.optional_number("scale")?.unwrap_or(1.0),
            expert_scale: attributes.flag("expert_scale", false)?,
            groups: match attributes.optional_number("groups")? {
                Some(count) => Some([count, attributes.number("kept")?]),
                None => None,
            },
        }),
        "experts" => {
            let activation = activation(&mut attributes)?.ok_or_else(|| attributes.missing("activation"))?;
            Op::Experts(Experts {
                activation,
                gated: attributes.flag("gated", false)?,
                gating: Gating {
                    limit: attributes.optional_number("limit")?,
                    slope: attributes.optional_number("slope")?.unwrap_or(1.0),
                    offset: attributes.optional_number("offset")?.unwrap_or(0.0),
                },
                biased: attributes.flag("biased", false)?,
                down_bias: attributes.flag("down_bias", false)?,
            })
        }
        "scale" => Op::Scale(attributes.number("factor")?),
        "softcap" => Op::Softcap(attributes.number("cap")?),
        "clamp" => Op::Clamp(attributes.number("limit")?),
        "conv" => Op::Conv(Conv { bias: attributes.flag("bias", false)? }),
        "recall" => Op::Recall(Recall { delta: attributes.flag("delta", false)? }),
        "reshape" => Op::Reshape,
        "sample" => Op::Sample,
        _ => match (Activation::parse(name), Function::parse(name)) {
            (Some(activation), _) => Op::Activation(activation),
            (_, Some(function)) => Op::Function(function),
            _ if name.contains("matmul") => Op::Matmul(matmul(&mut attributes, name, results)?),
            _ if name.contains("attention") => Op::Attention(attention(&mut attributes, name)?),
            _ => return Err(scan.error_at(column, format!("unknown op `{name}`"))),
        },
    };
    attributes.finish()?;
    let is_leaf = matches!(op, Op::Input(_) | Op::Weight(_) | Op::State(_));
    if has_leaf != is_leaf {
        let says = if is_leaf { "needs a name in double quotes" } else { "takes no name in quotes" };
        return Err(scan.error_at(column, format!("{name} {says}")));
    }
    if op.name() != name {
        let message = format!("the name is {name}, but by its attributes this is {}", op.name());
        return Err(scan.error_at(column, message));
    }
    Ok(op)
}

fn matmul(attributes: &mut Attributes<'_>, name: &str, results: usize) -> Result<Matmul, ParseError> {
    let gated = name.contains("_gated");
    let epilogue = match activation(attributes)? {
        None => Epilogue::None,
        Some(activation) if gated => Epilogue::Gate(activation),
        Some(activation) => Epilogue::Activate(activation),
    };
    let mut matmul = Matmul {
        norm: norm_attribute(attributes, "norm")?,
        biases: Vec::new(),
        transposed: attributes.flag("transposed", false)?,
        epilogue,
        residual: name.contains("_add"),
        sample: name.ends_with("_sample"),
    };
    matmul.biases = match attributes.take("biases") {
        None => vec![false; weights_implied(&matmul, results)],
        Some(value) => {
            let flags = attributes.list(&value)?;
            flags.iter().map(|flag| attributes.truth(flag)).collect::<Result<_, _>>()?
        }
    };
    Ok(matmul)
}

fn activation(attributes: &mut Attributes<'_>) -> Result<Option<Activation>, ParseError> {
    let Some(value) = attributes.take("activation") else { return Ok(None) };
    let word = attributes.word(&value, "an activation")?;
    let unknown = || attributes.error(&value, format!("unknown activation `{word}`"));
    Activation::parse(word).ok_or_else(unknown).map(Some)
}

/// `attribute=word`, where the word is the name of one of `all`.
fn named<V: Copy>(
    attributes: &mut Attributes<'_>,
    attribute: &str,
    all: &[V],
    name: impl Fn(V) -> &'static str,
) -> Result<Option<V>, ParseError> {
    let Some(value) = attributes.take(attribute) else { return Ok(None) };
    let words: Vec<String> = all.iter().map(|&one| format!("`{}`", name(one))).collect();
    let words = words.join(" or ");
    let word = attributes.word(&value, &words)?;
    let found = all.iter().copied().find(|&one| name(one) == word);
    found.map(Some).ok_or_else(|| attributes.error(&value, format!("expected {words}, found `{word}`")))
}

fn attention(attributes: &mut Attributes<'_>, name: &str) -> Result<Attention, ParseError> {
    let proj = Projection {
        bias: attributes.flag("proj_bias", false)?,
        residual: name.ends_with("_add"),
        transposed: attributes.flag("proj_transposed", false)?,
    };
    let projected = name.contains("_proj");
    if !projected && (proj.bias || proj.transposed) {
        let message = format!("{name} has no projection for proj_bias or proj_transposed to speak of");
        return Err(attributes.scan.error_at(attributes.column, message));
    }
    Ok(Attention {
        scale: attributes.number("scale")?,
        window: attributes.optional_number("window")?,
        softcap: attributes.optional_number("softcap")?,
        sinks: attributes.flag("sinks", false)?,
        latent: attributes.optional_number("latent")?,
        append: name.contains("append_"),
        q_norm: norm_attribute(attributes, "q_norm")?,
        k_norm: norm_attribute(attributes, "k_norm")?,
        rope: attributes.nested("rope", |nested, name| match name {
            "rope" => rope(nested).map(Some),
            _ => Ok(None),
        })?,
        proj: projected.then_some(proj),
    })
}

fn norm_attribute(attributes: &mut Attributes<'_>, name: &str) -> Result<Option<Norm>, ParseError> {
    attributes.nested(name, |nested, name| match name {
        "rms_norm" => norm(nested, NormKind::Rms).map(Some),
        "layer_norm" => norm(nested, NormKind::Layer).map(Some),
        _ => Ok(None),
    })
}

fn norm(attributes: &mut Attributes<'_>, kind: NormKind) -> Result<Norm, ParseError> {
    Ok(Norm {
        kind,
        eps: attributes.number("eps")?,
        offset: attributes.optional_number("offset")?.unwrap_or(0.0),
        weight: attributes.flag("weight", true)?,
        bias: attributes.flag("bias", false)?,
    })
}

fn rope(attributes: &mut Attributes<'_>) -> Result<Rope, ParseError> {
    Ok(Rope {
        theta: attributes.number("theta")?,
        dim: attributes.number("dim")?,
        interleaved: attributes.flag("interleaved", false)?,
        scaling: attributes.nested("scaling", scaling)?.unwrap_or(RopeScaling::None),
    })
}

fn scaling(attributes: &mut Attributes<'_>, name: &str) -> Result<Option<RopeScaling>, ParseError> {
    Ok(Some(match name {
        "linear" => RopeScaling::Linear { factor: attributes.number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: attributes.number("factor")?,
            low_freq_factor: attributes.number("low_freq_factor")?,
            high_freq_factor: attributes.number("high_freq_factor")?,
            original: attributes.number("original")?,
        },
        "yarn" => RopeScaling::Yarn {
            factor: attributes.number("factor")?,
            beta_fast: attributes.number("beta_fast")?,
            beta_slow: attributes.number("beta_slow")?,
            original: attributes.number("original")?,
            attention_factor: attributes.number("attention_factor")?,
            truncate: attributes.flag("truncate", false)?,
        },
        "proportional" => {
            RopeScaling::Proportional { factor: attributes.number("factor")?, part: attributes.number("part")? }
        }
        "longrope" => RopeScaling::LongRope {
            factors: match attributes.take("factors") {
                None => return Err(attributes.missing("factors")),
                Some(value) => {
                    let factors = attributes.list(&value)?;
                    factors.iter().map(|factor| attributes.parsed(factor)).collect::<Result<_, _>>()?
                }
            },
            attention_factor: attributes.number("attention_factor")?,
        },
        _ => return Ok(None),
    }))
}

/// The attributes of one op or nested value; each is taken once, and none may be left.
struct Attributes<'s> {
    scan: &'s Scan,
    owner: String,
    column: usize,
    left: Vec<Attribute>,
    known: Vec<String>,
}

impl<'s> Attributes<'s> {
    fn new(scan: &'s Scan, owner: &str, column: usize, left: Vec<Attribute>) -> Attributes<'s> {
        Attributes { scan, owner: owner.into(), column, left, known: Vec::new() }
    }

    fn take(&mut self, name: &str) -> Option<AttributeValue> {
        self.known.push(name.into());
        let index = self.left.iter().position(|attribute| attribute.name == name)?;
        Some(self.left.remove(index).value)
    }

    /// Whatever is left is unknown here, or written twice.
    fn finish(self) -> Result<(), ParseError> {
        let Some(Attribute { name, column, .. }) = self.left.first() else {
            return Ok(());
        };
        let owner = &self.owner;
        let message = match &self.known[..] {
            known if known.contains(name) => format!("`{name}` is written twice"),
            [] => format!("{owner} has no attributes"),
            known => format!("{owner} has no attribute `{name}`; it has {}", known.join(", ")),
        };
        Err(self.scan.error_at(*column, message))
    }

    fn number<N: Number>(&mut self, name: &str) -> Result<N, ParseError> {
        self.optional_number(name)?.ok_or_else(|| self.missing(name))
    }

    fn optional_number<N: Number>(&mut self, name: &str) -> Result<Option<N>, ParseError> {
        self.take(name).map(|value| self.parsed(&value)).transpose()
    }

    fn flag(&mut self, name: &str, default: bool) -> Result<bool, ParseError> {
        self.take(name).map_or(Ok(default), |value| self.truth(&value))
    }

    /// `name=call(…)`. `build` gets what stands in brackets, and returns `None` where it knows no such call.
    fn nested<V>(
        &mut self,
        name: &str,
        build: impl Fn(&mut Attributes<'s>, &str) -> Result<Option<V>, ParseError>,
    ) -> Result<Option<V>, ParseError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let AttributeValue { column, form: Form::Call(call, inner) } = value else {
            return Err(self.error(&value, format!("`{name}` needs a value such as `call(…)`")));
        };
        let mut nested = Attributes::new(self.scan, &call, column, inner);
        match build(&mut nested, &call)? {
            Some(built) => nested.finish().map(|()| Some(built)),
            None => Err(self.scan.error_at(column, format!("`{name}` knows no `{call}`"))),
        }
    }

    fn word<'v>(&self, value: &'v AttributeValue, what: &str) -> Result<&'v str, ParseError> {
        match &value.form {
            Form::Word(word) => Ok(word),
            _ => Err(self.error(value, format!("expected {what}"))),
        }
    }

    fn list<'v>(&self, value: &'v AttributeValue) -> Result<&'v [AttributeValue], ParseError> {
        match &value.form {
            Form::List(values) => Ok(values),
            _ => Err(self.error(value, "expected a list in square brackets")),
        }
    }

    fn truth(&self, value: &AttributeValue) -> Result<bool, ParseError> {
        match &value.form {
            Form::Flag => Ok(true),
            Form::Word(word) if word == "1" || word == "true" => Ok(true),
            Form::Word(word) if word == "0" || word == "false" => Ok(false),
            _ => Err(self.error(value, "expected 0 or 1")),
        }
    }

    fn parsed<N: Number>(&self, value: &AttributeValue) -> Result<N, ParseError> {
        let word = self.word(value, N::WHAT)?;
        let number = word.parse::<N>().ok().filter(N::is_usable);
        number.ok_or_else(|| self.error(value, format!("expected {}, found `{word}`", N::WHAT)))
    }

    fn missing(&self, name: &str) -> ParseError {
        self.scan.error_at(self.column, format!("{} needs the attribute `{name}`", self.owner))
    }

    fn error(&self, value: &AttributeValue, message: impl Into<String>) -> ParseError {
        self.scan.error_at(value.column, message)
    }
}

/// A number that the text form writes.
trait Number: FromStr {
    const WHAT: &'static str;

    fn is_usable(&self) -> bool;
}

impl Number for usize {
    const WHAT: &'static str = "a whole number";

    fn is_usable(&self) -> bool {
        true
    }
}

impl Number for f32 {
    const WHAT: &'static str = "a finite number";

    fn is_usable(&self) -> bool {
        self.is_finite()
    }
}

impl Number for f64 {
    const WHAT: &'static str = "a finite number";

    fn is_usable(&self) -> bool {
        self.is_finite()
    }
}
