//! CDS: clusters for services, for the workload's own ports, and the special
//! ones.

mod inbound;
mod load_balancer;
mod outbound;
mod policy;
mod special;
mod tls;

use std::collections::BTreeSet;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::http1_protocol_options::HeaderKeyFormat;
use envoy_types::pb::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as CommonOptions,
    UpstreamHttpProtocolOptions,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
};

pub(crate) use policy::with_mesh_default;

use crate::context::Context;
use crate::dynamic_dns;
use crate::envoy_filter::{ClusterPatcher, Side};
use crate::names::OutboundName;
use crate::origin::{IstioFields, istio_metadata};
use crate::proto::any;
use crate::proxy::ProxyKind;

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// All clusters of the proxy, or those with these names.
pub(crate) fn build(context: &Context<'_>, names: Option<&[String]>) -> Vec<Cluster> {
    let mut outbound = outbound::clusters(context, wanted_hosts(names).as_ref());
    outbound.push(special::black_hole(context));
    let mut inbound = Vec::new();
    match context.proxy.kind {
        ProxyKind::Sidecar => {
            outbound.push(special::passthrough(context));
            if dynamic_dns::is_on(context) {
                outbound.push(special::dynamic_dns(context));
            }
            inbound = inbound::clusters(context);
            inbound.push(special::inbound_passthrough(context));
        }
        ProxyKind::Router => {
            if context.gateway().auto_passthrough() {
                outbound.extend(outbound::sni_clusters(context));
            }
        }
    }
    let mut clusters = patched(context, Side::outbound_of(context.proxy), outbound);
    clusters.extend(patched(context, Side::Inbound, inbound));
    let mut seen = BTreeSet::new();
    clusters.retain(|cluster| seen.insert(cluster.name.clone()));
    if let Some(names) = names {
        let names: BTreeSet<&String> = names.iter().collect();
        clusters.retain(|cluster| names.contains(&cluster.name));
    }
    clusters.sort_by(|a, b| a.name.cmp(&b.name));
    clusters
}

/// The clusters of one side as users want them.
fn patched(context: &Context<'_>, side: Side, clusters: Vec<Cluster>) -> Vec<Cluster> {
    let patcher = ClusterPatcher::new(context.patches(), side);
    let hosts = |port: u32| {
        let own = context.targets().iter().filter(|target| target.target_port == port);
        own.map(|target| target.service.hostname.as_str().to_owned()).collect()
    };
    let clusters = clusters.into_iter().filter_map(|cluster| patcher.patch(cluster, &hosts));
    clusters.chain(patcher.additions()).collect()
}

/// Hosts whose clusters are asked for; `None` for all.
fn wanted_hosts(names: Option<&[String]>) -> Option<BTreeSet<String>> {
    let parsed = names?.iter().filter_map(|name| OutboundName::parse(name));
    Some(parsed.map(|name| name.hostname.as_str().to_owned()).collect())
}

/// A cluster in the making: parts that are encoded when it is finished.
struct Draft {
    cluster: Cluster,
    http: Option<HttpProtocolOptions>,
    istio: IstioFields,
    header_case: Option<HeaderKeyFormat>,
    /// False if what it carries is known to be none of HTTP.
    carries_http: bool,
    /// Hosts are those of the requests, and so are the names of servers.
    dynamic: bool,
}

impl Draft {
    fn new(context: &Context<'_>, cluster: Cluster) -> Self {
        let header_case = context.settings.header_case();
        let (http, istio, dynamic) = (None, IstioFields::new(), false);
        Self { cluster, http, istio, header_case, carries_http: true, dynamic }
    }

    fn http(&mut self) -> &mut HttpProtocolOptions {
        self.http.get_or_insert_default()
    }

    fn common(&mut self) -> &mut CommonOptions {
        self.http().common_http_protocol_options.get_or_insert_default()
    }

    fn upstream(&mut self) -> &mut UpstreamHttpProtocolOptions {
        self.http().upstream_http_protocol_options.get_or_insert_default()
    }

    /// HTTP/2 to the upstream, unless another choice was made before.
    fn use_http2(&mut self) {
        let http2 =
            || explicit(ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default()));
        self.http().upstream_protocol_options.get_or_insert_with(http2);
    }

    /// To the upstream what the downstream speaks.
    fn use_downstream_protocol(&mut self) {
        self.http().upstream_protocol_options = Some(downstream());
    }

    /// The HTTP/2 options, if the cluster is an HTTP/2 one.
    fn http2(&mut self) -> Option<&mut Http2ProtocolOptions> {
        match self.http.as_mut()?.upstream_protocol_options.as_mut()? {
            UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
                protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(options)),
            }) => Some(options),
            _ => None,
        }
    }

    /// True if servers have to prove the names that requests are for.
    fn checks_names(&self) -> bool {
        let upstream = self.http.as_ref().and_then(|o| o.upstream_http_protocol_options.as_ref());
        upstream.is_some_and(|options| options.auto_sni && options.auto_san_validation)
    }

    fn is_http2(&mut self) -> bool {
        self.http2().is_some()
    }

    fn finish(mut self) -> Cluster {
        if let Some(format) = self.header_case.take().filter(|_| self.carries_http) {
            keep_case(self.http(), format);
        }
        if let Some(mut http) = self.http {
            // Envoy requires a choice; HTTP/1.1 is its own default.
            let http1 =
                || explicit(ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default()));
            http.upstream_protocol_options.get_or_insert_with(http1);
            let options = [(HTTP_OPTIONS.to_owned(), any(&http))];
            self.cluster.typed_extension_protocol_options = options.into();
        }
        self.cluster.metadata = istio_metadata(self.istio);
        self.cluster
    }
}

/// Writes HTTP/1 header names in this way.
fn keep_case(http: &mut HttpProtocolOptions, format: HeaderKeyFormat) {
    let http1 = || explicit(ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default()));
    let options = match http.upstream_protocol_options.get_or_insert_with(http1) {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::HttpProtocolOptions(options)),
        }) => Some(options),
        UpstreamProtocolOptions::UseDownstreamProtocolConfig(config) => {
            config.http_protocol_options.as_mut()
        }
        _ => None,
    };
    if let Some(options) = options {
        options.header_key_format = Some(format);
    }
}

fn explicit(config: ProtocolConfig) -> UpstreamProtocolOptions {
    UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
        protocol_config: Some(config),
    })
}

fn downstream() -> UpstreamProtocolOptions {
    UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
        http_protocol_options: Some(Http1ProtocolOptions::default()),
        http2_protocol_options: Some(Http2ProtocolOptions::default()),
        ..Default::default()
    })
}
