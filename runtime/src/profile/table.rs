//! The profile as text.

use std::fmt;

use super::Profile;

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.plan)?;
        writeln!(f, "{} on {} ({})", self.model, self.device, self.versions)?;
        writeln!(
            f,
            "batch {} at depth {}: {:.1} us per step; read ceiling {:.1} GB/s",
            self.batch,
            self.depth,
            self.step_us,
            self.read_ceiling / 1e9
        )?;
        writeln!(f, "check: {}", self.check)?;
        writeln!(
            f,
            "\n| kernel | launches | us alone | us in the step | total us | % of the step | MB | GB/s alone | % of ceiling |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
        )?;
        for row in &self.kernels {
            writeln!(
                f,
                "| {} | {} | {:.2} | {:.2} | {:.1} | {:.1} | {:.2} | {:.0} | {:.1} |",
                row.kernel,
                row.launches,
                row.alone_us,
                row.step_us,
                row.step_us_total,
                row.step_percent,
                row.bytes as f64 / 1e6,
                row.gigabytes_per_second,
                row.ceiling_percent
            )?;
        }
        let exposed = if self.exposed_us < 0.0 { "overlap hides" } else { "between them show" };
        writeln!(
            f,
            "\nkernels one by one {:.1} us, the step {:.1} us: {exposed} {:.1} us, {:.2} us for each of {} edges",
            self.alone_us,
            self.step_us,
            self.exposed_us.abs(),
            self.exposed_us_per_edge.abs(),
            self.edges
        )?;
        writeln!(
            f,
            "bytes at the ceiling {:.1} us: beyond them the step takes {:.1} us, {:.2} us per edge",
            self.floor_us,
            self.step_us - self.floor_us,
            self.beyond_floor_us_per_edge
        )?;
        if !self.queued {
            writeln!(f, "the launches were not queued when they were timed alone: those times include the host's")?;
        }
        writeln!(f, "\none kernel under Nsight Compute:\n{}", self.ncu)
    }
}
