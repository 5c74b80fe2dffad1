//! Where the time of a decode step goes: its launches as they were timed, in a table, as a timeline, and one of them for Nsight Compute.

mod ncu;
mod table;
mod trace;

use std::collections::BTreeMap;

use fusec::plan::{Plan, Step};
use serde::Serialize;

use crate::step::LaunchTimes;

pub use ncu::{command, kernel_named};

/// A decode step, taken apart.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Profile {
    /// What was named.
    pub model: String,
    /// What it ran on.
    pub device: String,
    /// Of the driver and of this program.
    pub versions: String,
    /// The plan in one line.
    pub plan: String,
    /// Sequences.
    pub batch: usize,
    /// The position of the step.
    pub depth: usize,
    /// Bytes a second.
    pub read_ceiling: f64,
    /// Microseconds of the captured step, run by itself.
    pub step_us: f64,
    /// Microseconds that the kernels take one by one, nothing overlapping, together.
    pub alone_us: f64,
    /// The step less the kernels one by one: what shows between them. Below zero it is what overlap hides.
    pub exposed_us: f64,
    /// Dependencies between launches.
    pub edges: usize,
    /// `exposed_us` an edge.
    pub exposed_us_per_edge: f64,
    /// Microseconds that the bytes of weights and caches take at the read ceiling.
    pub floor_us: f64,
    /// The step less the floor, an edge.
    pub beyond_floor_us_per_edge: f64,
    /// Whether the launches lay ready when they were timed one by one; if not, the host's time is in `alone_us`.
    pub queued: bool,
    /// How what was timed was checked.
    pub check: String,
    /// How to look at one kernel with Nsight Compute.
    pub ncu: String,
    /// By kernel, the most of the step first.
    pub kernels: Vec<KernelTime>,
    /// In the order of the step.
    pub launches: Vec<LaunchTime>,
}

/// All launches of one kernel in the step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelTime {
    /// Its name.
    pub kernel: String,
    /// How often the step launches it.
    pub launches: usize,
    /// Bytes of weights and caches that a launch reads: the mean.
    pub bytes: usize,
    /// Microseconds of a launch by itself: the mean.
    pub alone_us: f64,
    /// Microseconds that a launch adds to the step: the mean.
    pub step_us: f64,
    /// The same, all launches together.
    pub step_us_total: f64,
    /// That of the step's time.
    pub step_percent: f64,
    /// `bytes` in `alone_us`.
    pub gigabytes_per_second: f64,
    /// That of the read ceiling.
    pub ceiling_percent: f64,
}

/// One launch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LaunchTime {
    /// The kernel's name.
    pub kernel: String,
    /// The graph node it computes, or a part of it.
    pub node: String,
    /// The layer of that node.
    pub layer: Option<usize>,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads a block.
    pub threads: u32,
    /// Bytes of weights and caches it reads.
    pub bytes: usize,
    /// Microseconds by itself.
    pub alone_us: f64,
    /// Microseconds from the step's start to the end of the launch ahead.
    pub start_us: f64,
    /// Microseconds that it adds to the step.
    pub step_us: f64,
}

impl Profile {
    /// Puts together what was measured of `step`. What describes the run is left to the caller.
    pub fn new(plan: &Plan, step: &Step, times: &LaunchTimes, batch: usize, depth: usize, ceiling: f64) -> Profile {
        let mut launches = Vec::with_capacity(step.launches.len());
        let mut start_us = 0.0f64;
        for ((launch, &alone_us), &end) in step.launches.iter().zip(&times.alone).zip(&times.ends) {
            let kernel = &plan.kernels[launch.kernel];
            // A launch that ends before the one ahead does so by the noise of the measurement.
            let end = end.max(start_us);
            launches.push(LaunchTime {
                kernel: kernel.name.clone(),
                node: launch.node.clone(),
                layer: launch.layer,
                grid: launch.grid,
                threads: kernel.threads,
                bytes: launch.reads.at(depth),
                alone_us,
                start_us,
                step_us: end - start_us,
            });
            start_us = end;
        }
        let step_us = start_us;
        let alone_us: f64 = launches.iter().map(|launch| launch.alone_us).sum();
        let floor_us = launches.iter().map(|launch| launch.bytes as f64).sum::<f64>() / ceiling * 1e6;
        let edges = launches.len().saturating_sub(1);
        let per_edge = |us: f64| us / edges.max(1) as f64;
        Profile {
            model: String::new(),
            device: String::new(),
            versions: String::new(),
            plan: plan.summary(),
            batch,
            depth,
            read_ceiling: ceiling,
            step_us,
            alone_us,
            exposed_us: step_us - alone_us,
            edges,
            exposed_us_per_edge: per_edge(step_us - alone_us),
            floor_us,
            beyond_floor_us_per_edge: per_edge(step_us - floor_us),
            queued: times.queued,
            check: String::new(),
            ncu: String::new(),
            kernels: by_kernel(&launches, step_us, ceiling),
            launches,
        }
    }
}

fn by_kernel(launches: &[LaunchTime], step_us: f64, ceiling: f64) -> Vec<KernelTime> {
    let mut of_kernel: BTreeMap<&str, Vec<&LaunchTime>> = BTreeMap::new();
    for launch in launches {
        of_kernel.entry(&launch.kernel).or_default().push(launch);
    }
    let mut kernels: Vec<KernelTime> = of_kernel
        .into_iter()
        .map(|(kernel, launches)| {
            let count = launches.len();
            let bytes = launches.iter().map(|launch| launch.bytes).sum::<usize>() / count;
            let alone_us = launches.iter().map(|launch| launch.alone_us).sum::<f64>() / count as f64;
            let step_us_total: f64 = launches.iter().map(|launch| launch.step_us).sum();
            let rate = if alone_us > 0.0 { bytes as f64 / (alone_us * 1e-6) } else { 0.0 };
            KernelTime {
                kernel: kernel.to_owned(),
                launches: count,
                bytes,
                alone_us,
                step_us: step_us_total / count as f64,
                step_us_total,
                step_percent: if step_us > 0.0 { 100.0 * step_us_total / step_us } else { 0.0 },
                gigabytes_per_second: rate / 1e9,
                ceiling_percent: 100.0 * rate / ceiling,
            }
        })
        .collect();
    kernels.sort_by(|a, b| b.step_us_total.total_cmp(&a.step_us_total).then_with(|| a.kernel.cmp(&b.kernel)));
    kernels
}

#[cfg(test)]
mod tests;
