//! A model in several GGUF files: `NAME-00001-of-00003.gguf` and so on. The first has the metadata, each its own tensors.

use super::contents::Contents;
use super::read;
use crate::map::map_file;
use anyhow::{Context, Result, ensure};
use memmap2::Mmap;
use std::path::{Path, PathBuf};

/// The contents of all parts as one, and their bytes in order. `file` is the part at `path`, any of them, and `contents` what it holds.
pub(super) fn join(path: &Path, file: Mmap, contents: Contents, count: u64) -> Result<(Contents, Vec<Mmap>)> {
    let number =
        contents.metadata.unsigned("split.no").context("it is a part and the metadata key split.no is missing")?;
    ensure!(number < count && count <= 99_999, "it is part {number} of {count}, counted from 0");
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let base = name.strip_suffix(&format!("-{:05}-of-{count:05}.gguf", number + 1)).with_context(|| {
        let end = format!("-{:05}-of-{count:05}.gguf", number + 1);
        format!("it is part {} of {count}: to find the others, its name must end in {end}", number + 1)
    })?;
    let part = |number: u64| path.with_file_name(format!("{base}-{:05}-of-{count:05}.gguf", number + 1));
    let missing: Vec<PathBuf> = (0..count).map(part).filter(|path| !path.exists()).collect();
    if let Some(first) = missing.first() {
        let first = first.file_name().unwrap_or_default().display();
        anyhow::bail!("{} of its {count} parts are missing, {first} the first; get them", missing.len());
    }
    let mut given = Some((file, contents));
    let (mut whole, mut files): (Option<Contents>, Vec<Mmap>) = (None, Vec::new());
    for index in 0..count {
        let path = part(index);
        let (file, contents) = match given.take_if(|_| index == number) {
            Some(given) => given,
            None => {
                let file = map_file(&path)?;
                let contents =
                    read::read(&file).with_context(|| format!("{}: not a usable GGUF file", path.display()))?;
                (file, contents)
            }
        };
        let (told, of) = (contents.metadata.unsigned("split.no"), contents.metadata.unsigned("split.count"));
        ensure!(
            (told, of) == (Some(index), Some(count)),
            "{}: it is not part {} of {count} by its metadata: get all parts again",
            path.display(),
            index + 1
        );
        files.push(file);
        match &mut whole {
            None => whole = Some(contents),
            Some(whole) => {
                for (name, mut entry) in contents.tensors {
                    entry.file = index as usize;
                    let twice = whole.tensors.insert(name.clone(), entry).is_some();
                    ensure!(!twice, "{}: tensor {name} is in an earlier part too", path.display());
                }
            }
        }
    }
    let whole = whole.context("a model has a part at least")?;
    if let Some(told) = whole.metadata.unsigned("split.tensors.count") {
        let found = whole.tensors.len() as u64;
        ensure!(found == told, "its parts hold {found} tensors and it should have {told}: get all parts again");
    }
    Ok((whole, files))
}
