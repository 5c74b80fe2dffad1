//! The lines of a layer's attention.

use std::collections::BTreeMap;

use super::block::{Attention, Sizes};
use super::names::{Module, Names};
use super::write::Writer;
use crate::description::Value;

/// Families in which neighbours are the pairs of RoPE: no tensor says it, and few configurations do.
const NEIGHBOURS: &[&str] = &[
    "gptj",
    "codegen",
    "cohere",
    "cohere2",
    "glm",
    "glm4",
    "chatglm",
    "ernie4_5",
    "ernie4_5_moe",
    "helium",
    "llama4_text",
];

/// Families that normalise q and k after RoPE, not before it.
const NORM_BEHIND_ROPE: &[&str] = &["hunyuan_v1_dense", "hunyuan_v1_moe", "nanochat"];

/// Families whose layers with a window have RoPE, and the others none.
const WINDOWS_TURN: &[&str] = &["cohere2", "exaone4", "exaone_moe"];

/// What part of a head turns where no key says it.
const PARTIAL: &[(&str, &str)] = &[
    ("glm", "0.5"),
    ("glm4", "0.5"),
    ("glm4_moe", "0.5"),
    ("nemotron", "0.5"),
    ("persimmon", "0.5"),
    ("phi", "0.5"),
    ("gpt_neox", "0.25"),
    ("stablelm", "0.25"),
];

/// Reads the sizes of heads from the configuration, or from q's weight.
pub(super) fn sizes(writer: &mut Writer, names: &Names, hidden: usize) -> Sizes {
    let keys = &mut writer.keys;
    let heads = keys.count("num_attention_heads").filter(|heads| *heads > 0);
    let given = keys.count("head_dim");
    let mut modules = names.inside.iter().chain(names.mixers.iter().flat_map(|mixer| mixer.modules.iter()));
    let q = modules.find(|module| module.shape.len() == 2 && module.is(&["q_proj", "wq", "query", "q"]));
    let told = heads.and_then(|heads| q.map_or(hidden, |q| out_size(q, hidden)).checked_div(heads));
    let head_dim = given.or(told).unwrap_or(hidden);
    let Some(heads) = heads else {
        keys.derive("num_attention_heads", "1");
        writer.todo("no key of config.json counts the heads of the attention");
        return Sizes { hidden, heads: 1, head_dim };
    };
    if given.is_none() {
        if heads * head_dim == hidden {
            keys.derive("head_dim", "\"hidden_size / num_attention_heads\"");
        } else {
            keys.derive("head_dim", &head_dim.to_string());
            writer.todo(format!("no key of config.json is the size of a head; q's weight says {head_dim}"));
        }
    }
    Sizes { hidden, heads, head_dim }
}

/// The size of a matrix that is not `hidden`.
fn out_size(module: &Module, hidden: usize) -> usize {
    module.shape.iter().copied().find(|size| *size != hidden).unwrap_or(hidden)
}

