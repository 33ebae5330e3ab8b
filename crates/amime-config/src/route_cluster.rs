//! Which cluster a route sends a request to, and where copies go.

use envoy_types::pb::envoy::config::route::v3 as pb;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::Compiler;
use super::filters::PerRoute;
use super::names::ClusterId;
use amime_rules::Faults;
use amime_rules::criteria::MetadataMatch;
use amime_rules::headers::HeaderEdits;
use amime_rules::values::{self, Fraction};

/// How the cluster is chosen.
#[derive(Debug)]
pub enum ClusterChoice {
    One(ClusterId),
    Weighted { entries: Vec<WeightedCluster>, total: u64, by: DrawnBy },
    Header(HeaderName),
}

/// What decides between weighted clusters.
#[derive(Debug)]
pub enum DrawnBy {
    Chance,
    /// The number in a header, where there is one.
    Header(HeaderName),
    /// The hash that endpoints are chosen by, where there is one.
    Hash,
}

/// A cluster, or the header that names it.
#[derive(Clone, Debug)]
pub enum Destination {
    Cluster(ClusterId),
    Header(HeaderName),
}

impl Destination {
    fn compile(name: &str, header: &str, compiler: &mut Compiler<'_>) -> Option<Self> {
        if header.is_empty() {
            return Some(Self::Cluster(compiler.names.cluster(name)));
        }
        let parsed = header.to_ascii_lowercase().parse();
        if parsed.is_err() {
            compiler.faults.reject("cluster_header", format!("`{header}` is not a header"));
        }
        parsed.map(Self::Header).ok()
    }
}

/// One destination of a weighted route.
#[derive(Debug)]
pub struct WeightedCluster {
    pub cluster: Destination,
    pub weight: u64,
    pub host_rewrite: Option<HeaderValue>,
    pub request_edits: HeaderEdits,
    pub response_edits: HeaderEdits,
    /// The route's criteria with the entry's own over them.
    pub metadata_match: Option<MetadataMatch>,
    /// Filter settings, its own before the route's.
    pub filters: PerRoute,
}

/// A copy of requests sent elsewhere, its response dropped.
#[derive(Debug)]
pub struct Mirror {
    pub cluster: Destination,
    pub fraction: Fraction,
    pub append_shadow: bool,
}

impl ClusterChoice {
    /// `criteria` are the route's own.
    pub(crate) fn compile(
        value: &pb::RouteAction,
        criteria: Option<&MetadataMatch>,
        compiler: &mut Compiler<'_>,
    ) -> Option<Self> {
        use pb::route_action::ClusterSpecifier;
        match value.cluster_specifier.as_ref() {
            Some(ClusterSpecifier::Cluster(name)) => Some(Self::One(compiler.names.cluster(name))),
            Some(ClusterSpecifier::ClusterHeader(name)) => match name.parse() {
                Ok(name) => Some(Self::Header(name)),
                Err(_) => {
                    compiler.faults.reject("cluster_header", format!("`{name}` is not a header"));
                    None
                }
            },
            Some(ClusterSpecifier::WeightedClusters(weighted)) => {
                Self::weighted(weighted, criteria, compiler)
            }
            Some(_) => {
                compiler.faults.reject("cluster_specifier", "plugins are not supported");
                None
            }
            None => {
                compiler.faults.reject("cluster_specifier", "missing");
                None
            }
        }
    }

    /// Puts what the route says of filters behind what its destinations say.
    pub(crate) fn inherit(&mut self, route: &PerRoute) {
        if let Self::Weighted { entries, .. } = self {
            entries.iter_mut().for_each(|entry| entry.filters.inherit(route));
        }
    }

    /// Draws one of several destinations.
    pub fn draw(
        &self,
        headers: &HeaderMap,
        hash: impl FnOnce() -> Option<u64>,
    ) -> Option<&WeightedCluster> {
        let Self::Weighted { entries, total, by } = self else { return None };
        let number: Option<u64> = match by {
            DrawnBy::Chance => None,
            DrawnBy::Hash => hash(),
            // Of several numbers none is the right one.
            DrawnBy::Header(name) => {
                let mut values = headers.get_all(name).iter();
                let one = values.next().filter(|_| values.next().is_none());
                one.and_then(|value| value.to_str().ok()?.trim().parse().ok())
            }
        };
        let mut left = match number {
            Some(number) => number % total,
            None => fastrand::u64(0..*total),
        };
        let chosen = entries.iter().find(|entry| {
            let found = left < entry.weight;
            left = left.saturating_sub(entry.weight);
            found
        });
        chosen.or(entries.first())
    }

