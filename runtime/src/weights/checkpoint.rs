//! A checkpoint as the rest of the program sees it: names, shapes and values, whatever the format.

use super::dtype::Dtype;
use super::gguf;
use super::quantised::Quantised;
use super::stored::{self, Rounded, Stored, Tensor};
use crate::blocks::decode;
use crate::map::release;
use anyhow::{Context, Result, bail, ensure};
use fusec::description::Spare;
use fusec::ir::{Format, WeightRef};
use fusec::tensors;
use fusec::text::closest;
use memmap2::Mmap;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A model's weights and configuration: a Hugging Face directory, a GGUF file, or tensors in memory.
///
/// Files are mapped, not read: opening costs the headers only, and the bytes of a tensor come in when its rows are asked for. Reading needs no lock,
/// so several threads may read at once.
#[derive(Debug)]
pub struct Checkpoint {
    /// What messages call it.
    pub(super) origin: String,
    pub(super) path: Option<PathBuf>,
    pub(super) config: Value,
    pub(super) metadata: Option<gguf::Metadata>,
    pub(super) tensors: BTreeMap<String, Tensor>,
    pub(super) sources: Vec<Source>,
    /// Tensors that carry nothing, and that no weight need be read from.
    pub(super) idle: BTreeSet<String>,
}

/// What holds the bytes of tensors.
pub(super) enum Source {
    Mapped(Mmap),
    Floats(Vec<f32>),
    /// No bytes: values made from the seed and their index when they are read.
    Noise(u64),
    /// Rows of blocks, made of tensors in other sources when they are read.
    Quantised(Box<Quantised>),
    /// Rows of blocks, made of the values of a tensor in another source when they are read.
    Rounded(Box<Rounded>),
}

impl Checkpoint {
    /// A checkpoint of tensors in memory: (shape, values in row-major order) by name.
    ///
    /// Fails where a tensor has another number of values than its shape says.
    pub fn from_memory(config: Value, tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint::empty("the checkpoint in memory", config);
        for (name, (shape, values)) in tensors {
            let expected = shape.iter().product::<usize>();
            ensure!(
                values.len() == expected,
                "tensor {name} of shape {shape:?} needs {expected} values and has {}",
                values.len()
            );
            let file = checkpoint.sources.len();
            let bytes = 0..4 * values.len();
            checkpoint.sources.push(Source::Floats(values));
            checkpoint
                .tensors
                .insert(name, Tensor { shape, dtype: Dtype::Of(Format::F32), file, bytes, stored: Stored::Plain });
        }
        Ok(checkpoint)
    }

    /// A checkpoint of made-up weights that takes no memory: the same values for the same seed, name and shape, made as they are read.
    ///
    /// A weight of one dimension with "norm" in its name is all ones; every other tensor is uniform noise of standard deviation 0.02.
    pub fn dummy(config: Value, tensors: &[(WeightRef, Vec<usize>)], seed: u64) -> Checkpoint {
        let mut checkpoint = Checkpoint::empty("the made-up checkpoint", config);
        // Parts and stacks are read from the tensors that a real checkpoint would have.
        let whole = tensors.iter().flat_map(|(weight, shape)| {
            let tensor = weight.tensor_shape(shape).unwrap_or_else(|| shape.clone());
            weight.tensors().into_iter().map(move |name| (name, tensor.clone()))
        });
        for (name, shape) in &whole.collect::<BTreeMap<String, Vec<usize>>>() {
            let file = checkpoint.sources.len();
            let ones = shape.len() == 1 && name.contains("norm") && name.ends_with("weight");
            checkpoint.sources.push(if ones {
                Source::Floats(vec![1.0; shape[0]])
            } else {
                Source::Noise(noise::seed(seed, name))
            });
            let bytes = 0..if ones { 4 * shape[0] } else { 0 };
            checkpoint.tensors.insert(
                name.clone(),
                Tensor { shape: shape.clone(), dtype: Dtype::Of(Format::F32), file, bytes, stored: Stored::Plain },
            );
        }
        checkpoint
    }

    /// config.json; for a GGUF file, made from its metadata in the form that transformers writes.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The metadata of a GGUF file; `None` for other checkpoints.
    pub fn gguf_metadata(&self) -> Option<&gguf::Metadata> {
        self.metadata.as_ref()
    }

