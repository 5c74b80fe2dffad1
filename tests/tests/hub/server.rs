//! A hub on this machine: a list of files, files in it, and large files at another host, with the faults that a test asks for.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The commit of the branch main.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The repository that there is.
pub const REPOSITORY: &str = "owner/Tiny-1.5";

/// What the hub does besides what it should.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Tells size and checksum of no file in its list.
    pub bare_list: bool,
    /// Asks for this token, and has a message for others.
    pub token: Option<&'static str>,
    /// Ends each connection for a large file after so many bytes, as often as is said.
    pub breaks: Option<(usize, usize)>,
    /// Sends other bytes in the place of a large file, as often as is said.
    pub damage: usize,
    /// Answers ranges as if there were none.
    pub no_ranges: bool,
    /// Has no bytes at any range.
    pub bad_ranges: bool,
    /// Is busy, as often as is said.
    pub busy: usize,
    /// Leads small files round to another path of its own, by a relative address.
    pub moved: bool,
    /// Leads everything round for ever.
    pub round: bool,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// GET or HEAD.
    pub method: String,
    /// What is asked for, without what comes after `?`.
    pub path: String,
    /// The host that was meant.
    pub host: String,
    /// Headers by their names in small letters.
    pub headers: BTreeMap<String, String>,
}

struct Shared {
    files: BTreeMap<String, Vec<u8>>,
    faults: Mutex<Faults>,
    requests: Mutex<Vec<Request>>,
    address: SocketAddr,
}

/// The hub. Its threads end with the test.
pub struct Hub(Arc<Shared>);

impl Hub {
    /// One with these files.
    pub fn start(files: &[(&str, Vec<u8>)]) -> Hub {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
        let shared = Arc::new(Shared {
            files: files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect(),
            faults: Mutex::default(),
            requests: Mutex::default(),
            address: listener.local_addr().expect("it has an address"),
        });
        let hub = Hub(shared.clone());
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let shared = shared.clone();
                // A client that goes away is no fault of the hub's.
                std::thread::spawn(move || while serve(&shared, &socket).unwrap_or(false) {});
            }
        });
        hub
    }

    /// Where clients find it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.0.address)
    }

    /// Lets it have faults from now on, and forget the requests so far.
    pub fn with(&self, faults: Faults) {
        *lock(&self.0.faults) = faults;
        lock(&self.0.requests).clear();
    }

    /// What was asked for.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.0.requests).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a file is one of those that are elsewhere.
pub fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".gguf")
}

/// The name of contents: SHA-256, or git's SHA-1 of small files.
pub fn checksum(name: &str, bytes: &[u8]) -> String {
    let hexadecimal = |digest: &[u8]| digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    if is_large(name) {
        return hexadecimal(&Sha256::digest(bytes));
    }
    hexadecimal(&Sha1::digest([format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat()))
}

/// Answers one request; whether another may come on the connection.
fn serve(shared: &Shared, socket: &TcpStream) -> std::io::Result<bool> {
    let mut lines = BufReader::new(socket).lines();
    let mut line = || lines.next().unwrap_or_else(|| Ok(String::new()));
    let first = line()?;
    let mut words = first.split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return Ok(false) };
    let mut headers = BTreeMap::new();
    loop {
        let line = line()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let path = target.split('?').next().unwrap_or_default().to_owned();
    let host = headers.get("host").cloned().unwrap_or_default();
    let request = Request { method: method.to_owned(), path, host, headers };
    lock(&shared.requests).push(request.clone());
    let elsewhere = request.host.starts_with("localhost");
    let answer = if elsewhere { large_file(shared, &request) } else { hub(shared, &request) };
    let mut head = format!("HTTP/1.1 {}\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", answer.body.len()));
    let mut socket = socket;
    socket.write_all(head.as_bytes())?;
    if request.method != "HEAD" {
        socket.write_all(&answer.body[..answer.cut.unwrap_or(answer.body.len())])?;
    }
    if answer.cut.is_some() {
        socket.shutdown(std::net::Shutdown::Both)?;
    }
    Ok(answer.cut.is_none())
}

#[derive(Default)]
struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Where the connection ends early.
    cut: Option<usize>,
}

fn refused(status: &'static str, code: &str) -> Answer {
    let headers = vec![("X-Error-Code", code.to_owned()), ("X-Error-Message", format!("{code}, it says"))];
    Answer { status, headers, ..Answer::default() }
}

