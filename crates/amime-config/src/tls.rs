//! TLS contexts of transport sockets, compiled to rustls settings.
//!
//! The settings hold live certificates and roots, so a rotation needs no
//! recompilation. ALPN lists that differ by the request's protocol are made
//! ready here, not per connection.

use std::sync::{Arc, OnceLock};

use amime_identity::{
    CertSet, LiveCert, PeerChecks, ServerNameCheck, SessionResumption, TlsVersion, WorkloadCert,
    downstream_config, upstream_config,
};
use amime_rules::Faults;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::http_11_proxy::v3::Http11ProxyUpstreamTransport;
use envoy_types::pb::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use envoy_types::pb::envoy::extensions::transport_sockets::quic::v3::QuicDownstreamTransport;
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::transport_sockets::tcp_stats::v3::Config as TcpStats;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use envoy_types::pb::google::protobuf::Any;
use rustls::{ClientConfig, ServerConfig};

use super::Compiler;
use super::tls_common::common;
use amime_rules::values::{bool_or, is, type_name, u32_or, unpack};

/// How bytes travel to an upstream.
#[derive(Clone, Debug)]
pub enum UpstreamTransport {
    Raw,
    Tls(Arc<UpstreamTls>),
    /// After a PROXY header.
    Proxied(ProxyHeader, Option<Arc<UpstreamTls>>),
}

/// Version of the PROXY header that goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyHeader {
    V1,
    V2,
}

impl UpstreamTransport {
    pub fn tls(&self) -> Option<&Arc<UpstreamTls>> {
        match self {
            Self::Raw => None,
            Self::Tls(tls) => Some(tls),
            Self::Proxied(_, tls) => tls.as_ref(),
        }
    }

    pub fn proxy_header(&self) -> Option<ProxyHeader> {
        match self {
            Self::Proxied(version, _) => Some(*version),
            Self::Raw | Self::Tls(_) => None,
        }
    }
}

/// Settings of a TLS client.
#[derive(Debug)]
pub struct UpstreamTls {
    /// Server name to ask for; empty: none, or the request's with `auto_sni`.
    pub sni: String,
    /// Take the server name from the endpoint's host name.
    pub host_sni: bool,
    certificate: Option<Arc<LiveCert>>,
    /// With the protocols as configured.
    base: Arc<ClientConfig>,
    /// With those of [`Alpn`], in its order, made when first asked for: a
    /// cluster uses one or two of them.
    variants: [OnceLock<Arc<ClientConfig>>; 5],
}

/// Which protocols to offer by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Alpn {
    /// HTTP/1.1 if the context names none.
    Http1,
    /// HTTP/2 if the context names none.
    Http2,
    /// Both if the context names none.
    Either,
    /// Tells an Istio peer that HTTP/1.1 follows.
    IstioHttp1,
    /// Tells an Istio peer that HTTP/2 follows.
    IstioHttp2,
    /// What the context names.
    #[default]
    Configured,
}

impl UpstreamTls {
    /// The certificate that we present now.
    pub fn local(&self) -> Option<Arc<WorkloadCert>> {
        self.certificate.as_deref()?.current()
    }

    /// False while our own certificate has not come: no handshake is tried.
    pub fn ready(&self) -> bool {
        self.certificate.as_ref().is_none_or(|certificate| certificate.current().is_some())
    }

    pub fn config(&self, alpn: Alpn) -> Arc<ClientConfig> {
        let named = !self.base.alpn_protocols.is_empty();
        let list: &[&[u8]] = match alpn {
            Alpn::Configured => return self.base.clone(),
            Alpn::Http1 | Alpn::Http2 | Alpn::Either if named => return self.base.clone(),
            Alpn::Http1 => &[b"http/1.1"],
            Alpn::Http2 => &[b"h2"],
            Alpn::Either => &[b"h2", b"http/1.1"],
            Alpn::IstioHttp1 => &[b"istio-http/1.1", b"istio", b"http/1.1"],
            Alpn::IstioHttp2 => &[b"istio-h2", b"istio", b"h2"],
        };
        let variant = || {
            let mut config = (*self.base).clone();
            config.alpn_protocols = list.iter().map(|protocol| protocol.to_vec()).collect();
            Arc::new(config)
        };
        self.variants[alpn as usize].get_or_init(variant).clone()
    }
}

