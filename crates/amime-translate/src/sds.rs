//! References to secrets: the workload's own through its agent, those of
//! gateways through the control plane.

use envoy_types::pb::envoy::config::core::v3::api_config_source::ApiType;
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use envoy_types::pb::envoy::config::core::v3::{
    ApiConfigSource, ApiVersion, ConfigSource, GrpcService,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, SdsSecretConfig,
};

use crate::proto::{ads_with_timeout, zero_duration};

/// Cluster of the agent's secret service.
const AGENT_CLUSTER: &str = "sds-grpc";
/// Secret with the workload's certificate.
pub(crate) const WORKLOAD_CERTIFICATE: &str = "default";
/// Secret with the mesh's roots.
pub(crate) const ROOT_CERTIFICATE: &str = "ROOTCA";
/// Suffix of the secret with a credential's CA.
pub(crate) const CA_SUFFIX: &str = "-cacert";

pub(crate) const KUBERNETES: &str = "kubernetes://";
const OTHER_SCHEMES: [&str; 3] = ["configmap://", "kubernetes-gateway://", "sds://"];
const BUILTIN: &str = "builtin://";

/// A secret that the agent serves.
pub(crate) fn from_agent(name: &str) -> SdsSecretConfig {
    // The workload's own certificate is there before anything else works, so
    // it is waited for without limit; a file may be missing for good.
    let own = [WORKLOAD_CERTIFICATE, ROOT_CERTIFICATE].contains(&name);
    let grpc = EnvoyGrpc { cluster_name: AGENT_CLUSTER.to_owned(), ..Default::default() };
    let source = ApiConfigSource {
        api_type: ApiType::Grpc.into(),
        set_node_on_first_message_only: true,
        transport_api_version: ApiVersion::V3.into(),
        grpc_services: vec![GrpcService {
            target_specifier: Some(TargetSpecifier::EnvoyGrpc(grpc)),
            ..Default::default()
        }],
        ..Default::default()
    };
    SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(ConfigSource {
            initial_fetch_timeout: if own { zero_duration() } else { None },
            resource_api_version: ApiVersion::V3.into(),
            config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(source)),
            ..Default::default()
        }),
    }
}

/// The secret behind a `credentialName`.
pub(crate) fn from_credential(name: &str) -> SdsSecretConfig {
    match name.strip_prefix(BUILTIN) {
        Some("") => from_agent(WORKLOAD_CERTIFICATE),
        Some(CA_SUFFIX) => from_agent(ROOT_CERTIFICATE),
        // It may not exist, and must not keep the listener from starting.
        _ => SdsSecretConfig { name: resource_name(name), sds_config: Some(ads_with_timeout()) },
    }
}

/// Name of the secret resource for a `credentialName`.
pub(crate) fn resource_name(credential: &str) -> String {
    if credential.starts_with(KUBERNETES) {
        return credential.to_owned();
    }
    if let Some(external) = credential.strip_prefix("sds://") {
        return format!("{KUBERNETES}{external}");
    }
    if OTHER_SCHEMES.iter().any(|scheme| credential.starts_with(scheme)) {
        return credential.to_owned();
    }
    format!("{KUBERNETES}{credential}")
}

/// Validation against the roots in a secret, with the checks of `context`.
pub(crate) fn validated_by(
    context: CertificateValidationContext,
    secret: SdsSecretConfig,
) -> ValidationContextType {
    ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
        default_validation_context: Some(context),
        validation_context_sds_secret_config: Some(secret),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_kubernetes_secrets_by_default() {
        assert_eq!(resource_name("cert"), "kubernetes://cert");
        assert_eq!(resource_name("kubernetes://ns/cert"), "kubernetes://ns/cert");
        assert_eq!(resource_name("configmap://ns/ca"), "configmap://ns/ca");
        assert_eq!(from_credential("builtin://-cacert").name, "ROOTCA");
    }
}
