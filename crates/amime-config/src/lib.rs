//! Envoy v3 configuration compiled to immutable runtime tables.
//!
//! Owns decoding and checking of listeners, route configurations, clusters,
//! endpoints and TLS contexts. It reads files that the configuration names
//! and opens access-log sinks; it binds no socket and connects nowhere.
//!
//! Invariant: what compiles can be served. A field that would change what a
//! request may do or where it goes and is not understood refuses the whole
//! resource; other fields that have no effect are reported.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/api-v3/api>

#![allow(
    missing_docs,
    reason = "a field or variant without a comment has the name and the meaning of the Envoy field it \
              was compiled from; what differs says so"
)]
#![allow(
    deprecated,
    reason = "control planes of today still send some fields that Envoy's API deprecates"
)]

pub mod chain_match;
pub mod cluster;
pub mod connection;
pub mod criteria;
pub mod endpoint;
pub mod endpoint_state;
mod faults;
pub mod filters;
pub mod format;
pub mod h2;
pub mod hash_policy;
pub mod hcm;
pub mod head;
pub mod headers;
pub mod lb_policy;
pub mod lb_subset;
pub mod listener;
pub mod matcher;
pub mod names;
pub mod outlier;
pub mod peer_metadata;
pub mod rbac;
pub mod redirect;
pub mod retry;
pub mod route;
pub mod route_action;
pub mod route_cluster;
pub mod route_match;
pub mod secrets;
pub mod tcp;
pub mod tls;
pub mod tls_facts;
pub mod values;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use amime_identity::{LiveBundle, LiveCert};
use amime_telemetry::{AccessLogger, Telemetry};
use envoy_types::pb::envoy::config::accesslog::v3::AccessLog;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::SdsSecretConfig;

pub use faults::{Fault, Faults};

use crate::secrets::SecretStore;
use names::Names;

/// How long a resource may keep its user waiting; `None`: for ever.
pub type FetchTimeout = Option<Duration>;

/// Names of other resources that a resource needs.
#[derive(Clone, Debug, Default)]
pub struct Required {
    pub routes: BTreeMap<String, FetchTimeout>,
    pub secrets: BTreeMap<String, FetchTimeout>,
}

/// What compiling needs and collects.
pub struct Compiler<'a> {
    pub faults: Faults,
    pub names: &'a mut Names,
    pub secrets: &'a SecretStore,
    pub telemetry: &'a Telemetry,
    pub required: Required,
    /// The proxy is a gateway.
    pub gateway: bool,
    /// The filter chain being compiled has Istio's TCP metrics.
    pub tcp_stats: bool,
    /// The filter chain being compiled routes by server name.
    pub sni_cluster: bool,
}

impl<'a> Compiler<'a> {
    pub fn new(
        names: &'a mut Names,
        secrets: &'a SecretStore,
        telemetry: &'a Telemetry,
        gateway: bool,
    ) -> Self {
        Self {
            faults: Faults::default(),
            names,
            secrets,
            telemetry,
            required: Required::default(),
            gateway,
            tcp_stats: false,
            sni_cluster: false,
        }
    }

    pub(crate) fn sds_certificate(&mut self, sds: &SdsSecretConfig) -> Arc<LiveCert> {
        self.need_secret(sds);
        self.secrets.certificate(&sds.name)
    }

    pub(crate) fn sds_roots(&mut self, sds: &SdsSecretConfig) -> Arc<LiveBundle> {
        self.need_secret(sds);
        self.secrets.roots(&sds.name)
    }

    fn need_secret(&mut self, sds: &SdsSecretConfig) {
        if !self.secrets.is_local(&sds.name) {
            let timeout = values::fetch_timeout(sds.sds_config.as_ref());
            self.required.secrets.insert(sds.name.clone(), timeout);
        }
    }

    pub fn access_logs(&mut self, logs: &[AccessLog]) -> Vec<AccessLogger> {
        let mut loggers = Vec::with_capacity(logs.len());
        for (index, log) in logs.iter().enumerate() {
            match self.telemetry.access_log(log) {
                Ok(logger) => loggers.push(logger),
                // A log changes no traffic, so it does not refuse a listener.
                Err(error) => {
                    self.faults.ignore(&format!("access_log[{index}]"), error.to_string())
                }
            }
        }
        loggers
    }
}
