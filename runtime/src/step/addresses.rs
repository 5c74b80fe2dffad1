//! Where the buffers of a plan are, and what a launch's arguments become.

use fusec::plan::{Arg, Io, RING};

/// Device (or host) addresses of every buffer that a plan names.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// One a packed weight.
    pub weights: Vec<u64>,
    /// One per state.
    pub states: Vec<u64>,
    /// Activations.
    pub arena: u64,
    /// Positions a cache holds a sequence.
    pub context: usize,
    /// Buffers shared with the host.
    pub io: IoAddresses,
}

/// Addresses of the buffers through which host and device talk; [`Io`] says what they hold.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct IoAddresses {
    pub tokens: u64,
    pub positions: u64,
    pub sequences: u64,
    pub prompt_tokens: u64,
    pub prompt_positions: u64,
    pub prompt_sequences: u64,
    pub parameters: u64,
    pub ring: u64,
}

impl Addresses {
    /// The 64-bit value of an argument.
    pub fn resolve(&self, arg: Arg) -> u64 {
        match arg {
            Arg::Null => 0,
            Arg::Number(number) => number,
            Arg::Context => self.context as u64,
            Arg::Weight(index) => self.weights[index],
            Arg::State(index) => self.states[index],
            Arg::Arena(offset) => self.arena + offset as u64,
            Arg::Io(io, row) => {
                let (address, bytes) = match io {
                    Io::Tokens => (self.io.tokens, 4),
                    Io::Positions => (self.io.positions, 4),
                    Io::Sequences => (self.io.sequences, 4),
                    Io::PromptTokens => (self.io.prompt_tokens, 4),
                    Io::PromptPositions => (self.io.prompt_positions, 4),
                    Io::PromptSequences => (self.io.prompt_sequences, 4),
                    Io::Parameters => (self.io.parameters, PARAMETER_BYTES),
                    Io::Ring => (self.io.ring, 8 * RING),
                };
                address + (row * bytes) as u64
            }
        }
    }
}

/// Bytes of one record of sampling parameters (`struct Parameters` in sample.cu).
pub const PARAMETER_BYTES: usize = 128;
