//! Lines of TOML.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use serde_json::Value as Json;

use super::block::{Attention, Experts, Mlp, Sizes};
use super::keys::{Keys, changes};
use super::names::Module;
use crate::description::Value;

/// A description as it grows.
#[derive(Debug)]
pub(super) struct Writer {
    pub keys: Keys,
    /// Positions come from a table, not from RoPE.
    pub learned_positions: bool,
    /// The checkpoint has no norm's weight.
    pub bare_norms: bool,
    /// The condition of the lines to come, where not all layers have them.
    pub when: Option<String>,
    /// Weights are stored `[in, out]`, as those that are not square show.
    transposed: bool,
    sections: [Vec<String>; 3],
    section: usize,
    todos: Vec<String>,
    expect: Vec<(String, String)>,
}

impl Writer {
    pub fn new(keys: Keys) -> Writer {
        Writer {
            keys,
            learned_positions: false,
            bare_norms: false,
            when: None,
            transposed: false,
            sections: Default::default(),
            section: 0,
            todos: Vec::new(),
            expect: Vec::new(),
        }
    }

    /// The section that lines go to: embed, layer, head.
    pub fn section(&mut self, section: usize) {
        self.section = section;
    }

    /// Adds an operation; `rest` is what follows `op`.
    pub fn line(&mut self, out: &str, op: &str, rest: &str) {
        let when = self.when.as_ref().map_or(String::new(), |when| format!(", when = \"{when}\""));
        self.sections[self.section].push(format!("  {{ out = \"{out}\", op = \"{op}\", {rest}{when} }},"));
    }

    /// The condition under which a layer is one of these, which have no experts; the key that says it counts as read.
    pub fn dense_layers(&mut self, layers: &[usize]) -> String {
        let listed = |value: &Value| matches!(value, Value::List(items) if items.iter().map(Value::number).eq(layers.iter().map(|layer| Some(*layer as f64))));
        let first = layers.iter().copied().eq(0..layers.len());
        for key in ["first_k_dense_replace", "moe_layer_start_index", "num_dense_layers"] {
            if first && self.keys.count(key) == Some(layers.len()) {
                return format!("layer < {key}");
            }
        }
        if let (Some(step), Some(count)) =
            (self.keys.count("decoder_sparse_step"), self.keys.count("num_hidden_layers"))
            && step > 1
            && (0..count).filter(|layer| !(layer + 1).is_multiple_of(step)).eq(layers.iter().copied())
        {
            return "(layer + 1) % decoder_sparse_step != 0".to_owned();
        }
        if self.keys.get("mlp_only_layers").is_some_and(listed) {
            return "layer in mlp_only_layers".to_owned();
        }
        if let Some(Value::List(kinds)) = self.keys.get("mlp_layer_types") {
            let dense = (0..kinds.len()).filter(|&layer| kinds[layer].text() == Some("dense"));
            if dense.eq(layers.iter().copied()) {
                // What made the list; the list counts.
                if let Some(count) = self.keys.get("first_k_dense_replace").cloned() {
                    self.expect("first_k_dense_replace", &count.to_string());
                }
                return "mlp_layer_types[layer] == 'dense'".to_owned();
            }
        }
        self.todo("no key of config.json tells the layers without experts: those of this checkpoint are listed");
        format!("layer in {layers:?}")
    }

    /// The condition under which a layer is one of these; the key that says it counts as read.
    pub fn kind_of_layer(&mut self, of: &[usize], layers: usize) -> String {
        let in_them = |layer: &usize| of.contains(layer);
        for key in ["layer_types", "layers_block_type"] {
            let Some(Value::List(kinds)) = self.keys.get(key) else { continue };
            let Some(kind) = of.first().and_then(|&first| kinds.get(first)?.text()) else { continue };
            if (0..layers).all(|layer| in_them(&layer) == (kinds.get(layer).and_then(Value::text) == Some(kind))) {
                return format!("{key}[layer] == '{kind}'");
            }
        }
        for key in ["full_attn_idxs", "attn_layer_indices"] {
            let Some(Value::List(listed)) = self.keys.get(key) else { continue };
            let is_listed = |layer: usize| listed.iter().any(|value| value.number() == Some(layer as f64));
            for (negated, word) in [(false, "in"), (true, "not in")] {
                if (0..layers).all(|layer| in_them(&layer) == (is_listed(layer) != negated)) {
                    return format!("layer {word} {key}");
                }
            }
        }
        self.todo("no key of config.json tells the kinds of layers: those of this checkpoint are listed");
        format!("layer in {of:?}")
    }