/// Writes the lines from the block's input to its output, `o`.
pub(super) fn write(writer: &mut Writer, attention: &Attention, sizes: Sizes, x: &str) {
    key_heads(writer, attention, sizes);
    // A norm over all heads at once has no place after RoPE, which turns each.
    let each_head = |norm: &Option<Module>| norm.as_ref().is_some_and(|norm| norm.shape == [sizes.head_dim]);
    let norm_last = each_head(&attention.q_norm) && each_head(&attention.k_norm) && is_one_of(writer, NORM_BEHIND_ROPE);
    for (letter, module, norm) in
        [("q", &attention.q, &attention.q_norm), ("k", &attention.k, &attention.k_norm), ("v", &attention.v, &None)]
    {
        let heads = if letter == "q" { "num_attention_heads" } else { "num_key_value_heads" };
        let part = match &attention.fused {
            Some(fused) => Some(part(writer, letter, fused)),
            None if attention.gated && letter == "q" => Some("[0, head_dim, 2 * head_dim]".to_owned()),
            None => None,
        };
        let whole = norm.as_ref().is_some_and(|norm| norm.shape != [sizes.head_dim]);
        let size = match whole {
            true => format!("features = \"{heads} * head_dim\""),
            false => format!("heads = \"{heads}\""),
        };
        let module = module.as_ref().or(attention.fused.as_ref());
        if attention.fused.is_some() && letter == "q" {
            writer.note("TODO the order of q, k and v in the fused weight is known only from its name");
        }
        writer.linear(letter, x, module, &size, part.as_deref(), ATTENTION_BIASES);
        if !norm_last {
            writer.norm_in_place(letter, norm.as_ref());
        }
        if writer.keys.get("clip_qkv").is_some() {
            writer.line(letter, "clamp", &format!("x = \"{letter}\", limit = \"clip_qkv\""));
        }
        if whole {
            writer.line(letter, "reshape", &format!("x = \"{letter}\", heads = \"{heads}\""));
        }
    }
    rope(writer);
    if norm_last {
        writer.note("TODO known only from `model_type`: the norms of q and k come after RoPE");
        writer.norm_in_place("q", attention.q_norm.as_ref());
        writer.norm_in_place("k", attention.k_norm.as_ref());
    }
    for key in ["use_qk_norm", "qk_layernorm"] {
        if attention.q_norm.is_some() && writer.keys.flag(key) == Some(true) {
            writer.expect(key, "true");
        }
    }
    let scale = if is_one_of(writer, &["gpt_neo"]) {
        writer.note("TODO known only from `model_type`: scores are not scaled");
        "1.0"
    } else if writer.keys.get("attention_multiplier").is_some() {
        "attention_multiplier"
    } else if writer.keys.get("query_pre_attn_scalar").is_some() {
        "query_pre_attn_scalar ** -0.5"
    } else {
        "head_dim ** -0.5"
    };
    let mut more = format!("q = \"q\", k = \"k\", v = \"v\", scale = \"{scale}\"");
    if let Some(window) = window(writer) {
        more += &format!(", window = {window}");
    }
    if writer.keys.get("attn_logit_softcapping").is_some() {
        more += ", softcap = \"attn_logit_softcapping\"";
    }
    if let Some(sinks) = &attention.sinks {
        more += &format!(", sinks = \"{sinks}\"");
    }
    writer.line("a", "attention", &more);
    if attention.gated {
        writer.note("TODO that a gate stands behind each head of q is known only from the weight's size");
        let (heads, part) = ("heads = \"num_attention_heads\"", "[head_dim, head_dim, 2 * head_dim]");
        writer.linear("z", x, attention.q.as_ref(), heads, Some(part), ATTENTION_BIASES);
        writer.line("a", "glu", "a = \"a\", b = \"z\"");
    }
    let mut biases = ATTENTION_BIASES.to_vec();
    biases.insert(0, "attention_out_bias");
    writer.linear("o", "a", attention.o.as_ref(), "features = \"hidden_size\"", None, &biases);
}

fn is_one_of(writer: &Writer, families: &[&str]) -> bool {
    writer.keys.text("model_type").is_some_and(|family| families.contains(&family))
}

/// Keys that ask for biases of the attention.
const ATTENTION_BIASES: &[&str] =
    &["attention_bias", "qkv_bias", "use_qkv_bias", "add_qkv_bias", "attn_bias", "use_bias", "bias"];

/// How many heads k and v have: from the weights, and under which key.
fn key_heads(writer: &mut Writer, attention: &Attention, sizes: Sizes) {
    let Sizes { hidden, heads, head_dim } = sizes;
    let counted = match (&attention.k, &attention.fused) {
        (Some(k), _) => Some(out_size(k, hidden) / head_dim),
        (None, Some(fused)) => (out_size(fused, hidden) / head_dim).checked_sub(heads).map(|rest| rest / 2),
        (None, None) => None,
    };
    let Some(counted) = counted else { return };
    // Both say more than how many heads there are; what they say is in the lines.
    for key in ["multi_query", "new_decoder_architecture"] {
        if writer.keys.flag(key) == Some(true) {
            writer.expect(key, "true");
        }
    }
    if let Some(norms) = writer.keys.count("num_ln_in_parallel_attn") {
        writer.expect("num_ln_in_parallel_attn", &norms.to_string());
    }
    if writer.keys.peek("num_key_value_heads").is_some_and(|(_, given)| *given == Value::Int(counted as i64)) {
        writer.keys.find("num_key_value_heads");
    } else if writer.keys.flag("multi_query") == Some(true) && counted == 1 {
        writer.keys.derive("num_key_value_heads", "1");
    } else if counted == heads {
        writer.keys.derive("num_key_value_heads", "\"num_attention_heads\"");
    } else {
        writer.keys.derive("num_key_value_heads", &counted.to_string());
        writer.todo(format!("no key of config.json counts the heads of k and v; the weights say {counted}"));
    }
}

