//! A checkpoint's tensors against those that a model reads: names and shapes, no values.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use anyhow::{Result, bail};

use crate::ir::{Graph, Op, Part, Results, WeightName};
use crate::text::closest;

/// Problems listed before "and N more".
const LISTED: usize = 8;

/// Name and shape (slowest dimension first) of each weight that a graph reads, in the graph's order. A name is a [`WeightName`]: a tensor of the
/// checkpoint, a part of one, or several as one.
pub fn required(graph: &Graph) -> Vec<(String, Vec<usize>)> {
    let weight = |node: &_| match graph.op(*node) {
        Op::Weight(name) => Some((name.clone(), graph.type_of(node.result(0)).fixed_sizes().collect())),
        _ => None,
    };
    graph.ordered().iter().filter_map(weight).collect()
}

/// The names of the checkpoint's tensors that weights are read from, sorted.
pub fn names(required: &[(String, Vec<usize>)]) -> BTreeSet<String> {
    required.iter().flat_map(|(name, _)| WeightName::parse(name).tensors()).collect()
}

/// Checks that the tensors `found` in `checkpoint` (what messages call it) are the `required` ones, in name and shape, both ways.
///
/// Left over may be buffers that older files carry (`rotary_emb.inv_freq`, `attn.masked_bias`, the mask `attn.bias`) and the copy of a `tied` head.
/// Names may lack their first component; see [`locate`].
///
/// # Errors
/// All that is wrong at once: what is missing, with the left-over name that may be meant; both shapes where they differ; what is left over.
/// Eight lines at most, with some of each kind, and a count of the rest.
pub fn account(
    checkpoint: &str,
    found: &BTreeMap<&str, &[usize]>,
    required: &[(String, Vec<usize>)],
    tied: bool,
) -> Result<()> {
    let Needed { tensors, unread } = needed(found, required);
    let needed: BTreeSet<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
    let harmless = |name: &str| {
        // A bias has one axis; GPT-2 and GPT-NeoX have a triangle of ones under such a name, [1, 1, context, context].
        let mask = || found[name].len() == 4 && [".attn.bias", ".attention.bias"].iter().any(|end| name.ends_with(end));
        name.ends_with("rotary_emb.inv_freq")
            || name.ends_with(".masked_bias")
            || mask()
            || (tied && name == "lm_head.weight")
    };
    let mut left: BTreeSet<&str> =
        found.keys().copied().filter(|name| !needed.contains(name) && !harmless(name)).collect();
    let (mut missing, mut misshapen) = (Vec::new(), Vec::new());
    for (name, shape) in &tensors {
        match found.get(name.as_str()) {
            None => missing.push((name, shape)),
            Some(other) if other != shape => {
                misshapen.push(format!("wrong shape: {name} is {other:?} and the model needs {shape:?}"));
            }
            Some(_) => {}
        }
    }
    misshapen.extend(unread);
    let kinds = [missing.len(), misshapen.len(), left.len()].iter().filter(|&&count| count > 0).count();
    if kinds == 0 {
        return Ok(());
    }
    let (each, mut rest) = (LISTED / kinds, missing.len() + misshapen.len());
    let mut lines = Vec::new();
    for (name, shape) in missing.into_iter().take(each) {
        let near = closest(name, left.iter().copied());
        let hint = near.map_or(String::new(), |near| format!(" (the checkpoint has {near}: did you mean that?)"));
        lines.push(format!("missing: {name} {shape:?}{hint}"));
        near.map(|near| left.remove(near));
    }
    lines.extend(misshapen.into_iter().take(each));
    rest += left.len();
    lines.extend(left.into_iter().take(each).map(|name| format!("unexpected: {name} {:?}", found[name])));
    if rest > lines.len() {
        lines.push(format!("and {} more", rest - lines.len()));
    }
    bail!("{checkpoint}: its tensors are not those of the model\n  {}", lines.join("\n  "))
}

/// The name under which a checkpoint has a tensor. One that was saved without the head that the language model adds lacks the first component
/// (`transformer.h.0.ln_1.weight` is `h.0.ln_1.weight`): it is left out where no tensor begins with it.
pub fn locate<'n, T>(name: &'n str, found: &BTreeMap<impl Borrow<str> + Ord, T>) -> &'n str {
    let Some((first, rest)) = name.split_once('.') else { return name };
    let whole = &name[..first.len() + 1];
    let from = (Bound::Included(whole), Bound::Unbounded);
    let begins = found.range::<str, _>(from).next().is_some_and(|(known, _)| known.borrow().starts_with(whole));
    if !begins && found.contains_key(rest) { rest } else { name }
}

/// The tensors that weights are read from.
struct Needed {
    /// Names and shapes, in the order in which weights name them first.
    tensors: Vec<(String, Vec<usize>)>,
    /// A line for each tensor of which no weight reads some part.
    unread: Vec<String>,
}

