//! The upstream: answers each request head with the same 1 KB response.
//!
//! Owns no HTTP beyond finding the blank line: the requests that arrive here
//! were made by a proxy under test and carry no body.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const BODY_BYTES: usize = 1024;

/// Starts the backend on a thread of its own and returns its loopback address.
pub(crate) fn start() -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("backend cannot listen")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    std::thread::Builder::new().name("backend".into()).spawn(move || {
        runtime.block_on(async move {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
    })?;
    Ok(address)
}

async fn serve(mut stream: TcpStream) {
    let response = [
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {BODY_BYTES}\r\n\r\n"
        )
        .into_bytes(),
        vec![b'x'; BODY_BYTES],
    ]
    .concat();
    let _ = stream.set_nodelay(true);
    let mut buffer = vec![0; 16 * 1024];
    let mut filled = 0;
    loop {
        match stream.read(&mut buffer[filled..]).await {
            Ok(0) | Err(_) => return,
            Ok(read) => filled += read,
        }
        while let Some(end) = head_end(&buffer[..filled]) {
            buffer.copy_within(end..filled, 0);
            filled -= end;
            if stream.write_all(&response).await.is_err() {
                return;
            }
        }
        if filled == buffer.len() {
            return;
        }
    }
}

/// Offset just past the blank line that ends a message head.
pub(crate) fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}
