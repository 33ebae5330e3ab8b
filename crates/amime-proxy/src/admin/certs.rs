//! `/certs`: certificates in use.
//!
//! A workload's own certificate comes from its identity. From a bootstrap they
//! stand in TLS contexts and secrets, inline or in files.

use std::time::SystemTime;

use amime_engine::runtime::ResourceDump;
use amime_identity::{CertificateDetails, SubjectAltName, TrustBundle};
use amime_rules::values::data_source;
use amime_xds::TypeUrl;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::{
    DataSource, TransportSocket, data_source::Specifier, transport_socket,
};
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, Secret, TlsCertificate,
    UpstreamTlsContext, common_tls_context::ValidationContextType, secret,
};
use prost::{Message, Name};
use serde_json::{Value, json};

use super::Context;
use super::config_dump::timestamp;

/// Envoy's `envoy.admin.v3.Certificates`.
pub(super) fn certs(context: &Context) -> Value {
    let now = SystemTime::now();
    let mut certificates = own(context, now);
    let dump = context.runtime.dump();
    let in_force = dump.resources.iter().filter(|one| !one.warming);
    certificates.extend(in_force.flat_map(|resource| of_resource(resource, now)));
    json!({ "certificates": certificates })
}

/// The workload's own.
fn own(context: &Context, now: SystemTime) -> Vec<Value> {
    let Some(identity) = &context.identity else { return vec![] };
    let Some(cert) = identity.cert.current() else { return vec![] };
    let roots = identity.roots.current();
    let roots = each(roots.certificates(), "<inline>", now);
    let chain = details(cert.details(), "<inline>", now);
    vec![json!({ "ca_cert": roots, "cert_chain": [chain] })]
}

/// Certificates that a resource brings; what does not decode is shown by
/// `/config_dump`.
fn of_resource(resource: &ResourceDump, now: SystemTime) -> Vec<Value> {
    let body = resource.body.clone();
    match resource.type_url {
        TypeUrl::Listener => {
            let Ok(listener) = Listener::decode(body) else { return vec![] };
            let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
            let sockets = chains.filter_map(|chain| chain.transport_socket.as_ref());
            let contexts = sockets.filter_map(context_of::<DownstreamTlsContext>);
            let common = contexts.filter_map(|context| context.common_tls_context);
            common.map(|common| of_context(&common, now)).collect()
        }
        TypeUrl::Cluster => {
            let Ok(cluster) = Cluster::decode(body) else { return vec![] };
            let others = cluster.transport_socket_matches.iter();
            let others = others.filter_map(|one| one.transport_socket.as_ref());
            let sockets = cluster.transport_socket.iter().chain(others);
            let contexts = sockets.filter_map(context_of::<UpstreamTlsContext>);
            let common = contexts.filter_map(|context| context.common_tls_context);
            common.map(|common| of_context(&common, now)).collect()
        }
        TypeUrl::Secret => match Secret::decode(body).ok().and_then(|secret| secret.r#type) {
            Some(secret::Type::TlsCertificate(certificate)) => {
                vec![json!({ "ca_cert": [], "cert_chain": chain(&certificate, now) })]
            }
            Some(secret::Type::ValidationContext(context)) => {
                vec![json!({ "ca_cert": roots(&context, now), "cert_chain": [] })]
            }
            _ => vec![],
        },
        _ => vec![],
    }
}

fn context_of<M: Message + Name + Default>(socket: &TransportSocket) -> Option<M> {
    let Some(transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else {
        return None;
    };
    let is_it = any.type_url.rsplit('/').next() == Some(M::full_name().as_str());
    is_it.then(|| M::decode(any.value.as_slice()).ok()).flatten()
}

fn of_context(common: &CommonTlsContext, now: SystemTime) -> Value {
    let chains: Vec<_> = common.tls_certificates.iter().flat_map(|one| chain(one, now)).collect();
    let roots = match &common.validation_context_type {
        Some(ValidationContextType::ValidationContext(context)) => roots(context, now),
        Some(ValidationContextType::CombinedValidationContext(both)) => {
            both.default_validation_context.iter().flat_map(|one| roots(one, now)).collect()
        }
        _ => vec![],
    };
    json!({ "ca_cert": roots, "cert_chain": chains })
}

/// The certificate itself; Envoy leaves out those that sign it.
fn chain(certificate: &TlsCertificate, now: SystemTime) -> Vec<Value> {
    let mut all = source(certificate.certificate_chain.as_ref(), now);
    all.truncate(1);
    all
}

fn roots(context: &CertificateValidationContext, now: SystemTime) -> Vec<Value> {
    source(context.trusted_ca.as_ref(), now)
}

fn source(source: Option<&DataSource>, now: SystemTime) -> Vec<Value> {
    let Some(source) = source else { return vec![] };
    let path = match &source.specifier {
        Some(Specifier::Filename(path)) => path.as_str(),
        _ => "<inline>",
    };
    let bundle = data_source(source).ok().and_then(|pem| TrustBundle::from_pem(&pem).ok());
    bundle.map_or_else(Vec::new, |bundle| each(bundle.certificates(), path, now))
}

fn each(
    certificates: &[rustls::pki_types::CertificateDer<'static>],
    path: &str,
    now: SystemTime,
) -> Vec<Value> {
    let all = certificates.iter().filter_map(|one| CertificateDetails::of(one).ok());
    all.map(|one| details(&one, path, now)).collect()
}

fn details(certificate: &CertificateDetails, path: &str, now: SystemTime) -> Value {
    let left = certificate.not_after.duration_since(now).unwrap_or_default();
    let names: Vec<_> = certificate.subject_alt_names.iter().map(name).collect();
    json!({
        "path": path,
        "serial_number": certificate.serial,
        "subject_alt_names": names,
        "days_until_expiration": (left.as_secs() / 86_400).to_string(),
        "valid_from": timestamp(certificate.not_before),
        "expiration_time": timestamp(certificate.not_after),
    })
}

fn name(name: &SubjectAltName) -> Value {
    match name {
        SubjectAltName::Uri(uri) => json!({ "uri": uri }),
        SubjectAltName::Dns(dns) => json!({ "dns": dns }),
        SubjectAltName::Ip(ip) => json!({ "ip_address": ip.to_string() }),
        SubjectAltName::Email(email) => json!({ "email": email }),
        SubjectAltName::Other { oid, value } => json!({ "other": format!("{oid}:{value}") }),
    }
}
