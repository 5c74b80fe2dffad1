//! How a thread does its part of each step of a plan.
#![allow(unsafe_code)]

use std::ops::Range;

use fusec::ir::Epilogue;

use super::attention::{scores, weighted_sum};
use super::blocks::{self, COLUMNS, Coded, HEAD, UNIT_ROWS, encode_blocks};
use super::math::{self, Isa};
use super::memory::SharedFloats;
use super::pack::{RowScratch, Weights};
use super::plan::{Plan, Scheduled};
use super::pool::{Worker, share};
use super::step::{AttentionStep, Buffer, Destination, HeadsStep, Ids, Map, MatmulStep, Operand, RopeStep, Step};
use super::tile::{self, Operand as Factor, Sums};

/// The rows of one chunk.
#[derive(Default)]
pub(crate) struct Rows {
    pub tokens: Vec<u32>,
    pub positions: Vec<u32>,
    pub sequences: Vec<u32>,
    /// Rows of the chunk whose logits are wanted.
    pub selected: Vec<usize>,
}

/// What a thread keeps between steps.
#[derive(Default)]
pub(crate) struct Scratch {
    /// The second product of a gate: [`GROUP_ROWS`] values for each row of a chunk.
    pub gated: Vec<f32>,
    /// A row of a table.
    pub row: RowScratch,
    /// One a position.
    pub scores: Vec<f32>,
    /// A sum of whole keys.
    pub values: Vec<f32>,
}

/// Parts that each thread should find in a large step, so that the last to end is not late.
const CHUNKS_A_THREAD: usize = 4;
/// Rows of weights that a thread multiplies before it does their epilogue.
pub(crate) const GROUP_ROWS: usize = 128;
/// Units in a group stay in the first level cache while the rows of a prompt pass by.
const GROUP_BYTES: usize = 16 << 10;

/// One pass over a plan, as all threads see it.
///
/// Soundness of every access below: a thread writes only the rows, columns or heads of a chunk that only it claimed, and the plan puts a barrier
/// between a step that writes a buffer or a cache and every other that touches it.
pub(crate) struct Execution<'a> {
    pub plan: &'a Plan,
    pub weights: &'a Weights,
    pub memory: &'a SharedFloats,
    pub caches: &'a [SharedFloats],
    pub context: usize,
    pub rows: &'a Rows,
    pub isa: Isa,
}

