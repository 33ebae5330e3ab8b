//! Kinds of requests whose statistics are kept apart.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/router_filter#virtual-clusters>

use amime_telemetry::SharedCounter;
use envoy_types::pb::envoy::config::route::v3 as pb;

use super::Compiler;
use amime_rules::head::RequestHead;
use amime_rules::matcher::{HeaderMatcher, header_matchers};

/// Name of what is none of the named ones.
const OTHER: &str = "other";

/// A compiled `VirtualCluster`.
#[derive(Debug)]
pub struct VirtualCluster {
    /// `None` for what is none of the named ones.
    pub name: Option<Box<str>>,
    headers: Vec<HeaderMatcher>,
    completed: SharedCounter,
    classes: [SharedCounter; 5],
}

impl VirtualCluster {
    /// Those of a virtual host, the one of all other requests last; none if
    /// none is named.
    pub(crate) fn compile_all(value: &pb::VirtualHost, compiler: &mut Compiler<'_>) -> Vec<Self> {
        if value.virtual_clusters.is_empty() {
            return Vec::new();
        }
        let mut all = Vec::with_capacity(value.virtual_clusters.len() + 1);
        for (index, one) in value.virtual_clusters.iter().enumerate() {
            compiler.faults.enter(format!("virtual_clusters[{index}]"));
            if one.name.is_empty() || one.headers.is_empty() {
                compiler.faults.reject("", "name or headers are missing");
            }
            let headers = header_matchers(&one.headers, "headers", &mut compiler.faults);
            compiler.faults.leave();
            let cluster = Self::new(&value.name, &one.name, headers, compiler);
            all.push(Self { name: Some(one.name.as_str().into()), ..cluster });
        }
        all.push(Self::new(&value.name, OTHER, Vec::new(), compiler));
        all
    }

    fn new(host: &str, name: &str, headers: Vec<HeaderMatcher>, compiler: &Compiler<'_>) -> Self {
        let tags = [("envoy_virtual_host", host), ("envoy_virtual_cluster", name)];
        let counter = |leaf: &str| {
            compiler.telemetry.counter(&format!("vhost.{host}.vcluster.{name}.{leaf}"), &tags)
        };
        Self {
            name: None,
            headers,
            completed: counter("upstream_rq_completed"),
            classes: [1, 2, 3, 4, 5].map(|class| counter(&format!("upstream_rq_{class}xx"))),
        }
    }

    pub(crate) fn takes(&self, head: &RequestHead) -> bool {
        self.headers.iter().all(|header| header.matches(head))
    }

    /// Counts an answer by its status.
    pub fn count(&self, status: u16) {
        self.completed.inc();
        let class = usize::from(status / 100).checked_sub(1);
        if let Some(class) = class.and_then(|class| self.classes.get(class)) {
            class.inc();
        }
    }
}
