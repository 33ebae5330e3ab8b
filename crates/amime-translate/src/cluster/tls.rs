//! TLS towards upstreams: what a rule asks for, or mutual TLS by itself
//! between mesh workloads.

use std::collections::BTreeMap;

use amime_api::networking::{ClientTlsMode, ClientTlsSettings};
use amime_model::{MtlsMode, Registry};
use envoy_types::pb::envoy::config::cluster::v3::cluster::{DiscoveryType, TransportSocketMatch};
use envoy_types::pb::envoy::config::core::v3::{DataSource, TransportSocket, data_source};
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, TlsParameters, UpstreamTlsContext,
};

use super::Draft;
use super::outbound::discovery_type;
use super::policy::ClusterPolicy;
use crate::context::Context;
use crate::proto::{exact, string_value, structure, transport_socket};
use crate::proxy::ProxyKind;
use crate::sds::{
    CA_SUFFIX, ROOT_CERTIFICATE, WORKLOAD_CERTIFICATE, from_agent, from_credential, validated_by,
};

const TLS_SOCKET: &str = "envoy.transport_sockets.tls";
const RAW_BUFFER_SOCKET: &str = "envoy.transport_sockets.raw_buffer";

/// Transport socket without TLS.
pub(super) fn raw_buffer() -> TransportSocket {
    transport_socket(RAW_BUFFER_SOCKET, &RawBuffer::default())
}

/// Sets the cluster's transport sockets.
pub(super) fn apply(context: &Context<'_>, draft: &mut Draft, policy: &ClusterPolicy<'_>) {
    let Some((settings, automatic)) = effective(context, policy) else { return };
    let Some(tls) = upstream_context(context, draft, policy, &settings) else { return };
    let socket = transport_socket(TLS_SOCKET, &tls);
    let original_dst = Some(discovery_type(DiscoveryType::OriginalDst));
    if !automatic || draft.cluster.cluster_discovery_type == original_dst {
        draft.cluster.transport_socket = Some(socket);
        return;
    }
    // Endpoint by endpoint: mutual TLS for those that have a proxy.
    let istio = BTreeMap::from([("tlsMode".to_owned(), string_value("istio"))]);
    draft.cluster.transport_socket_matches = vec![
        TransportSocketMatch {
            name: "tlsMode-istio".to_owned(),
            r#match: Some(structure(istio)),
            transport_socket: Some(socket),
        },
        TransportSocketMatch {
            name: "tlsMode-disabled".to_owned(),
            r#match: Some(structure(BTreeMap::new())),
            transport_socket: Some(raw_buffer()),
        },
    ];
}

/// TLS that the mesh wants for a cluster of no service.
pub(super) fn originate(context: &Context<'_>, draft: &mut Draft, settings: &ClientTlsSettings) {
    let policy = ClusterPolicy {
        policy: None,
        port: None,
        service: None,
        sni: String::new(),
        terminates: true,
        assumed_mtls: None,
        selects_workloads: false,
    };
    let tls = upstream_context(context, draft, &policy, settings);
    draft.cluster.transport_socket = tls.map(|tls| transport_socket(TLS_SOCKET, &tls));
}

/// The settings that hold, and whether nobody asked for them.
fn effective(
    context: &Context<'_>,
    policy: &ClusterPolicy<'_>,
) -> Option<(ClientTlsSettings, bool)> {
    let own = policy.policy.and_then(|policy| policy.tls.as_ref());
    let accounts =
        || policy.service.map(|s| context.snapshot.service_accounts(s)).unwrap_or_default();
    if let Some(own) = own {
        let mut settings = own.clone();
        if own.mode == ClientTlsMode::IstioMutual {
            if own.sni.is_empty() {
                settings.sni.clone_from(&policy.sni);
            }
            if own.subject_alt_names.is_empty() {
                settings.subject_alt_names = accounts();
            }
        }
        return Some((settings, false));
    }
    let assumed = matches!(policy.assumed_mtls, Some(MtlsMode::Permissive | MtlsMode::Strict));
    if !assumed || context.mesh.enable_auto_mtls == Some(false) {
        return None;
    }
    let settings = ClientTlsSettings {
        mode: ClientTlsMode::IstioMutual,
        subject_alt_names: accounts(),
        sni: policy.sni.clone(),
        ..Default::default()
    };
    Some((settings, true))
}

fn upstream_context(
    context: &Context<'_>,
    draft: &mut Draft,
    policy: &ClusterPolicy<'_>,
    settings: &ClientTlsSettings,
) -> Option<UpstreamTlsContext> {
    let common = match settings.mode {
        ClientTlsMode::Disable => return None,
        ClientTlsMode::IstioMutual => {
            if draft.dynamic {
                name_by_request(draft, settings);
            }
            mesh_context(draft, settings)
        }
        ClientTlsMode::Simple | ClientTlsMode::Mutual => {
            // A credential that every sidecar would have to be allowed to read
            // is used by selected workloads only.
            let privileged = !settings.credential_name.is_empty()
                && !settings.credential_name.starts_with("configmap://");
            let sidecar = context.proxy.kind == ProxyKind::Sidecar;
            if privileged && sidecar && !policy.selects_workloads {
                return None;
            }
            foreign_context(context, draft, policy, settings)?
        }
    };
    let sni = settings.sni.clone();
    Some(UpstreamTlsContext { common_tls_context: Some(common), sni, ..Default::default() })
}

