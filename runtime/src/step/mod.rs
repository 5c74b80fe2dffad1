//! A plan on a GPU: buffers, captured graphs, and the ring through which tokens come back. It sees launches, never an op.

mod addresses;
mod ceiling;
mod chunks;
mod engine;
mod fit;
mod halves;
mod io;
mod joining;
mod load;
mod parameters;
mod shape;
mod timing;
mod variant;

pub use addresses::{Addresses, IoAddresses, PARAMETER_BYTES};
pub use ceiling::{MemoryReader, read_ceiling};
pub use chunks::{Chunk, chunks};
pub use engine::GpuEngine;
pub use fit::{EngineOptions, check_fit};
pub use joining::Sampled;
pub use load::WeightSource;
pub use parameters::{MAX_STOPS, Pointers, Sequence, record};
pub use timing::{LaunchTimes, NOTHING, median};
pub use variant::{Comparison, Variant};
