//! The lines of layers that have no attention: short convolutions, the delta rule, Mamba-2.

use super::names::{Module, Modules};
use super::write::Writer;

/// A block that goes from token to token.
#[derive(Debug)]
pub(super) enum Recurrent {
    /// A convolution between two gates, all three from one weight.
    Conv(Parts),
    /// A gated delta rule behind a convolution.
    Delta(Parts),
    /// Mamba-2.
    Mamba(Parts),
}

/// The modules of such a block.
#[derive(Debug)]
pub(super) struct Parts {
    /// `[channels, 1, taps]`.
    conv: Module,
    /// What makes the block's inputs, by name.
    inputs: Vec<Module>,
    out: Module,
    norm: Option<Module>,
    /// Logarithms of rates, biases of steps, and what passes: names of tensors with a value for each head.
    rate: Option<String>,
    bias: Option<String>,
    through: Option<String>,
    heads: usize,
}

impl Recurrent {
    /// Takes such a block's modules, where they are there.
    pub fn take(modules: &mut Modules, hidden: usize) -> Option<Recurrent> {
        let is_conv = |module: &Module| module.shape.len() == 3 && module.shape[1] == 1;
        let is_out = |module: &Module| module.is(&["out_proj", "o_proj"]) && module.shape.first() == Some(&hidden);
        if !modules.iter().any(is_conv) || !modules.iter().any(is_out) {
            return None;
        }
        let rate = modules.take_odd(|name, shape| name.ends_with("A_log") && shape.len() == 1);
        let heads = rate.as_ref().map_or(0, |(_, shape)| shape[0]);
        let mut of_heads = |end: &str| modules.take_odd(|name, shape| name.ends_with(end) && shape == [heads]);
        let (bias, through) = (of_heads("dt_bias"), of_heads("D"));
        let conv = modules.take(is_conv)?;
        let out = modules.take(is_out)?;
        let norm = modules.take(|module| module.shape.len() == 1 && module.last().contains("norm"));
        let inputs = modules.take_all(|module| module.shape.len() == 2 && module.shape[1] == hidden);
        let (with_rate, mamba) = (rate.is_some(), through.is_some());
        let name = |taken: Option<(String, Vec<usize>)>| taken.map(|(name, _)| name);
        let parts =
            Parts { conv, inputs, out, norm, rate: name(rate), bias: name(bias), through: name(through), heads };
        Some(match (with_rate, mamba) {
            (false, _) => Recurrent::Conv(parts),
            (true, false) => Recurrent::Delta(parts),
            (true, true) => Recurrent::Mamba(parts),
        })
    }

    /// Writes the lines from `x` to `o`. False: what stands there was not recognised whole.
    pub fn write(&self, writer: &mut Writer, x: &str, hidden: usize) -> bool {
        match self {
            Recurrent::Conv(parts) => parts.gated_conv(writer, x, hidden),
            Recurrent::Delta(parts) => parts.delta(writer, x),
            Recurrent::Mamba(parts) => parts.mamba(writer, x),
        }
    }
}

const CONV_BIASES: &[&str] = &["conv_bias", "mamba_conv_bias", "use_conv_bias"];
const BIASES: &[&str] = &["conv_bias", "mamba_proj_bias", "use_bias"];

impl Parts {
    fn input(&self, words: &[&str]) -> Option<&Module> {
        self.inputs.iter().find(|module| module.is(words))
    }

    /// A convolution of `value`, in its place, and the activation behind it.
    fn convolve(&self, writer: &mut Writer, value: &str, part: Option<&str>, activate: bool) {
        let taps = writer
            .key_of(&["conv_L_cache", "linear_conv_kernel_dim", "mamba_d_conv", "conv_kernel"], self.conv.shape[2]);
        let bias = writer.bias(&self.conv, CONV_BIASES);
        let part = part.map_or(String::new(), |part| format!(", part = \"{part}\""));
        writer.line(
            value,
            "conv",
            &format!("x = \"{value}\", weight = \"{}\"{bias}, taps = {taps}{part}", self.conv.weight),
        );
        if activate {
            writer.activation(value, true);
        }
    }

    fn output(&self, writer: &mut Writer) {
        writer.linear("o", "o", Some(&self.out), "features = \"hidden_size\"", None, BIASES);
    }

