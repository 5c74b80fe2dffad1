//! GGUF files: the tensors of a checkpoint under GGUF's names and in its order of rows.

use std::fs::File;
use std::io::{BufWriter, Write};

use anyhow::{Context, Result, ensure};
use fusec::ir::{Format, WeightRef};
use fusec::threads;

use super::job::{Cost, Errors, Job, Written};
use super::partial::Partial;
use crate::weights::gguf::{ALIGNMENT, Listed, Target, Value, describe, header};
use crate::weights::{Checkpoint, decode, encode};

/// The version of the formats of blocks, as llama.cpp counts it.
const QUANTISATION: u64 = 2;

/// llama.cpp's numbers of what most tensors of a file are.
const FILE_TYPES: [(Format, u64); 9] = [
    (Format::Q4_0, 2),
    (Format::Q4_1, 3),
    (Format::Q8_0, 7),
    (Format::Q5_0, 8),
    (Format::Q5_1, 9),
    (Format::Q4K, 14),
    (Format::Q5K, 16),
    (Format::Q6K, 18),
    (Format::Mxfp4, 38),
];

pub(super) fn write(job: &Job<'_>) -> Result<Written> {
    let partial = Partial::new(job.out, job.replace)?;
    let checkpoint = job.checkpoint;
    let described = describe(checkpoint.config(), &checkpoint.shapes())?;
    let listed: Vec<Listed> = described
        .tensors
        .iter()
        .map(|target| {
            let format = format_of(target, job)?;
            Ok(Listed { name: target.name.clone(), shape: target.shape.clone(), format })
        })
        .collect::<Result<_>>()?;
    let mut metadata = described.metadata;
    let name = job.out.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    metadata.push(("general.name".to_owned(), Value::Text(name)));
    metadata.push(("general.quantization_version".to_owned(), Value::Unsigned(QUANTISATION)));
    if let Some((_, number)) = FILE_TYPES.iter().find(|(format, _)| *format == job.target) {
        metadata.push(("general.file_type".to_owned(), Value::Unsigned(*number)));
    }
    metadata.extend(job.tokenizer.iter().cloned());
    let header = header(&metadata, &listed)?;
    let all: u64 = listed.iter().map(|tensor| tensor.bytes().map(|bytes| bytes as u64)).sum::<Result<u64>>()?;
    let mut written = Written { bytes_before: checkpoint.stored_bytes(), ..Written::default() };
    let said = || format!("cannot write {}", job.out.display());
    let mut file = BufWriter::with_capacity(1 << 20, File::create(partial.path()).with_context(said)?);
    file.write_all(&header).with_context(said)?;
    written.bytes = header.len() as u64;
    let mut done = 0;
    for (target, tensor) in described.tensors.iter().zip(&listed) {
        let (mut bytes, errors) = rows_of(target, tensor.format, checkpoint).with_context(|| target.name.clone())?;
        done += bytes.len() as u64;
        if tensor.format.block().0 > 1 {
            written.quantised.push(Cost {
                tensor: target.name.clone(),
                format: tensor.format.name().to_owned(),
                nmse: errors.nmse(),
                most: errors.most,
                bytes: bytes.len(),
            });
        } else {
            written.kept += 1;
        }
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        file.write_all(&bytes).with_context(said)?;
        written.bytes += bytes.len() as u64;
        (job.progress)(done, all);
    }
    let file = file.into_inner().map_err(|error| error.into_error()).with_context(said)?;
    // What the disk has no room for shows here at the latest.
    file.sync_all().with_context(said)?;
    drop(file);
    (job.check)(partial.path())?;
    partial.finish()?;
    Ok(written)
}

/// What a tensor is written in: blocks where it is chosen, vectors and routers as f32, other matrices as they are.
fn format_of(target: &Target, job: &Job<'_>) -> Result<Format> {
    let vector = target.shape.len() == 1 || target.name.contains("ffn_gate_inp");
    let Some(first) = target.sources.first().filter(|_| !vector) else { return Ok(Format::F32) };
    let chosen = |name: &String| job.chosen.get(name).copied();
    let format = chosen(first);
    ensure!(target.sources.iter().all(|name| chosen(name) == format), "{}: experts of several formats", target.name);
    let stored = job.checkpoint.dtype(first)?.format().filter(|format| format.block().0 == 1);
    format.or(stored).with_context(|| {
        format!(
            "{first} is of {}, which is not written",
            job.checkpoint.dtype(first).map_or_else(|_| String::new(), |dtype| dtype.to_string())
        )
    })
}

/// The bytes of a tensor of the file.
fn rows_of(target: &Target, format: Format, checkpoint: &Checkpoint) -> Result<(Vec<u8>, Errors)> {
    let mut out = Vec::new();
    let mut all = Errors::default();
    if target.sources.is_empty() {
        out.extend(target.values.iter().flat_map(|value| value.to_le_bytes()));
    }
    for source in &target.sources {
        let weight = WeightRef::whole(source);
        let shape = checkpoint.shape(&weight)?;
        // Vectors have rows of one value, which is a whole block of what they are written in.
        let rows = shape.first().copied().unwrap_or(1);
        let columns: usize = shape.iter().skip(1).product();
        let row_bytes = format.bytes(columns).with_context(|| format!("{shape:?} has no rows of whole blocks"))?;
        let begin = out.len();
        out.resize(begin + rows * row_bytes, 0);
        let mut from = vec![0; rows];
        (0..rows).for_each(|row| from[target.place(row, rows)] = row);
        let mut errors = vec![Errors::default(); rows];
        let parts = out[begin..].chunks_exact_mut(row_bytes.max(1)).zip(&from).zip(&mut errors);
        threads::for_each(threads::available(), parts, Scratch::default, |scratch, ((out, &row), errors)| {
            let Scratch { values, blocks, back } = scratch;
            checkpoint.read_rows_f32(&weight, row..row + 1, values)?;
            blocks.clear();
            match format {
                Format::F32 => blocks.extend(values.iter().flat_map(|value| value.to_le_bytes())),
                Format::F16 => blocks.extend(values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes())),
                Format::BF16 => {
                    blocks.extend(values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()))
                }
                _ => {
                    encode(format, values, blocks)?;
                    back.clear();
                    decode(format, blocks, back);
                    values.iter().zip(back).for_each(|(value, found)| errors.add(*value, *found));
                }
            }
            out.copy_from_slice(blocks);
            anyhow::Ok(())
        })
        .with_context(|| source.clone())?;
        errors.into_iter().for_each(|errors| all.join(errors));
    }
    Ok((out, all))
}

/// What a thread uses again for each row.
#[derive(Default)]
struct Scratch {
    values: Vec<f32>,
    blocks: Vec<u8>,
    back: Vec<f32>,
}
