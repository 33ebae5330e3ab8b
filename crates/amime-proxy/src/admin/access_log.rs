//! The admin server's own access log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ::http::HeaderMap;
use amime_telemetry::{
    AccessLogger, DownstreamRecord, HttpRecord, ListenerTelemetry, Telemetry, WorkerTelemetry,
};
use hyper::body::Body;

use super::http::{Answer, Query};

/// Where requests of operators are logged.
pub(crate) struct AdminLog {
    /// A share of its own, as if the admin server were one more worker.
    worker: Mutex<WorkerTelemetry>,
    listener: ListenerTelemetry,
}

impl AdminLog {
    pub(crate) fn new(telemetry: &Telemetry, access_logs: Vec<AccessLogger>) -> Self {
        let listener = ListenerTelemetry {
            listener: "admin".into(),
            access_logs,
            ..ListenerTelemetry::default()
        };
        Self { worker: Mutex::new(telemetry.worker()), listener }
    }

    /// Logs one answered request; its headers are not kept.
    pub(super) fn record(&self, query: &Query, answer: &Answer, start: SystemTime, took: Duration) {
        let none = HeaderMap::new();
        let mut record = HttpRecord::new(&self.listener, start, &none, answer.headers());
        record.timing.total = took;
        record.method = query.method.as_str();
        record.path = &query.target;
        record.response_code = answer.status().as_u16();
        record.bytes_sent = answer.body().size_hint().lower();
        record.downstream = DownstreamRecord {
            remote_address: Some(query.from),
            direct_remote_address: Some(query.from),
            ..DownstreamRecord::default()
        };
        self.worker.lock().unwrap_or_else(PoisonError::into_inner).http(&record);
    }
}