    /// The directory or file that was opened; `None` for a checkpoint in memory.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The names of all tensors in order, as transformers calls them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// How a tensor is stored. Fails where there is no such tensor.
    pub fn dtype(&self, name: &str) -> Result<Dtype> {
        Ok(self.tensor(name)?.dtype)
    }

    /// A whole weight in row-major order, each value widened exactly. Fails where there is no such weight or its type is not read.
    pub fn read_f32(&self, weight: &WeightRef) -> Result<Vec<f32>> {
        let rows = self.shape(weight)?.first().copied().unwrap_or(1);
        let mut values = Vec::new();
        self.read_rows_f32(weight, 0..rows, &mut values)?;
        Ok(values)
    }

    /// Replaces the contents of `out` by some rows of a weight: `rows.len()` × (the product of all dimensions but the first) values. A weight of one
    /// dimension has rows of one value.
    ///
    /// Fails where there is no such weight, its type is not read, or it has fewer rows.
    pub fn read_rows_f32(&self, weight: &WeightRef, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        self.append_selected(weight, rows, out)
    }

    /// Appends some rows of a tensor.
    pub(super) fn append_rows(
        &self,
        name: &str,
        tensor: &Tensor,
        rows: Range<usize>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let (count, columns) = tensor.rows_and_columns();
        ensure!(rows.start <= rows.end && rows.end <= count, "rows {rows:?} of tensor {name}, which has {count}");
        out.reserve(rows.len() * columns);
        let source = &self.sources[tensor.file];
        let bytes = match source {
            Source::Mapped(map) => &map[..],
            Source::Floats(values) => bytemuck::cast_slice(values),
            Source::Noise(seed) => {
                out.extend((rows.start * columns..rows.end * columns).map(|index| noise::value(*seed, index as u64)));
                return Ok(());
            }
            Source::Quantised(_) | Source::Rounded(_) => {
                let inner = tensor.shape.get(1..tensor.shape.len() - 1).unwrap_or_default().iter().product::<usize>();
                let (mut blocks, format) = (Vec::new(), tensor.dtype.format().unwrap_or(Format::F32));
                self.append_blocks(name, tensor, rows.start * inner..rows.end * inner, &mut blocks)?;
                decode(format, &blocks, out);
                return Ok(());
            }
        };
        stored::append(tensor, bytes, rows, out)
            .with_context(|| format!("{}: tensor {name} {:?}", self.origin, tensor.shape))
    }

    /// Appends the blocks of some rows of a quantised tensor; a row is all dimensions but the last.
    pub(super) fn append_blocks(
        &self,
        name: &str,
        tensor: &Tensor,
        rows: Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let made = match &self.sources[tensor.file] {
            Source::Quantised(quantised) => quantised.append(|file| self.sources[file].bytes(), rows, out),
            Source::Rounded(rounded) => self.append_rounded(name, rounded, rows, out),
            _ => bail!("{}: tensor {name} is not quantised", self.origin),
        };
        made.with_context(|| format!("{}: tensor {name}", self.origin))
    }

    /// Checks that the checkpoint holds the `required` tensors in their shapes, and nothing else; see [`tensors::account`].
    ///
    /// # Errors
    /// All that is wrong, in one message.
    pub fn account(&self, required: &[(WeightRef, Vec<usize>)], spare: &Spare) -> Result<()> {
        tensors::account(&self.origin, &self.shapes_for(required), required, spare)
    }

