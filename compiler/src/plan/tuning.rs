//! Tuning records: launch shapes that were measured on a GPU, where they beat the plan's own heuristics.
//!
//! A record is a TOML file for one architecture. `fusec tune` writes it; those in `tuning/` are inside the binary.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::batches::check_batch;
use super::kernels::{Packed, TuningKey};
use crate::ir::Format;

/// A step of weights without scales.
const WHOLE: Packed = Format::BF16.packed().expect("kernels read it");

/// What was measured on one GPU. Without entries it changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// The architecture it holds for, such as `sm_90a`.
    pub arch: String,
    /// The GPU it was measured on.
    pub gpu: String,
    /// That GPU's driver.
    pub driver: String,
    /// The compiler of what was measured: NVRTC and `fusec`, with their versions.
    pub compiler: String,
    /// Products of few rows, by key.
    #[serde(default, rename = "matvec")]
    pub matvecs: Vec<MatvecTuning>,
    /// Attentions of few rows, by key.
    #[serde(default, rename = "attention")]
    pub attentions: Vec<AttentionTuning>,
}

/// The shape of the products that a key fits.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatvecTuning {
    /// What is fused with it: the first words of the kernel's name, such as `norm_matvec_gated`.
    pub kind: String,
    /// Columns; of a sum of experts those of all that a step may need.
    pub k: usize,
    /// Row tiles; inside experts those of all that a step may need.
    pub tiles: usize,
    /// Rows of x.
    pub batch: usize,
    /// Warps a block.
    pub warps: usize,
    /// Pairs of tiles that a warp has in flight.
    pub depth: usize,
    /// Blocks a multiprocessor that the row tiles are spread over.
    pub blocks: usize,
    /// Whether the next kernel begins only when what this one depends on is done.
    #[serde(default)]
    pub late: bool,
    /// Whether bias and residual are loaded before the epilogue; absent: by the heuristics.
    #[serde(default)]
    pub ahead: Option<bool>,
    /// Row tiles that are finished together, as far as what is in flight has room for them; absent: by the heuristics.
    #[serde(default)]
    pub unit: Option<usize>,
    /// Microseconds of a whole step with this shape, and with those of the heuristics.
    pub us: f64,
    /// The latter.
    pub default_us: f64,
}

impl MatvecTuning {
    /// How the weights are packed: the kind names a format that is not whole.
    pub fn packed(&self) -> Packed {
        let named = |format: &Format| self.kind.ends_with(&format!("_{}", format.name()));
        let format = Format::ALL.into_iter().filter(|format| !format.is_whole()).find(named);
        format.and_then(Format::packed).unwrap_or(WHOLE)
    }
}

/// The shape of the attentions that a key fits.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionTuning {
    /// Query heads.
    pub heads: usize,
    /// Key heads.
    pub key_heads: usize,
    /// Values a head.
    pub head_dim: usize,
    /// Keys a token sees; 0: all.
    pub window: usize,
    /// Rows.
    pub batch: usize,
    /// Warps a block.
    pub warps: usize,
    /// Keys that make a further block worth its while.
    pub keys: usize,
    /// While there are few keys: row tiles that a cluster makes of the projection in the kernel that attends and projects. 0: they are two kernels
    /// here too; absent: by the heuristics.
    #[serde(default)]
    pub slice: Option<usize>,
    /// While there are few keys: warps per block; absent: by the heuristics.
    #[serde(default)]
    pub near_warps: Option<usize>,
    /// While there are few keys: rows of x that a cluster takes, where one attends and projects; absent: by the heuristics.
    #[serde(default)]
    pub near_rows: Option<usize>,
    /// While there are few keys: query heads per block, where it does not project; absent: by the heuristics.
    #[serde(default)]
    pub near_group: Option<usize>,
    /// Sums that a product with keys is computed in, 1 or 2; absent: by the heuristics.
    #[serde(default)]
    pub chains: Option<usize>,
    /// Tiles of 16 keys that a warp has in flight; absent: by the heuristics.
    #[serde(default)]
    pub held: Option<usize>,
    /// Blocks at most that the keys of a head are split over; absent: by the heuristics.
    #[serde(default)]
    pub splits: Option<usize>,
    /// Blocks of a cluster, which merge what they have; absent: by the heuristics.
    #[serde(default)]
    pub merged: Option<usize>,
    /// Whether the next kernel begins only when what this one depends on is done.
    #[serde(default)]
    pub late: bool,
    /// Microseconds of a whole step with this shape, and with those of the heuristics.
    pub us: f64,
    /// The latter.
    pub default_us: f64,
}

/// Which record a compilation uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TuningSource {
    /// The shipped one of its architecture, where there is one.
    #[default]
    Shipped,
    /// None: only the heuristics.
    None,
    /// A file.
    File(PathBuf),
}

/// File name and text of each record inside the binary, by name.
pub fn shipped() -> &'static [(&'static str, &'static str)] {
    &[("sm_90a.toml", include_str!("../../../tuning/sm_90a.toml"))]
}

