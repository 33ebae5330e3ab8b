//! HTTP filters in the order of the connection manager's list, and what
//! routes say about them.
//!
//! A route's settings find their filter by its name in the list.

use std::collections::HashMap;
use std::sync::Arc;

use amime_telemetry::IstioStats;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::http::{
    bandwidth_limit::v3::BandwidthLimit, buffer::v3 as buffer, compressor::v3 as pb_compressor,
    compressor::v3::CompressorPerRoute, cors::v3 as cors, csrf::v3 as csrf,
    decompressor::v3 as pb_decompressor, dynamic_forward_proxy::v3 as dynamic, fault::v3 as fault,
    grpc_http1_bridge::v3 as bridge, grpc_web::v3::GrpcWeb, header_mutation::v3 as mutation,
    header_to_metadata::v3 as to_metadata, health_check::v3 as health_check,
    ip_tagging::v3 as ip_tagging, local_ratelimit::v3::LocalRateLimit, ratelimit::v3 as ratelimit,
    rbac::v3 as rbac, router::v3::Router, set_metadata::v3 as set_metadata,
    stateful_session::v3 as session,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use super::Compiler;
use super::answer_checks::AnswerChecks;
use super::dynamic_hosts::{self, NewHost};
use super::global_limit::{GlobalLimit, GlobalLimitRoute};
use super::host_cache::HostCache;
use super::local_limit::LocalLimit;
use amime_rules::Faults;
use amime_rules::bandwidth::Bandwidth;
use amime_rules::compression::{Compressor, CompressorRoute, Decompressor};
use amime_rules::cors::{Cors, CorsFields};
use amime_rules::csrf::Csrf;
use amime_rules::fault_injection::Fault;
use amime_rules::header_mutation::HeaderMutation;
use amime_rules::ip_tags::IpTags;
use amime_rules::metadata::{HeaderToMetadata, SetMetadata};
use amime_rules::peer_metadata::PeerExchange;
use amime_rules::rbac::{Rbac, Rules};
use amime_rules::stateful_session::StatefulSession;
use amime_rules::values::{is, type_name, unpack};

/// A filter that acts on requests.
#[derive(Debug)]
pub struct HttpFilter {
    pub name: Box<str>,
    /// Acts only on routes that have settings for it.
    pub disabled: bool,
    pub kind: FilterKind,
}

#[derive(Debug)]
pub enum FilterKind {
    Fault(Arc<Fault>),
    Cors,
    Rbac(Arc<Rbac>),
    LocalLimit(Arc<LocalLimit>),
    GlobalLimit(Arc<GlobalLimit>),
    Mutation(Arc<HeaderMutation>),
    /// `None` keeps no state, which a route may change.
    Session(Option<Arc<StatefulSession>>),
    GrpcWeb,
    GrpcBridge,
    /// The most that is kept of a request; `None` if it does not wait.
    Buffer(Option<usize>),
    Compressor(Arc<Compressor>),
    Decompressor(Arc<Decompressor>),
    HeaderToMetadata(Arc<HeaderToMetadata>),
    SetMetadata(SetMetadata),
    Csrf(Arc<Csrf>),
    IpTags(IpTags),
    AnswerChecks(Arc<AnswerChecks>),
    Bandwidth(Arc<Bandwidth>),
    /// Waits until the host of the request is resolved.
    DynamicHost(Arc<HostCache>),
}

/// Filter settings of a route, the route's own before its parents'.
#[derive(Clone, Debug, Default)]
pub struct PerRoute {
    entries: Vec<PerFilter>,
    /// The policy of older control planes, which names no filter.
    cors: Option<Arc<Cors>>,
}

/// What a route says of one filter.
#[derive(Clone, Debug)]
pub struct PerFilter {
    name: Arc<str>,
    pub disabled: bool,
    pub settings: Option<Settings>,
}

/// Settings that take the place of a filter's own.
#[derive(Clone, Debug)]
pub enum Settings {
    Fault(Arc<Fault>),
    Cors(Arc<Cors>),
    /// `None` switches the filter off for the route.
    Rbac(Option<Arc<Rbac>>),
    LocalLimit(Arc<LocalLimit>),
    GlobalLimit(Arc<GlobalLimitRoute>),
    Mutation(Arc<HeaderMutation>),
    /// `None` switches the filter off for the route.
    Session(Option<Arc<StatefulSession>>),
    /// `None` switches the filter off for the route.
    Buffer(Option<usize>),
    Compressor(Arc<CompressorRoute>),
    HeaderToMetadata(Arc<HeaderToMetadata>),
    Csrf(Arc<Csrf>),
    Bandwidth(Arc<Bandwidth>),
    NewHost(Arc<NewHost>),
}

impl PerRoute {
    pub fn compile(configs: &HashMap<String, Any>, compiler: &mut Compiler<'_>) -> Self {
        let mut filters = Self::default();
        for (name, any) in configs {
            compiler.faults.enter(format!("typed_per_filter_config[{name}]"));
            filters.add(name, any, compiler);
            compiler.faults.leave();
        }
        filters
    }

    fn add(&mut self, name: &str, any: &Any, compiler: &mut Compiler<'_>) {
        let entry = |settings, disabled| PerFilter { name: name.into(), disabled, settings };
        if !is::<route::FilterConfig>(any) {
            let settings = Settings::compile(any, false, compiler);
            self.entries.extend(settings.map(|settings| entry(Some(settings), false)));
            return;
        }
        let Some(config) = unpack::<route::FilterConfig>(any, &mut compiler.faults) else {
            return;
        };
        let settings = config.config.as_ref().filter(|_| !config.disabled);
        let settings =
            settings.and_then(|inner| Settings::compile(inner, config.is_optional, compiler));
        self.entries.push(entry(settings, config.disabled));
    }

    /// Adds the CORS policy that older control planes put on routes.
    pub fn add_cors(&mut self, policy: Option<&route::CorsPolicy>, compiler: &mut Compiler<'_>) {
        if let Some(policy) = policy
            && self.cors.is_none()
        {
            self.cors = compiler
                .faults
                .within("cors", |faults| CorsFields::of_route(policy).compile(faults))
                .map(Arc::new);
        }
    }

    /// Puts what `parent` says behind what is said here.
    pub fn inherit(&mut self, parent: &Self) {
        self.entries.extend(parent.entries.iter().cloned());
        self.cors = self.cors.take().or_else(|| parent.cors.clone());
    }

    /// The most specific settings of a filter.
    pub fn find(&self, filter: &str) -> Option<&PerFilter> {
        self.entries.iter().find(|entry| *entry.name == *filter)
    }

    /// All settings of a filter, the most specific first.
    pub fn all<'a>(&'a self, filter: &'a str) -> impl DoubleEndedIterator<Item = &'a PerFilter> {
        self.entries.iter().filter(move |entry| *entry.name == *filter)
    }

    /// The CORS policy that names no filter.
    pub fn cors(&self) -> Option<&Cors> {
        self.cors.as_deref()
    }
}

impl Settings {
    fn compile(any: &Any, optional: bool, compiler: &mut Compiler<'_>) -> Option<Self> {
        let faults = &mut compiler.faults;
        Some(if is::<fault::HttpFault>(any) {
            Self::Fault(Arc::new(Fault::compile(&unpack(any, faults)?, faults)))
        } else if is::<cors::CorsPolicy>(any) {
            let policy: cors::CorsPolicy = unpack(any, faults)?;
            Self::Cors(Arc::new(CorsFields::of_filter(&policy).compile(faults)?))
        } else if is::<rbac::RbacPerRoute>(any) {
            let config: rbac::RbacPerRoute = unpack(any, faults)?;
            Self::Rbac(config.rbac.map(|rbac| Arc::new(compile_rbac(&rbac, faults))))
        } else if is::<LocalRateLimit>(any) {
            let config: LocalRateLimit = unpack(any, faults)?;
            Self::LocalLimit(Arc::new(LocalLimit::compile(&config, compiler)?))
        } else if is::<ratelimit::RateLimitPerRoute>(any) {
            let config: ratelimit::RateLimitPerRoute = unpack(any, faults)?;
            Self::GlobalLimit(Arc::new(GlobalLimitRoute::compile(&config, faults)))
        } else if is::<mutation::HeaderMutationPerRoute>(any) {
            let config: mutation::HeaderMutationPerRoute = unpack(any, faults)?;
            let mutations = config.mutations.unwrap_or_default();
            Self::Mutation(Arc::new(HeaderMutation::compile(&mutations, false, faults)))
        } else if is::<session::StatefulSessionPerRoute>(any) {
            Self::Session(session_per_route(&unpack(any, faults)?, faults))
        } else if is::<buffer::BufferPerRoute>(any) {
            Self::Buffer(buffer_per_route(&unpack(any, faults)?, faults))
        } else if is::<CompressorPerRoute>(any) {
            let route = CompressorRoute::compile(&unpack(any, faults)?, faults);
            Self::Compressor(Arc::new(route))
        } else if is::<to_metadata::Config>(any) {
            let rules = HeaderToMetadata::compile(&unpack(any, faults)?, faults);
            Self::HeaderToMetadata(Arc::new(rules))
        } else if is::<csrf::CsrfPolicy>(any) {
            Self::Csrf(Arc::new(Csrf::compile(&unpack(any, faults)?, faults)))
        } else if is::<BandwidthLimit>(any) {
            Self::Bandwidth(Arc::new(Bandwidth::compile(&unpack(any, faults)?, faults)?))
        } else if is::<dynamic::PerRouteConfig>(any) {
            Self::NewHost(Arc::new(NewHost::compile(&unpack(any, faults)?, faults)?))
        } else {
            let suffix = if optional { ", which it may be" } else { "" };
            faults.ignore("", format!("{} is not supported{suffix}", type_name(any)));
            return None;
        })
    }
}

/// Compiles the HTTP filter's two sets of rules.
pub fn compile_rbac(value: &rbac::Rbac, faults: &mut Faults) -> Rbac {
    faults.reject_if(value.matcher.is_some(), "matcher");
    faults.ignore_if(value.shadow_matcher.is_some(), "shadow_matcher");
    let mut rules = |rules: Option<&_>, field: &str| {
        rules.map(|rules| faults.within(field, |faults| Rules::compile(rules, faults)))
    };
    Rbac {
        rules: rules(value.rules.as_ref(), "rules"),
        shadow: rules(value.shadow_rules.as_ref(), "shadow_rules"),
    }
}

/// What this filter reports is collected anyway.
const GRPC_STATS: &str = "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig";

const ON_DEMAND: &str = "envoy.extensions.filters.http.on_demand.v3.OnDemand";

/// Filters that are accepted but do nothing here; requests pass as they are.
const WITHOUT_EFFECT: [&str; 1] = ["envoy.extensions.filters.http.set_filter_state.v3.Config"];

/// The HTTP filters, sorted into what acts on requests and what are settings.
#[derive(Default)]
pub(crate) struct FilterChain {
    pub(crate) filters: Vec<HttpFilter>,
    pub(crate) istio_stats: Option<Arc<IstioStats>>,
    pub(crate) peer_exchange: PeerExchange,
    pub(crate) istio_alpn: bool,
    pub(crate) suppress_envoy_headers: bool,
    router: bool,
}

impl FilterChain {
    pub(crate) fn compile(list: &[pb::HttpFilter], compiler: &mut Compiler<'_>) -> Self {
        let mut chain = Self::default();
        for (index, filter) in list.iter().enumerate() {
            compiler.faults.enter(format!("http_filters[{index}]({})", filter.name));
            match filter.config_type.as_ref() {
                Some(pb::http_filter::ConfigType::TypedConfig(any)) => {
                    chain.add(filter, any, compiler);
                }
                Some(pb::http_filter::ConfigType::ConfigDiscovery(_)) if filter.is_optional => {
                    compiler.faults.ignore("config_discovery", "not supported");
                }
                Some(pb::http_filter::ConfigType::ConfigDiscovery(_)) => {
                    compiler.faults.reject("config_discovery", "not supported");
                }
                None => chain.router |= filter.name == "envoy.filters.http.router",
            }
            compiler.faults.leave();
        }
        if !chain.router {
            compiler.faults.reject("http_filters", "the router is missing");
        }
        chain
    }

    fn add(&mut self, filter: &pb::HttpFilter, any: &Any, compiler: &mut Compiler<'_>) {
        if is::<Router>(any) {
            self.router = true;
            let router: Option<Router> = unpack(any, &mut compiler.faults);
            self.suppress_envoy_headers =
                router.is_some_and(|router| router.suppress_envoy_headers);
        } else if FilterKind::knows(any) {
            let kind = FilterKind::compile(any, compiler);
            self.filters.extend(kind.map(|kind| HttpFilter {
                name: filter.name.as_str().into(),
                disabled: filter.disabled,
                kind,
            }));
        } else if !filter.disabled {
            self.add_passive(any, filter.is_optional, &mut compiler.faults);
        }
    }

    fn add_passive(&mut self, any: &Any, optional: bool, faults: &mut Faults) {
        let name = config_type(any);
        match name.as_str() {
            "stats.PluginConfig" => self.istio_stats = Some(istio_stats(any)),
            "io.istio.http.peer_metadata.Config" => {
                self.peer_exchange = PeerExchange::compile(any, faults);
            }
            "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig" => self.istio_alpn = true,
            GRPC_STATS => {}
            // It loads virtual hosts on demand; here all of them are there.
            ON_DEMAND => {}
            name if optional || WITHOUT_EFFECT.contains(&name) => {
                faults.ignore("typed_config", format!("{name} is not supported"))
            }
            name => faults.reject("typed_config", format!("{name} is not supported")),
        }
    }
}

impl FilterKind {
    fn knows(any: &Any) -> bool {
        is::<fault::HttpFault>(any)
            || is::<cors::Cors>(any)
            || is::<rbac::Rbac>(any)
            || is::<LocalRateLimit>(any)
            || is::<ratelimit::RateLimit>(any)
            || is::<mutation::HeaderMutation>(any)
            || is::<session::StatefulSession>(any)
            || is::<GrpcWeb>(any)
            || is::<bridge::Config>(any)
            || is::<buffer::Buffer>(any)
            || is::<pb_compressor::Compressor>(any)
            || is::<pb_decompressor::Decompressor>(any)
            || is::<to_metadata::Config>(any)
            || is::<set_metadata::Config>(any)
            || is::<csrf::CsrfPolicy>(any)
            || is::<BandwidthLimit>(any)
            || is::<ip_tagging::IpTagging>(any)
            || is::<health_check::HealthCheck>(any)
            || is::<dynamic::FilterConfig>(any)
    }

    fn compile(any: &Any, compiler: &mut Compiler<'_>) -> Option<Self> {
        let faults = &mut compiler.faults;
        if is::<fault::HttpFault>(any) {
            Some(Self::Fault(Arc::new(Fault::compile(&unpack(any, faults)?, faults))))
        } else if is::<cors::Cors>(any) {
            Some(Self::Cors)
        } else if is::<rbac::Rbac>(any) {
            Some(Self::Rbac(Arc::new(compile_rbac(&unpack(any, faults)?, faults))))
        } else if is::<LocalRateLimit>(any) {
            let config: LocalRateLimit = unpack(any, faults)?;
            Some(Self::LocalLimit(Arc::new(LocalLimit::compile(&config, compiler)?)))
        } else if is::<ratelimit::RateLimit>(any) {
            let config: ratelimit::RateLimit = unpack(any, faults)?;
            Some(Self::GlobalLimit(Arc::new(GlobalLimit::compile(&config, compiler)?)))
        } else if is::<session::StatefulSession>(any) {
            let session = StatefulSession::compile(&unpack(any, faults)?, faults);
            Some(Self::Session(session.map(Arc::new)))
        } else if is::<GrpcWeb>(any) {
            Some(Self::GrpcWeb)
        } else if is::<bridge::Config>(any) {
            let config: bridge::Config = unpack(any, faults)?;
            faults.reject_if(config.upgrade_protobuf_to_grpc, "upgrade_protobuf_to_grpc");
            Some(Self::GrpcBridge)
        } else if is::<buffer::Buffer>(any) {
            Some(Self::Buffer(Some(buffer_size(&unpack(any, faults)?, faults)?)))
        } else if is::<pb_compressor::Compressor>(any) {
            let compressor = Compressor::compile(&unpack(any, faults)?, faults)?;
            Some(Self::Compressor(Arc::new(compressor)))
        } else if is::<pb_decompressor::Decompressor>(any) {
            let decompressor = Decompressor::compile(&unpack(any, faults)?, faults)?;
            Some(Self::Decompressor(Arc::new(decompressor)))
        } else if is::<to_metadata::Config>(any) {
            let rules = HeaderToMetadata::compile(&unpack(any, faults)?, faults);
            Some(Self::HeaderToMetadata(Arc::new(rules)))
        } else if is::<set_metadata::Config>(any) {
            Some(Self::SetMetadata(SetMetadata::compile(&unpack(any, faults)?, faults)))
        } else if is::<BandwidthLimit>(any) {
            Some(Self::Bandwidth(Arc::new(Bandwidth::compile(&unpack(any, faults)?, faults)?)))
        } else if is::<csrf::CsrfPolicy>(any) {
            Some(Self::Csrf(Arc::new(Csrf::compile(&unpack(any, faults)?, faults))))
        } else if is::<ip_tagging::IpTagging>(any) {
            Some(Self::IpTags(IpTags::compile(&unpack(any, faults)?, faults)?))
        } else if is::<health_check::HealthCheck>(any) {
            let config: health_check::HealthCheck = unpack(any, faults)?;
            Some(Self::AnswerChecks(Arc::new(AnswerChecks::compile(&config, compiler)?)))
        } else if is::<dynamic::FilterConfig>(any) {
            let config: dynamic::FilterConfig = unpack(any, faults)?;
            dynamic_hosts::of_filter(&config, compiler).map(Self::DynamicHost)
        } else {
            let config: mutation::HeaderMutation = unpack(any, faults)?;
            let mutations = config.mutations.unwrap_or_default();
            let wins = config.most_specific_header_mutations_wins;
            Some(Self::Mutation(Arc::new(HeaderMutation::compile(&mutations, wins, faults))))
        }
    }
}

fn buffer_size(value: &buffer::Buffer, faults: &mut Faults) -> Option<usize> {
    let max = value.max_request_bytes.as_ref().filter(|max| max.value > 0);
    if max.is_none() {
        faults.reject("max_request_bytes", "missing");
    }
    max.map(|max| max.value as usize)
}

fn buffer_per_route(value: &buffer::BufferPerRoute, faults: &mut Faults) -> Option<usize> {
    use buffer::buffer_per_route::Override;
    match &value.r#override {
        Some(Override::Buffer(value)) => {
            faults.within("buffer", |faults| buffer_size(value, faults))
        }
        Some(Override::Disabled(_)) => None,
        None => {
            faults.reject("override", "missing");
            None
        }
    }
}

