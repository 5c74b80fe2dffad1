//! `fuserun serve`.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use fusec::console::tell;

use super::model::ModelArgs;
use crate::backend::Device;
use crate::llm::{SLOTS, load, name, slots_on, subject};
use crate::model::Text;
use crate::serve::{Options, run as serve};

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
    /// Requests that are answered side by side; others wait. A GPU has 1, 2, 4, 8, 16 or 32: another number is raised to the next of these.
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
    let slots = slots_on(&device, args.slots.map_or(SLOTS, NonZeroUsize::get)).context("--slots")?;
    let options = args.model.load_options(&model, &[slots], 4096, Text { tokens: 1, grows: true })?;
    model.generation_defaults()?.note().into_iter().for_each(tell);
    let name = name(&model, args.alias.as_deref());
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
    let model = Arc::new(model);
    let load = load(model.clone(), device.clone(), options.clone(), || tell("ready"));
    serve(
        move || subject(&model, args.alias.as_deref(), &options, &device),
        server,
        load,
        |address| tell(format!("{name} at http://{address}, loading")),
    )
}
