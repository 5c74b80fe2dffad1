//! Which folder holds a checkpoint's files, and what a folder is that holds none.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::files::read_json;

/// Ends of the names of downloads that are not finished.
const UNFINISHED: &[&str] = &[".incomplete", ".part", ".partial", ".crdownload", ".aria2", ".download", ".!qb"];

/// Files by the ends of their names, and what they are: none of them is read.
const FOREIGN: &[(&str, &str)] = &[
    ("model_index.json", "a diffusers pipeline, which makes pictures and no text"),
    (".onnx", "an ONNX export"),
    ("openvino_model.xml", "an OpenVINO export"),
    (".mlpackage", "a Core ML export"),
    (".mlmodelc", "a Core ML export"),
    (".engine", "a TensorRT engine"),
    (".tflite", "a TensorFlow Lite export"),
    (".pte", "an ExecuTorch export"),
    (".nemo", "in NeMo's format"),
    (".h5", "in TensorFlow's format"),
    ("saved_model.pb", "in TensorFlow's format"),
    (".msgpack", "in Flax's format"),
    (".npz", "in an older format of MLX"),
    (".distcp", "in the format of a distributed training run"),
];

/// Files in which older checkpoints say how they are quantised, beside a config.json that does not, and the methods.
const QUANTISED: &[(&str, &str)] =
    &[("hf_quant_config.json", "modelopt"), ("quantize_config.json", "gptq"), ("quant_config.json", "awq")];

/// PyTorch's pickles: reading one may run any code.
const PICKLES: &[&str] = &[".bin", ".pth", ".pt", ".ckpt"];

const INSTEAD: &str = "get the model as .safetensors files with config.json and tokenizer.json, or as a .gguf file";

/// The config.json of a checkpoint's folder, with what a file beside it says of how the weights are quantised, where it says nothing of that.
///
/// # Errors
/// A file that is not there, or no JSON.
pub fn configuration(folder: &Path) -> Result<Value> {
    const KEY: &str = "quantization_config";
    let mut config = read_json(&folder.join("config.json"))?;
    let Some(table) = config.as_object_mut().filter(|table| !table.contains_key(KEY)) else { return Ok(config) };
    for (name, method) in QUANTISED {
        let file = folder.join(name);
        if !file.exists() {
            continue;
        }
        let mut said = read_json(&file)?;
        if let Some(inner) = said.get_mut("quantization") {
            said = inner.take();
        }
        if let Some(options) = said.as_object_mut() {
            options.entry("quant_method").or_insert_with(|| (*method).into());
            table.insert(KEY.to_owned(), said);
            break;
        }
    }
    Ok(config)
}

/// The folder with a checkpoint's files that `named` stands for: itself, or of a model in the hub's cache (`models--OWNER--NAME`, or `snapshots` in it)
/// the snapshot of its main branch.
///
/// # Errors
/// A model in the hub's cache without a snapshot, or with several of which none is the main branch's.
pub fn checkpoint_folder(named: &Path) -> Result<PathBuf> {
    let is = |path: &Path, name: &str| path.file_name().is_some_and(|file| file == name);
    let root = if is(named, "snapshots") { named.parent().unwrap_or(named) } else { named };
    let snapshots = root.join("snapshots");
    if named.join("config.json").exists() || !snapshots.is_dir() {
        return Ok(named.to_owned());
    }
    let main = fs::read_to_string(root.join("refs/main")).unwrap_or_default();
    let found: Vec<String> = entries(&snapshots)?.into_iter().filter(|name| snapshots.join(name).is_dir()).collect();
    match (found.iter().find(|name| *name == main.trim()), &found[..]) {
        (Some(name), _) | (None, [name]) => Ok(snapshots.join(name)),
        (None, []) => {
            bail!("{}: it is in the hub's cache and has no snapshot: download the model again", named.display())
        }
        (None, [name, ..]) => bail!(
            "{}: it has {} snapshots, and refs/main names none of them: name one, such as {}",
            named.display(),
            found.len(),
            snapshots.join(name).display()
        ),
    }
}

