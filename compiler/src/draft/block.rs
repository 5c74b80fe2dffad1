//! What the modules of one layer are for, by their names and shapes.

use super::names::{Module, Modules};

/// The attention's modules.
#[derive(Debug, Default)]
pub(super) struct Attention {
    pub q: Option<Module>,
    pub k: Option<Module>,
    pub v: Option<Module>,
    /// q, k and v in one weight.
    pub fused: Option<Module>,
    pub o: Option<Module>,
    pub q_norm: Option<Module>,
    pub k_norm: Option<Module>,
    /// The tensor with a logit of each head that takes part in the softmax.
    pub sinks: Option<String>,
    /// q's weight has a gate behind each head.
    pub gated: bool,
}

/// The feed-forward part's modules.
#[derive(Debug, Default)]
pub(super) struct Mlp {
    pub gate: Option<Module>,
    pub up: Option<Module>,
    pub down: Option<Module>,
    /// gate and up in one weight.
    pub fused: Option<Module>,
}

/// Routed experts, and what stands beside them.
#[derive(Debug)]
pub(super) struct Experts {
    pub router: Module,
    pub each: Mlp,
    pub shared: Option<Mlp>,
    pub shared_gate: Option<Module>,
    /// What is added to each expert's score for the choice.
    pub choice_bias: Option<String>,
}

/// Where the norms of a layer stand.
#[derive(Debug, Default)]
pub(super) struct Norms {
    pub before_attention: Option<Module>,
    pub after_attention: Option<Module>,
    pub before_mlp: Option<Module>,
    pub after_mlp: Option<Module>,
}

/// Sizes that shapes are read against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub hidden: usize,
    pub heads: usize,
    /// Where the configuration or q's weight says it.
    pub head_dim: usize,
}

const ATTENTION: &[&str] = &["attn", "attention", "self_att", "mixer"];
const FUSED_QKV: &[&str] =
    &["qkv_proj", "c_attn", "query_key_value", "wqkv", "qkv", "w_pack", "in_proj", "qkv_lin", "att_proj", "attn_qkv"];
const O: &[&str] =
    &["o_proj", "out_proj", "dense", "wo", "c_proj", "o", "out_lin", "proj", "to_out", "attn_out", "out"];
const GATE: &[&str] = &["gate_proj", "gate", "w_gate", "wi_0", "fc_gate", "c_fc_0", "gate_layer", "linear_gate"];
const UP: &[&str] = &["up_proj", "up", "w_up", "wi_1", "fc_up", "c_fc_1", "linear_up", "linear_v"];
const PLAIN_UP: &[&str] = &[
    "c_fc",
    "fc1",
    "fc_in",
    "dense_h_to_4h",
    "w_in",
    "lin1",
    "fc",
    "linear_in",
    "wi",
    "linear1",
    "upscale",
    "ff_up",
    "w1",
    "linear_1",
    "up_proj",
];
const DOWN: &[&str] = &[
    "down_proj",
    "c_proj",
    "fc2",
    "fc_out",
    "dense_4h_to_h",
    "w_out",
    "lin2",
    "wo",
    "linear2",
    "down",
    "w_down",
    "w2",
    "linear_out",
    "ff_out",
    "linear_2",
    "output_linear",
    "proj",
];
const FUSED_GATE_UP: &[&str] =
    &["gate_up_proj", "w12", "gate_up", "fc1", "in_proj", "dense_h_to_4h", "wi", "linear_in", "input_linear"];

