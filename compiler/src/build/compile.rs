use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use anyhow::{Context, Result, bail};

use super::cache::{self, Cache};
use super::errors::first_errors;
use super::{Arch, Nvrtc, ResourceReport};
use crate::console::tell;
use crate::threads;

/// The device code of one source and what is known about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// An ELF file that the driver loads on devices which [`Arch::runs_on`] allows.
    pub cubin: Vec<u8>,
    /// Registers, shared memory and spills of each kernel.
    pub report: ResourceReport,
    /// What the compiler and the assembler wrote, warnings included, without its timings.
    pub log: String,
}

/// How sources are compiled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Threads to compile on; none: as many as the machine has.
    pub threads: Option<NonZeroUsize>,
    /// A folder that keeps device code by content; none: everything is compiled each time. One that cannot be written keeps nothing, and a line on
    /// stderr says so.
    pub cache: Option<PathBuf>,
    /// Put source lines into the cubin, for profilers. The code is the same.
    pub line_info: bool,
}

impl Nvrtc {
    /// Compiles one CUDA source, called `name` in messages, for one architecture. No headers, no fast maths, C++17.
    ///
    /// # Errors
    /// When this NVRTC does not know `arch`, or when the source does not compile: the message carries the name and the first errors with
    /// the lines they are on.
    pub fn compile(self, source: &str, name: &str, arch: Arch) -> Result<Compiled> {
        self.compile_cached(source, name, arch, false, None, &OnceLock::new())
    }

    /// `unkept` is told why the cache does not take what was compiled.
    fn compile_cached(
        self,
        source: &str,
        name: &str,
        arch: Arch,
        line_info: bool,
        cache: Option<&Cache<'_>>,
        unkept: &OnceLock<String>,
    ) -> Result<Compiled> {
        if !self.archs().contains(&arch.number()) {
            let known: Vec<String> = self.archs().iter().map(|number| format!("sm_{number}")).collect();
            bail!("NVRTC {} does not compile for {arch}; it knows {}", self.version_text(), known.join(", "));
        }
        let options = options(arch, line_info);
        let key = cache.map(|_| cache::key(&[&self.version_text(), name, &options.join(" "), source]));
        if let Some((cubin, log)) = cache.zip(key.as_ref()).and_then(|(cache, key)| cache.get(key)) {
            return Ok(Compiled { cubin, report: ResourceReport::from_log(&log), log });
        }

        let file = format!("{name}.cu");
        let outcome =
            self.api().compile(source, &file, &options).with_context(|| format!("kernel `{name}` for {arch}"))?;
        let log = without_timings(&outcome.log);
        let Some(cubin) = outcome.cubin else {
            bail!(
                "kernel `{name}` does not compile for {arch} (NVRTC {}):{}",
                self.version_text(),
                first_errors(&log, &file, source)
            );
        };
        if let Some((cache, key)) = cache.zip(key) {
            cache.put(&key, &cubin, &log).unwrap_or_else(|error| drop(unkept.set(format!("{error:#}"))));
        }
        Ok(Compiled { cubin, report: ResourceReport::from_log(&log), log })
    }
}

/// Compiles every source, name to CUDA text, for one architecture, on several threads. The result does not depend on their number.
///
/// # Errors
/// As [`Nvrtc::compile`], for the first source by name that fails, with the number of others that do.
pub fn compile_all(
    nvrtc: Nvrtc,
    sources: &BTreeMap<String, String>,
    arch: Arch,
    options: &Options,
) -> Result<BTreeMap<String, Compiled>> {
    let unkept = OnceLock::new();
    let opened = options.cache.as_deref().map(Cache::open);
    let cache = opened.and_then(|opened| opened.map_err(|error| unkept.set(format!("{error:#}"))).ok());
    let jobs: Vec<(&String, &String)> = sources.iter().collect();
    let next = AtomicUsize::new(0);
    let done = Mutex::new(BTreeMap::new());
    let threads = options.threads.map_or_else(threads::available, NonZeroUsize::get).min(jobs.len());
    threads::run(threads, || {
        while let Some((name, source)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = nvrtc.compile_cached(source, name, arch, options.line_info, cache.as_ref(), &unkept);
            done.lock().expect("a compilation does not panic").insert((*name).clone(), result);
        }
    });

    if let Some(why) = unkept.get() {
        tell(format!("compiled kernels are not kept, and the next start compiles them again: {why}"));
    }
    let mut compiled = BTreeMap::new();
    let mut failures = Vec::new();
    for (name, result) in done.into_inner().expect("a compilation does not panic") {
        match result {
            Ok(kernel) => drop(compiled.insert(name, kernel)),
            Err(error) => failures.push(error),
        }
    }
    let others = failures.len().saturating_sub(1);
    match failures.into_iter().next() {
        None => Ok(compiled),
        Some(error) if others == 0 => Err(error),
        Some(error) => {
            Err(error.context(format!("{} of {} kernels do not compile; the first", others + 1, jobs.len())))
        }
    }
}

/// Numerics are judged against fp32 references, so nothing here trades accuracy for speed.
fn options(arch: Arch, line_info: bool) -> Vec<String> {
    let mut options = vec![format!("--gpu-architecture={arch}"), "--std=c++17".into(), "--ptxas-options=-v".into()];
    options.extend(["--ftz=false", "--prec-div=true", "--prec-sqrt=true", "--fmad=true"].map(String::from));
    if line_info {
        options.push("-lineinfo".into());
    }
    options
}

