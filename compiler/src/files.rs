//! What a file is, where it is not what its name says: a download may end in a pointer, a web page or half a file.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::json;

/// What a file should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Tensors.
    Safetensors,
    /// A model in one file.
    Gguf,
    /// What `fusec compile` writes.
    Artifact,
    /// JSON, TOML, a template.
    Text,
}

impl Kind {
    /// What such a file begins with, where it is one of [`MAGICS`].
    fn magic(self) -> Option<&'static [u8]> {
        match self {
            Kind::Gguf => Some(b"GGUF"),
            Kind::Artifact => Some(b"PK\x03\x04"),
            Kind::Safetensors | Kind::Text => None,
        }
    }

    /// What to do where a file is another's.
    fn instead(self) -> &'static str {
        match self {
            Kind::Safetensors => "get the model's .safetensors files",
            Kind::Gguf => "get the model as a .gguf file, or its Hugging Face folder",
            Kind::Artifact => "make one with fusec compile",
            Kind::Text => "download it again",
        }
    }
}

/// Bytes at a file's start that tell what it is.
const MAGICS: &[(&[u8], &str)] = &[
    (b"GGUF", "a GGUF file"),
    (b"PK\x03\x04", "a zip, as PyTorch's .bin and .pth files are"),
    (b"\x80\x02", "a pickle, as PyTorch's older .bin and .pth files are"),
    (b"lmgg", "in GGML's format, which came before GGUF"),
    (b"fmgg", "in GGML's format, which came before GGUF"),
    (b"tjgg", "in GGML's format, which came before GGUF"),
    (b"algg", "a LoRA adapter in GGML's format, which came before GGUF"),
    (b"\x1f\x8b", "compressed (gzip)"),
    (b"\xfd7zXZ", "compressed (xz)"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd)"),
    (b"7z\xbc\xaf\x27\x1c", "compressed (7z)"),
    (b"BZh", "compressed (bzip2)"),
    (b"\x89HDF", "an HDF5 file, as TensorFlow's models are"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF", "a PDF"),
    (b"\x7fELF", "a program"),
];

/// How the answer of a server begins that had no file to give.
const ANSWERS: &[&str] = &[
    "entry not found",
    "repository not found",
    "not found",
    "404",
    "401",
    "403",
    "429",
    "access to model",
    "access denied",
    "access to this",
    "invalid username or password",
    "invalid credentials",
    "unauthorized",
    "forbidden",
    "too many requests",
    "internal server error",
    "bad gateway",
    "service unavailable",
];

/// An answer is short.
const LONGEST_ANSWER: usize = 4096;

/// Says what a file is by its first bytes and what to do, where it is not of the kind that is `wanted`; none where they do not tell.
///
/// ```
/// use fusec::files::{Kind, mistaken};
/// let said = mistaken(b"<!DOCTYPE html><html>", Kind::Gguf).expect("it is no GGUF file");
/// assert!(said.starts_with("it is a web page"));
/// assert_eq!(mistaken(b"GGUF\x03\0\0\0", Kind::Gguf), None);
/// ```
pub fn mistaken(bytes: &[u8], wanted: Kind) -> Option<String> {
    let start = String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST_ANSWER)]);
    let start = start.trim_start_matches('\u{feff}').trim_start();
    let small = start.to_lowercase();
    if let Some(pointer) = start.strip_prefix("version https://git-lfs.github.com") {
        let size = pointer.lines().find_map(|line| line.strip_prefix("size ")?.trim().parse().ok());
        let size = size.map_or(String::new(), |bytes: u64| format!(" of {bytes} bytes"));
        return Some(format!(
            "it is a Git LFS pointer, and the file{size} that it stands for was not downloaded: run `git lfs pull` in its folder, or download the file"
        ));
    }
    if small.starts_with("# xet version") || small.starts_with("/annex/objects/") {
        return Some("it is a pointer, and the file that it stands for was not downloaded: download it".to_owned());
    }
    if ["<!doctype html", "<html", "<head", "<body"].iter().any(|tag| small.starts_with(tag)) {
        return Some(
            "it is a web page: the page about the file was saved in its place; download the file itself (on the hub its link has /resolve/, not /blob/)"
                .to_owned(),
        );
    }
    if small.starts_with("<?xml") || small.starts_with("<error>") {
        return Some("it is XML, as servers answer that have no such file: download it again".to_owned());
    }
    if let Some(answer) = answer(bytes, start, &small) {
        return Some(format!("it is what a server answered in its place: {answer}"));
    }
    if let Some((magic, what)) = MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return (wanted.magic() != Some(magic)).then(|| format!("it is {what}: {}", wanted.instead()));
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return Some("it is a tar archive: unpack it".to_owned());
    }
    if wanted != Kind::Safetensors && is_safetensors(bytes) {
        return Some("it is a safetensors file: name the folder that holds it, with config.json beside it".to_owned());
    }
    let zeros = bytes.len() >= 16 && bytes[..bytes.len().min(LONGEST_ANSWER)].iter().all(|byte| *byte == 0);
    zeros.then(|| "it begins with zeros only: its download was not completed, download it again".to_owned())
}

