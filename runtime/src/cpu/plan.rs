//! From graph to steps: a flat list made once at load, with every buffer's place and every barrier decided.

use anyhow::{Context, Result, ensure};
use fusec::ir::Graph;

use super::lower::Lowering;
use super::pack::{Recipe, WeightSource};
use super::step::{Access, Buffer, BufferShape, CacheShape, Step};

/// Everything a step needs to know but the weights.
pub(crate) struct Plan {
    /// Run for all rows of a chunk.
    pub body: Vec<Scheduled>,
    /// Run for the rows whose logits were asked for.
    pub tail: Vec<Scheduled>,
    /// The place of each buffer.
    pub places: Vec<Place>,
    /// Floats that all buffers need.
    pub floats: usize,
    /// The caches, in the order of their first use.
    pub caches: Vec<CacheShape>,
    /// The matrices.
    pub recipes: Vec<Recipe>,
    /// The first output.
    pub logits: Buffer,
    /// Rows of the smallest table that tokens are looked up in.
    pub vocabulary: Option<usize>,
}

/// A step, and whether all threads meet before it.
pub(crate) struct Scheduled {
    /// What to do.
    pub step: Step,
    /// It reads what an earlier step writes since the last meeting, or overwrites what one reads.
    pub barrier: bool,
}

/// Where a buffer lies in the arena.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Its first float.
    pub start: usize,
    /// Floats per row.
    pub size: usize,
}

impl Plan {
    /// Plans a graph for at most `chunk` rows at a time and logits of at most `tail_chunk`.
    ///
    /// # Errors
    /// An op in a place where this executor cannot run it, or a weight that `source` lacks.
    pub fn new(
        graph: &Graph,
        source: &dyn WeightSource,
        context: usize,
        chunk: usize,
        tail_chunk: usize,
    ) -> Result<Plan> {
        ensure!(!graph.outputs.is_empty(), "graph {:?} returns nothing", graph.name);
        let Lowering { body, tail, shapes, caches, recipes, logits, vocabulary, .. } =
            Lowering::of(graph, source, context)?;
        let (places, floats) = place(&body, &tail, &shapes, logits, chunk, tail_chunk)?;
        let schedule = |steps: Vec<Step>| schedule(steps, &places);
        Ok(Plan { body: schedule(body), tail: schedule(tail), places, floats, caches, recipes, logits, vocabulary })
    }
}

/// Gives each buffer a place that no other buffer uses while it lives.
fn place(
    body: &[Step],
    tail: &[Step],
    shapes: &[BufferShape],
    logits: Buffer,
    chunk: usize,
    tail_chunk: usize,
) -> Result<(Vec<Place>, usize)> {
    // Floats to the next row stay apart by whole cache lines of the first.
    let floats_of =
        |shape: BufferShape| (shape.size * if shape.tail { tail_chunk } else { chunk }).next_multiple_of(32);
    let steps: Vec<&Step> = body.iter().chain(tail).collect();
    let mut last_use = vec![0; shapes.len()];
    for (i, step) in steps.iter().enumerate() {
        step.accesses(|access| {
            if let Access::Read(buffer) | Access::Write(buffer) = access {
                // The tail may run more than once on what the body left.
                let repeated = i >= body.len() && !shapes[buffer].tail;
                last_use[buffer] = if repeated { usize::MAX } else { i };
            }
        });
    }
    last_use[logits] = usize::MAX;

    let mut places: Vec<Option<Place>> = vec![None; shapes.len()];
    let mut free: Vec<(usize, usize)> = Vec::new();
    let mut end = 0;
    for (i, step) in steps.iter().enumerate() {
        step.accesses(|access| {
            if let Access::Write(buffer) = access
                && places[buffer].is_none()
            {
                let floats = floats_of(shapes[buffer]);
                let start = match free.iter().position(|&(_, length)| length == floats) {
                    Some(slot) => free.swap_remove(slot).0,
                    None => {
                        end += floats;
                        end - floats
                    }
                };
                places[buffer] = Some(Place { start, size: shapes[buffer].size });
            }
        });
        for (buffer, place) in places.iter().enumerate() {
            if let Some(place) = place
                && last_use[buffer] == i
            {
                free.push((place.start, floats_of(shapes[buffer])));
                last_use[buffer] = usize::MAX - 1;
            }
        }
    }
    let written =
        |(buffer, place): (Buffer, Option<Place>)| place.with_context(|| format!("no step writes buffer {buffer}"));
    Ok((places.into_iter().enumerate().map(written).collect::<Result<_>>()?, end))
}

/// Decides before which steps all threads must meet.
fn schedule(steps: Vec<Step>, places: &[Place]) -> Vec<Scheduled> {
    // Buffers that share a place start at the same float; caches are counted after every float.
    let of = |access: Access| match access {
        Access::Read(buffer) => (places[buffer].start, false),
        Access::Write(buffer) => (places[buffer].start, true),
        Access::ReadCache(cache) => (usize::MAX - cache, false),
        Access::WriteCache(cache) => (usize::MAX - cache, true),
    };
    let mut since: Vec<(usize, bool)> = Vec::new();
    let mut scheduled = Vec::with_capacity(steps.len());
    for step in steps {
        let mut own = Vec::new();
        step.accesses(|access| own.push(of(access)));
        let barrier = own.iter().any(|(place, writes)| since.iter().any(|(p, w)| p == place && (*w || *writes)));
        if barrier {
            since.clear();
        }
        since.append(&mut own);
        scheduled.push(Scheduled { step, barrier });
    }
    scheduled
}
