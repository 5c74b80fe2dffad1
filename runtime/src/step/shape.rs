//! Whether a capture recorded what the plan says: a chain of its kernels, each of which may start before the one ahead ends.

use anyhow::{Result, ensure};
use fusec::plan::StepKind;

use super::GpuEngine;
use crate::device::GraphShape;

impl GpuEngine {
    /// Compares each captured step with the plan's.
    ///
    /// # Errors
    /// The first that has other kernels or other edges, with both.
    pub fn check_graphs(&self) -> Result<()> {
        let (major, _) = self.gpu().compute_capability()?;
        for (kind, shape) in self.graph_shapes() {
            let launches = self.plan().step(kind).map_or(0, |step| step.launches.len());
            check(kind, launches, shape, major >= 9)?;
        }
        Ok(())
    }
}

/// `overlaps`: whether the GPU can start a kernel before the one ahead ends, which sm_90 is the first to do.
fn check(kind: StepKind, launches: usize, found: GraphShape, overlaps: bool) -> Result<()> {
    let edges = launches.saturating_sub(1);
    let planned = GraphShape { nodes: launches, kernels: launches, edges, programmatic_edges: edges };
    let serial = GraphShape { programmatic_edges: 0, ..planned };
    ensure!(
        found == planned || !overlaps && found == serial,
        "the captured {kind:?} step is not the plan's: it has {} and the plan {}",
        told(found),
        told(planned)
    );
    Ok(())
}

fn told(shape: GraphShape) -> String {
    let GraphShape { nodes, kernels, edges, programmatic_edges } = shape;
    format!("{kernels} kernels of {nodes} nodes and {edges} edges, {programmatic_edges} of them programmatic")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graph_that_is_not_the_plans_is_refused() {
        let kind = StepKind::Decode { batch: 2 };
        let chain = GraphShape { nodes: 5, kernels: 5, edges: 4, programmatic_edges: 4 };
        check(kind, 5, chain, true).expect("the plan's");
        let serial = GraphShape { programmatic_edges: 0, ..chain };
        check(kind, 5, serial, false).expect("a GPU that overlaps nothing");
        for (launches, shape, overlaps) in [
            (6, chain, true),
            (5, serial, true),
            (5, GraphShape { programmatic_edges: 3, ..chain }, false),
            (5, GraphShape { nodes: 6, edges: 5, ..chain }, true),
            (5, GraphShape { edges: 3, ..chain }, true),
        ] {
            assert!(check(kind, launches, shape, overlaps).is_err(), "{shape:?}");
        }
        let error = check(kind, 5, serial, true).expect_err("no overlap").to_string();
        assert_eq!(
            error,
            "the captured Decode { batch: 2 } step is not the plan's: it has 5 kernels of 5 nodes and 4 edges, 0 of them programmatic \
             and the plan 5 kernels of 5 nodes and 4 edges, 4 of them programmatic"
        );
    }
}