    /// The first of these keys that counts as many, as TOML; else the number.
    pub fn key_of(&mut self, keys: &[&str], count: usize) -> String {
        let found = keys.iter().find(|key| self.keys.count(key) == Some(count));
        found.map_or(count.to_string(), |key| format!("\"{key}\""))
    }

    /// The first of these keys that is there, and its count.
    pub fn counted<'k>(&mut self, keys: &[&'k str]) -> Option<(&'k str, usize)> {
        keys.iter().find_map(|key| Some((*key, self.keys.count(key)?)))
    }

    /// Adds a comment before the next line.
    pub fn note(&mut self, text: &str) {
        self.sections[self.section].push(format!("  # {text}"));
    }

    /// Adds something to do, at the head of the file.
    pub fn todo(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.todos.contains(&text) {
            self.todos.push(text);
        }
    }

    /// Takes the values of keys that nothing reads for the only ones that are honoured. Null is always honoured.
    pub fn expect_unread(&mut self, keys: &[String], config: &Json) {
        for key in keys.iter().filter(|key| key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')) {
            let value = match config.get(key) {
                None | Some(Json::Null) => Ok(String::new()),
                // A table there stands for its members.
                Some(Json::Object(_)) => continue,
                Some(value) => toml_of(value),
            };
            if let Ok(value) = value {
                self.expect(key, &format!("[{value}]"));
            }
        }
        if !keys.is_empty() {
            self.todo(format!(
                "nothing here reads these keys of config.json, which may change what is computed: {}",
                keys.join(", ")
            ));
        }
    }

    /// Adds a value that a key must have.
    pub fn expect(&mut self, key: &str, value: &str) {
        if !self.expect.iter().any(|(known, _)| known == key) {
            self.expect.push((key.to_owned(), value.to_owned()));
        }
    }

    pub fn is_gemma(&self) -> bool {
        // The later ones store the norms' weights as they are.
        let later = |family: &str| family.contains("gemma3n") || family.contains("gemma4");
        self.keys.text("model_type").is_some_and(|family| family.contains("gemma") && !later(family))
    }

    /// Whether weights are stored `[in, out]`, by matrices that are not square.
    pub fn learn_orientation(&mut self, attention: Option<&Attention>, mlp: &Mlp, sizes: Sizes) {
        let Some(attention) = attention else { return };
        let outs = [&attention.q, &attention.k, &attention.v, &attention.fused, &mlp.gate, &mlp.up, &mlp.fused];
        let turned = |module: &Module| module.shape[0] == sizes.hidden && module.shape[1] != sizes.hidden;
        let into = [&attention.o, &mlp.down].into_iter().flatten();
        let turned_back = |module: &Module| module.shape[1] == sizes.hidden && module.shape[0] != sizes.hidden;
        self.transposed = outs.into_iter().flatten().any(turned) || into.into_iter().any(turned_back);
    }

    /// What a line says of a module's bias; nothing where it has none. `keys` ask for it.
    pub fn bias(&mut self, module: &Module, keys: &[&str]) -> String {
        if !module.bias {
            return String::new();
        }
        match keys.iter().find(|key| self.keys.flag(key) == Some(true)) {
            Some(key) => {
                self.keys.derive(key, "false");
                format!(", bias = {{ if = \"{key}\", then = \"{}.bias\" }}", module.stem)
            }
            None => format!(", bias = \"{}.bias\"", module.stem),
        }
    }

    /// A linear layer; `TODO` where no module plays its part. `biases` are keys that ask for its bias.
    pub fn linear(
        &mut self,
        out: &str,
        x: &str,
        module: Option<&Module>,
        size: &str,
        part: Option<&str>,
        biases: &[&str],
    ) {
        let Some(module) = module else {
            return self.line(out, "linear", &format!("x = \"{x}\", weight = \"TODO.weight\", {size}"));
        };
        let mut rest = format!("x = \"{x}\", weight = \"{}\"", module.weight);
        rest += &self.bias(module, biases);
        write!(rest, ", {size}").expect("writing to a string");
        if let Some(part) = part {
            write!(rest, ", part = \"{part}\"").expect("writing to a string");
        }
        if self.transposed {
            rest += ", transposed = true";
        }
        self.line(out, "linear", &rest);
    }

    /// A norm from `x` to `out`; nothing where there is none, unless norms are `bare`. Returns the value that holds the result.
    pub fn norm(&mut self, out: &str, x: &str, module: Option<&Module>, bare: bool) -> String {
        self.bare_norms |= bare;
        if module.is_none() && !bare {
            return x.to_owned();
        }
        let (op, eps) = self.kind_of_norm(module);
        let weight = module.map_or(String::new(), |module| {
            let bias = if module.bias { format!(", bias = \"{}.bias\"", module.stem) } else { String::new() };
            format!(", weight = \"{}\"{bias}", module.weight)
        });
        let offset = if self.stores_norms_less_one() && op == "rms_norm" { ", offset = 1.0" } else { "" };
        self.line(out, op, &format!("x = \"{x}\"{weight}, eps = {eps}{offset}"));
        out.to_owned()
    }

    /// A norm of a value in its place, whose weight is stored as it is in any family.
    pub fn plain_norm(&mut self, value: &str, module: &Module) {
        let (op, eps) = self.kind_of_norm(Some(module));
        self.line(value, op, &format!("x = \"{value}\", weight = \"{}\", eps = {eps}", module.weight));
    }

    /// Whether the family's norms add one to their weights: no tensor tells it.
    fn stores_norms_less_one(&mut self) -> bool {
        let family = self.keys.text("model_type").unwrap_or_default();
        let qwen = ["qwen3_next", "qwen3_5"].iter().any(|start| family.starts_with(start));
        if qwen {
            self.todo("known only from `model_type`: weights of norms are stored less one");
        }
        qwen || self.is_gemma()
    }

    /// A norm of a value, in its place.
    pub fn norm_in_place(&mut self, value: &str, module: Option<&Module>) {
        self.norm(value, value, module, false);
    }

    /// Which norm it is, and its epsilon as TOML.
    fn kind_of_norm(&mut self, module: Option<&Module>) -> (&'static str, String) {
        let key = self.keys.epsilon(module.is_some_and(|module| module.bias));
        let op = match (module, key) {
            (None, key) => {
                self.todo("no tensor is a norm's weight: norms may stand where none is drafted, after the embedding or on q and k");
                if key.is_some_and(|key| key.contains("rms")) { "rms_norm" } else { "layer_norm" }
            }
            (Some(module), _) if module.bias => "layer_norm",
            (Some(_), Some(key)) if key.contains("rms") => "rms_norm",
            (Some(_), _) if self.keys.flag("rmsnorm") == Some(true) => {
                self.expect("rmsnorm", "true");
                "rms_norm"
            }
            (Some(_), Some(key)) if key.starts_with("layer") => {
                self.todo("norms have no bias and the epsilon is a LayerNorm's: they may be RMSNorm");
                "layer_norm"
            }
            (Some(_), _) => {
                self.todo("no tensor and no key tells RMSNorm from a LayerNorm without bias: RMSNorm is assumed");
                "rms_norm"
            }
        };
        if self.keys.text("model_type") == Some("biogpt") {
            self.note("TODO known only from `model_type`: the epsilon is 1e-5, whatever layer_norm_eps says");
            return (op, "1e-5".to_owned());
        }
        let eps = key.map_or_else(
            || {
                self.todo("no key of config.json is the epsilon of the norms: 1e-5 is assumed");
                "1e-5".to_owned()
            },
            |key| format!("\"{key}\""),
        );
        (op, eps)
    }

    /// The factor on what a block adds, where the configuration has one.
    pub fn scale_residual(&mut self, value: &str) {
        if changes(self.keys.get("residual_multiplier")) {
            self.line(value, "scale", &format!("x = \"{value}\", factor = \"residual_multiplier\""));
        } else if self.keys.get("scale_depth").is_some() {
            let factor = "scale_depth / sqrt(num_hidden_layers)";
            self.line(value, "scale", &format!("x = \"{value}\", factor = \"{factor}\""));
        }
    }

    /// The activation in a feed-forward part, in the place of `value`.
    pub fn activation(&mut self, value: &str, gated: bool) {
        match self.keys.activation() {
            Some(key) => self.line(value, "activation", &format!("x = \"{value}\", kind = \"{key}\"")),
            None => {
                self.note("TODO no key of config.json names the activation");
                self.line(value, if gated { "silu" } else { "gelu" }, &format!("x = \"{value}\""));
            }
        }
    }

    /// The key for a size inside a feed-forward part, as TOML.
    fn inner(&mut self, keys: &[&str], size: usize, hidden: usize) -> String {
        if keys.contains(&"shared_expert_intermediate_size")
            && let (Some(shared), Some(each)) =
                (self.keys.count("n_shared_experts"), self.keys.count("moe_intermediate_size"))
            && shared * each == size
        {
            return "\"n_shared_experts * moe_intermediate_size\"".to_owned();
        }
        for key in keys {
            if self.keys.count(key) == Some(size) {
                return format!("\"{key}\"");
            }
        }
        if let Some(key) = keys.iter().find(|key| self.keys.count(key) == Some(2 * size)) {
            return format!("\"{key} / 2\"");
        }
        if size.is_multiple_of(hidden) && self.keys.get(keys[0]).is_none() {
            self.keys.derive(keys[0], &format!("\"{} * hidden_size\"", size / hidden));
            return format!("\"{}\"", keys[0]);
        }
        self.todo(format!("no key of config.json is {size}, the size inside the feed-forward part"));
        size.to_string()
    }

    /// Derived keys that something reads: a line, another derived key or the facts of every model.
    fn derived(&self) -> Vec<&(String, String)> {
        let names = |text: &str, key: &str| {
            text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').any(|word| word == key)
        };
        let all = self.keys.derived();
        let read = |key: &str| {
            let line = |line: &String| names(line, key) || (line.contains("heads =") && key == "head_dim");
            ["vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"].contains(&key)
                || self.sections.iter().flatten().any(line)
                || all.iter().any(|(other, expression)| other != key && names(expression, key))
        };
        all.iter().filter(|(key, _)| read(key)).collect()
    }

    /// The whole file.
    pub fn text(
        &self,
        name: &str,
        serves: &[String],
        prefix: &str,
        unmatched: &[String],
        preset: &[(&String, &Json)],
    ) -> Result<String> {
        let mut text = String::from(
            "# Drafted from a checkpoint's config.json and the names and shapes of its tensors: compare its logits before you trust it.\n",
        );
        for todo in &self.todos {
            writeln!(text, "# TODO {todo}")?;
        }
        if !unmatched.is_empty() {
            writeln!(text, "# TODO nothing here reads these tensors of the checkpoint:")?;
            unmatched.iter().try_for_each(|tensor| writeln!(text, "#   {tensor}"))?;
        }
        let serves: Vec<String> = serves.iter().map(|name| format!("\"{name}\"")).collect();
        writeln!(text, "schema = 1\nname = \"{name}\"\nserves = [{}]", serves.join(", "))?;
        if !preset.is_empty() {
            text += "\n[config] # the checkpoint's, so that the file compiles by itself\n";
            for (key, value) in preset.iter().filter(|(_, value)| !value.is_null()) {
                writeln!(text, "{key} = {}", toml_of(value)?)?;
            }
        }
        let derived = self.derived();
        if !derived.is_empty() {
            text += "\n[derive] # what config.json lacks or calls otherwise\n";
            for (key, expression) in derived {
                writeln!(text, "{key} = {expression}")?;
            }
        }
        if !self.expect.is_empty() {
            text += "\n[expect]\n";
            for (key, value) in &self.expect {
                writeln!(text, "{key} = {value}")?;
            }
        }
        let [embed, layer, head] = self.sections.each_ref().map(|lines| lines.join("\n"));
        write!(text, "\n[embed]\nops = [\n{embed}\n]\n")?;
        write!(
            text,
            "\n[layer]\ncount = \"num_hidden_layers\"\nweights = \"{prefix}{{layer}}.\"\nops = [\n{layer}\n]\n"
        )?;
        write!(text, "\n[head]\nops = [\n{head}\n]\n")?;
        Ok(text)
    }
}

