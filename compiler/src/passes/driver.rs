//! The only one that changes a graph: it runs the selected rewrites in order, each until it fires no more.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{PIPELINE, Rewrite, Selection};
use crate::ir::{Graph, verify};

/// What a run did, a line a pass that ran.
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
        let started = Instant::now();
        let nodes_before = graph.node_ids().len();
        let fired = exhaust(graph, rewrite, &mut patches_left)
            .and_then(|fired| Ok(verify(graph).map(|()| fired)?))
            .with_context(|| format!("pass {} broke the graph (leave it out with -{0})", rewrite.name))?;
        let stats = Stats { fired, nodes_before, nodes_after: graph.node_ids().len(), time: started.elapsed() };
        observer(rewrite.name, graph, stats);
        report.passes.push(PassReport { name: rewrite.name, stats });
    }
    Ok(report)
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
