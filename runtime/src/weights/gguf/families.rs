//! What transformers calls things: config.json and tensor names of each GGUF architecture.

mod config;
mod family;
mod inverse;
mod keys;
mod rope;
mod table;

use super::super::stored::{Stored, Tensor};
use super::contents::{Contents, Entry, Metadata, Opened};
use anyhow::{Context, Result, bail, ensure};
use family::{Counts, Family, Heads, How, INSTEAD};
use fusec::description::lacking_in_gguf;
pub use inverse::{Described, Target, describe};
use std::collections::BTreeMap;
use table::{FAMILIES, MISTRAL, MIXTRAL};

/// Renames the tensors and writes the config.json of the file's family; `files` hold the bytes that the tensors point into.
pub(super) fn adapt(contents: Contents, files: &[&[u8]]) -> Result<Opened> {
    let family = family_of(&contents.metadata)?;
    let config = config::config(family, &contents, files)?;
    let head_count = |key: &str| {
        contents.metadata.unsigned(&format!("{}.{key}", family.architecture)).and_then(|count| count.try_into().ok())
    };
    let query = head_count("attention.head_count").unwrap_or(0);
    let heads = Counts { query, key_value: head_count("attention.head_count_kv").unwrap_or(query) };
    let mut tensors = BTreeMap::new();
    for (name, entry) in contents.tensors {
        if rope::is_factors(&name) {
            continue;
        }
        for (renamed, tensor) in family.tensors(&name, entry, &heads)? {
            ensure!(tensors.insert(renamed.clone(), tensor).is_none(), "two tensors are called {renamed}");
        }
    }
    Ok(Opened { config, metadata: contents.metadata, tensors })
}

fn family_of(metadata: &Metadata) -> Result<&'static Family> {
    match metadata.text("general.type") {
        Some("adapter") => {
            let of = metadata.text("general.base_model.0.name").unwrap_or("a model");
            bail!(
                "it is a LoRA adapter, a change of {of} and no model: merge the two with llama.cpp's llama-export-lora"
            );
        }
        Some("imatrix") => bail!("it is an importance matrix, which quantisers read, and no model"),
        Some("mmproj") => bail!("it is what a model sees or hears with (mmproj): name the file of its language model"),
        _ => {}
    }
    let architecture =
        metadata.text("general.architecture").context("the metadata key general.architecture is missing")?;
    if let Some(why) = lacking_in_gguf(architecture) {
        bail!("{why}: no file of it can be run");
    }
    let Some(family) = FAMILIES.iter().find(|family| family.architecture == architecture) else {
        let known: Vec<_> = FAMILIES.iter().map(|family| family.architecture).collect();
        bail!("GGUF files of architecture '{architecture}' are not read (known: {}); {INSTEAD}", known.join(", "));
    };
    let positive = |key: &str| metadata.unsigned(key).is_some_and(|value| value > 0);
    Ok(match architecture {
        "llama" if positive("llama.expert_count") => &MIXTRAL,
        "llama" if positive("llama.attention.sliding_window") => &MISTRAL,
        _ => family,
    })
}

impl Family {
    /// What a tensor of the file is to transformers: one tensor, or for a stack of experts one for each.
    fn tensors(&self, name: &str, entry: Entry, heads: &Counts) -> Result<Vec<(String, Tensor)>> {
        let Some((renamed, how)) = self.rename(name) else {
            return Ok(vec![(name.to_owned(), entry.tensor(Stored::Plain))]);
        };
        let Some((before, after)) = renamed.split_once("{expert}") else {
            let stored = match how {
                _ if self.norms_plus_one && renamed.ends_with("norm.weight") => Stored::PlusOne,
                None => Stored::Plain,
                Some(how) => how.of(name, &entry.shape, heads)?,
            };
            let mut tensor = entry.tensor(stored);
            match tensor.shape[..] {
                [rows, columns] if stored == Stored::Turned => tensor.shape = vec![columns, rows],
                // The one row of a shared expert's gate is written as a vector.
                [columns] if renamed.ends_with("shared_expert_gate.weight") => tensor.shape = vec![1, columns],
                _ => {}
            }
            return Ok(vec![(renamed, tensor)]);
        };
        let Some((&experts, shape)) = entry.shape.split_first().filter(|(_, shape)| shape.len() == 2) else {
            bail!("tensor {name} has shape {:?}, which is no stack of experts' matrices", entry.shape);
        };
        let size = entry.bytes.len() / experts.max(1);
        let expert = |index: usize| {
            let begin = entry.bytes.start + index * size;
            let bytes = begin..begin + size;
            let one = Entry { shape: shape.to_vec(), dtype: entry.dtype, file: entry.file, bytes };
            (format!("{before}{index}{after}"), one.tensor(Stored::Plain))
        };
        Ok((0..experts).map(expert).collect())
    }

    /// The transformers name of a tensor and how the file stores it; `None` where the family does not know it.
    fn rename(&self, name: &str) -> Option<(String, Option<How>)> {
        let (stem, kind) = name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
        if let Some((_, outside)) = self.outside.iter().find(|(gguf, _)| *gguf == stem) {
            return Some((format!("{outside}.{kind}"), None));
        }
        let (layer, stem) = stem.strip_prefix("blk.")?.split_once('.')?;
        layer.parse::<u32>().ok()?;
        let find = |stem: &str| self.inside.iter().copied().flatten().find(|(gguf, _)| *gguf == stem);
        let inside = match stem.split_once('.') {
            None => find(stem)?.1.to_owned(),
            // Early files have a tensor for each expert: `ffn_gate.3`.
            Some((stem, expert)) => {
                expert.parse::<u32>().ok()?;
                find(&format!("{stem}_exps"))?.1.replace("{expert}", expert)
            }
        };
        let how = self.stored.iter().find(|(gguf, _)| *gguf == stem).map(|(_, how)| *how);
        Some((format!("{}{layer}.{inside}.{kind}", self.layers), how))
    }
}

impl How {
    /// The order of a tensor of this shape. Fails where its rows are no such heads.
    fn of(self, name: &str, shape: &[usize], heads: &Counts) -> Result<Stored> {
        let rows = shape[0];
        let of_heads = |heads: usize, each: usize, what: &str| {
            ensure!(
                heads > 0 && each.checked_mul(heads).is_some_and(|whole| rows.is_multiple_of(whole)),
                "tensor {name} has {rows} rows, which are not {heads} heads of {what}"
            );
            Ok(heads)
        };
        Ok(match self {
            How::Pairs(which) => {
                let heads = if matches!(which, Heads::Query) { heads.query } else { heads.key_value };
                Stored::Pairs { heads: of_heads(heads, 2, "an even size")? }
            }
            How::ByProjection => Stored::ByProjection { heads: of_heads(heads.query, 3, "q, k and v")? },
            // Biases are vectors: there is nothing to turn.
            How::Turned if shape.len() == 2 => Stored::Turned,
            How::Turned => Stored::Plain,
        })
    }
}

impl Entry {
    fn tensor(self, stored: Stored) -> Tensor {
        Tensor { shape: self.shape, dtype: self.dtype, file: self.file, bytes: self.bytes, stored }
    }
}

#[cfg(test)]
mod tests;