fn without_timings(log: &str) -> String {
    log.lines().filter(|line| !line.contains("Compile time = ")).flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::testing::{nvrtc, scratch};

    const ADD_ONE: &str = "\
extern \"C\" __global__ void add_one(float* values) {
    __shared__ float tile[256];
    tile[threadIdx.x] = values[threadIdx.x];
    __syncthreads();
    values[threadIdx.x] = tile[255 - threadIdx.x] + 1.0f;
}
";

    fn arch(name: &str) -> Arch {
        name.parse().unwrap()
    }

    #[test]
    fn a_kernel_compiles_for_every_supported_arch() {
        for name in crate::build::SUPPORTED_ARCHS {
            if !nvrtc().archs().contains(&arch(name).number()) {
                continue;
            }
            let compiled = nvrtc().compile(ADD_ONE, "add_one", arch(name)).unwrap();
            assert!(compiled.cubin.starts_with(b"\x7fELF"));
            let kernel = compiled.report.kernel("add_one").expect("the report names the kernel");
            assert_eq!(kernel.shared_bytes, 1024, "{name}: {}", compiled.log);
            assert!(kernel.registers > 0 && compiled.report.is_free_of_spills());
        }
    }

    #[test]
    fn a_spill_is_reported() {
        let source = "extern \"C\" __global__ void __launch_bounds__(1024, 2) greedy(float* p) {
            float l[60];
            for (int i = 0; i < 60; i++) l[i] = p[threadIdx.x + i * 1024];
            __syncthreads();
            for (int i = 0; i < 60; i++) p[threadIdx.x * 60 + i] = l[i];
        }";
        let compiled = nvrtc().compile(source, "greedy", arch("sm_90a")).unwrap();
        let kernel = compiled.report.kernel("greedy").unwrap();
        assert!(
            kernel.spill_store_bytes > 0 && kernel.spill_load_bytes > 0 && kernel.stack_bytes > 0,
            "{}",
            compiled.log
        );
        assert!(!compiled.report.is_free_of_spills());
    }

    #[test]
    fn an_error_names_the_kernel_and_shows_the_line() {
        let source = "extern \"C\" __global__ void broken(float* y) {\n    y[0] = missing;\n}\n";
        let error = nvrtc().compile(source, "broken", arch("sm_90a")).unwrap_err().to_string();
        assert!(error.starts_with("kernel `broken` does not compile for sm_90a (NVRTC "), "{error}");
        assert!(
            error.ends_with("broken.cu(2): error: identifier \"missing\" is undefined\n    2 |     y[0] = missing;"),
            "{error}"
        );
    }

    #[test]
    fn chip_specific_code_needs_the_specific_arch() {
        let source = "extern \"C\" __global__ void fence() { asm volatile(\"wgmma.fence.sync.aligned;\"); }";
        nvrtc().compile(source, "fence", arch("sm_90a")).unwrap();
        let error = nvrtc().compile(source, "fence", arch("sm_90")).unwrap_err().to_string();
        assert!(error.contains("kernel `fence`") && error.contains("wgmma"), "{error}");
    }

    #[test]
    fn a_zero_byte_is_an_error() {
        let error = format!("{:#}", nvrtc().compile("\0", "zero", arch("sm_80")).unwrap_err());
        assert_eq!(
            error.split(": ").take(2).collect::<Vec<_>>(),
            ["kernel `zero` for sm_80", "the source holds a zero byte"]
        );
    }

    #[test]
    fn threads_and_cache_change_nothing() {
        let folder = scratch("compile-cache");
        let kernel = |i: u32| ADD_ONE.replace("1.0f", &format!("{i}.0f"));
        let sources: BTreeMap<String, String> = (0..6).map(|i| (format!("k{i}"), kernel(i))).collect();
        let build = |threads, cache: Option<PathBuf>| {
            let options = Options { threads: NonZeroUsize::new(threads), cache, line_info: false };
            compile_all(nvrtc(), &sources, arch("sm_89"), &options).unwrap()
        };
        let serial = build(1, None);
        assert_eq!(serial.keys().collect::<Vec<_>>(), sources.keys().collect::<Vec<_>>());
        assert_eq!(serial, build(4, None));
        assert_eq!(serial, build(2, Some(folder.clone())));
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 12);
        assert_eq!(serial, build(2, Some(folder.clone())));
    }

    #[test]
    fn the_cache_is_used_and_survives_a_cut_file() {
        let folder = scratch("compile-cut-cache");
        let sources = BTreeMap::from([("add_one".to_owned(), ADD_ONE.to_owned())]);
        let options = Options { cache: Some(folder.clone()), ..Options::default() };
        let build = || compile_all(nvrtc(), &sources, arch("sm_80"), &options).unwrap().remove("add_one").unwrap();
        let compiled = build();
        let file = |extension: &str| {
            let mut files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
            files.find(|path| path.extension().is_some_and(|found| found == extension)).unwrap()
        };

        std::fs::write(file("log"), "from the cache\n").unwrap();
        assert_eq!(build().log, "from the cache\n");

        std::fs::write(file("cubin"), &compiled.cubin[..compiled.cubin.len() / 2]).unwrap();
        assert_eq!(build(), compiled);
    }

    #[test]
    fn several_failures_are_counted() {
        let source = |text: &str| text.to_owned();
        let sources =
            BTreeMap::from([("a".into(), source("x")), ("b".into(), source(ADD_ONE)), ("c".into(), source("y"))]);
        let error = format!("{:#}", compile_all(nvrtc(), &sources, arch("sm_80"), &Options::default()).unwrap_err());
        assert!(error.starts_with("2 of 3 kernels do not compile; the first: kernel `a` does not compile"), "{error}");
    }
}
