//! SDS: certificates of gateways out of Kubernetes Secrets.
//!
//! Invariant: a proxy gets secrets of its own namespace only.

use std::collections::BTreeSet;

use amime_api::k8s::Secret as KubeSecret;
use amime_api::networking::ServerTlsMode;
use base64::Engine;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};

use crate::context::Context;
use crate::proto::inline_bytes;
use crate::proxy::ProxyKind;
use crate::sds::{CA_SUFFIX, KUBERNETES, resource_name};

const CONFIG_MAP: &str = "configmap://";

/// Keys of the generic form and of `kubernetes.io/tls`.
const CERTIFICATE_KEYS: [(&str, &str); 2] = [("cert", "key"), ("tls.crt", "tls.key")];
const ROOT_KEYS: [(&str, &str); 2] = [("cacert", "crl"), ("ca.crt", "ca.crl")];

/// Names of the secrets that the servers of a gateway refer to.
pub(crate) fn names(context: &Context<'_>) -> Vec<String> {
    if context.proxy.kind != ProxyKind::Router {
        return Vec::new();
    }
    let mut names = BTreeSet::new();
    for server in context.gateway().all_servers() {
        let Some(tls) = &server.spec.tls else { continue };
        let single = std::iter::once(&tls.credential_name).filter(|name| !name.is_empty());
        for name in single.chain(&tls.credential_names) {
            names.insert(resource_name(name));
            let ca = match tls.ca_cert_credential_name.as_str() {
                "" => format!("{name}{CA_SUFFIX}"),
                own => own.to_owned(),
            };
            if matches!(tls.mode, ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual) {
                names.insert(resource_name(&ca));
            }
        }
    }
    names.into_iter().collect()
}

/// The secret resource of this name; `None` if the proxy may not have it, or
/// there is none of use.
pub(crate) fn build(context: &Context<'_>, name: &str) -> Option<Secret> {
    if context.proxy.kind != ProxyKind::Router {
        return None;
    }
    let kind = if let Some(path) = name.strip_prefix(CONFIG_MAP) {
        let (namespace, object) = own_path(context, path)?;
        let map = context.snapshot.config_map(namespace, object)?;
        let text = |key: &str| map.spec.data.get(key).map(|text| text.clone().into_bytes());
        roots(&text)?
    } else {
        let (namespace, object) = own_path(context, name.strip_prefix(KUBERNETES)?)?;
        match object.strip_suffix(CA_SUFFIX) {
            Some(base) => authority(context, namespace, object, base)?,
            None => {
                let object = context.snapshot.secret(namespace, object)?;
                certificate(&|key: &str| value(&object.spec, key))?
            }
        }
    };
    Some(Secret { name: name.to_owned(), r#type: Some(kind) })
}

/// Namespace and name; without a namespace the proxy's own is meant.
fn own_path<'p>(context: &'p Context<'_>, path: &'p str) -> Option<(&'p str, &'p str)> {
    let own = context.proxy.namespace.as_str();
    match path.split_once('/') {
        Some((namespace, name)) => (namespace == own).then_some((namespace, name)),
        None => Some((own, path)),
    }
}

/// Roots in a secret of their own, else beside the certificate.
fn authority(
    context: &Context<'_>,
    namespace: &str,
    own: &str,
    beside: &str,
) -> Option<secret::Type> {
    let of = |name: &str| {
        let object = context.snapshot.secret(namespace, name)?;
        roots(&|key: &str| value(&object.spec, key))
    };
    of(own).or_else(|| of(beside))
}

type Lookup<'l> = dyn Fn(&str) -> Option<Vec<u8>> + 'l;

fn certificate(look_up: &Lookup<'_>) -> Option<secret::Type> {
    let pair = |(certificate, key): &(&str, &str)| Some((look_up(certificate)?, look_up(key)?));
    let (chain, key) = CERTIFICATE_KEYS.iter().find_map(pair)?;
    Some(secret::Type::TlsCertificate(TlsCertificate {
        certificate_chain: Some(inline_bytes(chain)),
        private_key: Some(inline_bytes(key)),
        ..Default::default()
    }))
}

fn roots(look_up: &Lookup<'_>) -> Option<secret::Type> {
    let pair = |(roots, crl): &(&str, &str)| Some((look_up(roots)?, look_up(crl)));
    let (roots, crl) = ROOT_KEYS.iter().find_map(pair)?;
    Some(secret::Type::ValidationContext(CertificateValidationContext {
        trusted_ca: Some(inline_bytes(roots)),
        crl: crl.map(inline_bytes),
        ..Default::default()
    }))
}

/// A value of a secret; `None` if absent, empty or not base64.
fn value(secret: &KubeSecret, key: &str) -> Option<Vec<u8>> {
    let bytes = match secret.string_data.get(key) {
        Some(text) => text.clone().into_bytes(),
        None => {
            let encoded: String =
                secret.data.get(key)?.chars().filter(|c| !c.is_whitespace()).collect();
            base64::engine::general_purpose::STANDARD.decode(encoded).ok()?
        }
    };
    (!bytes.is_empty()).then_some(bytes)
}
