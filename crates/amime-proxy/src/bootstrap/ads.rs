//! Discovery settings of a bootstrap: the ADS server as one we can dial.

use amime_identity::LiveCert;
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
use envoy_types::pb::envoy::config::core::v3::{
    ApiConfigSource, api_config_source::ApiType, data_source::Specifier,
    grpc_service::TargetSpecifier,
};
use envoy_types::pb::envoy::config::core::v3::{address, socket_address::PortSpecifier};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    UpstreamTlsContext, common_tls_context::ValidationContextType,
};
use prost::Message;

use super::BootstrapError;
use crate::agent::{Dialer, HostPort};
use crate::dns::Upstreams;

/// How to dial the ADS server; `None` without dynamic resources.
pub(super) fn dialer(bootstrap: &Bootstrap) -> Result<Option<Dialer>, BootstrapError> {
    let Some(dynamic) = &bootstrap.dynamic_resources else { return Ok(None) };
    let Some(ads) = &dynamic.ads_config else { return Ok(None) };
    if ads.api_type() != ApiType::DeltaGrpc {
        return Err(fault(format!("api_type {:?}: only DELTA_GRPC is built in", ads.api_type())));
    }
    let name = cluster_name(ads)?;
    let clusters = bootstrap.static_resources.iter().flat_map(|it| &it.clusters);
    let cluster = clusters.into_iter().find(|cluster| cluster.name == name);
    let cluster = cluster.ok_or_else(|| fault(format!("no static cluster {name}")))?;
    let server = endpoint(cluster).ok_or_else(|| fault(format!("{name} has no endpoint")))?;
    let (roots, san) = tls(cluster)?;
    let resolv_conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    Ok(Some(Dialer {
        server,
        roots,
        san,
        token: None,
        cert: LiveCert::empty(),
        search: vec![],
        upstreams: Upstreams::parse("", &resolv_conf, None),
    }))
}

fn fault(reason: String) -> BootstrapError {
    BootstrapError::Ads { reason }
}

fn cluster_name(ads: &ApiConfigSource) -> Result<&str, BootstrapError> {
    let service = ads.grpc_services.first();
    match service.and_then(|service| service.target_specifier.as_ref()) {
        Some(TargetSpecifier::EnvoyGrpc(grpc)) => Ok(&grpc.cluster_name),
        _ => Err(fault("grpc_services needs an envoy_grpc target".into())),
    }
}

fn endpoint(cluster: &Cluster) -> Option<HostPort> {
    let assignment = cluster.load_assignment.as_ref()?;
    let endpoint = assignment.endpoints.first()?.lb_endpoints.first()?;
    let Some(HostIdentifier::Endpoint(endpoint)) = &endpoint.host_identifier else { return None };
    let Some(address::Address::SocketAddress(socket)) = &endpoint.address.as_ref()?.address else {
        return None;
    };
    let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else { return None };
    Some(HostPort { host: socket.address.clone(), port: u16::try_from(port).ok()? })
}

/// The roots' file and the name to check, if the cluster speaks TLS.
fn tls(cluster: &Cluster) -> Result<(Option<std::path::PathBuf>, Option<String>), BootstrapError> {
    let Some(socket) = &cluster.transport_socket else { return Ok((None, None)) };
    let Some(ConfigType::TypedConfig(config)) = &socket.config_type else {
        return Ok((None, None));
    };
    let context = UpstreamTlsContext::decode(config.value.as_slice())
        .map_err(|_| fault(format!("{}: TLS settings do not decode", cluster.name)))?;
    let common = context.common_tls_context.unwrap_or_default();
    let Some(ValidationContextType::ValidationContext(validation)) = common.validation_context_type
    else {
        return Err(fault(format!("{}: TLS needs a validation_context", cluster.name)));
    };
    match validation.trusted_ca.and_then(|ca| ca.specifier) {
        Some(Specifier::Filename(path)) => {
            Ok((Some(path.into()), Some(context.sni).filter(|sni| !sni.is_empty())))
        }
        _ => Err(fault(format!("{}: trusted_ca must be a file", cluster.name))),
    }
}
