//! Route configurations compiled to lookup tables.
//!
//! Invariant: a table is immutable and refers to clusters by id, so it stays
//! valid while clusters come and go.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use amime_telemetry::DynamicMetadata;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::google::protobuf::Any;

use super::Compiler;
use super::filters::PerRoute;
use super::route_action::Action;
use super::virtual_cluster::VirtualCluster;
use amime_rules::Faults;
use amime_rules::head::RequestHead;
use amime_rules::headers::HeaderEdits;
use amime_rules::rate_limit::{LimitPolicy, RouteLimits, policies};
use amime_rules::route_match::{Asked, RouteMatch};
use amime_rules::route_tree::RouteTree;
use amime_rules::values::metadata_string;

/// A compiled `RouteConfiguration`.
#[derive(Debug)]
pub struct RouteTable {
    vhosts: Vec<VirtualHost>,
    exact: HashMap<Box<str>, usize>,
    /// `*.suffix` and `*-suffix` domains without the star, longest first.
    suffix: Vec<(Box<str>, usize)>,
    /// `prefix.*` domains without the star, longest first.
    prefix: Vec<(Box<str>, usize)>,
    any: Option<usize>,
    ignore_port: bool,
    /// Headers that only internal clients may send.
    pub internal_only: Vec<http::HeaderName>,
}

/// A compiled `VirtualHost`.
#[derive(Debug)]
pub struct VirtualHost {
    pub require_tls: RequireTls,
    routes: Vec<Route>,
    /// Says which of the routes are asked, in place of all in their order.
    tree: Option<RouteTree>,
    virtual_clusters: Vec<VirtualCluster>,
}

/// A table as one worker shares it: counted within the thread, so that
/// requests of several workers do not fight over one count.
#[derive(Debug)]
pub struct LocalTable(pub Arc<RouteTable>);

impl std::ops::Deref for LocalTable {
    type Target = RouteTable;

    fn deref(&self) -> &RouteTable {
        &self.0
    }
}

/// A route within its table, held without touching a count that other
/// workers share.
#[derive(Clone, Debug)]
pub struct RouteRef {
    table: Rc<LocalTable>,
    vhost: usize,
    route: usize,
}

impl std::ops::Deref for RouteRef {
    type Target = Route;

    fn deref(&self) -> &Route {
        &self.table.vhosts[self.vhost].routes[self.route]
    }
}

impl VirtualHost {
    fn find(&self, asked: Asked<'_>) -> Option<usize> {
        let matches = |route: &Route| route.matcher.matches(asked);
        match &self.tree {
            None => self.routes.iter().position(matches),
            Some(tree) => {
                tree.find(asked.head)?.find(|at| self.routes.get(*at).is_some_and(matches))
            }
        }
    }
}

impl RouteRef {
    /// The virtual host of a request and its route there, if it has them.
    pub fn find(table: &Rc<LocalTable>, asked: Asked<'_>) -> Option<(RequireTls, Option<Self>)> {
        let (vhost, host) = table.vhost(asked.head.authority())?;
        let route = host.find(asked);
        let found = route.map(|route| Self { table: table.clone(), vhost, route });
        Some((host.require_tls, found))
    }

    /// The number of the virtual cluster that a request belongs to.
    pub fn virtual_cluster_of(&self, head: &RequestHead) -> Option<usize> {
        let all = &self.table.vhosts[self.vhost].virtual_clusters;
        all.iter().position(|one| one.takes(head))
    }

    /// A virtual cluster by its number.
    pub fn virtual_cluster(&self, number: usize) -> Option<&VirtualCluster> {
        self.table.vhosts[self.vhost].virtual_clusters.get(number)
    }
}

/// Whether plaintext requests are redirected to https.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequireTls {
    No,
    ExternalOnly,
    All,
}

/// A compiled `Route` with what its parents add.
#[derive(Debug)]
pub struct Route {
    pub name: Arc<str>,
    /// `filter_metadata.istio.config`: the object that it came from.
    pub origin: Option<Arc<str>>,
    /// What else its metadata says.
    pub metadata: Option<Box<DynamicMetadata>>,
    pub matcher: RouteMatch,
    pub action: Action,
    pub request_edits: HeaderEdits,
    pub response_edits: HeaderEdits,
    pub filters: PerRoute,
    pub limits: RouteLimits,
    pub attempt_count: AttemptCount,
    pub buffer_limit: BufferLimit,
}

