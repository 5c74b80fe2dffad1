//! Where things are kept between runs.

use std::path::{Path, PathBuf};

/// The folder `name` of the user's cache: in FUSE_CACHE, XDG_CACHE_HOME/fuse or ~/.cache/fuse. None where there is no such place.
pub fn folder(name: &str) -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let root = variable("FUSE_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|root| root.join("fuse")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/fuse")))?;
    Some(root.join(name))
}

/// The bytes that are free to this user where a folder is, or is to be made. None where the system does not say.
pub fn free(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|folder| folder.is_dir())?;
    let system = rustix::fs::statvfs(there).ok()?;
    Some(system.f_bavail.saturating_mul(system.f_frsize))
}
