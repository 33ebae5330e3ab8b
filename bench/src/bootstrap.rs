//! Envoy v3 bootstraps of the scenarios: one file, given to every product.
//!
//! Access log and stats are on, as in a mesh: a proxy without them would be
//! measured at a job that nobody gives it.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::certs::{Certs, SPIFFE_ID};

/// What the proxies of a scenario stand between.
#[derive(Debug)]
pub(crate) struct Chain<'a> {
    pub(crate) backend: SocketAddr,
    pub(crate) certs: &'a Certs,
    pub(crate) dir: &'a Path,
}

impl Chain<'_> {
    /// One plain proxy before the backend: its file, and where to send load.
    pub(crate) fn plain(&self) -> Result<(Vec<PathBuf>, SocketAddr)> {
        let entry = free_address()?;
        let file = self.write("plain.yaml", &document(entry, self.backend, "", ""))?;
        Ok((vec![file], entry))
    }

    /// A client-side and a server-side proxy with mutual TLS in between.
    pub(crate) fn mtls_pair(&self) -> Result<(Vec<PathBuf>, SocketAddr)> {
        let (entry, middle) = (free_address()?, free_address()?);
        let client = document(entry, middle, "", &self.upstream_tls());
        let server = document(middle, self.backend, &self.downstream_tls(), "");
        Ok((vec![self.write("server.yaml", &server)?, self.write("client.yaml", &client)?], entry))
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    }

    fn common_tls(&self) -> String {
        format!(
            "common_tls_context:
          tls_certificates:
          - certificate_chain: {{filename: {chain}}}
            private_key: {{filename: {key}}}
          validation_context:
            trusted_ca: {{filename: {root}}}
            match_typed_subject_alt_names:
            - san_type: URI
              matcher: {{exact: \"{SPIFFE_ID}\"}}",
            chain = self.certs.chain.display(),
            key = self.certs.key.display(),
            root = self.certs.root.display(),
        )
    }

    fn downstream_tls(&self) -> String {
        format!(
            "
      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          {}",
            self.common_tls().replace("\n", "\n  ")
        )
    }

    fn upstream_tls(&self) -> String {
        format!(
            "
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        {}",
            self.common_tls()
        )
    }
}

/// A loopback address that nobody listens on at this moment.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn document(
    listen: SocketAddr,
    upstream: SocketAddr,
    downstream_tls: &str,
    upstream_tls: &str,
) -> String {
    format!(
        "node: {{id: bench, cluster: bench}}
static_resources:
  listeners:
  - name: entry
    address: {{socket_address: {{address: {listen_ip}, port_value: {listen_port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: entry
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: /dev/null
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            name: local
            virtual_hosts:
            - name: all
              domains: [\"*\"]
              routes:
              - match: {{prefix: \"/\"}}
                route: {{cluster: upstream, timeout: 15s}}{downstream_tls}
  clusters:
  - name: upstream
    type: STATIC
    connect_timeout: 5s
    lb_policy: LEAST_REQUEST{upstream_tls}
    load_assignment:
      cluster_name: upstream
      endpoints:
      - lb_endpoints:
        - endpoint:
            address: {{socket_address: {{address: {upstream_ip}, port_value: {upstream_port}}}}}
",
        listen_ip = listen.ip(),
        listen_port = listen.port(),
        upstream_ip = upstream.ip(),
        upstream_port = upstream.port(),
    )
}
