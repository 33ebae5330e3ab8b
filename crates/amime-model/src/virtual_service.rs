//! Virtual services: short names resolved, delegates merged, indexed by gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use amime_api::networking::{Destination, HttpRoute, VirtualService};
use amime_core::NamespacedName;

use crate::config::Config;
use crate::delegate::merge_route;
use crate::names::{MESH_GATEWAY, resolve_gateway, resolve_host};

/// Annotation that says whose rules a virtual service stands for.
const SEMANTICS: &str = "internal.istio.io/route-semantics";

/// Whose rules hold for a virtual service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RouteSemantics {
    /// Its own.
    #[default]
    VirtualService,
    /// The Gateway API's: prefixes end at a slash, a rule counts for clients of
    /// its own namespace before others, or for services of its own namespace.
    Gateway,
    /// An Ingress's: prefixes end at a slash.
    Ingress,
}

impl RouteSemantics {
    fn of(config: &Config<VirtualService>) -> Self {
        match config.annotations.get(SEMANTICS).map(String::as_str) {
            Some("gateway") => Self::Gateway,
            Some("ingress") => Self::Ingress,
            _ => Self::VirtualService,
        }
    }
}

/// A virtual service that is ready to be translated.
#[derive(Clone, Debug, PartialEq)]
pub struct RoutedService {
    /// The object, names resolved and delegates merged.
    pub config: Config<VirtualService>,
    /// Where each HTTP route was written, `http[1]`; parallel to `spec.http`.
    pub http_rules: Vec<String>,
    /// Whose rules hold for it.
    pub semantics: RouteSemantics,
}

impl RoutedService {
    /// The resolved rules.
    pub fn spec(&self) -> &VirtualService {
        &self.config.spec
    }
}

/// Virtual services by who may use them.
#[derive(Debug, Default)]
pub struct VirtualServiceIndex {
    public: BTreeMap<String, Vec<Arc<RoutedService>>>,
    private: BTreeMap<(String, String), Vec<Arc<RoutedService>>>,
    exported: BTreeMap<(String, String), Vec<Arc<RoutedService>>>,
}

impl VirtualServiceIndex {
    /// Indexes `configs` and what was derived from objects of other kinds;
    /// `default_export_to` holds for those that name none.
    pub(crate) fn build(
        configs: Vec<Arc<Config<VirtualService>>>,
        derived: Vec<RoutedService>,
        default_export_to: &[String],
    ) -> Self {
        let delegates = configs
            .iter()
            .filter(|config| config.spec.hosts.is_empty())
            .map(|config| (config.name.clone(), resolved(config)))
            .collect::<BTreeMap<_, _>>();
        let roots = configs.iter().filter(|config| !config.spec.hosts.is_empty());
        let mut all = derived;
        all.extend(
            roots.map(|root| merge_delegates(resolved(root), &delegates, default_export_to)),
        );
        all.sort_by(|a, b| a.config.age_key().cmp(&b.config.age_key()));
        let mut index = Self::default();
        for service in all {
            let written = &service.spec().export_to;
            let visible = export_to(written, default_export_to, service.config.namespace());
            index.insert(Arc::new(service), &visible);
        }
        index
    }

    fn insert(&mut self, service: Arc<RoutedService>, visible: &BTreeSet<String>) {
        let mesh = vec![MESH_GATEWAY.to_owned()];
        let gateways = match &service.spec().gateways {
            gateways if gateways.is_empty() => mesh,
            gateways => gateways.clone(),
        };
        for gateway in gateways {
            if visible.contains("*") {
                self.public.entry(gateway).or_default().push(service.clone());
            } else if !visible.contains("~") {
                for namespace in visible {
                    let own = namespace == service.config.namespace();
                    let map = if own { &mut self.private } else { &mut self.exported };
                    let key = (namespace.clone(), gateway.clone());
                    map.entry(key).or_default().push(service.clone());
                }
            }
        }
    }

    /// Those bound to `gateway` that `namespace` may use: private ones first,
    /// then those exported to it by name, then public ones, each by age. Of
    /// the public ones, the namespace's own routes of the Gateway API are first.
    pub fn for_gateway(&self, namespace: &str, gateway: &str) -> Vec<Arc<RoutedService>> {
        let key = (namespace.to_owned(), gateway.to_owned());
        let private = self.private.get(&key).into_iter().flatten();
        let exported = self.exported.get(&key).into_iter().flatten();
        let public = self.public.get(gateway).into_iter().flatten();
        let consumes = |service: &&Arc<RoutedService>| {
            service.semantics == RouteSemantics::Gateway && service.config.namespace() == namespace
        };
        let (own, others): (Vec<_>, Vec<_>) = public.partition(consumes);
        private.chain(exported).chain(own).chain(others).cloned().collect()
    }
}

