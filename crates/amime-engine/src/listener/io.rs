//! A downstream connection's byte stream: plain or TLS, with bytes that were
//! read ahead put back in front.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use amime_rules::connection::Connection;
use amime_upstream::tls::MaybeTls;

/// A stream whose first bytes have been read already.
pub(crate) struct Prefixed<T> {
    prefix: Bytes,
    io: T,
}

impl<T> Prefixed<T> {
    pub(crate) fn new(prefix: Bytes, io: T) -> Self {
        Self { prefix, io }
    }
}

/// What a downstream connection reads from and writes to.
pub(crate) type Transport = MaybeTls<TlsStream<Prefixed<TcpStream>>>;

/// A downstream connection's stream.
pub(crate) type DownstreamIo = Prefixed<Transport>;

/// How an HTTP/2 client begins.
pub(super) const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

impl DownstreamIo {
    /// Whether the client speaks HTTP/2: by ALPN, else by its first bytes.
    pub(crate) async fn starts_http2(&mut self, connection: &Connection) -> bool {
        match connection.tls.as_ref().and_then(|tls| tls.alpn.as_deref()) {
            Some(b"h2" | b"istio-h2") => return true,
            Some(b"http/1.1" | b"http/1.0" | b"istio-http/1.1" | b"istio-http/1.0") => {
                return false;
            }
            _ => {}
        }
        let mut seen = Vec::new();
        if !self.prefix.is_empty() {
            seen.extend_from_slice(&self.prefix);
        }
        while seen.len() < HTTP2_PREFACE.len() && HTTP2_PREFACE.starts_with(&seen) {
            let mut buf = [0; HTTP2_PREFACE.len()];
            match self.io.read(&mut buf).await {
                Ok(count) if count > 0 => seen.extend_from_slice(&buf[..count]),
                _ => break,
            }
        }
        let http2 = seen.starts_with(HTTP2_PREFACE);
        self.prefix = seen.into();
        http2
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Prefixed<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let count = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..count]);
        self.prefix.advance(count);
        if self.prefix.is_empty() {
            self.prefix = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Prefixed<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
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
