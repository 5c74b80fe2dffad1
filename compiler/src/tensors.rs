//! A checkpoint's tensors against those that a model reads: names and shapes, no values.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use anyhow::{Result, bail};

use crate::description::{Code, Diagnostic, Diagnostics, QUANTISED_INSTEAD, Resolved, Span, Spare, quantised_tensor};
use crate::ir::{Graph, Op, Part, Results, WeightRef};
use crate::text::closest;

/// Problems listed before "and N more".
const LISTED: usize = 8;

/// Each weight that a graph reads and its shape (slowest dimension first), in the graph's order.
pub fn required(graph: &Graph) -> Vec<(WeightRef, Vec<usize>)> {
    let weight = |node: &_| match graph.op(*node) {
        Op::Weight(name) => Some((name.clone(), graph.type_of(node.result(0)).fixed_sizes().collect())),
        _ => None,
    };
    graph.ordered().iter().filter_map(weight).collect()
}

/// The names of the checkpoint's tensors that weights are read from, sorted.
pub fn names(required: &[(WeightRef, Vec<usize>)]) -> BTreeSet<String> {
    required.iter().flat_map(|(weight, _)| weight.tensors()).collect()
}

/// What a whole checkpoint holds for a description: each weight found, each tensor accounted for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounting {
    /// Tensors that one operation reads.
    pub once: usize,
    /// Tensors that several operations read, such as a tied head.
    pub shared: Vec<String>,
    /// Tensors that no operation needs and that carry nothing: see [`account`].
    pub ignored: Vec<String>,
    /// Tensors of other parts of the model than its language model, by their own names.
    pub others: Vec<String>,
}

/// Checks that the tensors `found` in `checkpoint` (what messages call it) are those that a description reads, in name and shape, both ways.
/// `graph` is what `resolved` lowers to. Errors stand on the line that names the weight; for what may be left over see [`account`].
///
/// # Errors
/// Each weight that is missing, with the left-over tensor that may be meant; each with another shape; all tensors that nothing reads.
pub fn reconcile(
    checkpoint: &str,
    found: &BTreeMap<&str, &[usize]>,
    resolved: &Resolved,
    graph: &Graph,
) -> Result<Accounting, Diagnostics> {
    let Needed { tensors: required, unread } = needed(found, &required(graph));
    let needed: BTreeSet<&str> = required.iter().map(|(name, _)| name.as_str()).collect();
    let spare = resolved.facts.spare();
    let unneeded = |name: &&str| !needed.contains(name) && !harmless(name, found[name], &spare);
    let mut left: BTreeSet<&str> = found.keys().copied().filter(unneeded).collect();
    let mut diagnostics = Diagnostics::new(resolved.source.clone());
    if let Some(message) = quantised(checkpoint, &left) {
        diagnostics.push(Diagnostic::new(Code::UnusedTensor, message).help(QUANTISED_INSTEAD));
        return Err(diagnostics);
    }
    for weight in unmatched(&required, found, resolved) {
        diagnostics.push(weight.diagnostic(checkpoint, found, &mut left));
    }
    // The parts of a tensor that is missing or misshapen say nothing more.
    if diagnostics.is_empty() {
        for (tensor, what) in unread {
            let message = format!("{checkpoint}: `{tensor}` is read in part: {what}");
            let diagnostic = Diagnostic::new(Code::UnusedTensor, message);
            diagnostics.push(match place(resolved, &tensor) {
                Some(span) => diagnostic.at(span, "the first part that is read"),
                None => diagnostic,
            });
        }
    }
    let uses = uses(resolved);
    if !left.is_empty() {
        diagnostics.push(unused(checkpoint, &left, found, &uses, resolved));
    }
    diagnostics.sort();
    let shared = |name: &&str| uses.get(*name).is_some_and(|lines| lines.len() > 1);
    let ignored = |name: &&&str| !needed.contains(**name);
    let accounting = Accounting {
        once: needed.iter().filter(|name| !shared(name)).count(),
        shared: needed.iter().filter(|name| shared(name)).map(|name| name.to_string()).collect(),
        ignored: found.keys().filter(ignored).map(|name| name.to_string()).collect(),
        others: Vec::new(),
    };
    diagnostics.into_result(accounting)
}

/// Says so where tensors that nothing reads are those of a quantised checkpoint.
fn quantised(checkpoint: &str, left: &BTreeSet<&str>) -> Option<String> {
    let (name, how) = left.iter().find_map(|name| Some((name, quantised_tensor(name)?)))?;
    Some(format!("{checkpoint} holds quantised weights ({how}: `{name}`), which nothing here reads"))
}

