//! gRPC for clients of HTTP/1.1, which see no trailers: the status of a call
//! becomes a part of the response's head.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/grpc_http1_bridge_filter>

use http::{HeaderMap, HeaderValue, StatusCode, Version, header};

use super::exchange::Exchange;
use super::filters::{OnResponse, Payload};
use super::names;

/// Notes that a call's client cannot have trailers.
pub(super) fn begin(exchange: &Exchange) {
    let head = exchange.head.borrow();
    if head.version < Version::HTTP_2 && head.is_grpc() {
        exchange.on_response.borrow_mut().push(OnResponse::GrpcBridge);
    }
}

/// Tells in a response's head what its trailers say.
pub(super) fn answer(
    exchange: &Exchange,
    headers: &mut HeaderMap,
    status: &mut StatusCode,
    payload: &Payload<'_>,
) {
    let Payload::Whole(body) = payload else { return };
    let log = exchange.log.borrow();
    let Some(trailers) = &log.response_trailers else { return };
    if let Some(code) = trailers.get(names::GRPC_STATUS) {
        if code != "0" {
            *status = StatusCode::SERVICE_UNAVAILABLE;
        }
        headers.insert(names::GRPC_STATUS, code.clone());
    }
    if let Some(message) = trailers.get(names::GRPC_MESSAGE) {
        headers.insert(names::GRPC_MESSAGE, message.clone());
    }
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
}