/// Settings of a TLS server.
#[derive(Debug)]
pub struct DownstreamTls {
    with_alpn: Arc<ServerConfig>,
    without_alpn: Arc<ServerConfig>,
    pub require_sni: bool,
    certificates: Arc<CertSet>,
}

impl DownstreamTls {
    /// The first of the certificates that we present now.
    pub fn local(&self) -> Option<Arc<WorkloadCert>> {
        self.certificates.first()
    }

    /// False while no certificate has come: every handshake fails.
    pub fn ready(&self) -> bool {
        self.certificates.first().is_some()
    }

    /// The certificates to choose from.
    pub(crate) fn certificates(&self) -> &CertSet {
        &self.certificates
    }

    /// A copy of the settings, to be made those of another transport.
    pub(crate) fn server_config(&self) -> ServerConfig {
        (*self.with_alpn).clone()
    }

    /// The settings for a client that offers `alpn`. A client without a
    /// protocol in common is served without ALPN, as by Envoy, where rustls
    /// would refuse it.
    pub fn config(&self, offered: &[Vec<u8>]) -> Arc<ServerConfig> {
        let known = &self.with_alpn.alpn_protocols;
        if offered.iter().any(|protocol| known.contains(protocol)) {
            self.with_alpn.clone()
        } else {
            self.without_alpn.clone()
        }
    }
}

/// Compiles a cluster's transport socket.
pub fn upstream_transport(
    socket: Option<&core::TransportSocket>,
    compiler: &mut Compiler<'_>,
) -> Option<UpstreamTransport> {
    let Some(socket) = socket else { return Some(UpstreamTransport::Raw) };
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else {
        return raw_by_name(&socket.name, compiler).then_some(UpstreamTransport::Raw);
    };
    if is::<RawBuffer>(any) {
        return Some(UpstreamTransport::Raw);
    }
    if is::<pb::UpstreamTlsContext>(any) {
        let context: pb::UpstreamTlsContext = unpack(any, &mut compiler.faults)?;
        return upstream_tls(&context, compiler).map(|tls| UpstreamTransport::Tls(Arc::new(tls)));
    }
    if is::<ProxyProtocolUpstreamTransport>(any) {
        let config: ProxyProtocolUpstreamTransport = unpack(any, &mut compiler.faults)?;
        return proxied(&config, compiler);
    }
    // Both only act on what is inside of them: one counts, the other waits for
    // an address that nothing here sets.
    let inner = if is::<TcpStats>(any) {
        compiler.faults.ignore("typed_config", "counts nothing");
        let config: TcpStats = unpack(any, &mut compiler.faults)?;
        config.transport_socket
    } else if is::<Http11ProxyUpstreamTransport>(any) {
        compiler.faults.ignore("typed_config", "no proxy is asked");
        let config: Http11ProxyUpstreamTransport = unpack(any, &mut compiler.faults)?;
        config.transport_socket
    } else {
        let reason = format!("transport socket {} is not supported", type_name(any));
        compiler.faults.reject("typed_config", reason);
        return None;
    };
    inside(inner.as_ref(), compiler)
}

fn inside(
    socket: Option<&core::TransportSocket>,
    compiler: &mut Compiler<'_>,
) -> Option<UpstreamTransport> {
    compiler.faults.enter("typed_config.transport_socket");
    let inner = upstream_transport(socket, compiler);
    compiler.faults.leave();
    inner
}

