//! Clusters that belong to no service.

use std::time::Duration;

use amime_api::networking::{ClientTlsMode, ConnectionPoolSettings};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, LbPolicy,
};
use envoy_types::pb::envoy::config::core::v3::{BindConfig, ExtraSourceAddress};

use super::{Draft, downstream, policy, tls};
use crate::context::Context;
use crate::dynamic_dns;
use crate::filters::cluster_metadata_exchange;
use crate::names::{
    BLACK_HOLE_CLUSTER, DYNAMIC_DNS_CLUSTER, INBOUND_PASSTHROUGH_CLUSTER, PASSTHROUGH_CLUSTER,
    stat_prefix,
};
use crate::origin::{fields, mesh_path};
use crate::proto::{duration, socket_address};

/// Idle time after which connections to unknown destinations are closed.
const PASSTHROUGH_IDLE: Duration = Duration::from_secs(300);
/// Source address of connections to the workload itself, so that the
/// redirection leaves them alone.
const INBOUND_SOURCE_V4: &str = "127.0.0.6";
const INBOUND_SOURCE_V6: &str = "::6";

/// The cluster that drops everything.
pub(super) fn black_hole(context: &Context<'_>) -> Cluster {
    let kind = ClusterDiscoveryType::Type(DiscoveryType::Static.into());
    let mut draft = named(context, BLACK_HOLE_CLUSTER, kind, LbPolicy::RoundRobin);
    draft.cluster.connect_timeout = policy::connect_timeout(context);
    draft.finish()
}

/// The cluster that goes where the client was going.
pub(super) fn passthrough(context: &Context<'_>) -> Cluster {
    let mut draft = original_destination(context, PASSTHROUGH_CLUSTER);
    draft.cluster.filters.extend(cluster_metadata_exchange(context.proxy));
    draft.finish()
}

/// The cluster that goes to the host that a request names.
pub(super) fn dynamic_dns(context: &Context<'_>) -> Cluster {
    let settings = context.mesh.outbound_traffic_policy.tls.as_ref();
    let settings = settings.filter(|tls| tls.mode != ClientTlsMode::Disable);
    // Without TLS there is no name to verify.
    let kind = dynamic_dns::discovery(context, settings.is_none());
    let mut draft = to_downstream(context, DYNAMIC_DNS_CLUSTER, kind);
    draft.cluster.connect_timeout = policy::connect_timeout(context);
    if let Some(settings) = settings {
        draft.dynamic = true;
        tls::originate(context, &mut draft, settings);
        if !draft.checks_names() {
            draft.cluster.cluster_discovery_type = Some(dynamic_dns::discovery(context, true));
        }
    }
    draft.cluster.filters.extend(cluster_metadata_exchange(context.proxy));
    draft.finish()
}

/// The same for connections to the workload.
pub(super) fn inbound_passthrough(context: &Context<'_>) -> Cluster {
    let mut draft = original_destination(context, INBOUND_PASSTHROUGH_CLUSTER);
    draft.cluster.upstream_bind_config = Some(inbound_bind(context));
    draft.finish()
}

/// Binding to the source address of inbound connections.
pub(super) fn inbound_bind(context: &Context<'_>) -> BindConfig {
    let v4 = context.proxy.supports_v4();
    let source = if v4 { INBOUND_SOURCE_V4 } else { INBOUND_SOURCE_V6 };
    let extra = (v4 && context.proxy.supports_v6()).then(|| ExtraSourceAddress {
        address: Some(socket_address(INBOUND_SOURCE_V6, 0)),
        ..Default::default()
    });
    BindConfig {
        source_address: Some(socket_address(source, 0)),
        extra_source_addresses: extra.into_iter().collect(),
        ..Default::default()
    }
}

fn original_destination(context: &Context<'_>, name: &str) -> Draft {
    to_downstream(context, name, ClusterDiscoveryType::Type(DiscoveryType::OriginalDst.into()))
}

/// A cluster that finds its hosts itself and speaks what the client speaks.
fn to_downstream(context: &Context<'_>, name: &str, kind: ClusterDiscoveryType) -> Draft {
    let mut draft = named(context, name, kind, LbPolicy::ClusterProvided);
    let pool = context.mesh.default_traffic_policy.as_ref();
    let pool = pool.and_then(|policy| policy.connection_pool.clone());
    let none = ConnectionPoolSettings::default();
    policy::apply_connection_pool(context, &mut draft, &pool.unwrap_or(none), None);
    draft.http().upstream_protocol_options = Some(downstream());
    let common = draft.common();
    common.idle_timeout.get_or_insert(duration(PASSTHROUGH_IDLE));
    draft
}

fn named(context: &Context<'_>, name: &str, kind: ClusterDiscoveryType, lb: LbPolicy) -> Draft {
    let mut draft = Draft::new(
        context,
        Cluster {
            name: name.to_owned(),
            alt_stat_name: stat_prefix(name),
            cluster_discovery_type: Some(kind),
            lb_policy: lb.into(),
            ..Default::default()
        },
    );
    draft.istio = fields(mesh_path(&context.mesh.root_namespace), None);
    draft
}
