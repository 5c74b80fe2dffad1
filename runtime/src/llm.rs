//! From a model's files to one that is asked, in this process or over HTTP: on which device, with how many slots, and what is done where that fails.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};

use crate::backend::{Device, LoadOptions};
use crate::device::NoRoom;
use crate::model::{OpenModel, Text};
use crate::serve::{Inbox, Local, Subject};
use crate::slots::Slots;

/// Slots where nobody names a number.
pub const SLOTS: usize = 4;

/// Slots on a GPU where nobody names a number.
pub const SLOTS_ON_A_GPU: usize = 8;

/// Rows of the largest decode step.
pub const MOST_ON_A_GPU: usize = 32;

/// How a model is to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LlmOptions {
    /// What answers call the model; none: the last part of its path.
    pub name: Option<String>,
    /// Where it runs.
    pub device: Device,
    /// Positions of a sequence; none: what the model has, up to `most_context`.
    pub context: Option<usize>,
    /// Positions of a sequence at most, where `context` is none.
    pub most_context: usize,
    /// Sequences side by side; none: what suits the device.
    pub slots: Option<usize>,
    /// Sequences side by side on a GPU, where `slots` is none and its memory has room for as many.
    pub most_slots: usize,
    /// CPU threads; none: as many as there are cores.
    pub threads: Option<usize>,
}

impl Default for LlmOptions {
    fn default() -> LlmOptions {
        LlmOptions {
            name: None,
            device: Device::Auto,
            context: None,
            most_context: 4096,
            slots: None,
            most_slots: SLOTS_ON_A_GPU,
            threads: None,
        }
    }
}

/// Loads a model to be asked in this process. `tell` is told, in a line each, what is doubtful about the model, and what was chosen where something else
/// was not possible: the CPU where there is no GPU that can be used or that it fits on, fewer slots where nobody named a number.
///
/// # Errors
/// A device that is not there, a model that it cannot hold or run.
///
/// # Examples
/// ```no_run
/// use fuserun::llm::{LlmOptions, start};
/// use fuserun::model::{ModelName, OpenModel};
/// use fuserun::serve::Came;
/// use serde_json::{Map, json};
///
/// let model = OpenModel::open(&ModelName::default())?;
/// let llm = start(model, &LlmOptions::default(), &mut |note| eprintln!("{note}"))?;
/// let fields = Map::from_iter([("messages".to_owned(), json!([{"role": "user", "content": "Who are you?"}]))]);
/// let (tell, told) = std::sync::mpsc::channel();
/// let _answering = llm.ask(llm.chat(fields)?, move |came| drop(tell.send(came)));
/// for came in told {
///     if let Came::Piece(piece) = came {
///         println!("{:?}", piece.parts);
///     }
/// }
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn start(model: OpenModel, options: &LlmOptions, tell: &mut dyn FnMut(String)) -> Result<Local> {
    let (device, reason) = options.device.resolve(model.brings_device_code());
    reason.into_iter().for_each(&mut *tell);
    ensure!(device != Device::Interpreter, "the interpreter computes logits only: give device auto, cpu or cuda:N");
    let (context, doubt) = model.context(options.context, options.most_context, Text { tokens: 1, grows: true })?;
    let defaults = model.generation_defaults()?.note();
    let notes = [model.overrides().map(str::to_owned), model.unread_note()?, doubt, defaults, model.quantised()];
    notes.into_iter().flatten().for_each(&mut *tell);
    let model = Arc::new(model);
    let on = |device: &Device, slots: usize, tell: &mut dyn FnMut(String)| {
        let slots = slots_on(device, slots)?;
        let note = match device {
            Device::Cuda(_) => model.rounded(),
            _ => model.widened(),
        };
        note.into_iter().for_each(tell);
        let load_options = LoadOptions { context, sequences: slots, batches: vec![slots], threads: options.threads };
        let subject = || subject(&model, options.name.as_deref(), &load_options, device);
        Local::start(subject, load(model.clone(), device.clone(), load_options.clone(), || ()))
    };
    let Device::Cuda(_) = device else { return on(&device, options.slots.unwrap_or(SLOTS), tell) };
    let mut slots = options.slots.unwrap_or(options.most_slots);
    loop {
        let error = match on(&device, slots, tell) {
            Ok(local) => return Ok(local),
            Err(error) => error,
        };
        let why = format!("{error:#}");
        if options.slots.is_none() && slots > 1 && error.downcast_ref::<NoRoom>().is_some() {
            slots /= 2;
            tell(format!("{why}: trying {slots} slot{}", if slots == 1 { "" } else { "s" }));
        } else if options.device == Device::Auto {
            tell(format!("{why}: running on the CPU"));
            return on(&Device::Cpu, options.slots.unwrap_or(SLOTS), tell);
        } else {
            return Err(error);
        }
    }
}

