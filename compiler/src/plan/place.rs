//! From launches that name buffers to launches that know where they are: who sets sums to zero, how long a buffer lives, and its place in the arena. Knows
//! kernels by the kinds of their parameters only.

use anyhow::{Context, Result};
use fuse_kernels::{Kind, Param, Reads};

use super::arena::{self, Lifetime};
use super::{Arg, Launch};

/// An argument before buffers have offsets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Source {
    /// An argument that is known.
    Ready(Arg),
    /// Buffer `.0`, from byte `.1` on.
    Buffer(usize, usize),
}

/// Nothing: a null pointer, or zero.
pub const NULL: Source = Source::Ready(Arg::Null);

/// Room for a value while a step runs.
#[derive(Clone, Debug)]
pub struct Buffer {
    /// Its size.
    pub bytes: usize,
    /// The host reads it after the step: nothing may take its place.
    pub kept: bool,
}

/// A launch whose operands are not yet placed.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Index into the plan's kernels.
    pub kernel: usize,
    /// Blocks.
    pub grid: [u32; 3],
    /// The kernel's parameters, each with its operand.
    pub operands: Vec<(Param, Source)>,
    /// See [`Launch::node`].
    pub node: String,
    /// See [`Launch::layer`].
    pub layer: Option<usize>,
    /// See [`Launch::reads`].
    pub reads: Reads,
    /// See [`Launch::covers`].
    pub covers: Vec<usize>,
}

impl Draft {
    /// Whether it can set memory to zero and does not yet.
    pub fn can_zero(&self) -> bool {
        self.operands.iter().any(|(param, source)| param.kind == Kind::Zeros && *source == NULL)
    }
}

/// Launches with their arguments, the offset of each buffer, and the bytes of the arena.
///
/// # Errors
/// A sum that no earlier launch can set to zero.
pub fn place(mut drafts: Vec<Draft>, buffers: &[Buffer]) -> Result<(Vec<Launch>, Vec<usize>, usize)> {
    zero_sums(&mut drafts, buffers)?;
    let (offsets, size) = arena::place(&lifetimes(&drafts, buffers));
    let resolve = |(_, source): &(Param, Source)| match *source {
        Source::Ready(arg) => arg,
        Source::Buffer(buffer, at) => Arg::Arena(offsets[buffer] + at),
    };
    let launches = drafts.into_iter().map(|draft| Launch {
        kernel: draft.kernel,
        grid: draft.grid,
        args: draft.operands.iter().map(resolve).collect(),
        node: draft.node,
        layer: draft.layer,
        reads: draft.reads,
        covers: draft.covers,
    });
    Ok((launches.collect(), offsets, size))
}

/// Lets the nearest earlier launch that can set the buffer of each launch's sums to zero.
fn zero_sums(drafts: &mut [Draft], buffers: &[Buffer]) -> Result<()> {
    for at in 0..drafts.len() {
        let mut sums = drafts[at].operands.iter().filter(|(param, _)| param.kind == Kind::Sum);
        let Some(Source::Buffer(buffer, _)) = sums.next().map(|(_, source)| *source) else { continue };
        let words = buffers[buffer].bytes as u64 / 4;
        let earlier = drafts[..at].iter_mut().rev().find(|draft| draft.can_zero());
        let earlier = earlier.with_context(|| format!("nothing sets the sums of launch {at} to zero"))?;
        for index in 0..earlier.operands.len() {
            if earlier.operands[index].0.kind == Kind::Zeros {
                earlier.operands[index].1 = Source::Buffer(buffer, 0);
                earlier.operands[index + 1].1 = Source::Ready(Arg::Number(words));
            }
        }
    }
    Ok(())
}

/// From the first launch that has a buffer to the last. One that no launch has takes no room.
fn lifetimes(drafts: &[Draft], buffers: &[Buffer]) -> Vec<Lifetime> {
    let mut lifetimes: Vec<Lifetime> =
        buffers.iter().map(|buffer| Lifetime { bytes: buffer.bytes, first: usize::MAX, last: 0 }).collect();
    for (at, draft) in drafts.iter().enumerate() {
        for (_, source) in &draft.operands {
            if let Source::Buffer(buffer, _) = *source {
                let lifetime = &mut lifetimes[buffer];
                (lifetime.first, lifetime.last) = (lifetime.first.min(at), lifetime.last.max(at));
            }
        }
    }
    for (lifetime, buffer) in lifetimes.iter_mut().zip(buffers) {
        match (lifetime.first, buffer.kept) {
            (usize::MAX, _) => *lifetime = Lifetime { bytes: 0, first: 0, last: 0 },
            (_, true) => lifetime.last = usize::MAX,
            (_, false) => {}
        }
    }
    lifetimes
}
