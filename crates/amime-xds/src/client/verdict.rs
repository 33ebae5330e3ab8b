//! A refusal as both variants of the protocol send it.

use envoy_types::pb::google::rpc::Status;

use super::Rejection;

/// gRPC `INVALID_ARGUMENT`, the code of a refusal.
const INVALID_ARGUMENT: i32 = 3;

/// Bytes of a refusal; it travels as a status message.
const MAX_ERROR_BYTES: usize = 8192;

/// One line a resource; `None` when nothing is refused.
pub(super) fn refusal(rejections: &[Rejection]) -> Option<Status> {
    if rejections.is_empty() {
        return None;
    }
    let lines: Vec<_> = rejections.iter().map(|r| format!("{}: {}", r.name, r.error)).collect();
    let mut message = lines.join("\n");
    message.truncate(message.floor_char_boundary(MAX_ERROR_BYTES));
    Some(Status { code: INVALID_ARGUMENT, message, details: Vec::new() })
}
