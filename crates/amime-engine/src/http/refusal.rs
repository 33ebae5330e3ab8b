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
        if self.serving() || !bytes.starts_with(b"HTTP/1.1 4") {
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
        if !self.serving() {
            let first = bufs.iter().find(|buf| !buf.is_empty());
            return self.poll_write(cx, first.map_or(&[][..], |buf| &**buf));
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
