//! Golden logits: what tests/goldens/README.md describes, and how they are compared.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

/// Tokens, and the fp32 logits of Hugging Face transformers for them.
#[derive(Clone, Debug)]
pub struct Golden {
    /// The folder's name.
    pub name: String,
    /// The folder; with the checkpoint in it, but for `demo`.
    pub folder: PathBuf,
    /// The tokens, from position 0.
    pub tokens: Vec<u32>,
    /// `[tokens, vocabulary]`, row after row.
    pub logits: Vec<f32>,
}

/// The goldens that give every logit, by name: all folders of tests/goldens but SmolLM2's, whose file holds a part of them.
pub fn goldens() -> Vec<Golden> {
    let folder = super::root().join("tests/goldens");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("a folder lists its files").path())
        .filter(|path| path.join("expected.safetensors").exists())
        .collect();
    paths.sort();
    paths.iter().filter_map(|path| Golden::read(path)).collect()
}

impl Golden {
    fn read(folder: &Path) -> Option<Golden> {
        let bytes = std::fs::read(folder.join("expected.safetensors")).expect("expected.safetensors can be read");
        let file = SafeTensors::deserialize(&bytes).expect("expected.safetensors is a safetensors file");
        if file.tensor("columns").is_ok() {
            return None;
        }
        let tensor = |name: &str| {
            file.tensor(name).unwrap_or_else(|error| panic!("{}: {error}", folder.display())).data().to_vec()
        };
        let words = |name: &str| -> Vec<[u8; 4]> {
            tensor(name).chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]]).collect()
        };
        Some(Golden {
            name: folder.file_name().expect("a folder has a name").to_string_lossy().into_owned(),
            folder: folder.to_path_buf(),
            tokens: words("tokens").into_iter().map(u32::from_le_bytes).collect(),
            logits: words("logits").into_iter().map(f32::from_le_bytes).collect(),
        })
    }

    /// Logits a token.
    pub fn vocabulary(&self) -> usize {
        self.logits.len() / self.tokens.len()
    }
}

/// The normalised mean squared error: sum((found - expected)²) / sum(expected²). Not a number where `found` has one.
pub fn nmse(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "as many logits as expected");
    let pairs = found.iter().zip(expected);
    let error: f64 = pairs.map(|(found, expected)| (f64::from(*found) - f64::from(*expected)).powi(2)).sum();
    error / expected.iter().map(|expected| f64::from(*expected).powi(2)).sum::<f64>()
}

/// The first row whose largest logit is at another place than expected, though the expected row's top two differ by more than `clear`.
pub fn argmax_disagreement(found: &[f32], expected: &[f32], vocabulary: usize, clear: f32) -> Option<usize> {
    let best = |row: &[f32]| (0..row.len()).fold(0, |best, token| if row[token] > row[best] { token } else { best });
    let differs = |(found, expected): (&[f32], &[f32])| {
        let token = best(expected);
        let others = expected.iter().enumerate().filter(|(other, _)| *other != token);
        let second = others.map(|(_, logit)| *logit).fold(f32::NEG_INFINITY, f32::max);
        expected[token] - second > clear && best(found) != token
    };
    found.chunks(vocabulary).zip(expected.chunks(vocabulary)).position(differs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_measured() {
        assert_eq!(nmse(&[1.0, 2.0], &[1.0, 2.0]), 0.0);
        assert_eq!(nmse(&[2.0, 2.0], &[1.0, 2.0]), 0.2);
        assert!(nmse(&[f32::NAN, 2.0], &[1.0, 2.0]).is_nan());
    }

    #[test]
    fn an_argmax_counts_where_the_reference_is_sure() {
        let expected = [0.0, 1.0, 0.95, 0.0, 2.0, 1.0];
        assert_eq!(argmax_disagreement(&[0.0, 1.0, 1.1, 0.0, 2.0, 1.0], &expected, 3, 0.1), None);
        assert_eq!(argmax_disagreement(&[0.0, 1.0, 1.1, 0.0, 2.0, 2.1], &expected, 3, 0.1), Some(1));
        assert_eq!(argmax_disagreement(&[1.1, 1.0, 0.9, 0.0, 2.0, 1.0], &expected, 3, 0.01), Some(0));
    }
}
