//! What is written of a GGUF architecture.

/// One GGUF architecture. Another family is one more row of [`FAMILIES`], and where its configuration has keys of its own, one more arm in `config`.
pub(super) struct Family {
    /// `general.architecture`, also the prefix of its metadata keys.
    pub architecture: &'static str,
    /// config.json's `architectures`.
    pub class: &'static str,
    /// config.json's `model_type`.
    pub model_type: &'static str,
    /// config.json's key of the activation, and its value.
    pub activation: (&'static str, &'static str),
    pub epsilon: Epsilon,
    pub rotation: Rotation,
    /// (the usual key of config.json, the family's own).
    pub keys: Names,
    /// config.json's keys that say whether there are biases, each with the tensor that shows it.
    pub biases: Names,
    /// `blk.N.` becomes this and `N.`.
    pub layers: &'static str,
    /// (GGUF, transformers) stems of the names outside the layers; `.weight` or `.bias` follows.
    pub outside: Names,
    /// The same inside a layer; `{expert}` in a name stands for the index into a stack of experts.
    pub inside: &'static [Names],
    /// GGUF stems inside a layer that the file stores otherwise than transformers.
    pub stored: &'static [(&'static str, How)],
    /// Whether its description honours a window on attention.
    pub windows: bool,
    /// Norms multiply by one more than transformers' weight, and the file has the sum.
    pub norms_plus_one: bool,
}

/// The end of every message about a file that says more than is honoured.
pub(super) const INSTEAD: &str = "use the model's Hugging Face directory instead";

/// Pairs of GGUF's and transformers' name.
pub(super) type Names = &'static [(&'static str, &'static str)];

/// Which number keeps norms from dividing by zero.
#[derive(Clone, Copy)]
pub(super) enum Epsilon {
    /// `attention.layer_norm_rms_epsilon`, as `rms_norm_eps`.
    Rms,
    /// `attention.layer_norm_epsilon`, as this key of config.json.
    Layer(&'static str),
    /// A metadata key and the only value that transformers has; config.json does not say it.
    Fixed(&'static str, f64),
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Rotation {
    /// No rotary embedding.
    None,
    /// Whole heads.
    Whole,
    /// The first values of each head, as `partial_rotary_factor`.
    Part,
}

/// How a file stores a tensor that transformers has otherwise; see [`Stored`](crate::weights::stored::Stored).
#[derive(Clone, Copy)]
pub(super) enum How {
    Pairs(Heads),
    ByProjection,
    Turned,
}

#[derive(Clone, Copy)]
pub(super) enum Heads {
    Query,
    KeyValue,
}

/// Head counts of a model.
pub(super) struct Counts {
    pub query: usize,
    pub key_value: usize,
}
