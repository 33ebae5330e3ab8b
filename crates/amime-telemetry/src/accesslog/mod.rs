//! Access logs in Envoy's format language.
//!
//! [`Format`] compiles a format once; [`AccessLogger`] couples it with a sink
//! and a filter; the writer thread moves what workers buffered to its file.

mod argument;
mod certificate;
mod config;
mod filter;
mod format;
mod grpc;
mod header_filter;
mod json;
mod operator;
mod start_time;
mod writer;

pub use certificate::PeerText;
pub use config::AccessLogError;
pub use format::{Format, FormatError};

pub(crate) use format::Subject;
pub(crate) use json::string as json_string;
pub(crate) use writer::{Buffer as WriterBuffer, Sink, Waker, WriterPool};

use std::sync::Arc;

/// One configured access log of a listener.
#[derive(Clone, Debug)]
pub struct AccessLogger {
    pub(crate) format: Arc<Format>,
    pub(crate) filter: Option<Arc<filter::Filter>>,
    pub(crate) sink: Sink,
}

impl AccessLogger {
    /// Operators of the format whose data does not exist here: they print as
    /// empty.
    pub fn absent(&self) -> Vec<&str> {
        self.format.absent()
    }

    /// Whether the format prints the peer's certificates beyond the first.
    pub fn prints_chain(&self) -> bool {
        self.format.prints_chain()
    }

    /// Whether the subject is to be logged.
    pub(crate) fn accepts(&self, subject: &Subject<'_>) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.accepts(subject))
    }
}
