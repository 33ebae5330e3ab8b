//! The header that tells upstreams of the client's certificate.
//!
//! Owns `x-forwarded-client-cert` of a request; what clients may say in it
//! without a certificate is nothing, unless it is always forwarded.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers#x-forwarded-client-cert>

use amime_identity::{CertificateDetails, ShownCertificate, SubjectAltName};
use http::HeaderValue;

use super::names;
use super::serve::HttpConnection;
use amime_config::hcm::{ClientCert, ForwardClientCert};
use amime_rules::head::RequestHead;
use amime_rules::tls_facts::TlsFacts;

/// Edits the field; `present` says whether the client sent one.
pub(super) fn edit(connection: &HttpConnection, head: &mut RequestHead, present: bool) {
    let rules = &connection.config.client_cert;
    let tls = connection.downstream.tls.as_ref();
    let shown = tls.and_then(|tls| Some((tls, tls.peer.as_deref()?)));
    let headers = &mut head.headers;
    let keep = match rules.forward {
        ForwardClientCert::AlwaysForwardOnly => return,
        ForwardClientCert::Sanitize => false,
        ForwardClientCert::SanitizeSet => false,
        ForwardClientCert::ForwardOnly | ForwardClientCert::AppendForward => shown.is_some(),
    };
    if present && !keep {
        headers.remove(names::XFCC);
    }
    let add =
        matches!(rules.forward, ForwardClientCert::AppendForward | ForwardClientCert::SanitizeSet);
    let Some((tls, peer)) = shown.filter(|_| add) else { return };
    let element = element(rules, tls, peer);
    let value = match headers.get(names::XFCC).and_then(|value| value.to_str().ok()) {
        Some(before) if keep && !before.is_empty() => format!("{before},{element}"),
        _ => element,
    };
    if let Ok(value) = HeaderValue::from_str(&value) {
        headers.insert(names::XFCC, value);
    }
}

/// What is said of one connection.
fn element(rules: &ClientCert, tls: &TlsFacts, peer: &ShownCertificate) -> String {
    let mut element = String::new();
    let mut put = |key: &str, value: &str| {
        if !element.is_empty() {
            element.push(';');
        }
        element.push_str(key);
        element.push('=');
        element.push_str(value);
    };
    if let Some(local) = tls.local_uri() {
        put("By", local);
    }
    put("Hash", peer.sha256());
    if rules.cert {
        put("Cert", &format!("\"{}\"", peer.encoded_pem()));
    }
    if rules.chain {
        put("Chain", &format!("\"{}\"", peer.encoded_chain()));
    }
    let details = peer.details();
    if rules.subject {
        put("Subject", &format!("\"{}\"", details.map_or("", |details| &details.subject)));
    }
    if rules.uri {
        put("URI", details.and_then(CertificateDetails::uri).unwrap_or_default());
    }
    if rules.dns {
        let names = details.map_or(&[][..], |details| &details.subject_alt_names);
        for name in names {
            if let SubjectAltName::Dns(dns) = name {
                put("DNS", dns);
            }
        }
    }
    element
}
