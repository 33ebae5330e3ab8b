//! What the data path says about one finished request or connection.
//!
//! Records borrow; nothing is copied before a consumer (metrics, access log,
//! flight recorder) needs it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use amime_identity::{CertificateDetails, ShownCertificate};
use http::HeaderMap;

use super::accesslog::AccessLogger;
use super::metadata::DynamicMetadata;
use super::peer::PeerMetadata;
use super::{IstioStats, ResponseFlags};

/// Side of the mesh that a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Direction {
    /// Traffic to the local workload: reports as `destination`.
    Inbound,
    /// Traffic from the local workload: reports as `source`.
    #[default]
    Outbound,
    /// Traffic through a gateway: reports as `source`.
    Gateway,
}

/// Telemetry settings of one listener's filter chain, built once when its
/// configuration is compiled.
#[derive(Debug, Default)]
pub struct ListenerTelemetry {
    /// Name of the listener resource.
    pub listener: Arc<str>,
    /// Name of the filter chain, empty if it has none.
    pub filter_chain: Arc<str>,
    /// Side of the mesh.
    pub direction: Direction,
    /// Access loggers of the connection manager or TCP proxy.
    pub access_logs: Vec<AccessLogger>,
    /// Istio's standard metrics; `None` when the `istio.stats` filter is absent.
    pub istio_stats: Option<Arc<IstioStats>>,
}

/// Who a cluster stands for, built once when the cluster is compiled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterInfo {
    /// Name of the cluster.
    pub name: Arc<str>,
    /// First of the cluster's `filter_metadata.istio.services`.
    pub service: Option<ServiceIdentity>,
}

/// A mesh service as named in a cluster's Istio metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceIdentity {
    /// Hostname, as `reviews.default.svc.cluster.local`.
    pub host: Arc<str>,
    /// Short name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
}

/// TLS facts of one side of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct TlsRecord<'a> {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'a str,
    /// Cipher suite in OpenSSL's spelling.
    pub cipher: &'a str,
    /// URI SAN of the peer's certificate.
    pub peer_uri_san: Option<&'a str>,
    /// URI SAN of our certificate.
    pub local_uri_san: Option<&'a str>,
    /// The certificate that the peer showed.
    pub peer: Option<&'a ShownCertificate>,
    /// What our certificate says of itself.
    pub local: Option<&'a CertificateDetails>,
    /// Whether both sides showed a certificate.
    pub mutual: bool,
}

/// The downstream connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct DownstreamRecord<'a> {
    /// Number of the connection within this process.
    pub connection_id: u64,
    /// Address the client dialed (after original-destination recovery).
    pub local_address: Option<SocketAddr>,
    /// The client's address, after `x-forwarded-for` or PROXY protocol.
    pub remote_address: Option<SocketAddr>,
    /// The connection's own peer address.
    pub direct_remote_address: Option<SocketAddr>,
    /// Server name the client asked for.
    pub sni: Option<&'a str>,
    /// TLS facts when the connection is TLS.
    pub tls: Option<TlsRecord<'a>>,
    /// Why its handshake failed.
    pub transport_failure: Option<&'a str>,
    /// The peer's workload, from metadata exchange.
    pub peer: Option<&'a Arc<PeerMetadata>>,
}

/// The upstream side; all empty when no upstream was chosen.
#[derive(Clone, Copy, Debug, Default)]
pub struct UpstreamRecord<'a> {
    /// Address of the chosen endpoint.
    pub host: Option<SocketAddr>,
    /// Name of the chosen endpoint, if it has one.
    pub host_name: Option<&'a str>,
    /// Our address on the upstream connection.
    pub local_address: Option<SocketAddr>,
    /// The chosen cluster.
    pub cluster: Option<&'a ClusterInfo>,
    /// TLS facts when the upstream connection is TLS.
    pub tls: Option<TlsRecord<'a>>,
    /// Why connecting or its handshake failed.
    pub transport_failure: Option<&'a str>,
    /// The peer's workload, from metadata exchange or endpoint metadata.
    pub peer: Option<&'a Arc<PeerMetadata>>,
    /// Attempts made, the first included.
    pub attempts: u32,
    /// HTTP protocol spoken upstream, as `HTTP/1.1`.
    pub protocol: Option<&'a str>,
}

/// When parts of a request passed, each measured from its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct HttpTiming {
    /// Until the last byte to the client: `%DURATION%`.
    pub total: Duration,
    /// Until the last byte of the request was read.
    pub request_received: Option<Duration>,
    /// Until the first byte of the upstream's response.
    pub response_started: Option<Duration>,
}

