//! Why a request is answered by the proxy itself.
//!
//! One function maps each cause to status, response flag, details and body,
//! in the words of Envoy, on which tools and people rely.

use std::borrow::Cow;
use std::sync::Arc;

use amime_http1::ParseError;
use amime_telemetry::ResponseFlags;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::dynamic_host;
use crate::upstream::connect::ConnectError;
use amime_config::host_cache::HostFailure;

/// Why no upstream response is passed on.
#[derive(Clone, Debug)]
pub(crate) enum ProxyError {
    /// The request is not well formed; the text is Envoy's detail.
    BadRequest(&'static str),
    /// The codec could not read the request.
    Malformed(ParseError),
    /// The client took too long over its head.
    HeadersTimeout,
    /// The client stopped within its request.
    RequestIdle,
    /// As `BadRequest`, without a body.
    Refused(&'static str),
    /// The target, given here as it came, has a fragment.
    Fragment(Bytes),
    MissingHost,
    /// The request target is neither a path nor absolute.
    NotRelativePath,
    /// The path is to be asked for in its normal form.
    NormalizedRedirect(String),
    /// HTTP/1.0 where it is not accepted.
    Http10,
    /// The client took too long to send its request.
    RequestTimeout,
    NoRoute,
    ClusterNotFound(StatusCode),
    UpgradeRefused,
    /// Perhaps with a status that is not the usual one.
    NoHealthyUpstream(Option<StatusCode>),
    /// The host that the request names is not known.
    NoHost(HostFailure),
    /// A circuit breaker is open.
    Overflow,
    Connect {
        error: ConnectError,
        retried: bool,
    },
    /// The connection broke before the response began.
    Reset {
        reason: ResetReason,
        retried: bool,
        /// The upstream had sent an informational head.
        begun: bool,
    },
    /// The route's timeout.
    ResponseTimeout,
    PerTryTimeout,
    /// Nothing moved for too long.
    StreamIdle,
    /// The stream's whole life was too long.
    StreamDuration,
    FaultAbort {
        status: StatusCode,
        grpc: Option<u32>,
    },
    Denied {
        policy: Option<Arc<str>>,
    },
    /// The upstream's response cannot be understood.
    UpstreamProtocol(Arc<str>),
    /// The proxy has too much to do.
    Overloaded,
    /// A filter's own answer.
    Filter(Box<FilterReply>),
}

/// How an upstream broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResetReason {
    /// The connection was closed.
    ConnectionTermination,
    /// The stream was reset by the upstream.
    Remote,
    /// The upstream refused the stream before acting on it.
    Refused,
}

impl ResetReason {
    fn text(self) -> &'static str {
        match self {
            Self::ConnectionTermination => "connection termination",
            Self::Remote => "remote reset",
            Self::Refused => "remote refused stream reset",
        }
    }

    fn details(self) -> &'static str {
        match self {
            Self::ConnectionTermination => {
                "upstream_reset_before_response_started{connection_termination}"
            }
            Self::Remote => "upstream_reset_before_response_started{remote_reset}",
            Self::Refused => "upstream_reset_before_response_started{remote_refused_stream_reset}",
        }
    }
}

/// The answer of a filter that ends a request.
#[derive(Clone, Debug)]
pub(crate) struct FilterReply {
    pub(crate) reply: LocalReply,
    pub(crate) headers: HeaderMap,
    /// Part of the request is left unread.
    pub(crate) unread: bool,
}

/// A local reply.
#[derive(Clone, Debug)]
pub(crate) struct LocalReply {
    pub(crate) status: StatusCode,
    pub(crate) flags: ResponseFlags,
    pub(crate) details: Cow<'static, str>,
    pub(crate) body: Cow<'static, str>,
    /// Overrides the status that follows from the HTTP one.
    pub(crate) grpc: Option<u32>,
}

