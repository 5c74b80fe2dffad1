//! Safetensors in compressed-tensors' form: codes and scales in tensors of their own, and what they are in config.json.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use fusec::description::language_model_names;
use fusec::files::read_json;
use fusec::folder::checkpoint_folder;
use fusec::ir::Format;
use fusec::threads;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use super::job::{Cost, Errors, Job, Written};
use super::partial::Partial;
use crate::blocks::{E4M3_MOST, decode, e4m3, symmetric_scale, to_e4m3};
use crate::map::map_file;

const INDEX: &str = "model.safetensors.index.json";

/// Rows that a thread takes at a time.
const ROWS: usize = 64;

/// How a module's weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scheme {
    /// Floats of 8 bits, a scale per row.
    Fp8,
    /// Integers of 8 bits, a scale per row.
    Int8,
    /// Integers of 4 bits, a scale per so many columns.
    Int4(usize),
}

/// A tensor of the new file.
struct New {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: usize,
}

/// A tensor of the old file, and what it becomes.
struct Old<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: &'a [u8],
    scheme: Option<Scheme>,
}

pub(super) fn write(job: &Job<'_>) -> Result<Written> {
    let folder = job.checkpoint.path().filter(|path| path.is_dir());
    let folder =
        folder.context("only a Hugging Face folder can be written as one: name one, with .safetensors files")?;
    let folder = &checkpoint_folder(folder)?;
    let partial = Partial::new(job.out, job.replace)?;
    let files = weight_files(folder)?;
    let maps: Vec<Mmap> = files.iter().map(|file| map_file(file)).collect::<Result<_>>()?;
    let mut config = read_json(&folder.join("config.json"))?;
    let mut read = Vec::new();
    for (file, map) in files.iter().zip(&maps) {
        let tensors = SafeTensors::deserialize(map).with_context(|| file.display().to_string())?;
        let mut tensors = tensors.tensors();
        // The order in which they lie in the file.
        tensors.sort_by_key(|(_, view)| view.data().as_ptr());
        let old = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
            let bytes = within(map, view.data());
            (name, view.dtype(), view.shape().to_vec(), bytes)
        };
        read.push(tensors.into_iter().map(old).collect::<Vec<_>>());
    }
    let names: Vec<&String> = read.iter().flatten().map(|(name, ..)| name).collect();
    let own: BTreeMap<String, String> = names
        .iter()
        .zip(language_model_names(&config, &names))
        .filter_map(|(name, own)| Some(((*name).clone(), own?)))
        .collect();
    let chosen = |name: &str, shape: &[usize]| {
        let format = job.chosen.get(own.get(name)?)?;
        let [_, columns] = shape else { return None };
        name.ends_with(".weight").then(|| scheme(*format, *columns)).flatten()
    };
    let mut shards: Vec<Vec<Old<'_>>> = Vec::new();
    for tensors in read.iter() {
        let old = tensors.iter().map(|(name, dtype, shape, bytes)| Old {
            name: name.clone(),
            dtype: *dtype,
            shape: shape.clone(),
            bytes,
            scheme: chosen(name, shape),
        });
        shards.push(old.collect());
    }
    let schemes: BTreeSet<Scheme> = shards.iter().flatten().filter_map(|old| old.scheme).collect();
    ensure!(
        !schemes.is_empty(),
        "{}: no tensor of it can be stored so: its products have no rows of whole groups, or are not matrices by themselves",
        folder.display()
    );
    let table = config.as_object_mut().with_context(|| format!("{}: config.json is no object", folder.display()))?;
    table.insert("quantization_config".to_owned(), quantisation(&shards, &schemes)?);

    fs::create_dir(partial.path()).with_context(|| format!("cannot make {}", partial.path().display()))?;
    let into = |name: &str| partial.path().join(name);
    copy_others(folder, partial.path())?;
    fs::write(into("config.json"), serde_json::to_string_pretty(&config)? + "\n")
        .with_context(|| format!("cannot write {}", into("config.json").display()))?;
    let mut written = Written { bytes_before: maps.iter().map(|map| map.len() as u64).sum(), ..Written::default() };
    let all: u64 = shards.iter().flatten().map(|old| old.bytes.len() as u64).sum();
    let mut done = 0;
    let mut weight_map = Map::new();
    for (file, shard) in files.iter().zip(&shards) {
        let name = file.file_name().and_then(|name| name.to_str()).context("a file without a name")?;
        let path = into(name);
        let mut progress = |bytes: u64| {
            done += bytes;
            (job.progress)(done, all);
        };
        write_shard(&path, shard, &mut written, &mut progress)
            .with_context(|| format!("cannot write {}", job.out.join(name).display()))?;
        let named = shard.iter().flat_map(Old::new_tensors).map(|new| (new.name, Value::from(name)));
        weight_map.extend(named);
    }
    if files.len() > 1 {
        let index = json!({"metadata": {"total_size": written.bytes}, "weight_map": weight_map});
        fs::write(into(INDEX), serde_json::to_string_pretty(&index)? + "\n")
            .with_context(|| format!("cannot write {}", into(INDEX).display()))?;
    }
    partial.finish()?;
    Ok(written)
}