/// Says why a folder without config.json is no checkpoint, and what to do.
pub fn without_config(folder: &Path) -> String {
    let Ok(names) = entries(folder) else { return format!("there is no config.json; {INSTEAD}") };
    let config = |name: &&String| folder.join(name).join("config.json").exists();
    if names.is_empty() {
        return format!("there is no config.json: the folder is empty; {INSTEAD}");
    }
    if let Some(said) = dangling(folder, "config.json").or_else(|| adapter(folder, &names)) {
        return said;
    }
    if let Some(said) = cache(folder, &names) {
        return said;
    }
    if let Some(said) = instead(folder, &names) {
        return format!("there is no config.json; {said}");
    }
    let other = original(&names).or_else(|| foreign(&names)).or_else(|| unfinished(folder, &names));
    if let Some(said) = other {
        return format!("there is no config.json: {said}");
    }
    if let Some(inner) = names.iter().find(config) {
        return format!("there is no config.json; {} has one: name that folder", folder.join(inner).display());
    }
    if let Some(weights) = names.iter().find(|name| name.ends_with(".safetensors")) {
        return format!("there is no config.json beside {weights}: download it from where the weights are from");
    }
    pickled(&names)
        .unwrap_or_else(|| "there is no config.json; give a Hugging Face model directory or a .gguf file".into())
}

/// Says why a folder with config.json has no weights that are read, and what to do.
pub fn without_weights(folder: &Path) -> String {
    format!("there is no .safetensors file beside config.json; {}", other_than_weights(folder))
}

/// Says why a folder has no tokenizer.json, and what to do.
pub fn without_tokenizer(folder: &Path) -> String {
    let names = entries(folder).unwrap_or_default();
    let said = dangling(folder, "tokenizer.json").or_else(|| adapter(folder, &names)).or_else(|| cache(folder, &names));
    let named = || Some(format!("there is no tokenizer.json; {}", instead(folder, &names)?));
    said.or_else(named).unwrap_or_else(|| {
        "there is no tokenizer.json; save the model's tokenizer with transformers (AutoTokenizer.save_pretrained), which writes it".to_owned()
    })
}

/// Says what a folder has in the place of .safetensors files, and what to do.
pub fn other_than_weights(folder: &Path) -> String {
    let names = entries(folder).unwrap_or_default();
    let lost = || names.iter().find_map(|name| dangling(folder, name));
    let said = adapter(folder, &names).or_else(lost).or_else(|| unfinished(folder, &names)).or_else(|| pickled(&names));
    let said = said.or_else(|| instead(folder, &names)).or_else(|| foreign(&names));
    said.unwrap_or_else(|| "download the weights (not .bin or .pth files)".to_owned())
}

/// Says what the .safetensors files of a folder are, where they are not a model's or not there.
pub fn other_weights(folder: &Path, files: &[PathBuf]) -> Option<String> {
    let names = entries(folder).unwrap_or_default();
    if let Some(lost) =
        names.iter().filter(|name| name.ends_with(".safetensors")).find_map(|name| dangling(folder, name))
    {
        return Some(lost);
    }
    let all = |start: &str| {
        let begins = |file: &PathBuf| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start));
        !files.is_empty() && files.iter().all(begins)
    };
    if all("adapter_") { adapter(folder, &names) } else { original(&names).filter(|_| all("consolidated")) }
}

/// Says what to give in the place of a path where nothing is.
pub fn nothing_there(path: &Path) -> String {
    let instead = hub_name(path).unwrap_or_else(|| "give a Hugging Face model directory or a .gguf file".to_owned());
    format!("no such file or directory; {instead}")
}

/// Where the hub's models are, as people name it.
pub const HUB: &[&str] = &["https://huggingface.co/", "http://huggingface.co/", "huggingface.co/", "hf://"];

/// What to do where nothing is at a path that may be the name of a model on the hub, `OWNER/NAME` or its address, or another address.
pub fn hub_name(path: &Path) -> Option<String> {
    let name = path.to_str().filter(|_| !path.exists())?;
    let address = HUB.iter().find_map(|hub| name.strip_prefix(hub));
    if name.starts_with("~/") {
        return Some("a shell puts the home folder in the place of ~ where it is not quoted: write $HOME".to_owned());
    }
    if address.is_none() && name.contains("://") {
        return Some(
            "it is an address, and only files are read: download the model and name its folder or .gguf file"
                .to_owned(),
        );
    }
    let mut parts = address.unwrap_or(name).split(['/', '?', '#']).filter(|part| !part.is_empty());
    let (owner, model) = (parts.next()?, parts.next()?);
    let plain = address.is_some() || parts.next().is_none() && !name.starts_with(['/', '.']) && !name.ends_with('/');
    plain.then(|| {
        format!("if it is a model on the hub, get it first (`fuserun pull {owner}/{model}`) and name what that prints")
    })
}

/// Says what a single file is that is neither a .gguf nor a folder, by its name; none where that does not tell.
pub fn single_file(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    let names = [name.clone()];
    if UNFINISHED.iter().any(|end| name.ends_with(end)) {
        return Some("it is an unfinished download: finish it, or download the file again".to_owned());
    }
    if [".safetensors", ".json", ".model", ".jinja"].iter().any(|end| name.ends_with(end)) {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        return Some(format!("it is one file of a model: name the folder that holds it ({})", folder.display()));
    }
    pickled(&names).or_else(|| foreign(&names))
}

