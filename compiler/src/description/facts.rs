//! What a configuration says about the whole model.

use std::ops::Range;

/// What the configuration says about the whole model.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Layers.
    pub num_layers: usize,
    /// `max_position_embeddings`, where it is given.
    pub max_position_embeddings: Option<usize>,
    /// The positions that the model is made for, where they are known: `max_position_embeddings`, or as far as a scaling of RoPE reaches.
    pub context_limit: Option<usize>,
    /// What holds beyond them.
    pub beyond: Beyond,
    /// The checkpoint's element type as the configuration names it, such as `bfloat16`.
    pub dtype: Option<String>,
    /// The architecture in the configuration, where it is given.
    pub architecture: Option<String>,
    /// Whether the head shares the embedding's weight, by the weights' names.
    pub tied_head: bool,
    /// Layers after the last that predict further tokens: a checkpoint may hold them, and nothing reads them.
    pub further_layers: usize,
    /// The token that begins a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

/// What a text may do beyond the positions that a model is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beyond {
    /// Nothing: its positions are learned, or its RoPE has no scaling.
    Refused,
    /// Run, worse than within: its RoPE is scaled.
    Worse,
    /// Be read in one piece, but not grow: the base of its RoPE depends on the length of the whole text.
    OnePass,
}

impl Facts {
    /// What a checkpoint may hold though no operation reads it.
    pub fn spare(&self) -> Spare {
        Spare { tied_head: self.tied_head, layers: self.num_layers..self.num_layers + self.further_layers }
    }
}

/// What a checkpoint may hold though no operation reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spare {
    /// The copy of a tied head.
    pub tied_head: bool,
    /// Layers that predict further tokens.
    pub layers: Range<usize>,
}
