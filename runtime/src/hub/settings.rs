//! Where the hub and its cache are, by the variables of the hub's own tools.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// What the environment says of the hub.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// Its address, with no slash at the end: HF_ENDPOINT.
    pub endpoint: String,
    /// The folder of models: HF_HUB_CACHE, else `hub` in HF_HOME, else in `huggingface` of XDG_CACHE_HOME or `~/.cache`.
    pub cache: PathBuf,
    /// Who asks: HF_TOKEN, else the file HF_TOKEN_PATH, else `token` in HF_HOME.
    pub token: Option<String>,
    /// Whether nothing is asked over the network: HF_HUB_OFFLINE.
    pub offline: bool,
}

impl Settings {
    /// Reads the environment of this process.
    ///
    /// # Errors
    /// An address that is none, no place for the cache, a token that is none.
    pub fn from_environment() -> Result<Settings> {
        Settings::of(|name| std::env::var_os(name))
    }

    fn of(variable: impl Fn(&str) -> Option<OsString>) -> Result<Settings> {
        let given = |names: &[&str]| names.iter().find_map(|name| variable(name).filter(|value| !value.is_empty()));
        let user = given(&["HOME"]).map(PathBuf::from);
        let folder = |names: &[&str]| given(names).map(|path| in_home(PathBuf::from(path), user.as_deref()));
        let home = folder(&["HF_HOME"]).or_else(|| {
            let caches = folder(&["XDG_CACHE_HOME"]).or_else(|| Some(user.as_ref()?.join(".cache")))?;
            Some(caches.join("huggingface"))
        });
        let cache = folder(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).or_else(|| Some(home.as_ref()?.join("hub")));
        let endpoint = given(&["HF_ENDPOINT"]).unwrap_or_else(|| "https://huggingface.co".into());
        let endpoint = endpoint.to_string_lossy().trim_end_matches('/').to_owned();
        ensure!(
            endpoint.starts_with("https://") || endpoint.starts_with("http://"),
            "HF_ENDPOINT={endpoint} is no address: it begins with https://"
        );
        let file = folder(&["HF_TOKEN_PATH"]).or_else(|| Some(home.as_ref()?.join("token")));
        let token = match given(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]) {
            Some(token) => Some(token.to_string_lossy().into_owned()),
            // Without a file, there is no token.
            None => file.and_then(|file| fs::read_to_string(file).ok()),
        };
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        ensure!(
            token.as_ref().is_none_or(|token| token.chars().all(|letter| letter.is_ascii_graphic())),
            "the hub's token (HF_TOKEN, or the file that `hf auth login` writes) has characters that no token has"
        );
        let truth = given(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]).unwrap_or_default();
        let offline = ["1", "on", "yes", "true"].contains(&truth.to_string_lossy().to_lowercase().as_str());
        let cache = cache.context("there is no HOME for the hub's cache: set HF_HOME to a folder")?;
        Ok(Settings { endpoint, cache, token, offline })
    }
}

/// A path whose `~` is the user's home.
fn in_home(path: PathBuf, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Settings> {
        Settings::of(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn variables_go_before_each_other_as_in_the_hubs_tools() {
        let cache = |variables: &[(&str, &str)]| of(variables).unwrap().cache;
        assert_eq!(cache(&[("HOME", "/h")]), Path::new("/h/.cache/huggingface/hub"));
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "~/f"), ("XDG_CACHE_HOME", "/x")]), Path::new("/h/f/hub"));
        assert_eq!(cache(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
        assert!(of(&[]).is_err());

        let plain = of(&[("HOME", "/nowhere")]).unwrap();
        assert_eq!((plain.endpoint.as_str(), plain.token, plain.offline), ("https://huggingface.co", None, false));
        let set =
            [("HOME", "/h"), ("HF_ENDPOINT", "http://127.0.0.1:9/"), ("HF_TOKEN", " t\n"), ("HF_HUB_OFFLINE", "True")];
        let set = of(&set).unwrap();
        assert_eq!((set.endpoint.as_str(), set.token.as_deref(), set.offline), ("http://127.0.0.1:9", Some("t"), true));
        assert!(of(&[("HOME", "/h"), ("HF_TOKEN", "a b")]).is_err());
        assert!(of(&[("HOME", "/h"), ("HF_ENDPOINT", "localhost")]).is_err());
    }
}
