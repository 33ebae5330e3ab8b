//! Network filters for connections that are proxied as bytes.

use amime_api::networking::{DestinationRule, RouteDestination, TunnelSettings};
use amime_core::{Duration, Protocol};
use amime_model::{Port, Service};
use envoy_types::pb::envoy::config::listener::v3::Filter;
use envoy_types::pb::envoy::extensions::filters::network::mongo_proxy::v3::MongoProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::weighted_cluster::ClusterWeight;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, TunnelingConfig, WeightedCluster,
};
use envoy_types::pb::envoy::r#type::v3::HashPolicy;
use envoy_types::pb::envoy::r#type::v3::hash_policy::{PolicySpecifier, SourceIp};
use envoy_types::pb::google::protobuf::Duration as EnvoyDuration;

use super::access_log;
use crate::context::{Context, Direction};
use crate::dynamic_dns;
use crate::filters::{ListenerClass, TCP_PROXY, network, tcp_metadata_exchange, tcp_stats};
use crate::names;
use crate::proto::duration;
use crate::route::destination_cluster;

const MONGO_PROXY: &str = "envoy.filters.network.mongo_proxy";

/// Idle timeout that the proxy asks for itself.
pub(crate) fn idle_timeout(context: &Context<'_>) -> Option<EnvoyDuration> {
    let own: Duration = context.proxy.text("IDLE_TIMEOUT").parse().ok()?;
    Some(duration(own.std()))
}

/// Filters that hand connections to one cluster.
pub(crate) fn to_cluster(
    context: &Context<'_>,
    class: ListenerClass,
    cluster: &str,
    prefix: &str,
) -> Vec<Filter> {
    let proxy = TcpProxy { idle_timeout: idle_timeout(context), ..bare(context, cluster, prefix) };
    stack(context, class, &proxy)
}

/// The same without access log and timeouts, for what goes nowhere.
pub(crate) fn to_nowhere(
    context: &Context<'_>,
    class: ListenerClass,
    cluster: &str,
) -> Vec<Filter> {
    let proxy = TcpProxy { access_log: Vec::new(), ..bare(context, cluster, cluster) };
    stack(context, class, &proxy)
}

/// Filters for the cluster of a service, with the policy of its rule.
pub(crate) fn to_service(
    context: &Context<'_>,
    cluster: &str,
    service: &Service,
    port: &Port,
) -> Vec<Filter> {
    let rule = context.destination_rule(&service.hostname, Direction::Outbound);
    let rule = rule.map(|rule| rule.spec());
    // Its statistics are named after the number, whatever the port's name.
    let unnamed = Port { name: String::new(), ..port.clone() };
    let prefix = stat_name(context, service, "", &unnamed);
    let mut proxy = bare(context, cluster, prefix.as_deref().unwrap_or(cluster));
    apply_rule(context, &mut proxy, rule, "");
    let mut filters = stack(context, ListenerClass::outbound_of(context.proxy), &proxy);
    filters.splice(0..0, mongo(context, port.protocol, &proxy.stat_prefix));
    resolved(context, filters, service, port.number)
}

/// Name of the statistics of a service's port, if the mesh gives them one.
fn stat_name(
    context: &Context<'_>,
    service: &Service,
    subset: &str,
    port: &Port,
) -> Option<String> {
    names::stat_name(&context.mesh.outbound_cluster_stat_name, service, subset, port, 0)
}

/// The filter that counts what MongoDB is asked, where there is such a filter.
pub(crate) fn mongo(context: &Context<'_>, protocol: Protocol, prefix: &str) -> Option<Filter> {
    let wanted = protocol == Protocol::Mongo && context.proxy.has_extension(MONGO_PROXY);
    let config = MongoProxy { stat_prefix: prefix.to_owned(), ..Default::default() };
    wanted.then(|| network(MONGO_PROXY, &config))
}

/// The filters with one before the last that resolves server names, if the
/// service wants them resolved.
fn resolved(
    context: &Context<'_>,
    mut filters: Vec<Filter>,
    service: &Service,
    port: u32,
) -> Vec<Filter> {
    let resolver = dynamic_dns::sni_filter(context, service, port);
    let at = filters.len().saturating_sub(1);
    filters.splice(at..at, resolver);
    filters
}

