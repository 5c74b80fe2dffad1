//! A description drafted from a checkpoint: its config.json, and the names and shapes of its tensors. What they tell is written; what they do not
//! tell is a `# TODO` line.
//!
//! Nothing is decided by a family's name where a tensor or a key tells it: norms, fused and split projections, biases, the order of norms, experts,
//! learned positions, a tied head and transposed weights all show.

mod attention;
mod block;
mod ends;
mod keys;
mod names;
mod recurrent;
mod write;

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};

use crate::description::{Code, Description, Diagnostic, architectures, config_view, language_model_config};
use block::{Attention, Experts, Mlp, Norms, Sizes};
use keys::Keys;
use names::{Mixer, Module, Modules, Names};
use recurrent::Recurrent;
use write::Writer;

/// A description, written as far as names and shapes say it.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The TOML.
    pub text: String,
    /// Its `# TODO` lines.
    pub todos: usize,
    /// Tensors that nothing in it reads, each with its shape; layers are folded into `{}`.
    pub unmatched: Vec<String>,
}

/// Drafts a description. `config` is a config.json, `tensors` the shape of each tensor, slowest dimension first, without those that hold no weights; of a
/// model of several parts those of its language model, as [`crate::description::language_model_names`] calls them.
///
/// # Errors
/// A configuration that is no object, or tensors that show no layers.
pub fn draft(config: &serde_json::Value, tensors: &BTreeMap<String, Vec<usize>>) -> Result<Draft> {
    let inner = language_model_config(config);
    let config = inner.as_ref().unwrap_or(config);
    let keys = Keys::new(config_view(config).map_err(|diagnostics| anyhow!("{diagnostics}"))?);
    let mut writer = Writer::new(keys);
    let mut names = Names::of(tensors)?;
    let (hidden, head) = ends::embed(&mut writer, &mut names)?;
    let sizes = attention::sizes(&mut writer, &names, hidden);
    layer(&mut writer, &mut names, sizes);
    ends::head(&mut writer, &mut names, hidden, head);
    // The longest sequence, whatever it is called.
    writer.keys.find("max_position_embeddings");
    let layers = writer.keys.count("num_hidden_layers");
    match layers {
        Some(layers) if layers == names.layers => {}
        Some(layers) => {
            writer.todo(format!("config.json counts {layers} layers, the tensors {}", names.layers));
        }
        None => {
            writer.keys.derive("num_hidden_layers", &names.layers.to_string());
            writer.todo("no key of config.json counts the layers");
        }
    }
    let unmatched: Vec<String> = unmatched(&names).into_iter().map(|tensor| hinted(&tensor)).collect();
    let serves = architectures(config);
    let family = family(&writer.keys, &serves);
    if serves.is_empty() {
        writer.todo("config.json names no `architectures`: write under `serves` what shall find this file");
    }
    if inner.is_some() {
        writer.todo("this is the language model of a model of several parts: nothing tells whether the whole runs it otherwise, with attention that is not causal, for one");
    }
    let sketch = writer.text(&family, &serves, &names.prefix, &unmatched, &[])?;
    let description = Description::parse(&sketch, "the draft").map_err(|diagnostics| anyhow!("{diagnostics}"))?;
    match description.resolve(Some(config)) {
        Ok(resolved) => writer.expect_unread(&resolved.unread, config),
        Err(diagnostics) => {
            let unhonoured = |diagnostic: &&Diagnostic| diagnostic.code == Code::UnsupportedFeature;
            for diagnostic in diagnostics.list().iter().filter(unhonoured) {
                writer.todo(diagnostic.message.replace(&description.source().name, "this file"));
            }
        }
    }
    let preset: Vec<(&String, &serde_json::Value)> =
        config.as_object().into_iter().flatten().filter(|(key, _)| description.reads(key)).collect();
    let text = writer.text(&family, &serves, &names.prefix, &unmatched, &preset)?;
    let todos = text.lines().filter(|line| line.trim_start().starts_with("# TODO")).count();
    Ok(Draft { text, todos, unmatched })
}