fn needed(found: &BTreeMap<&str, &[usize]>, required: &[(String, Vec<usize>)]) -> Needed {
    let mut tensors: Vec<(String, Vec<usize>)> = Vec::new();
    let mut parts: BTreeMap<String, Vec<Part>> = BTreeMap::new();
    for (name, shape) in required {
        // What is found under its whole name is a tensor, however it is written.
        let weight = match found.contains_key(name.as_str()) {
            true => WeightName::of(name, None, None),
            false => WeightName::parse(name),
        };
        for tensor in weight.tensors() {
            let tensor = locate(&tensor, found).to_owned();
            let shape = weight.tensor_shape(shape).unwrap_or_else(|| shape.clone());
            if !parts.contains_key(&tensor) {
                tensors.push((tensor.clone(), shape));
            }
            parts.entry(tensor).or_default().extend(weight.part());
        }
    }
    let unread = parts.into_iter().filter_map(|(tensor, mut parts)| {
        // A single part is meant to be all that is read.
        if parts.len() < 2 {
            return None;
        }
        parts.sort();
        let step = parts.first()?.step;
        let mut end = 0;
        for part in parts {
            if part.first > end {
                break;
            }
            end = end.max(part.first + part.size);
        }
        (end < step).then(|| format!("read in part: {tensor}: nothing reads place {end} of every {step}"))
    });
    Needed { unread: unread.collect(), tensors }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(found: &[(&str, &[usize])], needed: &[(&str, &[usize])], tied: bool) -> Option<String> {
        let needed: Vec<_> = needed.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect();
        account("here", &found.iter().copied().collect(), &needed, tied).err().map(|error| error.to_string())
    }

    #[test]
    fn a_whole_checkpoint_passes_with_its_harmless_extras() {
        let found: &[(&str, &[usize])] =
            &[("a", &[2]), ("lm_head.weight", &[3, 2]), ("self_attn.rotary_emb.inv_freq", &[4])];
        assert_eq!(message(found, &[("a", &[2])], true), None);
        let said = "here: its tensors are not those of the model\n  unexpected: lm_head.weight [3, 2]";
        assert_eq!(message(found, &[("a", &[2])], false).as_deref(), Some(said));
    }

    #[test]
    fn all_that_is_wrong_comes_at_once() {
        let found: &[(&str, &[usize])] =
            &[("mlp.up_proj.weight", &[8, 4]), ("q_proj.bias", &[4]), ("q_proj.weight", &[4, 4])];
        let needed: &[(&str, &[usize])] = &[("mlp.up_proj.weight", &[4, 8]), ("q_prj.weight", &[4, 4]), ("norm", &[4])];
        let said = "here: its tensors are not those of the model\n  \
             missing: q_prj.weight [4, 4] (the checkpoint has q_proj.weight: did you mean that?)\n  \
             missing: norm [4]\n  \
             wrong shape: mlp.up_proj.weight is [8, 4] and the model needs [4, 8]\n  \
             unexpected: q_proj.bias [4]";
        assert_eq!(message(found, needed, false).as_deref(), Some(said));
    }

    #[test]
    fn a_checkpoint_without_its_head_and_with_its_masks_passes() {
        let needed: &[(&str, &[usize])] =
            &[("transformer.h.0.attn.w[0..2 of 2]", &[2, 4]), ("transformer.wte", &[3, 4])];
        let bare: &[(&str, &[usize])] = &[
            ("h.0.attn.bias", &[1, 1, 8, 8]),
            ("h.0.attn.masked_bias", &[]),
            ("h.0.attn.w", &[2, 4]),
            ("wte", &[3, 4]),
        ];
        assert_eq!(message(bare, needed, false), None);
        // A first component that some tensor has stays, and a bias of one axis is a bias.
        let half: &[(&str, &[usize])] =
            &[("h.0.attn.bias", &[8]), ("h.0.attn.w", &[2, 4]), ("transformer.wte", &[3, 4])];
        let said = "here: its tensors are not those of the model\n  \
             missing: transformer.h.0.attn.w [2, 4]\n  \
             unexpected: h.0.attn.bias [8]\n  unexpected: h.0.attn.w [2, 4]";
        assert_eq!(message(half, needed, false).as_deref(), Some(said));
    }

    #[test]
    fn parts_make_a_whole() {
        let found: &[(&str, &[usize])] = &[("qkv", &[24, 4]), ("e.0.w", &[2, 4]), ("e.1.w", &[2, 4])];
        let q: (&str, &[usize]) = ("qkv[0..8 of 24]", &[8, 4]);
        let kv: (&str, &[usize]) = ("qkv[8..24 of 24]", &[16, 4]);
        let experts: (&str, &[usize]) = ("e.{0..2}.w", &[2, 2, 4]);
        assert_eq!(message(found, &[q, kv, experts], false), None);
        let v: (&str, &[usize]) = ("qkv[16..24 of 24]", &[8, 4]);
        let said = "here: its tensors are not those of the model\n  \
             read in part: qkv: nothing reads place 8 of every 24\n  \
             unexpected: e.0.w [2, 4]\n  unexpected: e.1.w [2, 4]";
        assert_eq!(message(found, &[q, v], false).as_deref(), Some(said));
        assert_eq!(message(found, &[v, experts], false), None);
        let said = "here: its tensors are not those of the model\n  missing: e.2.w [2, 4]\n  \
             wrong shape: qkv is [24, 4] and the model needs [12, 4]";
        let wrong: &[(&str, &[usize])] = &[("qkv[0..12 of 12]", &[12, 4]), ("e.{0..3}.w", &[3, 2, 4])];
        assert_eq!(message(found, wrong, false).as_deref(), Some(said));
    }

    #[test]
    fn long_lists_end_in_a_count() {
        let names: Vec<String> = (0..20).map(|index| format!("weight.{index:02}")).collect();
        let needed: Vec<(&str, &[usize])> = names.iter().map(|name| (name.as_str(), &[1][..])).collect();
        let said = message(&[], &needed, false).expect("all are missing");
        assert_eq!(said.lines().count(), 1 + LISTED + 1);
        assert!(said.ends_with("missing: weight.07 [1]\n  and 12 more"), "{said}");
    }
}
