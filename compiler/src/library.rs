//! Which description serves a model: the user's own, then those in the binary.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};

use crate::description::{Description, find_for, shipped};

/// A description that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What messages call it: the path of the user's file, or the name of the shipped one.
    pub file: String,
    /// Its text.
    pub text: String,
}

/// The folder of the user's descriptions: FUSE_MODELS, else `fuse/models` in XDG_CONFIG_HOME or ~/.config. It need not be there.
pub fn folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("FUSE_MODELS")
        .or_else(|| variable("XDG_CONFIG_HOME").map(|root| root.join("fuse/models")))
        .or_else(|| variable("HOME").map(|home| home.join(".config/fuse/models")))
}

/// The description that serves one of these architectures (`architectures` of a config.json): the user's, else the shipped one.
///
/// # Errors
/// Two files of the user's that serve it; one that names it and cannot be read.
pub fn serving<S: AsRef<str>>(architectures: &[S]) -> Result<Option<Found>> {
    let mut own = match folder() {
        Some(folder) => serving_in(&folder, architectures)?,
        None => Vec::new(),
    };
    ensure!(
        own.len() < 2,
        "{} and {} both serve {}: name one with --description, or move the other away",
        own[0].file,
        own[1].file,
        architectures.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ")
    );
    let found = find_for(architectures).map(|(file, text)| Found { file: file.into(), text: text.into() });
    Ok(own.pop().or(found))
}

/// The description of that name, `NAME.toml`: the user's, else the shipped one.
///
/// # Errors
/// A file of the user's that cannot be read.
pub fn named(name: &str) -> Result<Option<Found>> {
    let file = format!("{name}.toml");
    let own = folder().map(|folder| folder.join(&file)).filter(|path| !name.contains('/') && path.is_file());
    match own {
        Some(path) => Ok(Some(Found { text: read(&path)?, file: path.display().to_string() })),
        None => {
            let found = shipped().iter().find(|(shipped, _)| *shipped == file);
            Ok(found.map(|(file, text)| Found { file: (*file).into(), text: (*text).into() }))
        }
    }
}

fn serving_in<S: AsRef<str>>(folder: &Path, architectures: &[S]) -> Result<Vec<Found>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        let (file, text) = (path.display().to_string(), read(&path)?);
        let serves = match Description::parse(&text, &file) {
            Ok(description) => {
                architectures.iter().any(|name| description.serves.iter().any(|served| served == name.as_ref()))
            }
            // A broken file is in the way of the models that it names, and of no others.
            Err(diagnostics) => {
                let names = |name: &S| text.contains(&format!("\"{}\"", name.as_ref()));
                ensure!(!architectures.iter().any(names), "{}", anyhow!("{diagnostics}"));
                false
            }
        };
        if serves {
            found.push(Found { file, text });
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read the description {}", path.display()))
}
