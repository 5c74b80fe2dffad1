//! `fusec new`: a description drafted from a checkpoint.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;

use super::checkpoint;
use crate::compile::{CompileOptions, compile};
use crate::console::{show, tell};
use crate::description::{Description, Spare, Value, architectures, config_view, find_serving, lacking, user_folder};
use crate::draft::draft;
use crate::folder::{checkpoint_folder, other_than_weights};
use crate::output;
use crate::plan::PlanOptions;
use crate::tensors;

/// From what, and where to.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  fusec new --from MyModel -o mymodel.toml")]
pub(super) struct NewArgs {
    /// A Hugging Face folder: its config.json and the headers of its .safetensors files are read, no weight is.
    #[arg(long, env = "FUSE_FROM", value_name = "DIR")]
    from: PathBuf,
    /// The file to write; stdout if it is not given. A file that exists is not replaced.
    #[arg(short, long, env = "FUSE_OUTPUT", value_name = "FILE.toml")]
    output: Option<PathBuf>,
}

/// Writes the draft; what is left to do goes to stderr.
pub(super) fn run(args: &NewArgs) -> Result<()> {
    let from = checkpoint_folder(&args.from)?;
    let config = checkpoint::config(&from)?;
    let all = checkpoint::tensors(&from)?.own;
    ensure!(
        !all.is_empty(),
        "{} holds no .safetensors file, and a draft needs the names of its tensors: {}",
        args.from.display(),
        other_than_weights(&from)
    );
    let keys = config_view(&config).map_err(|diagnostics| anyhow!("{diagnostics}"))?;
    let count = |key: &str| keys.get(key).and_then(Value::number).unwrap_or(0.0) as usize;
    let (layers, further) = (count("num_hidden_layers"), count("num_nextn_predict_layers"));
    let spare = Spare { layers: layers..layers.saturating_add(further), ..Spare::default() };
    let weights: BTreeMap<String, Vec<usize>> = all
        .iter()
        .filter(|(name, shape)| !tensors::harmless(name, shape, &spare))
        .map(|(n, s)| (n.clone(), s.clone()))
        .collect();
    let mut draft = draft(&config, &weights).with_context(|| format!("cannot draft from {}", args.from.display()))?;
    if let Some(why) = lacking(&config) {
        let said = format!("{why}: no draft of it can run");
        draft.text.insert_str(0, &format!("# {said}.\n"));
        tell(said);
    }
    let name = match args.output.as_deref().filter(|path| *path != Path::new("-")) {
        Some(path) => {
            output::write_new(path, draft.text.as_bytes())?;
            path.display().to_string()
        }
        None => {
            show(&draft.text)?;
            "the draft".to_owned()
        }
    };
    if let Some((file, _)) = find_serving(&architectures(&config), user_folder().as_deref())? {
        tell(format!("{file} serves this checkpoint: it needs no description of its own"));
    }
    let counted = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    tell(format!(
        "{name}: {}, {} that nothing reads",
        counted(draft.todos, "TODO line"),
        counted(draft.unmatched.len(), "tensor")
    ));
    match checked(&draft.text, &name, &config, &args.from.display().to_string(), &all) {
        Ok(()) => tell(format!("it passes fusec check {name} --checkpoint {}", args.from.display())),
        Err(error) => tell(format!("it does not pass fusec check yet:\n{error:#}")),
    }
    Ok(())
}

/// What `fusec check` would say.
fn checked(
    text: &str,
    name: &str,
    config: &serde_json::Value,
    checkpoint: &str,
    tensors: &BTreeMap<String, Vec<usize>>,
) -> Result<()> {
    let description = Description::parse(text, name).map_err(|diagnostics| anyhow!("{diagnostics}"))?;
    let model = compile(
        &description,
        Some(config),
        &CompileOptions { plan: PlanOptions::none(), ..CompileOptions::default() },
    )?;
    model.resolved.refuse_unread().map_err(|diagnostics| anyhow!("{diagnostics}"))?;
    let found = tensors.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
    tensors::reconcile(checkpoint, &found, &model.resolved, &model.described)
        .map_err(|diagnostics| anyhow!("{diagnostics}"))?;
    Ok(())
}