    fn gated_conv(&self, writer: &mut Writer, x: &str, hidden: usize) -> bool {
        let Some(module) = self.input(&["in_proj"]).filter(|module| module.shape[0] == 3 * hidden) else {
            return false;
        };
        writer.note("TODO the order of the two gates and of what they gate in the fused weight is LFM2's");
        for (out, first) in [("b", "0"), ("c", "hidden_size"), ("o", "2 * hidden_size")] {
            let part = format!("[{first}, hidden_size, 3 * hidden_size]");
            writer.linear(out, x, Some(module), "features = \"hidden_size\"", Some(&part), BIASES);
        }
        writer.line("o", "mul", "a = \"b\", b = \"o\"");
        self.convolve(writer, "o", None, false);
        writer.line("o", "mul", "a = \"c\", b = \"o\"");
        self.output(writer);
        true
    }

    fn delta(&self, writer: &mut Writer, x: &str) -> bool {
        let (Some(rate), Some(bias), Some(norm)) = (&self.rate, &self.bias, &self.norm) else { return false };
        let keys = ["linear_num_key_heads", "linear_key_head_dim", "linear_num_value_heads", "linear_value_head_dim"];
        let [Some(key_heads), Some(dk), Some(_), Some(dv)] = keys.map(|key| writer.keys.count(key)) else {
            return false;
        };
        let [hk, dk_key, hv, dv_key] = keys;
        if self.conv.shape[0] != 2 * key_heads * dk + self.heads * dv {
            return false;
        }
        writer.keys.derive("linear_keys", &format!("\"{hk} * {dk_key}\""));
        writer.keys.derive("linear_values", &format!("\"{hv} * {dv_key}\""));
        let all = "2 * linear_keys + linear_values";
        let places = ["[0, linear_keys, ", "[linear_keys, linear_keys, ", "[2 * linear_keys, linear_values, "]
            .map(|first| format!("{first}{all}]"));
        let heads = [(hk, dk_key), (hk, dk_key), (hv, dv_key), (hv, dv_key)]
            .map(|(heads, size)| format!("heads = \"{heads}\", head_dim = \"{size}\""));
        let of_heads = format!("features = \"{hv}\"");
        if let (Some(all), Some(both)) = (self.input(&["in_proj_qkvz"]), self.input(&["in_proj_ba"])) {
            // For each key head its q, its k, and the values and gates of the heads that share it.
            writer.keys.derive("linear_share", &format!("\"{hv} / {hk}\""));
            let own = format!("linear_share * {dv_key}");
            let step = format!("2 * {dk_key} + 2 * {own}");
            let firsts = ["0".to_owned(), dk_key.to_owned(), format!("2 * {dk_key}"), format!("2 * {dk_key} + {own}")];
            for (at, out) in ["q", "k", "v", "z"].into_iter().enumerate() {
                let size = if at < 2 { dk_key } else { &own };
                writer.linear(out, x, Some(all), &heads[at], Some(&format!("[{}, {size}, {step}]", firsts[at])), &[]);
            }
            for (out, first) in [("b", "0"), ("g", "linear_share")] {
                writer.linear(
                    out,
                    x,
                    Some(both),
                    &of_heads,
                    Some(&format!("[{first}, linear_share, 2 * linear_share]")),
                    &[],
                );
            }
        } else if let (Some(qkv), Some(z), Some(b), Some(a)) = (
            self.input(&["in_proj_qkv"]),
            self.input(&["in_proj_z"]),
            self.input(&["in_proj_b"]),
            self.input(&["in_proj_a"]),
        ) {
            for (at, out) in ["q", "k", "v"].into_iter().enumerate() {
                writer.linear(out, x, Some(qkv), &heads[at], Some(&places[at]), &[]);
            }
            writer.linear("z", x, Some(z), &heads[3], None, &[]);
            writer.linear("b", x, Some(b), &of_heads, None, &[]);
            writer.linear("g", x, Some(a), &of_heads, None, &[]);
        } else {
            return false;
        }
        for (at, out) in ["q", "k", "v"].into_iter().enumerate() {
            self.convolve(writer, out, Some(&places[at]), true);
        }
        writer.note(
            "TODO that q and k are divided by their lengths, and by how much q is scaled, is what most families do",
        );
        for (out, factor) in [("q", format!("1.0 / {dk_key}")), ("k", format!("{dk_key} ** -0.5"))] {
            writer.line(out, "rms_norm", &format!("x = \"{out}\", eps = \"1e-6 / {dk_key}\""));
            writer.line(out, "scale", &format!("x = \"{out}\", factor = \"{factor}\""));
        }
        writer.line("b", "sigmoid", "x = \"b\"");
        writer.line("g", "add", &format!("a = \"g\", weight = \"{bias}\""));
        writer.line("g", "softplus", "x = \"g\"");
        writer.line("g", "decay", &format!("x = \"g\", weight = \"{rate}\""));
        writer.line("o", "recall", "q = \"q\", k = \"k\", v = \"v\", decay = \"g\", beta = \"b\"");
        writer.plain_norm("o", norm);
        writer.activation("z", true);
        writer.line("o", "mul", "a = \"z\", b = \"o\"");
        self.output(writer);
        true
    }

