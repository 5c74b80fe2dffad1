//! Models of the Hugging Face hub, in the cache that its own tools use.
//!
//! A model's folder there has `blobs` by checksum, `refs` with the commit of each branch, and `snapshots/COMMIT` with links into the blobs. A file is
//! `CHECKSUM.incomplete` until it is whole and right; whoever fetches it holds its lock; a branch names a commit once all that is needed of it is there.

mod blob;
mod choose;
mod client;
mod name;
mod pull;
mod settings;
mod store;

pub use name::Name;
pub use pull::{Event, Pulled, cached, find, pull};
pub use settings::Settings;
