//! `fuserun chat`.

mod input;
mod talk;

use std::io::{IsTerminal, stdin, stdout};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use clap::Args;
use fusec::console::tell;
use serde_json::json;

use super::model::ModelArgs;
use super::sampling::SamplingArgs;
use crate::backend::Device;
use crate::llm::{load, name, subject};
use crate::model::Text;
use crate::serve::Local;
use input::Input;
use talk::{HELP, Talk};

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  fuserun chat
  fuserun chat -m Qwen3-0.6B --system \"Answer in one sentence.\"
  fuserun chat -m model.gguf --temperature 0 -n 200

/help lists the commands within a chat. Ctrl-C ends an answer, Ctrl-D the chat.")]
pub struct ChatArgs {
    /// What the model is told before the first turn.
    #[arg(long, env = "FUSE_SYSTEM", value_name = "TEXT")]
    system: Option<String>,
    /// Tokens of an answer at most. The default is what the context has left.
    #[arg(short = 'n', long, env = "FUSE_MAX_TOKENS")]
    max_tokens: Option<NonZeroUsize>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub fn run(args: &ChatArgs) -> Result<()> {
    let model = args.model.open(false)?;
    let options = args.model.load_options(&model, &[1], 4096, Text { tokens: 1, grows: true })?;
    let device = args.model.device(&model);
    ensure!(device != Device::Interpreter, "the interpreter computes logits only: use `fuserun logits`");
    model.generation_defaults()?.note().into_iter().for_each(tell);
    let name = name(&model, None);
    let model = Arc::new(model);
    let load = load(model.clone(), device.clone(), options.clone(), || ());
    let subject = move || {
        let subject = subject(&model, None, &options, &device)?;
        ensure!(
            subject.template.is_some(),
            "{} has no chat template: use `fuserun generate`, which goes on with a text",
            model.name()
        );
        Ok(subject)
    };
    let local = Local::start(subject, load)?;
    let answering = Arc::new(AtomicBool::new(false));
    listen(&local, answering.clone());
    let mut settings = args.sampling.fields();
    if let Some(limit) = args.max_tokens {
        settings.insert("max_tokens".into(), json!(limit.get()));
    }
    let on_terminal = stdout().is_terminal();
    let mut talk = Talk::new(&local, settings, args.system.clone(), answering, on_terminal);
    let mut input = Input::new(stdin().is_terminal() && on_terminal)?;
    if input.edits() {
        tell(format!("{name}. {HELP}"));
    }
    while let Some(line) = input.next()? {
        if !talk.take(&line) {
            break;
        }
    }
    input.keep();
    local.stop()
}

/// Lets Ctrl-C end the answer that is being given; between answers it ends the program, where the line editor does not take it.
fn listen(local: &Local, answering: Arc<AtomicBool>) {
    let interrupter = local.interrupter();
    local.beside(async move {
        while tokio::signal::ctrl_c().await.is_ok() {
            if answering.load(Ordering::SeqCst) {
                interrupter.notify_waiters();
            } else {
                std::process::exit(130);
            }
        }
    });
}
