#![allow(unsafe_code)]

use std::fmt;
use std::ptr::null_mut;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use cudarc::driver::sys::{
    self, CUgraph, CUgraphDependencyType_enum, CUgraphEdgeData, CUgraphExec, CUgraphNodeType, CUstream,
};

use super::driver::check;
use super::gpu::Context;
use super::module::LoadedModule;

/// What a capture recorded. Buffers that its kernels were given must outlive every run; modules are kept loaded.
pub struct CapturedGraph {
    context: Arc<Context>,
    handle: CUgraph,
    modules: Vec<Arc<LoadedModule>>,
}

// SAFETY: a graph may be used from any thread, one at a time: it is not `Sync`.
unsafe impl Send for CapturedGraph {}

/// How many nodes and edges a captured graph has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GraphShape {
    /// Nodes of any kind.
    pub nodes: usize,
    /// Nodes that are kernels.
    pub kernels: usize,
    /// Dependencies between nodes.
    pub edges: usize,
    /// Those of them that let a kernel start before the one ahead has ended.
    pub programmatic_edges: usize,
}

impl CapturedGraph {
    pub(super) fn new(context: Arc<Context>, handle: CUgraph, modules: Vec<Arc<LoadedModule>>) -> CapturedGraph {
        CapturedGraph { context, handle, modules }
    }

    /// Counts nodes and edges.
    pub fn shape(&self) -> Result<GraphShape> {
        self.context.bind()?;
        let mut count = 0;
        // SAFETY: with no buffer, the call stores the number of nodes.
        check(unsafe { sys::cuGraphGetNodes(self.handle, null_mut(), &mut count) }, "cuGraphGetNodes")?;
        let mut nodes = vec![null_mut(); count];
        if count > 0 {
            // SAFETY: the buffer has room for as many handles as `count` says.
            check(unsafe { sys::cuGraphGetNodes(self.handle, nodes.as_mut_ptr(), &mut count) }, "cuGraphGetNodes")?;
        }
        let mut kernels = 0;
        for node in &nodes {
            let mut kind = CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
            // SAFETY: the node belongs to this live graph, and the pointer is to a live value.
            check(unsafe { sys::cuGraphNodeGetType(*node, &mut kind) }, "cuGraphNodeGetType")?;
            kernels += usize::from(kind == CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL);
        }

        let edges = self.edges()?;
        let programmatic = CUgraphDependencyType_enum::CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC as u8;
        let programmatic_edges = edges.iter().filter(|edge| edge.type_ == programmatic).count();
        Ok(GraphShape { nodes: nodes.len(), kernels, edges: edges.len(), programmatic_edges })
    }

    fn edges(&self) -> Result<Vec<CUgraphEdgeData>> {
        let mut count = 0;
        // SAFETY: with no buffers, the call stores the number of edges.
        let status = unsafe { sys::cuGraphGetEdges_v2(self.handle, null_mut(), null_mut(), null_mut(), &mut count) };
        check(status, "cuGraphGetEdges")?;
        let mut edges = vec![CUgraphEdgeData { from_port: 0, to_port: 0, type_: 0, reserved: [0; 5] }; count];
        let (mut from, mut to) = (vec![null_mut(); count], vec![null_mut(); count]);
        if count > 0 {
            // SAFETY: each buffer has room for as many entries as `count` says.
            let status = unsafe {
                sys::cuGraphGetEdges_v2(self.handle, from.as_mut_ptr(), to.as_mut_ptr(), edges.as_mut_ptr(), &mut count)
            };
            check(status, "cuGraphGetEdges")?;
        }
        Ok(edges)
    }

    /// Makes it runnable and puts it on the device by a live stream.
    pub(super) fn runnable(&self, stream: CUstream) -> Result<GraphExec> {
        self.context.bind()?;
        let mut handle = null_mut();
        // SAFETY: the graph lives and the pointer is to a live handle; no flag is set.
        check(unsafe { sys::cuGraphInstantiateWithFlags(&mut handle, self.handle, 0) }, "cuGraphInstantiate")
            .context("cannot make the captured graph runnable")?;
        let exec = GraphExec { context: self.context.clone(), handle, _modules: self.modules.clone() };
        // SAFETY: the executable graph and the stream live.
        check(unsafe { sys::cuGraphUpload(handle, stream) }, "cuGraphUpload")?;
        Ok(exec)
    }
}

impl Drop for CapturedGraph {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: captured once and destroyed once; what was instantiated from it is independent. A failure leaks at worst.
            let _ = unsafe { sys::cuGraphDestroy(self.handle) };
        }
    }
}

impl fmt::Debug for CapturedGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CapturedGraph").field(&self.shape().ok()).finish()
    }
}

/// A graph that a stream can run, any number of times.
pub struct GraphExec {
    context: Arc<Context>,
    pub(super) handle: CUgraphExec,
    _modules: Vec<Arc<LoadedModule>>,
}

// SAFETY: an executable graph may be used from any thread, one at a time: it is not `Sync`.
unsafe impl Send for GraphExec {}

impl Drop for GraphExec {
    fn drop(&mut self) {
        // A run may be under way; the modules that it uses go next.
        if self.context.synchronize().is_ok() {
            // SAFETY: instantiated once and destroyed once. A failure leaks at worst.
            let _ = unsafe { sys::cuGraphExecDestroy(self.handle) };
        }
    }
}
