//! The graph a description becomes: ops, types, text form, verifier, patches and the reference interpreter.

mod dot;
mod graph;
mod interpret;
mod op;
mod parse;
mod patch;
mod state;
mod text;
mod types;
mod verify;
mod weight;

pub use fuse_kernels::{Activation, Format, Function, Gating, NormKind, RopeScaling, RopeTable, Scoring};
pub use graph::{Graph, Node, NodeId, Results, Value};
pub use interpret::{Interpreter, Tensor, erf, evaluate, nmse, random_run, random_tensor};
pub use op::{Attention, Conv, Epilogue, Experts, Matmul, Norm, Op, Projection, Recall, Role, Rope, Route};
pub use parse::ParseError;
pub use patch::{Patch, PatchValue};
pub use state::{Replay, Start, State};
pub use types::{Dim, Type};
pub use verify::{VerifyError, verify, verify_all};
pub use weight::{Part, TensorName, WeightRef};
