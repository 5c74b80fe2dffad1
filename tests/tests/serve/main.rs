//! `fuserun serve` with the demo model, over loopback: what clients send and get, what is refused, and how it ends.

mod devices;
mod errors;
mod forms;
mod life;
mod openai;
mod others;
mod scripted;
