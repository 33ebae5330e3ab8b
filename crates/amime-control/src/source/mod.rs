//! Where configuration comes from.
//!
//! A source sends [`Event`]s into a channel: first what there is, then
//! [`Event::Synced`] once, then every change. It keeps what it sent, so that
//! after a reconnect only differences follow and an outage changes nothing.
//!
//! Invariant: a source never sends an object that could not be decoded; the
//! last good one stays in force.

mod api;
mod file;

use amime_model::Change;

pub use api::ApiSource;
pub(crate) use file::MESH_FILE;
pub use file::{FileSource, FileSourceError};

/// One step from a source.
#[derive(Clone, Debug)]
pub enum Event {
    /// An object is new, different or gone.
    Change(Change),
    /// Everything there was at the start has been sent; sent once.
    Synced,
    /// All changes up to this revision of the store have been sent. Sources
    /// without revisions never send it.
    Revision(u64),
}

/// Receiving end of a source.
pub type Events = tokio::sync::mpsc::Receiver<Event>;

/// Events that may wait for the discovery service before a source pauses.
pub(crate) const QUEUE: usize = 1024;

#[cfg(test)]
mod tests;
