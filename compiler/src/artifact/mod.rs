//! The `.fuse` file: everything a runtime needs of a model but its weights, in a zip that `unzip -l` opens.
//!
//! The same contents always give the same bytes: entries are sorted, times are fixed, and nothing of the machine is in it.

mod archive;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::build::{Arch, ResourceReport};

/// The version of the file's layout. A reader accepts only its own.
pub const FORMAT_VERSION: u32 = 14;

/// A compiled model without its weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Artifact {
    /// What it is and who made it: `manifest.json`.
    pub manifest: Manifest,
    /// The fused graph in its text form: `graph.txt`.
    pub graph_text: String,
    /// Launches and buffers, by the architecture they are planned for: `plan/ARCH.json`. At least one.
    pub plans: BTreeMap<String, String>,
    /// The description it was compiled from: `description.toml`.
    pub description_toml: String,
    /// The configuration it was compiled with: `config.json`.
    pub config_json: String,
    /// CUDA text by kernel name: `src/NAME.cu`.
    pub sources: BTreeMap<String, String>,
    /// Device code by architecture and kernel name: `cubin/ARCH/NAME.cubin`. One for each kernel of the plan of each architecture of the manifest.
    pub cubins: BTreeMap<(String, String), Vec<u8>>,
    /// What the assembler says about each kernel, by architecture, then by kernel name: `reports/ARCH.json`.
    pub reports: BTreeMap<String, BTreeMap<String, ResourceReport>>,
}

/// What an artifact is and who made it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The layout of the file, [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The model's name, from its description.
    pub name: String,
    /// The version of the compiler that wrote it.
    pub compiler_version: String,
    /// The version of the NVRTC that made the cubins, such as `13.0`; none where the file has sources only.
    pub nvrtc_version: Option<String>,
    /// The architectures that it has cubins for, such as `sm_90a`; empty where it has sources only.
    pub archs: Vec<String>,
    /// The type of weights and activations: `bf16`, `f16` or `f32`.
    pub dtype: String,
    /// Facts beyond these, by key.
    #[serde(flatten)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

impl Default for Manifest {
    fn default() -> Manifest {
        Manifest {
            format_version: FORMAT_VERSION,
            name: String::new(),
            compiler_version: env!("CARGO_PKG_VERSION").into(),
            nvrtc_version: None,
            archs: Vec::new(),
            dtype: "bf16".into(),
            extra: BTreeMap::new(),
        }
    }
}

