//! Listeners and their filter chains.

use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use amime_rules::Faults;
use amime_telemetry::{AccessLogger, Direction, ListenerTelemetry};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::listener::{
    http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst,
    proxy_protocol::v3::ProxyProtocol, tls_inspector::v3::TlsInspector,
};
use envoy_types::pb::envoy::extensions::filters::network::connection_limit::v3::ConnectionLimit as ConnectionLimitFilter;
use envoy_types::pb::envoy::extensions::filters::network::direct_response::v3::Config as DirectResponse;
use envoy_types::pb::envoy::extensions::filters::network::echo::v3::Echo;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::extensions::filters::network::ratelimit::v3::RateLimit;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as RbacFilter;
use envoy_types::pb::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3::FilterConfig as SniHosts;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::google::protobuf::Any;

use super::binding::{Binding, bindings};
use super::chain_match::{ChainInput, ChainMatch, choose, distinct};
use super::chain_tree::ChainTree;
use super::cluster::{Keepalive, keepalive};
use super::dynamic_hosts;
use super::filters::config_type;
use super::global_limit::GlobalConnectionLimit;
use super::hcm::HttpConfig;
use super::local_limit::ConnectionLimit;
use super::quic::{self, Quic};
use super::tcp::TcpConfig;
use super::tls::{DownstreamTls, downstream_transport};
use super::unheeded;
use super::{BUFFER_LIMIT, Compiler};
use amime_rules::connection_cap::ConnectionCap;
use amime_rules::network_rbac::NetworkRbac;
use amime_rules::values::{self, bool_or, is, metadata_string, type_name, unpack};

/// A compiled `Listener`.
#[derive(Debug)]
pub struct ListenerConfig {
    pub name: Arc<str>,
    /// Where it accepts; never empty.
    pub bindings: Vec<Binding>,
    pub bind: bool,
    pub backlog: u32,
    pub keepalive: Option<Keepalive>,
    /// Hand connections to the listener of the address they were sent to.
    pub hand_off: bool,
    pub filters: ListenerFilters,
    /// `None`: wait for ever.
    pub filters_timeout: Option<Duration>,
    pub continue_on_timeout: bool,
    pub chains: Vec<Arc<FilterChain>>,
    pub default_chain: Option<Arc<FilterChain>>,
    /// Chooses between the chains in place of their criteria.
    pub tree: Option<ChainTree>,
    /// Connections are QUIC's.
    pub quic: Option<Quic>,
    /// Access logs of the listener itself, of all its connections.
    pub log: Option<ListenerTelemetry>,
}

/// What a listener finds out before it chooses a filter chain.
#[derive(Clone, Debug, Default)]
pub struct ListenerFilters {
    pub original_dst: bool,
    pub tls_inspector: Option<PortSet>,
    pub http_inspector: Option<PortSet>,
    pub proxy_protocol: Option<ProxyProtocolMode>,
}

/// Destination ports on which a listener filter is off.
#[derive(Clone, Debug, Default)]
pub struct PortSet(Vec<(u16, u16)>);

impl PortSet {
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|(start, end)| (*start..=*end).contains(&port))
    }
}

/// Which PROXY headers are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyProtocolMode {
    /// Connections without a header are served.
    pub optional: bool,
    pub v1: bool,
    pub v2: bool,
}

impl ProxyProtocolMode {
    fn compile(value: &ProxyProtocol) -> Self {
        use core::proxy_protocol_config::Version;
        let allowed = |version| !value.disallowed_versions().any(|one| one == version);
        Self {
            optional: value.allow_requests_without_proxy_protocol,
            v1: allowed(Version::V1),
            v2: allowed(Version::V2),
        }
    }
}

/// A compiled `FilterChain`.
#[derive(Debug)]
pub struct FilterChain {
    pub matcher: ChainMatch,
    pub tls: Option<Arc<DownstreamTls>>,
    pub handshake_timeout: Option<Duration>,
    /// Network filters before the last one.
    pub rbac: Vec<NetworkRbac>,
    /// Limits of new connections.
    pub limits: Vec<NetworkLimit>,
    pub terminal: Terminal,
    /// All that clients show of their certificates is printed, not just the
    /// first one.
    pub prints_certificates: bool,
    /// The object that the chain or its listener came from.
    pub origin: Option<Arc<str>>,
    /// Equal for chains that do the same to a connection: one that outlives an
    /// update keeps its connections.
    pub identity: u64,
}