/// Body bytes kept for retries.
#[derive(Clone, Copy, Debug)]
pub enum BufferLimit {
    /// The connection's own limit counts too.
    Within(usize),
    /// Whatever the connection's limit.
    Own(usize),
}

impl BufferLimit {
    /// The limit on a connection that may buffer `connection` bytes.
    pub fn of(self, connection: usize) -> usize {
        match self {
            Self::Within(limit) => limit.min(connection),
            Self::Own(limit) => limit,
        }
    }

    fn compile(value: &pb::Route, vhost: &pb::VirtualHost) -> Self {
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let own = value.request_body_buffer_limit.as_ref();
        let within = value.per_request_buffer_limit_bytes.as_ref();
        // A route that says anything is not asked for the other field's value
        // of its virtual host.
        let (own, within) = match (own, within) {
            (None, None) => (
                vhost.request_body_buffer_limit.as_ref(),
                vhost.per_request_buffer_limit_bytes.as_ref(),
            ),
            found => found,
        };
        match (own, within) {
            (Some(limit), _) => Self::Own(size(limit.value)),
            (None, Some(limit)) => Self::Within(limit.value as usize),
            (None, None) => Self::Within(usize::MAX),
        }
    }
}

/// Where the attempt count is told.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttemptCount {
    pub in_request: bool,
    pub in_response: bool,
}

impl RouteTable {
    pub fn compile(value: &pb::RouteConfiguration, compiler: &mut Compiler<'_>) -> Self {
        let mut table = Self {
            vhosts: Vec::with_capacity(value.virtual_hosts.len()),
            exact: HashMap::new(),
            suffix: Vec::new(),
            prefix: Vec::new(),
            any: None,
            ignore_port: value.ignore_port_in_host_matching,
            internal_only: Vec::new(),
        };
        let faults = &mut compiler.faults;
        faults.reject_if(value.vhds.is_some(), "vhds");
        faults.reject_if(!value.cluster_specifier_plugins.is_empty(), "cluster_specifier_plugins");
        faults.reject_if(!value.vhost_header.is_empty(), "vhost_header");
        for name in &value.internal_only_headers {
            match name.parse() {
                Ok(name) => table.internal_only.push(name),
                Err(_) => faults.reject("internal_only_headers", format!("`{name}` is no header")),
            }
        }
        let own = Layer::of_table(value, compiler);
        for (index, vhost) in value.virtual_hosts.iter().enumerate() {
            compiler.faults.enter(format!("virtual_hosts[{index}]({})", vhost.name));
            table.add(vhost, value, &own, compiler);
            compiler.faults.leave();
        }
        table.suffix.sort_by_key(|(domain, _)| std::cmp::Reverse(domain.len()));
        table.prefix.sort_by_key(|(domain, _)| std::cmp::Reverse(domain.len()));
        table
    }

    fn add(
        &mut self,
        value: &pb::VirtualHost,
        table_pb: &pb::RouteConfiguration,
        table: &Layer,
        compiler: &mut Compiler<'_>,
    ) {
        let index = self.vhosts.len();
        for domain in &value.domains {
            let domain = domain.to_ascii_lowercase();
            let fresh = if domain == "*" {
                self.any.replace(index).is_none()
            } else if let Some(suffix) = domain.strip_prefix('*') {
                let fresh = !self.suffix.iter().any(|(have, _)| **have == *suffix);
                self.suffix.push((suffix.into(), index));
                fresh
            } else if let Some(prefix) = domain.strip_suffix('*') {
                let fresh = !self.prefix.iter().any(|(have, _)| **have == *prefix);
                self.prefix.push((prefix.into(), index));
                fresh
            } else {
                self.exact.insert(domain.as_str().into(), index).is_none()
            };
            if !fresh {
                compiler.faults.reject("domains", format!("`{domain}` appears twice"));
            }
        }
        let layers = Layers {
            table,
            vhost: &Layer::of_vhost(value, compiler),
            table_pb,
            vhost_pb: value,
            limits: Arc::new(policies(&value.rate_limits, "rate_limits", &mut compiler.faults)),
        };
        compiler.faults.ignore_if(value.hedge_policy.is_some(), "hedge_policy");
        let virtual_clusters = VirtualCluster::compile_all(value, compiler);
        let require_tls = match value.require_tls() {
            pb::virtual_host::TlsRequirementType::None => RequireTls::No,
            pb::virtual_host::TlsRequirementType::ExternalOnly => RequireTls::ExternalOnly,
            pb::virtual_host::TlsRequirementType::All => RequireTls::All,
        };
        let faults = &mut compiler.faults;
        let tree = value.matcher.as_ref().and_then(|tree| RouteTree::compile(tree, faults));
        faults.reject_if(tree.is_some() && !value.routes.is_empty(), "routes");
        let (tree, own) = tree.unzip();
        let own = own.as_deref().unwrap_or(&value.routes);
        let mut routes = Vec::with_capacity(own.len());
        for (index, route) in own.iter().enumerate() {
            compiler.faults.enter(format!("routes[{index}]"));
            routes.extend(Route::compile(route, &layers, compiler));
            compiler.faults.leave();
        }
        self.vhosts.push(VirtualHost { require_tls, routes, tree, virtual_clusters });
    }