/// One finished HTTP request.
#[derive(Clone, Debug)]
pub struct HttpRecord<'a> {
    /// The listener's telemetry settings.
    pub listener: &'a ListenerTelemetry,
    /// When the first byte of the request was read.
    pub start: SystemTime,
    /// Durations.
    pub timing: HttpTiming,
    /// Method.
    pub method: &'a str,
    /// Path with query, as sent upstream.
    pub path: &'a str,
    /// `:authority` or `Host`.
    pub authority: &'a str,
    /// Scheme, `http` or `https`.
    pub scheme: &'a str,
    /// `HTTP/1.0`, `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'static str,
    /// Request headers as sent upstream.
    pub request_headers: &'a HeaderMap,
    /// Response headers as sent downstream.
    pub response_headers: &'a HeaderMap,
    /// Response trailers.
    pub response_trailers: Option<&'a HeaderMap>,
    /// Status, 0 when the client left before one was sent.
    pub response_code: u16,
    /// Why the response is what it is, as `via_upstream`.
    pub response_code_details: &'a str,
    /// Why the connection was closed, if it was.
    pub connection_termination_details: Option<&'a str>,
    /// Response flags.
    pub flags: ResponseFlags,
    /// Body bytes received from the client.
    pub bytes_received: u64,
    /// Body bytes sent to the client.
    pub bytes_sent: u64,
    /// Bytes received from the client with headers: `istio_request_bytes`.
    pub wire_bytes_received: u64,
    /// Bytes sent to the client with headers: `istio_response_bytes`.
    pub wire_bytes_sent: u64,
    /// Name of the chosen route.
    pub route_name: Option<&'a str>,
    /// Config object that the chosen route came from
    /// (`filter_metadata.istio.config`).
    pub config_origin: Option<&'a str>,
    /// Whether the request is gRPC.
    pub grpc: bool,
    /// Whether it is a health check.
    pub health_check: bool,
    /// What filters found out.
    pub metadata: Option<&'a DynamicMetadata>,
    /// Name of the virtual cluster, where there are such.
    pub virtual_cluster: Option<&'a str>,
    /// Downstream side.
    pub downstream: DownstreamRecord<'a>,
    /// Upstream side.
    pub upstream: UpstreamRecord<'a>,
}

impl<'a> HttpRecord<'a> {
    /// A record with everything unknown; set the fields that are known.
    pub fn new(
        listener: &'a ListenerTelemetry,
        start: SystemTime,
        request_headers: &'a HeaderMap,
        response_headers: &'a HeaderMap,
    ) -> Self {
        Self {
            listener,
            start,
            timing: HttpTiming::default(),
            method: "",
            path: "",
            authority: "",
            scheme: "http",
            protocol: "HTTP/1.1",
            request_headers,
            response_headers,
            response_trailers: None,
            response_code: 0,
            response_code_details: "",
            connection_termination_details: None,
            flags: ResponseFlags::NONE,
            bytes_received: 0,
            bytes_sent: 0,
            wire_bytes_received: 0,
            wire_bytes_sent: 0,
            route_name: None,
            config_origin: None,
            grpc: false,
            health_check: false,
            metadata: None,
            virtual_cluster: None,
            downstream: DownstreamRecord::default(),
            upstream: UpstreamRecord::default(),
        }
    }
}

/// Which moment of a TCP connection a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpEvent {
    /// The connection has come; counts nothing.
    Started,
    /// The upstream was chosen and the peers are known; counts the opening.
    Opened,
    /// Periodic report of a live connection; counts bytes only.
    Progress,
    /// The connection ended; counts bytes and the closing, and is logged.
    Closed,
}

/// One TCP connection at one moment.
#[derive(Clone, Debug)]
pub struct TcpRecord<'a> {
    /// The listener's telemetry settings.
    pub listener: &'a ListenerTelemetry,
    /// Which moment this is.
    pub event: TcpEvent,
    /// When the connection was accepted.
    pub start: SystemTime,
    /// How long it has lived.
    pub duration: Duration,
    /// Bytes received from the client since the start.
    pub bytes_received: u64,
    /// Bytes sent to the client since the start.
    pub bytes_sent: u64,
    /// Of `bytes_received`, how many no earlier record reported.
    pub received_delta: u64,
    /// Of `bytes_sent`, how many no earlier record reported.
    pub sent_delta: u64,
    /// Response flags.
    pub flags: ResponseFlags,
    /// Why the connection was closed.
    pub connection_termination_details: Option<&'a str>,
    /// Config object that the filter chain came from.
    pub config_origin: Option<&'a str>,
    /// Downstream side.
    pub downstream: DownstreamRecord<'a>,
    /// Upstream side.
    pub upstream: UpstreamRecord<'a>,
}

impl<'a> TcpRecord<'a> {
    /// A record with everything unknown; set the fields that are known.
    pub fn new(listener: &'a ListenerTelemetry, event: TcpEvent, start: SystemTime) -> Self {
        Self {
            listener,
            event,
            start,
            duration: Duration::ZERO,
            bytes_received: 0,
            bytes_sent: 0,
            received_delta: 0,
            sent_delta: 0,
            flags: ResponseFlags::NONE,
            connection_termination_details: None,
            config_origin: None,
            downstream: DownstreamRecord::default(),
            upstream: UpstreamRecord::default(),
        }
    }
}
