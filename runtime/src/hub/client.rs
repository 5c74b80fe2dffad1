//! Requests to the hub, and where its answers lead.

use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use serde_json::Value;
use ureq::http::{Response, StatusCode};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::choose::Listed;
use super::name::Name;
use super::settings::Settings;
use super::store::is_commit;

/// How long a connection, the beginning of an answer, and the next bytes of a body may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Redirects that are followed.
const MOST_HOPS: usize = 8;

/// The longest list of files that is read, in bytes.
const LONGEST_LIST: u64 = 64 << 20;

/// The longest time that a server may ask to wait.
const LONGEST_WAIT: u64 = 60;

/// Why an answer is none.
pub(super) enum Failure {
    /// It may be there another time, perhaps after a wait that the server asks for.
    Passing(String, Option<Duration>),
    /// It will not be.
    Lasting(Error),
}

/// What the hub says of a file before it is fetched.
pub(super) struct Head {
    pub checksum: String,
    pub size: Option<u64>,
}

/// Asks the hub.
pub(super) struct Client<'a> {
    agent: Agent,
    settings: &'a Settings,
}

/// How far redirects are followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hops {
    /// Within the hub: what it says of a file is in the answer that leads elsewhere.
    Within,
    /// To whoever has the file.
    All,
}

impl<'a> Client<'a> {
    pub(super) fn new(settings: &'a Settings) -> Client<'a> {
        let certificates = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("fuserun/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .tls_config(certificates)
            .build();
        Client { agent: Agent::new_with_config(config), settings }
    }

    /// The commit of a model's revision, and its files.
    pub(super) fn list(&self, name: &Name) -> Result<(String, Vec<Listed>), Failure> {
        let (repository, revision) = (name.repository(), escaped(name.revision(), ""));
        let url = format!("{}/api/models/{repository}/revision/{revision}?blobs=true", self.settings.endpoint);
        let mut answer = self.send(&url, "GET", None, Hops::All)?;
        if !answer.status().is_success() {
            return Err(self.refused(&answer, &name.to_string()));
        }
        let read = answer.body_mut().with_config().limit(LONGEST_LIST).read_to_string();
        let text = read.map_err(|error| passing(&url, &error))?;
        listed(&text).with_context(|| format!("{url} answers with no list of files")).map_err(Failure::Lasting)
    }

    /// What the hub says of a file of a commit.
    pub(super) fn head(&self, name: &Name, commit: &str, file: &str) -> Result<Head, Failure> {
        let answer = self.send(&self.url(name, commit, file), "HEAD", None, Hops::Within)?;
        let status = answer.status();
        if !status.is_success() && !status.is_redirection() {
            return Err(self.refused(&answer, &format!("{name}: {file}")));
        }
        let checksum = header(&answer, "x-linked-etag").or_else(|| header(&answer, "etag")).unwrap_or_default();
        let checksum = checksum.trim_start_matches("W/").trim_matches('"').to_owned();
        let own = || header(&answer, "content-length").filter(|_| status.is_success());
        let size = header(&answer, "x-linked-size").or_else(own).and_then(|size| size.parse().ok());
        Ok(Head { checksum, size })
    }

    /// A file of a commit from a byte on; the answer of whoever has it.
    pub(super) fn get(&self, name: &Name, commit: &str, file: &str, from: u64) -> Result<Response<Body>, Failure> {
        let answer = self.send(&self.url(name, commit, file), "GET", Some(from), Hops::All)?;
        match answer.status() {
            status if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE => Ok(answer),
            _ => Err(self.refused(&answer, file)),
        }
    }

    fn url(&self, name: &Name, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.settings.endpoint, name.repository(), escaped(file, "/"))
    }

    /// Sends a request, and again to where each answer leads. Only the hub itself is told the token.
    fn send(&self, url: &str, method: &str, from: Option<u64>, hops: Hops) -> Result<Response<Body>, Failure> {
        let mut url = url.to_owned();
        for _ in 0..MOST_HOPS {
            let mut request = if method == "HEAD" { self.agent.head(&url) } else { self.agent.get(&url) };
            request = request.header("accept-encoding", "identity");
            if let Some(from) = from.filter(|from| *from > 0) {
                request = request.header("range", format!("bytes={from}-"));
            }
            let own = origin(&url) == origin(&self.settings.endpoint);
            if let Some(token) = self.settings.token.as_ref().filter(|_| own) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let answer = request.call().map_err(|error| passing(&url, &error))?;
            let leads = header(&answer, "location").filter(|_| answer.status().is_redirection());
            let Some(next) = leads.map(|location| joined(&url, location)) else { return Ok(answer) };
            if hops == Hops::Within && origin(&next) != origin(&url) {
                return Ok(answer);
            }
            if origin(&url).starts_with("https:") && !origin(&next).starts_with("https:") {
                return Err(Failure::Lasting(anyhow!("{url} leads to {next}, which is not encrypted: not followed")));
            }
            url = next;
        }
        Err(Failure::Lasting(anyhow!("{url}: redirects lead on without an end")))
    }

    /// What an answer means that is none.
    fn refused(&self, answer: &Response<Body>, what: &str) -> Failure {
        let status = answer.status();
        let seconds = header(answer, "retry-after").and_then(|seconds| seconds.parse::<u64>().ok());
        let endpoint = &self.settings.endpoint;
        let passes = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status);
        if passes || status.is_server_error() {
            let wait = seconds.map(|seconds| Duration::from_secs(seconds.min(LONGEST_WAIT)));
            return Failure::Passing(format!("{endpoint} answers {status}"), wait);
        }
        let code = header(answer, "x-error-code").unwrap_or_default();
        let said = header(answer, "x-error-message").unwrap_or_default();
        let said: String = said.chars().filter(|letter| !letter.is_control()).take(200).collect();
        let said = if said.is_empty() { String::new() } else { format!(" ({said})") };
        let why = match (status.as_u16(), code, &self.settings.token) {
            (_, "RevisionNotFound", _) => "there is no such branch, tag or commit".to_owned(),
            (_, "EntryNotFound", _) => "there is no such file".to_owned(),
            (401 | 403, "GatedRepo", None) => {
                "its owner asks who wants it: agree on its page, then set HF_TOKEN to a token of yours".to_owned()
            }
            (401 | 403, "GatedRepo", Some(_)) => "its owner asks who wants it: agree on its page, with the account of the token".to_owned(),
            (401 | 403 | 404, _, None) => {
                "there is no such model, or it is not public: look at the name, or set HF_TOKEN to a token that may read it".to_owned()
            }
            (401, _, Some(_)) => "the token is not accepted: look at HF_TOKEN, or log in again (`hf auth login`)".to_owned(),
            (403 | 404, _, Some(_)) => "there is no such model, or the token may not read it".to_owned(),
            _ => format!("the answer is {status}"),
        };
        Failure::Lasting(anyhow!("{what} at {endpoint}: {why}{said}"))
    }
}