/// How many slots a device has where that many are asked for: a GPU's steps have a row per slot.
///
/// # Errors
/// More than the device can have.
pub fn slots_on(device: &Device, asked: usize) -> Result<usize> {
    let Device::Cuda(_) = device else { return Ok(asked) };
    ensure!(asked <= MOST_ON_A_GPU, "{asked} slots are asked for: a GPU has {MOST_ON_A_GPU} at most");
    Ok(asked.next_power_of_two())
}

/// What is to be known of a model before it is loaded. `name`: what answers call it; none: the last part of its path.
///
/// # Errors
/// A model without a tokenizer, files of it that cannot be read.
pub fn subject(model: &OpenModel, name: Option<&str>, options: &LoadOptions, device: &Device) -> Result<Subject> {
    let facts = model.facts()?;
    Ok(Subject {
        name: self::name(model, name),
        tokenizer: model.tokenizer()?,
        template: model.chat_template()?,
        defaults: model.generation_defaults()?,
        chat_stops: model.chat_stops(),
        context: options.context,
        slots: options.sequences,
        architecture: facts.architecture,
        dtype: facts.dtype,
        device: match device {
            Device::Cuda(number) => format!("cuda:{number}"),
            Device::Auto | Device::Cpu | Device::Interpreter => "cpu".into(),
        },
    })
}

/// Loads a model and serves with its slots, and with its logits between; calls `ready` once requests are taken.
pub fn load(
    model: Arc<OpenModel>,
    device: Device,
    options: LoadOptions,
    ready: impl FnOnce() + Send,
) -> impl FnOnce(&Inbox) -> Result<()> + Send {
    move |inbox| {
        let mut backend = model.load(&device, &options)?;
        drop(model);
        let mut ready = Some(ready);
        let mut tell_ready = || {
            if let Some(ready) = ready.take() {
                ready();
            }
        };
        loop {
            // The slots have the device until logits are wanted.
            let wanted = inbox.serve(Slots::new(backend.slots()?), &mut tell_ready)?;
            let Some(wanted) = wanted else { return Ok(()) };
            wanted.answer(|tokens| backend.logits(tokens, false));
        }
    }
}

/// What answers call a model: `name`; where there is none, the last part of its path, or of its name on the hub.
pub fn name(model: &OpenModel, name: Option<&str>) -> String {
    if let Some(name) = name {
        return name.to_owned();
    }
    let Some(path) = model.path() else { return "demo".to_owned() };
    let path = Path::new(path);
    let stem = if path.is_file() { path.file_stem() } else { path.file_name() };
    stem.map_or_else(|| model.name().to_owned(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_has_as_many_slots_as_a_step_has_rows() {
        let on = |device, asked| slots_on(&device, asked).map_err(|error| error.to_string());
        assert_eq!([1, 2, 3, 5, 8, 17].map(|asked| on(Device::Cuda(0), asked)), [1, 2, 4, 8, 8, 32].map(Ok));
        assert_eq!(on(Device::Cuda(0), 33), Err("33 slots are asked for: a GPU has 32 at most".into()));
        assert_eq!(on(Device::Cpu, 9), Ok(9));
    }
}
