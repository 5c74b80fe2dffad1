//! Lists that switch entries of a table on and off: `-fuse-mlp,-fuse-rope`, `fuse-mlp`, `all`, `none`.

use std::fmt;

use anyhow::{Result, anyhow};

use crate::text::closest;

/// Which entries of a table are on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Switches {
    /// What an entry is called, one and several: `pass`, `passes`.
    words: [&'static str; 2],
    entries: Vec<(&'static str, bool)>,
}

impl Switches {
    /// The table's names, all on or all off.
    pub fn new(words: [&'static str; 2], names: impl IntoIterator<Item = &'static str>, on: bool) -> Switches {
        Switches { words, entries: names.into_iter().map(|name| (name, on)).collect() }
    }

    /// Reads a comma-separated list, from left to right: `all`, `none`, `-name` (leave out), `name` or `+name` (take in).
    /// A list that begins with a name to take in begins from none, every other from all.
    ///
    /// # Errors
    /// A name that no entry has, with the nearest one that there is.
    pub fn read(mut self, list: &str) -> Result<Switches> {
        let items: Vec<&str> = list.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
        self.fill(items.first().is_none_or(|item| item.starts_with('-')));
        for item in items {
            match item {
                "all" => self.fill(true),
                "none" => self.fill(false),
                _ => {
                    let index = self.index_of(item.trim_start_matches(['-', '+']))?;
                    self.entries[index].1 = !item.starts_with('-');
                }
            }
        }
        Ok(self)
    }

    /// Switches off what comes after `name`.
    ///
    /// # Errors
    /// A name that no entry has, with the nearest one that there is.
    pub fn stop_after(mut self, name: &str) -> Result<Switches> {
        let last = self.index_of(name)?;
        self.entries[last + 1..].iter_mut().for_each(|entry| entry.1 = false);
        Ok(self)
    }

    /// Whether the entry of this name is on.
    pub fn has(&self, name: &str) -> bool {
        self.entries.contains(&(name, true))
    }

    fn fill(&mut self, on: bool) {
        self.entries.iter_mut().for_each(|entry| entry.1 = on);
    }

    fn index_of(&self, name: &str) -> Result<usize> {
        self.entries.iter().position(|entry| entry.0 == name).ok_or_else(|| {
            let names = || self.entries.iter().map(|entry| entry.0);
            let [one, several] = self.words;
            match closest(name, names()) {
                Some(near) => anyhow!("there is no {one} `{name}`; did you mean `{near}`?"),
                None => {
                    anyhow!("there is no {one} `{name}`; the {several} are {}", names().collect::<Vec<_>>().join(", "))
                }
            }
        })
    }
}

/// The shortest list that reads back as these switches.
impl fmt::Display for Switches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = self.entries.iter().filter(|entry| entry.1).count();
        let listed = |sign: &str, which: bool| {
            let names = self.entries.iter().filter(|entry| entry.1 == which);
            names.map(|entry| format!("{sign}{}", entry.0)).collect::<Vec<_>>().join(",")
        };
        match (on, self.entries.len() - on) {
            (_, 0) => f.write_str("all"),
            (0, _) => f.write_str("none"),
            (on, off) if on < off => f.write_str(&listed("", true)),
            _ => f.write_str(&listed("-", false)),
        }
    }
}
