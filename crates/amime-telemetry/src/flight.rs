//! Flight recorder: the last failed or slow requests with the decisions taken.
//!
//! Invariant: bounded twice, in entries a worker and in bytes a field.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::record::{HttpRecord, TcpRecord};

/// Entries one worker keeps.
const MAX_ENTRIES: usize = 64;
/// Longest text kept of one field, bytes.
const MAX_TEXT: usize = 256;

/// One remembered request or connection.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FlightEntry {
    /// Start, milliseconds since 1970.
    start_ms: u64,
    duration_ms: u64,
    listener: String,
    filter_chain: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<FlightRequest>,
    response_flags: String,
    cluster: String,
    upstream_host: String,
    tries: u32,
    upstream_failure: String,
    termination: String,
    downstream_remote: String,
    downstream_peer: String,
    upstream_peer: String,
    config: String,
}

#[derive(Clone, Debug, Serialize)]
struct FlightRequest {
    method: String,
    authority: String,
    path: String,
    response_code: u16,
    response_code_details: String,
    route: String,
    request_id: String,
}

impl FlightEntry {
    pub(crate) fn http(record: &HttpRecord<'_>) -> Self {
        let id = record.request_headers.get("x-request-id");
        let mut entry = Self::common(&super::accesslog::Subject::from(record));
        entry.config = clip(record.config_origin);
        entry.request = Some(FlightRequest {
            method: clip(Some(record.method)),
            authority: clip(Some(record.authority)),
            path: clip(Some(record.path)),
            response_code: record.response_code,
            response_code_details: clip(Some(record.response_code_details)),
            route: clip(record.route_name),
            request_id: clip(id.and_then(|id| id.to_str().ok())),
        });
        entry
    }

    pub(crate) fn tcp(record: &TcpRecord<'_>) -> Self {
        let mut entry = Self::common(&super::accesslog::Subject::from(record));
        entry.config = clip(record.config_origin);
        entry
    }

    fn common(subject: &super::accesslog::Subject<'_>) -> Self {
        let address = |address: Option<std::net::SocketAddr>| {
            address.map_or_else(String::new, |address| address.to_string())
        };
        let (downstream, upstream) = (subject.downstream, subject.upstream);
        Self {
            start_ms: millis_since_epoch(subject.start),
            duration_ms: u64::try_from(subject.duration.as_millis()).unwrap_or(u64::MAX),
            listener: clip(Some(&subject.listener.listener)),
            filter_chain: clip(Some(&subject.listener.filter_chain)),
            request: None,
            response_flags: subject.flags.to_string(),
            cluster: clip(upstream.cluster.map(|cluster| &*cluster.name)),
            upstream_host: address(upstream.host),
            tries: upstream.attempts,
            upstream_failure: clip(upstream.transport_failure),
            termination: clip(subject.connection_termination_details),
            downstream_remote: address(downstream.remote_address),
            downstream_peer: clip(downstream.tls.and_then(|tls| tls.peer_uri_san)),
            upstream_peer: clip(upstream.tls.and_then(|tls| tls.peer_uri_san)),
            config: String::new(),
        }
    }

    /// When it began, for sorting.
    pub(crate) fn start_ms(&self) -> u64 {
        self.start_ms
    }
}

fn millis_since_epoch(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn clip(text: Option<&str>) -> String {
    let text = text.unwrap_or_default();
    text[..text.floor_char_boundary(MAX_TEXT)].to_owned()
}

/// One worker's ring.
#[derive(Debug, Default)]
pub(crate) struct FlightRing(Mutex<VecDeque<FlightEntry>>);

impl FlightRing {
    pub(crate) fn push(&self, entry: FlightEntry) {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() >= MAX_ENTRIES {
            ring.pop_front();
        }
        ring.push_back(entry);
    }

    pub(crate) fn entries(&self) -> Vec<FlightEntry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}
