//! Descriptions of the user's own: a folder beside those in the binary.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};

use super::{Description, find_for, shipped};

/// The user's folder of descriptions: FUSE_MODELS, XDG_CONFIG_HOME/fuse/models or ~/.config/fuse/models. None where there is no such place; it need
/// not exist.
pub fn user_folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("FUSE_MODELS")
        .or_else(|| variable("XDG_CONFIG_HOME").map(|root| root.join("fuse/models")))
        .or_else(|| variable("HOME").map(|home| home.join(".config/fuse/models")))
}

/// File and text of the description that serves one of these architectures: one of `folder` before a shipped one.
///
/// # Errors
/// Two files of the folder serve them; or one that names an architecture of them cannot be read.
pub fn find_serving<S: AsRef<str>>(architectures: &[S], folder: Option<&Path>) -> Result<Option<(String, String)>> {
    let mut found: Option<(String, String)> = None;
    for path in folder.map(files).transpose()?.unwrap_or_default() {
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        // A file that is about something else may be unfinished.
        if !architectures.iter().any(|name| text.contains(name.as_ref())) {
            continue;
        }
        let file = path.display().to_string();
        let description = Description::parse(&text, &file).map_err(|diagnostics| anyhow!("{diagnostics}"))?;
        if !architectures.iter().any(|name| description.serves.iter().any(|served| served == name.as_ref())) {
            continue;
        }
        if let Some((other, _)) = &found {
            ensure!(false, "{other} and {file} serve the same architecture: say which with --description");
        }
        found = Some((file, text));
    }
    Ok(found.or_else(|| find_for(architectures).map(|(file, text)| (file.to_owned(), text.to_owned()))))
}

/// File and text of the description called `name`: `name.toml` of `folder`, or a shipped one.
///
/// # Errors
/// The folder's file cannot be read.
pub fn find_named(name: &str, folder: Option<&Path>) -> Result<Option<(String, String)>> {
    let own = folder.map(|folder| folder.join(format!("{name}.toml"))).filter(|path| path.is_file());
    if let Some(path) = own {
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        return Ok(Some((path.display().to_string(), text)));
    }
    let known = shipped().iter().find(|(file, _)| file.strip_suffix(".toml") == Some(name));
    Ok(known.map(|(file, text)| ((*file).to_owned(), (*text).to_owned())))
}

/// The descriptions in a folder, sorted; none where it does not exist.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_user_comes_first() {
        let folder = std::env::temp_dir().join(format!("fuse-user-models-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder can be made");
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("a file can be written");
        let (_, llama) = find_named("llama", None).expect("it is read").expect("llama is shipped");
        let at = |name: &str| folder.join(name).display().to_string();
        let serving = |name: &str| {
            let found = find_serving(&[name], Some(&folder)).map_err(|error| error.to_string());
            found.map(|found| found.map(|(file, _)| file))
        };

        assert_eq!(serving("LlamaForCausalLM"), Ok(Some("llama.toml".into())));
        assert_eq!(serving("NewForCausalLM"), Ok(None));
        write("new.toml", &llama.replace("LlamaForCausalLM", "NewForCausalLM"));
        write("unfinished.toml", "schema = ");
        write("notes.txt", "NewForCausalLM");
        assert_eq!(serving("NewForCausalLM"), Ok(Some(at("new.toml"))));
        assert_eq!(serving("LlamaForCausalLM"), Ok(Some("llama.toml".into())));
        write("own.toml", &llama);
        assert_eq!(serving("LlamaForCausalLM"), Ok(Some(at("own.toml"))));
        assert_eq!(find_named("own", Some(&folder)).expect("it is read"), Some((at("own.toml"), llama.clone())));
        write("twice.toml", &llama);
        let said = format!(
            "{} and {} serve the same architecture: say which with --description",
            at("own.toml"),
            at("twice.toml")
        );
        assert_eq!(serving("LlamaForCausalLM"), Err(said));
        write("broken.toml", "serves = [\"OtherForCausalLM\"]\nschema = ");
        assert!(serving("OtherForCausalLM").expect_err("it is not TOML").contains("broken.toml:2"));
        std::fs::remove_dir_all(&folder).expect("the folder can be removed");
    }
}
