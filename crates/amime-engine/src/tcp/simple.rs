//! Network filters that need no upstream.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::listener::DownstreamIo;

/// Sends back what comes until the client is done.
pub(crate) async fn echo(mut io: DownstreamIo) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count) = io.read(&mut buffer).await {
        if count == 0 || io.write_all(&buffer[..count]).await.is_err() || io.flush().await.is_err()
        {
            break;
        }
    }
    let _ = io.shutdown().await;
}

/// Says `text` and closes.
pub(crate) async fn say(mut io: DownstreamIo, text: &[u8]) {
    let _ = io.write_all(text).await;
    let _ = io.shutdown().await;
}
