//! TLS that ends at the proxy.

use amime_api::mesh::TlsConfigProtocol;
use amime_api::networking::{ServerTlsMode, ServerTlsSettings, TlsProtocol};
use amime_model::MtlsMode;
use envoy_types::pb::envoy::config::core::v3::{DataSource, TransportSocket, data_source};
use envoy_types::pb::envoy::extensions::transport_sockets::quic::v3::QuicDownstreamTransport;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::certificate_validation_context::TrustChainVerification;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol as EnvoyProtocol;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, TlsParameters,
};

use crate::context::Context;
use crate::proto::{bool_value, exact, prefix, transport_socket};
use crate::proxy::QUIC_SOCKET;
use crate::sds::{
    CA_SUFFIX, ROOT_CERTIFICATE, WORKLOAD_CERTIFICATE, from_agent, from_credential, validated_by,
};

const ALPN_HTTP3: [&str; 1] = ["h3"];
const ALPN_HTTP: [&str; 2] = ["h2", "http/1.1"];
const ALPN_TCP: [&str; 3] = ["istio-peer-exchange", "h2", "http/1.1"];

/// Cipher suites of mesh mutual TLS up to TLS 1.2.
const MESH_CIPHERS: [&str; 6] = [
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-GCM-SHA256",
];

/// The transport socket with this context.
pub(crate) fn socket(tls: &DownstreamTlsContext) -> TransportSocket {
    transport_socket("envoy.transport_sockets.tls", tls)
}

/// The same for QUIC.
pub(crate) fn quic_socket(tls: &DownstreamTlsContext) -> TransportSocket {
    let quic =
        QuicDownstreamTransport { downstream_tls_context: Some(tls.clone()), ..Default::default() };
    transport_socket(QUIC_SOCKET, &quic)
}

/// Makes a server's context one for HTTP/3.
pub(crate) fn make_quic(tls: &mut DownstreamTlsContext) {
    tls.require_client_certificate = bool_value(false);
    if let Some(common) = &mut tls.common_tls_context {
        common.alpn_protocols = owned(&ALPN_HTTP3);
    }
}

/// Mesh mutual TLS of an inbound chain; `None` if the port is plaintext.
pub(crate) fn mesh_mutual(
    context: &Context<'_>,
    mode: MtlsMode,
    http: bool,
) -> Option<DownstreamTlsContext> {
    if mode == MtlsMode::Disable {
        return None;
    }
    let settings = context.mesh.mesh_mtls.as_ref();
    let minimum = match settings.map(|settings| settings.min_protocol_version) {
        Some(TlsConfigProtocol::Tlsv13) => EnvoyProtocol::TlSv13,
        _ => EnvoyProtocol::TlSv12,
    };
    let ciphers = settings.map(|s| s.cipher_suites.clone()).filter(|suites| !suites.is_empty());
    let parameters = TlsParameters {
        tls_minimum_protocol_version: minimum.into(),
        tls_maximum_protocol_version: EnvoyProtocol::TlSv13.into(),
        cipher_suites: ciphers.unwrap_or_else(|| owned(&MESH_CIPHERS)),
        ..Default::default()
    };
    let mut common = identity(CertificateValidationContext::default(), trusted(context));
    common.tls_params = Some(parameters);
    // The mesh's own ALPN picks the chain; it must not be negotiated as well.
    common.alpn_protocols = if http { owned(&ALPN_HTTP) } else { owned(&ALPN_TCP) };
    Some(DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: bool_value(true),
        ..Default::default()
    })
}

/// TLS settings of a gateway server, or of a sidecar's own listener.
///
/// `tcp` says that what is inside is not HTTP.
pub(crate) fn server(
    context: &Context<'_>,
    settings: &ServerTlsSettings,
    tcp: bool,
) -> DownstreamTlsContext {
    let mutual = matches!(settings.mode, ServerTlsMode::Mutual | ServerTlsMode::IstioMutual);
    let mut common = match settings.mode {
        ServerTlsMode::IstioMutual => identity(validation(settings), Vec::new()),
        _ if !settings.credential_name.is_empty() || !settings.credential_names.is_empty() => {
            from_credentials(context, settings)
        }
        _ => from_files(settings),
    };
    let exchanges = tcp && settings.mode == ServerTlsMode::IstioMutual;
    common.alpn_protocols = if exchanges { owned(&ALPN_TCP) } else { owned(&ALPN_HTTP) };
    if settings.mode != ServerTlsMode::IstioMutual {
        common.tls_params = parameters(context, settings);
    }
    DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: bool_value(mutual),
        ..Default::default()
    }
}

fn checks_clients(settings: &ServerTlsSettings) -> bool {
    matches!(settings.mode, ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual)
}

/// Trust domains whose identities are accepted.
fn trusted(context: &Context<'_>) -> Vec<String> {
    let mut domains = vec![context.mesh.trust_domain.clone()];
    domains.extend(context.mesh.trust_domain_aliases.iter().cloned());
    domains.extend(context.mesh.ca_certificates.iter().flat_map(|c| c.trust_domains.clone()));
    let mut seen = std::collections::BTreeSet::new();
    domains.retain(|domain| !domain.is_empty() && seen.insert(domain.clone()));
    domains
}

