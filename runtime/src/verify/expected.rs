//! What another implementation computed, from a safetensors file.

use std::path::Path;

use anyhow::{Context, Error, Result, bail, ensure};
use fusec::files::{Kind, mistaken};
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// Values that a model should compute for some tokens.
#[derive(Clone, Debug)]
pub struct Expected {
    /// What messages call the file.
    pub name: String,
    /// The tokens, from position 0.
    pub tokens: Vec<u32>,
    /// `[tokens, vocabulary]`, row after row; none where the file has no `logits`.
    pub logits: Option<Vec<f32>>,
    /// The other tensors by name: intermediate values.
    pub values: Vec<Named>,
    /// Whether every tensor is in fp32.
    pub exact: bool,
}

/// A tensor of the file.
#[derive(Clone, Debug)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Its shape without leading axes of size 1, but for that of the tokens.
    pub shape: Vec<usize>,
    /// Row-major.
    pub data: Vec<f32>,
}

impl Expected {
    /// Reads a file: `tokens` (whole numbers), `logits` and any other values in F32, F16 or BF16.
    ///
    /// # Errors
    /// No such file, no tokens in it, logits of another number of tokens, or a type that is not read.
    pub fn read(path: &Path) -> Result<Expected> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {name}"))?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|error| mistaken(&bytes, Kind::Safetensors).map_or_else(|| error.into(), Error::msg))
            .with_context(|| format!("{name} is no safetensors file (docs/expected.py writes one)"))?;
        let tokens = file.tensor("tokens").ok().with_context(|| {
            format!("{name} has no tensor `tokens`, the ids that its values are for (docs/expected.py writes it)")
        })?;
        let tokens = ids(&tokens).with_context(|| format!("{name}: tokens"))?;
        ensure!(!tokens.is_empty(), "{name}: tokens is empty");
        let mut expected = Expected { name: name.clone(), tokens, logits: None, values: Vec::new(), exact: true };
        let mut names: Vec<&str> = file.names().into_iter().filter(|name| *name != "tokens").collect();
        names.sort_unstable();
        for tensor in names {
            let view = file.tensor(tensor).with_context(|| format!("{name}: {tensor}"))?;
            expected.exact &= view.dtype() == Dtype::F32;
            let data = floats(&view).with_context(|| format!("{name}: {tensor}"))?;
            let shape = squeezed(view.shape(), expected.tokens.len());
            if tensor == "logits" {
                let rows = expected.tokens.len();
                ensure!(
                    shape.len() == 2 && shape[0] == rows,
                    "{name}: logits is {:?}, and there are {rows} tokens",
                    view.shape()
                );
                expected.logits = Some(data);
            } else {
                expected.values.push(Named { name: tensor.to_owned(), shape, data });
            }
        }
        Ok(expected)
    }
}

/// A shape without the leading axes of size 1 that stand before the tokens.
fn squeezed(shape: &[usize], tokens: usize) -> Vec<usize> {
    let mut shape = shape;
    while let [1, rest @ ..] = shape
        && !rest.is_empty()
        && (tokens != 1 || rest.len() > 1)
    {
        shape = rest;
    }
    shape.to_vec()
}

fn ids(view: &TensorView<'_>) -> Result<Vec<u32>> {
    let bytes = view.data();
    let signed: Vec<i64> = match view.dtype() {
        Dtype::I32 => bytes.chunks_exact(4).map(|b| i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
        Dtype::U32 => bytes.chunks_exact(4).map(|b| i64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
        Dtype::I64 => {
            bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("chunks are of eight"))).collect()
        }
        other => bail!("they are {other:?}; I32, I64 or U32 are read"),
    };
    signed.into_iter().map(|id| u32::try_from(id).with_context(|| format!("{id} is no token"))).collect()
}

fn floats(view: &TensorView<'_>) -> Result<Vec<f32>> {
    let bytes = view.data();
    Ok(match view.dtype() {
        Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        other => bail!("it is {other:?}; F32, F16 or BF16 are read"),
    })
}