    /// The virtual host of `authority`.
    pub fn vhost(&self, authority: &str) -> Option<(usize, &VirtualHost)> {
        self.vhost_index(authority).map(|index| (index, &self.vhosts[index]))
    }

    /// Exact, then suffix, then prefix domains, longest first, then `*`.
    fn vhost_index(&self, authority: &str) -> Option<usize> {
        if self.exact.is_empty() && self.suffix.is_empty() && self.prefix.is_empty() {
            return self.any;
        }
        let authority = if self.ignore_port { without_port(authority) } else { authority };
        let mut lower = [0_u8; 256];
        let Some(host) = lower.get_mut(..authority.len()) else {
            return self.any;
        };
        host.copy_from_slice(authority.as_bytes());
        host.make_ascii_lowercase();
        let host = std::str::from_utf8(host).unwrap_or_default();
        self.exact.get(host).copied().or_else(|| {
            let longer = |part: &str| host.len() > part.len();
            self.suffix
                .iter()
                .find(|(part, _)| longer(part) && host.ends_with(&**part))
                .or_else(|| {
                    self.prefix.iter().find(|(part, _)| longer(part) && host.starts_with(&**part))
                })
                .map(|(_, index)| *index)
                .or(self.any)
        })
    }
}

/// `host` without `:port`; IPv6 literals keep their brackets.
pub fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port))
            if port.bytes().all(|byte| byte.is_ascii_digit())
                && (!host.contains(':') || host.ends_with(']')) =>
        {
            host
        }
        _ => authority,
    }
}

/// A route's metadata, without what control planes say of its origin: every
/// route has that, and nobody asks for it.
fn metadata_of(value: Option<&core::Metadata>) -> Option<Box<DynamicMetadata>> {
    let mut found = None::<Box<DynamicMetadata>>;
    let namespaces = value?.filter_metadata.iter().filter(|(name, _)| *name != "istio");
    for (name, fields) in namespaces {
        found.get_or_insert_default().put(name, fields);
    }
    found
}

/// What one level adds to its routes.
struct Layer {
    request: HeaderEdits,
    response: HeaderEdits,
    filters: PerRoute,
}

impl Layer {
    fn new(
        edits: EditFields<'_>,
        filters: &HashMap<String, Any>,
        compiler: &mut Compiler<'_>,
    ) -> Self {
        Self {
            request: HeaderEdits::compile(
                edits.request_add,
                edits.request_remove,
                ["request_headers_to_add", "request_headers_to_remove"],
                &mut compiler.faults,
            ),
            response: HeaderEdits::compile(
                edits.response_add,
                edits.response_remove,
                ["response_headers_to_add", "response_headers_to_remove"],
                &mut compiler.faults,
            ),
            filters: PerRoute::compile(filters, compiler),
        }
    }

    fn of_table(value: &pb::RouteConfiguration, compiler: &mut Compiler<'_>) -> Self {
        let edits = EditFields {
            request_add: &value.request_headers_to_add,
            request_remove: &value.request_headers_to_remove,
            response_add: &value.response_headers_to_add,
            response_remove: &value.response_headers_to_remove,
        };
        Self::new(edits, &value.typed_per_filter_config, compiler)
    }

    fn of_vhost(value: &pb::VirtualHost, compiler: &mut Compiler<'_>) -> Self {
        let edits = EditFields {
            request_add: &value.request_headers_to_add,
            request_remove: &value.request_headers_to_remove,
            response_add: &value.response_headers_to_add,
            response_remove: &value.response_headers_to_remove,
        };
        let mut layer = Self::new(edits, &value.typed_per_filter_config, compiler);
        layer.filters.add_cors(value.cors.as_ref(), compiler);
        layer
    }
}

