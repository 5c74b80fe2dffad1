//! The only one that changes a graph: it runs the selected rewrites in order, each until it fires no more.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{PIPELINE, Rewrite, Selection};
use crate::ir::{Graph, verify};

/// What a run did, a line per pass that ran.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order they ran.
    pub passes: Vec<PassReport>,
}

/// What one pass did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassReport {
    /// The rewrite's name.
    pub name: &'static str,
    /// What it did.
    pub stats: Stats,
}

/// The numbers of one pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// How often the rewrite fired.
    pub fired: usize,
    /// Nodes before, weights and inputs included.
    pub nodes_before: usize,
    /// Nodes after.
    pub nodes_after: usize,
    /// Time for the rewrites and the verifier.
    pub time: Duration,
}

impl Report {
    /// How often the rewrites fired in all.
    pub fn fired(&self) -> usize {
        self.passes.iter().map(|pass| pass.stats.fired).sum()
    }
}

/// Drops what no output needs, then rewrites `graph` by the selected passes of [`PIPELINE`]. The verifier looks at it
/// before the first and after each.
///
/// `observer` is called after each pass that ran, with its name, the graph as it is then, and the pass's numbers.
///
/// # Errors
/// The graph is not valid to begin with; or a rewrite returned a patch of another type or made an invalid graph, which
/// is a mistake in that rewrite: the error names it. The graph is then unusable.
pub fn run(graph: &mut Graph, selection: &Selection, observer: &mut dyn FnMut(&str, &Graph, Stats)) -> Result<Report> {
    verify(graph).context("the graph is not valid before any pass")?;
    // What nothing needs must not count as a user.
    graph.remove_unused(graph.node_ids());
    let mut report = Report::default();
    let mut patches_left = selection.patch_limit();
    for rewrite in PIPELINE.iter().filter(|rewrite| selection.has(rewrite.name)) {
        let stats = run_one(graph, rewrite, &mut patches_left)?;
        observer(rewrite.name, graph, stats);
        report.passes.push(PassReport { name: rewrite.name, stats });
    }
    Ok(report)
}

fn run_one(graph: &mut Graph, rewrite: &Rewrite, patches_left: &mut usize) -> Result<Stats> {
    let started = Instant::now();
    let nodes_before = graph.node_ids().len();
    let fired = exhaust(graph, rewrite, patches_left)
        .and_then(|fired| Ok(verify(graph).map(|()| fired)?))
        .with_context(|| format!("pass {} broke the graph (leave it out with -{0})", rewrite.name))?;
    Ok(Stats { fired, nodes_before, nodes_after: graph.node_ids().len(), time: started.elapsed() })
}

/// Applies one rewrite until it fires nowhere, operands before users. Returns how often it fired.
fn exhaust(graph: &mut Graph, rewrite: &Rewrite, patches_left: &mut usize) -> Result<usize> {
    let mut fired = 0;
    // A rewrite takes at least one node away, so that it cannot fire oftener than there are nodes.
    let most = graph.node_ids().len();
    loop {
        let before = fired;
        for node in graph.ordered() {
            // An earlier patch of this sweep may have taken the node away, or given its number to another.
            if *patches_left == 0 || !graph.contains(node) {
                continue;
            }
            let Some(patch) = rewrite.apply(graph, node) else { continue };
            patch.apply(graph).with_context(|| format!("patch {} of the pass", fired + 1))?;
            fired += 1;
            *patches_left -= 1;
            ensure!(fired <= most, "it fires without end");
        }
        if fired == before {
            return Ok(fired);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Activation, NodeId, Op, Patch, Role};
    use crate::passes::Miss;

    const GRAPH: &str = r#"
%x = input "x" : f32[T, 8]
%y = input "y" : f32[T, 4]
%s = silu %x : f32[T, 8]
%t = relu %y : f32[T, 4]
return %s, %t
"#;

    /// Runs a rewrite that misbehaves, and returns the error, whole.
    fn refused(find: fn(&Graph, NodeId) -> Result<Patch, Miss>) -> String {
        let mut graph = Graph::parse(GRAPH).expect("the text is a graph");
        let rewrite = Rewrite { name: "break-silu", doc: "", find };
        let error = run_one(&mut graph, &rewrite, &mut usize::MAX.clone()).expect_err("the rewrite misbehaves");
        format!("{error:#}")
    }

    /// The patch that puts `op` in the place of the silu, with the operand of the graph's output `output`.
    fn in_place_of_silu(graph: &Graph, node: NodeId, op: Op, output: usize) -> Result<Patch, Miss> {
        let Op::Activation(Activation::Silu) = graph.op(node) else { return Err(Miss::NotThis) };
        let x = graph.operand(graph.outputs[output].node, Role::X).ok_or(Miss::NotThis)?;
        Ok(Patch::replace(graph, node, op, &[x]))
    }

    #[test]
    fn a_patch_of_another_type_is_refused() {
        let error = refused(|graph, node| {
            let mut patch = Patch::new();
            let _ = in_place_of_silu(graph, node, Op::Reshape, 0)?;
            patch.replace_value(graph.outputs[0], graph.outputs[1].into());
            Ok(patch)
        });
        assert_eq!(
            error,
            "pass break-silu broke the graph (leave it out with -break-silu): patch 1 of the pass: \
             the patch puts f32[T, 4] (relu) in the place of f32[T, 8] (silu)"
        );
    }

    #[test]
    fn what_the_verifier_refuses_names_the_pass() {
        let error = refused(|graph, node| in_place_of_silu(graph, node, Op::Activation(Activation::Relu), 1));
        assert!(error.starts_with("pass break-silu broke the graph (leave it out with -break-silu): "), "{error}");
        assert!(error.contains("relu") && error.contains("f32[T, 4]"), "{error}");
    }

    #[test]
    fn a_rewrite_without_end_is_stopped() {
        let error = refused(|graph, node| in_place_of_silu(graph, node, Op::Activation(Activation::Silu), 0));
        assert!(error.ends_with("it fires without end"), "{error}");
    }
}
