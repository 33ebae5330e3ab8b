//! Fetches the application's own metrics, to be merged with ours.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::agent::AppMetrics;

const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest page merged, bytes.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// Why there are no application metrics.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScrapeError {
    #[error("application did not answer within {TIMEOUT:?}")]
    Timeout,
    #[error("no connection to the application")]
    Connect(#[source] io::Error),
    #[error("no answer from the application")]
    Http(#[source] hyper::Error),
    #[error("application answered {0}")]
    Status(http::StatusCode),
    #[error("metrics are too large or broken off")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("path of the metrics is not valid")]
    Path(#[source] http::Error),
}

/// The application's page, ready to stand behind ours.
pub(super) async fn scrape(app: &AppMetrics) -> Result<String, ScrapeError> {
    timeout(TIMEOUT, fetch(app)).await.map_err(|_| ScrapeError::Timeout)?
}

async fn fetch(app: &AppMetrics) -> Result<String, ScrapeError> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, app.port)).await;
    let stream = TokioIo::new(stream.map_err(ScrapeError::Connect)?);
    let (mut send, connection) = http1::handshake(stream).await.map_err(ScrapeError::Http)?;
    let connection = tokio::spawn(connection);
    let request = Request::get(&app.path)
        .header(header::HOST, format!("localhost:{}", app.port))
        .header(header::ACCEPT, "text/plain;version=0.0.4;q=1,*/*;q=0.1")
        .body(Empty::<Bytes>::new())
        .map_err(ScrapeError::Path)?;
    let response = send.send_request(request).await.map_err(ScrapeError::Http)?;
    if !response.status().is_success() {
        return Err(ScrapeError::Status(response.status()));
    }
    let body = Limited::new(response.into_body(), MAX_BYTES).collect().await;
    let body = body.map_err(ScrapeError::Body)?.to_bytes();
    connection.abort();
    Ok(tidy(&String::from_utf8_lossy(&body)))
}

/// Removes the end mark of OpenMetrics, which may only stand at the very end.
fn tidy(page: &str) -> String {
    let mut out = String::with_capacity(page.len() + 1);
    for line in page.lines().filter(|line| line.trim_end() != "# EOF") {
        out.push_str(line);
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_mark_is_removed() {
        assert_eq!(tidy("a 1\n# EOF\n"), "a 1\n");
        assert_eq!(tidy("a 1"), "a 1\n");
    }
}
