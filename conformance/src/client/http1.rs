//! HTTP/1.1 towards the proxy.

use std::io;
use std::time::Duration;

use anyhow::Result;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::{Done, PROBE, Stream, note_alert, patience};
use crate::case::Exchange;
use crate::coding::meant;
use crate::outcome::{Aspect, Outcome};
use crate::wire::{Body, Framing, Head, Reader, summary};

/// Time for a connection to end that says it will.
const CLOSE: Duration = Duration::from_secs(3);

/// What is known of the connection after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// The peer announced the end, or it came.
    Closing,
    /// Nothing was said.
    Open,
    /// No answer came.
    Silent,
}

pub(super) async fn talk<S: Stream>(exchange: &Exchange, stream: S, done: &mut Done) -> Result<()> {
    let bytes = exchange.bytes(&done.id)?;
    let (read, mut write) = tokio::io::split(stream);
    let mut reader = Reader::new(read);
    // A peer that answers early may never read the rest.
    let writing = tokio::spawn(async move {
        let written = async {
            write.write_all(&bytes).await?;
            write.flush().await
        };
        let written: io::Result<()> = written.await;
        (write, written)
    });
    let mut after = After::Open;
    for index in 0..exchange.responses {
        let method = if index == 0 { exchange.method() } else { "GET" };
        after = one(&mut reader, method, patience(exchange), done).await;
        if after != After::Open {
            break;
        }
    }
    if after == After::Silent {
        writing.abort();
        done.outcome.add(Aspect::Close, "open, without an answer");
        return Ok(());
    }
    if after == After::Closing {
        writing.abort();
        let ended = timeout(CLOSE, ended(&mut reader)).await.is_ok();
        done.outcome.add(Aspect::Close, if ended { "closed" } else { "announced and not done" });
        return Ok(());
    }
    let (write, written) = writing.await?;
    if let Some(text) = &exchange.tunnel {
        tunnel(&mut reader, write, text, &mut done.outcome).await;
        return Ok(());
    }
    if exchange.probe {
        let open = written.is_ok() && probe(&mut reader, write).await;
        done.outcome.add(Aspect::Close, if open { "open" } else { "closed" });
        done.logged.probe = open;
    }
    Ok(())
}

/// Reads one response, with informational ones before it.
async fn one<R: tokio::io::AsyncRead + Unpin>(
    reader: &mut Reader<R>,
    method: &str,
    patience: Duration,
    done: &mut Done,
) -> After {
    loop {
        let head = match timeout(patience, reader.head()).await {
            Err(_) => {
                if !reader.buffer.is_empty() {
                    done.outcome
                        .add(Aspect::Body, format!("not a head: {}", summary(&reader.buffer)));
                }
                return After::Silent;
            }
            Ok(Ok(Some(head))) => head,
            Ok(Ok(None)) => {
                done.outcome.add(Aspect::Status, "no response");
                if !reader.buffer.is_empty() {
                    done.outcome
                        .add(Aspect::Body, format!("not a head: {}", summary(&reader.buffer)));
                }
                return After::Closing;
            }
            Ok(Err(error)) => {
                done.outcome.add(Aspect::Status, "no response");
                note_alert(&mut done.outcome, &error);
                return After::Closing;
            }
        };
        note_head(&mut done.outcome, &head);
        let status = head.status();
        if (100..200).contains(&status) && status != 101 {
            continue;
        }
        done.logged.responses += 1;
        let framing = match status {
            101 | 204 | 304 => Framing::None,
            200 if method == "CONNECT" => Framing::None,
            _ if method == "HEAD" => Framing::None,
            _ => head.framing(Framing::UntilClose),
        };
        let closing = head.lists("connection", "close") || framing == Framing::UntilClose;
        let Ok(body) = timeout(patience, reader.body(framing)).await else {
            done.outcome.add(Aspect::Body, "body without end");
            return After::Silent;
        };
        note_body(&mut done.outcome, head.field("content-encoding"), &body);
        return if closing || !body.complete { After::Closing } else { After::Open };
    }
}

fn note_head(outcome: &mut Outcome, head: &Head) {
    let mut words = head.start.splitn(3, ' ');
    let line: Vec<_> = words.by_ref().take(2).collect();
    outcome.add(Aspect::Status, line.join(" "));
    let mut fields = head.fields.clone();
    fields.sort_by_key(|(name, _)| name.to_ascii_lowercase());
    for (name, value) in fields {
        outcome.add(Aspect::Headers, format!("{name}: {value}"));
    }
}

fn note_body(outcome: &mut Outcome, coding: Option<&str>, body: &Body) {
    if !body.bytes.is_empty() {
        outcome.add(Aspect::Body, meant(coding, &body.bytes));
    }
    for (name, value) in &body.trailers {
        outcome.add(Aspect::Body, format!("trailer {name}: {value}"));
    }
    if !body.complete {
        outcome.add(Aspect::Body, "(incomplete)");
    }
}

/// Waits until the peer ends the connection, however.
async fn ended<R: tokio::io::AsyncRead + Unpin>(reader: &mut Reader<R>) {
    while matches!(reader.fill().await, Ok(true)) {
        reader.buffer.clear();
    }
}

/// Whether one more request is answered.
async fn probe<R, W>(reader: &mut Reader<R>, mut write: W) -> bool
where
    R: tokio::io::AsyncRead + Unpin,
    W: AsyncWriteExt + Unpin,
{
    let request = format!("GET {PROBE} HTTP/1.1\r\nhost: probe\r\n\r\n");
    if write.write_all(request.as_bytes()).await.is_err() || write.flush().await.is_err() {
        return false;
    }
    let answered = timeout(Duration::from_secs(8), reader.head()).await;
    matches!(answered, Ok(Ok(Some(_))))
}

async fn tunnel<R, W>(reader: &mut Reader<R>, mut write: W, text: &str, outcome: &mut Outcome)
where
    R: tokio::io::AsyncRead + Unpin,
    W: AsyncWriteExt + Unpin,
{
    let through = async {
        write.write_all(text.as_bytes()).await?;
        write.flush().await?;
        while reader.buffer.len() < text.len() && reader.fill().await? {}
        let answer = reader.buffer.split();
        write.shutdown().await?;
        io::Result::Ok(answer)
    };
    match timeout(CLOSE, through).await {
        Ok(Ok(answer)) => outcome.add(Aspect::Body, format!("tunnel: {}", summary(&answer))),
        Ok(Err(_)) => outcome.add(Aspect::Body, "tunnel: closed"),
        Err(_) => outcome.add(Aspect::Body, "tunnel: silent"),
    }
    let closed = timeout(CLOSE, ended(reader)).await.is_ok();
    outcome.add(Aspect::Close, if closed { "closed after our end" } else { "open after our end" });
}
