//! `fuserun pull`, and the models of `-m` that are on the hub.

use std::io::{IsTerminal, stderr};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use fusec::console::{show, tell};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::hub::{Event, Name, Pulled, Settings, find, pull};

/// What a bar shows; the rest is left out on a narrow terminal.
const BAR: &str =
    "{prefix:.bold} {wide_bar:.cyan/dim} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}";

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  fuserun pull Qwen/Qwen3-0.6B
  fuserun pull Qwen/Qwen3-0.6B-GGUF:Q8_0
  fuserun pull Qwen/Qwen3-0.6B@main

Files go to the cache of the hub's own tools and are shared with them. HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_TOKEN_PATH, HF_ENDPOINT and HF_HUB_OFFLINE are as there. What is there is \
not fetched again, and what was broken off goes on.")]
pub struct PullArgs {
    /// OWNER/NAME of a model on the hub, with :QUANT for one of several GGUF files and @REVISION for a branch, tag or commit.
    #[arg(value_name = "OWNER/NAME[:QUANT][@REVISION]")]
    name: String,
}

/// Gets a model and prints where it is.
pub fn run(args: &PullArgs) -> Result<()> {
    let settings = Settings::from_environment()?;
    let name = Name::parse(&args.name)?;
    // What is there needs no network, and a commit never changes.
    let known = if settings.offline { find(&settings, &name)? } else { None };
    let path = match known {
        Some(path) => path,
        None => get(&settings, &name)?.path,
    };
    show(format!("{}\n", path.display()))
}

/// Gets what a model's path names on the hub, where it is not in the cache.
pub fn get_missing(path: &Path) -> Result<()> {
    let Some(name) = Name::of_path(path) else { return Ok(()) };
    let settings = Settings::from_environment()?;
    if find(&settings, &name).is_ok_and(|found| found.is_some()) {
        return Ok(());
    }
    get(&settings, &name).map(drop)
}

/// Pulls with bars on a terminal; says at the end, in a line, what came.
fn get(settings: &Settings, name: &Name) -> Result<Pulled> {
    let began = Instant::now();
    let pulled = if stderr().is_terminal() {
        let bars = Bars::default();
        let pulled = pull(settings, name, &|event| bars.show(event));
        bars.end();
        pulled?
    } else {
        pull(settings, name, &|_| {})?
    };
    let Pulled { commit, files, bytes, fetched, .. } = &pulled;
    let said = if *fetched == 0 {
        "nothing was to be fetched".to_owned()
    } else {
        format!("{} were fetched in {:.0} s", size(*fetched), began.elapsed().as_secs_f64())
    };
    tell(format!("{name} at {}: {files} files of {}; {said}", &commit[..7], size(*bytes)));
    Ok(pulled)
}

fn size(bytes: u64) -> String {
    match bytes as f64 {
        bytes if bytes < 1e9 => format!("{:.1} MB", bytes / 1e6),
        bytes => format!("{:.2} GB", bytes / 1e9),
    }
}

/// A bar for each file.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    bars: Mutex<Vec<ProgressBar>>,
}

impl Bars {
    fn show(&self, event: Event<'_>) {
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Files(files) => {
                let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
                let bar = |(name, size): &(String, u64)| {
                    let bar = ProgressBar::new(*size).with_style(style.clone()).with_prefix(name.clone());
                    self.all.add(bar)
                };
                *bars = files.iter().map(bar).collect();
            }
            Event::At(file, bytes) => bars[file].set_position(bytes),
            Event::Done(file) => bars[file].finish(),
        }
    }

    /// Takes the bars away: the line after them says it all.
    fn end(&self) {
        // A terminal that is gone needs no clearing.
        let _ = self.all.clear();
    }
}