/// The same bytes as a part of the map, so that they live as long.
fn within<'a>(map: &'a Mmap, data: &[u8]) -> &'a [u8] {
    let begin = data.as_ptr() as usize - map.as_ptr() as usize;
    &map[begin..begin + data.len()]
}

/// The folder's weight files: what its index names, else all.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let index = folder.join(INDEX);
    let mut files = BTreeSet::new();
    if index.exists() {
        let json = read_json(&index)?;
        let shards = json.get("weight_map").and_then(Value::as_object);
        let shards = shards.with_context(|| format!("{} has no object weight_map", index.display()))?;
        // Opening the checkpoint has made sure that they are names of files beside it.
        files.extend(shards.values().filter_map(Value::as_str).map(|shard| folder.join(shard)));
    } else {
        for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                files.insert(path);
            }
        }
    }
    Ok(files.into_iter().collect())
}

/// Copies tokenizers, templates and all else that is no weight and no configuration of theirs.
fn copy_others(from: &Path, into: &Path) -> Result<()> {
    const WEIGHTS: [&str; 8] = ["safetensors", "bin", "pt", "pth", "gguf", "h5", "msgpack", "onnx"];
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        let hidden = name.to_string_lossy().starts_with('.');
        let weights = path.extension().is_some_and(|extension| WEIGHTS.iter().any(|weights| extension == *weights));
        let replaced = name == "config.json" || name.to_string_lossy().ends_with(".index.json");
        if path.is_file() && !hidden && !weights && !replaced {
            fs::copy(&path, into.join(&name)).with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    Ok(())
}

fn scheme(format: Format, columns: usize) -> Option<Scheme> {
    match format {
        Format::Fp8 | Format::Fp8x128 => Some(Scheme::Fp8),
        Format::Int8 | Format::Int8x128 => Some(Scheme::Int8),
        Format::Int4x128 => Some(Scheme::Int4(128)),
        Format::Int4x32 => Some(Scheme::Int4(32)),
        _ => None,
    }
    .filter(|scheme| !matches!(scheme, Scheme::Int4(group) if !columns.is_multiple_of(*group)))
}

impl Scheme {
    fn name(self) -> String {
        match self {
            Scheme::Fp8 => "fp8, a scale per row".to_owned(),
            Scheme::Int8 => "int8, a scale per row".to_owned(),
            Scheme::Int4(group) => format!("int4, a scale per {group} columns"),
        }
    }

    /// What config.json says of the weights.
    fn weights(self) -> Value {
        let (bits, kind, strategy, group) = match self {
            Scheme::Fp8 => (8, "float", "channel", None),
            Scheme::Int8 => (8, "int", "channel", None),
            Scheme::Int4(group) => (4, "int", "group", Some(group)),
        };
        json!({
            "num_bits": bits, "type": kind, "symmetric": true, "strategy": strategy, "group_size": group, "block_structure": null,
            "dynamic": false, "actorder": null, "observer": "minmax", "observer_kwargs": {}
        })
    }

    fn form(self) -> &'static str {
        match self {
            Scheme::Fp8 => "float-quantized",
            // `int-quantized` would be of modules whose activations are integers too.
            Scheme::Int8 | Scheme::Int4(_) => "pack-quantized",
        }
    }
}