fn proxied(
    value: &ProxyProtocolUpstreamTransport,
    compiler: &mut Compiler<'_>,
) -> Option<UpstreamTransport> {
    let default = core::ProxyProtocolConfig::default();
    let config = value.config.as_ref().unwrap_or(&default);
    let faults = &mut compiler.faults;
    faults.ignore_if(config.pass_through_tlvs.is_some(), "config.pass_through_tlvs");
    faults.ignore_if(!config.added_tlvs.is_empty(), "config.added_tlvs");
    let version = match config.version() {
        core::proxy_protocol_config::Version::V1 => ProxyHeader::V1,
        core::proxy_protocol_config::Version::V2 => ProxyHeader::V2,
    };
    match inside(value.transport_socket.as_ref(), compiler)? {
        UpstreamTransport::Raw => Some(UpstreamTransport::Proxied(version, None)),
        UpstreamTransport::Tls(tls) => Some(UpstreamTransport::Proxied(version, Some(tls))),
        UpstreamTransport::Proxied(..) => {
            compiler.faults.reject("transport_socket", "one PROXY header is enough");
            None
        }
    }
}

/// Compiles a filter chain's transport socket; `Ok(None)` is plaintext.
pub fn downstream_transport(
    socket: Option<&core::TransportSocket>,
    compiler: &mut Compiler<'_>,
) -> Option<Option<Arc<DownstreamTls>>> {
    let Some(socket) = socket else { return Some(None) };
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else {
        return raw_by_name(&socket.name, compiler).then_some(None);
    };
    if is::<RawBuffer>(any) {
        return Some(None);
    }
    if compiler.quic {
        return quic_transport(any, compiler);
    }
    if !is::<pb::DownstreamTlsContext>(any) {
        let reason = format!("transport socket {} is not supported", type_name(any));
        compiler.faults.reject("typed_config", reason);
        return None;
    }
    let context: pb::DownstreamTlsContext = unpack(any, &mut compiler.faults)?;
    downstream_tls(&context, compiler).map(|tls| Some(Arc::new(tls)))
}

/// The TLS context within a QUIC transport socket.
fn quic_transport(any: &Any, compiler: &mut Compiler<'_>) -> Option<Option<Arc<DownstreamTls>>> {
    let socket: QuicDownstreamTransport = unpack(any, &mut compiler.faults)?;
    compiler.faults.ignore_if(
        bool_or(socket.enable_early_data.as_ref(), false),
        "typed_config.enable_early_data",
    );
    let Some(context) = socket.downstream_tls_context else {
        compiler.faults.reject("typed_config.downstream_tls_context", "missing");
        return None;
    };
    // All chains share one handshake, which cannot ask only some clients.
    let checked = bool_or(context.require_client_certificate.as_ref(), false);
    compiler
        .faults
        .reject_if(checked, "typed_config.downstream_tls_context.require_client_certificate");
    compiler.faults.enter("typed_config.downstream_tls_context");
    let tls = downstream_tls(&context, compiler);
    compiler.faults.leave();
    tls.map(|tls| Some(Arc::new(tls)))
}

fn raw_by_name(name: &str, compiler: &mut Compiler<'_>) -> bool {
    let raw = name.is_empty() || name == "envoy.transport_sockets.raw_buffer";
    if !raw {
        compiler.faults.reject("name", format!("transport socket `{name}` is not supported"));
    }
    raw
}