/// The operations of a layer.
fn layer(writer: &mut Writer, names: &mut Names, sizes: Sizes) {
    let hidden = sizes.hidden;
    let modules = &mut names.inside;
    let mixers = Mixers::take(names.mixers.as_mut_slice(), modules, sizes);
    let kinds = &mut names.kinds;
    let experts = Experts::take(kinds.as_mut().map_or(&mut *modules, |kinds| &mut kinds.routed), hidden);
    let mlp = match (kinds.as_mut(), &experts) {
        (Some(kinds), _) => Mlp::take(&mut kinds.dense, hidden, |_| true),
        (None, Some(_)) => Mlp::default(),
        (None, None) => Mlp::take(modules, hidden, |module| !module.below(&["attn", "attention"])),
    };
    let dense = kinds.as_ref().map(|kinds| writer.dense_layers(&kinds.dense_layers));
    let norms = Norms::take(modules, hidden);
    writer.learn_orientation(mixers.attention(), &mlp, sizes);
    let bare = norms.count() == 0 && !names.outside.iter().any(|module| module.shape == [hidden]);
    let Norms { before_attention, after_attention, before_mlp, after_mlp } = norms;
    // One norm for two blocks, or two norms of the same input: both blocks read the layer's input.
    let split =
        |norm: &Option<Module>, word: &str| norm.as_ref().is_some_and(|norm| norm.last().to_lowercase().contains(word));
    let shared = before_attention.is_some() && before_mlp.is_none() && after_attention.is_none() && after_mlp.is_none();
    let asked = ["use_parallel_residual", "parallel_attn", "parallel_residual"]
        .iter()
        .find(|key| writer.keys.flag(key).is_some());
    let parallel = shared
        || (split(&before_attention, "ln_attn") && split(&before_mlp, "ln_mlp"))
        || asked.is_some_and(|key| writer.keys.flag(key) == Some(true));
    if let (Some(key), true) = (asked, parallel) {
        writer.expect(key, "true");
    }

    let input = writer.norm("h", "x", before_attention.as_ref(), bare);
    mixers.write(writer, sizes, &input, names.layers);
    writer.norm_in_place("o", after_attention.as_ref());
    writer.scale_residual("o");
    let second = if parallel { "g" } else { "h" };
    if !parallel {
        writer.line("x", "add", "a = \"x\", b = \"o\"");
    }
    let input = match (&before_mlp, parallel) {
        (None, true) => input,
        (norm, _) => writer.norm(second, "x", norm.as_ref(), bare),
    };
    if let (Some(dense), Some(_)) = (&dense, &experts) {
        writer.when = Some(dense.clone());
        write::mlp(writer, &mlp, hidden, &input, "m");
        writer.when = Some(format!("not ({dense})"));
    }
    match &experts {
        Some(experts) => write::experts(writer, experts, hidden, &input),
        None => write::mlp(writer, &mlp, hidden, &input, "m"),
    }
    writer.when = None;
    writer.norm_in_place("m", after_mlp.as_ref());
    writer.scale_residual("m");
    if parallel {
        writer.line("x", "add", "a = \"x\", b = \"o\"");
    }
    writer.line("x", "add", "a = \"x\", b = \"m\"");
    if (experts.is_none() || dense.is_some()) && !mlp.is_whole() {
        writer.todo("the feed-forward part was not recognised whole: what is missing stands as `TODO` in its lines");
    }
}

/// The attention of all layers, or what each kind of layer has in its place.
enum Mixers {
    One(Box<Attention>),
    Several(Vec<(Vec<usize>, Result<Recurrent, Attention>)>),
}

impl Mixers {
    fn take(kinds: &mut [Mixer], modules: &mut Modules, sizes: Sizes) -> Mixers {
        if kinds.is_empty() {
            return Mixers::One(Box::new(Attention::take(modules, sizes)));
        }
        let take = |mixer: &mut Mixer| {
            let modules = &mut mixer.modules;
            let block = Recurrent::take(modules, sizes.hidden).ok_or(());
            (mixer.layers.clone(), block.map_err(|()| Attention::take(modules, sizes)))
        };
        Mixers::Several(kinds.iter_mut().map(take).collect())
    }