impl ProxyError {
    /// What the client and the access log are told.
    pub(crate) fn reply(&self) -> LocalReply {
        use ResponseFlags as F;
        const TIMEOUT: &str = "upstream request timeout";
        const OVERFLOW: &str = "upstream_reset_before_response_started{overflow}";
        let (status, flags, details, body) = match self {
            Self::Connect { error, retried } => return connect_reply(error, *retried),
            Self::Reset { reason, retried, begun } => {
                return reset_reply(*reason, *retried, *begun);
            }
            Self::FaultAbort { status, grpc } => return fault_reply(*status, *grpc),
            Self::Denied { policy } => return denied_reply(policy.as_deref()),
            Self::UpstreamProtocol(reason) => return protocol_reply(reason),
            Self::Filter(filter) => return filter.reply.clone(),
            Self::ClusterNotFound(status) => (status.as_u16(), F::NC, "cluster_not_found", ""),
            Self::Malformed(error) => return malformed_reply(*error),
            Self::HeadersTimeout => {
                (408, F::NONE, "request_header_timeout", "request header timeout")
            }
            Self::RequestIdle => (408, F::SI, "stream_idle_timeout", "stream timeout"),
            Self::BadRequest(details) => (400, F::DPE, *details, "Bad Request"),
            Self::Refused(details) => (400, F::NONE, *details, ""),
            Self::Fragment(_) => (400, F::NONE, "path_normalization_failed", ""),
            Self::MissingHost => (400, F::NONE, "missing_host_header", ""),
            Self::NotRelativePath => (404, F::NONE, "absolute_path_rejected", ""),
            Self::NormalizedRedirect(_) => (307, F::NONE, "path_normalization_failed", ""),
            Self::Http10 => (426, F::DPE, "low_version", "Upgrade Required"),
            Self::RequestTimeout => (408, F::NONE, "request_overall_timeout", "request timeout"),
            Self::Overloaded => (503, F::NONE, "overload", "envoy overloaded"),
            Self::NoRoute => (404, F::NR, "route_not_found", ""),
            Self::UpgradeRefused => (403, F::NONE, "upgrade_failed", ""),
            Self::NoHealthyUpstream(status) => {
                let status = status.map_or(503, |status| status.as_u16());
                (status, F::UH, "no_healthy_upstream", "no healthy upstream")
            }
            Self::NoHost(failure) => {
                return reply(503, F::UH, dynamic_host::details(failure), "no healthy upstream");
            }
            Self::Overflow => return reply(503, F::UO, OVERFLOW, reset_body(false, "overflow")),
            Self::ResponseTimeout => (504, F::UT, "response_timeout", TIMEOUT),
            Self::PerTryTimeout => (504, F::UT, "upstream_per_try_timeout", TIMEOUT),
            Self::StreamIdle => (504, F::SI, "stream_idle_timeout", "stream timeout"),
            Self::StreamDuration => {
                let body = "downstream duration timeout";
                let reply = reply(504, F::NONE, "max_duration_timeout", body);
                return LocalReply { grpc: Some(4), ..reply };
            }
        };
        reply(status, flags, details, body)
    }
}

fn reply(
    status: u16,
    flags: ResponseFlags,
    details: impl Into<Cow<'static, str>>,
    body: impl Into<Cow<'static, str>>,
) -> LocalReply {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    LocalReply { status, flags, details: details.into(), body: body.into(), grpc: None }
}

fn reset_reply(reason: ResetReason, retried: bool, begun: bool) -> LocalReply {
    let details: Cow<'static, str> = match begun {
        false => reason.details().into(),
        true => reason.details().replacen("before", "after", 1).into(),
    };
    reply(503, reset_flag(reason), details, reset_body(retried, reason.text()))
}

fn fault_reply(status: StatusCode, grpc: Option<u32>) -> LocalReply {
    let flags = ResponseFlags::FI;
    LocalReply { grpc, ..reply(status.as_u16(), flags, "fault_filter_abort", "fault filter abort") }
}

fn malformed_reply(error: ParseError) -> LocalReply {
    let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::BAD_REQUEST);
    reply(status.as_u16(), ResponseFlags::DPE, error.details(), amime_http1::reason(status))
}

