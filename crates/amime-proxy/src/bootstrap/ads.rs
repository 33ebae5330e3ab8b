//! The ADS server of a bootstrap, as one that we can dial.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use amime_config::secrets::compile_certificate;
use amime_identity::LiveCert;
use amime_rules::Faults;
use amime_xds::client::Variant;
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
use envoy_types::pb::envoy::config::core::v3::{
    ApiConfigSource, ApiVersion, api_config_source::ApiType, data_source::Specifier,
    grpc_service::TargetSpecifier,
};
use envoy_types::pb::envoy::config::core::v3::{address, socket_address::PortSpecifier};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, UpstreamTlsContext,
    common_tls_context::ValidationContextType,
};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use prost::{Message, Name};

use crate::agent::{Channel, DialError, Dialer, HostPort};
use crate::dns::Upstreams;

/// How to reach the control plane.
#[derive(Debug)]
pub(super) struct AdsServer {
    /// One for each endpoint of its cluster.
    dialers: Vec<Dialer>,
    next: AtomicUsize,
    pub(super) variant: Variant,
}

impl AdsServer {
    /// Connects to one endpoint, to the next one each time.
    pub(super) async fn dial(&self) -> Result<Channel, DialError> {
        let index = self.next.fetch_add(1, Ordering::Relaxed) % self.dialers.len().max(1);
        self.dialers[index].dial().await
    }
}

/// The ADS server; `None` without one, or with a fault.
pub(super) fn server(bootstrap: &Bootstrap, faults: &mut Faults) -> Option<AdsServer> {
    let ads = bootstrap.dynamic_resources.as_ref()?.ads_config.as_ref()?;
    faults.within("dynamic_resources.ads_config", |faults| {
        let variant = variant(ads, faults);
        let name = cluster_name(ads, faults)?;
        let clusters = bootstrap.static_resources.iter().flat_map(|it| &it.clusters);
        let Some(cluster) = clusters.into_iter().find(|cluster| cluster.name == name) else {
            let field = "grpc_services[0].envoy_grpc.cluster_name";
            faults.reject(field, format!("no static cluster is named {name}"));
            return None;
        };
        let dialers = faults.within(format!("(cluster {name})"), |it| dialers(cluster, it));
        Some(AdsServer { dialers: dialers?, next: AtomicUsize::new(0), variant: variant? })
    })
}

fn variant(ads: &ApiConfigSource, faults: &mut Faults) -> Option<Variant> {
    if ads.transport_api_version() != ApiVersion::V3 {
        faults.reject("transport_api_version", "only V3 is spoken");
    }
    match ads.api_type() {
        ApiType::DeltaGrpc | ApiType::AggregatedDeltaGrpc => Some(Variant::Delta),
        ApiType::Grpc | ApiType::AggregatedGrpc => Some(Variant::StateOfTheWorld),
        other => {
            let reason =
                format!("{} is not supported; use GRPC or DELTA_GRPC", other.as_str_name());
            faults.reject("api_type", reason);
            None
        }
    }
}

fn cluster_name<'a>(ads: &'a ApiConfigSource, faults: &mut Faults) -> Option<&'a str> {
    faults.ignore_if(ads.grpc_services.len() > 1, "grpc_services[1]");
    let service = ads.grpc_services.first();
    match service.and_then(|service| service.target_specifier.as_ref()) {
        Some(TargetSpecifier::EnvoyGrpc(grpc)) => Some(&grpc.cluster_name),
        Some(TargetSpecifier::GoogleGrpc(_)) => {
            faults.reject("grpc_services[0].google_grpc", "not supported; use envoy_grpc");
            None
        }
        None => {
            faults.reject("grpc_services", "needs an envoy_grpc target");
            None
        }
    }
}

fn dialers(cluster: &Cluster, faults: &mut Faults) -> Option<Vec<Dialer>> {
    let servers = endpoints(cluster);
    if servers.is_empty() {
        faults.reject("load_assignment", "has no endpoint with an address and a port");
        return None;
    }
    let tls = tls(cluster, faults)?;
    let resolv_conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let dialer = |server| Dialer {
        server,
        roots: tls.roots.clone(),
        san: tls.san.clone(),
        token: None,
        cert: tls.cert.clone(),
        search: vec![],
        upstreams: Upstreams::parse("", &resolv_conf, None),
    };
    Some(servers.into_iter().map(dialer).collect())
}