    /// The first attention among them.
    fn attention(&self) -> Option<&Attention> {
        match self {
            Mixers::One(attention) => Some(attention),
            Mixers::Several(kinds) => kinds.iter().find_map(|(_, block)| block.as_ref().err()),
        }
    }

    /// The lines from `x` to `o`.
    fn write(&self, writer: &mut Writer, sizes: Sizes, x: &str, layers: usize) {
        match self {
            Mixers::One(attention) => attention::write(writer, attention, sizes, x),
            Mixers::Several(kinds) => {
                for (of, block) in kinds {
                    writer.when = Some(writer.kind_of_layer(of, layers));
                    match block {
                        Ok(block) if block.write(writer, x, sizes.hidden) => {}
                        Ok(_) => {
                            writer.todo("a block in the attention's place was not recognised whole: its lines are to be written");
                            writer.line("o", "scale", &format!("x = \"{x}\", factor = 1.0"));
                        }
                        Err(attention) => attention::write(writer, attention, sizes, x),
                    }
                }
                writer.when = None;
            }
        }
        if self.attention().is_some_and(|attention| !attention.is_whole()) {
            writer.todo("the attention was not recognised whole: what is missing stands as `TODO` in its lines");
        }
    }
}

/// What is left, with layers folded: `model.layers.{}.mlp.extra.weight [64]`.
fn unmatched(names: &Names) -> Vec<String> {
    let shown =
        |name: &str, shape: &[usize]| if shape.is_empty() { name.to_owned() } else { format!("{name} {shape:?}") };
    let mut list: Vec<String> = names.outside.left().iter().map(|(name, shape)| shown(name, shape)).collect();
    list.extend(names.inside.left().iter().map(|(name, shape)| shown(&format!("{}{{}}.{name}", names.prefix), shape)));
    let some = |name: &str, shape: &[usize], layers: &[usize]| {
        let layers: Vec<String> = layers.iter().map(usize::to_string).collect();
        let name = shown(&format!("{}{{}}.{name}", names.prefix), shape);
        format!("{name}, otherwise in other layers than {}", layers.join(", "))
    };
    for mixer in &names.mixers {
        list.extend(mixer.modules.left().iter().map(|(name, shape)| some(name, shape, &mixer.layers)));
    }
    list.extend(names.uneven.iter().map(|(name, shape, layers)| some(name, shape, layers)));
    if let Some(kinds) = &names.kinds {
        list.extend(kinds.dense.left().iter().map(|(name, shape)| some(name, shape, &kinds.dense_layers)));
        list.extend(kinds.routed.left().iter().map(|(name, shape)| some(name, shape, &kinds.routed_layers)));
    }
    list
}

/// What no operation of the language computes, by a part of a tensor's name.
const BEYOND: &[(&str, &str)] = &[
    ("correction_bias", "the bias of the choice has one value per expert"),
    ("experts.gate_up_proj_bias", "`gate_bias` and `up_bias` of `experts` read it, each its part"),
    ("experts.down_proj_bias", "`down_bias` of `experts` reads it"),
    ("act_fn.", "no operation has an activation with weights"),
    ("kv_a_proj", "latent attention is written by hand, as models/deepseek.toml has it"),
    ("per_layer", "no operation is an embedding for each layer"),
];

/// An unmatched tensor, and why it may have no place.
fn hinted(tensor: &str) -> String {
    match BEYOND.iter().find(|(part, _)| tensor.contains(part)) {
        Some((_, why)) => format!("{tensor}: {why}"),
        None => tensor.to_owned(),
    }
}

/// An identifier: config.json's `model_type`, else the first architecture.
fn family(keys: &Keys, serves: &[String]) -> String {
    let given = keys.text("model_type").or(serves.first().map(String::as_str)).unwrap_or("model");
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '_' };
    let name: String = given.chars().map(plain).collect();
    if name.starts_with(|letter: char| letter.is_ascii_digit()) { format!("m{name}") } else { name }
}
