//! SDS: certificates and roots out of Kubernetes Secrets and ConfigMaps.
//!
//! What a proxy may have is decided in `credential`.

use amime_api::k8s::Secret as KubeSecret;
use base64::Engine;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};

use crate::context::Context;
use crate::credential::{self, Credential, Store};
use crate::proto::inline_bytes;
use crate::sds::CA_SUFFIX;

/// Keys of the generic form and of `kubernetes.io/tls`, with that of the
/// revocation status.
const CERTIFICATE_KEYS: [(&str, &str, Option<&str>); 2] =
    [("cert", "key", None), ("tls.crt", "tls.key", Some("tls.ocsp-staple"))];
const ROOT_KEYS: [(&str, &str); 2] = [("cacert", "crl"), ("ca.crt", "ca.crl")];

/// The secret resource of this name; `None` if the proxy may not have it, or
/// there is none of use.
pub(crate) fn build(context: &Context<'_>, name: &str) -> Option<Secret> {
    let credential = Credential::parse(name, &context.proxy.namespace)?;
    if !credential::is_allowed(context, &credential) {
        return None;
    }
    let Credential { namespace, name: object, .. } = &credential;
    let kind = match credential.store {
        Store::ConfigMap => {
            let bare = object.strip_suffix(CA_SUFFIX).unwrap_or(object);
            let map = context.snapshot.config_map(namespace, bare)?;
            let text = |key: &str| map.spec.data.get(key).map(|text| text.clone().into_bytes());
            roots(&text)?
        }
        Store::Secret | Store::GatewaySecret if credential::is_authority(context, &credential) => {
            authority(context, namespace, object)?
        }
        Store::Secret | Store::GatewaySecret => {
            let object = context.snapshot.secret(namespace, object)?;
            certificate(&|key: &str| value(&object.spec, key))?
        }
    };
    Some(Secret { name: name.to_owned(), r#type: Some(kind) })
}

/// Roots in a secret of their own, else beside the certificate.
fn authority(context: &Context<'_>, namespace: &str, name: &str) -> Option<secret::Type> {
    let of = |name: &str| {
        let object = context.snapshot.secret(namespace, name)?;
        roots(&|key: &str| value(&object.spec, key))
    };
    of(name).or_else(|| of(name.strip_suffix(CA_SUFFIX)?))
}

type Lookup<'l> = dyn Fn(&str) -> Option<Vec<u8>> + 'l;

fn certificate(look_up: &Lookup<'_>) -> Option<secret::Type> {
    let found = |(certificate, key, staple): &(&str, &str, Option<&str>)| {
        Some((look_up(certificate)?, look_up(key)?, staple.and_then(look_up)))
    };
    let (chain, key, staple) = CERTIFICATE_KEYS.iter().find_map(found)?;
    Some(secret::Type::TlsCertificate(TlsCertificate {
        certificate_chain: Some(inline_bytes(chain)),
        private_key: Some(inline_bytes(key)),
        ocsp_staple: staple.map(inline_bytes),
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