fn denied_reply(policy: Option<&str>) -> LocalReply {
    reply(403, ResponseFlags::NONE, denied_details(policy), "RBAC: access denied")
}

fn protocol_reply(reason: &str) -> LocalReply {
    let details = match reason {
        "" => "upstream_reset_before_response_started{protocol_error}".to_owned(),
        reason => format!("upstream_reset_before_response_started{{protocol_error|{reason}}}"),
    };
    reply(502, ResponseFlags::UPE, details, reset_body(false, "protocol error"))
}

fn reset_flag(reason: ResetReason) -> ResponseFlags {
    match reason {
        ResetReason::ConnectionTermination => ResponseFlags::UC,
        ResetReason::Remote | ResetReason::Refused => ResponseFlags::UR,
    }
}

fn connect_reply(error: &ConnectError, retried: bool) -> LocalReply {
    let (name, detail) = match error {
        ConnectError::Overflow => return ProxyError::Overflow.reply(),
        ConnectError::Timeout => ("connection timeout", "connection_timeout"),
        ConnectError::Failed(_) | ConnectError::AtOnce(_) => {
            ("remote connection failure", "remote_connection_failure")
        }
        // Envoy reports a failed handshake as a failed connection.
        ConnectError::Tls(_) => ("remote connection failure", "remote_connection_failure"),
    };
    let reason = match error {
        ConnectError::Timeout => None,
        other => Some(other.to_string()).filter(|reason| !reason.is_empty()),
    };
    let details = match &reason {
        Some(reason) => format!(
            "upstream_reset_before_response_started{{{detail}|{}}}",
            reason.replace(' ', "_")
        ),
        None => format!("upstream_reset_before_response_started{{{detail}}}"),
    };
    LocalReply {
        status: StatusCode::SERVICE_UNAVAILABLE,
        flags: ResponseFlags::UF,
        details: details.into(),
        body: reset_body(retried, name).into(),
        grpc: None,
    }
}

fn reset_body(retried: bool, name: &str) -> String {
    let mut body = "upstream connect error or disconnect/reset before headers. ".to_owned();
    body.push_str(if retried { "retried and the latest reset reason: " } else { "reset reason: " });
    body.push_str(name);
    body
}

fn denied_details(policy: Option<&str>) -> String {
    let name: String = policy
        .unwrap_or("none")
        .chars()
        .map(|char| if char.is_whitespace() { '_' } else { char })
        .collect();
    format!("rbac_access_denied_matched_policy[{name}]")
}

impl ProxyError {
    /// True if the request is refused for its form alone.
    pub(crate) fn by_codec(&self) -> bool {
        matches!(self, Self::BadRequest(_) | Self::Malformed(_) | Self::Http10)
    }

    /// True if the head could be read and yet makes no sense.
    pub(crate) fn by_headers(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Fragment(_) | Self::MissingHost)
    }

    /// True if it took a while to know: a client may have gone on sending.
    pub(crate) fn took_time(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. }
                | Self::Reset { .. }
                | Self::ResponseTimeout
                | Self::PerTryTimeout
                | Self::StreamIdle
                | Self::StreamDuration
                | Self::UpstreamProtocol(_)
        )
    }

    /// True if the connection cannot be trusted with another request.
    pub(crate) fn closes(&self) -> bool {
        if let Self::Filter(filter) = self {
            return filter.unread;
        }
        matches!(
            self,
            Self::BadRequest(_)
                | Self::Malformed(_)
                | Self::HeadersTimeout
                | Self::RequestIdle
                | Self::Refused(_)
                | Self::Fragment(_)
                | Self::MissingHost
                | Self::Http10
                | Self::UpgradeRefused
                | Self::RequestTimeout
        )
    }
}

/// The gRPC status that stands for an HTTP one.
pub(super) fn grpc_status(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// Text as `grpc-message` carries it.
pub(super) fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