/// What a server answered, in a line.
fn answer(bytes: &[u8], start: &str, small: &str) -> Option<String> {
    if bytes.len() > LONGEST_ANSWER {
        return None;
    }
    let told = match serde_json::from_slice::<Value>(bytes) {
        Ok(Value::Object(answer)) if answer.len() <= 3 => answer.get("error").and_then(Value::as_str)?.to_owned(),
        Ok(_) => return None,
        Err(_) => ANSWERS.iter().any(|answer| small.starts_with(answer)).then(|| start.to_owned())?,
    };
    let line = told.lines().next().unwrap_or_default();
    Some(line.chars().filter(|letter| !letter.is_control()).take(200).collect())
}

fn is_safetensors(bytes: &[u8]) -> bool {
    let header = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
    (2..1 << 30).contains(&header) && bytes.get(8) == Some(&b'{')
}

/// Reads a file of text.
///
/// # Errors
/// A file that cannot be read, is no text, or is something else by its first bytes.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if let Some(what) = mistaken(&bytes, Kind::Text) {
        bail!("{}: {what}", path.display());
    }
    String::from_utf8(bytes).with_context(|| format!("{}: not UTF-8", path.display()))
}

/// Reads a JSON file.
///
/// # Errors
/// A file that cannot be read, is something else by its first bytes, or is not valid JSON.
pub fn read_json(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(!bytes.is_empty(), "{}: it is empty, download it again", path.display());
    if let Some(what) = mistaken(&bytes, Kind::Text) {
        bail!("{}: {what}", path.display());
    }
    let text = std::str::from_utf8(&bytes).with_context(|| format!("{}: not valid JSON", path.display()))?;
    json::parse(text).with_context(|| format!("{}: not valid JSON", path.display()))
}

/// As [`read_json`]; null where there is no such file.
///
/// # Errors
/// As [`read_json`].
pub fn read_optional_json(path: &Path) -> Result<Value> {
    if path.exists() { read_json(path) } else { Ok(Value::Null) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_download_left_is_named() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 988097824\n";
        for (bytes, said) in [
            (
                &pointer[..],
                "it is a Git LFS pointer, and the file of 988097824 bytes that it stands for was not downloaded: ",
            ),
            (b"\n  <!DOCTYPE HTML>\n<html>", "it is a web page: "),
            (b"\xef\xbb\xbf<html lang=\"en\">", "it is a web page: "),
            (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", "it is XML, as servers answer"),
            (b"Entry not found", "it is what a server answered in its place: Entry not found"),
            (
                b"{\"error\":\"Repository not found\"}",
                "it is what a server answered in its place: Repository not found",
            ),
            (b"Access to model a/b is restricted.\nAsk.", "it is what a server answered in its place: Access to model"),
            (b"PK\x03\x04rest", "it is a zip, as PyTorch's"),
            (b"\x80\x02}q", "it is a pickle"),
            (b"\x1f\x8b\x08", "it is compressed (gzip)"),
            (&[0; 64], "it begins with zeros only"),
        ] {
            let found = mistaken(bytes, Kind::Safetensors).unwrap_or_default();
            assert!(found.starts_with(said), "{found}");
        }
        assert!(
            mistaken(b"GGUF\x03", Kind::Safetensors).is_some_and(|said| said.starts_with("it is a GGUF file: get"))
        );
        assert!(mistaken(b"\x02\0\0\0\0\0\0\0{}", Kind::Gguf).is_some_and(|said| said.contains("name the folder")));
    }

    #[test]
    fn what_is_meant_passes() {
        assert_eq!(mistaken(b"\x02\0\0\0\0\0\0\0{}", Kind::Safetensors), None);
        assert_eq!(mistaken(b"PK\x03\x04", Kind::Artifact), None);
        for text in [&b"{\"model_type\": \"llama\"}"[..], b"schema = 1", b"{% for m in messages %}", b"404.json", b"[]"]
        {
            let known = mistaken(text, Kind::Text);
            assert!(known.is_none() || text.starts_with(b"404"), "{known:?}");
        }
    }
}
