//! The writer: metadata and a list of tensors to the bytes that stand before the tensors' own.

use anyhow::{Context, Result, bail};
use fusec::ir::Format;

use super::contents::{MAGIC, Value};
use super::read::NUMBERS;

/// The version that is written.
const VERSION: u32 = 3;
/// What offsets of tensors are a multiple of.
pub const ALIGNMENT: usize = 32;

/// A tensor as the file lists it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    /// How its values are stored.
    pub format: Format,
}

impl Listed {
    /// Bytes of its values.
    ///
    /// # Errors
    /// Rows that are not whole blocks.
    pub fn bytes(&self) -> Result<usize> {
        let said = || format!("{} {:?} has no rows of whole blocks of {}", self.name, self.shape, self.format.name());
        let (&columns, rows) = self.shape.split_last().with_context(said)?;
        let row = self.format.bytes(columns).with_context(said)?;
        rows.iter().try_fold(row, |bytes, rows| bytes.checked_mul(*rows)).with_context(said)
    }
}

/// The bytes of a file before its tensors, which follow in this order, each filled up to a multiple of [`ALIGNMENT`].
///
/// # Errors
/// A format that GGUF does not have, a list of values of several types, rows that are not whole blocks.
pub fn header(metadata: &[(String, Value)], tensors: &[Listed]) -> Result<Vec<u8>> {
    let mut bytes = [&MAGIC[..], &VERSION.to_le_bytes()].concat();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(key, &mut bytes);
        bytes.extend(kind(value).with_context(|| key.clone())?.to_le_bytes());
        write(value, &mut bytes).with_context(|| key.clone())?;
    }
    let mut offset = 0u64;
    for tensor in tensors {
        text(&tensor.name, &mut bytes);
        bytes.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|size| bytes.extend((*size as u64).to_le_bytes()));
        let number = NUMBERS.iter().find(|(_, format)| *format == tensor.format);
        let (number, _) = number.with_context(|| format!("GGUF has no {}", tensor.format.name()))?;
        bytes.extend(number.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        offset += (tensor.bytes()?.next_multiple_of(ALIGNMENT)) as u64;
    }
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    Ok(bytes)
}

fn text(text: &str, bytes: &mut Vec<u8>) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// The number of a value's type.
fn kind(value: &Value) -> Result<u32> {
    Ok(match value {
        Value::Unsigned(value) if u32::try_from(*value).is_ok() => 4,
        Value::Unsigned(_) => 10,
        Value::Signed(value) if i32::try_from(*value).is_ok() => 5,
        Value::Signed(_) => 11,
        Value::Float(_) => 6,
        Value::Bool(_) => 7,
        Value::Text(_) => 8,
        Value::List(_) => 9,
        Value::Unreadable => bail!("a value that cannot be read cannot be written"),
    })
}

fn write(value: &Value, bytes: &mut Vec<u8>) -> Result<()> {
    match value {
        Value::Unsigned(value) => match u32::try_from(*value) {
            Ok(value) => bytes.extend(value.to_le_bytes()),
            Err(_) => bytes.extend(value.to_le_bytes()),
        },
        Value::Signed(value) => match i32::try_from(*value) {
            Ok(value) => bytes.extend(value.to_le_bytes()),
            Err(_) => bytes.extend(value.to_le_bytes()),
        },
        Value::Float(value) => bytes.extend((*value as f32).to_le_bytes()),
        Value::Bool(value) => bytes.push(u8::from(*value)),
        Value::Text(value) => text(value, bytes),
        Value::List(values) => {
            let of = values.first().map_or(Ok(8), kind)?;
            bytes.extend(of.to_le_bytes());
            bytes.extend((values.len() as u64).to_le_bytes());
            for value in values {
                anyhow::ensure!(kind(value)? == of, "a list of values of several types");
                write(value, bytes)?;
            }
        }
        Value::Unreadable => bail!("a value that cannot be read cannot be written"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::read::read;
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let list = |values: &[i64]| Value::List(values.iter().map(|value| Value::Signed(*value)).collect());
        let metadata = [
            ("general.architecture", Value::Text("llama".into())),
            ("a", Value::Unsigned(7)),
            ("b", Value::Unsigned(1 << 40)),
            ("c", Value::Float(0.5)),
            ("d", Value::Bool(true)),
            ("e", list(&[3, -1])),
            ("f", Value::List(vec![Value::Text("é".into()), Value::Text(String::new())])),
            ("g", Value::Signed(-5)),
        ]
        .map(|(key, value)| (key.to_owned(), value));
        let tensors =
            [("w", vec![3, 64], Format::Q8_0), ("n", vec![5], Format::F32), ("e", vec![2, 2, 32], Format::Q4_0)]
                .map(|(name, shape, format)| Listed { name: name.to_owned(), shape, format });
        let mut file = header(&metadata, &tensors).unwrap();
        for (index, tensor) in (1u8..).zip(&tensors) {
            let bytes = tensor.bytes().unwrap();
            file.extend(std::iter::repeat_n(index, bytes));
            file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        }
        let contents = read(&file).unwrap();
        for (key, value) in &metadata {
            assert_eq!(contents.metadata.get(key), Some(value));
        }
        for (index, tensor) in (1u8..).zip(&tensors) {
            let found = &contents.tensors[&tensor.name];
            assert_eq!((found.shape.clone(), found.dtype.format()), (tensor.shape.clone(), Some(tensor.format)));
            assert!(file[found.bytes.clone()].iter().all(|byte| *byte == index), "{}", tensor.name);
        }
    }

    #[test]
    fn what_a_file_cannot_hold_says_so() {
        let said = |format, shape: &[usize]| {
            let tensors = [Listed { name: "w".to_owned(), shape: shape.to_vec(), format }];
            header(&[], &tensors).unwrap_err().to_string()
        };
        assert_eq!(said(Format::Fp8, &[2, 32]), "GGUF has no fp8");
        assert_eq!(said(Format::Q4K, &[2, 32]), "w [2, 32] has no rows of whole blocks of q4_k");
        let mixed = Value::List(vec![Value::Bool(true), Value::Float(1.0)]);
        let error = header(&[("k".to_owned(), mixed)], &[]).unwrap_err();
        assert_eq!(format!("{error:#}"), "k: a list of values of several types");
    }
}
