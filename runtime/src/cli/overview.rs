//! What `fuserun` says where it is given nothing to do: what it found, and what to try.

use std::fmt::Write;

use anyhow::Result;
use fusec::build::Nvrtc;
use fusec::console::show;

use super::doctor::{cpu, gpu_names, hub_models};
use crate::cpu::available_memory;

/// A small model that most machines can run.
const SMALL: &str = "Qwen/Qwen3-0.6B";

/// Models that are named, at most.
const SHOWN: usize = 3;

/// Three lines about this machine, three commands to copy, and where there is more.
pub fn run() -> Result<()> {
    let (gpus, models) = (gpu_names(), hub_models());
    let mut text = String::new();
    let (device, beside) = match &gpus[..] {
        [] => (format!("no NVIDIA GPU: models run on the CPU, {}", cpu()), free_memory()),
        [gpu] => (gpu.clone(), nvrtc()),
        [gpu, ..] => (format!("{} GPUs, the first {gpu}", gpus.len()), nvrtc()),
    };
    let there = match &models[..] {
        [] => "models: the demo model inside, and none in the hub's cache".to_owned(),
        _ => {
            let more = if models.len() > SHOWN { format!(" and {} more", models.len() - SHOWN) } else { String::new() };
            let first: Vec<&str> = models.iter().take(SHOWN).map(String::as_str).collect();
            format!("models: the demo model inside, and in the hub's cache {}{more}", first.join(", "))
        }
    };
    let (get, talk) = match models.first() {
        None => {
            (format!("fuserun chat -m {SMALL} --pull"), format!("gets {SMALL} from the hub (1.5 GB) and talks with it"))
        }
        Some(model) => (format!("fuserun chat -m {model}"), "talks with that model".to_owned()),
    };
    let serve = models.first().map_or("fuserun serve".to_owned(), |model| format!("fuserun serve -m {model}"));
    let commands = [
        ("fuserun generate \"Call me\"".to_owned(), "continues a text with the demo model".to_owned()),
        (get, talk),
        (serve, "answers clients of OpenAI, Anthropic and Ollama over HTTP".to_owned()),
    ];
    let width = commands.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
    write!(text, "{device}\n{beside}\n{there}\n\n")?;
    for (command, what) in &commands {
        writeln!(text, "  {command:width$}   {what}")?;
    }
    text.push_str("\n`fuserun --help` lists all commands, `fuserun doctor` checks this machine.\n");
    show(text)
}

fn nvrtc() -> String {
    match Nvrtc::find() {
        Ok(found) => format!("kernels: NVRTC {} compiles them", found.version_text()),
        Err(missing) => format!("kernels: {missing}"),
    }
}

fn free_memory() -> String {
    available_memory().map_or("memory: the system does not say".to_owned(), |bytes| {
        format!("memory: {:.1} GB free", bytes as f64 / 1e9)
    })
}
