//! Finds the first value in which a model differs from what another implementation computed: the description, operation by operation, in the reference
//! interpreter.

mod expected;
mod names;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, anyhow, ensure};
use fusec::compile::Model;
use fusec::description::{Code, Diagnostic, Diagnostics};
use fusec::ir::{Format, Interpreter, Tensor, WeightRef};
use fusec::lower::lower_traced;

pub use expected::{Expected, Named};

use crate::sampling::check_logits;
use crate::weights::Checkpoint;
use names::{Index, Target};

/// How two values compare.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Normalised mean squared error: sum((found - expected)²) / sum(expected²). Not a number where one of them has such a value.
    pub nmse: f64,
    /// Where the two differ most: token, and element of its row.
    pub at: (usize, usize),
    /// The value found there.
    pub found: f32,
    /// The value expected there.
    pub expected: f32,
    /// Tokens whose row is beyond the bound by itself.
    pub tokens: Vec<usize>,
}

/// What comparing all values of a file has shown.
#[derive(Clone, Debug)]
pub struct Findings {
    /// Names of values that agree, in the graph's order, each with its error.
    pub agree: Vec<(String, f64)>,
    /// Names that stand for no value of the description, or for one of another size.
    pub unmatched: Vec<String>,
    /// The first value that differs, on its line of the description.
    pub difference: Option<Diagnostics>,
    /// The interpreter's logits, `[tokens, vocabulary]`.
    pub logits: Vec<f32>,
}

/// Compares rows of `row` values. `bound` is the NMSE from which a row of a token counts as another.
pub fn compare(found: &[f32], expected: &[f32], row: usize, bound: f64) -> Comparison {
    let far = |at: usize| f64::from(found[at]) - f64::from(expected[at]);
    let error = |range: std::ops::Range<usize>| {
        let sum: f64 = range.clone().map(|at| far(at).powi(2)).sum();
        let size: f64 = range.map(|at| f64::from(expected[at]).powi(2)).sum();
        if sum == 0.0 { 0.0 } else { sum / size }
    };
    // A value that is not a number is the farthest of all.
    let distance = |at: usize| if far(at).is_nan() { f64::INFINITY } else { far(at).abs() };
    let most = (0..found.len()).fold(0, |most, at| if distance(at) > distance(most) { at } else { most });
    let beyond = |error: f64| error.is_nan() || error > bound;
    let rows = found.len() / row.max(1);
    Comparison {
        nmse: error(0..found.len()),
        at: (most / row.max(1), most % row.max(1)),
        found: found.get(most).copied().unwrap_or_default(),
        expected: expected.get(most).copied().unwrap_or_default(),
        tokens: (0..rows).filter(|token| beyond(error(token * row..(token + 1) * row))).collect(),
    }
}

impl Comparison {
    /// Whether the two are the same but for rounding.
    pub fn agrees(&self, bound: f64) -> bool {
        self.nmse <= bound
    }
}

/// A value of the file with the call that computes it.
struct Pair<'a> {
    named: &'a Named,
    target: Target,
}