impl Attention {
    /// Takes the attention's modules.
    pub fn take(modules: &mut Modules, sizes: Sizes) -> Attention {
        let Sizes { hidden, heads, head_dim } = sizes;
        let wide = heads * head_dim;
        let inside = |module: &Module| module.below(ATTENTION) || module.stem.to_lowercase().contains("attn");
        let matrix = |module: &Module| module.shape.len() == 2 && module.shape.contains(&hidden) && module.count == 1;
        let mut one = |words: &[&str]| {
            let named = |module: &Module| matrix(module) && module.is(words);
            modules
                .take(|module| named(module) && inside(module))
                .or_else(|| modules.take(|module| named(module) && !module.below(&["mlp"])))
        };
        let [q, k, v] = [["q_proj", "wq", "query"], ["k_proj", "wk", "key"], ["v_proj", "wv", "value"]].map(|words| {
            let letter = &words[0][..1];
            let more =
                [format!("{letter}_lin"), format!("to_{letter}"), format!("{}_proj", words[2]), letter.to_owned()];
            one(&words).or_else(|| one(&more.each_ref().map(String::as_str)))
        });
        let fused = if q.is_none() { modules.take(|module| matrix(module) && module.is(FUSED_QKV)) } else { None };
        let to_hidden =
            |module: &Module| matrix(module) && module.joins(hidden, wide) && !module.below(&["mlp", "ffn"]);
        let o = modules
            .take(|module| to_hidden(module) && inside(module) && module.is(O))
            .or_else(|| modules.take(|module| to_hidden(module) && inside(module)))
            .or_else(|| modules.take(|module| to_hidden(module) && module.is(&O[..4])));
        let mut norm = |letter: &str| {
            let word = if letter == "q" { "query" } else { "key" };
            let names = [
                format!("{letter}_norm"),
                format!("{letter}_layernorm"),
                format!("{letter}_ln"),
                format!("{word}_layernorm"),
            ];
            let mut more: Vec<&str> = names.iter().map(String::as_str).collect();
            let other = format!("{word}_norm");
            more.push(&other);
            modules.take(|module| module.shape.len() == 1 && module.is(&more))
        };
        let (q_norm, k_norm) = (norm("q"), norm("k"));
        let sinks = modules.odd.iter().find(|(name, shape)| name.ends_with("sinks") && **shape == [heads]);
        let sinks = sinks.map(|(name, _)| name.clone());
        if let Some(name) = &sinks {
            modules.odd.remove(name);
        }
        let gated = q.as_ref().is_some_and(|q| wide != hidden / 2 && q.joins(2 * wide, hidden));
        Attention { q, k, v, fused, o, q_norm, k_norm, sinks, gated }
    }

    /// Whether each part is there.
    pub fn is_whole(&self) -> bool {
        let split = self.q.is_some() && self.k.is_some() && self.v.is_some();
        (split || self.fused.is_some()) && self.o.is_some() && self.q_norm.is_some() == self.k_norm.is_some()
    }
}

impl Mlp {
    /// Takes a feed-forward part's modules among those that `inside` accepts.
    pub fn take(modules: &mut Modules, hidden: usize, inside: impl Fn(&Module) -> bool) -> Mlp {
        let matrix = |module: &Module| module.shape.len() == 2 && module.shape.contains(&hidden) && inside(module);
        let numbered =
            |modules: &Modules, word: &str| modules.iter().any(|module| matrix(module) && module.is(&[word]));
        // w1, w2 and w3 are gate, down and up since Llama; without a w3 there is no gate.
        if numbered(modules, "w1") && numbered(modules, "w3") {
            let [gate, down, up] =
                ["w1", "w2", "w3"].map(|word| modules.take(|module| matrix(module) && module.is(&[word])));
            return Mlp { gate, up, down, fused: None };
        }
        // Qwen's first: w2 is the gate of w1.
        if numbered(modules, "w1") && numbered(modules, "w2") && numbered(modules, "c_proj") {
            let [gate, down, up] =
                ["w2", "c_proj", "w1"].map(|word| modules.take(|module| matrix(module) && module.is(&[word])));
            return Mlp { gate, up, down, fused: None };
        }
        let gate = modules.take(|module| matrix(module) && module.is(GATE));
        let up = modules.take(|module| matrix(module) && module.is(if gate.is_some() { UP } else { PLAIN_UP }));
        let down = modules.take(|module| matrix(module) && module.is(DOWN));
        let mut mlp = Mlp { gate, up, down, fused: None };
        let inner = mlp.down.as_ref().map(|down| inner(down, hidden));
        if let (None, Some(inner)) = (&mlp.gate, inner) {
            // One weight that makes twice what the last one reads holds both.
            let double = |module: &Module| module.joins(hidden, 2 * inner);
            match mlp.up.take_if(|up| double(up)) {
                Some(up) => mlp.fused = Some(up),
                None if mlp.up.is_none() => {
                    mlp.fused = modules.take(|module| matrix(module) && double(module) && module.is(FUSED_GATE_UP));
                }
                None => {}
            }
        }
        mlp
    }

    /// Takes the tensors that hold all experts, with a leading axis more: `[experts, out, in]`, gate and up in one.
    fn stacked(modules: &mut Modules, hidden: usize) -> Option<Mlp> {
        let down = modules.iter().find(|module| module.shape.len() == 3 && module.shape[1] == hidden)?.clone();
        let wide = [down.shape[0], 2 * down.shape[2], hidden];
        let fused = modules.take(|module| module.shape == wide)?;
        modules.take(|module| *module == down);
        Some(Mlp { down: Some(down), fused: Some(fused), ..Mlp::default() })
    }