impl Tuning {
    /// Reads a record. `file` is what messages call it.
    ///
    /// # Errors
    /// What is no record, or has an entry that no kernel can follow: the file, the entry, and what is wrong with it.
    pub fn parse(text: &str, file: &str) -> Result<Tuning> {
        let tuning: Tuning = toml::from_str(text).map_err(|error| anyhow!("{file}: {error}"))?;
        tuning.check().with_context(|| file.to_owned())?;
        Ok(tuning)
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.matvecs.is_empty() && self.attentions.is_empty()
    }

    /// SHA-256 of all it says, in hexadecimal.
    pub fn digest(&self) -> String {
        Sha256::digest(self.to_string()).iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// The entry for a product.
    pub fn product(&self, key: &TuningKey) -> Option<&MatvecTuning> {
        self.matvecs.iter().find(|entry| entry.key() == *key)
    }

    /// The entry for an attention of few rows.
    pub fn attention(&self, key: &TuningKey) -> Option<&AttentionTuning> {
        self.attentions.iter().find(|entry| entry.key() == *key)
    }

    /// Takes an entry in the place of one with the same key.
    pub fn set_matvec(&mut self, entry: MatvecTuning) {
        self.matvecs.retain(|other| other.key() != entry.key());
        self.matvecs.push(entry);
        self.matvecs.sort_by_key(MatvecTuning::key);
    }

    /// Takes an entry in the place of one with the same key.
    pub fn set_attention(&mut self, entry: AttentionTuning) {
        self.attentions.retain(|other| other.key() != entry.key());
        self.attentions.push(entry);
        self.attentions.sort_by_key(AttentionTuning::key);
    }

    fn check(&self) -> Result<()> {
        let mut seen = BTreeSet::new();
        for entry in &self.matvecs {
            entry.check().with_context(|| format!("[[matvec]] {entry}"))?;
            ensure!(seen.insert(entry.key()), "[[matvec]] {entry}: it is there twice");
        }
        let mut seen = BTreeSet::new();
        for entry in &self.attentions {
            entry.check().with_context(|| format!("[[attention]] {entry}"))?;
            ensure!(seen.insert(entry.key()), "[[attention]] {entry}: it is there twice");
        }
        Ok(())
    }
}

impl MatvecTuning {
    /// What identifies the products that have a shape of their own.
    pub fn key(&self) -> TuningKey {
        TuningKey::Product(self.kind.clone(), self.k, self.tiles, self.batch)
    }

    fn check(&self) -> Result<()> {
        check_batch(self.batch)?;
        // The warps of a sum of experts share out its pairs evenly, whatever their number; those of the others share the rows, too.
        let warps = self.warps;
        let shared_out = match self.kind == "experts_sum" {
            true => (2..=16).contains(&warps) && warps >= self.batch,
            false => check_warps(warps).map(|()| warps.is_multiple_of(self.batch))?,
        };
        ensure!(
            warps.is_multiple_of(2) && shared_out,
            "{warps} warps for batch {}: a warp finishes results of one row, half of it half of the sums",
            self.batch
        );
        ensure!((1..=32).contains(&self.depth), "a depth of {} is not 1 to 32 pairs", self.depth);
        ensure!((1..=8).contains(&self.blocks), "{} blocks per multiprocessor are not 1 to 8", self.blocks);
        ensure!(self.unit.is_none_or(|unit| (1..=8).contains(&unit)), "a unit is not of 1 to 8 row tiles");
        ensure!(self.k > 0 && self.tiles > 0, "a product has columns and row tiles");
        Ok(())
    }
}

impl AttentionTuning {
    /// What identifies the attentions that have a shape of their own.
    pub fn key(&self) -> TuningKey {
        TuningKey::Attention(self.heads, self.key_heads, self.head_dim, self.window, self.batch)
    }

