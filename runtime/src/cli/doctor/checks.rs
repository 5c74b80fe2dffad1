//! What is looked at, in the order in which it is told.

use std::fs;
use std::path::{Path, PathBuf};

use fusec::build::{Arch, NVRTC_VARIABLE, Nvrtc};

use super::check::Check;
use super::kernel::try_kernel;
use crate::device::Gpu;
use crate::hub::{self, Settings};
use crate::{cache, cpu as cpus};

/// Device code of a model takes a few MB for each architecture.
const ROOM_FOR_KERNELS: u64 = 256 << 20;

/// The smallest models take as much.
const ROOM_FOR_MODELS: u64 = 1 << 30;

/// All checks.
pub(super) fn all() -> Vec<Check> {
    let gpus = Gpu::count();
    let mut checks = vec![driver(gpus)];
    checks.extend((0..gpus).map(gpu));
    checks.push(nvrtc(gpus > 0));
    if Nvrtc::find().is_ok() {
        checks.extend((0..gpus).map(kernel));
    }
    checks.extend([kernel_cache(), processor(), memory(), models(), program("fuserun"), program("fusec")]);
    checks
}

fn driver(gpus: usize) -> Check {
    let name = "driver";
    let on_cpu = "for a GPU, install NVIDIA's driver, 570 or later; models run on the CPU meanwhile";
    match Gpu::probe() {
        Ok(0) => Check::warn(
            name,
            "NVIDIA's driver finds no GPU",
            "look at nvidia-smi; in a container, give it the GPUs (--gpus all)",
        ),
        Ok(_) => {
            let version = Gpu::open(0).and_then(|gpu| gpu.driver_version());
            let version = version.map_or_else(|error| format!("{error:#}"), |version| format!("CUDA {version}"));
            let count = if gpus == 1 { "1 GPU".to_owned() } else { format!("{gpus} GPUs") };
            Check::pass(name, format!("{version}, {count}"))
        }
        Err(error) if Path::new("/proc/driver/nvidia/version").exists() => Check::fail(
            name,
            format!("{error:#}"),
            "the system has a GPU's driver: look at CUDA_VISIBLE_DEVICES, install 570 or later, or give a container the GPUs (--gpus all)",
        ),
        Err(error) => Check::warn(name, format!("{error:#}"), on_cpu),
    }
}

fn gpu(number: usize) -> Check {
    let name = format!("cuda:{number}");
    let look = || {
        let gpu = Gpu::open(number)?;
        let (major, minor) = gpu.compute_capability()?;
        Ok::<_, anyhow::Error>((gpu.name()?, Arch::for_device(major, minor)?, gpu.multiprocessors()?, gpu.memory()?))
    };
    match look() {
        Err(error) => Check::fail(
            &name,
            format!("{error:#}"),
            "look at nvidia-smi: another process may own it, or it needs a reset",
        ),
        Ok((model, arch, multiprocessors, (free, total))) => {
            let said = format!(
                "{model}, {arch}, {multiprocessors} multiprocessors, {:.1} of {:.1} GB free",
                free as f64 / 1e9,
                total as f64 / 1e9
            );
            if free < total / 2 {
                return Check::warn(&name, said, "other processes hold most of its memory: nvidia-smi lists them");
            }
            Check::pass(&name, said)
        }
    }
}

fn nvrtc(has_gpu: bool) -> Check {
    let name = "nvrtc";
    match Nvrtc::find() {
        Ok(found) => {
            let archs = found.archs();
            let range = archs
                .first()
                .zip(archs.last())
                .map_or(String::new(), |(from, to)| format!(", for sm_{from} to sm_{to}"));
            Check::pass(name, format!("{} at {}{range}", found.version_text(), found.path().display()))
        }
        Err(missing) => {
            let (said, fix) = split(&missing.to_string());
            let named = std::env::var_os(NVRTC_VARIABLE).is_some_and(|value| !value.is_empty());
            match has_gpu || named {
                true => Check::fail(name, said, fix),
                false => Check::warn(
                    name,
                    said,
                    format!("only a GPU needs it, and fusec compile to make device code: {fix}"),
                ),
            }
        }
    }
}

/// What is wrong, and what to do, of a message that says both.
fn split(message: &str) -> (String, String) {
    let (said, fix) = message.rsplit_once(": ").unwrap_or((message, "see docs/guide.md"));
    (said.to_owned(), fix.to_owned())
}

fn kernel(number: usize) -> Check {
    let name = "kernel";
    match Gpu::open(number).and_then(|gpu| try_kernel(&gpu)) {
        Ok(()) => Check::pass(name, format!("compiled, launched and captured on cuda:{number}, with right results")),
        Err(error) => Check::fail(
            name,
            format!("on cuda:{number}: {error:#}"),
            "driver and NVRTC must fit each other: update the driver, or name another NVRTC in FUSE_NVRTC",
        ),
    }
}

