//! Why things did not fuse, for `fusec explain`.

use super::PIPELINE;
use crate::ir::{Graph, NodeId};

/// Candidates of one rewrite, or of one rule, that did not fuse, for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// The name of the rewrite or the rule.
    pub rewrite: &'static str,
    /// What the candidates compute: `matmul`, `add`.
    pub op: String,
    /// What stands in the way, or that the pass is switched off.
    pub reason: String,
    /// The layer of each candidate, in graph order; `None` for what is outside the layers.
    pub layers: Vec<Option<usize>>,
}

impl Missed {
    /// Adds a candidate to the group of its op and reason from `first` on, or as a group of its own.
    pub(crate) fn add(
        missed: &mut Vec<Missed>,
        first: usize,
        rewrite: &'static str,
        graph: &Graph,
        node: NodeId,
        reason: String,
    ) {
        let (op, layer) = (graph.op(node).name(), graph.node(node).layer);
        match missed[first..].iter_mut().find(|group| group.op == op && group.reason == reason) {
            Some(group) => group.layers.push(layer),
            None => missed.push(Missed { rewrite, op, reason, layers: vec![layer] }),
        }
    }
}

/// What each rewrite would have liked to fuse in a graph that has been through the pipeline, in the order of
/// [`PIPELINE`], equal reasons together.
pub fn explain(graph: &Graph) -> Vec<Missed> {
    explain_beside(graph, &|_| false)
}

/// As [`explain`], less what the kernels of a plan have fused: nodes by their numbers in the text form.
pub fn explain_beside(graph: &Graph, fused: &dyn Fn(usize) -> bool) -> Vec<Missed> {
    let numbers = graph.numbers();
    let nodes: Vec<_> = graph.ordered().into_iter().filter(|node| !fused(numbers[node])).collect();
    let mut missed: Vec<Missed> = Vec::new();
    for rewrite in PIPELINE {
        let first = missed.len();
        for &node in &nodes {
            let reason = match (rewrite.find)(graph, node) {
                Ok(_) => "the pass did not run".to_string(),
                Err(super::Miss::Because(reason)) => reason,
                Err(super::Miss::NotThis) => continue,
            };
            Missed::add(&mut missed, first, rewrite.name, graph, node, reason);
        }
    }
    missed
}

/// `layers 0-15, 17`, `layer 3`, `outside the layers`, or both.
pub fn layer_ranges(layers: &[Option<usize>]) -> String {
    let mut numbers: Vec<usize> = layers.iter().flatten().copied().collect();
    numbers.sort();
    numbers.dedup();
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for number in &numbers {
        match ranges.last_mut() {
            Some((_, end)) if *end + 1 == *number => *end = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    let texts: Vec<String> =
        ranges.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect();
    let word = if numbers.len() == 1 { "layer" } else { "layers" };
    match (texts.is_empty(), layers.contains(&None)) {
        (true, _) => "outside the layers".into(),
        (false, false) => format!("{word} {}", texts.join(", ")),
        (false, true) => format!("{word} {} and outside", texts.join(", ")),
    }
}

/// `fuse-residual: layers 0-15: add: neither operand is a product: rms_norm, scale`.
impl std::fmt::Display for Missed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}: {}: {}", self.rewrite, layer_ranges(&self.layers), self.op, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::layer_ranges;

    #[test]
    fn layers_are_told_in_ranges() {
        assert_eq!(layer_ranges(&[Some(0), Some(1), Some(2), Some(4), Some(4)]), "layers 0-2, 4");
        assert_eq!(layer_ranges(&[Some(3)]), "layer 3");
        assert_eq!(layer_ranges(&[None]), "outside the layers");
        assert_eq!(layer_ranges(&[Some(7), None]), "layer 7 and outside");
    }
}
