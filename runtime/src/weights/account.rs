//! Every tensor accounted for: what a model needs against what a checkpoint has.

use super::Checkpoint;
use anyhow::{Result, bail};
use std::collections::{BTreeMap, BTreeSet};

/// Problems listed before "and N more".
const LISTED: usize = 8;

impl Checkpoint {
    /// Checks that the checkpoint holds every required tensor in its shape, and nothing else.
    ///
    /// Left-over tensors are fine where `ignorable` says so, where they are buffers that older files carry (`rotary_emb.inv_freq`, `attn.masked_bias`), or
    /// where they are the `lm_head.weight` of a model whose config ties it to the embedding. All that is wrong comes in one error: missing tensors with
    /// the left-over name that they may be, wrong shapes with both shapes, and the rest of the left-overs; at most 8 lines and a count.
    pub fn account(&self, required: &[(String, Vec<usize>)], ignorable: impl Fn(&str) -> bool) -> Result<()> {
        let required: BTreeMap<&str, &[usize]> =
            required.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
        let tied = self.config.get("tie_word_embeddings").and_then(|tied| tied.as_bool()).unwrap_or(false);
        let harmless = |name: &str| {
            name.ends_with("rotary_emb.inv_freq")
                || name.ends_with("attn.masked_bias")
                || (tied && name == "lm_head.weight")
                || ignorable(name)
        };
        let mut unexpected: BTreeSet<&str> =
            self.names().filter(|name| !required.contains_key(name) && !harmless(name)).collect();

        let (mut missing, mut misshapen) = (Vec::new(), Vec::new());
        for (&name, &shape) in &required {
            match self.tensors.get(name) {
                None => missing.push((name, shape)),
                Some(tensor) if tensor.shape != shape => {
                    misshapen.push(format!("wrong shape: {name} is {:?} and the model needs {shape:?}", tensor.shape));
                }
                Some(_) => {}
            }
        }
        if missing.is_empty() && misshapen.is_empty() && unexpected.is_empty() {
            return Ok(());
        }

        let kinds = [missing.len(), misshapen.len(), unexpected.len()].iter().filter(|&&length| length > 0).count();
        let each = LISTED / kinds;
        let mut lines = Vec::new();
        for &(name, shape) in missing.iter().take(each) {
            let near = nearest(name, unexpected.iter().copied());
            lines.push(format!(
                "missing: {name} {shape:?}{}",
                near.map_or(String::new(), |near| format!(" (the checkpoint has {near}: did you mean that?)"))
            ));
            if let Some(near) = near {
                unexpected.remove(near);
            }
        }
        let count = missing.len() + misshapen.len() + unexpected.len();
        lines.extend(misshapen.into_iter().take(each));
        lines.extend(
            unexpected.iter().take(each).map(|name| format!("unexpected: {name} {:?}", self.tensors[*name].shape)),
        );
        if count > lines.len() {
            lines.push(format!("and {} more", count - lines.len()));
        }
        bail!("{}: its tensors are not those of the model\n  {}", self.origin, lines.join("\n  "));
    }
}

/// The candidate with the fewest edits from `name`, the first of equals, where at most a quarter of it needs editing.
pub(super) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (name.len() / 4).max(2);
    let close = candidates.filter(|candidate| candidate.len().abs_diff(name.len()) <= allowed);
    close
        .map(|candidate| (edits(name, candidate), candidate))
        .filter(|(edits, _)| *edits <= allowed)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, near)| near)
}

/// Levenshtein distance in bytes.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let kept = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = kept.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn checkpoint(tensors: &[(&str, &[usize])]) -> Checkpoint {
        let shapes: Vec<_> = tensors.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect();
        Checkpoint::dummy(json!({ "tie_word_embeddings": true }), &shapes, 1)
    }

    fn required(tensors: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
        tensors.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect()
    }

    #[test]
    fn a_whole_checkpoint_passes_with_its_harmless_extras() {
        let checkpoint = checkpoint(&[
            ("a", &[2]),
            ("lm_head.weight", &[3, 2]),
            ("model.layers.0.self_attn.rotary_emb.inv_freq", &[4]),
            ("extra", &[1]),
        ]);
        checkpoint.account(&required(&[("a", &[2])]), |name| name == "extra").unwrap();
        assert!(checkpoint.account(&required(&[("a", &[2])]), |_| false).is_err());
    }

    #[test]
    fn all_that_is_wrong_comes_at_once() {
        let checkpoint = checkpoint(&[
            ("model.layers.0.mlp.up_proj.weight", &[8, 4]),
            ("model.layers.0.self_attn.q_proj.weight", &[4, 4]),
            ("model.layers.0.self_attn.q_proj.bias", &[4]),
        ]);
        let needs = required(&[
            ("model.layers.0.mlp.up_proj.weight", &[4, 8]),
            ("model.layers.0.self_attn.q_prj.weight", &[4, 4]),
            ("model.norm.weight", &[4]),
        ]);
        let message = checkpoint.account(&needs, |_| false).unwrap_err().to_string();
        assert_eq!(
            message,
            "the made-up checkpoint: its tensors are not those of the model\n  \
             missing: model.layers.0.self_attn.q_prj.weight [4, 4] (the checkpoint has model.layers.0.self_attn.q_proj.weight: did you mean that?)\n  \
             missing: model.norm.weight [4]\n  \
             wrong shape: model.layers.0.mlp.up_proj.weight is [8, 4] and the model needs [4, 8]\n  \
             unexpected: model.layers.0.self_attn.q_proj.bias [4]"
        );
    }

    #[test]
    fn long_lists_end_in_a_count() {
        let needs: Vec<_> = (0..20).map(|index| (format!("weight.{index:02}"), vec![1])).collect();
        let message = checkpoint(&[]).account(&needs, |_| false).unwrap_err().to_string();
        assert_eq!(message.lines().count(), 1 + LISTED + 1);
        assert!(message.ends_with("missing: weight.07 [1]\n  and 12 more"), "{message}");
    }

    #[test]
    fn distances_count_edits() {
        assert_eq!((edits("kitten", "sitting"), edits("", "abc"), edits("same", "same")), (3, 3, 0));
        assert_eq!(
            nearest("model.norm.weigth", ["lm_head.weight", "model.norm.weight"].into_iter()),
            Some("model.norm.weight")
        );
        assert_eq!(nearest("model.norm.weight", ["visual.patch"].into_iter()), None);
    }
}