fn endpoints(cluster: &Cluster) -> Vec<HostPort> {
    let localities = cluster.load_assignment.iter().flat_map(|it| &it.endpoints);
    let endpoints = localities.flat_map(|locality| &locality.lb_endpoints);
    endpoints
        .filter_map(|one| {
            let Some(HostIdentifier::Endpoint(endpoint)) = &one.host_identifier else {
                return None;
            };
            let Some(address::Address::SocketAddress(socket)) = &endpoint.address.as_ref()?.address
            else {
                return None;
            };
            let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else { return None };
            Some(HostPort { host: socket.address.clone(), port: u16::try_from(port).ok()? })
        })
        .collect()
}

/// TLS towards the control plane; no roots: none.
struct Tls {
    roots: Option<PathBuf>,
    san: Option<String>,
    cert: Arc<LiveCert>,
}

fn tls(cluster: &Cluster, faults: &mut Faults) -> Option<Tls> {
    let plain = Tls { roots: None, san: None, cert: LiveCert::empty() };
    let Some(socket) = &cluster.transport_socket else { return Some(plain) };
    let Some(ConfigType::TypedConfig(config)) = &socket.config_type else { return Some(plain) };
    if config.type_url.ends_with(&RawBuffer::full_name()) {
        return Some(plain);
    }
    faults.within("transport_socket.typed_config", |faults| {
        if !config.type_url.ends_with(&UpstreamTlsContext::full_name()) {
            faults.reject("", format!("{} is not supported", config.type_url));
            return None;
        }
        let Ok(context) = UpstreamTlsContext::decode(config.value.as_slice()) else {
            faults.reject("", "does not decode");
            return None;
        };
        let common = context.common_tls_context.unwrap_or_default();
        let sni = Some(context.sni).filter(|sni| !sni.is_empty());
        faults.within("common_tls_context", |faults| {
            let cert = client_certificate(&common, faults)?;
            let (roots, san) = validation(&common, faults)?;
            Some(Tls { roots: Some(roots), san: san.or(sni), cert })
        })
    })
}

fn client_certificate(common: &CommonTlsContext, faults: &mut Faults) -> Option<Arc<LiveCert>> {
    if !common.tls_certificate_sds_secret_configs.is_empty() {
        faults.reject("tls_certificate_sds_secret_configs", "not supported for this cluster");
        return None;
    }
    let Some(certificate) = common.tls_certificates.first() else { return Some(LiveCert::empty()) };
    faults.within("tls_certificates[0]", |faults| {
        compile_certificate(certificate, faults).map(LiveCert::new)
    })
}

/// The roots' file and the name that the server must have.
fn validation(common: &CommonTlsContext, faults: &mut Faults) -> Option<(PathBuf, Option<String>)> {
    let Some(ValidationContextType::ValidationContext(context)) = &common.validation_context_type
    else {
        faults.reject("validation_context", "missing; without it any server would be trusted");
        return None;
    };
    faults.within("validation_context", |faults| {
        let san = server_name(context, faults)?;
        match context.trusted_ca.as_ref().and_then(|ca| ca.specifier.as_ref()) {
            Some(Specifier::Filename(path)) => Some((path.into(), san)),
            _ => {
                faults.reject("trusted_ca", "must be a file");
                None
            }
        }
    })
}

fn server_name(
    context: &CertificateValidationContext,
    faults: &mut Faults,
) -> Option<Option<String>> {
    let pattern = |one: &Option<_>| match one {
        Some(envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher {
            match_pattern: Some(MatchPattern::Exact(name)),
            ..
        }) => Some(name.clone()),
        _ => None,
    };
    match context.match_typed_subject_alt_names.as_slice() {
        [] => Some(None),
        [one] if pattern(&one.matcher).is_some() => Some(pattern(&one.matcher)),
        _ => {
            faults.reject("match_typed_subject_alt_names", "only one exact name is supported");
            None
        }
    }
}
