//! Where NVRTC may be, in the order that a CUDA user expects.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::ffi::Api;

/// The environment variable that names the NVRTC to use: the library itself, or a folder that holds it.
pub const NVRTC_VARIABLE: &str = "FUSE_NVRTC";

/// Library file names, the preferred release first.
const LIBRARY_NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];

/// Folders below a CUDA root, a wheel folder or a named folder that may hold the library. `*` is any one folder.
const LIBRARY_FOLDERS: [&str; 6] = ["", "lib64", "lib", "nvidia/*/lib", "*/lib", "targets/x86_64-linux/lib"];

/// The CUDA compiler library, loaded once and kept for the life of the process. Cheap to copy, usable from many threads at once.
#[derive(Clone, Copy)]
pub struct Nvrtc {
    loaded: &'static Loaded,
}

struct Loaded {
    api: Api,
    path: PathBuf,
    version: (i32, i32),
    archs: BTreeSet<u32>,
}

impl Nvrtc {
    /// Finds and loads NVRTC: `FUSE_NVRTC`, `CUDA_HOME` and `CUDA_PATH`, the loader's own search, `/usr/local/cuda`, a `.cache/nvrtc` in this
    /// folder, the program's or one above them, then the `nvidia` packages of `python3`. The first that loads is used from then on.
    ///
    /// # Errors
    /// When none loads, or when `FUSE_NVRTC` is set and is no NVRTC. The error prints as one line that says how to get it.
    pub fn find() -> Result<Nvrtc, NvrtcMissing> {
        static FOUND: OnceLock<Nvrtc> = OnceLock::new();
        if let Some(nvrtc) = FOUND.get() {
            return Ok(*nvrtc);
        }
        let nvrtc = search()?;
        Ok(*FOUND.get_or_init(|| nvrtc))
    }

    /// Major and minor version, such as `(13, 0)`.
    pub fn version(self) -> (i32, i32) {
        self.loaded.version
    }

    /// The version as text, such as `13.0`: part of every cache key.
    pub fn version_text(self) -> String {
        format!("{}.{}", self.loaded.version.0, self.loaded.version.1)
    }

    /// The file that was loaded, or the bare name under which the loader found it.
    pub fn path(self) -> &'static Path {
        &self.loaded.path
    }

    /// Compute capabilities this version compiles for, as in [`Arch::number`](super::Arch::number).
    pub fn archs(self) -> &'static BTreeSet<u32> {
        &self.loaded.archs
    }

    pub(super) fn api(self) -> &'static Api {
        &self.loaded.api
    }

    fn load(path: &Path) -> anyhow::Result<Nvrtc> {
        let api = Api::load(path)?;
        let version = api.version()?;
        let archs = api.archs()?.into_iter().collect();
        Ok(Nvrtc { loaded: Box::leak(Box::new(Loaded { api, path: path.to_owned(), version, archs })) })
    }
}

impl fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NVRTC {} ({})", self.version_text(), self.loaded.path.display())
    }
}

/// NVRTC is not on this machine, or cannot be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvrtcMissing {
    /// What was wrong with the places that looked right; empty where there was none.
    reasons: Vec<String>,
}

impl fmt::Display for NvrtcMissing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NVRTC, the CUDA compiler library, is missing")?;
        if !self.reasons.is_empty() {
            write!(f, " ({})", self.reasons.join("; "))?;
        }
        write!(
            f,
            ": run `pip install nvidia-cuda-nvrtc==13.0.88`, or set {NVRTC_VARIABLE} to libnvrtc.so or its folder"
        )
    }
}

impl std::error::Error for NvrtcMissing {}

fn search() -> Result<Nvrtc, NvrtcMissing> {
    let mut reasons = Vec::new();

    if let Some(named) = std::env::var_os(NVRTC_VARIABLE).filter(|value| !value.is_empty()) {
        // A user who names one wants that one: no other is taken in its place.
        let named = absolute(Path::new(&named));
        let candidates = if named.is_file() { vec![named.clone()] } else { libraries_under(&named) };
        if candidates.is_empty() {
            reasons.push(format!("{NVRTC_VARIABLE}={} holds no libnvrtc.so", named.display()));
        }
        return first_that_loads(candidates, &mut reasons).ok_or(NvrtcMissing { reasons });
    }

    let roots = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(std::env::var_os).filter(|root| !root.is_empty());
    let toolkits = roots.flat_map(|root| libraries_under(&absolute(Path::new(&root))));
    if let Some(nvrtc) = first_that_loads(toolkits.collect(), &mut reasons) {
        return Ok(nvrtc);
    }
    // By bare name: the loader's cache and LD_LIBRARY_PATH. Not being there is the usual case and no reason worth telling.
    if let Some(nvrtc) = LIBRARY_NAMES.iter().find_map(|name| Nvrtc::load(Path::new(name)).ok()) {
        return Ok(nvrtc);
    }
    let system = [PathBuf::from("/usr/local/cuda")];
    let nearby = system.into_iter().chain(local_folders()).flat_map(|folder| libraries_under(&folder));
    if let Some(nvrtc) = first_that_loads(nearby.collect(), &mut reasons) {
        return Ok(nvrtc);
    }
    let packages = python_packages().iter().flat_map(|folder| libraries_under(folder)).collect();
    first_that_loads(packages, &mut reasons).ok_or(NvrtcMissing { reasons })
}

