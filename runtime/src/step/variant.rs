//! Other forms of a decode step beside an engine's own, over the same weights and caches: what tuning compares.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use fusec::plan::Plan;

use super::engine::{GpuEngine, enqueue, load_kernels};
use super::timing::median;
use crate::device::{DeviceBuffer, GraphExec};

/// A captured decode step of another plan of the same model.
pub struct Variant {
    graph: GraphExec,
    arena: DeviceBuffer,
    logits: usize,
    batch: usize,
    reach: usize,
}

/// A variant beside the engine's own step.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Microseconds of the engine's step: the median of each round.
    pub own: Vec<f64>,
    /// Microseconds of the variant's, of the rounds that followed each of those.
    pub variant: Vec<f64>,
    /// How far the variant's logits are from the engine's: the squared error over the squared logits.
    pub nmse: f64,
}

impl GpuEngine {
    /// Captures the decode step of `batch`, for positions up to `reach`, of another plan, with the device code of its kernels by name. The engine must outlive its use.
    ///
    /// # Errors
    /// A plan with other weights or states, or without this step; device code that is missing.
    pub fn variant(&self, plan: &Plan, cubins: &BTreeMap<&str, &[u8]>, batch: usize, reach: usize) -> Result<Variant> {
        ensure!(
            plan.weights == self.plan.weights && plan.states == self.plan.states,
            "the weights or states of the two plans differ: they are not of one model"
        );
        let kind = plan.decode_at(batch, reach);
        let step = plan.step(kind).with_context(|| format!("the plan has no {kind:?} step"))?;
        let kernels = load_kernels(&self.gpu, plan, cubins, step)?;
        let arena = self.gpu.alloc_zeroed(plan.arena_bytes, "activations")?;
        let addresses = super::Addresses { arena: arena.pointer(), ..self.addresses.clone() };
        let graph = self.stream.capture(|stream| enqueue(stream, plan, &kernels, &addresses, &step.launches, true))?;
        let graph = graph.instantiate(&self.stream)?;
        let logits = step.logits.context("a decode step has logits")?;
        Ok(Variant { graph, arena, logits, batch, reach })
    }

    /// Runs `rounds` rounds of `steps` steps from `depth` on, the engine's own step and the variant's in turn, each step by itself.
    ///
    /// # Errors
    /// A context that is too short, or a fault on the device.
    pub fn compare(&mut self, variant: &Variant, depth: usize, rounds: usize, steps: usize) -> Result<Comparison> {
        let batch = variant.batch;
        ensure!(rounds > 0 && steps > 0, "{rounds} rounds of {steps} steps");
        let last = depth + steps + 2;
        ensure!(last <= variant.reach, "{last} positions, and the variant was captured for {}", variant.reach);
        let kind = self.plan.decode_at(batch, last);
        let (own, _) = self.graph(kind)?;
        let own_logits = self.step(kind)?.logits.context("a decode step has logits")?;
        let (begin, end) = (self.gpu.event()?, self.gpu.event()?);
        let logits_of = |graph: &GraphExec, arena: &DeviceBuffer, offset: usize| -> Result<Vec<f32>> {
            self.begin_decode(batch, depth, steps)?;
            self.time_one(graph, &begin, &end)?;
            let mut logits = vec![0f32; batch * self.plan.vocabulary];
            arena.download(offset, bytemuck::cast_slice_mut(&mut logits))?;
            Ok(logits)
        };
        let expected = logits_of(own, &self.arena, own_logits)?;
        let nmse = nmse(&logits_of(&variant.graph, &variant.arena, variant.logits)?, &expected);
        let round = |graph: &GraphExec| -> Result<f64> {
            self.begin_decode(batch, depth, steps + 2)?;
            let mut times = (0..steps + 2).map(|_| self.time_one(graph, &begin, &end)).collect::<Result<Vec<f64>>>()?;
            Ok(median(&mut times[2..]))
        };
        let mut comparison = Comparison { own: Vec::new(), variant: Vec::new(), nmse };
        for _ in 0..rounds {
            comparison.own.push(round(own)?);
            comparison.variant.push(round(&variant.graph)?);
        }
        Ok(comparison)
    }
}

impl Comparison {
    /// The medians over the rounds: the engine's, the variant's.
    pub fn medians(&self) -> (f64, f64) {
        (median(&mut self.own.clone()), median(&mut self.variant.clone()))
    }

    /// Rounds in which the variant was the faster one.
    pub fn wins(&self) -> usize {
        self.own.iter().zip(&self.variant).filter(|(own, variant)| variant < own).count()
    }
}

/// The squared error of `values` over the squared `expected`; infinite where either is not finite.
fn nmse(values: &[f32], expected: &[f32]) -> f64 {
    let (mut error, mut norm) = (0.0, 0.0);
    for (&value, &expected) in values.iter().zip(expected) {
        error += (f64::from(value) - f64::from(expected)).powi(2);
        norm += f64::from(expected).powi(2);
    }
    let nmse = if error == 0.0 { 0.0 } else { error / norm };
    if nmse.is_finite() { nmse } else { f64::INFINITY }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_that_are_no_numbers_are_far_apart() {
        assert_eq!(nmse(&[1.0, 2.0], &[1.0, 2.0]), 0.0);
        assert_eq!(nmse(&[3.0, 4.0], &[3.0, 5.0]), 1.0 / 34.0);
        assert_eq!(nmse(&[f32::NAN, 2.0], &[1.0, 2.0]), f64::INFINITY);
        assert_eq!(nmse(&[1.0], &[0.0]), f64::INFINITY);
    }

    #[test]
    fn rounds_are_compared_one_by_one() {
        let comparison = Comparison { own: vec![10.0, 12.0, 11.0], variant: vec![9.0, 13.0, 10.0], nmse: 0.0 };
        assert_eq!((comparison.medians(), comparison.wins()), ((11.0, 10.0), 2));
    }
}
