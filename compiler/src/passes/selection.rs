//! Which passes run: `--passes -fuse-mlp,-fuse-rope`, `--passes none` (`-O0`), `--after PASS`.

use std::fmt;
use std::str::FromStr;

use anyhow::Result;

use super::PIPELINE;
use crate::switches::Switches;

/// Which rewrites of [`PIPELINE`] run, and how many patches they may make.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Selection {
    on: Switches,
    patch_limit: usize,
}

impl Selection {
    /// Every pass.
    pub fn all() -> Selection {
        Selection { on: switches(true), patch_limit: usize::MAX }
    }

    /// No pass: the unfused graph, `-O0`.
    pub fn none() -> Selection {
        Selection { on: switches(false), patch_limit: usize::MAX }
    }

    /// Reads a comma-separated list, from left to right: `all`, `none`, `-name` (leave out), `name` or `+name` (take in).
    /// A list that begins with a pass to take in begins from none, every other from all.
    ///
    /// # Errors
    /// A name that no pass has, with the nearest one that there is.
    pub fn parse(list: &str) -> Result<Selection> {
        Ok(Selection { on: switches(true).read(list)?, patch_limit: usize::MAX })
    }

    /// Leaves out every pass after `name`.
    ///
    /// # Errors
    /// A name that no pass has, with the nearest one that there is.
    pub fn stop_after(self, name: &str) -> Result<Selection> {
        Ok(Selection { on: self.on.stop_after(name)?, ..self })
    }

    /// Lets the passes make `patches` patches in all and then no more: to find the one that breaks a model.
    pub fn limit_patches(mut self, patches: usize) -> Selection {
        self.patch_limit = patches;
        self
    }

    /// Whether the pass of this name runs.
    pub fn has(&self, name: &str) -> bool {
        self.on.has(name)
    }

    /// How many patches the passes may make in all.
    pub fn patch_limit(&self) -> usize {
        self.patch_limit
    }
}

fn switches(on: bool) -> Switches {
    Switches::new(["pass", "passes"], PIPELINE.iter().map(|rewrite| rewrite.name), on)
}

impl Default for Selection {
    fn default() -> Selection {
        Selection::all()
    }
}

impl FromStr for Selection {
    type Err = anyhow::Error;

    fn from_str(list: &str) -> Result<Selection> {
        Selection::parse(list)
    }
}

/// The shortest list that reads back as this selection; the patch limit is not part of it.
impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.on.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_reads_from_left_to_right() {
        let chosen = |list: &str| {
            let selection = Selection::parse(list).expect("the list is valid");
            PIPELINE.iter().map(|r| r.name).filter(|name| selection.has(name)).collect::<Vec<_>>()
        };
        assert_eq!(chosen("").len(), PIPELINE.len());
        assert_eq!(chosen("all").len(), PIPELINE.len());
        assert!(chosen("none").is_empty());
        let without = chosen("-fuse-mlp, -fuse-rope");
        assert_eq!(without.len(), PIPELINE.len() - 2);
        assert!(!without.contains(&"fuse-mlp") && !without.contains(&"fuse-rope"));
        assert_eq!(chosen("fuse-mlp"), ["fuse-mlp"]);
        assert_eq!(chosen("none,+fuse-mlp,fuse-rope,-fuse-mlp"), ["fuse-rope"]);
    }

    #[test]
    fn an_unknown_name_gets_the_nearest_or_all() {
        let message = |list: &str| Selection::parse(list).expect_err("the name is unknown").to_string();
        assert_eq!(message("-fuse-mpl"), "there is no pass `fuse-mpl`; did you mean `fuse-mlp`?");
        assert!(message("-x").starts_with("there is no pass `x`; the passes are pack-projections, fuse-norm-matmul,"));
        let late = Selection::all().stop_after("fuse-ropes").expect_err("the name is unknown").to_string();
        assert_eq!(late, "there is no pass `fuse-ropes`; did you mean `fuse-rope`?");
    }

    #[test]
    fn stopping_keeps_what_comes_before() {
        let selection = Selection::parse("-pack-projections").and_then(|s| s.stop_after("fuse-mlp"));
        let selection = selection.expect("both names are known");
        assert_eq!(selection.to_string(), "fuse-norm-matmul,fuse-mlp");
    }

    #[test]
    fn a_selection_reads_back() {
        for list in ["all", "none", "fuse-mlp", "-fuse-mlp", "fuse-rope,fuse-sample", "-fuse-norm-matmul,-fuse-rope"] {
            let selection = Selection::parse(list).expect("the list is valid");
            assert_eq!(selection.to_string(), list);
        }
    }
}