/// A header as text.
pub(super) fn header<'a>(answer: &'a Response<Body>, name: &str) -> Option<&'a str> {
    answer.headers().get(name)?.to_str().ok()
}

/// A connection that failed.
fn passing(url: &str, error: &ureq::Error) -> Failure {
    match error {
        error if error.to_string().contains("certificate") => Failure::Lasting(anyhow!(
            "{}: {error}: this system does not trust who signed it; where a network signs for others, SSL_CERT_FILE names its certificates",
            origin(url)
        )),
        ureq::Error::BadUri(_) => Failure::Lasting(anyhow!("{url} is no address: look at HF_ENDPOINT")),
        error => Failure::Passing(format!("{}: {error}", origin(url)), None),
    }
}

/// What the hub says of a revision: its commit, and its files.
fn listed(text: &str) -> Result<(String, Vec<Listed>)> {
    let object: Value = serde_json::from_str(text)?;
    let commit = object.get("sha").and_then(Value::as_str).filter(|sha| is_commit(sha)).context("there is no sha")?;
    let files = object.get("siblings").and_then(Value::as_array).context("there are no siblings")?;
    let listed = |file: &Value| {
        let name = file.get("rfilename").and_then(Value::as_str)?;
        let large = file.get("lfs").filter(|large| large.is_object());
        let checksum = match large {
            Some(large) => large.get("sha256"),
            None => file.get("blobId"),
        };
        let size = large.and_then(|large| large.get("size")).or_else(|| file.get("size")).and_then(Value::as_u64);
        let checksum = checksum.and_then(Value::as_str).filter(|sum| is_checksum(sum)).map(str::to_owned);
        Some(Listed { name: name.to_owned(), size, checksum })
    };
    let files: Vec<Listed> = files.iter().filter_map(listed).collect();
    for file in &files {
        let safe = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0']);
        ensure!(file.name.split('/').all(safe), "a file is called {:?}", file.name);
    }
    if files.is_empty() {
        bail!("there are no files");
    }
    Ok((commit.to_owned(), files))
}

