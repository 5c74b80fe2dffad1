//! A Hugging Face folder as the compiler sees it: its config.json, and the names and shapes of its tensors. No weight is read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::Value;

use crate::compile::{Formats, Model};
use crate::description::{Quantisation, language_model_names};
use crate::files::{Kind, mistaken, read_json};
use crate::folder::{configuration, hub_name, other_weights, single_file, without_config};
use crate::ir::Format;
use crate::quantised::{self, Header};
use crate::tensors::{self, Accounting};

/// A header is some hundred bytes per tensor: a file that claims more is broken or hostile.
const LARGEST_HEADER: u64 = 100_000_000;

/// The folder's config.json.
pub(super) fn config(folder: &Path) -> Result<Value> {
    ensure!(
        folder.is_dir(),
        "{} is no folder, and a checkpoint is one with config.json and .safetensors files{}",
        folder.display(),
        hub_name(folder).or_else(|| one_file(folder)).map_or(String::new(), |hint| format!("; {hint}"))
    );
    let file = folder.join("config.json");
    ensure!(file.exists(), "{}: {}", folder.display(), without_config(folder));
    configuration(folder)
}

/// What to do with a file that was named in the place of a folder.
fn one_file(path: &Path) -> Option<String> {
    match path.extension() {
        Some(extension) if extension == "gguf" => Some("fuserun runs GGUF files, with no work of fusec's".to_owned()),
        _ => single_file(path).filter(|_| path.is_file()),
    }
}

/// The tensors in a folder's weight files.
#[derive(Default)]
pub(super) struct Tensors {
    /// Name and shape of each that is of the language model.
    pub own: BTreeMap<String, Vec<usize>>,
    /// How each of these is stored, where it is in a format that kernels read.
    pub formats: Formats,
    /// Those that carry nothing as long as they are zeros, which only who runs the model sees.
    pub idle: BTreeSet<String>,
    /// The names of those of other parts of the model.
    pub others: Vec<String>,
}

/// Checks that the folder's tensors are those that the model reads, in name and shape, both ways. None for a folder with only a config.json.
pub(super) fn account(folder: &Path, model: &Model) -> Result<Option<Accounting>> {
    let Tensors { own, others, idle, .. } = tensors(folder)?;
    if own.is_empty() {
        return Ok(None);
    }
    let found = own.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
    let found = tensors::without_idle(found, &idle, &tensors::required(&model.described));
    let accounting = tensors::reconcile(&folder.display().to_string(), &found, &model.resolved, &model.described);
    let accounting = accounting.map_err(|diagnostics| anyhow!("{diagnostics}"))?;
    Ok(Some(Accounting { others, ..accounting }))
}

/// The tensors in the folder's weight files.
pub(super) fn tensors(folder: &Path) -> Result<Tensors> {
    let mut found = BTreeMap::new();
    for file in weight_files(folder)? {
        for (name, shape, stored) in headers(&file).with_context(|| format!("cannot read {}", file.display()))? {
            let twice = found.insert(name.clone(), (shape, stored)).is_some();
            ensure!(!twice, "{}: tensor {name} is in another file of the folder too", file.display());
        }
    }
    let config = if folder.join("config.json").exists() { configuration(folder)? } else { Value::Null };
    let names: Vec<&String> = found.keys().collect();
    let own = language_model_names(&config, &names);
    let mut tensors = Tensors::default();
    let mut headers = BTreeMap::new();
    for ((name, (shape, dtype)), own) in found.into_iter().zip(own) {
        match own {
            Some(own) => drop(headers.insert(own, Header { shape, dtype })),
            None => tensors.others.push(name),
        }
    }
    // A method that is not read is refused when the description is resolved.
    let quantised = match Quantisation::of(&config) {
        Ok(Some(quantisation)) => quantised::find(&quantisation, &headers)
            .with_context(|| format!("{}: it is quantised otherwise than its config.json says", folder.display()))?,
        _ => quantised::Found::default(),
    };
    for (name, Header { shape, dtype }) in headers {
        if quantised.parts.contains(&name) {
            continue;
        }
        if dtype == Dtype::F16 {
            tensors.formats.0.insert(name.clone(), Format::F16);
        }
        tensors.own.insert(name, shape);
    }
    tensors.idle = quantised.biases;
    for (name, weight) in quantised.weights {
        tensors.formats.0.insert(name.clone(), weight.format);
        tensors.own.insert(name, weight.shape);
    }
    Ok(tensors)
}

/// The safetensors files that hold the weights: what the index names, else `model.safetensors`, else all.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let index = folder.join("model.safetensors.index.json");
    if index.exists() {
        let json = read_json(&index)?;
        let map = json.get("weight_map").and_then(Value::as_object);
        let map = map.with_context(|| format!("{} has no object weight_map", index.display()))?;
        let shards: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
        for shard in &shards {
            let plain = Path::new(shard).file_name().is_some_and(|file| file == *shard);
            ensure!(plain, "{}: '{shard}' is not the name of a file beside it", index.display());
            ensure!(folder.join(shard).exists(), "{}: {shard}, which its index names, is missing", folder.display());
        }
        return Ok(shards.into_iter().map(|shard| folder.join(shard)).collect());
    }
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
    files.sort();
    match other_weights(folder, &files) {
        Some(what) => bail!("{}: {what}", folder.display()),
        None => Ok(files),
    }
}

/// Name, shape and stored type of each tensor in one file, from its header; the file must have the length that the header says.
fn headers(path: &Path) -> Result<Vec<(String, Vec<usize>, Dtype)>> {
    const AGAIN: &str = "it is truncated or corrupt, download it again";
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut start = Vec::new();
    file.by_ref().take(4096).read_to_end(&mut start)?;
    file.rewind()?;
    if let Some(what) = mistaken(&start, Kind::Safetensors) {
        bail!(what);
    }
    let mut prefix = [0; 8];
    file.read_exact(&mut prefix).context(AGAIN)?;
    let header = u64::from_le_bytes(prefix);
    ensure!(header <= LARGEST_HEADER.min(length.saturating_sub(8)), "its header would have {header} bytes: {AGAIN}");
    let mut bytes = Vec::new();
    file.take(header).read_to_end(&mut bytes)?;
    let metadata: Metadata = serde_json::from_slice(&bytes).context(AGAIN)?;
    let tensors = metadata.tensors();
    let data = tensors.values().map(|info| info.data_offsets.1 as u64).max().unwrap_or(0);
    let told = data.saturating_add(header + 8);
    ensure!(told == length, "it has {length} bytes and its header says {told}: {AGAIN}");
    Ok(tensors.into_iter().map(|(name, info)| (name, info.shape.clone(), info.dtype)).collect())
}