    fn weighted(
        value: &pb::WeightedCluster,
        criteria: Option<&MetadataMatch>,
        compiler: &mut Compiler<'_>,
    ) -> Option<Self> {
        compiler.faults.enter("weighted_clusters");
        let mut entries = Vec::with_capacity(value.clusters.len());
        for (index, entry) in value.clusters.iter().enumerate() {
            compiler.faults.enter(format!("clusters[{index}]"));
            entries.extend(WeightedCluster::compile(entry, criteria, compiler));
            compiler.faults.leave();
        }
        let total = entries.iter().map(|entry| entry.weight).sum();
        if total == 0 {
            compiler.faults.reject("", "the sum of weights is zero");
        }
        let by = DrawnBy::compile(value, &mut compiler.faults);
        compiler.faults.leave();
        (total > 0).then_some(Self::Weighted { entries, total, by })
    }
}

impl DrawnBy {
    fn compile(value: &pb::WeightedCluster, faults: &mut Faults) -> Self {
        use pb::weighted_cluster::RandomValueSpecifier;
        match value.random_value_specifier.as_ref() {
            Some(RandomValueSpecifier::HeaderName(name)) => match name.to_ascii_lowercase().parse()
            {
                Ok(name) => Self::Header(name),
                Err(_) => {
                    faults.reject("header_name", format!("`{name}` is not a header"));
                    Self::Chance
                }
            },
            Some(RandomValueSpecifier::UseHashPolicy(on)) if on.value => Self::Hash,
            Some(RandomValueSpecifier::UseHashPolicy(_)) | None => Self::Chance,
        }
    }
}

impl WeightedCluster {
    fn compile(
        value: &pb::weighted_cluster::ClusterWeight,
        criteria: Option<&MetadataMatch>,
        compiler: &mut Compiler<'_>,
    ) -> Option<Self> {
        use pb::weighted_cluster::cluster_weight::HostRewriteSpecifier;
        let cluster = Destination::compile(&value.name, &value.cluster_header, compiler)?;
        let filters = PerRoute::compile(&value.typed_per_filter_config, compiler);
        let faults = &mut compiler.faults;
        let host_rewrite = value.host_rewrite_specifier.as_ref();
        Some(Self {
            cluster,
            weight: u64::from(values::u32_or(value.weight.as_ref(), 0)),
            host_rewrite: host_rewrite.and_then(
                |HostRewriteSpecifier::HostRewriteLiteral(host)| HeaderValue::from_str(host).ok(),
            ),
            request_edits: HeaderEdits::compile(
                &value.request_headers_to_add,
                &value.request_headers_to_remove,
                ["request_headers_to_add", "request_headers_to_remove"],
                faults,
            ),
            response_edits: HeaderEdits::compile(
                &value.response_headers_to_add,
                &value.response_headers_to_remove,
                ["response_headers_to_add", "response_headers_to_remove"],
                faults,
            ),
            metadata_match: MetadataMatch::compile(value.metadata_match.as_ref(), criteria),
            filters,
        })
    }
}

impl Mirror {
    pub(crate) fn compile_all(
        list: &[pb::route_action::RequestMirrorPolicy],
        compiler: &mut Compiler<'_>,
    ) -> Vec<Self> {
        let mut mirrors = Vec::new();
        for policy in list {
            let cluster = Destination::compile(&policy.cluster, &policy.cluster_header, compiler);
            let Some(cluster) = cluster else { continue };
            mirrors.push(Self {
                cluster,
                fraction: policy
                    .runtime_fraction
                    .as_ref()
                    .map_or(Fraction::ALWAYS, Fraction::from_runtime),
                append_shadow: !policy.disable_shadow_host_suffix_append,
            });
        }
        mirrors
    }
}
