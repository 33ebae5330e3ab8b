//! The gRPC status of a request, in Envoy's forms.

use super::format::Subject;
use super::operator::{number, put};

/// How a status is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GrpcForm {
    /// `InvalidArgument`
    Camel,
    /// `INVALID_ARGUMENT`
    Snake,
    /// `3`
    Number,
}

/// Names in the order of their codes.
const NAMES: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

impl GrpcForm {
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "CAMEL_STRING" => Some(Self::Camel),
            "SNAKE_STRING" => Some(Self::Snake),
            "NUMBER" => Some(Self::Number),
            _ => None,
        }
    }

    pub(super) fn write(self, status: u64, out: &mut Vec<u8>) -> bool {
        let known = usize::try_from(status).ok().and_then(|code| NAMES.get(code));
        match (self, known) {
            (Self::Camel, Some((camel, _))) => put(out, camel),
            (Self::Snake, Some((_, snake))) => put(out, snake),
            _ => number(out, status),
        }
    }
}

/// The status of a gRPC request: told by trailers or headers, or what the
/// HTTP status stands for.
pub(super) fn grpc_status(subject: &Subject<'_>) -> Option<u64> {
    let http = subject.http.filter(|http| http.grpc)?;
    let trailers = http.response_trailers.and_then(|trailers| trailers.get("grpc-status"));
    match trailers.or_else(|| http.response_headers.get("grpc-status")) {
        Some(value) => value.to_str().ok()?.parse().ok(),
        None if http.response_code == 0 => None,
        None => Some(from_http(http.response_code)),
    }
}

/// Spec: <https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>
pub(super) fn from_http(status: u16) -> u64 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}