/// The lines of a dense feed-forward part, from `x` to `out`.
pub(super) fn mlp(writer: &mut Writer, mlp: &Mlp, hidden: usize, x: &str, out: &str) {
    dense(writer, mlp, hidden, x, out, &["intermediate_size", "shared_intermediate_size"]);
}

fn dense(writer: &mut Writer, mlp: &Mlp, hidden: usize, x: &str, out: &str, keys: &[&str]) {
    const BIASES: &[&str] = &["mlp_bias", "use_bias", "add_bias_linear", "bias"];
    let size = mlp.inner(hidden).map_or("\"TODO\"".to_owned(), |size| writer.inner(keys, size, hidden));
    let features = format!("features = {size}");
    let gated = mlp.gate.is_some() || mlp.fused.is_some();
    if gated {
        let name = size.trim_matches('"').to_owned();
        let part = |first: &str| mlp.fused.as_ref().map(|_| format!("[{first}, {name}, 2 * {name}]"));
        let (gate, up) = (mlp.gate.as_ref().or(mlp.fused.as_ref()), mlp.up.as_ref().or(mlp.fused.as_ref()));
        if mlp.fused.is_some() {
            writer.note("TODO that the gate is the first half of the fused weight is what most families do");
        }
        writer.linear("gate", x, gate, &features, part("0").as_deref(), BIASES);
        writer.linear("up", x, up, &features, part(&name).as_deref(), BIASES);
        writer.activation("gate", true);
        writer.line(out, "mul", "a = \"gate\", b = \"up\"");
    } else {
        writer.linear(out, x, mlp.up.as_ref(), &features, None, BIASES);
        writer.activation(out, false);
    }
    writer.linear(out, out, mlp.down.as_ref(), "features = \"hidden_size\"", None, BIASES);
}