impl Artifact {
    /// Writes the file, as [`output::write`](crate::output::write) does.
    ///
    /// # Errors
    /// When a name cannot be a file name, a cubin is missing or has no place, or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let bytes = self.to_bytes().with_context(|| format!("cannot write {}", crate::output::name(path)))?;
        crate::output::write(path, &bytes)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it is no artifact, is of a later format, or lacks an entry: the message says which.
    pub fn read(path: &Path) -> Result<Artifact> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Artifact::from_bytes(&bytes).with_context(|| format!("cannot read {}", path.display()))
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// As [`Artifact::write`].
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.check_kernels()?;
        let mut entries = BTreeMap::new();
        let mut add = |name: String, bytes: &[u8]| drop(entries.insert(name, bytes.to_owned()));
        add("manifest.json".into(), json(&self.manifest)?.as_bytes());
        add("graph.txt".into(), self.graph_text.as_bytes());
        add("description.toml".into(), self.description_toml.as_bytes());
        add("config.json".into(), self.config_json.as_bytes());
        for (arch, plan) in &self.plans {
            add(format!("plan/{}.json", file_name(arch)?), plan.as_bytes());
        }
        for (name, source) in &self.sources {
            add(format!("src/{}.cu", file_name(name)?), source.as_bytes());
        }
        for ((arch, name), cubin) in &self.cubins {
            add(format!("cubin/{}/{}.cubin", file_name(arch)?, file_name(name)?), cubin);
        }
        for (arch, report) in &self.reports {
            add(format!("reports/{}.json", file_name(arch)?), json(report)?.as_bytes());
        }
        archive::pack(&entries)
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// As [`Artifact::read`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Artifact> {
        let mut entries = archive::unpack(bytes)?;
        let manifest = read_manifest(&take_text(&mut entries, "manifest.json")?)?;
        let mut artifact = Artifact {
            manifest,
            graph_text: take_text(&mut entries, "graph.txt")?,
            description_toml: take_text(&mut entries, "description.toml")?,
            config_json: take_text(&mut entries, "config.json")?,
            ..Artifact::default()
        };
        for (entry, bytes) in entries {
            let parts: Vec<&str> = entry.split('/').collect();
            match parts[..] {
                ["plan", file] if file.ends_with(".json") => {
                    artifact.plans.insert(file.trim_end_matches(".json").into(), text(bytes, &entry)?);
                }
                ["src", file] if file.ends_with(".cu") => {
                    let source = text(bytes, &entry)?;
                    artifact.sources.insert(file.trim_end_matches(".cu").into(), source);
                }
                ["cubin", arch, file] if file.ends_with(".cubin") => {
                    artifact.cubins.insert((arch.into(), file.trim_end_matches(".cubin").into()), bytes);
                }
                ["reports", file] if file.ends_with(".json") => {
                    let report =
                        serde_json::from_slice(&bytes).with_context(|| format!("its {entry} is not as expected"))?;
                    artifact.reports.insert(file.trim_end_matches(".json").into(), report);
                }
                // What others put beside it, notes for example, is not touched.
                _ => {}
            }
        }
        artifact.check_kernels()?;
        Ok(artifact)
    }

    /// The plan for a device of compute capability `major.minor`, the text of its JSON, and the architecture it is for.
    ///
    /// # Errors
    /// When the file has none that runs there: the message says what it has and what to compile for.
    pub fn plan_for(&self, major: u32, minor: u32) -> Result<(Arch, &str)> {
        let plans = self.plans.iter().map(|(arch, plan)| Ok((arch.parse::<Arch>()?, plan.as_str())));
        let plans = plans.collect::<Result<Vec<_>>>()?;
        let fitting = plans.into_iter().filter(|(arch, _)| arch.runs_on(major, minor)).max();
        fitting.ok_or_else(|| match Arch::for_device(major, minor) {
            Ok(wanted) => anyhow!(
                "`{}` is compiled for {}, and this GPU is sm_{major}{minor}: compile it with `--arch {wanted}`",
                self.manifest.name,
                self.plans.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
            ),
            Err(error) => error,
        })
    }

    /// The device code for an architecture, by kernel name; empty where the file has sources only.
    pub fn cubins_for(&self, arch: Arch) -> BTreeMap<&str, &[u8]> {
        let name = arch.to_string();
        let own = self.cubins.iter().filter(|((arch, _), _)| *arch == name);
        own.map(|((_, kernel), cubin)| (kernel.as_str(), cubin.as_slice())).collect()
    }

    /// Each kernel of a plan has a source, and device code where the manifest names the plan's architecture; no other device code is there.
    fn check_kernels(&self) -> Result<()> {
        ensure!(!self.plans.is_empty(), "it lacks plan/ARCH.json: it is no .fuse file, or was cut");
        for arch in &self.manifest.archs {
            ensure!(self.plans.contains_key(arch), "it lacks plan/{arch}.json");
        }
        let mut known = BTreeSet::new();
        for (arch, plan) in &self.plans {
            let Kernels { kernels } =
                serde_json::from_str(plan).with_context(|| format!("its plan/{arch}.json is not as expected"))?;
            for Named { name } in kernels {
                ensure!(self.sources.contains_key(&name), "it lacks src/{name}.cu");
                if self.manifest.archs.contains(arch) {
                    let key = (arch.clone(), name);
                    ensure!(self.cubins.contains_key(&key), "it lacks cubin/{arch}/{}.cubin", key.1);
                    known.insert(key);
                }
            }
        }
        match self.cubins.keys().find(|key| !known.contains(key)) {
            Some((arch, name)) => {
                bail!("cubin/{arch}/{name}.cubin is of no kernel in the plan of an architecture that it lists")
            }
            None => Ok(()),
        }
    }
}

/// What is read of a plan here: the names of its kernels.
#[derive(Deserialize)]
struct Kernels {
    kernels: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

/// The version is read before the rest: another format may have any shape.
fn read_manifest(text: &str) -> Result<Manifest> {
    #[derive(Deserialize)]
    struct Version {
        format_version: u32,
    }
    let Version { format_version } = serde_json::from_str(text).context("its manifest.json has no format_version")?;
    ensure!(
        format_version == FORMAT_VERSION,
        "its format is version {format_version}, and this program reads version {FORMAT_VERSION}: compile the model again"
    );
    serde_json::from_str(text).context("its manifest.json is not as expected")
}

fn take_text(entries: &mut BTreeMap<String, Vec<u8>>, name: &str) -> Result<String> {
    let Some(bytes) = entries.remove(name) else { bail!("it lacks {name}: it is no .fuse file, or was cut") };
    text(bytes, name)
}

fn text(bytes: Vec<u8>, name: &str) -> Result<String> {
    String::from_utf8(bytes).with_context(|| format!("its {name} is not text"))
}

fn json<T: Serialize>(value: &T) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

fn file_name(name: &str) -> Result<&str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    ensure!(
        !name.is_empty() && name.chars().all(plain),
        "`{name}` cannot name a file: letters, digits, `_` and `-` can"
    );
    Ok(name)
}

#[cfg(test)]
mod tests;
