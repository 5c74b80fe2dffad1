//! A compiled model on a device: the GPU's captured steps, the CPU's threads, or the reference interpreter.

mod cpu_slots;
mod gpu_slots;
mod guide;

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use fusec::build::{Arch, Nvrtc, Options, compile_all};
use fusec::ir::{Format, Graph, Interpreter, Tensor, WeightRef};
use fusec::plan::{Plan, PlanOptions};
use fusec::tensors;

use crate::cache;
use crate::cpu::{CpuModel, CpuOptions, Logits, Row};
use crate::device::Gpu;
use crate::sampling::{SamplingParameters, check_logits, check_prompt};
use crate::slots::{Event, Request, Slots, Steps, Ticket};
use crate::step::{EngineOptions, GpuEngine, WeightSource, check_fit};
use crate::weights::Checkpoint;
pub use cpu_slots::CpuSlots;
pub use gpu_slots::GpuSlots;

/// Where a model runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// A GPU if there is one that can be used, else the CPU.
    Auto,
    /// Threads and SIMD.
    Cpu,
    /// A GPU, by its number.
    Cuda(usize),
    /// The compiler's reference interpreter: fp32 throughout, and slow.
    Interpreter,
}

/// How a model is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Positions a sequence.
    pub context: usize,
    /// Sequences decoded together: the largest batch.
    pub sequences: usize,
    /// Batches that get a step of their own.
    pub batches: Vec<usize>,
    /// CPU threads; none: as many as there are cores.
    pub threads: Option<usize>,
}

/// Where weights come from.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    /// A checkpoint.
    Checkpoint(&'a Checkpoint),
    /// Random, of the true sizes.
    Dummy,
}

/// What is to be loaded: made by the compiler, or read from an artifact.
pub struct Program {
    /// The fused graph.
    pub graph: Graph,
    /// Launches and buffers.
    pub plan: Plan,
    /// CUDA text by kernel name.
    pub sources: BTreeMap<String, String>,
    /// Device code by kernel name, where it was compiled before; else it is compiled when the program is loaded.
    pub cubins: BTreeMap<String, Vec<u8>>,
}

/// A model, loaded.
pub enum Backend {
    /// On a GPU.
    Gpu(Box<GpuEngine>),
    /// On the CPU.
    Cpu(Box<CpuModel>),
    /// In the interpreter.
    Interpreter(Box<Interpreted>),
}

/// A graph in the interpreter, with the limits of what it may be asked.
pub struct Interpreted {
    interpreter: Interpreter,
    vocabulary: usize,
    context: usize,
}

impl FromStr for Device {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Device> {
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" | "gpu" => Ok(Device::Cuda(0)),
            "interpreter" => Ok(Device::Interpreter),
            _ => match text.strip_prefix("cuda:").and_then(|number| number.parse().ok()) {
                Some(number) => Ok(Device::Cuda(number)),
                None => bail!("`{text}` is no device: auto, cpu, cuda:N or interpreter"),
            },
        }
    }
}

impl Device {
    /// What `auto` comes to here, and why, in one line. A model that brings its device code needs no NVRTC.
    pub fn resolve(&self, brings_device_code: bool) -> (Device, Option<String>) {
        if *self != Device::Auto {
            return (self.clone(), None);
        }
        match Gpu::count() {
            0 => (Device::Cpu, Some("no NVIDIA GPU found: running on the CPU".into())),
            _ if brings_device_code => (Device::Cuda(0), None),
            _ => match Nvrtc::find() {
                Ok(_) => (Device::Cuda(0), None),
                Err(missing) => (Device::Cpu, Some(format!("a GPU is here, but {missing}: running on the CPU"))),
            },
        }
    }
}

impl LoadOptions {
    /// What a plan for this must serve.
    pub fn plan(&self) -> PlanOptions {
        PlanOptions { batches: self.batches.clone(), ..PlanOptions::default() }
    }
}

