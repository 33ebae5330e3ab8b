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

use crate::context::Context;
use crate::names::outbound_cluster;
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
pub(crate) const KUBERNETES_GATEWAY: &str = "kubernetes-gateway://";
pub(crate) const CONFIG_MAP: &str = "configmap://";
const BUILTIN: &str = "builtin://";
const EXTERNAL: &str = "sds://";

/// A secret that the agent serves.
pub(crate) fn from_agent(name: &str) -> SdsSecretConfig {
    // The workload's own certificate is there before anything else works, so
    // it is waited for without limit; a file may be missing for good.
    let own = [WORKLOAD_CERTIFICATE, ROOT_CERTIFICATE].contains(&name);
    let grpc = EnvoyGrpc { cluster_name: AGENT_CLUSTER.to_owned(), ..Default::default() };
    let source = from_service(grpc);
    let initial_fetch_timeout = if own { zero_duration() } else { None };
    let sds_config = Some(ConfigSource { initial_fetch_timeout, ..source });
    SdsSecretConfig { name: name.to_owned(), sds_config }
}

/// The secret service behind a cluster.
fn from_service(grpc: EnvoyGrpc) -> ConfigSource {
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
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(source)),
        ..Default::default()
    }
}

/// The secret behind a `credentialName`.
pub(crate) fn from_credential(context: &Context<'_>, name: &str) -> SdsSecretConfig {
    if let Some(builtin) = name.strip_prefix(BUILTIN) {
        let roots = builtin == CA_SUFFIX;
        return from_agent(if roots { ROOT_CERTIFICATE } else { WORKLOAD_CERTIFICATE });
    }
    let external = name.strip_prefix(EXTERNAL).zip(external_service(context));
    if let Some((own, service)) = external {
        return SdsSecretConfig { name: own.to_owned(), sds_config: Some(from_service(service)) };
    }
    // It may not exist, and must not keep the listener from starting.
    SdsSecretConfig { name: resource_name(name), sds_config: Some(ads_with_timeout()) }
}

/// The first provider of secrets that the mesh settings name, if it exists.
fn external_service(context: &Context<'_>) -> Option<EnvoyGrpc> {
    let provider = context.mesh.extension_providers.iter().find_map(|p| p.sds.as_ref())?;
    let host = provider.service.rsplit('/').next().unwrap_or_default();
    let service = context.service(host)?;
    service.port(provider.port)?;
    Some(EnvoyGrpc {
        cluster_name: outbound_cluster(provider.port, "", &service.hostname),
        authority: host.to_owned(),
        ..Default::default()
    })
}

/// True for a credential that is a secret or config map of the platform's.
pub(crate) fn is_platform_secret(context: &Context<'_>, name: &str) -> bool {
    let external = || name.starts_with(EXTERNAL) && external_service(context).is_some();
    !(name.is_empty() || name.starts_with(BUILTIN) || external())
}

/// Name of the secret resource for a `credentialName`.
pub(crate) fn resource_name(credential: &str) -> String {
    let own = [KUBERNETES, KUBERNETES_GATEWAY, CONFIG_MAP];
    if own.iter().any(|scheme| credential.starts_with(scheme)) {
        return credential.to_owned();
    }
    let name = credential.strip_prefix(EXTERNAL).unwrap_or(credential);
    format!("{KUBERNETES}{name}")
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
        assert_eq!(resource_name("sds://cert"), "kubernetes://cert");
    }
}
