//! The reader: bytes to [`Contents`], with every count, length and offset checked against the file before it is used.

use super::super::dtype::Dtype;
use super::contents::{Contents, Entry, MAGIC, Metadata, Value};
use anyhow::{Context, Result, bail, ensure};
use fusec::files::{Kind, mistaken};
use fusec::ir::Format;
use std::collections::BTreeMap;

/// Elements of the longest metadata list that is read: several times the largest vocabulary, and little memory for a corrupt count.
const LONGEST_LIST: usize = 1 << 22;

/// Parses a whole file of version 2 or 3.
pub(super) fn read(file: &[u8]) -> Result<Contents> {
    let mut cursor = Cursor { file, at: 0 };
    let (tensor_count, metadata) = cursor.header()?;
    let listed = (0..tensor_count).map(|index| cursor.listed(index)).collect::<Result<Vec<_>>>()?;
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(_) => metadata
            .unsigned("general.alignment")
            .filter(|a| a.is_power_of_two())
            .context("general.alignment is not a power of two")?,
    };
    let data = (cursor.at as u64).checked_next_multiple_of(alignment).context("general.alignment is too large")?;

    let mut tensors = BTreeMap::new();
    for Listed { name, shape, dtype, offset } in listed {
        let bytes = place(&name, &shape, dtype, data, offset, alignment, file.len())?;
        ensure!(
            tensors.insert(name.clone(), Entry { shape, dtype, file: 0, bytes }).is_none(),
            "the tensor {name} appears twice"
        );
    }
    Ok(Contents { metadata, tensors })
}

/// A tensor as listed, before its bytes are placed.
struct Listed {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    offset: u64,
}

/// The bytes of a tensor in the file; empty for a type that is not read, whose size is not known.
fn place(
    name: &str,
    shape: &[usize],
    dtype: Dtype,
    data: u64,
    offset: u64,
    alignment: u64,
    file_len: usize,
) -> Result<std::ops::Range<usize>> {
    ensure!(
        offset.is_multiple_of(alignment),
        "tensor {name} lies at offset {offset}, which is not aligned to {alignment}"
    );
    let start = data
        .checked_add(offset)
        .and_then(|start| usize::try_from(start).ok())
        .with_context(|| format!("the offset of tensor {name} overflows"))?;
    if dtype.format().is_none() {
        return Ok(0..0);
    }
    let columns = shape.last().copied().unwrap_or(1);
    dtype.bytes(columns).with_context(|| format!("a row of tensor {name}"))?;
    let values = shape
        .iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim))
        .with_context(|| format!("the size of tensor {name} overflows"))?;
    let end = start.checked_add(dtype.bytes(values)?).with_context(|| format!("the end of tensor {name} overflows"))?;
    ensure!(
        end <= file_len,
        "tensor {name} ends at byte {end} but the file has {file_len}: it is truncated, get it again"
    );
    Ok(start..end)
}

/// The keys whose text is read. Those of an architecture are checked where they are read.
const READ_AS_TEXT: &[&str] = &[
    "general.architecture",
    "tokenizer.chat_template",
    "tokenizer.chat_template.tool_use",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
];

/// Reads only the metadata.
pub(super) fn metadata(file: &[u8]) -> Result<Metadata> {
    Ok(Cursor { file, at: 0 }.header()?.1)
}