/// The lines of routed experts, from `x` to `m`.
pub(super) fn experts(writer: &mut Writer, experts: &Experts, hidden: usize, x: &str) {
    let Some(size) = experts.each.inner(hidden) else {
        writer.todo("the experts' weights were not recognised");
        return writer.line("m", "scale", &format!("x = \"{x}\", factor = 1.0"));
    };
    let count = experts.router.count_of_experts();
    let key =
        if writer.keys.count("num_experts") == Some(count) { "\"num_experts\"".into() } else { count.to_string() };
    writer.linear("r", x, Some(&experts.router), &format!("features = {key}"), None, &[]);
    let features = writer.inner(&["moe_intermediate_size", "intermediate_size"], size, hidden);
    let mut top_k = "num_experts_per_tok";
    if let Some((key, Value::List(_))) = writer.keys.peek("num_experts_per_tok") {
        let expression = format!("\"{key}[layer]\"");
        writer.keys.derive("experts_of_layer", &expression);
        top_k = "experts_of_layer";
    } else if writer.keys.count("num_experts_per_tok").is_none() {
        writer.todo("no key of config.json says how many experts a token has");
        writer.keys.derive("num_experts_per_tok", "2");
    }
    let of = |module: &Option<Module>| module.as_ref().map(|module| module.weight.clone());
    let mut rest = format!("x = \"{x}\", router = \"r\"");
    let fused = &experts.each.fused;
    let roles = [
        ("gate", of(&experts.each.gate).or(of(fused))),
        ("up", of(&experts.each.up).or(of(fused))),
        ("down", of(&experts.each.down)),
    ];
    for (role, name) in roles {
        if let Some(name) = name {
            write!(rest, ", {role} = \"{name}\"").expect("writing to a string");
        }
    }
    write!(rest, ", top_k = \"{top_k}\", features = {features}").expect("writing to a string");
    if fused.is_some() {
        let size = features.trim_matches('"');
        writer.note("TODO that the gate is the first half of the fused weight is what most families do");
        write!(rest, ", gate_part = \"[0, {size}, 2 * {size}]\", up_part = \"[{size}, {size}, 2 * {size}]\"")
            .expect("writing to a string");
    }
    match writer.keys.activation() {
        Some(key) => write!(rest, ", kind = \"{key}\"").expect("writing to a string"),
        None => {
            writer.note("TODO no key of config.json names the activation");
            rest += ", kind = \"'silu'\"";
        }
    }
    if let Some(Value::Bool(_)) = writer.keys.find("norm_topk_prob") {
        rest += ", normalise = \"norm_topk_prob\"";
    } else {
        writer.note("TODO no key of config.json says whether the shares of the chosen experts are made to sum to one");
        rest += ", normalise = true";
    }
    if let Some(bias) = &experts.choice_bias {
        write!(rest, ", choice_bias = \"{bias}\"").expect("writing to a string");
        if writer.keys.text("topk_method") == Some("noaux_tc") {
            writer.expect("topk_method", "\"noaux_tc\"");
        }
    }
    let scoring =
        writer.keys.peek("scoring_func").map(|(key, value)| (key.to_owned(), value.text() == Some("sigmoid")));
    match scoring {
        Some((key, true)) => {
            writer.expect(&key, "\"sigmoid\"");
            rest += ", sigmoid = true";
        }
        None if experts.choice_bias.is_some() => {
            writer.note("TODO no key of config.json says how the router scores: by sigmoids, as most with a bias for the choice do");
            rest += ", sigmoid = true";
        }
        _ => {}
    }
    if changes(writer.keys.peek("routed_scaling_factor").map(|(_, value)| value)) {
        writer.keys.find("routed_scaling_factor");
        rest += ", scale = \"routed_scaling_factor\"";
    }
    writer.line("m", "experts", &rest);
    if let Some(shared) = &experts.shared {
        dense(
            writer,
            shared,
            hidden,
            x,
            "s",
            &[
                "shared_expert_intermediate_size",
                "shared_intermediate_size",
                "moe_intermediate_size",
                "intermediate_size",
            ],
        );
        if let Some(gate) = &experts.shared_gate {
            writer.linear("t", x, Some(gate), "features = 1", None, &[]);
            writer.line("s", "glu", "a = \"s\", b = \"t\"");
        }
        writer.line("m", "add", "a = \"m\", b = \"s\"");
    }
}