/// Filters for the destinations of a TCP or TLS rule.
pub(crate) fn to_destinations(
    context: &Context<'_>,
    routes: &[RouteDestination],
    port: &Port,
    rule_name: &str,
    exchanges_metadata: bool,
) -> Vec<Filter> {
    let Some(first) = routes.first() else { return Vec::new() };
    let rule = context
        .service(&first.destination.host)
        .and_then(|service| context.destination_rule(&service.hostname, Direction::Outbound))
        .map(|rule| rule.spec());
    let cluster = |route: &RouteDestination| {
        let service = context.service(&route.destination.host);
        destination_cluster(&route.destination, service.map(AsRef::as_ref), port.number)
    };
    let proxy = if let [only] = routes {
        let name = cluster(only);
        let subset = &only.destination.subset;
        let service = context.service(&only.destination.host);
        let prefix = service.and_then(|service| stat_name(context, service, subset, port));
        let mut proxy = bare(context, &name, prefix.as_deref().unwrap_or(&name));
        apply_rule(context, &mut proxy, rule, &only.destination.subset);
        proxy
    } else {
        let weighted = routes.iter().filter_map(|route| {
            let weight = u32::try_from(route.weight).ok().filter(|weight| *weight > 0)?;
            Some(ClusterWeight { name: cluster(route), weight, metadata_match: None })
        });
        let clusters: Vec<ClusterWeight> = weighted.collect();
        if clusters.is_empty() {
            return Vec::new();
        }
        let specifier = ClusterSpecifier::WeightedClusters(WeightedCluster { clusters });
        let mut proxy =
            TcpProxy { cluster_specifier: Some(specifier), ..bare(context, "", rule_name) };
        apply_rule(context, &mut proxy, rule, "");
        proxy
    };
    let exchange = tcp_metadata_exchange(context.proxy).filter(|_| exchanges_metadata);
    let mut own = stack(context, ListenerClass::outbound_of(context.proxy), &proxy);
    if let (true, Some(service)) = (routes.len() == 1, context.service(&first.destination.host)) {
        own = resolved(context, own, service, port.number);
    }
    own.splice(0..0, mongo(context, port.protocol, &proxy.stat_prefix));
    exchange.into_iter().chain(own).collect()
}

fn bare(context: &Context<'_>, cluster: &str, prefix: &str) -> TcpProxy {
    TcpProxy {
        stat_prefix: prefix.to_owned(),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        access_log: access_log::of_traffic(context.mesh),
        ..Default::default()
    }
}

fn stack(context: &Context<'_>, class: ListenerClass, proxy: &TcpProxy) -> Vec<Filter> {
    let stats = tcp_stats(context.proxy, class);
    stats.into_iter().chain([network(TCP_PROXY, proxy)]).collect()
}

fn apply_rule(
    context: &Context<'_>,
    proxy: &mut TcpProxy,
    rule: Option<&DestinationRule>,
    subset: &str,
) {
    let policy = rule.and_then(|rule| rule.traffic_policy.as_ref());
    let tcp = policy.and_then(|p| p.connection_pool.as_ref()).and_then(|pool| pool.tcp.as_ref());
    let idle = tcp.and_then(|tcp| tcp.idle_timeout).map(|idle| duration(idle.std()));
    proxy.idle_timeout = idle.or_else(|| idle_timeout(context));
    let life = tcp.and_then(|tcp| tcp.max_connection_duration);
    proxy.max_downstream_connection_duration = life.map(|life| duration(life.std()));
    let Some(rule) = rule else { return };
    if hashes_source(rule, subset) {
        proxy.hash_policy =
            vec![HashPolicy { policy_specifier: Some(PolicySpecifier::SourceIp(SourceIp {})) }];
    }
    proxy.tunneling_config = tunnel(rule, subset).map(tunneling);
}

fn hashes_source(rule: &DestinationRule, subset: &str) -> bool {
    let own = rule.subsets.iter().find(|own| own.name == subset);
    let own = own.and_then(|own| own.traffic_policy.as_ref()?.load_balancer.as_ref());
    let whole = rule.traffic_policy.as_ref().and_then(|policy| policy.load_balancer.as_ref());
    let hash = own.or(whole).and_then(|lb| lb.consistent_hash.as_ref());
    hash.is_some_and(|hash| hash.use_source_ip == Some(true))
}

fn tunnel<'a>(rule: &'a DestinationRule, subset: &str) -> Option<&'a TunnelSettings> {
    let own = rule.subsets.iter().find(|own| !subset.is_empty() && own.name == subset);
    let own = own.and_then(|own| own.traffic_policy.as_ref()?.tunnel.as_ref());
    own.or_else(|| rule.traffic_policy.as_ref()?.tunnel.as_ref())
}

fn tunneling(settings: &TunnelSettings) -> TunnelingConfig {
    let host = crate::names::bracketed(&settings.target_host);
    TunnelingConfig {
        hostname: format!("{host}:{}", settings.target_port),
        use_post: settings.protocol.eq_ignore_ascii_case("POST"),
        ..Default::default()
    }
}