    /// Checks that a head that is tied has no other values of its own: nothing says which of the two a model computes with.
    ///
    /// # Errors
    /// `lm_head.weight` differs from each embedding of its shape among the `required` tensors.
    pub fn check_tied_head(&self, required: &[(WeightRef, Vec<usize>)], spare: &Spare) -> Result<()> {
        const HEAD: &str = "lm_head.weight";
        let needed = tensors::names(required);
        let (Some(head), true) = (self.tensors.get(HEAD), spare.tied_head && !needed.contains(HEAD)) else {
            return Ok(());
        };
        let is_embedding = |name: &&String| name.contains("embed") || name.contains("wte");
        let mut tables = needed.iter().filter(is_embedding).filter_map(|name| {
            let table = self.tensor(name).ok().filter(|table| table.shape == head.shape)?;
            Some((name, table))
        });
        let Some((name, table)) = tables.next() else { return Ok(()) };
        let (mut mine, mut other) = (Vec::new(), Vec::new());
        let rows = head.rows_and_columns().0;
        for first in (0..rows).step_by(256) {
            let some = first..rows.min(first + 256);
            mine.clear();
            other.clear();
            self.append_rows(HEAD, self.as_stored(head), some.clone(), &mut mine)?;
            self.append_rows(name, self.as_stored(table), some, &mut other)?;
            ensure!(
                mine.iter().map(|value| value.to_bits()).eq(other.iter().map(|value| value.to_bits())),
                "{}: its configuration ties the head to {name}, and its {HEAD} has other values: set tie_word_embeddings to \
                 false in config.json if the head is its own, or remove the tensor",
                self.origin
            );
        }
        Ok(())
    }

    /// Gives back the memory of what was read of the files. Reading goes on as before, from the files again.
    pub fn release(&self) {
        for source in &self.sources {
            if let Source::Mapped(map) = source {
                release(map);
            }
        }
    }

    /// Bytes of the files that it is made of.
    pub fn stored_bytes(&self) -> u64 {
        let bytes = |source: &Source| if let Source::Mapped(map) = source { map.len() as u64 } else { 0 };
        self.sources.iter().map(bytes).sum()
    }

    /// Name and shape (slowest dimension first) of every tensor.
    pub fn shapes(&self) -> BTreeMap<&str, &[usize]> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice())).collect()
    }

    /// The same without tensors that carry nothing and that none of the `required` weights is read from.
    pub fn shapes_for(&self, required: &[(WeightRef, Vec<usize>)]) -> BTreeMap<&str, &[usize]> {
        tensors::without_idle(self.shapes(), &self.idle, required)
    }

    /// The format of each weight that is stored in half precision, in quantised blocks along its rows, or in several tensors. Others are taken as bfloat16.
    pub fn formats(&self) -> BTreeMap<String, Format> {
        let kept = |tensor: &Tensor| match tensor.dtype {
            Dtype::Of(Format::F16) => Some(Format::F16),
            Dtype::Of(format) if matches!(self.sources[tensor.file], Source::Quantised(_)) => Some(format),
            _ => self.raw_tensor_format(tensor).filter(|format| format.block().0 > 1),
        };
        self.tensors.iter().filter_map(|(name, tensor)| Some((name.clone(), kept(tensor)?))).collect()
    }

    pub(super) fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(tensors::locate(name, &self.tensors)).with_context(|| {
            let near = closest(name, self.names()).map_or(String::new(), |near| format!("; did you mean {near}?"));
            format!("{}: there is no tensor {name}{near}", self.origin)
        })
    }

    fn empty(origin: &str, config: Value) -> Checkpoint {
        Checkpoint {
            origin: origin.to_owned(),
            path: None,
            config,
            metadata: None,
            tensors: BTreeMap::new(),
            sources: Vec::new(),
            idle: BTreeSet::new(),
        }
    }
}

impl Source {
    /// What it holds; `None` where its values are made.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        match self {
            Source::Mapped(map) => Some(&map[..]),
            Source::Floats(values) => Some(bytemuck::cast_slice(values)),
            Source::Noise(_) | Source::Quantised(_) | Source::Rounded(_) => None,
        }
    }
}

/// Counter-based noise: each value depends only on the seed and its index.
mod noise {
    /// Folds a tensor's name into the seed (FNV-1a).
    pub(super) fn seed(seed: u64, name: &str) -> u64 {
        name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }

    /// Uniform with standard deviation 0.02 (splitmix64's finaliser on the counter).
    pub(super) fn value(seed: u64, index: u64) -> f32 {
        let mut bits = seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        let unit = (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        unit * 0.034_641_016
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Mapped(map) => write!(f, "{} mapped bytes", map.len()),
            Source::Floats(values) => write!(f, "{} floats", values.len()),
            Source::Noise(seed) => write!(f, "noise of seed {seed}"),
            Source::Quantised(quantised) => quantised.fmt(f),
            Source::Rounded(rounded) => rounded.fmt(f),
        }
    }
}
