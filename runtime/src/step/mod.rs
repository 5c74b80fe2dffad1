//! A plan on a GPU: buffers, captured graphs, and the ring through which tokens come back. It sees launches, never an op.

mod addresses;
mod ceiling;
mod chunks;
mod engine;
mod parameters;

pub use addresses::{Addresses, IoAddresses, PARAMETER_BYTES, cache_bytes};
pub use ceiling::read_ceiling;
pub use chunks::{Chunk, chunks};
pub use engine::{EngineOptions, GpuEngine, WeightSource};
pub use parameters::{MAX_STOPS, record};
