//! Which service ports a workload serves, and what is known about it.

use std::collections::BTreeSet;
use std::sync::Arc;

use amime_api::k8s::ServiceSpec;
use amime_api::{Kind, Object, Resource};
use amime_core::Protocol;

use crate::endpoints::{in_namespace, labels_of};
use crate::kube::target_port;
use crate::names::service_host;
use crate::service::{Labels, Registry, Resolution, Service, ServiceTarget, selects};
use crate::snapshot::Snapshot;
use crate::workload::Workload;

impl Snapshot {
    /// Labels of the workload at these addresses; `fallback` if we know none.
    pub fn workload_labels(&self, namespace: &str, ips: &[String], fallback: &Labels) -> Labels {
        labels_of(self.workload(namespace, ips), fallback)
    }

    fn workload(&self, namespace: &str, ips: &[String]) -> Option<&Arc<Workload>> {
        self.endpoint_index().workload_at(namespace, ips.first()?)
    }

    /// Service ports that a workload serves, by age of the service.
    ///
    /// A workload that we have not heard of yet is judged by the labels that
    /// its proxy reports.
    pub fn service_targets(
        &self,
        namespace: &str,
        ips: &[String],
        labels: &Labels,
    ) -> Vec<ServiceTarget> {
        let workload = self.workload(namespace, ips);
        let labels = labels_of(workload, labels);
        let mut targets = self.selecting(namespace, &labels, workload);
        if targets.is_empty() {
            targets = self.serving(namespace, &ips[..ips.len().min(1)], Registry::Kubernetes);
        }
        targets.extend(self.serving(namespace, ips, Registry::External));
        targets.sort_by(|a, b| {
            let key = |t: &ServiceTarget| {
                (t.service.created.clone(), t.service.hostname.as_str().to_owned())
            };
            key(a).cmp(&key(b))
        });
        targets
    }

    /// Targets of Kubernetes services whose selector matches.
    fn selecting(
        &self,
        namespace: &str,
        labels: &Labels,
        workload: Option<&Arc<Workload>>,
    ) -> Vec<ServiceTarget> {
        let mut targets = Vec::new();
        let objects = self.resources_of(Kind::Service, namespace);
        for object in objects.filter_map(|resource| match resource {
            Resource::Service(object) => Some(object),
            _ => None,
        }) {
            let selector = &object.spec.selector;
            if selector.is_empty() || !selects(selector, labels) {
                continue;
            }
            let host = service_host(&object.metadata.name, namespace);
            let service = self.services().get(namespace, &host.into());
            let is_entry = workload.is_some_and(|w| !w.is_pod);
            let usable = |service: &&Arc<Service>| {
                service.registry == Registry::Kubernetes
                    && (!is_entry || service.resolution == Resolution::Static)
            };
            if let Some(service) = service.filter(usable) {
                targets.extend(port_targets(object, service, workload.map(AsRef::as_ref)));
            }
        }
        targets
    }

    fn resources_of<'a>(
        &'a self,
        kind: Kind,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Resource> {
        in_namespace(self.raw_resources(), kind, namespace)
    }

    /// Targets of services that have an endpoint at one of these addresses.
    fn serving(&self, namespace: &str, ips: &[String], registry: Registry) -> Vec<ServiceTarget> {
        let mut targets = Vec::new();
        for ip in ips {
            for (key, number, target_port) in self.endpoint_index().serving(namespace, ip) {
                let service = self.services().get(namespace, &key.hostname);
                let Some(service) = service.filter(|s| s.registry == registry) else { continue };
                if let Some(port) = service.port(number).cloned() {
                    targets.push(ServiceTarget { service: service.clone(), port, target_port });
                }
            }
        }
        targets
    }
}

/// One target for each distinct pair of workload port and protocol.
fn port_targets(
    object: &Object<ServiceSpec>,
    service: &Arc<Service>,
    workload: Option<&Workload>,
) -> Vec<ServiceTarget> {
    let mut seen: BTreeSet<(u32, Protocol)> = BTreeSet::new();
    let mut targets = Vec::new();
    for declared in &object.spec.ports {
        // Ports are looked up by name, so of two with one name the first counts.
        let Some(port) = service.ports.iter().find(|port| port.name == declared.name) else {
            continue;
        };
        let mapped = workload
            .filter(|workload| !workload.is_pod)
            .and_then(|workload| workload.ports.get(&declared.name).copied());
        let Some(target_port) = mapped.or_else(|| target_port(declared, workload)) else {
            continue;
        };
        if seen.insert((target_port, port.protocol)) {
            let service = service.clone();
            targets.push(ServiceTarget { service, port: port.clone(), target_port });
        }
    }
    targets
}