/// A position in the file that only moves over bytes that are there.
struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The number of tensors and the metadata, from the start of the file.
    fn header(&mut self) -> Result<(usize, Metadata)> {
        if self.take(MAGIC.len(), "the magic")? != MAGIC {
            let what = mistaken(self.file, Kind::Gguf);
            bail!(what.unwrap_or_else(|| "it does not start with the letters GGUF".to_owned()));
        }
        let version = self.u32("the version")?;
        ensure!(version.swap_bytes() > 3, "it is big-endian; only little-endian files are read");
        ensure!(version == 2 || version == 3, "it is version {version}; versions 2 and 3 are read");
        let tensor_count = self.count("the tensor count", 24)?;
        let metadata_count = self.count("the metadata count", 13)?;

        let mut metadata = Metadata::default();
        for index in 0..metadata_count {
            let key = self.text(&format!("the key of metadata entry {index}"))?;
            let kind = self.u32(&format!("the type of {key}"))?;
            let value = self.value(kind, &key, 0)?;
            ensure!(metadata.values.insert(key.clone(), value).is_none(), "the metadata key {key} appears twice");
        }
        Ok((tensor_count, metadata))
    }

    fn take(&mut self, length: usize, what: &str) -> Result<&'a [u8]> {
        let left = self.file.len() - self.at;
        ensure!(
            length <= left,
            "{what} needs {length} bytes at byte {}, but {left} are left: the file is truncated or corrupt, get it again",
            self.at
        );
        let bytes = &self.file[self.at..self.at + length];
        self.at += length;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        Ok(self.take(N, what)?.try_into().expect("take returns the length asked for"))
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of things that take at least `least` bytes each, refused where the rest of the file cannot hold them.
    fn count(&mut self, what: &str, least: usize) -> Result<usize> {
        let (count, left) = (self.u64(what)?, self.file.len() - self.at);
        let fits =
            usize::try_from(count).ok().filter(|count| count.checked_mul(least).is_some_and(|bytes| bytes <= left));
        fits.with_context(|| format!("{what} is {count}, which the {left} bytes left cannot hold: the file is truncated or corrupt, get it again"))
    }

    fn text(&mut self, what: &str) -> Result<String> {
        let length = self.count(what, 1)?;
        let bytes = self.take(length, what)?;
        Ok(std::str::from_utf8(bytes).with_context(|| format!("{what} is not UTF-8"))?.to_owned())
    }

    /// Text under a key. What nothing reads may be in any encoding.
    fn text_value(&mut self, key: &str) -> Result<Value> {
        let length = self.count(key, 1)?;
        match std::str::from_utf8(self.take(length, key)?) {
            Ok(text) => Ok(Value::Text(text.to_owned())),
            Err(error) if READ_AS_TEXT.contains(&key) => Err(error).with_context(|| format!("{key} is not UTF-8")),
            Err(_) => Ok(Value::Unreadable),
        }
    }

    fn value(&mut self, kind: u32, key: &str, depth: usize) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(self.array::<1>(key)?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.array(key)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array(key)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array(key)?).into()),
            4 => Value::Unsigned(self.u32(key)?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array(key)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array(key)?).into()),
            7 => Value::Bool(self.array::<1>(key)?[0] != 0),
            8 => self.text_value(key)?,
            9 => {
                ensure!(depth < 4, "{key} nests lists more than four deep");
                let element = self.u32(key)?;
                let least = match element {
                    0 | 1 | 7 => 1,
                    2 | 3 => 2,
                    4..=6 => 4,
                    8 | 10..=12 => 8,
                    9 => 12,
                    _ => bail!("{key} has elements of unknown type {element}"),
                };
                let count = self.count(key, least)?;
                ensure!(count <= LONGEST_LIST, "{key} has {count} elements; at most {LONGEST_LIST} are read");
                Value::List((0..count).map(|_| self.value(element, key, depth + 1)).collect::<Result<_>>()?)
            }
            10 => Value::Unsigned(self.u64(key)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            _ => bail!("{key} has unknown type {kind}"),
        })
    }

    fn listed(&mut self, index: usize) -> Result<Listed> {
        let name = self.text(&format!("the name of tensor {index}"))?;
        let dims = self.u32(&name)?;
        ensure!((1..=4).contains(&dims), "tensor {name} has {dims} dimensions; 1 to 4 are possible");
        let mut shape = Vec::new();
        for _ in 0..dims {
            let dim = self.u64(&name)?;
            shape.insert(0, usize::try_from(dim).with_context(|| format!("a dimension of tensor {name} overflows"))?);
        }
        Ok(Listed { dtype: dtype_of(self.u32(&name)?), offset: self.u64(&name)?, name, shape })
    }
}

/// GGUF's numbers of the formats that are read.
pub(super) const NUMBERS: [(u32, Format); 16] = [
    (0, Format::F32),
    (1, Format::F16),
    (2, Format::Q4_0),
    (3, Format::Q4_1),
    (6, Format::Q5_0),
    (7, Format::Q5_1),
    (8, Format::Q8_0),
    (10, Format::Q2K),
    (11, Format::Q3K),
    (12, Format::Q4K),
    (13, Format::Q5K),
    (14, Format::Q6K),
    (20, Format::Iq4Nl),
    (23, Format::Iq4Xs),
    (30, Format::BF16),
    (39, Format::Mxfp4),
];

/// The type of GGUF's number for it.
fn dtype_of(number: u32) -> Dtype {
    let known = NUMBERS.iter().find(|(known, _)| *known == number);
    known.map_or_else(|| Dtype::Unsupported(name_of(number)), |(_, format)| Dtype::Of(*format))
}