fn first_that_loads(candidates: Vec<PathBuf>, reasons: &mut Vec<String>) -> Option<Nvrtc> {
    candidates.iter().find_map(|path| Nvrtc::load(path).map_err(|error| reasons.push(one_line(&error))).ok())
}

fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Every NVRTC below `root`, the preferred one first.
fn libraries_under(root: &Path) -> Vec<PathBuf> {
    let folders: Vec<PathBuf> = LIBRARY_FOLDERS.iter().flat_map(|pattern| matching_folders(root, pattern)).collect();
    let files = LIBRARY_NAMES.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    files.filter(|file| file.is_file()).collect()
}

/// The folders that `pattern` stands for below `root`, sorted, later CUDA releases first.
fn matching_folders(root: &Path, pattern: &str) -> Vec<PathBuf> {
    pattern.split('/').filter(|part| !part.is_empty()).fold(vec![root.to_owned()], |folders, part| {
        let below = folders.iter().flat_map(|folder| match part {
            "*" => subfolders(folder),
            name => vec![folder.join(name)],
        });
        below.filter(|folder| folder.is_dir()).collect()
    })
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut found: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect();
    found.sort_by(|a, b| b.cmp(a));
    found
}

/// The `.cache/nvrtc` folders of the current folder, the program's, and every folder above them.
fn local_folders() -> Vec<PathBuf> {
    let starts = [std::env::current_dir().ok(), std::env::current_exe().ok()];
    let above = starts.iter().flatten().flat_map(|start| start.ancestors()).map(|folder| folder.join(".cache/nvrtc"));
    let mut found: Vec<PathBuf> = above.filter(|folder| folder.is_dir()).collect();
    found.dedup();
    found
}

/// The folders of python's `nvidia` packages: where `pip install nvidia-cuda-nvrtc` puts the library.
fn python_packages() -> Vec<PathBuf> {
    const ASK: &str = "import nvidia; print('\\n'.join(nvidia.__path__))";
    let answer = Command::new("python3").args(["-c", ASK]).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let Ok(answer) = answer else { return Vec::new() };
    String::from_utf8_lossy(&answer.stdout).lines().filter(|line| !line.is_empty()).map(PathBuf::from).collect()
}

/// The loader searches by name where a path has no slash, so every path it gets is absolute.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::testing::scratch;

    #[test]
    fn wheels_toolkits_and_plain_folders_are_searched() {
        let root = scratch("find-layouts");
        for file in [
            "nvidia/cu13/lib/libnvrtc.so.13",
            "nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            "lib64/libnvrtc.so.12",
            "lib64/libnvrtc.so.11",
        ] {
            std::fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            std::fs::write(root.join(file), "").unwrap();
        }
        let found = libraries_under(&root);
        let names: Vec<_> = found.iter().map(|path| path.strip_prefix(&root).unwrap().to_str().unwrap()).collect();
        assert_eq!(
            names,
            ["nvidia/cu13/lib/libnvrtc.so.13", "lib64/libnvrtc.so.12", "nvidia/cuda_nvrtc/lib/libnvrtc.so.12"]
        );
        assert_eq!(libraries_under(&root.join("nvidia")).len(), 2);
        assert!(libraries_under(&root.join("absent")).is_empty());
    }

    #[test]
    fn a_file_that_is_no_library_is_a_reason() {
        let file = scratch("find-broken").join("libnvrtc.so.13");
        std::fs::write(&file, "not a library").unwrap();
        let mut reasons = Vec::new();
        assert!(first_that_loads(vec![file.clone()], &mut reasons).is_none());
        assert!(reasons[0].contains(file.to_str().unwrap()), "{reasons:?}");
    }

    #[test]
    fn the_error_is_one_line_that_says_how_to_get_it() {
        let text = NvrtcMissing { reasons: vec!["a reason".into()] }.to_string();
        assert_eq!(
            text,
            "NVRTC, the CUDA compiler library, is missing (a reason): run `pip install nvidia-cuda-nvrtc==13.0.88`, or set FUSE_NVRTC to libnvrtc.so or its folder"
        );
    }
}
