//! `/certs`: certificates in use.

use std::time::SystemTime;

use amime_identity::{CertificateDetails, SubjectAltName};
use serde_json::{Value, json};

use super::Context;
use super::config_dump::timestamp;

/// Envoy's `envoy.admin.v3.Certificates`.
pub(super) fn certs(context: &Context) -> Value {
    let Some(identity) = &context.identity else { return json!({ "certificates": [] }) };
    let Some(cert) = identity.cert.current() else { return json!({ "certificates": [] }) };
    let now = SystemTime::now();
    let roots = identity.roots.current();
    let roots: Vec<_> = roots
        .certificates()
        .iter()
        .filter_map(|root| CertificateDetails::of(root).ok())
        .map(|root| details(&root, now))
        .collect();
    let chain = details(cert.details(), now);
    json!({ "certificates": [{ "ca_cert": roots, "cert_chain": [chain] }] })
}

fn details(certificate: &CertificateDetails, now: SystemTime) -> Value {
    let left = certificate.not_after.duration_since(now).unwrap_or_default();
    let names: Vec<_> = certificate.subject_alt_names.iter().map(name).collect();
    json!({
        "path": "<inline>",
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
    }
}
