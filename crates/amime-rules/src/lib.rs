//! Rules of Envoy v3 configuration that stand alone, compiled.
//!
//! Owns conditions on requests and connections, formats, edits of heads, and
//! settings of policies and filters: everything that can be compiled without
//! another resource, a secret or a file. The resources that such rules stand
//! in are compiled in `amime-config`.
//!
//! Invariant: nothing here names another resource, and what compiles can be
//! served. A field that would change what a request may do or where it goes and
//! is not understood is rejected; other fields without effect are reported.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/api-v3/api>
//!
//! ```
//! use amime_rules::Faults;
//! use amime_rules::token_bucket::TokenBucket;
//! use envoy_types::pb::envoy::r#type::v3::TokenBucket as Settings;
//!
//! let mut faults = Faults::default();
//! assert!(TokenBucket::compile(&Settings::default(), &mut faults).is_none());
//! assert!(faults.fatal());
//! ```

#![allow(
    missing_docs,
    reason = "a field or variant without a comment has the name and the meaning of the Envoy field it \
              was compiled from; what differs says so"
)]
#![allow(
    deprecated,
    reason = "control planes of today still send some fields that Envoy's API deprecates"
)]

pub mod bandwidth;
pub mod compression;
pub mod connection;
pub mod connection_cap;
pub mod cors;
pub mod criteria;
pub mod csrf;
pub mod fault_injection;
mod faults;
pub mod format;
pub mod h1;
pub mod h2;
pub mod hash_policy;
pub mod head;
pub mod header_mutation;
pub mod headers;
pub mod ip_tags;
pub mod local_reply;
pub mod matcher;
pub mod matcher_tree;
pub mod metadata;
pub mod metadata_match;
pub mod network_rbac;
pub mod peer_metadata;
pub mod query_edits;
pub mod rate_limit;
pub mod rbac;
pub mod redirect;
pub mod retry;
pub mod route_match;
pub mod route_tree;
pub mod stateful_session;
pub mod tls_facts;
pub mod token_bucket;
pub mod values;

pub use faults::{Fault, Faults};
