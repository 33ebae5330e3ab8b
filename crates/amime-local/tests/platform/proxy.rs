//! A stand-in for the sidecar: answers what it intercepts with where the
//! connection was going, so that tests see the rules and nothing else.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;

use amime_net::socket;

/// Listens where a sidecar does; becomes ready last.
pub(crate) fn run(kind: &str) -> ExitCode {
    let starts = count_starts();
    let token = std::env::var("TOKEN_PATH").expect("token");
    let token = std::fs::read_to_string(token).expect("token");
    let root = std::env::var("XDS_ROOT_CA").expect("root");
    assert!(std::fs::read_to_string(root).expect("root").contains("BEGIN CERTIFICATE"));
    let metadata: serde_json::Value =
        serde_json::from_str(&std::env::var("ISTIO_METAJSON_LABELS").expect("labels"))
            .expect("JSON");
    let workload = std::env::var("ISTIO_META_WORKLOAD_NAME").expect("workload");
    let app = metadata["app"].as_str().unwrap_or_default();
    println!("{kind} {workload} {app} starts={starts} token={}", token.split('.').count());
    let outbound = std::thread::spawn(|| intercept(15001, "outbound"));
    std::thread::spawn(|| intercept(15006, "inbound"));
    let ready = TcpListener::bind("0.0.0.0:15021").expect("bound");
    std::thread::spawn(move || {
        for stream in ready.incoming() {
            answer(stream.expect("accepted"), "ready");
        }
    });
    outbound.join().expect("serving");
    ExitCode::SUCCESS
}

fn intercept(port: u16, direction: &str) {
    let listener = TcpListener::bind(("0.0.0.0", port)).expect("bound");
    for stream in listener.incoming() {
        let stream = stream.expect("accepted");
        let body = match socket::original_dst(&stream) {
            Ok(address) => format!("{direction} {}", address.port()),
            Err(error) => format!("{direction} {error}"),
        };
        answer(stream, &body);
    }
}

fn answer(mut stream: TcpStream, body: &str) {
    let mut request = [0; 4096];
    let _ = stream.read(&mut request);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    let _ = stream.write_all(format!("{head}{body}").as_bytes());
}

/// Starts so far, kept in the memory file that outlives this process.
fn count_starts() -> usize {
    let fd = std::env::var("AMIME_IDENTITY_FD").expect("memory file").parse().expect("number");
    let fd = socket::inherited_fd(fd).expect("inherited");
    let before = socket::read_memfd(&fd, 1000).expect("read").len();
    std::fs::File::from(fd).write_all(b"x").expect("written");
    before + 1
}
