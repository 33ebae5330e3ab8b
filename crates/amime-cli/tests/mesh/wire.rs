//! What a packet capture between two pods shows.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use crate::harness::Mesh;

/// The extension of a ServerHello that selects TLS 1.3: type 43, two bytes, 0x0304.
const TLS13_SELECTED: &[u8] = &[0x00, 0x2b, 0x00, 0x02, 0x03, 0x04];

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn between_pods_there_is_tls13_and_no_plaintext() {
    let mesh = Mesh::start();
    let capture =
        ["exec", "details-v1", "--", "tcpdump", "-Z", "root", "-i", "eth0", "-U", "-w", "-"];
    let mut tcpdump = mesh
        .command(&capture)
        .args(["-c", "60", "tcp port 9080"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let stderr = tcpdump.stderr.take().expect("piped");
    let mut said = BufReader::new(stderr).lines().map_while(Result::ok);
    assert!(said.any(|line| line.contains("listening on")), "tcpdump does not listen");

    // No page was asked for before, so the capture sees connections from
    // their first byte.
    let mut packets = Vec::new();
    let reader = std::thread::spawn(move || {
        let mut stdout = tcpdump.stdout.take().expect("piped");
        stdout.read_to_end(&mut packets).expect("a capture");
        tcpdump.wait().expect("tcpdump ends");
        packets
    });
    while !reader.is_finished() {
        mesh.page();
    }
    let packets = reader.join().expect("a capture");
    assert!(contains(&packets, TLS13_SELECTED), "no TLS 1.3 handshake in {} bytes", packets.len());
    assert!(!contains(&packets, b"GET /details"), "a request in plaintext");
    assert!(!contains(&packets, b"HTTP/1.1"), "HTTP in plaintext");
}
