//! How much of a prompt is taken beside others.

use std::collections::BTreeMap;
use std::time::Duration;

/// How long a part of a prompt may keep others from their next tokens, where a step does not take half as long itself.
pub const BESIDE: Duration = Duration::from_millis(25);

/// How long parts of prompts take, by their size. What was measured last counts most.
#[derive(Debug, Default)]
pub struct Parts {
    /// Of powers of two.
    times: BTreeMap<usize, Duration>,
    step: Duration,
}

impl Parts {
    /// Nothing is measured.
    pub fn new() -> Parts {
        Parts::default()
    }

    /// A part of that many tokens took so long. Only sizes that [`Parts::most`] gives are noted.
    pub fn read(&mut self, count: usize, took: Duration) {
        if !count.is_power_of_two() {
            return;
        }
        let time = self.times.entry(count).or_insert(took);
        // One that was slow once is not tried at once again.
        *time = if took > *time { took } else { (*time + took) / 2 };
        // Nor is it shunned for ever.
        self.times.range_mut(count + 1..).for_each(|(_, time)| *time -= *time / 128);
    }

    /// A step took so long.
    pub fn stepped(&mut self, took: Duration) {
        self.step = if self.step.is_zero() { took } else { (7 * self.step + took) / 8 };
    }

    /// The largest power of two, at most `limit`, of which a part takes no longer than others may wait, as far as is known; at least 1. Sizes that were not measured
    /// are come to by doubling, if what those before took lets hope for them.
    pub fn most(&self, limit: usize) -> usize {
        let bound = BESIDE.max(2 * self.step);
        let mut most = 1;
        while 2 * most <= limit {
            let time = |count: usize| self.times.get(&count).copied();
            // A part takes some time, and each of its tokens some more.
            let grown = |time_of_most: Duration| {
                let half = time(most / 2).unwrap_or(time_of_most);
                time_of_most + 2 * time_of_most.saturating_sub(half)
            };
            if time(2 * most).or_else(|| time(most).map(grown)).is_none_or(|time| time > bound) {
                break;
            }
            most *= 2;
        }
        most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Parts as they are taken of a device whose parts take so long: the last of many.
    fn settled(parts: &mut Parts, took: impl Fn(usize) -> Duration) -> usize {
        for _ in 0..20 {
            let most = parts.most(512);
            parts.read(most, took(most));
        }
        parts.most(512)
    }

    #[test]
    fn parts_grow_to_what_others_may_wait_for() {
        let of = |took: &dyn Fn(usize) -> Duration| settled(&mut Parts::new(), took);
        assert_eq!(Parts::new().most(512), 1, "nothing is known");
        assert_eq!(of(&|count| MS * count as u32 / 4), 64, "16 ms; 32 would be too long");
        assert_eq!(of(&|count| MS * 5 + MS * count as u32 / 20), 256, "17.8 ms");
        assert_eq!(of(&|_| MS), 512, "no more than there is room for");
        assert_eq!(of(&|count| MS * 30 * count as u32), 1, "even one is too long");
        let mut parts = Parts::new();
        settled(&mut parts, |_| MS);
        assert_eq!((parts.most(100), parts.most(1)), (64, 1));
    }

    /// A token that is read as slowly as a step is made does not make all parts short.
    #[test]
    fn a_slow_device_reads_for_as_long_as_two_steps() {
        let mut parts = Parts::new();
        let took = |count: usize| MS * 40 + MS * count as u32;
        assert_eq!(settled(&mut parts, took), 1, "others are not known to take as long");
        parts.stepped(MS * 41);
        assert_eq!(settled(&mut parts, took), 32, "72 ms; 64 would take 104");
    }

    #[test]
    fn one_slow_part_is_forgotten_and_a_slow_size_is_not_tried_at_once() {
        let mut parts = Parts::new();
        let took = |count: usize| MS * count as u32 / 4;
        assert_eq!(settled(&mut parts, took), 64);
        parts.read(64, MS * 90);
        assert_eq!(parts.most(512), 32);
        let waits = (0..1000)
            .take_while(|_| {
                parts.most(512) == 32 && {
                    parts.read(32, took(32));
                    true
                }
            })
            .count();
        assert!((100..300).contains(&waits), "{waits} parts");
        parts.read(64, took(64));
        assert_eq!(parts.most(512), 64);
    }
}
