//! TLS contexts of transport sockets, compiled to rustls settings.
//!
//! The settings hold live certificates and roots, so a rotation needs no
//! recompilation. ALPN lists that differ by the request's protocol are made
//! ready here, not per connection.

use std::sync::Arc;

use amime_identity::{
    ClientAuth, LiveBundle, LiveCert, PeerIdentities, PlainServerCheck, SanMatcher, SanPattern,
    SanType, SubjectAltName, TlsOptions, TlsVersion, TrustBundle, client_config,
    plain_client_config, plain_server_config, server_config,
};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use rustls::{ClientConfig, ServerConfig};

use super::Compiler;
use super::values::{bool_or, data_source, is, type_name, unpack};
use crate::secrets::load_certificate;

/// How bytes travel to an upstream.
#[derive(Clone, Debug)]
pub enum UpstreamTransport {
    Raw,
    Tls(Arc<UpstreamTls>),
}

/// Settings of a TLS client.
#[derive(Debug)]
pub struct UpstreamTls {
    /// Server name to ask for; empty: none, or the request's with `auto_sni`.
    pub sni: String,
    /// Take the server name from the endpoint's host name.
    pub host_sni: bool,
    certificate: Option<Arc<LiveCert>>,
    /// ALPN as configured.
    plain: Arc<ClientConfig>,
    /// ALPN that tells an Istio peer that HTTP/1.1 follows.
    istio_http1: Arc<ClientConfig>,
    /// ALPN that tells an Istio peer that HTTP/2 follows.
    istio_http2: Arc<ClientConfig>,
}

/// Which ALPN list to offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Alpn {
    #[default]
    Configured,
    IstioHttp1,
    IstioHttp2,
}

impl UpstreamTls {
    /// The URI SAN that we present now.
    pub fn local_uri_san(&self) -> Option<String> {
        uri_san(self.certificate.as_deref()?)
    }

    pub fn config(&self, alpn: Alpn) -> Arc<ClientConfig> {
        match alpn {
            Alpn::Configured => &self.plain,
            Alpn::IstioHttp1 => &self.istio_http1,
            Alpn::IstioHttp2 => &self.istio_http2,
        }
        .clone()
    }
}

/// Settings of a TLS server.
#[derive(Debug)]
pub struct DownstreamTls {
    with_alpn: Arc<ServerConfig>,
    without_alpn: Arc<ServerConfig>,
    pub require_sni: bool,
    certificate: Arc<LiveCert>,
}

fn uri_san(certificate: &LiveCert) -> Option<String> {
    let current = certificate.current()?;
    current.details().subject_alt_names.iter().find_map(|name| match name {
        SubjectAltName::Uri(uri) => Some(uri.clone()),
        _ => None,
    })
}

