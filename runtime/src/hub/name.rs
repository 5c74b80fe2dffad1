//! How a model on the hub is named.

use std::fmt;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use fusec::folder::HUB;

/// The branch that is meant where none is named.
const MAIN: &str = "main";

/// The longest part of a name.
const LONGEST: usize = 96;

/// A model on the hub: `OWNER/NAME[:QUANT][@REVISION]`.
///
/// ```
/// use fuserun::hub::Name;
/// let name = Name::parse("Qwen/Qwen3-0.6B-GGUF:Q8_0@main").unwrap();
/// assert_eq!((name.repository(), name.quant(), name.revision()), ("Qwen/Qwen3-0.6B-GGUF", Some("Q8_0"), "main"));
/// assert!(Name::parse("./Qwen3-0.6B").is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    repository: String,
    quant: Option<String>,
    revision: Option<String>,
}

impl Name {
    /// Reads a name, or the address of a model's page.
    ///
    /// # Errors
    /// What is no such name.
    pub fn parse(text: &str) -> Result<Name> {
        if let Some(rest) = HUB.iter().find_map(|hub| text.strip_prefix(hub)) {
            return Name::of_address(rest.trim_end_matches('/'));
        }
        let (rest, revision) = match text.split_once('@') {
            Some((rest, revision)) => (rest, Some(revision)),
            None => (text, None),
        };
        let (repository, quant) = match rest.split_once(':') {
            Some((repository, quant)) => (repository, Some(quant)),
            None => (rest, None),
        };
        Name::checked(text, repository, quant, revision)
    }

    /// What a path that is given as a model's names on the hub: none where something is there, or where it is no such name.
    pub fn of_path(path: &Path) -> Option<Name> {
        let text = path.to_str().filter(|_| !path.exists())?;
        Name::parse(text).ok()
    }

    /// `OWNER/NAME`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Which of several GGUF files.
    pub fn quant(&self) -> Option<&str> {
        self.quant.as_deref()
    }

    /// A branch, a tag or a commit.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }

    /// An address as a browser has it: `OWNER/NAME`, and perhaps `/tree/REVISION`.
    fn of_address(rest: &str) -> Result<Name> {
        let path = rest.split(['?', '#']).next().unwrap_or_default();
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        match parts[..] {
            [owner, name] => Name::checked(rest, &format!("{owner}/{name}"), None, None),
            [owner, name, "tree" | "blob" | "resolve", revision, ..] => {
                Name::checked(rest, &format!("{owner}/{name}"), None, Some(revision))
            }
            _ => bail!("'{rest}' is no model's page: name the model as OWNER/NAME"),
        }
    }

    fn checked(text: &str, repository: &str, quant: Option<&str>, revision: Option<&str>) -> Result<Name> {
        let parts: Vec<&str> = repository.split('/').collect();
        ensure!(
            parts.len() == 2 && parts.iter().all(|part| is_part(part)),
            "'{text}' names no model on the hub: write OWNER/NAME, with :QUANT for one of several GGUF files and @REVISION for a branch, tag or commit"
        );
        ensure!(quant.is_none_or(is_word), "'{text}': after the colon comes a quantisation such as Q4_K_M");
        let whole = |revision: &str| revision.split('/').all(|part| is_word(part) && !part.starts_with('.'));
        ensure!(revision.is_none_or(whole), "'{text}': after the @ comes a branch, a tag or a commit");
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Ok(Name { repository: repository.to_owned(), quant: owned(quant), revision: owned(revision) })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repository)?;
        self.quant.iter().try_for_each(|quant| write!(f, ":{quant}"))?;
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))
    }
}

/// An owner or a model's own name, by the hub's rules.
fn is_part(part: &str) -> bool {
    let edge = |letter: char| letter == '.' || letter == '-';
    is_word(part) && part.len() <= LONGEST && !part.starts_with(edge) && !part.ends_with(edge) && !part.contains("--")
}

/// A name that is safe as a file's.
fn is_word(word: &str) -> bool {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-+".contains(letter);
    !word.is_empty() && word.chars().all(plain) && !word.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for text in ["a/b", "Qwen/Qwen3-0.6B:Q4_K_M", "o/n@v1.0", "o/n:Q8_0@refs/pr/3", "o/n@0123abc"] {
            assert_eq!(Name::parse(text).unwrap().to_string(), text);
        }
        for (address, name) in [
            ("https://huggingface.co/Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
            ("hf://Qwen/Qwen3-0.6B/", "Qwen/Qwen3-0.6B"),
            ("huggingface.co/Qwen/Qwen3-0.6B/tree/v2?x=1", "Qwen/Qwen3-0.6B@v2"),
        ] {
            assert_eq!(Name::parse(address).unwrap().to_string(), name);
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "", "a", "a/", "/a", "a/b/c", "./b", "../b", "a/..", "a/b--c", "a/.b", "a/b.", "a b/c", "a/b:", "a/b@",
            "a/b@../x", "a/b@x//y", "a/b:x/y", "~/b", "hf://a", "a/\u{e4}", "a/b@/x",
        ] {
            assert!(Name::parse(text).is_err(), "{text}");
        }
    }
}