/// `part` of q, k or v in a fused weight: for each key head its queries, its key and its value, or all queries, all keys, all values.
fn part(writer: &Writer, letter: &str, fused: &Module) -> String {
    if is_one_of(writer, &["codegen"]) {
        // Four blocks, each with a quarter of q, of v and of k.
        let first = ["q", "v", "k"].iter().position(|other| *other == letter).unwrap_or(0);
        return format!("[{first} * (hidden_size / 4), hidden_size / 4, 3 * (hidden_size / 4)]");
    }
    let by_group = fused.is(&["query_key_value", "wqkv"]) && !fused.stem.ends_with("Wqkv");
    let grouped = by_group && !is_one_of(writer, &["chatglm"]);
    let (queries, one) = match grouped {
        true => ("num_attention_heads / num_key_value_heads", "head_dim"),
        false => ("num_attention_heads", "num_key_value_heads * head_dim"),
    };
    let q = format!("{queries} * head_dim");
    let step = match grouped {
        true => format!("({queries} + 2) * head_dim"),
        false => "(num_attention_heads + 2 * num_key_value_heads) * head_dim".to_owned(),
    };
    match letter {
        "q" => format!("[0, {q}, {step}]"),
        "k" => format!("[{q}, {one}, {step}]"),
        _ => format!("[{q} + {one}, {one}, {step}]"),
    }
}

/// Lines that turn q and k, where positions are not learned and nothing else is asked for.
fn rope(writer: &mut Writer) {
    let alibi = writer.keys.flag("alibi") == Some(true) || writer.keys.text("position_embedding_type") == Some("alibi");
    if writer.learned_positions || alibi {
        return;
    }
    let kind = writer.keys.text("position_embedding_type").map(str::to_owned);
    if kind.as_deref() == Some("nope") || (kind.is_none() && is_one_of(writer, &["granitemoehybrid"])) {
        writer.expect("position_embedding_type", "\"nope\"");
        if let Some(theta) = writer.keys.get("rope_theta").cloned() {
            writer.expect("rope_theta", &theta.to_string());
        }
        return;
    }
    if writer.keys.find("rope_theta").is_none() {
        writer.keys.derive("rope_theta", "10000.0");
        writer.todo("no key of config.json is the base of RoPE: 10000 is what most families take. Where scores have ALiBi in its place, no operation computes it");
    }
    let sliding = if writer.keys.get("rope_local_base_freq").is_some() { sliding_layer(writer) } else { None };
    if sliding.is_some() {
        writer.keys.derive("rope_local_scaling", "\"null\"");
    }
    let (theta, scaling) = match sliding {
        Some(sliding) => (
            format!("\"rope_local_base_freq if {sliding} else rope_theta\""),
            format!("\"rope_local_scaling if {sliding} else rope_scaling\""),
        ),
        None => ("\"rope_theta\"".to_owned(), "\"rope_scaling\"".to_owned()),
    };
    let theta = if writer.keys.get("rope_ratio").is_some() { "\"rope_theta * rope_ratio\"".to_owned() } else { theta };
    let mut more = format!("theta = {theta}, scaling = {scaling}");
    // Hunyuan's form: the base is stretched once, and nothing follows the sequence.
    let stretched = |scaling: &BTreeMap<String, Value>| {
        scaling.contains_key("alpha") && scaling.get("rope_type").and_then(Value::text) == Some("dynamic")
    };
    if writer.keys.get("rope_scaling").and_then(Value::table).is_some_and(stretched) {
        more = "theta = \"rope_theta * rope_scaling.alpha ** (head_dim / (head_dim - 2.0))\"".to_owned();
        writer.expect("rope_scaling.rope_type", "\"dynamic\"");
    }
    let partial = writer.keys.find("partial_rotary_factor").and_then(|factor| factor.number());
    if is_one_of(writer, &["chatglm"]) {
        writer.note("TODO known only from `model_type`: half of each head turns");
        more += ", dim = \"head_dim / 2\"";
    } else if writer.keys.get("rotary_dim").is_some() {
        more += ", dim = \"rotary_dim\"";
    } else if is_one_of(writer, &["gptj", "codegen"]) {
        writer.note("TODO known only from `model_type`: 64 values of each head turn");
        writer.keys.derive("rotary_dim", "64");
        more += ", dim = \"rotary_dim\"";
    } else if let (None, Some((_, factor))) = (partial, PARTIAL.iter().find(|(family, _)| is_one_of(writer, &[family])))
    {
        writer.note("TODO known only from `model_type`: a part of each head turns");
        writer.keys.derive("partial_rotary_factor", factor);
        more += ", dim = \"int(head_dim * partial_rotary_factor)\"";
    } else if partial.is_some_and(|factor| factor != 1.0) {
        more += ", dim = \"int(head_dim * partial_rotary_factor)\"";
    }
    let flag = ["rope_interleave", "rope_interleaved", "use_interleaved_rope"]
        .iter()
        .find(|key| writer.keys.flag(key).is_some());
    if let Some(key) = flag {
        more += &format!(", interleaved = \"{key}\"");
    } else if writer.keys.text("model_type").is_some_and(|family| NEIGHBOURS.contains(&family)) {
        writer.note("TODO known only from `model_type`: neighbours are the pairs of RoPE");
        more += ", interleaved = true";
    }
    if writer.keys.get("no_rope_layers").is_some() {
        more += ", when = \"no_rope_layers[layer] != 0\"";
    }
    if is_one_of(writer, WINDOWS_TURN)
        && writer.keys.get("sliding_window").is_some()
        && let Some(sliding) = sliding_layer(writer)
    {
        writer.note("TODO known only from `model_type`: layers without a window have no RoPE");
        more += &format!(", when = \"{sliding}\"");
    }
    for letter in ["q", "k"] {
        writer.line(letter, "rope", &format!("x = \"{letter}\", {more}"));
    }
}

