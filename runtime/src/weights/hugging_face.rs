//! Hugging Face directories: config.json and one or several safetensors files.
//!
//! A safetensors file is the header's length u64, the header as JSON (name → dtype, shape, data_offsets) and the tensors' bytes, each offset from the
//! header's end.

use super::checkpoint::{Checkpoint, Source};
use super::dtype::Dtype;
use super::quantised::{Place, Quantised};
use super::stored::{Stored, Tensor};
use crate::map::map_file;
use anyhow::{Context, Result, anyhow, bail, ensure};
use fusec::description::{Quantisation, language_model_config, language_model_names};
use fusec::files::{Kind, mistaken, read_json};
use fusec::folder;
use fusec::ir::Format;
use fusec::quantised::{Header, find};
use fusec::tensors::may_be_dropped;
use safetensors::{SafeTensorError, SafeTensors};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const INDEX: &str = "model.safetensors.index.json";

/// Opens a directory.
pub(super) fn open(directory: &Path) -> Result<Checkpoint> {
    let config_path = directory.join("config.json");
    ensure!(config_path.exists(), "{}: {}", directory.display(), folder::without_config(directory));
    let config = folder::configuration(directory)?;
    ensure!(config.is_object(), "{}: not a JSON object", config_path.display());

    let (tensors, mut sources) = if directory.join("model.safetensors").exists() {
        join(&[directory.join("model.safetensors")])?
    } else if directory.join(INDEX).exists() {
        join_indexed(directory, &config)?
    } else {
        let files = files_with(directory, "safetensors")?;
        ensure!(!files.is_empty(), "{}: {}", directory.display(), folder::without_weights(directory));
        if let Some(what) = folder::other_weights(directory, &files) {
            bail!("{}: {what}", directory.display());
        }
        join(&files)?
    };
    let (tensors, idle) = whole(&config, of_language_model(&config, tensors), &mut sources)
        .with_context(|| directory.display().to_string())?;
    Ok(Checkpoint {
        tensors,
        idle,
        origin: directory.display().to_string(),
        path: Some(directory.into()),
        config,
        metadata: None,
        sources,
    })
}

/// The tensors of the language model, as they are called where it is the whole model.
fn of_language_model(config: &Value, tensors: BTreeMap<String, Raw>) -> BTreeMap<String, Raw> {
    let names: Vec<&String> = tensors.keys().collect();
    let own = language_model_names(config, &names);
    tensors.into_values().zip(own).filter_map(|(tensor, own)| Some((own?, tensor))).collect()
}

/// A tensor as a file has it.
struct Raw {
    tensor: Tensor,
    dtype: safetensors::Dtype,
}

/// The tensors with those that make a quantised weight in one place; and the names of those that carry nothing.
fn whole(
    config: &Value,
    tensors: BTreeMap<String, Raw>,
    sources: &mut Vec<Source>,
) -> Result<(BTreeMap<String, Tensor>, BTreeSet<String>)> {
    // A method that is not read is refused when the description is resolved.
    let Ok(Some(quantisation)) = Quantisation::of(config) else {
        return Ok((tensors.into_iter().map(|(name, raw)| (name, raw.tensor)).collect(), BTreeSet::new()));
    };
    let header =
        |(name, raw): (&String, &Raw)| (name.clone(), Header { shape: raw.tensor.shape.clone(), dtype: raw.dtype });
    let found = find(&quantisation, &tensors.iter().map(header).collect())
        .context("it is quantised otherwise than its config.json says")?;
    let place = |name: &str| {
        let Raw { tensor, dtype } = tensors.get(name).with_context(|| format!("there is no tensor {name}"))?;
        Ok(Place { file: tensor.file, bytes: tensor.bytes.clone(), dtype: *dtype })
    };
    let mut made = BTreeMap::new();
    for (name, weight) in found.weights {
        let (shape, dtype) = (weight.shape.clone(), Dtype::Of(weight.format));
        let tensor = Tensor { shape, dtype, file: sources.len(), bytes: 0..0, stored: Stored::Plain };
        let quantised = Quantised::new(weight, &place)?;
        quantised.check(|file| sources[file].bytes()).with_context(|| format!("{name} is quantised"))?;
        sources.push(Source::Quantised(Box::new(quantised)));
        made.insert(name, tensor);
    }
    let plain = tensors.into_iter().filter(|(name, _)| !found.parts.contains(name));
    made.extend(plain.map(|(name, raw)| (name, raw.tensor)));
    let zeros = |name: &String| {
        let Tensor { file, bytes, .. } = &made[name];
        sources[*file].bytes().is_some_and(|file| file[bytes.clone()].iter().all(|byte| *byte == 0))
    };
    let idle = found.biases.into_iter().filter(zeros).collect();
    Ok((made, idle))
}

type Joined = (BTreeMap<String, Raw>, Vec<Source>);

/// The tensors of several files together.
fn join(files: &[PathBuf]) -> Result<Joined> {
    let (mut tensors, mut sources) = (BTreeMap::new(), Vec::new());
    for path in files {
        let map = map_file(path)?;
        for (name, tensor) in read_header(path, &map, sources.len())? {
            ensure!(
                !tensors.contains_key(&name),
                "{}: tensor {name} is in another file of the directory too",
                path.display()
            );
            tensors.insert(name, tensor);
        }
        sources.push(Source::Mapped(map));
    }
    Ok((tensors, sources))
}

