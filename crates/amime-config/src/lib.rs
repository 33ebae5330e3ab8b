//! Envoy v3 configuration compiled to immutable runtime tables.
//!
//! Owns decoding and checking of listeners, route configurations, clusters,
//! endpoints and TLS contexts: what names other resources, secrets or files.
//! Parts that stand alone are compiled in `amime-rules`. It reads files that
//! the configuration names and opens access-log sinks; it binds no socket and
//! connects nowhere.
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

pub mod answer_checks;
pub mod binding;
pub mod chain_match;
pub mod chain_tree;
pub mod cluster;
pub mod discovery;
pub mod dynamic_hosts;
pub mod endpoint;
pub mod endpoint_state;
pub mod filters;
pub mod global_limit;
pub mod hcm;
pub mod health_check;
pub mod host_cache;
pub mod lb_policy;
pub mod lb_subset;
pub mod listener;
pub mod load_reports;
pub mod local_limit;
pub mod names;
pub mod outlier;
pub mod quic;
pub mod route;
pub mod route_action;
pub mod route_cluster;
pub mod secrets;
pub mod tcp;
pub mod tls;
mod tls_common;
mod tls_validation;
mod unheeded;
pub mod virtual_cluster;
mod zone_aware;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use amime_rules::Faults;
use amime_rules::values;
use amime_telemetry::{AccessLogger, Telemetry};
use envoy_types::pb::envoy::config::accesslog::v3::AccessLog;
use envoy_types::pb::envoy::config::core::v3::config_source;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::SdsSecretConfig;

use crate::secrets::SecretStore;
use dynamic_hosts::ServerNameHosts;
use host_cache::HostCaches;
use names::Names;

/// How long a resource may keep its user waiting; `None`: for ever.
pub type FetchTimeout = Option<Duration>;

/// Names of other resources that a resource needs.
#[derive(Clone, Debug, Default)]
pub struct Required {
    pub routes: BTreeMap<String, FetchTimeout>,
    pub secrets: BTreeMap<String, FetchTimeout>,
    /// Files that hold secrets, in the form of discovery responses.
    pub secret_files: BTreeSet<secrets::SecretFile>,
}

/// What configuration may say of the proxy itself.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// The proxy is a gateway rather than a sidecar.
    pub gateway: bool,
    pub id: String,
    pub cluster: String,
}

/// What compiling needs and collects.
pub struct Compiler<'a> {
    pub faults: Faults,
    pub names: &'a mut Names,
    pub host_caches: &'a mut HostCaches,
    pub secrets: &'a SecretStore,
    pub telemetry: &'a Telemetry,
    pub required: Required,
    pub node: &'a Node,
    /// The filter chain being compiled has Istio's TCP metrics.
    pub tcp_stats: bool,
    /// The filter chain being compiled routes by server name.
    pub sni_cluster: bool,
    /// The filter chain being compiled resolves server names.
    pub sni_hosts: Option<ServerNameHosts>,
    /// The listener being compiled is one for QUIC.
    pub quic: bool,
    /// The cluster being compiled checks that servers have the request's host name.
    pub auto_san_validation: bool,
    /// What the listener being compiled buffers for one connection.
    pub buffer_limit: usize,
}

/// What Envoy buffers for one connection, unless told otherwise.
pub(crate) const BUFFER_LIMIT: usize = 1 << 20;

impl<'a> Compiler<'a> {
    pub fn new(
        names: &'a mut Names,
        host_caches: &'a mut HostCaches,
        secrets: &'a SecretStore,
        telemetry: &'a Telemetry,
        node: &'a Node,
    ) -> Self {
        Self {
            faults: Faults::default(),
            names,
            host_caches,
            secrets,
            telemetry,
            required: Required::default(),
            node,
            tcp_stats: false,
            sni_cluster: false,
            sni_hosts: None,
            quic: false,
            auto_san_validation: false,
            buffer_limit: BUFFER_LIMIT,
        }
    }

    /// Notes where a secret is to come from; the name that it is kept by.
    pub(crate) fn secret_key(&mut self, sds: &SdsSecretConfig) -> Option<String> {
        use config_source::ConfigSourceSpecifier as Source;
        if self.secrets.is_local(&sds.name) {
            return Some(sds.name.clone());
        }
        let source = sds.sds_config.as_ref().map(|config| &config.config_source_specifier);
        let path = match source {
            Some(Some(Source::PathConfigSource(file))) => &file.path,
            Some(Some(Source::Path(path))) => path,
            Some(_) => {
                if let Some(files) = secrets::SecretFile::of_agent(&sds.name) {
                    let key = files.key();
                    self.required.secret_files.insert(files);
                    return Some(key);
                }
                let timeout = values::fetch_timeout(sds.sds_config.as_ref());
                self.required.secrets.insert(sds.name.clone(), timeout);
                return Some(sds.name.clone());
            }
            None if self.secrets.has(&sds.name) => return Some(sds.name.clone()),
            None => {
                self.faults.reject("name", format!("there is no static secret `{}`", sds.name));
                return None;
            }
        };
        let (path, name) = (path.into(), sds.name.clone());
        let file = secrets::SecretFile::Response { path, name };
        let key = file.key();
        self.required.secret_files.insert(file);
        Some(key)
    }

    pub fn access_logs(&mut self, logs: &[AccessLog]) -> Vec<AccessLogger> {
        let mut loggers = Vec::with_capacity(logs.len());
        for (index, log) in logs.iter().enumerate() {
            match self.telemetry.access_log(log) {
                Ok(logger) => {
                    for name in logger.absent() {
                        let reason = format!("%{name}% is always empty");
                        self.faults.ignore(&format!("access_log[{index}]"), reason);
                    }
                    loggers.push(logger);
                }
                // A log changes no traffic, so it does not refuse a listener.
                Err(error) => {
                    self.faults.ignore(&format!("access_log[{index}]"), error.to_string())
                }
            }
        }
        loggers
    }
}