    /// Whether each part is there.
    pub fn is_whole(&self) -> bool {
        self.down.is_some() && (self.up.is_some() || self.fused.is_some())
    }

    /// The values inside.
    pub fn inner(&self, hidden: usize) -> Option<usize> {
        self.down.as_ref().map(|down| inner(down, hidden))
    }
}

/// The size of a matrix that is not `hidden`.
fn inner(module: &Module, hidden: usize) -> usize {
    let matrix = &module.shape[module.shape.len().saturating_sub(2)..];
    matrix.iter().copied().find(|size| *size != hidden).unwrap_or(hidden)
}

impl Experts {
    /// Takes routed experts, where there are some.
    pub fn take(modules: &mut Modules, hidden: usize) -> Option<Experts> {
        let each = |module: &Module| module.stem.contains("{expert}") || module.shape.len() == 3;
        let of = |module: &Module| if module.shape.len() == 3 { module.shape[0] } else { module.count };
        let count = modules.iter().find(|module| each(module)).map(of)?;
        let router =
            modules.take(|module| module.shape == [count, hidden] && !each(module) && !module.below(ATTENTION))?;
        let choice_bias = modules.take_odd(|name, shape| name.ends_with("correction_bias") && shape == [count]);
        let choice_bias = choice_bias.map(|(name, _)| name);
        let shared_gate = modules.take(|module| module.shape == [1, hidden] && module.stem.contains("shared"));
        let each = Mlp::stacked(modules, hidden).unwrap_or_else(|| Mlp::take(modules, hidden, each));
        let shared = Mlp::take(modules, hidden, |module| module.stem.contains("shared"));
        Some(Experts { router, each, shared: shared.is_whole().then_some(shared), shared_gate, choice_bias })
    }
}

impl Norms {
    /// Takes the norms over a whole row. What stands where follows from the names, and from how many there are.
    pub fn take(modules: &mut Modules, hidden: usize) -> Norms {
        // A norm inside a block, as BitNet has, has no place in a draft.
        let found = modules.take_all(|module| module.shape == [hidden] && !module.last().contains("sub_norm"));
        let mut norms = Norms::default();
        let many = found.len() > 2;
        let feed = |name: &str| {
            ["feedforward", "feed_forward", "ffn", "mlp", "_ff_", "ff_norm"].iter().any(|word| name.contains(word))
        };
        let mut rest = Vec::new();
        for module in found {
            let name = module.stem.to_lowercase();
            let last = module.last().to_lowercase();
            let attention = name.contains("attention") || name.contains("attn");
            let place = if feed(&last) {
                if last.contains("post") && !last.contains("pre") {
                    &mut norms.after_mlp
                } else {
                    &mut norms.before_mlp
                }
            } else if last.contains("post") && attention {
                // Llama's name for the norm before its MLP.
                let own = last.contains("self_att") || last.contains("post_attn");
                if many && own { &mut norms.after_attention } else { &mut norms.before_mlp }
            } else if is_second(&last) {
                &mut norms.before_mlp
            } else {
                &mut norms.before_attention
            };
            match place {
                None => *place = Some(module),
                Some(_) => rest.push(module),
            }
        }
        norms.settle(rest, modules);
        norms
    }

    /// Corrects what names put in the wrong place, and returns what has none.
    fn settle(&mut self, mut rest: Vec<Module>, modules: &mut Modules) {
        // Two names for what is before the MLP: the one of the attention stands after the attention.
        if let Some(at) = rest.iter().position(|module| module.stem.to_lowercase().contains("att"))
            && self.after_attention.is_none()
        {
            self.after_attention = Some(rest.remove(at));
        } else if let (Some(_), true) = (&self.before_mlp, !rest.is_empty() && self.after_attention.is_none()) {
            let attention = self.before_mlp.as_ref().is_some_and(|module| module.stem.to_lowercase().contains("att"));
            if attention && let Some(at) = rest.iter().position(|module| !module.stem.to_lowercase().contains("att")) {
                self.after_attention = self.before_mlp.replace(rest.remove(at));
            }
        }
        // Norms after both blocks and none before: OLMo 2.
        if self.before_attention.is_none() && self.after_mlp.is_some() && self.after_attention.is_none() {
            self.after_attention = self.before_mlp.take();
        }
        modules.put_back(rest);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        [&self.before_attention, &self.after_attention, &self.before_mlp, &self.after_mlp]
            .iter()
            .filter(|n| n.is_some())
            .count()
    }
}

/// Whether a norm is a layer's second one by its name.
fn is_second(last: &str) -> bool {
    last.ends_with('2') || ["final_layer_norm", "post_layernorm", "output_layernorm"].contains(&last)
}
