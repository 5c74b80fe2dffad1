//! The profile as a timeline in the trace event format, which Perfetto opens.

use serde_json::{Value, json};

use super::{LaunchTime, Profile};

/// The tracks of the timeline.
const LAYERS: usize = 1;
const LAUNCHES: usize = 2;

impl Profile {
    /// The timeline of the captured step: one complete event a launch, from where the launch ahead ends to its own end, below its layer's.
    pub fn trace(&self) -> Value {
        let mut events = vec![
            named(
                "process_name",
                0,
                &format!("decode step of {}, batch {}, depth {}", self.model, self.batch, self.depth),
            ),
            named("thread_name", LAYERS, "layers"),
            named("thread_name", LAUNCHES, "launches, by the time each adds to the step"),
        ];
        for of_layer in self.launches.chunk_by(|a, b| a.layer == b.layer) {
            let Some(layer) = of_layer[0].layer else { continue };
            let step_us = of_layer.iter().map(|launch| launch.step_us).sum::<f64>();
            let args = json!({ "launches": of_layer.len() });
            events.push(complete("layer", &format!("layer {layer}"), LAYERS, of_layer[0].start_us, step_us, args));
        }
        for launch in &self.launches {
            events.push(complete("kernel", &launch.node, LAUNCHES, launch.start_us, launch.step_us, arguments(launch)));
        }
        json!({
            "displayTimeUnit": "ns",
            "otherData": { "device": self.device, "versions": self.versions, "plan": self.plan },
            "traceEvents": events,
        })
    }
}

fn arguments(launch: &LaunchTime) -> Value {
    let rate = if launch.alone_us > 0.0 { launch.bytes as f64 / (launch.alone_us * 1e3) } else { 0.0 };
    json!({
        "layer": launch.layer,
        "kernel": launch.kernel,
        "bytes": launch.bytes,
        "GB/s": rounded(rate),
        "us alone": rounded(launch.alone_us),
        "blocks": launch.grid.iter().map(|&blocks| u64::from(blocks)).product::<u64>(),
        "threads a block": launch.threads,
    })
}

/// Times are in microseconds.
fn complete(category: &str, name: &str, track: usize, start: f64, duration: f64, args: Value) -> Value {
    json!({
        "ph": "X", "cat": category, "name": name, "pid": 1, "tid": track,
        "ts": rounded(start), "dur": rounded(start + duration) - rounded(start), "args": args,
    })
}

fn named(what: &str, track: usize, name: &str) -> Value {
    json!({ "ph": "M", "name": what, "pid": 1, "tid": track, "args": { "name": name } })
}

/// To the nanosecond.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}
