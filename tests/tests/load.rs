//! Many clients at once, for a while: they join, leave in the middle, and send what is no request. `tests/run load` runs it for as long as it is told.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fuse_tests::server::{Server, Stream, ask};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
/// Between two looks at the server's memory.
const LOOK: Duration = Duration::from_millis(250);
/// What memory may grow by after warm-up: of so many kilobytes, and of so much of what there was.
const GROWTH: (f64, f64) = (12_288.0, 1.04);

/// What has happened so far.
#[derive(Default)]
struct Counts {
    answers: AtomicUsize,
    left: AtomicUsize,
    refused: AtomicUsize,
    busy: AtomicUsize,
    /// Between the tokens of an answer, in microseconds.
    gaps: Mutex<Vec<u32>>,
}

/// What a client draws from.
struct Draw(u64);

impl Draw {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

/// A request, and what it was answered when nobody else asked.
struct Known {
    path: &'static str,
    body: Value,
    answer: String,
}

impl Known {
    fn all(server: &Server) -> Vec<Known> {
        let said = ["Call me", "The whale", "It is cold"];
        let chats = said.iter().enumerate().map(|(index, text)| {
            let messages = json!([{"role": "user", "content": text}]);
            (CHAT, json!({"messages": messages, "max_tokens": 2 + 2 * index, "temperature": 0}))
        });
        let completions = said.iter().enumerate().map(|(index, text)| {
            let body = json!({"prompt": text, "max_tokens": 3 + 3 * index, "temperature": 1, "seed": index, "ignore_eos": true});
            (COMPLETIONS, body)
        });
        let held = json!({"prompt": "Call me", "max_tokens": 9, "temperature": 1, "seed": 5, "regex": "[A-Z][a-z]{2} [0-9]{2}"});
        let known = |(path, body): (&'static str, Value)| {
            let object = server.post(path, &body).json();
            let answer = text(&object["choices"][0]);
            assert!(!answer.is_empty(), "{object}");
            Known { path, body, answer }
        };
        chats.chain(completions).chain([(COMPLETIONS, held)]).map(known).collect()
    }