/// The tensors of the shards that the index names, each where the index says. An index may list what nobody needs and no file has.
fn join_indexed(directory: &Path, config: &Value) -> Result<Joined> {
    let index_path = directory.join(INDEX);
    let index = read_json(&index_path)?;
    let entries = index
        .get("weight_map")
        .and_then(Value::as_object)
        .with_context(|| format!("{}: there is no object weight_map", index_path.display()))?;
    let mut shards = BTreeSet::new();
    for (name, shard) in entries {
        let shard = shard
            .as_str()
            .with_context(|| format!("{}: the file of tensor {name} is not text", index_path.display()))?;
        let plain = Path::new(shard).file_name().is_some_and(|file| file == shard);
        ensure!(
            plain,
            "{}: tensor {name} is in '{shard}', which is not the name of a file beside the index",
            index_path.display()
        );
        shards.insert(shard);
    }
    let missing: Vec<_> = shards.iter().copied().filter(|shard| !directory.join(shard).exists()).collect();
    if let Some(first) = missing.first() {
        bail!(
            "{}: {} of {} shards are missing, {first} the first; download them",
            directory.display(),
            missing.len(),
            shards.len()
        );
    }
    let files: Vec<_> = shards.iter().map(|shard| directory.join(shard)).collect();
    let joined = join(&files)?;
    let names: Vec<&String> = entries.keys().collect();
    let own = language_model_names(config, &names);
    let language = language_model_config(config);
    let layers = language.as_ref().unwrap_or(config).get("num_hidden_layers").and_then(Value::as_u64);
    for ((name, shard), own) in entries.iter().zip(own) {
        let found = joined.0.get(name).map(|raw| &files[raw.tensor.file]);
        let needless = own.is_none_or(|own| may_be_dropped(&own, layers.map(|layers| layers as usize)));
        if found.is_none() && needless {
            continue;
        }
        if found.is_none_or(|found| found.file_name().and_then(|file| file.to_str()) != shard.as_str()) {
            let shard = shard.as_str().unwrap_or_default();
            bail!(
                "{}: tensor {name} is not in {shard}, where the index has it; download both again",
                index_path.display()
            );
        }
    }
    Ok(joined)
}

/// The tensors of one file, placed in the bytes of source `file`.
fn read_header(path: &Path, bytes: &[u8], file: usize) -> Result<Vec<(String, Raw)>> {
    let (header, metadata) = SafeTensors::read_metadata(bytes)
        .map_err(|error| mistaken(bytes, Kind::Safetensors).map_or_else(|| explain(error, bytes), |what| anyhow!(what)))
        .with_context(|| path.display().to_string())?;
    let data = 8 + header;
    let place = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let (start, end) = info.data_offsets;
        let (shape, dtype) = (info.shape.clone(), dtype_of(info.dtype));
        let tensor = Tensor { shape, dtype, file, bytes: data + start..data + end, stored: Stored::Plain };
        (name, Raw { tensor, dtype: info.dtype })
    };
    Ok(metadata.tensors().into_iter().map(place).collect())
}

/// A parser's error in words that say what is wrong with the file.
fn explain(error: SafeTensorError, bytes: &[u8]) -> anyhow::Error {
    const AGAIN: &str = "it is truncated or corrupt, download it again";
    let length = bytes.len();
    let header = bytes.first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk));
    match error {
        SafeTensorError::HeaderTooSmall => {
            anyhow!("a safetensors file starts with 8 bytes of length and this one has {length} bytes: {AGAIN}")
        }
        SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeaderLength => {
            anyhow!("its header should have {header} bytes and the file has {length}: {AGAIN}")
        }
        SafeTensorError::MetadataIncompleteBuffer => match expected_length(bytes, header) {
            Some(expected) => {
                anyhow!("its header describes {expected} bytes and the file has {length}: {AGAIN}")
            }
            None => anyhow!("its header describes another length than the {length} bytes of the file: {AGAIN}"),
        },
        other => anyhow!("not a usable safetensors file: {other}"),
    }
}

/// The length of the file that a header describes.
fn expected_length(bytes: &[u8], header: u64) -> Option<u64> {
    let end = usize::try_from(header).ok()?.checked_add(8)?;
    let header_json: Value = serde_json::from_slice(bytes.get(8..end)?).ok()?;
    let ends = header_json.as_object()?.values().filter_map(|entry| entry.get("data_offsets")?.get(1)?.as_u64());
    ends.max()?.checked_add(end as u64)
}

fn dtype_of(dtype: safetensors::Dtype) -> Dtype {
    match dtype {
        safetensors::Dtype::F32 => Dtype::Of(Format::F32),
        safetensors::Dtype::F16 => Dtype::Of(Format::F16),
        safetensors::Dtype::BF16 => Dtype::Of(Format::BF16),
        safetensors::Dtype::F64 => Dtype::Unsupported("F64"),
        safetensors::Dtype::F8_E4M3 => Dtype::Unsupported("F8_E4M3"),
        safetensors::Dtype::F8_E5M2 => Dtype::Unsupported("F8_E5M2"),
        safetensors::Dtype::BOOL => Dtype::Unsupported("BOOL"),
        safetensors::Dtype::U8 => Dtype::Unsupported("U8"),
        safetensors::Dtype::I8 => Dtype::Unsupported("I8"),
        safetensors::Dtype::I16 => Dtype::Unsupported("I16"),
        safetensors::Dtype::U16 => Dtype::Unsupported("U16"),
        safetensors::Dtype::I32 => Dtype::Unsupported("I32"),
        safetensors::Dtype::U32 => Dtype::Unsupported("U32"),
        safetensors::Dtype::I64 => Dtype::Unsupported("I64"),
        safetensors::Dtype::U64 => Dtype::Unsupported("U64"),
        _ => Dtype::Unsupported("a type that is neither F32, F16 nor BF16"),
    }
}

/// The files of a directory with an extension, by name.
fn files_with(directory: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|path| path.extension().is_some_and(|found| found == extension));
    files.sort();
    Ok(files)
}
