//! Clients that come and go, a queue that is full, and the server's own beginning and end.

use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::channel;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::bail;
use fuse_tests::server::{Server, Stream, ask};
use fuserun::demo;
use fuserun::generate::defaults::GenerationDefaults;
use fuserun::serve::{Options, Subject, run};
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";

/// A request that takes a second at least.
fn long(stream: bool) -> Value {
    json!({"prompt": "Call me", "max_tokens": 100_000, "ignore_eos": true, "stream": stream, "temperature": 0})
}

fn busy(server: &Server) -> usize {
    let slots = server.get("/slots").json();
    slots.as_array().unwrap().iter().filter(|slot| slot["is_processing"] == true).count()
}

fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what}");
        sleep(Duration::from_millis(2));
    }
}

#[test]
fn who_goes_away_leaves_the_slot() {
    let server = Server::start(&["--slots", "2"]);
    for stream in [true, false] {
        let body = long(stream).to_string();
        let address = server.address();
        let mut sockets = Vec::new();
        for _ in 0..3 {
            // Two are answered, and one waits.
            let mut socket = std::net::TcpStream::connect(address).unwrap();
            let head =
                format!("POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            std::io::Write::write_all(&mut socket, head.as_bytes()).unwrap();
            sockets.push(socket);
        }
        soon("both slots are busy", || busy(&server) == 2);
        drop(sockets);
        let before = Instant::now();
        soon("all slots are free", || busy(&server) == 0);
        assert!(before.elapsed() < Duration::from_secs(5), "{stream}: {:?}", before.elapsed());
        let reply = server.post(COMPLETIONS, &json!({"prompt": "Call me", "max_tokens": 1}));
        assert_eq!(reply.status, 200);
    }
}

#[test]
fn more_than_the_queue_holds_are_told_to_come_again() {
    let server = Server::start(&["--slots", "1"]);
    let streams: Vec<Stream> = (0..70).map(|_| server.stream(COMPLETIONS, &long(true))).collect();
    let refused: Vec<&Stream> = streams.iter().filter(|stream| stream.head.status == 429).collect();
    assert!((1..=5).contains(&refused.len()), "{} of 70 are refused: one runs and 64 wait", refused.len());
    assert_eq!(refused[0].head.header("retry-after"), Some("1"));
    assert!(streams.iter().all(|stream| [200, 429].contains(&stream.head.status)));
    let reply = server.post(COMPLETIONS, &long(false));
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (429, &json!("rate_limit_error")), "{reply:?}");
    assert_eq!(server.get("/health").status, 200, "what needs no slot is answered");
    drop(streams);
    soon("the queue is empty", || {
        server.post(COMPLETIONS, &json!({"prompt": "Call me", "max_tokens": 1})).status == 200
    });
}

#[test]
fn told_to_end_it_answers_to_the_end() {
    for signal in ["TERM", "INT"] {
        let mut server = Server::start(&[]);
        let mut body = long(true);
        body["max_tokens"] = json!(300);
        let mut stream = server.stream(COMPLETIONS, &body);
        assert!(stream.event().is_some());
        server.signal(signal);
        let mut events = Vec::new();
        while let Some(event) = stream.event() {
            events.push(event);
        }
        assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
        let last: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
        assert_eq!(last["choices"][0]["finish_reason"], "length", "{signal}");
        assert_eq!(server.wait(), Some(0), "{}", server.said());
    }
}

#[test]
fn told_to_end_with_no_time_it_cuts_answers_off_and_says_so() {
    let mut server = Server::start(&["--shutdown-seconds", "0"]);
    let mut stream = server.stream(COMPLETIONS, &long(true));
    assert!(stream.event().is_some());
    server.signal("TERM");
    let mut events = Vec::new();
    while let Some(event) = stream.event() {
        events.push(event);
    }
    assert!(events.iter().any(|event| event.contains("the answer is cut off")), "{:?}", events.last());
    assert_eq!(server.wait(), Some(0), "{}", server.said());
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let done = fuse_tests::fuserun(&["serve", "--device", "cpu", "--port", &port], "");
    assert_eq!(done.code, 1);
    assert!(
        done.stderr.contains(&format!("cannot listen at 127.0.0.1:{port}: give another --host or --port")),
        "{}",
        done.stderr
    );
}

/// A model that takes its time to load, and then cannot be loaded.
#[test]
fn while_a_model_is_loaded_health_says_so_and_a_failure_ends_the_server() {
    let subject = Subject {
        name: "slow".into(),
        tokenizer: demo::tokenizer().unwrap(),
        template: None,
        defaults: GenerationDefaults::default(),
        chat_stops: Vec::new(),
        context: 64,
        slots: 1,
        architecture: None,
        dtype: None,
        device: "cpu".into(),
    };
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let options = Options { address, keys: Vec::new(), origins: Vec::new(), deadline: Duration::from_secs(1) };
    let ((tell, told), (go, gone)) = (channel(), channel());
    let server = std::thread::spawn(move || {
        let load = move |_: &_| {
            gone.recv()?;
            bail!("the weights are not there")
        };
        run(|| Ok(subject), options, load, |address| tell.send(address).unwrap())
    });
    let address = told.recv_timeout(Duration::from_secs(30)).unwrap();
    let get = |path: &str| ask(address, "GET", path, &[], b"");
    assert_eq!((get("/health").status, get("/health").json()), (503, json!({"status": "loading"})));
    assert_eq!(get("/v1/models").status, 200);
    let reply = ask(address, "POST", COMPLETIONS, &[], b"{\"prompt\": \"x\"}");
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")), "{reply:?}");
    assert_eq!(reply.json()["error"]["type"], "service_unavailable_error");
    go.send(()).unwrap();
    let ended = server.join().unwrap();
    assert_eq!(format!("{:#}", ended.unwrap_err()), "the weights are not there");
}