/// Visibility with `.` spelled out and the default filled in.
pub(crate) fn export_to(
    written: &[String],
    default: &[String],
    namespace: &str,
) -> BTreeSet<String> {
    let list = if written.is_empty() { default } else { written };
    let spell = |entry: &String| match entry.as_str() {
        "." => namespace.to_owned(),
        _ => entry.clone(),
    };
    match list {
        [] => BTreeSet::from(["*".to_owned()]),
        list => list.iter().map(spell).collect(),
    }
}

fn resolved(config: &Config<VirtualService>) -> RoutedService {
    let namespace = config.namespace();
    let mut spec = config.spec.clone();
    for host in &mut spec.hosts {
        *host = resolve_host(host, namespace);
    }
    resolve_gateways(&mut spec.gateways, namespace);
    for route in &mut spec.http {
        resolve_http(route, namespace);
    }
    for route in &mut spec.tcp {
        route.r#match.iter_mut().for_each(|m| resolve_gateways(&mut m.gateways, namespace));
        route.route.iter_mut().for_each(|r| resolve_destination(&mut r.destination, namespace));
    }
    for route in &mut spec.tls {
        route.r#match.iter_mut().for_each(|m| resolve_gateways(&mut m.gateways, namespace));
        route.route.iter_mut().for_each(|r| resolve_destination(&mut r.destination, namespace));
    }
    let http_rules = (0..spec.http.len()).map(|i| format!("http[{i}]")).collect();
    let semantics = RouteSemantics::of(config);
    let config = Config { spec, ..config.clone() };
    RoutedService { config, http_rules, semantics }
}

fn resolve_http(route: &mut HttpRoute, namespace: &str) {
    route.r#match.iter_mut().for_each(|m| resolve_gateways(&mut m.gateways, namespace));
    route.route.iter_mut().for_each(|r| resolve_destination(&mut r.destination, namespace));
    if let Some(mirror) = &mut route.mirror {
        resolve_destination(mirror, namespace);
    }
    route.mirrors.iter_mut().for_each(|m| resolve_destination(&mut m.destination, namespace));
}

fn resolve_gateways(gateways: &mut [String], namespace: &str) {
    for gateway in gateways {
        *gateway = resolve_gateway(gateway, namespace);
    }
}

fn resolve_destination(destination: &mut Destination, namespace: &str) {
    destination.host = resolve_host(&destination.host, namespace);
}

/// Replaces each delegating route by the routes of its delegate.
///
/// A route whose delegate is missing, hidden or contradicts it falls away; the
/// others stay.
fn merge_delegates(
    mut root: RoutedService,
    delegates: &BTreeMap<NamespacedName, RoutedService>,
    default_export_to: &[String],
) -> RoutedService {
    if root.config.spec.http.iter().all(|route| route.delegate.is_none()) {
        return root;
    }
    let namespace = root.config.namespace().to_owned();
    let mut routes = Vec::new();
    let mut rules = Vec::new();
    let written = std::mem::take(&mut root.config.spec.http);
    for (route, rule) in written.into_iter().zip(&root.http_rules) {
        let Some(reference) = &route.delegate else {
            routes.push(route);
            rules.push(rule.clone());
            continue;
        };
        let delegate_namespace = match reference.namespace.as_str() {
            "" => &namespace,
            other => other,
        };
        let key = NamespacedName::new(delegate_namespace, reference.name.clone());
        let Some(delegate) = delegates.get(&key) else { continue };
        let visible = export_to(&delegate.spec().export_to, default_export_to, &key.namespace);
        if !visible.contains("*") && !visible.contains(&namespace) {
            continue;
        }
        for (inner, inner_rule) in delegate.spec().http.iter().zip(&delegate.http_rules) {
            if let Some(merged) = merge_route(&route, inner) {
                routes.push(merged);
                rules.push(format!("{rule} > {key} {inner_rule}"));
            }
        }
    }
    root.config.spec.http = routes;
    root.http_rules = rules;
    root
}

/// Ports a virtual service sends traffic to, by host; 0 stands for "any port".
///
/// With a namespace, routes that apply to other source namespaces only are left
/// out.
pub(crate) fn destinations(
    spec: &VirtualService,
    namespace: &str,
) -> BTreeMap<String, BTreeSet<u32>> {
    let mut hosts: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    let mut add = |destination: &Destination| {
        let port = destination.port.as_ref().map_or(0, |port| port.number);
        hosts.entry(destination.host.clone()).or_default().insert(port);
    };
    for route in spec.http.iter().filter(|route| applies_in(route, namespace)) {
        route.route.iter().for_each(|r| add(&r.destination));
        route.mirror.iter().for_each(&mut add);
        route.mirrors.iter().for_each(|m| add(&m.destination));
    }
    spec.tcp.iter().flat_map(|t| &t.route).for_each(|r| add(&r.destination));
    spec.tls.iter().flat_map(|t| &t.route).for_each(|r| add(&r.destination));
    hosts
}

fn applies_in(route: &HttpRoute, namespace: &str) -> bool {
    let mut matched = true;
    for condition in &route.r#match {
        match condition.source_namespace.as_str() {
            "" => {}
            source if source == namespace => return true,
            _ => matched = false,
        }
    }
    matched
}