/// GGUF's name of a type that is not read.
fn name_of(number: u32) -> &'static str {
    match number {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        40 => "NVFP4",
        _ => "a type of unknown number",
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_file::{Builder, text};
    use super::*;

    fn small() -> Vec<u8> {
        Builder::new(3)
            .metadata("general.architecture", 8, &text("llama"))
            .metadata(
                "a.list",
                9,
                &[&4u32.to_le_bytes()[..], &2u64.to_le_bytes(), &7u32.to_le_bytes(), &9u32.to_le_bytes()].concat(),
            )
            .metadata("a.float", 6, &0.5f32.to_le_bytes())
            .tensor("w", &[2, 3], 0, &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0].map(f32::to_le_bytes).concat())
            .tensor("v", &[2], 1, &[0, 0x3C, 0, 0xC0])
            .build()
    }

    #[test]
    fn reads_metadata_and_places_tensors() {
        let file = small();
        let contents = read(&file).unwrap();
        assert_eq!(contents.metadata.text("general.architecture"), Some("llama"));
        assert_eq!(contents.metadata.list("a.list"), Some(&[Value::Unsigned(7), Value::Unsigned(9)][..]));
        assert_eq!(contents.metadata.float("a.float"), Some(0.5));
        let w = &contents.tensors["w"];
        assert_eq!((w.shape.as_slice(), w.dtype), (&[3, 2][..], Dtype::Of(Format::F32)));
        assert_eq!(&file[w.bytes.clone()][20..], 6f32.to_le_bytes());
        assert_eq!(file[contents.tensors["v"].bytes.clone()], [0, 0x3C, 0, 0xC0]);
    }

    #[test]
    fn text_that_nothing_reads_may_be_in_any_encoding() {
        let latin = [&5u64.to_le_bytes()[..], b"caf\xe9!"].concat();
        let file = |key: &str| small_with(key, 8, &latin);
        for key in ["general.name", "general.description", "llama.note", "tokenizer.huggingface.json"] {
            let contents = read(&file(key)).unwrap_or_else(|error| panic!("{key}: {error:#}"));
            assert_eq!((contents.metadata.get(key), contents.metadata.text(key)), (Some(&Value::Unreadable), None));
        }
        let list = [&8u32.to_le_bytes()[..], &1u64.to_le_bytes(), &latin].concat();
        assert!(read(&small_with("general.tags", 9, &list)).is_ok());
        for key in ["tokenizer.ggml.model", "tokenizer.chat_template"] {
            let said = format!("{:#}", read(&file(key)).err().expect("it is read"));
            assert!(said.starts_with(&format!("{key} is not UTF-8")), "{said}");
        }
    }

    fn small_with(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        Builder::new(3).metadata("general.architecture", 8, &text("llama")).metadata(key, kind, value).build()
    }

    #[test]
    fn every_truncation_is_an_error_with_the_bytes_in_it() {
        let file = small();
        let end = read(&file).unwrap().tensors["v"].bytes.end;
        for length in 0..end {
            let message = format!(
                "{:#}",
                read(&file[..length]).err().unwrap_or_else(|| panic!("{length} of {end} bytes were accepted"))
            );
            assert!(message.contains("truncated"), "{length}: {message}");
        }
        let cut = format!("{:#}", read(&file[..end - 1]).err().unwrap());
        assert_eq!(
            cut,
            format!("tensor v ends at byte {end} but the file has {}: it is truncated, get it again", end - 1)
        );
    }

    #[test]
    fn every_changed_byte_is_an_error_or_a_file_but_never_a_panic() {
        let file = small();
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut changed = file.clone();
                changed[at] ^= 1 << bit;
                if let Ok(contents) = read(&changed) {
                    assert!(contents.tensors.values().all(|tensor| tensor.bytes.end <= changed.len()));
                }
            }
        }
    }

    #[test]
    fn other_versions_and_formats_are_refused_by_name() {
        let refused = |file: Vec<u8>| format!("{:#}", read(&file).err().unwrap());
        assert_eq!(refused(Builder::new(1).build()), "it is version 1; versions 2 and 3 are read");
        assert_eq!(
            refused(Builder::new(3u32.swap_bytes()).build()),
            "it is big-endian; only little-endian files are read"
        );
        assert_eq!(refused(b"FUGG".to_vec()), "it does not start with the letters GGUF");
        assert_eq!(
            refused(b"PK\x03\x04".to_vec()),
            "it is a zip, as PyTorch's .bin and .pth files are: get the model as a .gguf file, or its Hugging Face folder"
        );
        let odd = Builder::new(3).tensor("w", &[48, 1], 2, &[0; 27]).build();
        assert_eq!(refused(odd), "a row of tensor w: 48 values are no whole number of Q4_0 blocks of 32");
    }
}
