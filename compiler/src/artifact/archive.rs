//! Entries to zip bytes and back.

use std::collections::BTreeMap;
use std::io::{Cursor, Read, Write};

use anyhow::{Context, Result, anyhow, bail, ensure};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

use crate::files::{Kind, mistaken};

/// No entry of an artifact is near this size: a file that claims more is broken or hostile.
const LARGEST_ENTRY: u64 = 256 << 20;

/// Packs entries in the order of their names, with fixed times and permissions.
pub(super) fn pack(entries: &BTreeMap<String, Vec<u8>>) -> Result<Vec<u8>> {
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .last_modified_time(DateTime::DEFAULT)
        .unix_permissions(0o644);
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        writer.start_file(name.as_str(), options)?;
        writer.write_all(bytes)?;
    }
    Ok(writer.finish()?.into_inner())
}

/// Every file in the zip, by name.
pub(super) fn unpack(bytes: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|error| match mistaken(bytes, Kind::Artifact) {
        Some(what) => anyhow!("it is no .fuse file: {what}"),
        None => anyhow!(error).context("it is no .fuse file (not a zip), or was cut"),
    })?;
    let mut entries = BTreeMap::new();
    for index in 0..archive.len() {
        let entry = archive.by_index(index).with_context(|| format!("entry {index} is damaged"))?;
        if entry.is_dir() {
            continue;
        }
        let name = entry.name().with_context(|| format!("the name of entry {index} is damaged"))?.to_string();
        let mut contents = Vec::new();
        entry.take(LARGEST_ENTRY + 1).read_to_end(&mut contents).with_context(|| format!("its {name} is damaged"))?;
        ensure!(contents.len() as u64 <= LARGEST_ENTRY, "its {name} is larger than {} MiB", LARGEST_ENTRY >> 20);
        if entries.contains_key(&name) {
            bail!("it has {name} twice");
        }
        entries.insert(name, contents);
    }
    Ok(entries)
}
