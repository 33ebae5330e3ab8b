//! Requests that go on only once all of their body has come.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/buffer_filter>

use std::rc::Rc;

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::body::DownstreamBody;
use super::error::{FilterReply, LocalReply, ProxyError};
use super::exchange::Exchange;
use super::held::{HeldBody, NotHeld};
use amime_telemetry::ResponseFlags;

/// Waits for a request's body.
pub(super) async fn wait(
    exchange: &Rc<Exchange>,
    body: &mut DownstreamBody,
    max: usize,
) -> Result<(), ProxyError> {
    if body.is_end_stream() {
        return Ok(());
    }
    let held = HeldBody::of(body, exchange);
    let length = match held.wait(max).await {
        Ok(length) => length,
        Err(NotHeld::TooLarge) => return Err(too_large()),
        Err(NotHeld::Failed(error)) => {
            return Err(exchange.take_refusal().unwrap_or(ProxyError::Malformed(error)));
        }
    };
    let mut head = exchange.head.borrow_mut();
    head.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    Ok(())
}

/// The answer to a request with more than may be kept of it.
fn too_large() -> ProxyError {
    refused(StatusCode::PAYLOAD_TOO_LARGE, ("request_payload_too_large", "Payload Too Large"), true)
}

/// The answer in place of one that is larger than what may be kept of it.
pub(super) fn answer_too_large() -> ProxyError {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    refused(status, ("response_payload_too_large", "Internal Server Error"), false)
}

fn refused(
    status: StatusCode,
    (details, body): (&'static str, &'static str),
    unread: bool,
) -> ProxyError {
    let reply = LocalReply {
        status,
        flags: ResponseFlags::NONE,
        details: details.into(),
        body: body.into(),
        grpc: None,
    };
    ProxyError::Filter(Box::new(FilterReply { reply, headers: HeaderMap::new(), unread }))
}