/// A limit of new connections.
#[derive(Debug)]
pub enum NetworkLimit {
    Local(ConnectionLimit),
    Global(GlobalConnectionLimit),
    /// Of connections open at once.
    Open(Arc<ConnectionCap>),
}

/// The last network filter.
#[derive(Debug)]
pub enum Terminal {
    Http(Arc<HttpConfig>),
    Tcp(Arc<TcpConfig>),
    /// Sends back what comes.
    Echo,
    /// Says one thing and closes.
    Say(Vec<u8>),
    /// A chain without filters closes what it is given.
    Close,
}

impl Terminal {
    /// Whether certificates beyond the client's own are printed.
    fn prints_certificates(&self) -> bool {
        match self {
            Self::Http(config) => config.client_cert.chain || print(&config.telemetry.access_logs),
            Self::Tcp(config) => print(&config.telemetry.access_logs),
            Self::Echo | Self::Say(_) | Self::Close => false,
        }
    }
}

fn print(logs: &[AccessLogger]) -> bool {
    logs.iter().any(AccessLogger::prints_chain)
}

impl ListenerConfig {
    pub fn compile(value: &pb::Listener, compiler: &mut Compiler<'_>) -> Option<Self> {
        // Zero, no limit, would let clients fill the memory.
        compiler.buffer_limit = value
            .per_connection_buffer_limit_bytes
            .map_or(BUFFER_LIMIT, |limit| limit.value as usize)
            .max(1);
        let faults = &mut compiler.faults;
        let quic = quic::limits(value, faults);
        faults.reject_if(value.api_listener.is_some(), "api_listener");
        faults.reject_if(value.listener_specifier.is_some(), "internal_listener");
        if quic.is_some() && value.filter_chain_matcher.is_some() {
            faults.reject("filter_chain_matcher", "not supported for QUIC");
        }
        let tree = ChainTree::compile(value, faults);
        faults.reject_if(value.fcds_config.is_some(), "fcds_config");
        unheeded::of_listener(value, faults);
        let bindings = bindings(value, faults)?;
        compiler.quic = quic.is_some();
        let filters = listener_filters(&value.listener_filters, compiler);
        let origin: Option<Arc<str>> =
            metadata_string(value.metadata.as_ref(), "istio", "config").map(Into::into);
        let access_logs = compiler.access_logs(&value.access_log);
        let prints = print(&access_logs);
        let name: Arc<str> = value.name.as_str().into();
        let mut parent = Parent { name: name.clone(), value, origin, compiler, prints };
        let mut chains = Vec::with_capacity(value.filter_chains.len());
        for (index, chain) in value.filter_chains.iter().enumerate() {
            let field = format!("filter_chains[{index}]");
            chains.extend(parent.chain(chain, field).map(Arc::new));
        }
        let default = value.default_filter_chain.as_ref();
        let default_chain =
            default.and_then(|chain| parent.chain(chain, "default_filter_chain".to_owned()));
        if value.filter_chains.is_empty() && default.is_none() {
            parent.compiler.faults.reject("filter_chains", "none");
        }
        if tree.is_none() {
            distinct(&chains, &mut parent.compiler.faults);
        }
        let default_chain = default_chain.map(Arc::new);
        let quic = quic.and_then(|limits| {
            let (address, default) = (bindings[0].address, default_chain.as_ref());
            Quic::of(limits, address, &chains, default, &mut parent.compiler.faults)
        });
        let log = (!access_logs.is_empty()).then(|| ListenerTelemetry {
            listener: name.clone(),
            access_logs,
            ..ListenerTelemetry::default()
        });
        let deprecated = value.deprecated_v1.as_ref().and_then(|v1| v1.bind_to_port.as_ref());
        Some(Self {
            name,
            bindings,
            bind: bool_or(value.bind_to_port.as_ref().or(deprecated), true),
            backlog: values::u32_or(value.tcp_backlog_size.as_ref(), 4096),
            keepalive: keepalive(value.tcp_keepalive.as_ref()),
            hand_off: bool_or(value.use_original_dst.as_ref(), false),
            filters,
            filters_timeout: values::timeout(
                value.listener_filters_timeout.as_ref(),
                Some(Duration::from_secs(15)),
            ),
            continue_on_timeout: value.continue_on_listener_filters_timeout,
            chains,
            default_chain,
            tree,
            quic,
            log,
        })
    }