/// The weights of one line of a description that a checkpoint lacks or has in another shape.
struct Unmatched<'a> {
    span: Span,
    /// The first one's name and shape.
    name: &'a str,
    shape: &'a [usize],
    /// How many more the line names, in other layers.
    more: usize,
    missing: bool,
}

impl Unmatched<'_> {
    fn diagnostic(&self, checkpoint: &str, found: &BTreeMap<&str, &[usize]>, left: &mut BTreeSet<&str>) -> Diagnostic {
        let Unmatched { name, shape, .. } = self;
        let more = match self.more {
            0 => String::new(),
            1 => "; the same in 1 more layer".to_owned(),
            more => format!("; the same in {more} more layers"),
        };
        if !self.missing {
            let stored = found[name];
            let message = format!("`{name}` is {stored:?} in {checkpoint}, and the description makes it {shape:?}");
            let mut diagnostic =
                Diagnostic::new(Code::TensorShape, message).at(self.span.clone(), format!("{shape:?}{more}"));
            diagnostic =
                diagnostic.note(format!("the checkpoint has {}, this line needs {}", words(stored), words(shape)));
            let turned: Vec<usize> = stored.iter().rev().copied().collect();
            return match shape.len() == 2 && turned == *shape && turned != stored {
                true => diagnostic.hint("`transposed = true` reads a weight that is stored `[in, out]`"),
                false => diagnostic,
            };
        }
        let message = format!("{checkpoint} has no tensor `{name}`");
        let diagnostic =
            Diagnostic::new(Code::MissingTensor, message).at(self.span.clone(), format!("{shape:?}{more}"));
        let Some(near) = meant(name, shape, left, found) else {
            return diagnostic
                .hint("where some checkpoints lack it, choose it by a configuration key: `{ if = …, then = … }`");
        };
        left.retain(|other| pattern(other) != pattern(near));
        diagnostic.hint(format!("did you mean `{near}`? nothing else reads it"))
    }
}

/// What is wrong with the required weights, one entry a place and kind, in the order of the graph.
fn unmatched<'a>(
    required: &'a [(String, Vec<usize>)],
    found: &BTreeMap<&str, &[usize]>,
    resolved: &Resolved,
) -> Vec<Unmatched<'a>> {
    let mut list: Vec<Unmatched<'a>> = Vec::new();
    for (name, shape) in required {
        let missing = match found.get(name.as_str()) {
            Some(stored) if *stored == shape => continue,
            stored => stored.is_none(),
        };
        let span = place(resolved, name).unwrap_or(0..0);
        match list.iter_mut().find(|other| other.span == span && other.missing == missing) {
            Some(other) => other.more += 1,
            None => list.push(Unmatched { span, name, shape, more: 0, missing }),
        }
    }
    list
}

/// Where the description names a tensor.
fn place(resolved: &Resolved, tensor: &str) -> Option<Span> {
    let calls = resolved.calls.iter();
    let mut named = calls.flat_map(|call| call.weights.iter().map(move |(role, name)| (call, role, name)));
    let (call, role, _) = named.find(|(_, _, name)| {
        // A checkpoint that was saved without its head lacks the first component.
        stands_for(name, tensor) || name.split_once('.').is_some_and(|(_, rest)| stands_for(rest, tensor))
    })?;
    call.weight_spans.get(role).cloned()
}

/// Whether a weight's name in a call stands for a tensor; what is in braces stands for any number.
fn stands_for(name: &str, tensor: &str) -> bool {
    match (name.split_once('{'), name.split_once('}')) {
        (Some((before, _)), Some((_, after))) => tensor.strip_prefix(before).is_some_and(|rest| {
            let digits = rest.len() - rest.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
            digits > 0 && stands_for(after, &rest[digits..])
        }),
        _ => name == tensor,
    }
}

/// The places that read each tensor whole, by its name in the calls.
fn uses(resolved: &Resolved) -> BTreeMap<&str, BTreeSet<usize>> {
    let mut uses: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for call in &resolved.calls {
        let parts = ["part", "gate_part", "up_part"].iter().any(|part| call.part(part).is_some());
        for (role, name) in call.weights.iter().filter(|_| !parts) {
            uses.entry(name)
                .or_default()
                .insert(call.weight_spans.get(role).map_or(call.span.start, |span| span.start));
        }
    }
    uses
}