/// `quantization_config`: a group for each scheme, and the modules that are left as they are.
fn quantisation(shards: &[Vec<Old<'_>>], schemes: &BTreeSet<Scheme>) -> Result<Value> {
    let module = |old: &Old<'_>| old.name.strip_suffix(".weight").map(str::to_owned);
    let all = || shards.iter().flatten();
    // The scheme of most modules is that of the class, others are named.
    let count = |scheme: &Scheme| all().filter(|old| old.scheme == Some(*scheme)).count();
    let most = *schemes.iter().max_by_key(|scheme| count(scheme)).context("there is a scheme")?;
    let mut groups = Map::new();
    for (index, scheme) in std::iter::once(&most).chain(schemes.iter().filter(|scheme| **scheme != most)).enumerate() {
        let modules = || all().filter(|old| old.scheme == Some(*scheme)).filter_map(module);
        let targets: Vec<String> = if *scheme == most { vec!["Linear".to_owned()] } else { modules().collect() };
        groups.insert(
            format!("group_{index}"),
            json!({"targets": targets, "weights": scheme.weights(), "input_activations": null, "output_activations": null}),
        );
    }
    let left = all().filter(|old| old.scheme.is_none() && old.shape.len() == 2).filter_map(module);
    let mut ignore: BTreeSet<String> = left.collect();
    // A tied head is a module without a tensor.
    ignore.insert("lm_head".to_owned());
    Ok(json!({
        "quant_method": "compressed-tensors", "format": most.form(), "quantization_status": "compressed", "ignore": ignore,
        "kv_cache_scheme": null, "global_compression_ratio": null, "config_groups": groups
    }))
}

impl Old<'_> {
    /// Scales are of the type that the weights had; of what had 32 bits, of the type that has their range.
    fn scale_dtype(&self) -> Dtype {
        if self.dtype == Dtype::F16 { Dtype::F16 } else { Dtype::BF16 }
    }

    fn new_tensors(&self) -> Vec<New> {
        let new = |name: String, dtype: Dtype, shape: Vec<usize>, bytes: usize| New { name, dtype, shape, bytes };
        let (Some(scheme), [rows, columns]) = (self.scheme, &self.shape[..]) else {
            return vec![new(self.name.clone(), self.dtype, self.shape.clone(), self.bytes.len())];
        };
        let (rows, columns) = (*rows, *columns);
        let scales = |across: usize| {
            new(format!("{}_scale", self.name), self.scale_dtype(), vec![rows, across], rows * across * 2)
        };
        match scheme {
            Scheme::Fp8 => vec![new(self.name.clone(), Dtype::F8_E4M3, vec![rows, columns], rows * columns), scales(1)],
            Scheme::Int8 | Scheme::Int4(_) => {
                let (bits, across) = if let Scheme::Int4(group) = scheme { (4, columns / group) } else { (8, 1) };
                let words = columns * bits / 32;
                vec![
                    new(format!("{}_packed", self.name), Dtype::I32, vec![rows, words], rows * words * 4),
                    scales(across),
                    new(format!("{}_shape", self.name), Dtype::I64, vec![2], 16),
                ]
            }
        }
    }
}