fn kernel_cache() -> Check {
    let name = "cache";
    let Some(folder) = cache::folder("kernels") else {
        return Check::warn(name, "there is no place to keep kernels", "set FUSE_CACHE to a folder");
    };
    let at = folder.display();
    if let Err(error) = writable(&folder) {
        let fix = "kernels are compiled at each start: let FUSE_CACHE name a folder that can be written";
        return Check::warn(name, format!("{at} cannot be written: {error}"), fix);
    }
    let kept = fs::read_dir(&folder).into_iter().flatten().flatten().filter_map(|entry| entry.metadata().ok());
    let bytes: u64 = kept.map(|file| file.len()).sum();
    let free = cache::free(&folder);
    let said = format!("{at}, {:.1} MB of kernels{}", bytes as f64 / 1e6, told_free(free));
    if free.is_some_and(|free| free < ROOM_FOR_KERNELS) {
        return Check::warn(name, said, "kernels may not fit: make room, or let FUSE_CACHE name another folder");
    }
    Check::pass(name, said)
}

/// Makes the folder and a file in it, and takes the file away.
fn writable(folder: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    let file = folder.join(format!(".partial-doctor-{}", std::process::id()));
    fs::write(&file, [0; 4096]).and_then(|()| fs::remove_file(&file))
}

fn told_free(free: Option<u64>) -> String {
    free.map_or(String::new(), |free| format!(", {:.1} GB free", free as f64 / 1e9))
}

fn processor() -> Check {
    let said = cpu();
    match cpus::instructions() {
        "" => Check::warn("cpu", said, "on x86, a processor with AVX2 is several times faster"),
        _ => Check::pass("cpu", said),
    }
}

/// Threads and instructions of the CPU, in a line.
pub fn cpu() -> String {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let instructions = match cpus::instructions() {
        "" => "no vector instructions that are used",
        instructions => instructions,
    };
    format!("{threads} threads, {instructions}")
}

fn memory() -> Check {
    let Some(free) = cpus::available_memory() else { return Check::pass("memory", "the system does not say") };
    let said = format!("{:.1} GB free", free as f64 / 1e9);
    if (free as u64) < ROOM_FOR_MODELS {
        return Check::warn("memory", said, "models on the CPU need their weights in memory: end other programs");
    }
    Check::pass("memory", said)
}

fn models() -> Check {
    let name = "hub";
    let settings = match Settings::from_environment() {
        Ok(settings) => settings,
        Err(error) => {
            return Check::warn(name, format!("{error:#}"), "only fuserun pull and -m OWNER/NAME need the hub");
        }
    };
    let count = match hub::cached(&settings).len() {
        1 => "1 model".to_owned(),
        count => format!("{count} models"),
    };
    let token = if settings.token.is_some() { "a token" } else { "no token" };
    let offline = if settings.offline { ", offline" } else { "" };
    let at = settings.cache.display();
    let free = cache::free(&settings.cache);
    let said = format!("{at}, {count}, {token}, {}{offline}{}", settings.endpoint, told_free(free));
    if free.is_some_and(|free| free < ROOM_FOR_MODELS) {
        return Check::warn(
            name,
            said,
            "models do not fit there: make room, or let HF_HUB_CACHE or HF_HOME name another folder",
        );
    }
    Check::pass(name, said)
}

/// Models in the hub's cache, by name.
pub fn hub_models() -> Vec<String> {
    Settings::from_environment().map_or_else(|_| Vec::new(), |settings| hub::cached(&settings))
}

/// The GPUs, each with the memory that is free.
pub fn gpu_names() -> Vec<String> {
    let name = |number: usize| {
        let gpu = Gpu::open(number).ok()?;
        let (free, total) = gpu.memory().ok()?;
        Some(format!("{}, {:.0} of {:.0} GB free", gpu.name().ok()?, free as f64 / 1e9, total as f64 / 1e9))
    };
    (0..Gpu::count()).filter_map(name).collect()
}

/// Whether the shell finds this program under its name, and none that is called the same.
fn program(name: &str) -> Check {
    let label = format!("name:{name}");
    let own = std::env::current_exe().and_then(fs::canonicalize).unwrap_or_default().with_file_name(name);
    match on_path(name) {
        None => Check::pass(&label, format!("no other program is called {name}")),
        Some(found) if fs::canonicalize(&found).is_ok_and(|found| found == own) => {
            Check::pass(&label, format!("{} is this one", found.display()))
        }
        Some(found) => Check::warn(
            &label,
            format!("{} is what a shell finds, and not {}", found.display(), own.display()),
            format!("put {} before it in PATH, or remove the other", own.parent().unwrap_or(&own).display()),
        ),
    }
}

/// The first program of a name in PATH.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(file).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}