    /// The first address.
    pub fn address(&self) -> SocketAddr {
        self.bindings[0].address
    }

    /// The chain for a connection, if one matches.
    pub fn chain(&self, input: &ChainInput<'_>) -> Option<&Arc<FilterChain>> {
        let chain = match &self.tree {
            None => choose(&self.chains, input),
            Some(tree) => match tree.find(input) {
                Some(chosen) => return self.chains.get(chosen?),
                None => None,
            },
        };
        chain.or(self.default_chain.as_ref())
    }

    /// All chains, the default one last.
    pub fn all_chains(&self) -> impl Iterator<Item = &Arc<FilterChain>> {
        self.chains.iter().chain(&self.default_chain)
    }

    /// True if some chain can only be chosen with the client's first bytes.
    pub fn inspects(&self, port: u16) -> bool {
        let on = |set: &Option<PortSet>| set.as_ref().is_some_and(|off| !off.contains(port));
        on(&self.filters.tls_inspector) || on(&self.filters.http_inspector)
    }
}

/// The network filters of a chain.
#[derive(Default)]
struct Found {
    rbac: Vec<NetworkRbac>,
    limits: Vec<NetworkLimit>,
    terminal: Option<Terminal>,
}

struct Parent<'a, 'b> {
    name: Arc<str>,
    value: &'a pb::Listener,
    origin: Option<Arc<str>>,
    compiler: &'a mut Compiler<'b>,
    /// The listener's own logs print all certificates.
    prints: bool,
}

impl Parent<'_, '_> {
    fn chain(&mut self, value: &pb::FilterChain, field: String) -> Option<FilterChain> {
        self.compiler.faults.enter(field);
        let chain = self.chain_inner(value);
        self.compiler.faults.leave();
        chain
    }

    fn chain_inner(&mut self, value: &pb::FilterChain) -> Option<FilterChain> {
        let origin = metadata_string(value.metadata.as_ref(), "istio", "config");
        let origin = origin.map(Into::into).or_else(|| self.origin.clone());
        let faults = &mut self.compiler.faults;
        faults.reject_if(bool_or(value.use_proxy_proto.as_ref(), false), "use_proxy_proto");
        let matcher = value.filter_chain_match.as_ref();
        let matcher =
            faults.within("filter_chain_match", |faults| ChainMatch::compile(matcher, faults));
        self.compiler.faults.enter("transport_socket");
        let tls = downstream_transport(value.transport_socket.as_ref(), self.compiler);
        self.compiler.faults.leave();
        let Found { rbac, limits, terminal } = self.filters(value);
        let terminal = terminal?;
        Some(FilterChain {
            matcher: matcher?,
            tls: tls?,
            handshake_timeout: values::timeout(
                value.transport_socket_connect_timeout.as_ref(),
                None,
            ),
            rbac,
            limits,
            prints_certificates: self.prints || terminal.prints_certificates(),
            terminal,
            identity: self.identity(value, origin.as_deref()),
            origin,
        })
    }

    /// Metadata is left out: it is a map, which has no order to compare by.
    fn identity(&self, value: &pb::FilterChain, origin: Option<&str>) -> u64 {
        use prost::Message;
        let mut hasher = std::hash::DefaultHasher::new();
        (&value.name, origin, self.value.traffic_direction).hash(&mut hasher);
        value.transport_socket.as_ref().map(Message::encode_to_vec).hash(&mut hasher);
        value.filter_chain_match.as_ref().map(Message::encode_to_vec).hash(&mut hasher);
        let timeout = value.transport_socket_connect_timeout.as_ref();
        timeout.map(Message::encode_to_vec).hash(&mut hasher);
        for filter in &value.filters {
            filter.encode_to_vec().hash(&mut hasher);
        }
        for log in &self.value.access_log {
            log.encode_to_vec().hash(&mut hasher);
        }
        hasher.finish()
    }