/// Whether a text is a SHA-256 or a SHA-1 in hexadecimal.
pub(super) fn is_checksum(text: &str) -> bool {
    is_commit(text) || text.len() == 64 && text.chars().all(|letter| matches!(letter, '0'..='9' | 'a'..='f'))
}

/// Scheme, host and port of an address, in small letters.
fn origin(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    format!("{scheme}://{host}").to_lowercase()
}

/// Where a redirect leads.
fn joined(base: &str, location: &str) -> String {
    let (scheme, rest) = base.split_once("://").unwrap_or(("https", base));
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if location.split(['/', '?', '#']).next().is_some_and(|start| start.ends_with(':')) {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{host}{location}")
    } else {
        let path = rest.split(['?', '#']).next().unwrap_or_default();
        let folder = path.rsplit_once('/').map_or(host, |(folder, _)| folder);
        format!("{scheme}://{folder}/{location}")
    }
}

/// A text as a part of an address; the letters of `kept` stay.
fn escaped(text: &str, kept: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || kept.as_bytes().contains(&byte);
    let escape = |byte: u8| if plain(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_is_joined_to_where_it_comes_from() {
        let base = "https://localhost/o/n/resolve/main/a.json?x=1";
        for (location, leads) in [
            ("/api/a", "https://localhost/api/a"),
            ("b.json", "https://localhost/o/n/resolve/main/b.json"),
            ("//127.0.0.1/b", "https://127.0.0.1/b"),
            ("http://127.0.0.1/b?c=/d", "http://127.0.0.1/b?c=/d"),
        ] {
            assert_eq!(joined(base, location), leads);
        }
        assert_eq!(joined("http://localhost:1", "b"), "http://localhost:1/b");
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        assert_eq!(origin("HTTPS://LocalHost:443/a"), "https://localhost:443");
        assert_ne!(origin("http://127.0.0.1:80/"), origin("http://127.0.0.1:81/"));
        assert_ne!(origin("https://localhost@127.0.0.1/"), origin("https://localhost/"));
    }

    #[test]
    fn addresses_are_escaped() {
        assert_eq!(escaped("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(escaped("a b/c#\u{e4}.json", "/"), "a%20b/c%23%C3%A4.json");
    }

    #[test]
    fn a_list_of_files_is_read_and_a_dangerous_one_is_not() {
        let sha = "0123456789012345678901234567890123456789";
        let list = |files: &str| listed(&format!("{{\"sha\": \"{sha}\", \"siblings\": [{files}]}}"));
        let (commit, files) = list("{\"rfilename\": \"a\", \"size\": 3, \"blobId\": \"x\"}").unwrap();
        assert_eq!((commit.as_str(), files[0].size, &files[0].checksum), (sha, Some(3), &None));
        for name in ["../a", "/a", "a//b", "a/./b", "a\\\\b"] {
            assert!(list(&format!("{{\"rfilename\": \"{name}\"}}")).is_err(), "{name}");
        }
        assert!(list("").is_err() && listed("{}").is_err() && listed("<html>").is_err());
    }
}
