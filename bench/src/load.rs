//! The load generator: closed loop for throughput, open loop for latency.
//!
//! Invariant: any answer but a complete 200 is an error of the whole run; a
//! figure that counts failures as requests would flatter whoever fails fast.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::backend::head_end;

const REQUEST: &[u8] =
    b"GET /bench HTTP/1.1\r\nhost: bench.local\r\nuser-agent: amime-bench\r\naccept: */*\r\n\r\n";

/// Waits until a request through `entry` is answered with 200.
pub(crate) fn wait_ready(entry: SocketAddr, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let last = match block_on(async { Client::connect(entry).await?.request().await }) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if Instant::now() > deadline {
            return Err(last).context(format!("proxy at {entry} did not become ready"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Requests answered in `span` by `connections` clients that never pause.
pub(crate) fn saturate(entry: SocketAddr, connections: usize, span: Duration) -> Result<u64> {
    block_on(async {
        let deadline = Instant::now() + span;
        let mut tasks = Vec::new();
        for _ in 0..connections {
            tasks.push(tokio::spawn(async move {
                let mut client = Client::connect(entry).await?;
                let mut done = 0_u64;
                while Instant::now() < deadline {
                    client.request().await?;
                    done += 1;
                }
                anyhow::Ok(done)
            }));
        }
        let mut total = 0;
        for task in tasks {
            total += task.await??;
        }
        Ok(total)
    })
}

/// Latencies in microseconds at `rate` requests a second, each measured from
/// the moment it was due, so that a stall counts for all who waited behind it.
pub(crate) fn at_rate(
    entry: SocketAddr,
    connections: usize,
    rate: u64,
    span: Duration,
) -> Result<Histogram<u64>> {
    block_on(async {
        let each = Duration::from_secs_f64(connections as f64 / rate as f64);
        let start = Instant::now() + Duration::from_millis(10);
        let mut tasks = Vec::new();
        for index in 0..connections {
            tasks.push(tokio::spawn(async move {
                let mut histogram = Histogram::<u64>::new(3)?;
                let mut client = Client::connect(entry).await?;
                let mut due = start + each.mul_f64(index as f64 / connections as f64);
                while due < start + span {
                    tokio::time::sleep_until(due.into()).await;
                    // The timer is coarse: what it oversleeps is not the proxy's.
                    let sent = Instant::now();
                    let from = if sent - due < Duration::from_millis(2) { sent } else { due };
                    client.request().await?;
                    histogram.saturating_record(from.elapsed().as_micros() as u64);
                    due += each;
                }
                anyhow::Ok(histogram)
            }));
        }
        let mut all = Histogram::<u64>::new(3)?;
        for task in tasks {
            all.add(task.await??)?;
        }
        Ok(all)
    })
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    async fn connect(entry: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(entry).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 16 * 1024] })
    }

    async fn request(&mut self) -> Result<()> {
        self.stream.write_all(REQUEST).await?;
        let mut filled = 0;
        let mut expected = None;
        loop {
            let read = self.stream.read(&mut self.buffer[filled..]).await?;
            ensure!(read > 0, "connection closed in the middle of a response");
            filled += read;
            if expected.is_none() {
                expected = head_end(&self.buffer[..filled])
                    .map(|end| Ok::<_, anyhow::Error>(end + content_length(&self.buffer[..end])?))
                    .transpose()?;
            }
            if expected.is_some_and(|total| filled >= total) {
                return Ok(());
            }
            ensure!(filled < self.buffer.len(), "response larger than expected");
        }
    }
}

fn content_length(head: &[u8]) -> Result<usize> {
    let head = std::str::from_utf8(head).context("response head is not text")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("unexpected answer: {}", head.lines().next().unwrap_or_default());
    }
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .context("response has no content-length")?
        .1
        .trim()
        .parse()
        .context("bad content-length")
}
