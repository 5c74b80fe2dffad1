//! `fuserun serve`.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use fusec::console::tell;

use super::model::ModelArgs;
use crate::backend::{Device, LoadOptions};
use crate::model::{OpenModel, Text};
use crate::serve::{Inbox, Options, Subject, run as serve};
use crate::slots::Slots;

/// Slots where the user names no number.
const SLOTS: usize = 4;

/// Rows of the largest decode step.
const MOST_ON_A_GPU: usize = 8;

#[derive(Args, Debug)]
#[command(after_help = "\
docs/serving.md has the routes, and how clients are set up. SIGINT or SIGTERM ends the server.")]
pub struct ServeArgs {
    /// The address to listen at. Others than this machine reach it at 0.0.0.0, for instance: give a key then.
    #[arg(long, env = "FUSE_HOST", default_value = "127.0.0.1")]
    host: IpAddr,
    /// The port to listen at; 0: one that is free.
    #[arg(long, env = "FUSE_PORT", default_value = "8080")]
    port: u16,
    /// Requests that are answered side by side; others wait. A GPU has 1, 2, 4 or 8: another number is raised to the next of these.
    #[arg(long, env = "FUSE_SLOTS", value_name = "N")]
    slots: Option<NonZeroUsize>,
    /// A key that requests must have; may be given several times. The variable may hold several, with commas between them.
    #[arg(long, env = "FUSE_API_KEY", value_name = "KEY", value_delimiter = ',')]
    api_key: Vec<String>,
    /// What answers call the model. The default is the last part of its path.
    #[arg(long, env = "FUSE_ALIAS", value_name = "NAME")]
    alias: Option<String>,
    /// An origin whose pages may ask, beside those of this machine; may be given several times. `*` is all.
    #[arg(long, env = "FUSE_ALLOW_ORIGIN", value_name = "ORIGIN")]
    allow_origin: Vec<String>,
    /// Seconds that answers may go on once the server is told to end.
    #[arg(long, env = "FUSE_SHUTDOWN_SECONDS", value_name = "N", default_value = "10")]
    shutdown_seconds: u32,
    #[command(flatten)]
    model: ModelArgs,
}

pub fn run(args: &ServeArgs) -> Result<()> {
    ensure!(args.api_key.iter().all(|key| !key.is_empty()), "an API key is empty: leave it out, or give one");
    let model = args.model.open(false)?;
    let device = args.model.device(&model);
    ensure!(device != Device::Interpreter, "the interpreter computes logits only: use `fuserun logits`");
    let slots = slots_on(&device, args.slots.map_or(SLOTS, NonZeroUsize::get))?;
    let options = args.model.load_options(&model, &[slots], 4096, Text { tokens: 1, grows: true })?;
    let name = args.alias.clone().unwrap_or_else(|| short_name(&model, args.model.model.as_deref()));
    let subject = subject(&model, &name, &options, &device)?;
    let address = SocketAddr::new(args.host, args.port);
    if !args.host.is_loopback() && args.api_key.is_empty() {
        tell(format!("anyone who reaches {address} may use the model: --api-key KEY keeps others out"));
    }
    let server = Options {
        address,
        keys: args.api_key.clone(),
        origins: args.allow_origin.clone(),
        deadline: Duration::from_secs(args.shutdown_seconds.into()),
    };
    serve(subject, server, load(model, device, options, || tell("ready")), |address| {
        tell(format!("{name} at http://{address}, loading"))
    })
}

/// How many slots a device has where so many are asked for: a GPU's steps have a row per slot.
fn slots_on(device: &Device, asked: usize) -> Result<usize> {
    let Device::Cuda(_) = device else { return Ok(asked) };
    ensure!(asked <= MOST_ON_A_GPU, "--slots {asked}: a GPU has {MOST_ON_A_GPU} slots at most");
    Ok(asked.next_power_of_two())
}

/// What is to be known of a model before it is loaded; says on stderr what of its files is not honoured.
pub fn subject(model: &OpenModel, name: &str, options: &LoadOptions, device: &Device) -> Result<Subject> {
    let (facts, defaults) = (model.facts()?, model.generation_defaults()?);
    if let Some(note) = defaults.note() {
        tell(note);
    }
    Ok(Subject {
        name: name.to_owned(),
        tokenizer: model.tokenizer()?,
        template: model.chat_template()?,
        defaults,
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

/// Loads a model and serves with its slots; calls `ready` once requests are taken.
pub fn load(
    model: OpenModel,
    device: Device,
    options: LoadOptions,
    ready: impl FnOnce() + Send,
) -> impl FnOnce(&Inbox) -> Result<()> + Send {
    move |inbox| {
        let mut backend = model.load(&device, &options)?;
        inbox.serve(Slots::new(backend.slots()?), ready)
    }
}

/// What a model is called in answers: the last part of its path, or of its name on the hub.
pub fn short_name(model: &OpenModel, path: Option<&Path>) -> String {
    let Some(path) = path else { return "demo".to_owned() };
    let stem = if path.is_file() { path.file_stem() } else { path.file_name() };
    stem.map_or_else(|| model.name().to_owned(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_has_as_many_slots_as_a_step_has_rows() {
        let on = |device, asked| slots_on(&device, asked).map_err(|error| error.to_string());
        assert_eq!([1, 2, 3, 5, 8].map(|asked| on(Device::Cuda(0), asked)), [1, 2, 4, 8, 8].map(Ok));
        assert_eq!(on(Device::Cuda(0), 9), Err("--slots 9: a GPU has 8 slots at most".into()));
        assert_eq!(on(Device::Cpu, 9), Ok(9));
    }
}