impl Module {
    /// Rows of a router.
    fn count_of_experts(&self) -> usize {
        self.shape[0]
    }
}

/// A JSON value as TOML, on one line.
fn toml_of(value: &Json) -> Result<String> {
    Ok(match value {
        Json::Null => bail!("TOML has no null"),
        Json::Bool(flag) => flag.to_string(),
        Json::Number(number) => match number.as_i64() {
            Some(number) => number.to_string(),
            None => format!("{:?}", number.as_f64().unwrap_or_default()),
        },
        Json::String(text) => serde_json::to_string(text)?,
        Json::Array(items) => format!("[{}]", items.iter().map(toml_of).collect::<Result<Vec<_>>>()?.join(", ")),
        Json::Object(items) => {
            // A number that JSON has no form for.
            if let Value::Float(number) = Value::from(value) {
                return Ok(number.to_string().to_lowercase());
            }
            let items = items.iter().filter(|(_, value)| !value.is_null());
            let item = |(key, value): (&String, &Json)| Ok(format!("{} = {}", toml_key(key)?, toml_of(value)?));
            format!("{{ {} }}", items.map(item).collect::<Result<Vec<_>>>()?.join(", "))
        }
    })
}

fn toml_key(key: &str) -> Result<String> {
    let bare = !key.is_empty() && key.chars().all(|letter| letter.is_ascii_alphanumeric() || "_-".contains(letter));
    Ok(if bare { key.to_owned() } else { serde_json::to_string(key)? })
}
