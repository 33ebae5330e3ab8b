//! Services as the network needs them: addresses and names of ready pods.
//!
//! Pure: from all objects to the translation of service addresses and to the
//! table of names.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use amime_api::k8s::{Endpoints, IntOrString, PodSpec, PodStatus, ServicePort, ServiceSpec};
use amime_api::meta::selects;
use amime_api::{Object, Resource};
use amime_net::nft::L4;

use crate::dns::{Answer, Names};
use crate::network::Forward;

/// Domain of service names.
pub(crate) const DOMAIN: &str = "cluster.local";

/// A pod with an address.
struct Backend<'a> {
    object: &'a Object<PodSpec>,
    address: Ipv4Addr,
    ready: bool,
}

impl<'a> Backend<'a> {
    fn of(resource: &'a Resource) -> Option<Self> {
        let Resource::Pod(object) = resource else { return None };
        let status: PodStatus = object.status_as();
        if matches!(status.phase.as_str(), "Succeeded" | "Failed") {
            return None;
        }
        let ready = status.is_ready() && object.metadata.deletion_timestamp.is_none();
        Some(Self { object, address: status.pod_ip.parse().ok()?, ready })
    }

    fn target(&self, port: &ServicePort) -> Option<SocketAddrV4> {
        let number = match &port.target_port {
            None => port.port,
            Some(IntOrString::Int(number)) => u16::try_from(*number).ok()?,
            Some(IntOrString::String(name)) => {
                let mut ports = self.object.spec.containers.iter().flat_map(|c| &c.ports);
                ports.find(|port| port.name == *name)?.container_port
            }
        };
        Some(SocketAddrV4::new(self.address, number))
    }
}

/// All services with what stands behind them.
pub(crate) struct Services<'a> {
    services: Vec<&'a Object<ServiceSpec>>,
    endpoints: Vec<&'a Object<Endpoints>>,
    backends: Vec<Backend<'a>>,
}

impl<'a> Services<'a> {
    pub(crate) fn of(objects: &'a [Arc<Resource>]) -> Self {
        let mut found = Self { services: vec![], endpoints: vec![], backends: vec![] };
        for object in objects {
            match &**object {
                Resource::Service(service) => found.services.push(service),
                Resource::Endpoints(endpoints) => found.endpoints.push(endpoints),
                other => found.backends.extend(Backend::of(other)),
            }
        }
        found
    }

    /// Addresses of all pods.
    pub(crate) fn pod_addresses(&self) -> Vec<Ipv4Addr> {
        self.backends.iter().map(|backend| backend.address).collect()
    }

    /// What the router translates.
    pub(crate) fn forwards(&self) -> Vec<Forward> {
        let mut forwards = Vec::new();
        for service in &self.services {
            let Ok(address) = service.spec.cluster_ip.parse() else { continue };
            let meta = &service.metadata;
            // Port 53 of the name server is no pod's.
            if address == crate::address::NAME_SERVER {
                continue;
            }
            for port in &service.spec.ports {
                let protocol = match port.protocol.as_str() {
                    "" | "TCP" => L4::Tcp,
                    "UDP" => L4::Udp,
                    _ => continue,
                };
                forwards.push(Forward {
                    name: format!("{}/{}:{}", meta.namespace, meta.name, port.port),
                    protocol,
                    service: SocketAddrV4::new(address, port.port),
                    targets: self.targets(service, port),
                });
            }
        }
        forwards
    }

    /// Ready addresses behind one port of a service.
    pub(crate) fn targets_of(&self, namespace: &str, name: &str, port: u16) -> Vec<SocketAddrV4> {
        let service = self.services.iter().find(|service| {
            service.metadata.namespace == namespace && service.metadata.name == name
        });
        let port = |service: &&&Object<ServiceSpec>| {
            service.spec.ports.iter().find(|candidate| candidate.port == port).cloned()
        };
        service
            .and_then(|service| Some(self.targets(service, &port(&service)?)))
            .unwrap_or_default()
    }

    fn targets(&self, service: &Object<ServiceSpec>, port: &ServicePort) -> Vec<SocketAddrV4> {
        if service.spec.selector.is_empty() {
            return self.manual_targets(service, port);
        }
        let unready = service.spec.publish_not_ready_addresses;
        self.selected(service)
            .filter(|backend| backend.ready || unready)
            .filter_map(|backend| backend.target(port))
            .collect()
    }

    /// Addresses from an `Endpoints` object, for a service without selector.
    fn manual_targets(
        &self,
        service: &Object<ServiceSpec>,
        port: &ServicePort,
    ) -> Vec<SocketAddrV4> {
        let of_service = |endpoints: &&&Object<Endpoints>| {
            endpoints.metadata.namespace == service.metadata.namespace
                && endpoints.metadata.name == service.metadata.name
        };
        let Some(endpoints) = self.endpoints.iter().find(of_service) else { return vec![] };
        let mut targets = Vec::new();
        for subset in &endpoints.spec.subsets {
            let Some(found) = subset.ports.iter().find(|p| p.name == port.name) else { continue };
            let addresses = subset.addresses.iter().filter_map(|address| address.ip.parse().ok());
            targets.extend(addresses.map(|ip| SocketAddrV4::new(ip, found.port)));
        }
        targets
    }

