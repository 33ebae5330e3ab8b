//! The codec's own refusals in the form that clients of Envoy know.
//!
//! hyper answers a request that it cannot parse by itself, with an empty
//! body, before any service sees it. This stream wrapper recognises that
//! answer, which is always one write while no request is being served, and
//! writes ours in its place.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use http::HeaderValue;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How each refusal of the codec begins.
const REFUSAL_START: &[u8] = b"HTTP/1.1 4";

/// A downstream stream under an HTTP/1 codec.
pub(super) struct Refusals<T> {
    io: T,
    /// Set while a request is served. Atomic only because upgraded streams
    /// must be able to change threads; ours never do.
    serving: Arc<AtomicBool>,
    server: HeaderValue,
    /// Our answer and how much of it is written.
    answer: Option<(Vec<u8>, usize)>,
    refused: bool,
}

impl<T> Refusals<T> {
    pub(super) fn new(io: T, serving: Arc<AtomicBool>, server: HeaderValue) -> Self {
        Self { io, serving, server, answer: None, refused: false }
    }

    fn serving(&self) -> bool {
        self.serving.load(Ordering::Relaxed)
    }

    /// Our text for the codec's answer `bytes`, if that is a refusal.
    fn replacement(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        if self.serving() || !bytes.starts_with(REFUSAL_START) {
            return None;
        }
        // Answers of our own name their server.
        let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains("\r\nserver:"))?;
        let date = text.lines().find(|line| line.starts_with("date: ")).unwrap_or("date: unknown");
        let (line, body) = match bytes.get(9..12)? {
            b"400" => ("400 Bad Request", "Bad Request"),
            b"431" => ("431 Request Header Fields Too Large", "Request Header Fields Too Large"),
            b"414" => ("431 Request Header Fields Too Large", "Request Header Fields Too Large"),
            _ => return None,
        };
        let server = self.server.to_str().unwrap_or("envoy");
        Some(
            format!(
                "HTTP/1.1 {line}\r\ncontent-length: {}\r\ncontent-type: text/plain\r\n\
                 {date}\r\nserver: {server}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            )
            .into_bytes(),
        )
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Refusals<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Refusals<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.answer.is_none() && !this.refused {
            this.answer = this.replacement(buf).map(|answer| (answer, 0));
        }
        let Some((answer, written)) = &mut this.answer else {
            return Pin::new(&mut this.io).poll_write(cx, buf);
        };
        while *written < answer.len() {
            match Pin::new(&mut this.io).poll_write(cx, &answer[*written..]) {
                Poll::Ready(Ok(count)) if count > 0 => *written += count,
                Poll::Ready(Ok(_)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                other => return other,
            }
        }
        this.answer = None;
        this.refused = true;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // Head and body of an ordinary answer stay one write, also when the
        // request has ended before the codec writes.
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| &**buf);
        let may_refuse = !self.refused && !self.serving() && first.starts_with(REFUSAL_START);
        if self.answer.is_some() || may_refuse {
            return self.poll_write(cx, first);
        }
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    /// Writes head and body at once and tells how much one call took.
    async fn written(serving: bool, head: &str) -> (usize, String) {
        let (ours, mut peer) = tokio::io::duplex(4096);
        let serving = Arc::new(AtomicBool::new(serving));
        let server = HeaderValue::from_static("envoy");
        let mut refusals = Refusals::new(ours, serving, server);
        let bufs = [io::IoSlice::new(head.as_bytes()), io::IoSlice::new(b"body")];
        let count =
            std::future::poll_fn(|cx| Pin::new(&mut refusals).poll_write_vectored(cx, &bufs))
                .await
                .expect("the pipe is open");
        drop(refusals);
        let mut text = String::new();
        peer.read_to_string(&mut text).await.expect("text");
        (count, text)
    }

    #[tokio::test]
    async fn an_answer_after_the_request_ended_is_one_write() {
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n";
        let (count, text) = written(false, head).await;
        assert_eq!(count, text.len(), "one write takes all");
        assert_eq!(text, format!("{head}body"));
    }

    #[tokio::test]
    async fn a_refusal_of_the_codec_is_reworded() {
        let (count, text) = written(false, "HTTP/1.1 400 Bad Request\r\n\r\n").await;
        assert_eq!(count, 28);
        assert!(text.ends_with("server: envoy\r\nconnection: close\r\n\r\nBad Request"), "{text}");
    }
}
