use serde::{Deserialize, Serialize};

/// What the assembler says about every kernel of one source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceReport {
    /// One entry a kernel, sorted by name.
    pub kernels: Vec<KernelReport>,
}

/// The resources of one kernel; sizes in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelReport {
    /// The entry point as the cubin names it.
    pub name: String,
    /// Registers a thread.
    pub registers: u32,
    /// Static shared memory a block; dynamic shared memory is not in it.
    pub shared_bytes: u32,
    /// Local-memory frame a thread, spills included.
    pub stack_bytes: u32,
    /// Bytes stored to local memory because registers ran out.
    pub spill_store_bytes: u32,
    /// Bytes loaded back from there.
    pub spill_load_bytes: u32,
}

impl ResourceReport {
    /// The entry of the kernel called `name`, if the source has it.
    pub fn kernel(&self, name: &str) -> Option<&KernelReport> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }

    /// Whether no kernel spills a register.
    pub fn is_free_of_spills(&self) -> bool {
        self.kernels.iter().all(|kernel| kernel.spill_store_bytes == 0 && kernel.spill_load_bytes == 0)
    }

    /// Reads what `--ptxas-options=-v` writes into the compile log.
    pub(super) fn from_log(log: &str) -> ResourceReport {
        let mut kernels: Vec<KernelReport> = Vec::new();
        for line in log.lines() {
            if let Some((_, rest)) = line.split_once("Compiling entry function '") {
                let name = rest.split('\'').next().unwrap_or_default().to_owned();
                kernels.push(KernelReport { name, ..KernelReport::default() });
            }
            let Some(kernel) = kernels.last_mut() else { continue };
            if line.contains("bytes stack frame") {
                // A function that was not inlined has a line of its own under the kernel: the frames and spills add up.
                kernel.stack_bytes += number_before(line, "bytes stack frame");
                kernel.spill_store_bytes += number_before(line, "bytes spill stores");
                kernel.spill_load_bytes += number_before(line, "bytes spill loads");
            } else if line.contains(" registers") {
                kernel.registers = number_before(line, "registers");
                kernel.shared_bytes = number_before(line, "bytes smem");
            }
        }
        kernels.sort_by(|a, b| a.name.cmp(&b.name));
        ResourceReport { kernels }
    }
}

/// The number written before `unit`, zero where the unit is absent (the assembler leaves out what a kernel does not use).
fn number_before(line: &str, unit: &str) -> u32 {
    let before = line.find(unit).and_then(|at| line[..at].split_whitespace().next_back());
    before.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'spills' for 'sm_90a'
ptxas info    : Function properties for spills
ptxas         .     256 bytes stack frame, 252 bytes spill stores, 248 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 256 bytes cumulative stack size
ptxas info    : Compiling entry function 'clean' for 'sm_90a'
ptxas info    : Function properties for clean
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 22 registers, used 1 barriers, 1024 bytes smem
";

    #[test]
    fn a_log_of_two_kernels_gives_two_entries() {
        let report = ResourceReport::from_log(LOG);
        let clean = KernelReport { name: "clean".into(), registers: 22, shared_bytes: 1024, ..KernelReport::default() };
        let spills = KernelReport {
            name: "spills".into(),
            registers: 32,
            shared_bytes: 0,
            stack_bytes: 256,
            spill_store_bytes: 252,
            spill_load_bytes: 248,
        };
        assert_eq!(report.kernels, [clean, spills]);
        assert!(!report.is_free_of_spills());
    }

    #[test]
    fn a_log_with_no_kernel_gives_an_empty_report() {
        assert_eq!(ResourceReport::from_log("ptxas info    : 0 bytes gmem\n"), ResourceReport::default());
    }
}