    fn check(&self) -> Result<()> {
        check_batch(self.batch)?;
        check_warps(self.warps)?;
        ensure!(self.keys > 0, "a split of no keys");
        self.near_warps.map_or(Ok(()), check_warps)?;
        ensure!(self.near_rows != Some(0), "a cluster of no rows");
        ensure!(self.near_group != Some(0), "a block of no query heads");
        ensure!(matches!(self.chains, None | Some(1 | 2)), "a product in other than 1 or 2 sums");
        ensure!(
            self.splits.is_none_or(|splits| (1..=64).contains(&splits)),
            "keys split over other than 1 to 64 blocks"
        );
        ensure!(self.held.is_none_or(|held| (1..=8).contains(&held)), "a warp with other than 1 to 8 tiles in flight");
        let whole = self.merged.zip(self.splits).is_none_or(|(merged, splits)| splits.is_multiple_of(merged));
        ensure!(whole, "clusters do not divide the splits");
        ensure!(self.merged.is_none_or(|merged| (1..=8).contains(&merged)), "a cluster of other than 1 to 8 blocks");
        Ok(())
    }
}

fn check_warps(warps: usize) -> Result<()> {
    ensure!(matches!(warps, 1 | 2 | 4 | 8 | 16 | 32), "{warps} warps are not one of 1, 2, 4, 8, 16 and 32");
    Ok(())
}

/// The record as its file.
impl fmt::Display for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "# Launch shapes that beat the plan's rules, as `fusec tune` measured them: microseconds are of whole decode steps."
        )?;
        for (key, value) in
            [("arch", &self.arch), ("gpu", &self.gpu), ("driver", &self.driver), ("compiler", &self.compiler)]
        {
            writeln!(f, "{key} = {}", toml::Value::from(value.as_str()))?;
        }
        for entry in &self.matvecs {
            let MatvecTuning { kind, k, tiles, batch, warps, depth, blocks, us, default_us, .. } = entry;
            let options =
                [flag("late", entry.late), option("ahead", entry.ahead.as_ref()), option("unit", entry.unit.as_ref())]
                    .concat();
            writeln!(
                f,
                "\n[[matvec]]\nkind = {}\nk = {k}\ntiles = {tiles}\nbatch = {batch}",
                toml::Value::from(kind.as_str())
            )?;
            writeln!(
                f,
                "warps = {warps}\ndepth = {depth}\nblocks = {blocks}\n{options}us = {us:?}\ndefault_us = {default_us:?}"
            )?;
        }
        for entry in &self.attentions {
            let AttentionTuning { heads, key_heads, head_dim, window, batch, warps, keys, us, default_us, .. } = entry;
            let options = [
                option("slice", entry.slice.as_ref()),
                option("near_warps", entry.near_warps.as_ref()),
                option("near_rows", entry.near_rows.as_ref()),
                option("near_group", entry.near_group.as_ref()),
                option("chains", entry.chains.as_ref()),
                option("held", entry.held.as_ref()),
                option("splits", entry.splits.as_ref()),
                option("merged", entry.merged.as_ref()),
                flag("late", entry.late),
            ]
            .concat();
            writeln!(f, "\n[[attention]]\nheads = {heads}\nkey_heads = {key_heads}\nhead_dim = {head_dim}")?;
            writeln!(
                f,
                "window = {window}\nbatch = {batch}\nwarps = {warps}\nkeys = {keys}\n{options}us = {us:?}\ndefault_us = {default_us:?}"
            )?;
        }
        Ok(())
    }
}

/// A line of a record that says what the heuristics do not.
fn option<T: fmt::Display>(key: &str, value: Option<&T>) -> String {
    value.map_or(String::new(), |value| format!("{key} = {value}\n"))
}

fn flag(key: &str, set: bool) -> String {
    option(key, Some(&set).filter(|set| **set))
}

impl fmt::Display for MatvecTuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, k {}, {} row tiles, batch {}", self.kind, self.k, self.tiles, self.batch)
    }
}

impl fmt::Display for AttentionTuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AttentionTuning { heads, key_heads, head_dim, window, batch, .. } = self;
        write!(f, "attention, heads {heads} by {key_heads} of {head_dim}, window {window}, batch {batch}")
    }
}

impl FromStr for TuningSource {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<TuningSource, Self::Err> {
        Ok(match text {
            "auto" => TuningSource::Shipped,
            "none" => TuningSource::None,
            path => TuningSource::File(path.into()),
        })
    }
}

impl TuningSource {
    /// The record for a plan for this architecture.
    ///
    /// # Errors
    /// A file that cannot be read, is no record, or is of another architecture.
    pub fn record(&self, arch: &str) -> Result<Tuning> {
        Ok(self.records(&[arch])?.pop().unwrap_or_default())
    }

    /// The records for plans for these architectures, one each. A file is for one of them; the others have their shipped records.
    ///
    /// # Errors
    /// A file that cannot be read, is no record, or is of none of the architectures.
    pub fn records<S: AsRef<str>>(&self, archs: &[S]) -> Result<Vec<Tuning>> {
        let shipped_for = |arch: &S| {
            let found = shipped().iter().find(|(file, _)| file.strip_suffix(".toml") == Some(arch.as_ref()));
            found.map_or(Ok(Tuning::default()), |(file, text)| Tuning::parse(text, file))
        };
        match self {
            TuningSource::None => Ok(vec![Tuning::default(); archs.len()]),
            TuningSource::Shipped => archs.iter().map(shipped_for).collect(),
            TuningSource::File(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the tuning record {}", path.display()))?;
                let tuning = Tuning::parse(&text, &path.display().to_string())?;
                ensure!(
                    archs.iter().any(|arch| arch.as_ref() == tuning.arch),
                    "{} was measured for {}, and this is compiled for {}: leave it out, or run fusec tune on that GPU",
                    path.display(),
                    tuning.arch,
                    archs.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ")
                );
                let own = |arch: &S| if arch.as_ref() == tuning.arch { Ok(tuning.clone()) } else { shipped_for(arch) };
                archs.iter().map(own).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests;
