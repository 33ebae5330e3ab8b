//! Names that lead nowhere: hosts, subsets, gateways, gateway workloads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use amime_api::meta::selects;
use amime_api::networking::Destination;
use amime_api::{ObjectKey, Resource};
use amime_core::Hostname;
use amime_model::{MESH_GATEWAY, Snapshot, resolve_gateway, resolve_host};

use super::{Findings, virtual_services};
use crate::problem::{At, Code, Severity};

const MISSING: (Severity, Code) = (Severity::Error, Code::REFERENCED_NOT_FOUND);

pub(super) fn check(snapshot: &Snapshot, findings: &mut Findings) {
    let known = Known::of(snapshot);
    for (key, object) in virtual_services(snapshot) {
        let at = At::root("spec");
        known.check_gateways(key, &object.spec.gateways, &at, findings);
        for (at, route) in at.each("http", &object.spec.http) {
            for (at, item) in at.each("match", &route.r#match) {
                known.check_gateways(key, &item.gateways, &at, findings);
            }
            for (at, item) in at.each("route", &route.route) {
                known.check_destination(key, &item.destination, &at.field("destination"), findings);
            }
            if let Some(mirror) = &route.mirror {
                known.check_destination(key, mirror, &at.field("mirror"), findings);
            }
            for (at, item) in at.each("mirrors", &route.mirrors) {
                known.check_destination(key, &item.destination, &at.field("destination"), findings);
            }
        }
        let layer4 = [
            ("tls", object.spec.tls.iter().map(|route| &route.route).collect::<Vec<_>>()),
            ("tcp", object.spec.tcp.iter().map(|route| &route.route).collect()),
        ];
        for (name, lists) in layer4 {
            for (at, routes) in at.each(name, &lists) {
                for (at, item) in at.each("route", routes) {
                    let destination = at.field("destination");
                    known.check_destination(key, &item.destination, &destination, findings);
                }
            }
        }
    }
    known.check_rules(snapshot, findings);
    check_gateway_workloads(snapshot, findings);
}

/// What can be referred to.
struct Known {
    hosts: BTreeSet<Hostname>,
    wildcards: Vec<Hostname>,
    /// Subset names by the host of their rule.
    subsets: BTreeMap<Hostname, BTreeSet<String>>,
    gateways: BTreeSet<String>,
}

impl Known {
    fn of(snapshot: &Snapshot) -> Self {
        let services = snapshot.services().all();
        let hosts: BTreeSet<Hostname> = services.iter().map(|s| s.hostname.clone()).collect();
        let wildcards = hosts.iter().filter(|host| host.is_wildcard()).cloned().collect();
        let mut subsets: BTreeMap<Hostname, BTreeSet<String>> = BTreeMap::new();
        let mut gateways = BTreeSet::new();
        for (key, resource) in snapshot.resources() {
            match Arc::as_ref(resource) {
                Resource::DestinationRule(object) => {
                    let host = Hostname::new(resolve_host(&object.spec.host, &key.namespace));
                    let names = object.spec.subsets.iter().map(|subset| subset.name.clone());
                    subsets.entry(host).or_default().extend(names);
                }
                Resource::Gateway(_) => {
                    gateways.insert(format!("{}/{}", key.namespace, key.name));
                }
                _ => {}
            }
        }
        Self { hosts, wildcards, subsets, gateways }
    }

    fn has_host(&self, host: &Hostname) -> bool {
        self.hosts.contains(host) || self.wildcards.iter().any(|known| host.matches(known))
    }

    fn check_gateways(&self, key: &ObjectKey, names: &[String], at: &At, findings: &mut Findings) {
        for (at, name) in at.each("gateways", names).filter(|(_, name)| *name != MESH_GATEWAY) {
            if !self.gateways.contains(&resolve_gateway(name, &key.namespace)) {
                findings.push(key, MISSING, &at, format!("there is no gateway {name:?}"));
            }
        }
    }

    fn check_destination(
        &self,
        key: &ObjectKey,
        destination: &Destination,
        at: &At,
        findings: &mut Findings,
    ) {
        let host = Hostname::new(resolve_host(&destination.host, &key.namespace));
        if !self.has_host(&host) {
            let message = format!("there is no service {:?}", host.as_str());
            return findings.push(key, MISSING, &at.field("host"), message);
        }
        if destination.subset.is_empty() {
            return;
        }
        let named = self
            .subsets
            .iter()
            .any(|(rule, names)| host.subset_of(rule) && names.contains(&destination.subset));
        if !named {
            let message = format!(
                "no DestinationRule for {:?} has a subset {:?}; requests get 503",
                host.as_str(),
                destination.subset
            );
            findings.push(key, MISSING, &at.field("subset"), message);
        }
    }

    fn check_rules(&self, snapshot: &Snapshot, findings: &mut Findings) {
        for (key, resource) in snapshot.resources() {
            let Resource::DestinationRule(object) = Arc::as_ref(resource) else { continue };
            let host = Hostname::new(resolve_host(&object.spec.host, &key.namespace));
            let covers = |known: &Hostname| known.matches(&host);
            if !self.has_host(&host) && !self.hosts.iter().any(covers) {
                let message = format!("there is no service {:?}", host.as_str());
                findings.push(key, MISSING, &At::root("spec").field("host"), message);
            }
        }
    }
}

fn check_gateway_workloads(snapshot: &Snapshot, findings: &mut Findings) {
    let pods: Vec<_> = snapshot
        .resources()
        .filter_map(|(_, resource)| match Arc::as_ref(resource) {
            Resource::Pod(object) => Some(&object.metadata.labels),
            _ => None,
        })
        .collect();
    for (key, resource) in snapshot.resources() {
        let Resource::Gateway(object) = Arc::as_ref(resource) else { continue };
        if !pods.iter().any(|labels| selects(&object.spec.selector, labels)) {
            let at = At::root("spec").field("selector");
            findings.push(key, MISSING, &at, "no workload has these labels".to_owned());
        }
    }
}