    /// Asks for it, whole or as it comes; false where there is no room.
    fn ask(&self, address: SocketAddr, stream: bool, counts: &Counts) -> bool {
        let mut body = self.body.clone();
        body["stream"] = json!(stream);
        let mut answer = Stream::open(address, "POST", self.path, &[], body.to_string().as_bytes());
        match answer.head.status {
            200 => {}
            429 => return false,
            other => panic!("{other} to {body}"),
        }
        let (mut said, mut finish, mut latest) = (String::new(), Value::Null, None::<Instant>);
        if stream {
            let mut done = false;
            while let Some(event) = answer.event() {
                if event == "[DONE]" {
                    done = true;
                    continue;
                }
                let object: Value = serde_json::from_str(&event).unwrap_or_else(|error| panic!("{error}: {event}"));
                assert!(object.get("error").is_none(), "{object}");
                let choice = &object["choices"][0];
                let piece = text(choice);
                if !piece.is_empty() {
                    let moment = Instant::now();
                    if let Some(before) = latest.replace(moment) {
                        let mut gaps = counts.gaps.lock().unwrap_or_else(PoisonError::into_inner);
                        gaps.push(u32::try_from((moment - before).as_micros()).unwrap_or(u32::MAX));
                    }
                    said += &piece;
                }
                if !choice["finish_reason"].is_null() {
                    finish = choice["finish_reason"].clone();
                }
            }
            assert!(done, "an answer is lost after {said:?}: {body}");
        } else {
            let mut whole = String::new();
            while let Some(piece) = answer.piece() {
                whole += &piece;
            }
            let object: Value = serde_json::from_str(&whole).unwrap_or_else(|error| panic!("{error}: {whole:?}"));
            said = text(&object["choices"][0]);
            finish = object["choices"][0]["finish_reason"].clone();
        }
        assert!(finish.is_string(), "an answer has no end: {body}");
        assert_eq!(said, self.answer, "neighbours change nothing: {body}");
        true
    }
}

/// The text of a choice, of whichever API, whole or a piece of it.
fn text(choice: &Value) -> String {
    let found = [&choice["text"], &choice["message"]["content"], &choice["delta"]["content"]];
    found.into_iter().find_map(Value::as_str).unwrap_or_default().to_owned()
}

/// Asks for a long answer, and goes away after so many pieces of it.
fn leave(address: SocketAddr, pieces: usize) -> bool {
    let body = json!({"prompt": "Call me", "max_tokens": 400, "ignore_eos": true, "stream": true, "temperature": 0});
    let body = body.to_string();
    if pieces == 0 {
        // Not even its status is waited for.
        let head = format!("POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        TcpStream::connect(address).and_then(|mut socket| socket.write_all(head.as_bytes())).expect("it is sent");
        return true;
    }
    let mut stream = Stream::open(address, "POST", COMPLETIONS, &[], body.as_bytes());
    if stream.head.status == 429 {
        return false;
    }
    assert_eq!(stream.head.status, 200);
    for _ in 0..pieces {
        assert!(stream.event().is_some(), "an answer is lost");
    }
    true
}

/// Sends what is no request.
fn mistake(address: SocketAddr, which: usize) {
    let deep = "[".repeat(5000);
    let wrong: [(&str, &str, &[u8], u16); 10] = [
        ("POST", CHAT, b"{", 400),
        ("POST", CHAT, b"", 400),
        ("POST", CHAT, b"{\"messages\": \"\xff\xfe\"}", 400),
        ("POST", CHAT, b"{\"messages\": 5}", 400),
        ("POST", CHAT, b"{\"messages\": []}", 400),
        ("POST", CHAT, b"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"temperature\": \"hot\"}", 400),
        ("POST", CHAT, deep.as_bytes(), 400),
        ("POST", COMPLETIONS, b"{\"prompt\": [99999999]}", 400),
        ("GET", "/nowhere", b"", 404),
        ("DELETE", CHAT, b"", 405),
    ];
    let raw: [&[u8]; 4] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"messa",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n",
        b"GET / HT",
    ];
    match which.checked_sub(wrong.len()) {
        None => {
            let (method, path, body, status) = wrong[which];
            let reply = ask(address, method, path, &[], body);
            assert_eq!(reply.status, status, "{method} {path} {:?}: {reply:?}", String::from_utf8_lossy(body));
            assert!(reply.json()["error"]["message"].is_string(), "{reply:?}");
        }
        Some(index) => {
            let mut socket = TcpStream::connect(address).expect("the server listens");
            socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a time limit");
            socket.write_all(raw[index % raw.len()]).expect("it is sent");
            // An answer or none: who sends this does not wait for it.
            let _ = socket.read(&mut [0; 512]);
        }
    }
}

fn client(number: usize, address: SocketAddr, known: &[Known], over: &AtomicBool, counts: &Counts) {
    let mut draw = Draw(number as u64 * 7919 + 1);
    let count = |counter: &AtomicUsize| counter.fetch_add(1, Ordering::Relaxed);
    // All kinds of clients come first, and then any.
    let mut action = number % 10;
    while !over.load(Ordering::Relaxed) {
        let room = match action {
            0 => {
                mistake(address, draw.below(14));
                count(&counts.refused);
                true
            }
            1 | 2 => {
                let room = leave(address, draw.below(6));
                if room {
                    count(&counts.left);
                }
                room
            }
            _ => {
                let room = known[draw.below(known.len())].ask(address, action > 4, counts);
                if room {
                    count(&counts.answers);
                }
                room
            }
        };
        action = draw.below(10);
        if !room {
            count(&counts.busy);
            sleep(Duration::from_millis(50 + draw.below(200) as u64));
        }
    }
}

/// Kilobytes of memory that a process has, as `ps` tells them, too, where there is no /proc.
fn memory(process: u32) -> f64 {
    let told = std::fs::read_to_string(format!("/proc/{process}/status")).ok();
    let line = told.as_ref().and_then(|told| told.lines().find_map(|line| line.strip_prefix("VmRSS:")));
    let told = line.map(str::to_owned).or_else(|| {
        let done = std::process::Command::new("ps").args(["-o", "rss=", "-p", &process.to_string()]).output().ok()?;
        String::from_utf8(done.stdout).ok()
    });
    let number = told.as_deref().and_then(|told| told.split_whitespace().next()?.parse().ok());
    number.expect("/proc or ps tells the memory of a process")
}

/// A number of the environment.
fn setting(name: &str, usual: u64) -> u64 {
    let text = std::env::var(name).unwrap_or_default();
    if text.is_empty() { usual } else { text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}: give a number")) }
}

#[test]
fn many_clients_for_a_while() {
    let seconds = setting("FUSE_LOAD_SECONDS", 5);
    let clients = usize::try_from(setting("FUSE_LOAD_CLIENTS", 10)).unwrap();
    let server = Server::start(&["--slots", if clients < 50 { "4" } else { "8" }]);
    let known = Known::all(&server);
    let (over, counts, address) = (AtomicBool::new(false), Counts::default(), server.address());
    let mut looks = Vec::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|number| {
                let (known, over, counts) = (&known, &over, &counts);
                scope.spawn(move || client(number, address, known, over, counts))
            })
            .collect();
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(seconds) && threads.iter().all(|thread| !thread.is_finished()) {
            sleep(LOOK);
            looks.push(memory(server.process()));
        }
        over.store(true, Ordering::Relaxed);
    });
    // All who left are gone, and all who asked were answered.
    let began = Instant::now();
    let idle = || {
        let metrics = server.get("/metrics").body;
        ["fuserun_slots_busy 0\n", "fuserun_requests_waiting 0\n"].iter().all(|line| metrics.contains(line))
    };
    while !idle() {
        assert!(began.elapsed() < Duration::from_secs(30), "{}", server.get("/metrics").body);
        sleep(Duration::from_millis(5));
    }
    for known in &known {
        assert!(known.ask(address, true, &counts), "there is room");
    }
    let mut gaps = counts.gaps.into_inner().unwrap_or_else(PoisonError::into_inner);
    gaps.sort_unstable();
    let gap = |share: f64| f64::from(gaps[((gaps.len() - 1) as f64 * share) as usize]) / 1000.0;
    let median = |part: &[f64]| {
        let mut part = part.to_vec();
        part.sort_by(f64::total_cmp);
        part[part.len() / 2]
    };
    // Warm-up is the first half of a short run, and a fifth of a long one.
    let warm = if looks.len() < 100 { looks.len() / 2 } else { looks.len() / 5 };
    let tenth = (looks.len() / 10).max(1);
    let (before, after) = (median(&looks[warm..warm + tenth]), median(&looks[looks.len() - tenth..]));
    let told = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    let (answers, left, refused, busy) =
        (told(&counts.answers), told(&counts.left), told(&counts.refused), told(&counts.busy));
    println!(
        "load: {clients} clients, {seconds} s: {answers} answers, {left} left, {refused} mistaken, {busy} told to come again; between \
         tokens p50 {:.2} ms, p99 {:.2} ms, most {:.2} ms; memory {:.1} MiB after warm-up, {:.1} MiB at the end",
        gap(0.5),
        gap(0.99),
        gap(1.0),
        before / 1024.0,
        after / 1024.0
    );
    assert!(answers > clients / 3 && left > 0 && refused > 0, "all kinds of clients came");
    assert!(after <= before * GROWTH.1 + GROWTH.0, "memory grows: {looks:?}");
}