fn unused(
    checkpoint: &str,
    left: &BTreeSet<&str>,
    found: &BTreeMap<&str, &[usize]>,
    uses: &BTreeMap<&str, BTreeSet<usize>>,
    resolved: &Resolved,
) -> Diagnostic {
    let message = match left.len() {
        1 => format!("nothing reads 1 tensor of {checkpoint}"),
        count => format!("nothing reads {count} tensors of {checkpoint}"),
    };
    let mut diagnostic = Diagnostic::new(Code::UnusedTensor, message);
    let mut patterns: Vec<(String, &str, usize)> = Vec::new();
    for name in left {
        let pattern = pattern(name);
        match patterns.iter_mut().find(|(known, _, _)| *known == pattern) {
            Some((_, _, count)) => *count += 1,
            None => patterns.push((pattern, name, 1)),
        }
    }
    for (pattern, name, count) in patterns.iter().take(LISTED) {
        let shown = if *count == 1 { name } else { pattern.as_str() };
        let times = if *count == 1 { String::new() } else { format!(", {count} of them") };
        diagnostic = diagnostic.note(format!("{shown} {:?}{times}", found[name]));
    }
    if patterns.len() > LISTED {
        diagnostic = diagnostic.note(format!("and {} more", patterns.len() - LISTED));
    }
    // A line that was copied and not changed reads its neighbour's weight.
    let text = &resolved.source.text;
    let line = |start: &usize| (text[..*start].matches('\n').count() + 1).to_string();
    for (name, starts) in uses.iter().filter(|(name, starts)| starts.len() > 1 && !name.contains("embed")).take(1) {
        let lines: Vec<String> = starts.iter().map(line).collect();
        diagnostic = diagnostic
            .hint(format!("lines {} read the same tensor, `{name}`: is one of them meant?", lines.join(" and ")));
    }
    diagnostic.hint("let the description read them: each tensor of a checkpoint changes what the model computes")
}

/// The left-over tensor that a missing one may be: of the same shape and under another prefix, or with a slip in its name.
fn meant<'a>(
    name: &str,
    shape: &[usize],
    left: &BTreeSet<&'a str>,
    found: &BTreeMap<&str, &[usize]>,
) -> Option<&'a str> {
    let alike = || left.iter().copied().filter(|other| found[other] == shape);
    let below = |whole: &str, part: &str| whole.strip_suffix(part).is_some_and(|before| before.ends_with('.'));
    let prefixed = alike().find(|other| below(other, name) || below(name, other));
    prefixed.or_else(|| closest(name, alike())).or_else(|| closest(name, left.iter().copied()))
}