    fn filters(&mut self, chain: &pb::FilterChain) -> Found {
        let mut found = Found::default();
        let names: Vec<String> = chain.filters.iter().filter_map(filter_type).collect();
        // They stand before the proxy whose settings they are.
        self.compiler.tcp_stats = names.iter().any(|name| name == TCP_STATS);
        self.compiler.sni_cluster = names.iter().any(|name| name == SNI_CLUSTER);
        self.compiler.sni_hosts = None;
        for (index, filter) in chain.filters.iter().enumerate() {
            self.compiler.faults.enter(format!("filters[{index}]({})", filter.name));
            match filter.config_type.as_ref() {
                Some(pb::filter::ConfigType::TypedConfig(any)) => {
                    self.filter(any, chain, &mut found);
                }
                _ => self.compiler.faults.reject("typed_config", "missing"),
            }
            self.compiler.faults.leave();
        }
        if chain.filters.is_empty() {
            found.terminal = Some(Terminal::Close);
        } else if found.terminal.is_none() {
            self.compiler.faults.reject("filters", "none of them ends the chain");
        }
        found
    }

    fn filter(&mut self, any: &Any, chain: &pb::FilterChain, found: &mut Found) {
        let telemetry = self.telemetry(&chain.name);
        let compiler = &mut *self.compiler;
        if is::<HttpConnectionManager>(any) {
            let config = unpack(any, &mut compiler.faults);
            let config = config.and_then(|it| HttpConfig::compile(&it, telemetry, compiler));
            let drains = self.value.drain_type() == pb::listener::DrainType::Default;
            let http =
                |config: HttpConfig| Terminal::Http(Arc::new(HttpConfig { drains, ..config }));
            found.terminal = config.map(http);
        } else if is::<TcpProxy>(any) {
            let config = unpack(any, &mut compiler.faults);
            found.terminal = config
                .and_then(|config| TcpConfig::compile(&config, telemetry, compiler))
                .map(|config| Terminal::Tcp(Arc::new(config)));
        } else if is::<RbacFilter>(any) {
            let faults = &mut compiler.faults;
            let config: Option<RbacFilter> = unpack(any, faults);
            found.rbac.extend(config.map(|config| NetworkRbac::compile(&config, faults)));
        } else if is::<LocalRateLimit>(any) {
            let config: Option<LocalRateLimit> = unpack(any, &mut compiler.faults);
            let limit = config.and_then(|config| ConnectionLimit::compile(&config, compiler));
            found.limits.extend(limit.map(NetworkLimit::Local));
        } else if is::<ConnectionLimitFilter>(any) {
            let faults = &mut compiler.faults;
            let config: Option<ConnectionLimitFilter> = unpack(any, faults);
            let cap = config.and_then(|config| ConnectionCap::compile(&config, faults));
            found.limits.extend(cap.map(NetworkLimit::Open));
        } else if is::<SniHosts>(any) {
            let config: Option<SniHosts> = unpack(any, &mut compiler.faults);
            let hosts = config.and_then(|it| dynamic_hosts::of_server_name(&it, compiler));
            compiler.sni_hosts = hosts;
        } else if is::<Echo>(any) {
            found.terminal = Some(Terminal::Echo);
        } else if is::<DirectResponse>(any) {
            let config: DirectResponse = unpack(any, &mut compiler.faults).unwrap_or_default();
            match config.response.as_ref().map_or(Ok(Vec::new()), values::data_source) {
                Ok(text) => found.terminal = Some(Terminal::Say(text)),
                Err(reason) => compiler.faults.reject("response", reason),
            }
        } else if is::<RateLimit>(any) {
            let config: Option<RateLimit> = unpack(any, &mut compiler.faults);
            let limit = config.and_then(|it| GlobalConnectionLimit::compile(&it, compiler));
            found.limits.extend(limit.map(NetworkLimit::Global));
        } else {
            match config_type(any).as_str() {
                SNI_CLUSTER | TCP_STATS => {}
                name if WITHOUT_EFFECT.contains(&name) => {
                    compiler.faults.ignore("typed_config", format!("{name} is not supported"));
                }
                name => compiler.faults.reject("typed_config", format!("{name} is not supported")),
            }
        }
    }