/// Runs the description in the interpreter, in fp32, and compares what the file holds, in the graph's order.
///
/// # Errors
/// A description that has no graph, weights that cannot be read, tokens outside the vocabulary.
pub fn values(model: &Model, checkpoint: &Checkpoint, expected: &Expected, bound: f64) -> Result<Findings> {
    let resolved = &model.resolved;
    let rows = expected.tokens.len();
    let (mut graph, trace) =
        lower_traced(resolved, &|_| Format::BF16, Some(rows)).map_err(|diagnostics| anyhow!("{diagnostics}"))?;
    let index = Index::of(resolved);
    let mut pairs: Vec<Pair<'_>> = Vec::new();
    let mut unmatched = Vec::new();
    for named in &expected.values {
        let targets = index.targets(&named.name);
        if targets.is_empty() {
            unmatched.push(named.name.clone());
        }
        pairs.extend(targets.into_iter().map(|target| Pair { named, target }));
    }
    pairs.sort_by(|a, b| (a.target.call, &a.named.name).cmp(&(b.target.call, &b.named.name)));
    let before = graph.outputs.len();
    let calls = pairs.iter().flat_map(|pair| [Some(pair.target.call), pair.target.or]).flatten();
    let wanted: Vec<usize> = calls.collect::<BTreeSet<_>>().into_iter().collect();
    graph.outputs.extend(wanted.iter().map(|call| trace[*call]));
    let weight = |weight: &WeightRef| Ok(Tensor::new(checkpoint.shape(weight)?, checkpoint.read_f32(weight)?));
    let mut interpreter = Interpreter::new(&graph, weight, rows)?;
    let tokens: Vec<i32> = expected.tokens.iter().map(|&token| token as i32).collect();
    let positions: Vec<i32> = (0..rows as i32).collect();
    let outputs = interpreter.run(&tokens, &positions)?;
    let computed: BTreeMap<usize, &Tensor> = wanted.iter().copied().zip(&outputs[before..]).collect();

    let mut findings = Findings { agree: Vec::new(), unmatched, difference: None, logits: outputs[0].data.clone() };
    let mut sound: BTreeSet<usize> = BTreeSet::new();
    let last = resolved.calls.len() - 1;
    let mut computed_logits = outputs[0].data.chunks(outputs[0].row_size()).enumerate();
    let broken = computed_logits.find_map(|(position, row)| check_logits(row, position).err());
    let report = Reporter { model, index: &index, expected, bound, broken: broken.map(|error| error.to_string()) };
    for pair in &pairs {
        let found = computed[&pair.target.call];
        let Some(data) = aligned(pair, found, rows) else {
            findings.unmatched.push(format!("{} {:?}, here {:?}", pair.named.name, pair.named.shape, found.shape));
            continue;
        };
        let comparison = compare(&found.data, &data, found.row_size(), bound);
        let other =
            pair.target.or.map(|other| (other, compare(&computed[&other].data, &data, found.row_size(), bound)));
        let other = other.filter(|(_, comparison)| comparison.agrees(bound));
        if let (Some((other, comparison)), false) = (other, comparison.agrees(bound)) {
            // What it is made from is right, too.
            sound.extend([pair.target.call, other]);
            findings.agree.push((pair.named.name.clone(), comparison.nmse));
        } else if comparison.agrees(bound) {
            sound.insert(pair.target.call);
            findings.agree.push((pair.named.name.clone(), comparison.nmse));
        } else if findings.difference.is_none() {
            let shape = &found.shape;
            findings.difference = Some(report.differs(pair.target.call, &pair.named.name, &comparison, shape, &sound));
        }
    }
    if let (None, Some(logits)) = (&findings.difference, &expected.logits) {
        let row = outputs[0].row_size();
        if logits.len() == outputs[0].data.len() {
            let comparison = compare(&outputs[0].data, logits, row, bound);
            if !comparison.agrees(bound) {
                let shape = &outputs[0].shape;
                findings.difference = Some(report.differs(last, "logits", &comparison, shape, &sound));
            }
        }
    }
    Ok(findings)
}

/// The file's values in the order of `found`, `[tokens, row]`; none where the sizes differ.
fn aligned(pair: &Pair<'_>, found: &Tensor, rows: usize) -> Option<Vec<f32>> {
    let (row, Named { shape, data, .. }) = (found.row_size(), pair.named);
    if let Some([first, size, step]) = pair.target.part {
        let whole = row / size * step;
        let place = |at: usize| at / row * whole + (at % row) / size * step + first + (at % row) % size;
        return (data.len() == rows * whole).then(|| (0..rows * row).map(|at| data[place(at)]).collect());
    }
    if data.len() != rows * row {
        return None;
    }
    // Heads before tokens, as torch's attention has them.
    if let ([heads, tokens, size], [_, our_heads, our_size]) = (&shape[..], &found.shape[..])
        && (heads, size) == (our_heads, our_size)
        && *tokens == rows
        && *heads != rows
    {
        let at = |token: usize, head: usize| &data[(head * rows + token) * size..][..*size];
        return Some((0..rows).flat_map(|token| (0..*heads).flat_map(move |head| at(token, head).to_vec())).collect());
    }
    Some(data.clone())
}

/// Writes differences.
struct Reporter<'a> {
    model: &'a Model,
    index: &'a Index<'a>,
    expected: &'a Expected,
    bound: f64,
    /// What is wrong with the logits by themselves.
    broken: Option<String>,
}

impl Reporter<'_> {
    /// The error for the first value that differs: its line, and those that lie between it and what is known to be right.
    fn differs(
        &self,
        call: usize,
        name: &str,
        comparison: &Comparison,
        shape: &[usize],
        sound: &BTreeSet<usize>,
    ) -> Diagnostics {
        let resolved = &self.model.resolved;
        let at = &resolved.calls[call];
        let place = at.layer.map_or(String::new(), |layer| format!(" of layer {layer}"));
        let message = format!(
            "`{}`{place} differs from `{name}` of {}: NMSE {:.1e}, bound {:.0e}",
            at.outs.join("`, `"),
            self.expected.name,
            comparison.nmse,
            self.bound
        );
        let suspects = self.suspects(call, sound);
        let label = if suspects.len() == 1 {
            "what it reads agrees: the difference arises here"
        } else {
            "the first value that differs"
        };
        let mut diagnostic = Diagnostic::new(Code::ValueDiffers, message).at(at.span.clone(), label);
        for other in suspects.iter().filter(|other| **other != call).take(4) {
            let line = &resolved.calls[*other];
            if line.span != at.span {
                diagnostic = diagnostic.at(line.span.clone(), "may differ already: the file does not hold it");
            }
        }
        let Comparison { at: (token, element), found, expected, tokens, .. } = comparison;
        let element = match shape {
            [_, _, size] => format!("head {}, element {}", element / size, element % size),
            _ => format!("element {element}"),
        };
        diagnostic =
            diagnostic.note(format!("farthest at token {token}, {element}: {found:?} here, {expected:?} there"));
        diagnostic = diagnostic.note(match tokens[..] {
            [] => "no token is beyond the bound by itself".to_owned(),
            [0, ..] if tokens.len() == self.expected.tokens.len() => "every token differs".to_owned(),
            [first, ..] => {
                format!("{} of {} tokens differ, token {first} the first", tokens.len(), self.expected.tokens.len())
            }
        });
        diagnostic = diagnostic.note(match sound.len() {
            0 => "no value before it is in the file".to_owned(),
            1 => "1 value before it agrees".to_owned(),
            count => format!("{count} values before it agree"),
        });
        if let Some(broken) = &self.broken {
            diagnostic = diagnostic.note(broken);
        }
        if self.expected.values.is_empty() {
            diagnostic = diagnostic.help("the file holds no values between: docs/expected.py writes one that does");
        }
        let mut diagnostics = Diagnostics::new(resolved.source.clone());
        diagnostics.push(diagnostic);
        diagnostics
    }

    /// The call, and those after it that lie between it and calls whose values agree.
    fn suspects(&self, call: usize, sound: &BTreeSet<usize>) -> BTreeSet<usize> {
        let (mut found, mut queue) = (BTreeSet::new(), vec![call]);
        while let Some(call) = queue.pop() {
            if found.insert(call) {
                queue.extend(self.index.producers(call).filter(|other| !sound.contains(other)));
            }
        }
        found
    }
}

