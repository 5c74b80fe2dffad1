//! Checkpoints: what a model's files say about it, and their tensors as f32 under transformers' names, whatever the format.

mod checkpoint;
mod dtype;
pub mod gguf;
mod hugging_face;
mod pack;
mod quantised;
mod raw;
mod rounded;
mod row_tiles;
mod select;
mod stored;

pub use checkpoint::Checkpoint;
pub use dtype::Dtype;
pub use pack::{Fill, dummy_pattern, least_piece, pack, pack_in_pieces};
pub use row_tiles::{ROWS, lane_share, pack_row, pack_whole, whole_bits};

pub use crate::blocks::{decode, encode};
use crate::map::map_file;
use anyhow::{Result, bail, ensure};
use checkpoint::Source;
use fusec::files::{Kind, mistaken};
use fusec::folder::{checkpoint_folder, nothing_there, single_file};
use std::collections::BTreeSet;
use std::path::Path;

impl Checkpoint {
    /// Opens a Hugging Face directory (config.json with model.safetensors, with model.safetensors.index.json and its shards, or with any other set of
    /// .safetensors files) or a GGUF file; of a model in several GGUF files, any of them.
    ///
    /// Fails with one message that names the file where something is missing, truncated or malformed.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        if path.is_dir() {
            return hugging_face::open(&checkpoint_folder(path)?);
        }
        ensure!(path.exists(), "{}: {}", path.display(), nothing_there(path));
        let file = map_file(path)?;
        if file.starts_with(gguf::MAGIC) || path.extension().is_some_and(|extension| extension == "gguf") {
            let (gguf::Opened { config, metadata, tensors }, files) = gguf::open(path, file)?;
            let origin = path.display().to_string();
            return Ok(Checkpoint {
                origin,
                path: Some(path.into()),
                config,
                metadata: Some(metadata),
                tensors,
                sources: files.into_iter().map(Source::Mapped).collect(),
                idle: BTreeSet::new(),
            });
        }
        let what = single_file(path).or_else(|| mistaken(&file, Kind::Gguf));
        let what = what.unwrap_or_else(|| {
            "give a .gguf file, or the directory that holds config.json and the .safetensors files".to_owned()
        });
        bail!("{}: not a GGUF file; {what}", path.display());
    }
}

#[cfg(test)]
mod tests;
