//! What is counted, for `/metrics`.

use std::fmt;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::engine::Snapshot;

/// Counters and histograms of a server.
pub struct Metrics {
    registry: Registry,
    pub requests: Counter,
    /// Requests that were not served, whatever the reason.
    pub problems: Counter,
    prompt: Counter,
    cached: Counter,
    generated: Counter,
    first: Histogram,
    gap: Histogram,
    busy: Gauge,
    waiting: Gauge,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::with_prefix("fuserun");
        let seconds =
            || Histogram::new([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]);
        let (requests, problems, prompt, cached, generated) = Default::default();
        let (first, gap) = (seconds(), seconds());
        let (busy, waiting) = Default::default();
        let metrics = Metrics {
            registry: Registry::default(),
            requests,
            problems,
            prompt,
            cached,
            generated,
            first,
            gap,
            busy,
            waiting,
        };
        for (name, help, counter) in [
            ("requests", "Requests that were taken", &metrics.requests),
            ("problems", "Requests that were answered with an error", &metrics.problems),
            ("prompt_tokens", "Tokens of prompts", &metrics.prompt),
            ("cached_tokens", "Tokens of prompts that were there from another request", &metrics.cached),
            ("generated_tokens", "Tokens of answers", &metrics.generated),
        ] {
            registry.register(name, help, counter.clone());
        }
        registry.register("first_token_seconds", "Time from a request to its first token", metrics.first.clone());
        registry.register("token_gap_seconds", "Time between the tokens of a request", metrics.gap.clone());
        registry.register("slots_busy", "Slots that have a request", metrics.busy.clone());
        registry.register("requests_waiting", "Requests that wait for a slot", metrics.waiting.clone());
        Metrics { registry, ..metrics }
    }
}

impl Metrics {
    /// Notes a prompt that was read.
    pub fn read(&self, tokens: usize, cached: usize) {
        self.prompt.inc_by(tokens as u64);
        self.cached.inc_by(cached as u64);
    }

    /// Notes a token: how long after its request, and after the one before it, where there is one.
    pub fn token(&self, since_request: Duration, since_token: Option<Duration>) {
        self.generated.inc();
        match since_token {
            None => self.first.observe(since_request.as_secs_f64()),
            Some(gap) => self.gap.observe(gap.as_secs_f64()),
        }
    }

    /// All of it as OpenMetrics text.
    pub fn text(&self, now: &Snapshot) -> Result<String, fmt::Error> {
        self.busy.set(now.slots.iter().flatten().count() as i64);
        self.waiting.set(now.waiting as i64);
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