/// Writes a file: the header, then tensor after tensor.
fn write_shard(path: &Path, shard: &[Old<'_>], written: &mut Written, progress: &mut dyn FnMut(u64)) -> Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut end = 0;
    for new in shard.iter().flat_map(Old::new_tensors) {
        let begin = end;
        end += new.bytes;
        let entry = json!({"dtype": format!("{:?}", new.dtype), "shape": new.shape, "data_offsets": [begin, end]});
        ensure!(header.insert(new.name.clone(), entry).is_none(), "two tensors would be called {}", new.name);
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for old in shard {
        let Some(scheme) = old.scheme else {
            file.write_all(old.bytes)?;
            written.kept += 1;
            progress(old.bytes.len() as u64);
            continue;
        };
        let (parts, errors) = quantise(old, scheme).with_context(|| old.name.clone())?;
        for part in &parts {
            file.write_all(part)?;
        }
        written.quantised.push(Cost {
            tensor: old.name.clone(),
            format: scheme.name(),
            nmse: errors.nmse(),
            most: errors.most,
            bytes: parts.iter().map(Vec::len).sum(),
        });
        progress(old.bytes.len() as u64);
    }
    let file = file.into_inner().map_err(|error| error.into_error())?;
    // What the disk has no room for shows here at the latest.
    file.sync_all()?;
    written.bytes += (8 + header.len() + end) as u64;
    Ok(())
}

/// The bytes of a tensor's new tensors, in their order.
fn quantise(old: &Old<'_>, scheme: Scheme) -> Result<(Vec<Vec<u8>>, Errors)> {
    let &[rows, columns] = &old.shape[..] else { bail!("it is no matrix") };
    let stored = match old.dtype {
        Dtype::F32 => Format::F32,
        Dtype::F16 => Format::F16,
        Dtype::BF16 => Format::BF16,
        other => bail!("it is of {other:?}, which is not quantised"),
    };
    let (code_bytes, across) = match scheme {
        Scheme::Fp8 | Scheme::Int8 => (columns, 1),
        Scheme::Int4(group) => (columns / 2, columns / group),
    };
    let row_bytes = stored.bytes(columns).context("its rows are too long")?;
    let (mut codes, mut scales) = (vec![0u8; rows * code_bytes], vec![0u8; rows * across * 2]);
    let mut errors = vec![Errors::default(); rows.div_ceil(ROWS)];
    let parts = codes
        .chunks_mut((ROWS * code_bytes).max(1))
        .zip(scales.chunks_mut((ROWS * across * 2).max(1)))
        .zip(old.bytes.chunks((ROWS * row_bytes).max(1)))
        .zip(errors.iter_mut());
    let to_bf16 = old.scale_dtype() == Dtype::BF16;
    threads::for_each(threads::available(), parts, Vec::new, |values, (((codes, scales), from), errors)| {
        let rows = codes.chunks_exact_mut(code_bytes).zip(scales.chunks_exact_mut(across * 2));
        for ((codes, scales), from) in rows.zip(from.chunks_exact(row_bytes)) {
            values.clear();
            decode(stored, from, values);
            if let Some(wrong) = values.iter().find(|value| !value.is_finite()) {
                bail!("a weight is {wrong}, which no quantised format holds");
            }
            row(scheme, values, to_bf16, codes, scales, errors)?;
        }
        Ok(())
    })?;
    let mut all = Errors::default();
    errors.into_iter().for_each(|errors| all.join(errors));
    let mut parts = vec![codes, scales];
    if scheme != Scheme::Fp8 {
        parts.push([rows, columns].iter().flat_map(|size| (*size as i64).to_le_bytes()).collect());
    }
    Ok((parts, all))
}

/// Quantises a row.
fn row(
    scheme: Scheme,
    values: &[f32],
    to_bf16: bool,
    codes: &mut [u8],
    scales: &mut [u8],
    errors: &mut Errors,
) -> Result<()> {
    // A scale as it is stored, and as its codes are multiplied by it.
    let stored = |scale: f32| {
        let (bytes, value) = if to_bf16 {
            let scale = bf16::from_f32(scale);
            (scale.to_le_bytes(), scale.to_f32())
        } else {
            let scale = f16::from_f32(scale);
            (scale.to_le_bytes(), scale.to_f32())
        };
        ensure!(value.is_finite(), "weights so large that their scale, {scale}, is not finite");
        Ok((bytes, value))
    };
    let divided = |value: f32, scale: f32| if scale == 0.0 { 0.0 } else { value / scale };
    let most = |values: &[f32]| values.iter().fold(0.0, |most: f32, value| most.max(value.abs()));
    match scheme {
        Scheme::Fp8 => {
            let (bytes, scale) = stored(most(values) / E4M3_MOST)?;
            scales.copy_from_slice(&bytes);
            for (code, value) in codes.iter_mut().zip(values) {
                *code = to_e4m3(divided(*value, scale));
                errors.add(*value, scale * e4m3(*code));
            }
        }
        Scheme::Int8 => {
            let (bytes, scale) = stored(most(values) / 127.0)?;
            scales.copy_from_slice(&bytes);
            for (code, value) in codes.iter_mut().zip(values) {
                let whole = divided(*value, scale).round_ties_even().clamp(-127.0, 127.0) as i8;
                *code = whole as u8 ^ 0x80;
                errors.add(*value, scale * f32::from(whole));
            }
        }
        Scheme::Int4(group) => {
            let groups = values.chunks_exact(group).zip(scales.as_chunks_mut::<2>().0);
            for ((values, scale), codes) in groups.zip(codes.chunks_exact_mut(group / 2)) {
                // Other programs' kernels may take scales for positive.
                let (bytes, unit) = stored(symmetric_scale(values, 8))?;
                *scale = bytes;
                for (code, pair) in codes.iter_mut().zip(values.as_chunks::<2>().0) {
                    let mut nibble = |value: f32| {
                        let whole = divided(value, unit).round_ties_even().clamp(-8.0, 7.0);
                        errors.add(value, unit * whole);
                        (whole as i8 + 8) as u8
                    };
                    *code = nibble(pair[0]) | nibble(pair[1]) << 4;
                }
            }
        }
    }
    Ok(())
}