fn upstream_tls(
    value: &pb::UpstreamTlsContext,
    compiler: &mut Compiler<'_>,
) -> Option<UpstreamTls> {
    compiler.faults.enter("common_tls_context");
    // The default of clients is an older one than that of servers.
    let common = common(value.common_tls_context.as_ref(), TlsVersion::V1_2, compiler);
    compiler.faults.leave();
    let common = common?;
    let faults = &mut compiler.faults;
    faults.ignore_if(value.allow_renegotiation, "allow_renegotiation");
    faults.ignore_if(bool_or(value.enforce_rsa_key_usage.as_ref(), false), "enforce_rsa_key_usage");
    if common.certificates.len() > 1 {
        faults.reject("common_tls_context", "a client has one certificate");
    }
    let mut checks = common.checks.unwrap_or_default();
    checks.server_name = if value.auto_sni_san_validation {
        if checks.roots.is_none() {
            faults.reject("auto_sni_san_validation", "needs a trusted CA");
        }
        ServerNameCheck::InsteadOfSans
    } else if compiler.auto_san_validation {
        ServerNameCheck::Also
    } else {
        ServerNameCheck::Never
    };
    let certificate = common.certificates.into_iter().next();
    // The identity of a mesh peer is checked anew at each handshake.
    let sessions = match common.workload {
        true => 0,
        false => u32_or(value.max_session_keys.as_ref(), 1) as usize,
    };
    match upstream_config(certificate.clone(), checks, sessions, &common.options) {
        Ok(base) => Some(UpstreamTls {
            sni: value.sni.clone(),
            host_sni: value.auto_host_sni,
            certificate,
            base,
            variants: Default::default(),
        }),
        Err(error) => {
            faults.reject("common_tls_context", error.to_string());
            None
        }
    }
}

fn downstream_tls(
    value: &pb::DownstreamTlsContext,
    compiler: &mut Compiler<'_>,
) -> Option<DownstreamTls> {
    compiler.faults.enter("common_tls_context");
    let common = common(value.common_tls_context.as_ref(), TlsVersion::V1_3, compiler);
    compiler.faults.leave();
    let mut common = common?;
    let faults = &mut compiler.faults;
    faults.ignore_if(value.session_timeout.is_some(), "session_timeout");
    let stapling = pb::downstream_tls_context::OcspStaplePolicy::LenientStapling;
    faults.ignore_if(value.ocsp_staple_policy() != stapling, "ocsp_staple_policy");
    if common.certificates.is_empty() {
        faults.reject("common_tls_context", "no certificate");
        return None;
    }
    let full_scan = bool_or(value.full_scan_certs_on_sni_mismatch.as_ref(), false);
    let certificates = CertSet::new(common.certificates, full_scan);
    let required = bool_or(value.require_client_certificate.as_ref(), false);
    let clients = match (common.checks, required) {
        (None, false) => None,
        // Any certificate will do, as by Envoy.
        (None, true) => Some((PeerChecks::default(), true)),
        (Some(checks), required) => Some((checks, required)),
    };
    let resumption = resumption(value, clients.is_some(), faults);
    common.options.client_order = value.prefer_client_ciphers;
    match downstream_config(certificates.clone(), clients, resumption, &common.options) {
        Ok(with_alpn) => {
            let mut without = (*with_alpn).clone();
            without.alpn_protocols.clear();
            Some(DownstreamTls {
                with_alpn,
                without_alpn: Arc::new(without),
                require_sni: bool_or(value.require_sni.as_ref(), false),
                certificates,
            })
        }
        Err(error) => {
            faults.reject("common_tls_context", error.to_string());
            None
        }
    }
}

const OWN_KEYS: &str = "tickets have keys of this process only";

/// How sessions are resumed: not at all where the client's certificate counts.
fn resumption(
    value: &pb::DownstreamTlsContext,
    checked: bool,
    faults: &mut Faults,
) -> SessionResumption {
    use pb::downstream_tls_context::SessionTicketKeysType as Keys;
    let tickets = match &value.session_ticket_keys_type {
        None | Some(Keys::DisableStatelessSessionResumption(false)) => true,
        Some(Keys::DisableStatelessSessionResumption(true)) => false,
        Some(Keys::SessionTicketKeys(_)) => {
            faults.ignore("session_ticket_keys", OWN_KEYS);
            true
        }
        Some(Keys::SessionTicketKeysSdsSecretConfig(_)) => {
            faults.ignore("session_ticket_keys_sds_secret_config", OWN_KEYS);
            true
        }
    };
    match checked {
        true => SessionResumption::default(),
        false => SessionResumption { tickets, stored: !value.disable_stateful_session_resumption },
    }
}