impl DownstreamTls {
    /// The URI SAN that we present now.
    pub fn local_uri_san(&self) -> Option<String> {
        uri_san(&self.certificate)
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
    if !is::<pb::UpstreamTlsContext>(any) {
        let reason = format!("transport socket {} is not supported", type_name(any));
        compiler.faults.reject("typed_config", reason);
        return None;
    }
    let context: pb::UpstreamTlsContext = unpack(any, &mut compiler.faults)?;
    upstream_tls(&context, compiler).map(|tls| UpstreamTransport::Tls(Arc::new(tls)))
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
    if !is::<pb::DownstreamTlsContext>(any) {
        let reason = format!("transport socket {} is not supported", type_name(any));
        compiler.faults.reject("typed_config", reason);
        return None;
    }
    let context: pb::DownstreamTlsContext = unpack(any, &mut compiler.faults)?;
    downstream_tls(&context, compiler).map(|tls| Some(Arc::new(tls)))
}

fn raw_by_name(name: &str, compiler: &mut Compiler<'_>) -> bool {
    let raw = name.is_empty() || name == "envoy.transport_sockets.raw_buffer";
    if !raw {
        compiler.faults.reject("name", format!("transport socket `{name}` is not supported"));
    }
    raw
}

/// What a common context says, resolved to live values.
struct Common {
    certificate: Option<Arc<LiveCert>>,
    roots: Option<Arc<LiveBundle>>,
    sans: Vec<SanMatcher>,
    accept_untrusted: bool,
    options: TlsOptions,
    /// The certificate is the workload's own.
    workload: bool,
}

fn common(value: Option<&pb::CommonTlsContext>, compiler: &mut Compiler<'_>) -> Option<Common> {
    let default = pb::CommonTlsContext::default();
    let value = value.unwrap_or(&default);
    compiler.faults.ignore_if(value.custom_handshaker.is_some(), "custom_handshaker");
    let (certificate, workload) = certificate(value, compiler)?;
    let mut common = Common {
        certificate,
        roots: None,
        sans: Vec::new(),
        accept_untrusted: false,
        options: options(value, compiler),
        workload,
    };
    use pb::common_tls_context::ValidationContextType as Validation;
    match value.validation_context_type.as_ref() {
        None => {}
        Some(Validation::ValidationContext(context)) => validation(context, &mut common, compiler)?,
        Some(Validation::ValidationContextSdsSecretConfig(sds)) => {
            common.roots = Some(compiler.sds_roots(sds));
        }
        Some(Validation::CombinedValidationContext(combined)) => {
            if let Some(context) = &combined.default_validation_context {
                validation(context, &mut common, compiler)?;
            }
            if let Some(sds) = &combined.validation_context_sds_secret_config {
                common.roots = Some(compiler.sds_roots(sds));
            }
        }
        Some(_) => {
            compiler
                .faults
                .reject("validation_context_type", "certificate providers are not supported");
            return None;
        }
    }
    Some(common)
}

fn options(value: &pb::CommonTlsContext, compiler: &mut Compiler<'_>) -> TlsOptions {
    use pb::tls_parameters::TlsProtocol;
    let mut options = TlsOptions::with_alpn(&value.alpn_protocols);
    if let Some(params) = &value.tls_params {
        let version = |protocol, default| match protocol {
            TlsProtocol::TlSv13 => TlsVersion::V1_3,
            TlsProtocol::TlSv12 | TlsProtocol::TlSv11 | TlsProtocol::TlSv10 => TlsVersion::V1_2,
            TlsProtocol::TlsAuto => default,
        };
        options.min_version = version(params.tls_minimum_protocol_version(), TlsVersion::V1_2);
        options.max_version = version(params.tls_maximum_protocol_version(), TlsVersion::V1_3);
        compiler.faults.ignore_if(!params.cipher_suites.is_empty(), "tls_params.cipher_suites");
        compiler.faults.ignore_if(!params.ecdh_curves.is_empty(), "tls_params.ecdh_curves");
    }
    options
}

fn certificate(
    value: &pb::CommonTlsContext,
    compiler: &mut Compiler<'_>,
) -> Option<(Option<Arc<LiveCert>>, bool)> {
    if let Some(sds) = value.tls_certificate_sds_secret_configs.first() {
        compiler.faults.ignore_if(
            value.tls_certificate_sds_secret_configs.len() > 1,
            "tls_certificate_sds_secret_configs[1]",
        );
        let workload = compiler.secrets.is_local(&sds.name);
        return Some((Some(compiler.sds_certificate(sds)), workload));
    }
    let Some(inline) = value.tls_certificates.first() else { return Some((None, false)) };
    compiler.faults.ignore_if(value.tls_certificates.len() > 1, "tls_certificates[1]");
    match inline_certificate(inline) {
        Ok((chain, key)) => match load_certificate(&chain, &key) {
            Ok(cert) => Some((Some(LiveCert::new(cert)), false)),
            Err(reason) => {
                compiler.faults.reject("tls_certificates[0]", reason);
                None
            }
        },
        Err(reason) => {
            compiler.faults.reject("tls_certificates[0]", reason);
            None
        }
    }
}

/// Chain and key of a certificate message, PEM.
pub fn inline_certificate(value: &pb::TlsCertificate) -> Result<(Vec<u8>, Vec<u8>), String> {
    let part = |source: Option<&core::DataSource>, name: &str| {
        data_source(source.ok_or_else(|| format!("{name} is missing"))?)
    };
    let chain = part(value.certificate_chain.as_ref(), "certificate_chain")?;
    Ok((chain, part(value.private_key.as_ref(), "private_key")?))
}

fn validation(
    value: &pb::CertificateValidationContext,
    common: &mut Common,
    compiler: &mut Compiler<'_>,
) -> Option<()> {
    let faults = &mut compiler.faults;
    faults.reject_if(!value.verify_certificate_spki.is_empty(), "verify_certificate_spki");
    faults.reject_if(!value.verify_certificate_hash.is_empty(), "verify_certificate_hash");
    faults.reject_if(value.custom_validator_config.is_some(), "custom_validator_config");
    faults.reject_if(value.crl.is_some(), "crl");
    if let Some(source) = &value.trusted_ca {
        let bundle = data_source(source)
            .and_then(|pem| TrustBundle::from_pem(&pem).map_err(|error| error.to_string()));
        match bundle {
            Ok(bundle) => common.roots = Some(LiveBundle::new(bundle)),
            Err(reason) => {
                faults.reject("trusted_ca", reason);
                return None;
            }
        }
    } else if value.system_root_certs.is_some() {
        match TrustBundle::system() {
            Ok(bundle) => common.roots = Some(LiveBundle::new(bundle)),
            Err(error) => {
                faults.reject("system_root_certs", error.to_string());
                return None;
            }
        }
    }
    for typed in &value.match_typed_subject_alt_names {
        use pb::subject_alt_name_matcher::SanType as Kind;
        let kind = match typed.san_type() {
            Kind::Uri => SanType::Uri,
            Kind::Dns => SanType::Dns,
            Kind::IpAddress => SanType::Ip,
            Kind::Email => SanType::Email,
            Kind::Unspecified | Kind::OtherName => SanType::Any,
        };
        common
            .sans
            .push(SanMatcher { san_type: kind, pattern: san(typed.matcher.as_ref(), compiler)? });
    }
    for untyped in &value.match_subject_alt_names {
        let pattern = san(Some(untyped), compiler)?;
        common.sans.push(SanMatcher { san_type: SanType::Any, pattern });
    }
    use pb::certificate_validation_context::TrustChainVerification;
    common.accept_untrusted =
        value.trust_chain_verification() == TrustChainVerification::AcceptUntrusted;
    Some(())
}

fn san(value: Option<&matcher::StringMatcher>, compiler: &mut Compiler<'_>) -> Option<SanPattern> {
    use matcher::string_matcher::MatchPattern;
    let pattern = match value.and_then(|value| value.match_pattern.as_ref()) {
        Some(MatchPattern::Exact(text)) => SanPattern::Exact(text.clone()),
        Some(MatchPattern::Prefix(text)) => SanPattern::Prefix(text.clone()),
        Some(MatchPattern::Suffix(text)) => SanPattern::Suffix(text.clone()),
        Some(MatchPattern::Contains(text)) => SanPattern::Contains(text.clone()),
        Some(MatchPattern::SafeRegex(value)) => match regex::Regex::new(&value.regex) {
            Ok(regex) => SanPattern::Regex(regex),
            Err(error) => {
                compiler.faults.reject("match_typed_subject_alt_names", error.to_string());
                return None;
            }
        },
        Some(MatchPattern::Custom(_)) | None => {
            compiler.faults.reject("match_typed_subject_alt_names", "pattern not supported");
            return None;
        }
    };
    Some(pattern)
}

fn upstream_tls(
    value: &pb::UpstreamTlsContext,
    compiler: &mut Compiler<'_>,
) -> Option<UpstreamTls> {
    compiler.faults.enter("common_tls_context");
    let common = common(value.common_tls_context.as_ref(), compiler);
    compiler.faults.leave();
    let common = common?;
    let names = PeerIdentities { trust_domains: Vec::new(), sans: common.sans };
    let certificate = common.certificate.clone();
    let built = match (common.certificate, common.roots, common.workload) {
        // Mesh mTLS: the identity is checked anew at each handshake.
        (Some(cert), Some(roots), true) => client_config(cert, roots, names, &common.options),
        (cert, Some(roots), _) if !common.accept_untrusted => {
            let by_name = value.auto_sni_san_validation && names.sans.is_empty();
            let check = if by_name {
                PlainServerCheck::ServerName(roots)
            } else {
                PlainServerCheck::Names(roots, names)
            };
            plain_client_config(cert, check, &common.options)
        }
        // Without roots Envoy checks nothing; the control plane decides.
        (cert, _, _) => plain_client_config(cert, PlainServerCheck::Nothing, &common.options),
    };
    let plain = match built {
        Ok(config) => config,
        Err(error) => {
            compiler.faults.reject("common_tls_context", error.to_string());
            return None;
        }
    };
    let variant = |alpn: &[&[u8]]| {
        let mut config = (*plain).clone();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    };
    Some(UpstreamTls {
        sni: value.sni.clone(),
        host_sni: value.auto_host_sni,
        certificate,
        istio_http1: variant(&[b"istio-http/1.1", b"istio", b"http/1.1"]),
        istio_http2: variant(&[b"istio-h2", b"istio", b"h2"]),
        plain,
    })
}

fn downstream_tls(
    value: &pb::DownstreamTlsContext,
    compiler: &mut Compiler<'_>,
) -> Option<DownstreamTls> {
    compiler.faults.enter("common_tls_context");
    let common = common(value.common_tls_context.as_ref(), compiler);
    compiler.faults.leave();
    let common = common?;
    let Some(cert) = common.certificate else {
        compiler.faults.reject("common_tls_context", "no certificate");
        return None;
    };
    let names = PeerIdentities { trust_domains: Vec::new(), sans: common.sans };
    let certificate = cert.clone();
    let required = bool_or(value.require_client_certificate.as_ref(), false);
    let built = match (common.roots, required) {
        (Some(roots), true) => {
            server_config(cert, roots, ClientAuth::Require(names), &common.options)
        }
        (Some(roots), false) => {
            server_config(cert, roots, ClientAuth::Optional(names), &common.options)
        }
        (None, true) => {
            compiler.faults.reject(
                "require_client_certificate",
                "needs a validation context with a trusted CA",
            );
            return None;
        }
        (None, false) => plain_server_config(cert, &common.options),
    };
    match built {
        Ok(with_alpn) => {
            let mut without = (*with_alpn).clone();
            without.alpn_protocols.clear();
            Some(DownstreamTls {
                with_alpn,
                without_alpn: Arc::new(without),
                require_sni: bool_or(value.require_sni.as_ref(), false),
                certificate,
            })
        }
        Err(error) => {
            compiler.faults.reject("common_tls_context", error.to_string());
            None
        }
    }
}