impl Execution<'_> {
    /// The body, for all rows.
    pub fn run_body(&self, worker: &Worker<'_>, scratch: &mut Scratch) {
        self.run(&self.plan.body, 0, self.rows.tokens.len(), &[], worker, scratch);
    }

    /// The tail, for some of the rows.
    pub fn run_tail(&self, selected: &[usize], worker: &Worker<'_>, scratch: &mut Scratch) {
        self.run(&self.plan.tail, self.plan.body.len(), selected.len(), selected, worker, scratch);
    }

    /// Steps in their order; `first` is the number of the first of them. Returns when all are done.
    fn run(
        &self,
        steps: &[Scheduled],
        first: usize,
        count: usize,
        selected: &[usize],
        worker: &Worker<'_>,
        scratch: &mut Scratch,
    ) {
        let threads = worker.count;
        let mut waited = 0;
        let wait_until = |number: usize, waited: &mut usize| {
            for (before, Scheduled { step, .. }) in steps.iter().enumerate().take(number).skip(*waited) {
                worker.wait_for(first + before, self.chunks(step, count, threads));
            }
            *waited = number;
        };
        for (number, Scheduled { step, barrier }) in steps.iter().enumerate() {
            if *barrier {
                wait_until(number, &mut waited);
            }
            let chunks = self.chunks(step, count, threads);
            let items = self.items(step, count);
            worker.for_each_chunk(first + number, chunks, |chunk| {
                self.run_part(step, count, selected, share(items, chunk, chunks), scratch);
            });
        }
        wait_until(steps.len(), &mut waited);
    }

    /// What a step is cut along: rows, heads, units or elements.
    fn items(&self, step: &Step, count: usize) -> usize {
        match step {
            Step::Angles { .. } | Step::Embed { .. } | Step::Gather { .. } | Step::Route(_) => count,
            Step::ExpertHidden(step) => count * step.top_k * self.weights.recipe(step.matrices[0]).units(0),
            Step::ExpertSum(step) => count * self.weights.recipe(step.matrices[0]).units(0),
            Step::Heads(step) => count * step.heads,
            Step::HeadProduct(step) => count * step.matrices.len() * self.weights.recipe(step.matrices[0]).units(0),
            Step::Attention(step) => count * step.heads,
            Step::Matmul(step) => {
                let recipe = self.weights.recipe(step.matrix);
                (0..step.outs.len()).map(|out| recipe.units(out)).sum()
            }
            Step::Combine { out, .. } | Step::Glu { out, .. } | Step::Map { out, .. } | Step::Concat { out, .. } => {
                count * self.size(*out)
            }
            Step::Code { x, .. } => count * (self.size(*x) / COLUMNS),
            // Rows go one after the other.
            Step::Conv(step) => self.size(step.out),
            Step::Recall(step) => step.heads,
        }
    }

    /// Rows of the units of a product; 1 for other steps.
    fn unit_rows(&self, step: &Step) -> usize {
        let matrix = match step {
            Step::Matmul(step) => step.matrix,
            Step::ExpertHidden(step) => step.matrices[0],
            Step::ExpertSum(step) => step.matrices[0],
            Step::HeadProduct(step) => step.matrices[0],
            _ => return 1,
        };
        self.weights.recipe(matrix).unit_rows()
    }

    /// How many parts threads claim: several a thread where a part is work enough to be worth claiming.
    fn chunks(&self, step: &Step, count: usize, threads: usize) -> usize {
        let items = self.items(step, count);
        let least_items = match step {
            Step::Matmul(_) | Step::ExpertHidden(_) | Step::ExpertSum(_) | Step::HeadProduct(_) => {
                UNIT_ROWS / self.unit_rows(step)
            }
            Step::Code { .. } => 32,
            Step::Attention(_) | Step::Recall(_) => 1,
            Step::Heads(step) => 256usize.div_ceil(step.dim),
            Step::Angles { .. } | Step::Embed { .. } | Step::Gather { .. } | Step::Route(_) => 1,
            Step::Combine { .. } | Step::Glu { .. } | Step::Map { .. } | Step::Concat { .. } => 512,
            Step::Conv(_) => 128,
        };
        let is_large =
            matches!(step, Step::Matmul(_) | Step::Attention(_) | Step::ExpertHidden(_) | Step::ExpertSum(_));
        let each = if is_large { CHUNKS_A_THREAD } else { 1 };
        let rows = items * self.unit_rows(step);
        let largest = if matches!(step, Step::Matmul(_)) { rows.div_ceil(4 * GROUP_ROWS) } else { 1 };
        (threads * each).max(largest).min(items.div_ceil(least_items))
    }

    fn run_part(&self, step: &Step, count: usize, selected: &[usize], part: Range<usize>, scratch: &mut Scratch) {
        match step {
            Step::Angles { rope, out } => self.angles(rope, *out, part),
            Step::Embed { ids, table, out } => self.embed(*ids, *table, *out, part, scratch),
            Step::Code { x, out } => self.code(*x, *out, part),
            Step::Heads(step) => self.heads(step, part),
            Step::Matmul(step) => self.matmul(step, count, part, scratch),
            Step::Attention(step) => self.attention(step, part, scratch),
            Step::Combine { multiply, a, b, out } => {
                self.by_row(*out, part, |row, part| self.combine(*multiply, a, b, *out, row, part));
            }
            Step::Glu { a, b, out } => self.by_row(*out, part, |row, part| self.glu(*a, *b, *out, row, part)),
            Step::HeadProduct(step) => self.head_product(step, part),
            Step::Concat { parts, sizes, out } => {
                self.by_row(*out, part, |row, part| self.concat(*parts, *sizes, *out, row, part));
            }
            Step::Conv(step) => self.conv(step, count, part),
            Step::Recall(step) => self.recall(step, count, part),
            Step::Route(step) => self.route(step, part),
            Step::ExpertHidden(step) => self.expert_hidden(step, part),
            Step::ExpertSum(step) => self.expert_sum(step, part),
            Step::Map { map, x, out } => self.by_row(*out, part, |row, part| self.map(*map, *x, *out, row, part)),
            Step::Gather { x, out } => {
                for row in part {
                    self.write(*out, row, 0, self.size(*out)).copy_from_slice(self.row(*x, selected[row]));
                }
            }
        }
    }

    /// Cuts a range of a buffer's elements at its rows.
    fn by_row(&self, buffer: Buffer, part: Range<usize>, mut run: impl FnMut(usize, Range<usize>)) {
        let size = self.size(buffer);
        let mut start = part.start;
        while start < part.end {
            let (row, from) = (start / size, start % size);
            let length = (size - from).min(part.end - start);
            run(row, from..from + length);
            start += length;
        }
    }

    pub(super) fn size(&self, buffer: Buffer) -> usize {
        self.plan.places[buffer].size
    }

    pub(super) fn row(&self, buffer: Buffer, row: usize) -> &[f32] {
        let place = self.plan.places[buffer];
        // SAFETY: the barriers of the plan, see `Execution`: nobody writes a buffer while a step reads it.
        unsafe { self.memory.read(place.start + row * place.size, place.size) }
    }

    /// Part of a row, which only this thread touches in this step.
    #[allow(clippy::mut_from_ref)]
    pub(super) fn write(&self, buffer: Buffer, row: usize, from: usize, length: usize) -> &mut [f32] {
        let place = self.plan.places[buffer];
        // SAFETY: the chunks of a step do not overlap, and the barriers of the plan keep other steps away, see `Execution`.
        unsafe { self.memory.write(place.start + row * place.size + from, length) }
    }

    fn angles(&self, rope: &RopeStep, out: Buffer, rows: Range<usize>) {
        for row in rows {
            let position = self.rows.positions[row] as f32;
            let out = self.write(out, row, 0, rope.frequencies.len() * 2);
            let (cosines, sines) = out.split_at_mut(rope.frequencies.len());
            for ((cosine, sine), frequency) in cosines.iter_mut().zip(sines).zip(&rope.frequencies) {
                let (s, c) = (position * frequency).sin_cos();
                (*cosine, *sine) = (c * rope.magnitude, s * rope.magnitude);
            }
        }
    }

    fn embed(&self, ids: Ids, table: usize, out: Buffer, rows: Range<usize>, scratch: &mut Scratch) {
        let ids = match ids {
            Ids::Tokens => &self.rows.tokens,
            Ids::Positions => &self.rows.positions,
        };
        for row in rows {
            self.weights.row(table, ids[row] as usize, self.write(out, row, 0, self.size(out)), &mut scratch.row);
        }
    }

    /// Items are 32 columns of a row.
    fn code(&self, x: Buffer, out: Buffer, items: Range<usize>) {
        let blocks = self.size(x) / COLUMNS;
        let mut start = items.start;
        while start < items.end {
            let (row, first) = (start / blocks, start % blocks);
            let count = (blocks - first).min(items.end - start);
            let x = &self.row(x, row)[COLUMNS * first..][..COLUMNS * count];
            let heads = self.write(out, row, HEAD * first, HEAD * count);
            let codes = self.write(out, row, HEAD * blocks + COLUMNS / 2 * first, COLUMNS / 2 * count);
            encode_blocks(self.isa, x, bytemuck::cast_slice_mut(heads), bytemuck::cast_slice_mut(codes));
            start += count;
        }
    }

    /// A row of a buffer, with its 16-bit form where there is one.
    pub(super) fn factor(&self, x: Buffer, coded: Option<Buffer>, row: usize) -> Factor<'_> {
        let values = self.row(x, row);
        let coded = coded.map_or_else(Coded::default, |coded| Coded::of(self.row(coded, row), values.len()));
        Factor { x: values, coded }
    }

    fn heads(&self, step: &HeadsStep, items: Range<usize>) {
        for item in items {
            let (row, head) = (item / step.heads, item % step.heads);
            let x = &self.row(step.x, row)[head * step.dim..][..step.dim];
            let out = match step.to {
                Destination::Buffer(out) => self.write(out, row, head * step.dim, step.dim),
                Destination::Cache(cache) => {
                    let start = self.cache_start(cache, row, head) + self.rows.positions[row] as usize * step.dim;
                    // SAFETY: as `write`; two rows never have the same sequence and position.
                    unsafe { self.caches[cache].write(start, step.dim) }
                }
            };
            match &step.norm {
                Some(norm) => math::normalise(self.isa, norm.kind, norm.eps, x, &norm.weight, &norm.bias, out),
                None => out.copy_from_slice(x),
            }
            if let Some(angles) = step.angles {
                rotate(out, self.row(angles.buffer, row), angles.interleaved);
            }
        }
    }

    /// The first float of a row's sequence and a head in a cache.
    fn cache_start(&self, cache: usize, row: usize, head: usize) -> usize {
        let shape = &self.plan.caches[cache];
        (self.rows.sequences[row] as usize * shape.heads + head) * self.context * shape.dim
    }

    /// Part of what a row's sequence keeps from token to token, from this float on, which only this thread touches in this step.
    #[allow(clippy::mut_from_ref)]
    pub(super) fn kept(&self, cache: usize, row: usize, from: usize, length: usize) -> &mut [f32] {
        let shape = &self.plan.caches[cache];
        let start = self.rows.sequences[row] as usize * shape.heads * shape.dim + from;
        // SAFETY: as `write`; a step cuts what it changes as it cuts its items.
        unsafe { self.caches[cache].write(start, length) }
    }

    fn matmul(&self, step: &MatmulStep, count: usize, mut part: Range<usize>, scratch: &mut Scratch) {
        let recipe = self.weights.recipe(step.matrix);
        let gated = matches!(step.epilogue, Epilogue::Gate(_));
        let most = GROUP_ROWS / recipe.unit_rows();
        let panels = |out: usize| recipe.units(out);
        let mut before = 0;
        for out in 0..step.outs.len() {
            let end = (before + panels(out)).min(part.end);
            let group =
                if count <= recipe.tokens() { most } else { (GROUP_BYTES / recipe.unit_bytes(out)).clamp(1, most) };
            while part.start < end {
                let first = part.start - before;
                let last = (first + group).min(end - before);
                self.multiply_group(step, out, first..last, gated, count, scratch);
                part.start = before + last;
            }
            before += panels(out);
        }
    }

    /// Some units of one product for all rows, and their epilogue.
    fn multiply_group(
        &self,
        step: &MatmulStep,
        out: usize,
        units: Range<usize>,
        gated: bool,
        count: usize,
        scratch: &mut Scratch,
    ) {
        let recipe = self.weights.recipe(step.matrix);
        let (rows, unit_rows) = (recipe.rows[out], recipe.unit_rows());
        let start = units.start * unit_rows;
        let width = rows.min(units.end * unit_rows) - start;
        let stride = GROUP_ROWS;
        let mut sums: Sums = Default::default();
        for first in (0..count).step_by(recipe.tokens()) {
            let tokens = (count - first).min(recipe.tokens());
            let mut x = [Factor::default(); blocks::TOKENS];
            for (m, x) in x.iter_mut().enumerate().take(tokens) {
                *x = self.factor(step.x, step.coded, first + m);
            }
            for unit in units.clone() {
                let from = unit * unit_rows;
                let valid = (rows - from).min(unit_rows);
                let bytes = self.weights.unit(step.matrix, out, unit);
                tile::multiply_unit(self.isa, recipe.formats[out], bytes, &x[..tokens], &mut sums);
                for (m, sums) in sums.iter().enumerate().take(tokens) {
                    self.write(step.outs[out], first + m, from, valid).copy_from_slice(&sums[..valid]);
                }
                if gated {
                    let bytes = self.weights.unit(step.matrix, 1, unit);
                    tile::multiply_unit(self.isa, recipe.formats[1], bytes, &x[..tokens], &mut sums);
                    for (m, sums) in sums.iter().enumerate().take(tokens) {
                        scratch.gated[(first + m) * stride + from - start..][..valid].copy_from_slice(&sums[..valid]);
                    }
                }
            }
        }
        for token in 0..count {
            let y = self.write(step.outs[out], token, start, width);
            if let Some(bias) = step.biases[out].get(start..start + width) {
                math::add(self.isa, y, bias);
            }
            match step.epilogue {
                Epilogue::None => {}
                Epilogue::Activate(activation) => math::activate(self.isa, activation, y),
                Epilogue::Gate(activation) => {
                    let other = &mut scratch.gated[token * stride..][..width];
                    if let Some(bias) = step.biases[1].get(start..start + width) {
                        math::add(self.isa, other, bias);
                    }
                    math::activate(self.isa, activation, y);
                    math::multiply(self.isa, y, other);
                }
            }
            if let Some(residual) = step.residual {
                math::add(self.isa, y, &self.row(residual, token)[start..start + width]);
            }
        }
    }

    fn attention(&self, step: &AttentionStep, items: Range<usize>, scratch: &mut Scratch) {
        let group = step.heads / step.kv_heads;
        for item in items {
            let (row, head) = (item / step.heads, item % step.heads);
            let end = self.rows.positions[row] as usize + 1;
            let first = step.window.map_or(0, |window| end.saturating_sub(window));
            let length = end - first;
            let q = &self.row(step.q, row)[head * step.dim..][..step.dim];
            let cached = |cache: usize, dim: usize| {
                let start = self.cache_start(cache, row, head / group) + first * dim;
                // SAFETY: the barriers of the plan: the step that appends is over.
                unsafe { self.caches[cache].read(start, length * dim) }
            };
            let weights = &mut scratch.scores[..length];
            scores(self.isa, q, cached(step.keys, step.dim), step.scale, weights);
            if let Some(cap) = step.softcap {
                math::softcap(self.isa, cap, weights);
            }
            let sum = math::exponentials(self.isa, weights, step.sinks.get(head).copied());
            let out = self.write(step.out, row, head * step.value_dim, step.value_dim);
            if step.latent {
                scratch.values.resize(step.dim, 0.0);
                weighted_sum(self.isa, weights, cached(step.values, step.dim), 1.0 / sum, &mut scratch.values);
                out.copy_from_slice(&scratch.values[..step.value_dim]);
                continue;
            }
            weighted_sum(self.isa, weights, cached(step.values, step.value_dim), 1.0 / sum, out);
        }
    }

    fn combine(&self, multiply: bool, a: &Operand, b: &Operand, out: Buffer, row: usize, part: Range<usize>) {
        let read = |operand| match operand {
            &Operand::Buffer(buffer) => &self.row(buffer, row)[part.clone()],
            Operand::Constant(values) => &values[part.clone()],
        };
        let size = self.size(out);
        let out = self.write(out, row, part.start, part.len());
        out.copy_from_slice(read(a));
        if let &Operand::Buffer(other) = b
            && self.size(other) < size
        {
            // One of these is for several.
            let (values, each) = (self.row(other, row), size / self.size(other));
            for (at, out) in (part.start..).zip(out) {
                let other = values[at / each];
                *out = if multiply { *out * other } else { *out + other };
            }
            return;
        }
        if multiply { math::multiply(self.isa, out, read(b)) } else { math::add(self.isa, out, read(b)) }
    }

    fn map(&self, map: Map, x: Buffer, out: Buffer, row: usize, part: Range<usize>) {
        let out = self.write(out, row, part.start, part.len());
        out.copy_from_slice(&self.row(x, row)[part]);
        match map {
            Map::Activation(activation) => math::activate(self.isa, activation, out),
            Map::Function(function) => math::apply(function, out),
            Map::Scale(factor) => math::scale(self.isa, factor, out),
            Map::Softcap(cap) => math::softcap(self.isa, cap, out),
            Map::Clamp(limit) => out.iter_mut().for_each(|value| *value = value.clamp(-limit, limit)),
        }
    }
}

/// Turns the pairs of a head by their angles; what is beyond them passes.
fn rotate(head: &mut [f32], angles: &[f32], interleaved: bool) {
    let pairs = angles.len() / 2;
    let (cosines, sines) = angles.split_at(pairs);
    let turn = |a: &mut f32, b: &mut f32, i: usize| {
        (*a, *b) = (*a * cosines[i] - *b * sines[i], *b * cosines[i] + *a * sines[i]);
    };
    if interleaved {
        for (i, pair) in head[..2 * pairs].as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let [a, b] = pair;
            turn(a, b, i);
        }
    } else {
        let (low, high) = head[..2 * pairs].split_at_mut(pairs);
        for (i, (a, b)) in low.iter_mut().zip(high).enumerate() {
            turn(a, b, i);
        }
    }
}