/// A PEFT adapter: a difference to a model, without the model.
fn adapter(folder: &Path, names: &[String]) -> Option<String> {
    let has = |name: &str| names.iter().any(|other| other == name);
    let file =
        ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"].into_iter().find(|name| has(name))?;
    if has("model.safetensors") || has("model.safetensors.index.json") {
        return None;
    }
    let config = read_json(&folder.join("adapter_config.json")).unwrap_or(Value::Null);
    let text = |key: &str| config.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let kind = text("peft_type").map_or("LoRA".to_owned(), |kind| kind.replace("LORA", "LoRA"));
    let of = text("base_model_name_or_path").map_or("a model".to_owned(), |base| base.replace(char::is_control, ""));
    if kind.contains("PROMPT") || kind.contains("P_TUNING") || kind.contains("PREFIX") {
        return Some(format!(
            "it is a {kind} adapter ({file}) of {of}, which nothing here applies: name a whole model"
        ));
    }
    Some(format!(
        "it is a {kind} adapter ({file}), a change of {of} and no model: merge the two first, with PEFT in Python: \
         AutoPeftModelForCausalLM.from_pretrained({:?}).merge_and_unload().save_pretrained(\"merged\"), put the tokenizer of {of} beside it, and name that folder",
        folder.display().to_string()
    ))
}

/// The formats of those who trained a model, beside which the hub has transformers' own.
fn original(names: &[String]) -> Option<String> {
    let found = names.iter().find(|name| name.starts_with("consolidated"))?;
    names.iter().any(|name| name == "params.json" || name == "config.json").then(|| {
        format!("it is in its makers' own format ({found}): get it in that of transformers, whose files are config.json and model*.safetensors")
    })
}

fn foreign(names: &[String]) -> Option<String> {
    let known =
        |name: &String| FOREIGN.iter().find(|(end, _)| name.ends_with(end)).map(|(_, what)| (name.clone(), *what));
    let (name, what) = names.iter().find_map(known)?;
    Some(format!("it is {what} ({name}): {INSTEAD}"))
}

fn pickled(names: &[String]) -> Option<String> {
    let name = names.iter().find(|name| PICKLES.iter().any(|end| name.ends_with(end)))?;
    Some(format!(
        "its weights are PyTorch's pickles ({name}), which may run any code where they are read: {INSTEAD}, or save it anew with \
         transformers (AutoModelForCausalLM.from_pretrained, then save_pretrained)"
    ))
}

fn unfinished(folder: &Path, names: &[String]) -> Option<String> {
    let ends = |name: &&String| UNFINISHED.iter().any(|end| name.to_lowercase().ends_with(end));
    // Where the hub's client keeps what is on its way.
    let below = entries(&folder.join(".cache/huggingface/download")).unwrap_or_default();
    let name = names.iter().find(ends).or_else(|| below.iter().find(ends))?;
    Some(format!("its download is not complete ({name} is there): finish it, or download the model again"))
}

/// A link whose target is gone.
fn dangling(folder: &Path, name: &str) -> Option<String> {
    let path = folder.join(name);
    let target = fs::read_link(&path).ok().filter(|_| !path.exists())?;
    Some(format!("{name} is a link to {}, which is not there: download the model again", target.display()))
}

/// The hub's cache, which has a folder for each model.
fn cache(folder: &Path, names: &[String]) -> Option<String> {
    let models: Vec<&String> = names.iter().filter(|name| name.starts_with("models--")).collect();
    let first = folder.join(models.first()?);
    let count = if models.len() == 1 { "one model".to_owned() } else { format!("{} models", models.len()) };
    Some(format!("it is the hub's cache of {count}: name one, such as {}", first.display()))
}

/// The GGUF file to name in the place of a folder.
fn instead(folder: &Path, names: &[String]) -> Option<String> {
    Some(format!("it holds a GGUF file: name that instead ({})", folder.join(gguf(names)?).display()))
}

/// A GGUF file of a language model.
fn gguf(names: &[String]) -> Option<&String> {
    let files = || names.iter().filter(|name| name.ends_with(".gguf"));
    files().find(|name| !name.contains("mmproj") && !name.contains("imatrix")).or_else(|| files().next())
}

/// The names in a folder, sorted.
fn entries(folder: &Path) -> Result<Vec<String>> {
    let listed = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut names: Vec<String> =
        listed.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect();
    names.sort();
    Ok(names)
}