/// What quantising weights costs: logits with them against those of the weights as they were.
///
/// # Errors
/// Logits of another number.
pub fn cost(found: &[f32], expected: &Expected) -> Result<(String, f64)> {
    let wanted = expected.logits.as_ref().with_context(|| format!("{} has no tensor `logits`", expected.name))?;
    let rows = expected.tokens.len();
    ensure!(
        found.len() == wanted.len(),
        "{}: logits has {} values, the model {}",
        expected.name,
        wanted.len(),
        found.len()
    );
    let row = found.len() / rows;
    let comparison = compare(found, wanted, row, f64::INFINITY);
    let pairs = || found.chunks(row).zip(wanted.chunks(row));
    let same = pairs().filter(|(found, wanted)| best(found) == best(wanted)).count();
    let apart: f64 = pairs().map(|(found, wanted)| divergence(wanted, found)).sum::<f64>() / rows as f64;
    let line = format!(
        "logits NMSE {:.1e}, KL {apart:.1e} per token, the same best token at {same} of {rows} positions",
        comparison.nmse
    );
    Ok((line, comparison.nmse))
}

/// The Kullback-Leibler divergence, in nats, of the tokens that `found` has from those of `wanted`, both logits.
fn divergence(wanted: &[f32], found: &[f32]) -> f64 {
    let logarithms = |logits: &[f32]| -> Vec<f64> {
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let shifted = |logit: &f32| f64::from(*logit) - f64::from(most);
        let sum: f64 = logits.iter().map(|logit| shifted(logit).exp()).sum();
        logits.iter().map(|logit| shifted(logit) - sum.ln()).collect()
    };
    let pairs = logarithms(wanted).into_iter().zip(logarithms(found));
    pairs.map(|(wanted, found)| wanted.exp() * (wanted - found)).sum()
}

/// The place of the largest.
fn best(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, at| if row[at] > row[best] { at } else { best })
}

/// The logits of a device against those expected: an error where they differ, else a line.
///
/// # Errors
/// Logits of another number, or beyond `bound`.
pub fn logits(what: &str, found: &[f32], expected: &Expected, bound: f64) -> Result<String> {
    let wanted = expected.logits.as_ref().with_context(|| format!("{} has no tensor `logits`", expected.name))?;
    let rows = expected.tokens.len();
    ensure!(
        found.len() == wanted.len(),
        "{}: logits has {} values per token, the model {}",
        expected.name,
        wanted.len() / rows,
        found.len() / rows
    );
    let row = found.len() / rows;
    let comparison = compare(found, wanted, row, bound);
    let same = found.chunks(row).zip(wanted.chunks(row)).filter(|(found, wanted)| best(found) == best(wanted)).count();
    let line =
        format!("{what}: logits NMSE {:.1e}, the same best token at {same} of {rows} positions", comparison.nmse);
    ensure!(
        comparison.agrees(bound),
        "{line}; the bound is {bound:.0e}. Farthest at token {}, id {}: {:?} here, {:?} in {}",
        comparison.at.0,
        comparison.at.1,
        comparison.found,
        comparison.expected,
        expected.name
    );
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_divergence_is_of_probabilities() {
        // A half and a half, against three quarters and a quarter: ln(2 / 3) / 2 + ln(2) / 2.
        let found = divergence(&[5.0, 5.0], &[3f32.ln(), 0.0]);
        assert!((found - (2f64 / 3.0).ln() / 2.0 - 2f64.ln() / 2.0).abs() < 1e-7, "{found}");
        assert_eq!(divergence(&[1.0, 2.0, -3.0], &[11.0, 12.0, 7.0]), 0.0);
    }
}