/// The window of a layer's attention, where the configuration has one.
fn window(writer: &mut Writer) -> Option<String> {
    if matches!(writer.keys.get("attention_layers"), Some(Value::List(_))) && writer.keys.get("window_size").is_some() {
        return Some("{ if = \"attention_layers[layer] == 'local'\", then = \"window_size\" }".to_owned());
    }
    let switch = writer.keys.flag("use_sliding_window").map_or("", |_| "use_sliding_window and ");
    let asked = writer.keys.get("sliding_window").is_some() || writer.keys.flag("use_sliding_window") == Some(true);
    if !asked && writer.keys.get("max_window_layers").is_none() {
        return None;
    }
    let choice = |condition: &str| Some(format!("{{ if = \"{condition}\", then = \"sliding_window ?? null\" }}"));
    match sliding_layer(writer) {
        Some(sliding) => choice(&format!("{switch}{sliding}")),
        None if !switch.is_empty() => choice("use_sliding_window"),
        None => Some("\"sliding_window ?? null\"".to_owned()),
    }
}

/// The condition under which a layer is one with a window, where not all layers are alike; a derived key helps.
fn sliding_layer(writer: &mut Writer) -> Option<&'static str> {
    let listed = matches!(writer.keys.get("layer_types"), Some(Value::List(_)));
    let by_count = "'sliding_attention' if layer >= max_window_layers else 'full_attention'";
    let kind = if writer.keys.get("max_window_layers").is_some() {
        if listed { format!("\"layer_types[layer] ?? ({by_count})\"") } else { format!("\"{by_count}\"") }
    } else if listed {
        // What made the list; the list counts.
        if let Some(pattern) = writer.keys.get("sliding_window_pattern").cloned() {
            writer.expect("sliding_window_pattern", &pattern.to_string());
        }
        "\"layer_types[layer]\"".to_owned()
    } else if writer.keys.get("sliding_window_pattern").is_some() {
        "\"'full_attention' if (layer + 1) % sliding_window_pattern == 0 else 'sliding_attention'\"".to_owned()
    } else if is_one_of(writer, &["cwm"]) {
        writer.todo("known only from `model_type`: the first layer of four is without a window");
        "\"'full_attention' if layer % 4 == 0 else 'sliding_attention'\"".to_owned()
    } else if writer.is_gemma() {
        let pattern = if writer.keys.get("rope_local_base_freq").is_some() { 6 } else { 2 };
        writer.todo(format!("known only from `model_type`: one layer of {pattern} is without a window"));
        format!("\"'full_attention' if (layer + 1) % {pattern} == 0 else 'sliding_attention'\"")
    } else {
        return None;
    };
    writer.keys.derive("layer_type", &kind);
    Some("layer_type == 'sliding_attention'")
}