    fn telemetry(&self, chain: &str) -> ListenerTelemetry {
        let direction = match self.value.traffic_direction() {
            core::TrafficDirection::Inbound => Direction::Inbound,
            core::TrafficDirection::Outbound if self.compiler.node.gateway => Direction::Gateway,
            core::TrafficDirection::Outbound => Direction::Outbound,
            core::TrafficDirection::Unspecified if self.compiler.node.gateway => Direction::Gateway,
            core::TrafficDirection::Unspecified => Direction::Outbound,
        };
        ListenerTelemetry {
            listener: self.name.clone(),
            filter_chain: chain.into(),
            direction,
            ..ListenerTelemetry::default()
        }
    }
}

/// The cluster is the one that the server name names.
const SNI_CLUSTER: &str = "envoy.extensions.filters.network.sni_cluster.v3.SniCluster";

/// Istio's metrics of TCP connections.
const TCP_STATS: &str = "stats.PluginConfig";

/// Network filters that are accepted but do nothing here. A peer does without
/// the metadata exchange: it only adds names to the peer's telemetry.
const WITHOUT_EFFECT: [&str; 3] = [
    "envoy.tcp.metadataexchange.config.MetadataExchange",
    "envoy.extensions.network_filters.peer_metadata.Config",
    "envoy.extensions.filters.network.set_filter_state.v3.Config",
];

fn filter_type(filter: &pb::Filter) -> Option<String> {
    match filter.config_type.as_ref() {
        Some(pb::filter::ConfigType::TypedConfig(any)) => Some(config_type(any)),
        _ => None,
    }
}

fn listener_filters(list: &[pb::ListenerFilter], compiler: &mut Compiler<'_>) -> ListenerFilters {
    let mut filters = ListenerFilters::default();
    for (index, filter) in list.iter().enumerate() {
        let faults = &mut compiler.faults;
        faults.enter(format!("listener_filters[{index}]({})", filter.name));
        let mut off = PortSet::default();
        if let Some(predicate) = &filter.filter_disabled {
            disabled_ports(predicate, &mut off, faults);
        }
        if let Some(pb::listener_filter::ConfigType::TypedConfig(any)) = &filter.config_type {
            if is::<TlsInspector>(any) {
                let config: TlsInspector = unpack(any, faults).unwrap_or_default();
                let on = |value: &Option<_>| bool_or(value.as_ref(), false);
                faults
                    .ignore_if(on(&config.enable_ja3_fingerprinting), "enable_ja3_fingerprinting");
                faults
                    .ignore_if(on(&config.enable_ja4_fingerprinting), "enable_ja4_fingerprinting");
                filters.tls_inspector = Some(off);
            } else if is::<HttpInspector>(any) {
                filters.http_inspector = Some(off);
            } else if is::<OriginalDst>(any) {
                filters.original_dst = true;
            } else if is::<ProxyProtocol>(any) {
                let config: ProxyProtocol = unpack(any, faults).unwrap_or_default();
                unheeded::of_proxy_protocol(&config, faults);
                filters.proxy_protocol = Some(ProxyProtocolMode::compile(&config));
            } else {
                faults.reject("typed_config", format!("{} is not supported", type_name(any)));
            }
        } else {
            match filter.name.as_str() {
                "envoy.filters.listener.tls_inspector" => filters.tls_inspector = Some(off),
                "envoy.filters.listener.http_inspector" => filters.http_inspector = Some(off),
                "envoy.filters.listener.original_dst" => filters.original_dst = true,
                _ => faults.reject("typed_config", "missing"),
            }
        }
        faults.leave();
    }
    filters
}

fn disabled_ports(
    value: &pb::ListenerFilterChainMatchPredicate,
    ports: &mut PortSet,
    faults: &mut Faults,
) {
    use pb::listener_filter_chain_match_predicate::Rule;
    match value.rule.as_ref() {
        Some(Rule::DestinationPortRange(range)) => {
            let start = u16::try_from(range.start).unwrap_or(0);
            let end = u16::try_from(range.end.saturating_sub(1)).unwrap_or(u16::MAX);
            ports.0.push((start, end));
        }
        Some(Rule::OrMatch(set)) => {
            set.rules.iter().for_each(|rule| disabled_ports(rule, ports, faults));
        }
        Some(Rule::AnyMatch(true)) => ports.0.push((0, u16::MAX)),
        Some(Rule::AnyMatch(false)) => {}
        _ => faults.reject("filter_disabled", "only ports and their unions are supported"),
    }
}