impl Backend {
    /// Loads a program on a device (`auto` is to be resolved before).
    ///
    /// # Errors
    /// No such device, device code that is missing or does not compile, weights or caches that do not fit.
    pub fn load(program: Program, weights: Weights<'_>, device: &Device, options: &LoadOptions) -> Result<Backend> {
        match device {
            Device::Auto => {
                let resolved = device.resolve(!program.cubins.is_empty()).0;
                Backend::load(program, weights, &resolved, options)
            }
            Device::Cuda(ordinal) => {
                let gpu = Gpu::open(*ordinal)?;
                let sizes = EngineOptions { context: options.context, sequences: options.sequences };
                check_fit(&gpu, &program.plan, sizes)?;
                let cubins = device_code(&gpu, &program)?;
                let cubins = cubins.iter().map(|(name, cubin)| (name.as_str(), cubin.as_slice())).collect();
                let weights = match weights {
                    Weights::Checkpoint(checkpoint) => WeightSource::Checkpoint(checkpoint),
                    Weights::Dummy => WeightSource::Dummy,
                };
                Ok(Backend::Gpu(Box::new(GpuEngine::load(gpu, program.plan, &cubins, weights, sizes)?)))
            }
            Device::Cpu => {
                let threads =
                    options.threads.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
                let sizes = CpuOptions { threads, context: options.context, sequences: options.sequences };
                let dummy;
                let checkpoint = match weights {
                    Weights::Checkpoint(checkpoint) => checkpoint,
                    Weights::Dummy => {
                        dummy = Checkpoint::dummy(serde_json::Value::Null, &tensors::required(&program.graph), 1);
                        &dummy
                    }
                };
                Ok(Backend::Cpu(Box::new(CpuModel::load(&program.graph, checkpoint, sizes)?)))
            }
            Device::Interpreter => {
                let Weights::Checkpoint(checkpoint) = weights else { bail!("the interpreter needs a checkpoint") };
                let tensor =
                    |weight: &WeightRef| Ok(Tensor::new(checkpoint.shape(weight)?, checkpoint.read_f32(weight)?));
                let vocabulary =
                    program.graph.outputs.first().and_then(|logits| program.graph.type_of(*logits).last_size());
                Ok(Backend::Interpreter(Box::new(Interpreted {
                    interpreter: Interpreter::new(&program.graph, tensor, options.context)?,
                    vocabulary: vocabulary.context("the graph returns no logits")?,
                    context: options.context,
                })))
            }
        }
    }

    /// One line: what it runs on.
    pub fn describe(&self) -> String {
        match self {
            Backend::Gpu(engine) => engine.gpu().name().unwrap_or_else(|_| "a GPU".into()),
            Backend::Cpu(model) => format!("CPU, {} threads", model.options().threads),
            Backend::Interpreter(_) => "the interpreter".into(),
        }
    }

    /// The logits of each token, `[tokens, vocabulary]`, in one go or (`by_step`) token after token.
    ///
    /// # Errors
    /// No tokens, more than the context holds, a token beyond the vocabulary, logits that are not finite, or a fault of the device.
    pub fn logits(&mut self, tokens: &[u32], by_step: bool) -> Result<Vec<f32>> {
        let logits = self.unchecked_logits(tokens, by_step)?;
        for (position, row) in logits.chunks(logits.len() / tokens.len()).enumerate() {
            check_logits(row, position)?;
        }
        Ok(logits)
    }

    fn unchecked_logits(&mut self, tokens: &[u32], by_step: bool) -> Result<Vec<f32>> {
        match self {
            Backend::Gpu(engine) => engine.logits(tokens, by_step),
            Backend::Cpu(model) => {
                check_prompt(tokens, model.vocabulary(), model.options().context)?;
                let mut logits = Vec::with_capacity(tokens.len() * model.vocabulary());
                for part in rows(tokens, 0).chunks(if by_step { 1 } else { tokens.len() }) {
                    logits.extend_from_slice(model.forward(part, Logits::All)?);
                }
                Ok(logits)
            }
            Backend::Interpreter(interpreted) => {
                check_prompt(tokens, interpreted.vocabulary, interpreted.context)?;
                let tokens: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
                let positions: Vec<i32> = (0..tokens.len() as i32).collect();
                let mut logits = Vec::new();
                let step = if by_step { 1 } else { tokens.len() };
                for (tokens, positions) in tokens.chunks(step).zip(positions.chunks(step)) {
                    let outputs = interpreted.interpreter.run(tokens, positions)?;
                    logits.extend_from_slice(&outputs.first().context("the graph returns no logits")?.data);
                }
                Ok(logits)
            }
        }
    }

