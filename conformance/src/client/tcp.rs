//! Plain bytes towards the proxy.

use std::time::Duration;

use anyhow::Result;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::{Done, Stream, note_alert, patience};
use crate::case::Exchange;
use crate::outcome::Aspect;
use crate::wire::{Reader, summary};

pub(super) async fn talk<S: Stream>(exchange: &Exchange, stream: S, done: &mut Done) -> Result<()> {
    let bytes = exchange.bytes(&done.id)?;
    let mut reader = Reader::new(stream);
    // A peer that has gone already shows in what is read.
    let _ = reader.stream.write_all(&bytes).await;
    let _ = reader.stream.flush().await;
    let until = exchange.until.as_deref().unwrap_or_default().as_bytes();
    let mut open = true;
    let reading = async {
        while until.is_empty() || !reader.buffer.windows(until.len()).any(|part| part == until) {
            match reader.fill().await {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    };
    match timeout(patience(exchange), reading).await {
        Ok(Ok(still)) => open = still,
        Ok(Err(error)) => {
            note_alert(&mut done.outcome, &error);
            open = false;
        }
        Err(_) => done.outcome.add(Aspect::Body, "silent"),
    }
    if open {
        let _ = reader.stream.shutdown().await;
        let rest = async { while matches!(reader.fill().await, Ok(true)) {} };
        let ended = timeout(Duration::from_secs(3), rest).await.is_ok();
        done.outcome.add(Aspect::Close, if ended { "closed after our end" } else { "open" });
    } else {
        done.outcome.add(Aspect::Close, "closed");
    }
    done.outcome.add(Aspect::Body, summary(&reader.buffer));
    done.logged.responses = 1;
    Ok(())
}