struct EditFields<'a> {
    request_add: &'a [core::HeaderValueOption],
    request_remove: &'a [String],
    response_add: &'a [core::HeaderValueOption],
    response_remove: &'a [String],
}

/// The levels above a route.
pub(crate) struct Layers<'a> {
    table: &'a Layer,
    vhost: &'a Layer,
    table_pb: &'a pb::RouteConfiguration,
    pub(crate) vhost_pb: &'a pb::VirtualHost,
    limits: Arc<Vec<LimitPolicy>>,
}

impl Layers<'_> {
    /// The edits of all levels in Envoy's order: the last one wins, so the
    /// most specific comes first unless the table says otherwise.
    fn merge(&self, own: &HeaderEdits, pick: impl Fn(&Layer) -> &HeaderEdits) -> HeaderEdits {
        let mut order = [own, pick(self.vhost), pick(self.table)];
        if self.table_pb.most_specific_header_mutations_wins {
            order.reverse();
        }
        let mut merged = HeaderEdits::default();
        order.into_iter().for_each(|edits| merged.then(edits));
        merged
    }
}

impl<'a> Layers<'a> {
    /// Mirrors of a route, else of the nearest level that has some.
    pub(crate) fn mirrors<'b>(
        &self,
        own: &'b [pb::route_action::RequestMirrorPolicy],
    ) -> &'b [pb::route_action::RequestMirrorPolicy]
    where
        'a: 'b,
    {
        let levels =
            [own, &self.vhost_pb.request_mirror_policies, &self.table_pb.request_mirror_policies];
        levels.into_iter().find(|level| !level.is_empty()).unwrap_or(own)
    }
}

impl Layers<'_> {
    fn limits(&self, route: &pb::Route, faults: &mut Faults) -> RouteLimits {
        let (own, include_vhost) = match route.action.as_ref() {
            Some(pb::route::Action::Route(action)) => {
                let include = action.include_vh_rate_limits.as_ref();
                (&*action.rate_limits, include.is_some_and(|include| include.value))
            }
            _ => (&[][..], false),
        };
        RouteLimits {
            route: Arc::new(policies(own, "route.rate_limits", faults)),
            vhost: self.limits.clone(),
            include_vhost,
        }
    }
}

impl Route {
    fn compile(
        value: &pb::Route,
        layers: &Layers<'_>,
        compiler: &mut Compiler<'_>,
    ) -> Option<Self> {
        let edits = EditFields {
            request_add: &value.request_headers_to_add,
            request_remove: &value.request_headers_to_remove,
            response_add: &value.response_headers_to_add,
            response_remove: &value.response_headers_to_remove,
        };
        let mut own = Layer::new(edits, &value.typed_per_filter_config, compiler);
        let matcher = match value.r#match.as_ref() {
            Some(matcher) => {
                compiler.faults.within("match", |faults| RouteMatch::compile(matcher, faults))
            }
            None => {
                compiler.faults.reject("match", "missing");
                None
            }
        };
        let mut action = Action::compile(value, layers, compiler);
        if let Some(pb::route::Action::Route(action)) = value.action.as_ref() {
            own.filters.add_cors(action.cors.as_ref(), compiler);
        }
        let mut filters = own.filters;
        filters.inherit(&layers.vhost.filters);
        filters.inherit(&layers.table.filters);
        if let Some(Action::Forward(forward)) = &mut action {
            forward.cluster.inherit(&filters);
        }
        let limits = layers.limits(value, &mut compiler.faults);
        Some(Self {
            name: value.name.as_str().into(),
            origin: metadata_string(value.metadata.as_ref(), "istio", "config").map(Into::into),
            metadata: metadata_of(value.metadata.as_ref()),
            matcher: matcher?,
            action: action?,
            request_edits: layers.merge(&own.request, |layer| &layer.request),
            response_edits: layers.merge(&own.response, |layer| &layer.response),
            filters,
            limits,
            attempt_count: AttemptCount {
                in_request: layers.vhost_pb.include_request_attempt_count,
                in_response: layers.vhost_pb.include_attempt_count_in_response,
            },
            buffer_limit: BufferLimit::compile(value, layers.vhost_pb),
        })
    }
}