    fn selected<'b>(
        &'b self,
        service: &'b Object<ServiceSpec>,
    ) -> impl Iterator<Item = &'b Backend<'a>> {
        self.backends.iter().filter(|backend| {
            let meta = &backend.object.metadata;
            !service.spec.selector.is_empty()
                && meta.namespace == service.metadata.namespace
                && selects(&service.spec.selector, &meta.labels)
        })
    }

    /// What pods can resolve.
    pub(crate) fn names(&self) -> Names {
        let mut names: BTreeMap<String, Answer> = BTreeMap::new();
        for service in &self.services {
            let meta = &service.metadata;
            let base = format!("{}.{}.svc.{DOMAIN}", meta.name, meta.namespace).to_lowercase();
            if service.spec.r#type == "ExternalName" {
                names.insert(base, Answer::Alias(service.spec.external_name.to_lowercase()));
                continue;
            }
            if let Ok(address) = service.spec.cluster_ip.parse() {
                names.insert(base, Answer::Addresses(vec![address]));
                continue;
            }
            if service.spec.cluster_ip != "None" {
                continue;
            }
            let unready = service.spec.publish_not_ready_addresses;
            let pods: Vec<_> =
                self.selected(service).filter(|backend| backend.ready || unready).collect();
            for pod in &pods {
                let spec = &pod.object.spec;
                if !spec.hostname.is_empty() && spec.subdomain == meta.name {
                    let name = format!("{}.{base}", spec.hostname.to_lowercase());
                    names.insert(name, Answer::Addresses(vec![pod.address]));
                }
            }
            let addresses = pods.iter().map(|pod| pod.address).collect();
            names.insert(base, Answer::Addresses(addresses));
        }
        for backend in &self.backends {
            let dashed = backend.address.to_string().replace('.', "-");
            let namespace = &backend.object.metadata.namespace;
            let name = format!("{dashed}.{namespace}.pod.{DOMAIN}");
            names.insert(name, Answer::Addresses(vec![backend.address]));
        }
        Names::new(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECTS: &str = r#"
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: d}, spec: {clusterIP: 10.96.0.5, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: db, namespace: d}, spec: {clusterIP: None, selector: {app: web}, ports: [{port: 1}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: out, namespace: d}, spec: {type: ExternalName, externalName: web.d.svc.cluster.local}}
---
{apiVersion: v1, kind: Service, metadata: {name: hand, namespace: d}, spec: {clusterIP: 10.96.0.6, ports: [{port: 90}]}}
---
{apiVersion: v1, kind: Endpoints, metadata: {name: hand, namespace: d}, subsets: [{addresses: [{ip: 10.244.9.9}], ports: [{port: 99}]}]}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: d, labels: {app: web}}, spec: {hostname: a, subdomain: db, containers: [{name: c, image: i, ports: [{name: http, containerPort: 8080}]}]}, status: {phase: Running, podIP: 10.244.0.2, conditions: [{type: Ready, status: "True"}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: d, labels: {app: web}}, spec: {containers: [{name: c, image: i, ports: [{name: http, containerPort: 9090}]}]}, status: {phase: Running, podIP: 10.244.0.3}}
---
{apiVersion: v1, kind: Pod, metadata: {name: c, namespace: other, labels: {app: web}}, spec: {containers: [{name: c, image: i}]}, status: {phase: Running, podIP: 10.244.0.4, conditions: [{type: Ready, status: "True"}]}}
"#;

    fn objects() -> Vec<Arc<Resource>> {
        let decoded = amime_api::decode::decode("t", OBJECTS);
        assert!(decoded.errors.is_empty(), "{:?}", decoded.errors);
        decoded.resources.into_iter().map(Arc::new).collect()
    }

    #[test]
    fn only_ready_pods_of_the_namespace_stand_behind_a_service() {
        let objects = objects();
        let services = Services::of(&objects);
        let forwards = services.forwards();
        let lines: Vec<_> =
            forwards.iter().map(|f| format!("{} {} {:?}", f.name, f.service, f.targets)).collect();
        assert_eq!(
            lines,
            ["d/web:80 10.96.0.5:80 [10.244.0.2:8080]", "d/hand:90 10.96.0.6:90 [10.244.9.9:99]"]
        );
        assert_eq!(services.targets_of("d", "web", 80).len(), 1);
        assert!(services.targets_of("d", "web", 81).is_empty());
    }

    #[test]
    fn names_of_services_and_pods() {
        let objects = objects();
        let names = Services::of(&objects).names();
        let resolve = |name: &str| names.addresses(name).map(|found| format!("{found:?}"));
        assert_eq!(resolve("web.d.svc.cluster.local").as_deref(), Some("[10.96.0.5]"));
        assert_eq!(resolve("db.d.svc.cluster.local").as_deref(), Some("[10.244.0.2]"));
        assert_eq!(resolve("a.db.d.svc.cluster.local").as_deref(), Some("[10.244.0.2]"));
        assert_eq!(resolve("out.d.svc.cluster.local").as_deref(), Some("[10.96.0.5]"));
        assert_eq!(resolve("10-244-0-4.other.pod.cluster.local").as_deref(), Some("[10.244.0.4]"));
        assert_eq!(resolve("web.other.svc.cluster.local"), None);
    }
}