    fn mamba(&self, writer: &mut Writer, x: &str) -> bool {
        let (Some(rate), Some(bias), Some(through)) = (&self.rate, &self.bias, &self.through) else { return false };
        let (inner, channels) = (self.out.shape[1], self.conv.shape[0]);
        let whole = |module: &&Module| module.shape[0] == inner + channels + self.heads;
        let Some(module) = self.input(&["in_proj"]).filter(whole) else { return false };
        let groups = writer.counted(&["mamba_n_groups", "n_groups", "mamba_ngroups"]);
        let (Some((groups, count)), Some(states)) = (groups, channels.checked_sub(inner)) else { return false };
        if count == 0 || self.heads == 0 || !states.is_multiple_of(2 * count) || !inner.is_multiple_of(self.heads) {
            return false;
        }
        let heads = writer.key_of(&["mamba_n_heads", "mamba_num_heads"], self.heads);
        let state = writer.key_of(&["mamba_d_state", "ssm_state_size"], states / 2 / count);
        let size = writer.key_of(&["mamba_d_head", "mamba_head_dim"], inner / self.heads);
        let plain = |text: &str| text.trim_matches('"').to_owned();
        writer.keys.derive("mamba_inner", &format!("\"{} * {}\"", plain(&heads), plain(&size)));
        writer.keys.derive("mamba_states", &format!("\"{groups} * {}\"", plain(&state)));
        let all = format!("2 * mamba_inner + 2 * mamba_states + {}", plain(&heads));
        let of_keys = format!("heads = \"{groups}\", head_dim = {state}");
        for (out, shape, first, length) in [
            ("z", "features = \"mamba_inner\"".to_owned(), "0", "mamba_inner".to_owned()),
            ("v", format!("heads = {heads}, head_dim = {size}"), "mamba_inner", "mamba_inner".to_owned()),
            ("k", of_keys.clone(), "2 * mamba_inner", "mamba_states".to_owned()),
            ("q", of_keys, "2 * mamba_inner + mamba_states", "mamba_states".to_owned()),
            ("t", format!("features = {heads}"), "2 * mamba_inner + 2 * mamba_states", plain(&heads)),
        ] {
            writer.linear(out, x, Some(module), &shape, Some(&format!("[{first}, {length}, {all}]")), BIASES);
        }
        let step = "mamba_inner + 2 * mamba_states";
        for (out, part) in [
            ("v", "[0, mamba_inner, "),
            ("k", "[mamba_inner, mamba_states, "),
            ("q", "[mamba_inner + mamba_states, mamba_states, "),
        ] {
            self.convolve(writer, out, Some(&format!("{part}{step}]")), true);
        }
        writer.line("t", "add", &format!("a = \"t\", weight = \"{bias}\""));
        writer.line("t", "softplus", "x = \"t\"");
        writer.line("g", "decay", &format!("x = \"t\", weight = \"{rate}\""));
        writer.line("u", "mul", "a = \"v\", b = \"t\"");
        writer.line("o", "recall", "q = \"q\", k = \"k\", v = \"u\", decay = \"g\"");
        writer.line("v", "mul", &format!("a = \"v\", weight = \"{through}\", features = {heads}"));
        writer.line("o", "add", "a = \"o\", b = \"v\"");
        writer.line("o", "reshape", "x = \"o\", features = \"mamba_inner\"");
        writer.activation("z", true);
        writer.line("o", "mul", "a = \"z\", b = \"o\"");
        if let Some(norm) = &self.norm {
            writer.note("TODO nothing tells whether the norm is over all of a token or over groups of it, nor whether it comes before the gate");
            writer.plain_norm("o", norm);
        }
        self.output(writer);
        true
    }
}
