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
    deprecated,
    reason = "control planes of today still send some fields that Envoy's API deprecates"
)]

pub(crate) mod chain_match;
pub(crate) mod cluster;
pub(crate) mod endpoint;
mod faults;
pub(crate) mod filters;
pub(crate) mod format;
pub(crate) mod h2;
pub(crate) mod hcm;
pub(crate) mod headers;
pub(crate) mod listener;
pub(crate) mod matcher;
pub(crate) mod names;
pub(crate) mod peer_metadata;
pub(crate) mod rbac;
pub(crate) mod retry;
pub(crate) mod route;
pub(crate) mod route_action;
pub(crate) mod route_match;
pub(crate) mod tcp;
pub(crate) mod tls;
pub(crate) mod values;

use std::collections::BTreeSet;
use std::sync::Arc;

use amime_identity::{LiveBundle, LiveCert};
use amime_telemetry::{AccessLogger, Telemetry};
use envoy_types::pb::envoy::config::accesslog::v3::AccessLog;

pub use faults::Fault;
pub(crate) use faults::Faults;

use crate::tls::SecretStore;
use names::Names;

/// Names of other resources that a resource needs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Required {
    pub(crate) routes: BTreeSet<String>,
    pub(crate) secrets: BTreeSet<String>,
}

/// What compiling needs and collects.
pub(crate) struct Compiler<'a> {
    pub(crate) faults: Faults,
    pub(crate) names: &'a mut Names,
    pub(crate) secrets: &'a SecretStore,
    pub(crate) telemetry: &'a Telemetry,
    pub(crate) required: Required,
    /// The proxy is a gateway.
    pub(crate) gateway: bool,
    /// The filter chain being compiled has Istio's TCP metrics.
    pub(crate) tcp_stats: bool,
    /// The filter chain being compiled routes by server name.
    pub(crate) sni_cluster: bool,
}

impl<'a> Compiler<'a> {
    pub(crate) fn new(
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

    pub(crate) fn sds_certificate(&mut self, name: &str) -> Arc<LiveCert> {
        self.need_secret(name);
        self.secrets.certificate(name)
    }

    pub(crate) fn sds_roots(&mut self, name: &str) -> Arc<LiveBundle> {
        self.need_secret(name);
        self.secrets.roots(name)
    }

    fn need_secret(&mut self, name: &str) {
        if !self.secrets.is_local(name) {
            self.required.secrets.insert(name.to_owned());
        }
    }

    pub(crate) fn access_logs(&mut self, logs: &[AccessLog]) -> Vec<AccessLogger> {
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