fn hub(shared: &Shared, request: &Request) -> Answer {
    let mut faults = lock(&shared.faults);
    if faults.busy > 0 {
        faults.busy -= 1;
        let headers = vec![("Retry-After", "0".to_owned())];
        return Answer { status: "503 Service Unavailable", headers, ..Answer::default() };
    }
    if faults.round {
        return Answer { status: "302 Found", headers: vec![("Location", request.path.clone())], ..Answer::default() };
    }
    let given = request.headers.get("authorization").and_then(|header| header.strip_prefix("Bearer "));
    if faults.token.is_some() && faults.token != given {
        return refused("401 Unauthorized", "GatedRepo");
    }
    if let Some(revision) = request.path.strip_prefix(&format!("/api/models/{REPOSITORY}/revision/")) {
        if !["main", COMMIT, "refs%2Fpr%2F1"].contains(&revision) {
            return refused("404 Not Found", "RevisionNotFound");
        }
        let siblings: Vec<Value> =
            shared.files.iter().map(|(name, bytes)| sibling(name, bytes, faults.bare_list)).collect();
        let body = json!({ "id": REPOSITORY, "sha": COMMIT, "siblings": siblings }).to_string().into_bytes();
        return Answer { status: "200 OK", body, ..Answer::default() };
    }
    let (moved, path) = match request.path.strip_prefix("/moved") {
        Some(path) => (true, path),
        None => (false, request.path.as_str()),
    };
    let of = |revision: &str| path.strip_prefix(&format!("/{REPOSITORY}/resolve/{revision}/"));
    let Some(name) = of(COMMIT).or_else(|| of("main")) else {
        return refused("401 Unauthorized", "RepoNotFound");
    };
    let Some(bytes) = shared.files.get(name) else { return refused("404 Not Found", "EntryNotFound") };
    let sum = format!("\"{}\"", checksum(name, bytes));
    if is_large(name) {
        let location = format!("http://localhost:{}/{}?signature=x", shared.address.port(), checksum(name, bytes));
        let headers = vec![
            ("Location", location),
            ("X-Linked-Etag", sum),
            ("X-Linked-Size", bytes.len().to_string()),
            ("X-Repo-Commit", COMMIT.to_owned()),
            ("ETag", "\"of the pointer\"".to_owned()),
        ];
        return Answer { status: "302 Found", headers, body: b"Found".to_vec(), cut: None };
    }
    if faults.moved && !moved {
        let location = format!("/moved{path}");
        return Answer { status: "307 Temporary Redirect", headers: vec![("Location", location)], ..Answer::default() };
    }
    ranged(&faults, request, bytes.clone(), vec![("ETag", sum), ("X-Repo-Commit", COMMIT.to_owned())])
}

/// A file of the list.
fn sibling(name: &str, bytes: &[u8], bare: bool) -> Value {
    if bare {
        return json!({ "rfilename": name });
    }
    let mut sibling = json!({ "rfilename": name, "size": bytes.len(), "blobId": checksum("x", bytes) });
    if is_large(name) {
        sibling["lfs"] = json!({ "sha256": checksum(name, bytes), "size": bytes.len(), "pointerSize": 135 });
    }
    sibling
}

/// The host that has large files, by their checksums.
fn large_file(shared: &Shared, request: &Request) -> Answer {
    let mut faults = lock(&shared.faults);
    let found = shared.files.iter().find(|(name, bytes)| request.path == format!("/{}", checksum(name, bytes)));
    let Some((_, bytes)) = found else { return refused("403 Forbidden", "AccessDenied") };
    let mut bytes = bytes.clone();
    if faults.damage > 0 {
        faults.damage -= 1;
        bytes[0] ^= 1;
    }
    let mut answer = ranged(&faults, request, bytes, vec![("ETag", "\"elsewhere\"".to_owned())]);
    if let Some((after, times)) = faults.breaks.filter(|(after, times)| *times > 0 && answer.body.len() > *after) {
        answer.cut = Some(after);
        faults.breaks = Some((after, times - 1));
    }
    answer
}

/// A file, or its end where a range is asked for.
fn ranged(faults: &Faults, request: &Request, bytes: Vec<u8>, mut headers: Vec<(&'static str, String)>) -> Answer {
    let range = request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
    let start = range.and_then(|start| start.parse::<usize>().ok()).filter(|_| !faults.no_ranges);
    match start {
        Some(start) if start >= bytes.len() || faults.bad_ranges => {
            Answer { status: "416 Range Not Satisfiable", headers, ..Answer::default() }
        }
        Some(start) => {
            headers.push(("Content-Range", format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len())));
            Answer { status: "206 Partial Content", headers, body: bytes[start..].to_vec(), cut: None }
        }
        None => Answer { status: "200 OK", headers, body: bytes, cut: None },
    }
}
