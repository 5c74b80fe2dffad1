//! `fuserun serve` as a process, and a client that speaks just enough HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::command;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server with the demo model, at a port that is free. It ends when this is dropped.
pub struct Server {
    child: Child,
    address: SocketAddr,
    said: Arc<Mutex<String>>,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// Names in small letters, and values.
    pub headers: Vec<(String, String)>,
    /// The body, which is text.
    pub body: String,
}

/// An answer that is read as it comes.
pub struct Stream {
    reader: BufReader<TcpStream>,
    /// The status and the headers.
    pub head: Reply,
}

impl Server {
    /// Starts one on the CPU with further arguments, and waits until it serves.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(arguments: &[&str]) -> Server {
        Server::start_on("cpu", arguments)
    }

    /// The same on a device.
    ///
    /// # Panics
    /// As [`Server::start`].
    pub fn start_on(device: &str, arguments: &[&str]) -> Server {
        let mut command = command("fuserun");
        command.args(["serve", "--device", device, "--port", "0", "--threads", "1"]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the server starts");
        let stderr = BufReader::new(child.stderr.take().expect("its stderr is a pipe"));
        let said = Arc::new(Mutex::new(String::new()));
        let writer = said.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                writer.lock().unwrap_or_else(PoisonError::into_inner).push_str(&format!("{line}\n"));
            }
        });
        let mut server = Server { child, address: SocketAddr::from(([127, 0, 0, 1], 0)), said };
        let ready = |said: &str| said.lines().any(|line| line == "ready");
        let began = Instant::now();
        while !ready(&server.said()) {
            let ended = server.child.try_wait().expect("its state is known");
            assert!(ended.is_none() && began.elapsed() < PATIENCE, "no server: {}", server.said());
            sleep(Duration::from_millis(5));
        }
        let said = server.said();
        let address = said.split("http://").nth(1).and_then(|rest| rest.split(',').next());
        server.address = address.and_then(|text| text.parse().ok()).expect("it names its address");
        server
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The number of its process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to stderr so far.
    pub fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends it a signal, by its name.
    ///
    /// # Panics
    /// When there is no such signal.
    pub fn signal(&self, name: &str) {
        let sent = std::process::Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "{name} is sent");
    }

    /// Waits for its end; the exit code.
    ///
    /// # Panics
    /// When it does not end.
    pub fn wait(&mut self) -> Option<i32> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("its state is known") {
                return status.code();
            }
            assert!(began.elapsed() < PATIENCE, "it does not end: {}", self.said());
            sleep(Duration::from_millis(5));
        }
    }

    /// Asks for a path.
    pub fn get(&self, path: &str) -> Reply {
        ask(self.address, "GET", path, &[], b"")
    }

    /// Sends an object to a path.
    pub fn post(&self, path: &str, object: &Value) -> Reply {
        ask(self.address, "POST", path, &[], object.to_string().as_bytes())
    }

    /// Sends an object to a path; the answer is read as it comes.
    pub fn stream(&self, path: &str, object: &Value) -> Stream {
        Stream::open(self.address, "POST", path, &[], object.to_string().as_bytes())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended needs no end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a request and reads the whole answer.
///
/// # Panics
/// When there is none.
pub fn ask(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let mut stream = Stream::open(address, method, path, headers, body);
    let mut reply = stream.head.clone();
    while let Some(piece) = stream.piece() {
        reply.body.push_str(&piece);
    }
    reply
}

impl Stream {
    /// Sends a request and reads the head of the answer.
    ///
    /// # Panics
    /// When there is none.
    pub fn open(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Stream {
        let mut socket = TcpStream::connect(address).expect("the server listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n{more}\r\n"
        );
        socket.write_all(&[head.as_bytes(), body].concat()).expect("the request is sent");
        let mut reader = BufReader::new(socket);
        let mut lines = Vec::new();
        loop {
            let line = line(&mut reader);
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        let status = lines.first().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
        let header =
            |line: &String| line.split_once(':').map(|(name, value)| (name.to_lowercase(), value.trim().into()));
        let headers = lines.iter().skip(1).filter_map(header).collect();
        Stream { reader, head: Reply { status: status.expect("a status"), headers, body: String::new() } }
    }

    /// The next piece of the body; none at its end, or where the server cut it off.
    pub fn piece(&mut self) -> Option<String> {
        let mut bytes = Vec::new();
        if self.head.header("transfer-encoding") == Some("chunked") {
            let length = usize::from_str_radix(&line(&mut self.reader), 16).ok().filter(|length| *length > 0)?;
            bytes.resize(length, 0);
            self.reader.read_exact(&mut bytes).ok()?;
            line(&mut self.reader);
        } else {
            self.reader.read_to_end(&mut bytes).ok().filter(|length| *length > 0)?;
        }
        Some(String::from_utf8(bytes).expect("each piece is whole text"))
    }

    /// The data of the next server-sent event; none at the end of the stream.
    pub fn event(&mut self) -> Option<String> {
        loop {
            let piece = self.piece()?;
            let data = piece.lines().find_map(|line| line.strip_prefix("data: "));
            if let Some(data) = data {
                return Some(data.to_owned());
            }
        }
    }

    /// All events that are objects.
    ///
    /// # Panics
    /// When one is not.
    pub fn objects(mut self) -> Vec<Value> {
        let mut objects = Vec::new();
        while let Some(event) = self.event() {
            if event != "[DONE]" {
                objects.push(serde_json::from_str(&event).unwrap_or_else(|error| panic!("{error}: {event}")));
            }
        }
        objects
    }
}

impl Reply {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as an object.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

fn line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    // A connection that is cut off ends with an empty line.
    let _ = reader.read_line(&mut line);
    line.trim_end().to_owned()
}