/// A tensor's name with each number in it as `{}`.
fn pattern(name: &str) -> String {
    let part =
        |part: &str| if part.bytes().all(|byte| byte.is_ascii_digit()) { "{}".to_owned() } else { part.to_owned() };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

/// A weight's shape in words.
fn words(shape: &[usize]) -> String {
    match shape {
        [size] => format!("{size} values"),
        [rows, columns] => format!("{rows} rows of {columns}"),
        other => format!("the shape {other:?}"),
    }
}

/// What a checkpoint may hold and no operation needs: buffers that older files carry, and what is `spare`.
pub fn harmless(name: &str, shape: &[usize], spare: &Spare) -> bool {
    let mask =
        matches!(shape, [1, 1, rows, columns] if rows == columns) && MASKS.iter().any(|mask| name.ends_with(mask));
    let further = layer_of(name).is_some_and(|layer| spare.layers.contains(&layer));
    mask || further || is_buffer(name) || (spare.tied_head && name == HEAD)
}

/// Whether files may lack a tensor of this name though their index lists it: a buffer, the copy of a tied head, or a layer after the model's `layers`. If
/// the model needs it after all, it is missed when its weights are matched.
pub fn may_be_dropped(name: &str, layers: Option<usize>) -> bool {
    let further = layer_of(name).zip(layers).is_some_and(|(layer, layers)| layer >= layers);
    let mask = MASKS.iter().any(|mask| name.ends_with(mask));
    mask || further || is_buffer(name) || name == HEAD
}

const HEAD: &str = "lm_head.weight";

/// What the names of causal masks end with, which older files carry.
const MASKS: &[&str] = &["attn.bias", "attention.bias", "attn.causal_mask"];

fn is_buffer(name: &str) -> bool {
    name.ends_with("inv_freq") || name.ends_with(".masked_bias")
}

fn layer_of(name: &str) -> Option<usize> {
    name.split_once("layers.").and_then(|(_, rest)| rest.split('.').next()?.parse().ok())
}

/// Checks that the tensors `found` in `checkpoint` (what messages call it) are the `required` ones, in name and shape, both ways.
///
/// Left over may be buffers that older files carry (`inv_freq`, `masked_bias`, a causal mask) and what is `spare`.
/// Names may lack their first component; see [`locate`].
///
/// # Errors
/// All that is wrong at once: what is missing, with the left-over name that may be meant; both shapes where they differ; what is left over.
/// Eight lines at most, with some of each kind, and a count of the rest.
pub fn account(
    checkpoint: &str,
    found: &BTreeMap<&str, &[usize]>,
    required: &[(WeightRef, Vec<usize>)],
    spare: &Spare,
) -> Result<()> {
    let Needed { tensors, unread } = needed(found, required);
    let needed: BTreeSet<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
    let mut left: BTreeSet<&str> =
        found.keys().copied().filter(|name| !needed.contains(name) && !harmless(name, found[name], spare)).collect();
    if let Some(message) = quantised(checkpoint, &left) {
        bail!("{message}: {QUANTISED_INSTEAD}");
    }
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
    misshapen.extend(unread.into_iter().map(|(tensor, what)| format!("read in part: {tensor}: {what}")));
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

/// The tensors of a checkpoint without those that are `idle`: they carry nothing, and may be there though no weight is read from them.
pub fn without_idle<'a>(
    mut found: BTreeMap<&'a str, &'a [usize]>,
    idle: &BTreeSet<String>,
    required: &[(WeightRef, Vec<usize>)],
) -> BTreeMap<&'a str, &'a [usize]> {
    let needed: BTreeSet<String> = names(required).iter().map(|name| locate(name, &found).to_owned()).collect();
    found.retain(|name, _| !idle.contains(*name) || needed.contains(*name));
    found
}

/// The tensors that weights are read from.
struct Needed {
    /// Names and shapes, in the order in which weights name them first.
    tensors: Vec<(String, Vec<usize>)>,
    /// Each tensor of which no weight reads some part, and which.
    unread: Vec<(String, String)>,
}

fn needed(found: &BTreeMap<&str, &[usize]>, required: &[(WeightRef, Vec<usize>)]) -> Needed {
    let mut tensors: Vec<(String, Vec<usize>)> = Vec::new();
    let mut parts: BTreeMap<String, Vec<Part>> = BTreeMap::new();
    for (weight, shape) in required {
        for tensor in weight.tensors() {
            let tensor = locate(&tensor, found).to_owned();
            let shape = weight.tensor_shape(shape).unwrap_or_else(|| shape.clone());
            if !parts.contains_key(&tensor) {
                tensors.push((tensor.clone(), shape));
            }
            parts.entry(tensor).or_default().extend(weight.part);
        }
    }
    let unread = parts.into_iter().filter_map(|(tensor, mut parts)| {
        // A single part is meant to be all that is read.
        if parts.len() < 2 {
            return None;
        }
        parts.sort_by_key(|part| part.first);
        let step = parts.first()?.step;
        let mut end = 0;
        for part in parts {
            if part.first > end {
                break;
            }
            end = end.max(part.first + part.size);
        }
        (end < step).then(|| (tensor, format!("nothing reads place {end} of every {step}")))
    });
    Needed { unread: unread.collect(), tensors }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(found: &[(&str, &[usize])], needed: &[(&str, &[usize])], tied: bool) -> Option<String> {
        let needed: Vec<_> = needed.iter().map(|(name, shape)| ((*name).into(), shape.to_vec())).collect();
        let spare = Spare { tied_head: tied, layers: 2..3 };
        account("here", &found.iter().copied().collect(), &needed, &spare).err().map(|error| error.to_string())
    }

    #[test]
    fn a_whole_checkpoint_passes_with_its_harmless_extras() {
        let found: &[(&str, &[usize])] = &[
            ("a", &[2]),
            ("lm_head.weight", &[3, 2]),
            ("layers.2.eh_proj.weight", &[2]),
            ("rotary_emb.inv_freq", &[4]),
        ];
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
    fn a_quantised_checkpoint_is_called_one() {
        let found: &[(&str, &[usize])] = &[("q_proj.qweight", &[4, 1]), ("q_proj.scales", &[1, 4])];
        let said = "here holds quantised weights (GPTQ or AWQ: `q_proj.qweight`), which nothing here reads: get the model in bf16, or as a GGUF file";
        assert_eq!(message(found, &[("q_proj.weight", &[4, 4])], false).as_deref(), Some(said));
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