/// The workload's own certificate, peers checked against the mesh's roots.
#[expect(deprecated, reason = "matches any kind of name, which the typed matchers cannot")]
fn identity(
    mut validation: CertificateValidationContext,
    trust_domains: Vec<String>,
) -> CommonTlsContext {
    let domains = trust_domains.iter().map(|domain| prefix(&format!("spiffe://{domain}/")));
    validation.match_subject_alt_names.extend(domains);
    CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![from_agent(WORKLOAD_CERTIFICATE)],
        validation_context_type: Some(validated_by(validation, from_agent(ROOT_CERTIFICATE))),
        ..Default::default()
    }
}

#[expect(deprecated, reason = "matches any kind of name, which the typed matchers cannot")]
fn validation(settings: &ServerTlsSettings) -> CertificateValidationContext {
    let trust = match settings.insecure_skip_verify {
        Some(true) => TrustChainVerification::AcceptUntrusted,
        _ => TrustChainVerification::VerifyTrustChain,
    };
    CertificateValidationContext {
        match_subject_alt_names: settings.subject_alt_names.iter().map(|n| exact(n)).collect(),
        verify_certificate_spki: settings.verify_certificate_spki.clone(),
        verify_certificate_hash: settings.verify_certificate_hash.clone(),
        trust_chain_verification: trust.into(),
        ..Default::default()
    }
}

fn from_credentials(context: &Context<'_>, settings: &ServerTlsSettings) -> CommonTlsContext {
    let names = match settings.credential_names.as_slice() {
        [] => std::slice::from_ref(&settings.credential_name),
        names => names,
    };
    let mut common = CommonTlsContext {
        tls_certificate_sds_secret_configs: names
            .iter()
            .map(|n| from_credential(context, n))
            .collect(),
        ..Default::default()
    };
    let ca = match settings.ca_cert_credential_name.as_str() {
        "" => format!("{}{CA_SUFFIX}", names[0]),
        own => own.to_owned(),
    };
    if checks_clients(settings) {
        let checks = validated_by(validation(settings), from_credential(context, &ca));
        common.validation_context_type = Some(checks);
    } else if !settings.subject_alt_names.is_empty() {
        common.validation_context_type =
            Some(ValidationContextType::ValidationContext(validation(settings)));
    }
    common
}

/// Certificates that are files in the workload; its agent serves them.
fn from_files(settings: &ServerTlsSettings) -> CommonTlsContext {
    let file = |certificate: &str, key: &str| match certificate {
        "" => from_agent(WORKLOAD_CERTIFICATE),
        certificate => from_agent(&format!("file-cert:{certificate}~{key}")),
    };
    let certificates = match settings.tls_certificates.as_slice() {
        [] => vec![file(&settings.server_certificate, &settings.private_key)],
        many => many.iter().map(|one| file(&one.server_certificate, &one.private_key)).collect(),
    };
    let mut common =
        CommonTlsContext { tls_certificate_sds_secret_configs: certificates, ..Default::default() };
    if checks_clients(settings) {
        let mut checks = validation(settings);
        checks.crl = (!settings.ca_crl.is_empty()).then(|| DataSource {
            specifier: Some(data_source::Specifier::Filename(settings.ca_crl.clone())),
            ..Default::default()
        });
        let roots = match settings.ca_certificates.as_str() {
            "" => from_agent(ROOT_CERTIFICATE),
            path => from_agent(&format!("file-root:{path}")),
        };
        common.validation_context_type = Some(validated_by(checks, roots));
    }
    common
}

fn parameters(context: &Context<'_>, settings: &ServerTlsSettings) -> Option<TlsParameters> {
    let defaults = context.mesh.tls_defaults.clone().unwrap_or_default();
    let own = |own: &[String], default: Vec<String>| match own {
        [] => default,
        own => own.to_vec(),
    };
    let minimum = match (settings.min_protocol_version, defaults.min_protocol_version) {
        (TlsProtocol::TlsAuto, TlsConfigProtocol::Tlsv12) => EnvoyProtocol::TlSv12,
        (TlsProtocol::TlsAuto, TlsConfigProtocol::Tlsv13) => EnvoyProtocol::TlSv13,
        (own, _) => protocol(own),
    };
    let parameters = TlsParameters {
        tls_minimum_protocol_version: minimum.into(),
        tls_maximum_protocol_version: protocol(settings.max_protocol_version).into(),
        cipher_suites: own(&settings.cipher_suites, defaults.cipher_suites),
        ecdh_curves: own(&settings.ecdh_curves, defaults.ecdh_curves),
        ..Default::default()
    };
    (parameters != TlsParameters::default()).then_some(parameters)
}

fn protocol(version: TlsProtocol) -> EnvoyProtocol {
    match version {
        TlsProtocol::TlsAuto => EnvoyProtocol::TlsAuto,
        TlsProtocol::Tlsv10 => EnvoyProtocol::TlSv10,
        TlsProtocol::Tlsv11 => EnvoyProtocol::TlSv11,
        TlsProtocol::Tlsv12 => EnvoyProtocol::TlSv12,
        TlsProtocol::Tlsv13 => EnvoyProtocol::TlSv13,
    }
}

fn owned(list: &[&str]) -> Vec<String> {
    list.iter().map(|item| (*item).to_owned()).collect()
}