    /// Its sequences as slots, which requests join and leave.
    ///
    /// # Errors
    /// A device that has none.
    pub fn slots(&mut self) -> Result<Box<dyn Steps + '_>> {
        match self {
            Backend::Cpu(model) => Ok(Box::new(CpuSlots::new(model))),
            Backend::Gpu(engine) => {
                let slots = engine.sequences();
                Ok(Box::new(GpuSlots::new(engine, slots)?))
            }
            Backend::Interpreter(_) => bail!("the interpreter computes logits only: use `fuserun logits`"),
        }
    }

    /// Generates up to `limit` tokens after each prompt. `take` is given each token with its sequence, in order, as soon as it is known; a sequence ends at
    /// one of the `stops`, at its limit, when the context is full, or when `take` returns false.
    ///
    /// # Errors
    /// A prompt that is empty or leaves no room in the context, more prompts than sequences, logits that are not finite, or a fault of the device.
    pub fn generate(
        &mut self,
        prompts: &[Vec<u32>],
        sampling: &SamplingParameters,
        limit: usize,
        stops: &[u32],
        take: &mut dyn FnMut(usize, u32) -> bool,
    ) -> Result<()> {
        let request = |(choice, prompt): (u32, &Vec<u32>)| Request {
            prompt: prompt.clone(),
            sampling: sampling.clone(),
            choice,
            limit,
            stops: stops.to_vec(),
            scores: None,
        };
        let requests = (0..).zip(prompts).map(request).collect();
        match self {
            Backend::Gpu(engine) => generate(GpuSlots::new(engine, prompts.len())?, requests, take),
            Backend::Cpu(model) => generate(CpuSlots::new(model), requests, take),
            Backend::Interpreter(_) => bail!("the interpreter computes logits only: use `fuserun logits`"),
        }
    }
}

/// Runs requests side by side until all have ended.
fn generate(steps: impl Steps, requests: Vec<Request>, take: &mut dyn FnMut(usize, u32) -> bool) -> Result<()> {
    let (count, sequences) = (requests.len(), steps.limits().slots);
    ensure!(count > 0 && count <= sequences, "{count} prompts at once; the model was loaded for {sequences}");
    let mut slots = Slots::new(steps);
    let submitted = requests.into_iter().map(|request| slots.submit(request).map_err(|refused| anyhow!("{refused}")));
    let tickets: Vec<Ticket> = submitted.collect::<Result<_>>()?;
    while !slots.is_idle() {
        for (ticket, event) in slots.poll()? {
            let sequence = tickets.iter().position(|known| *known == ticket).context("a ticket is of a prompt")?;
            match event {
                Event::Token(token) if !take(sequence, token) => slots.leave(ticket)?,
                Event::Failed(message) => bail!("{message}"),
                Event::Read { .. } | Event::Scores(_) | Event::Token(_) | Event::Ended(_) => {}
            }
        }
    }
    Ok(())
}

fn rows(tokens: &[u32], sequence: usize) -> Vec<Row> {
    let row = |(position, &token): (usize, &u32)| Row { token, position: position as u32, sequence: sequence as u32 };
    tokens.iter().enumerate().map(row).collect()
}

/// The device code of a program's kernels for this GPU: the artifact's, or compiled here, each kernel once for all times.
fn device_code(gpu: &Gpu, program: &Program) -> Result<BTreeMap<String, Vec<u8>>> {
    if !program.cubins.is_empty() {
        return Ok(program.cubins.clone());
    }
    let (major, minor) = gpu.compute_capability()?;
    let nvrtc = Nvrtc::find().map_err(|missing| anyhow!("{missing}"))?;
    let options = Options { cache: cache::folder("kernels"), ..Options::default() };
    let names: BTreeSet<&str> = program.plan.kernels.iter().map(|kernel| kernel.name.as_str()).collect();
    let sources = program.sources.iter().filter(|(name, _)| names.contains(name.as_str()));
    let sources = sources.map(|(name, source)| (name.clone(), source.clone())).collect();
    let compiled = compile_all(nvrtc, &sources, Arch::for_device(major, minor)?, &options)?;
    Ok(compiled.into_iter().map(|(name, kernel)| (name, kernel.cubin)).collect())
}

impl crate::cpu::WeightSource for Checkpoint {
    fn shape(&self, weight: &WeightRef) -> Result<Vec<usize>> {
        Checkpoint::shape(self, weight)
    }

    fn read_f32(&self, weight: &WeightRef) -> Result<Vec<f32>> {
        Checkpoint::read_f32(self, weight)
    }

    fn read_rows_f32(&self, weight: &WeightRef, rows: std::ops::Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        Checkpoint::read_rows_f32(self, weight, rows, out)
    }

    fn raw_format(&self, weight: &WeightRef) -> Result<Option<Format>> {
        Checkpoint::raw_format(self, weight)
    }

    fn raw_rows(&self, weight: &WeightRef, rows: std::ops::Range<usize>, out: &mut Vec<u8>) -> Result<()> {
        Checkpoint::raw_rows(self, weight, rows, out)
    }

    fn release(&self) {
        Checkpoint::release(self);
    }
}