fn session_per_route(
    value: &session::StatefulSessionPerRoute,
    faults: &mut Faults,
) -> Option<Arc<StatefulSession>> {
    use session::stateful_session_per_route::Override;
    match &value.r#override {
        Some(Override::StatefulSession(value)) => {
            faults.enter("stateful_session");
            let session = StatefulSession::compile(value, faults);
            faults.leave();
            session.map(Arc::new)
        }
        Some(Override::Disabled(_)) => None,
        None => {
            faults.reject("override", "missing");
            None
        }
    }
}

/// The message type that an extension is configured with, also inside of a
/// `TypedStruct`.
pub(crate) fn config_type(any: &Any) -> String {
    typed_struct_name(any).unwrap_or_else(|| type_name(any).to_owned())
}

/// The message type inside of a `TypedStruct`.
fn typed_struct_name(any: &Any) -> Option<String> {
    let outer = type_name(any);
    if outer != "udpa.type.v1.TypedStruct" && outer != "xds.type.v3.TypedStruct" {
        return None;
    }
    let inner = amime_xds::istio::typed_struct::TypedStruct::decode(any.value.as_slice()).ok()?;
    inner.type_url.rsplit('/').next().map(str::to_owned)
}

fn istio_stats(any: &Any) -> Arc<IstioStats> {
    let config = amime_xds::istio::stats::PluginConfig::decode(any.value.as_slice());
    let disable_host_header_fallback =
        config.is_ok_and(|config| config.disable_host_header_fallback);
    Arc::new(IstioStats { disable_host_header_fallback })
}
