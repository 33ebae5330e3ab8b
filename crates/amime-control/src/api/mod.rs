//! The store's HTTP API, and a client for it.
//!
//! It is served on a Unix socket by whoever owns the store; requests and
//! answers are JSON, a watch is a line of JSON each change.
//!
//! Paths: `POST /v1/apply`, `GET /v1/objects/{kind}?namespace=&name=`,
//! `DELETE /v1/objects/{kind}/{namespace}/{name}` (cluster-wide:
//! `DELETE /v1/objects/{kind}/{name}`), `POST /v1/label`,
//! `GET /v1/watch?instance=&since=`.

mod client;
mod routes;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use client::{ApiClient, ClientError, WatchStream};
pub use routes::{router, serve};

use crate::store::ChangeType;

/// Answer of `GET /v1/objects/{kind}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Objects {
    /// Sorted by namespace and name.
    pub items: Vec<Value>,
}

/// Answer of a deletion.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Deleted {
    /// The object, and with a namespace everything that was in it.
    pub deleted: Vec<Value>,
}

/// Request to change labels.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelRequest {
    /// Any spelling of a kind.
    pub kind: String,
    /// Namespace; empty for cluster-wide kinds.
    #[serde(default)]
    pub namespace: String,
    /// Name.
    pub name: String,
    /// New values; null removes.
    pub labels: BTreeMap<String, Option<String>>,
}

/// Answer to a change of labels.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Labelled {
    /// False if the labels were like this before.
    pub changed: bool,
    /// The object.
    pub object: Value,
}

/// Any failure; the status code tells the kind of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// For people.
    pub error: String,
}

/// One line of a watch.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum WatchLine {
    /// An object is new, or was there at the start.
    Added(WatchedObject),
    /// An object has changed.
    Modified(WatchedObject),
    /// An object is gone.
    Deleted(WatchedObject),
    /// Everything there was at the start has been sent.
    Synced {
        /// To resume from.
        revision: u64,
        /// Which opened store counts the revisions.
        instance: String,
    },
}

/// The object of a [`WatchLine`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WatchedObject {
    /// To resume from.
    pub revision: u64,
    /// File that it was applied from, for messages.
    #[serde(default)]
    pub file: String,
    /// The object.
    pub object: Value,
}

impl WatchLine {
    fn of(change: &crate::store::Change) -> Self {
        let watched = WatchedObject {
            revision: change.revision,
            file: change.resource.source().file.to_string(),
            object: change.resource.to_json(),
        };
        match change.change_type {
            ChangeType::Added => Self::Added(watched),
            ChangeType::Modified => Self::Modified(watched),
            ChangeType::Deleted => Self::Deleted(watched),
        }
    }
}

#[cfg(test)]
mod tests;