fn parameters() -> TlsParameters {
    TlsParameters {
        tls_minimum_protocol_version: TlsProtocol::TlSv12.into(),
        tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
        ..Default::default()
    }
}

/// Mutual TLS with the workload's own identity.
fn mesh_context(draft: &mut Draft, settings: &ClientTlsSettings) -> CommonTlsContext {
    let alpn: &[&str] = match draft.is_http2() {
        true => &["istio-peer-exchange", "istio", "h2"],
        false => &["istio-peer-exchange", "istio"],
    };
    let validation = subject_names(settings);
    CommonTlsContext {
        tls_params: Some(parameters()),
        tls_certificate_sds_secret_configs: vec![from_agent(WORKLOAD_CERTIFICATE)],
        validation_context_type: Some(validated_by(validation, from_agent(ROOT_CERTIFICATE))),
        alpn_protocols: alpn.iter().map(|protocol| (*protocol).to_owned()).collect(),
        ..Default::default()
    }
}

#[expect(deprecated, reason = "matches any kind of name, which the typed matchers cannot")]
fn subject_names(settings: &ClientTlsSettings) -> CertificateValidationContext {
    CertificateValidationContext {
        match_subject_alt_names: settings.subject_alt_names.iter().map(|n| exact(n)).collect(),
        ..Default::default()
    }
}

/// Takes the server's name from the request, where none is given, and has the
/// server prove it.
fn name_by_request(draft: &mut Draft, settings: &ClientTlsSettings) {
    let by_request = settings.sni.is_empty();
    if by_request {
        draft.upstream().auto_sni = true;
    }
    let unnamed = by_request && settings.subject_alt_names.is_empty();
    if (draft.dynamic || unnamed) && settings.insecure_skip_verify != Some(true) {
        draft.upstream().auto_san_validation = true;
    }
}

/// TLS with a server that is none of the mesh's.
fn foreign_context(
    context: &Context<'_>,
    draft: &mut Draft,
    policy: &ClusterPolicy<'_>,
    settings: &ClientTlsSettings,
) -> Option<CommonTlsContext> {
    let skip = settings.insecure_skip_verify == Some(true);
    name_by_request(draft, settings);
    let mut settings = settings.clone();
    let external = policy.service.filter(|service| service.registry == Registry::External);
    if let Some(service) = external.filter(|_| settings.subject_alt_names.is_empty()) {
        settings.subject_alt_names = context.snapshot.service_accounts(service);
    }
    let mut common = CommonTlsContext { tls_params: Some(parameters()), ..Default::default() };
    if settings.credential_name.is_empty() {
        from_files(&mut common, &settings, skip)?;
    } else {
        if settings.mode == ClientTlsMode::Mutual {
            common.tls_certificate_sds_secret_configs =
                vec![from_credential(context, &settings.credential_name)];
        }
        if !skip {
            let ca = from_credential(context, &format!("{}{CA_SUFFIX}", settings.credential_name));
            common.validation_context_type = Some(validated_by(subject_names(&settings), ca));
        }
    }
    if let Some(defaults) = &context.mesh.tls_defaults {
        let parameters = common.tls_params.get_or_insert_default();
        parameters.ecdh_curves.clone_from(&defaults.ecdh_curves);
        parameters.cipher_suites.clone_from(&defaults.cipher_suites);
    }
    if draft.is_http2() {
        common.alpn_protocols = vec!["h2".to_owned()];
    }
    Some(common)
}

/// Certificates that are files in the workload; its agent serves them.
fn from_files(
    common: &mut CommonTlsContext,
    settings: &ClientTlsSettings,
    skip: bool,
) -> Option<()> {
    if settings.mode == ClientTlsMode::Mutual {
        if settings.client_certificate.is_empty() || settings.private_key.is_empty() {
            return None;
        }
        let name = format!("file-cert:{}~{}", settings.client_certificate, settings.private_key);
        common.tls_certificate_sds_secret_configs = vec![from_agent(&name)];
    }
    let none = ValidationContextType::ValidationContext(CertificateValidationContext::default());
    common.validation_context_type = Some(match skip {
        true => none,
        false => {
            let roots = match settings.ca_certificates.as_str() {
                "" => "system",
                path => path,
            };
            let mut validation = subject_names(settings);
            validation.crl = (!settings.ca_crl.is_empty()).then(|| DataSource {
                specifier: Some(data_source::Specifier::Filename(settings.ca_crl.clone())),
                ..Default::default()
            });
            validated_by(validation, from_agent(&format!("file-root:{roots}")))
        }
    });
    Some(())
}
