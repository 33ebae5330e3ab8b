//! Sides that read slowly or not at all: what the proxy takes of the other
//! side meanwhile, in bytes, and how long it waits.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::{Proxy, routes};
use crate::raw_http2::{Client, DATA, HEADERS, RST_STREAM, WINDOW_UPDATE, frame};

const TO_BACKEND: &str = "- match: {prefix: /}\n  route: {cluster: a, timeout: 0s}";

/// What kernels keep of a connection on the way, both sides together, and the
/// little that codecs hold.
const ON_THE_WAY: usize = 16 << 20;

/// A backend of HTTP/1 that answers with bytes without end, or reads nothing
/// beyond a request's head.
struct Source {
    address: SocketAddr,
    /// Bytes that the proxy's side has taken.
    taken: Arc<AtomicUsize>,
    closed: Arc<AtomicUsize>,
}

impl Source {
    async fn start(answers: bool) -> Self {
        // So that what the proxy does not take stays here.
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_send_buffer_size(64 * 1024).expect("a small buffer");
        socket.set_recv_buffer_size(64 * 1024).expect("a small buffer");
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let socket = socket.listen(1024).expect("it listens");
        let address = socket.local_addr().expect("an address");
        let (taken, closed) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let source = Self { address, taken: taken.clone(), closed: closed.clone() };
        tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                let (taken, closed) = (taken.clone(), closed.clone());
                tokio::spawn(async move {
                    pour(stream, answers, &taken).await;
                    closed.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        source
    }

    /// Waits until nothing has been taken for a while; how much was.
    async fn stands_still(&self) -> usize {
        loop {
            let before = self.taken.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(150)).await;
            let now = self.taken.load(Ordering::SeqCst);
            if now == before && now > 0 {
                return now;
            }
        }
    }

    async fn until_closed(&self, connections: usize) {
        let closed = async {
            while self.closed.load(Ordering::SeqCst) < connections {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), closed).await.expect("the proxy gives up");
    }
}

async fn pour(mut stream: TcpStream, answers: bool, taken: &AtomicUsize) {
    let mut head = [0; 1024];
    let _ = stream.read(&mut head).await;
    if !answers {
        return std::future::pending().await;
    }
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n").await;
    while let Ok(count) = stream.write(&[b'x'; 64 * 1024]).await {
        taken.fetch_add(count, Ordering::SeqCst);
    }
}

async fn proxy(fields: &str, source: &Source) -> Proxy {
    let hcm = format!("{fields}\n{}", routes(TO_BACKEND));
    Proxy::http(&hcm, &[("a", source.address)]).await
}

async fn small_client(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(64 * 1024).expect("a small buffer");
    socket.set_send_buffer_size(64 * 1024).expect("a small buffer");
    socket.connect(address).await.expect("the proxy accepts")
}

/// Settings and window of a client that wants all at once.
async fn greedy(address: SocketAddr) -> Client {
    let most = (1 << 31) - 1;
    let mut client = Client::with_settings(address, &[(4, most)]).await;
    client.send(&frame(WINDOW_UPDATE, 0, 0, &(most - 65_535).to_be_bytes())).await;
    client
}

#[tokio::test]
async fn a_client_that_reads_nothing_makes_the_upstream_wait_and_then_costs_nothing() {
    let source = Source::start(true).await;
    let proxy = proxy("stream_idle_timeout: 0.5s", &source).await;
    let mut client = small_client(proxy.address()).await;
    client.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("the proxy reads");
    let taken = source.stands_still().await;
    assert!(taken < ON_THE_WAY, "{taken} bytes taken");
    source.until_closed(1).await;
    proxy.until_stat("http.test.downstream_rq_idle_timeout: 1").await;
    proxy.until_stat("http.test.downstream_cx_active: 0").await;
}

#[tokio::test]
async fn a_client_that_reads_again_gets_on() {
    let source = Source::start(true).await;
    let proxy = proxy("stream_idle_timeout: 30s", &source).await;
    let mut client = small_client(proxy.address()).await;
    client.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("the proxy reads");
    let taken = source.stands_still().await;
    let mut read = 0;
    let mut buffer = vec![0; 1 << 16];
    while read < 2 * taken {
        read += client.read(&mut buffer).await.expect("bytes come");
    }
    assert!(source.stands_still().await > taken);
}

#[tokio::test]
async fn a_stream_without_window_ends_alone() {
    let source = Source::start(true).await;
    let proxy = proxy("stream_idle_timeout: 0.4s", &source).await;
    let mut client = Client::with_settings(proxy.address(), &[(4, 0)]).await;
    client.get(1, "/").await;
    client.until(|frame| frame.kind == HEADERS).await;
    let reset = client.until(|frame| frame.kind == RST_STREAM).await;
    assert_eq!(reset.stream, 1);
    proxy.until_stat("http.test.downstream_rq_idle_timeout: 1").await;
    // Nothing was sent, so nothing but what is on the way was taken.
    let taken = source.taken.load(Ordering::SeqCst);
    assert!(taken < ON_THE_WAY, "{taken} bytes taken");
    client.get(3, "/").await;
    client.until(|frame| frame.kind == HEADERS && frame.stream == 3).await;
}

#[tokio::test]
async fn many_streams_of_a_client_that_reads_nothing_take_little_more_than_one() {
    const STREAMS: u32 = 64;
    let source = Source::start(true).await;
    let proxy = proxy("stream_idle_timeout: 30s", &source).await;
    let mut client = greedy(proxy.address()).await;
    client.get(1, "/").await;
    source.stands_still().await;
    // The connection is full: of these nothing is taken but what the kernel
    // takes of a connection that is not read.
    for stream in 1..STREAMS {
        client.get(2 * stream + 1, "/").await;
    }
    let more = source.stands_still().await;
    let each = 1 << 20;
    assert!(more < ON_THE_WAY + STREAMS as usize * each, "{more} bytes taken");
    drop(client);
    source.until_closed(STREAMS as usize).await;
}

#[tokio::test]
async fn an_upload_waits_for_the_upstream() {
    let source = Source::start(false).await;
    let proxy = proxy("", &source).await;
    let quiet = Duration::from_millis(300);
    let mut client = small_client(proxy.address()).await;
    let head = b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1000000000000\r\n\r\n";
    client.write_all(head).await.expect("the proxy reads");
    let mut accepted = 0;
    while tokio::time::timeout(quiet, client.writable()).await.is_ok() {
        accepted += client.try_write(&[0; 64 * 1024]).unwrap_or(0);
        assert!(accepted < ON_THE_WAY, "{accepted} bytes accepted");
    }
    assert!(accepted > 0);
}

#[tokio::test]
async fn an_upload_over_http2_gets_no_more_window_than_the_upstream_takes() {
    const WINDOW: u32 = 65_535;
    let source = Source::start(false).await;
    let fields = format!(
        "http2_protocol_options: {{initial_stream_window_size: {WINDOW}, initial_connection_window_size: {WINDOW}}}"
    );
    let proxy = proxy(&fields, &source).await;
    let mut client = Client::connect(proxy.address()).await;
    client.send(&Client::head(1, "/", 0)).await;
    // Of the connection and of the stream.
    let mut windows = [WINDOW; 2];
    let mut accepted = 0;
    loop {
        let size = windows[0].min(windows[1]).min(16_384);
        if size > 0 {
            client.send(&frame(DATA, 0, 1, &vec![0; size as usize])).await;
            windows = windows.map(|window| window - size);
            accepted += size as usize;
            assert!(accepted < ON_THE_WAY, "{accepted} bytes accepted");
            continue;
        }
        let quiet = Duration::from_millis(300);
        let Ok(next) = tokio::time::timeout(quiet, client.next()).await else { break };
        let next = next.expect("the connection is open");
        if next.kind == WINDOW_UPDATE {
            let by = u32::from_be_bytes(next.payload.try_into().expect("four bytes"));
            windows[next.stream as usize] += by;
        }
    }
    assert!(accepted >= WINDOW as usize);
}
