//! Workloads: pods and workload entries in one shape.

use std::collections::BTreeMap;
use std::sync::Arc;

use amime_api::Object;
use amime_api::k8s::PodSpec;
use amime_api::k8s::PodStatus;
use amime_api::meta::ObjectMeta;
use amime_api::networking::WorkloadEntry;
use amime_core::{Locality, SpiffeId};

use crate::labels::{NETWORK, add_topology, declared_locality, node_locality};
use crate::service::{Endpoint, Health, Labels, TLS_MODE_DISABLED, TLS_MODE_ISTIO, TLS_MODE_LABEL};

/// Annotation that injection leaves on a pod.
const INJECTED_ANNOTATION: &str = "sidecar.istio.io/status";

/// Something that can stand behind a service.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Workload {
    pub(crate) namespace: String,
    /// Name of the object, not of its controller.
    pub(crate) object: String,
    pub(crate) addresses: Vec<String>,
    pub(crate) is_pod: bool,
    /// Named ports: container ports of a pod, port map of an entry.
    pub(crate) ports: BTreeMap<String, u32>,
    /// Everything about an endpoint here except port and port name.
    pub(crate) template: Endpoint,
}

impl Workload {
    pub(crate) fn labels(&self) -> &Labels {
        &self.template.labels
    }

    /// An endpoint at one port; a Unix socket has none.
    pub(crate) fn endpoint(&self, port: u32, port_name: &str) -> Option<Endpoint> {
        let address = self.addresses.first()?;
        let (address, port) = match address.strip_prefix("unix://") {
            Some(path) => (path, 0),
            None => (address.as_str(), port),
        };
        Some(Endpoint {
            address: address.to_owned(),
            port,
            port_name: port_name.to_owned(),
            ..self.template.clone()
        })
    }

    /// A pod; `node` holds the labels of the node that it runs on, if known.
    pub(crate) fn from_pod(
        pod: &Object<PodSpec>,
        node: Option<&Labels>,
        trust_domain: &str,
    ) -> Option<Self> {
        let status: PodStatus = pod.status_as();
        if matches!(status.phase.as_str(), "Succeeded" | "Failed") {
            return None;
        }
        let mut addresses: Vec<String> =
            status.pod_ips.iter().map(|ip| ip.ip.clone()).filter(|ip| !ip.is_empty()).collect();
        if addresses.is_empty() && !status.pod_ip.is_empty() {
            addresses.push(status.pod_ip.clone());
        }
        let meta = &pod.metadata;
        let account = match pod.spec.service_account_name.as_str() {
            "" if pod.spec.service_account.is_empty() => "default",
            "" => &pod.spec.service_account,
            name => name,
        };
        let ports = pod.spec.containers.iter().flat_map(|container| &container.ports);
        let locality = match declared_locality(&meta.labels) {
            declared if declared.is_empty() => node.map(node_locality).unwrap_or_default(),
            declared => declared,
        };
        let mut labels = meta.labels.clone();
        add_topology(&mut labels, &locality, "", &pod.spec.node_name);
        let template = Endpoint {
            address: String::new(),
            port: 0,
            port_name: String::new(),
            labels: Arc::new(labels),
            locality,
            service_account: SpiffeId::new(trust_domain, &*meta.namespace, account).to_string(),
            tls_mode: pod_tls_mode(meta),
            namespace: meta.namespace.clone(),
            workload: controller_name(meta),
            health: pod_health(meta, &status),
            weight: 1,
            network: meta.labels.get(NETWORK).cloned().unwrap_or_default(),
            hostname: pod.spec.hostname.clone(),
            subdomain: pod.spec.subdomain.clone(),
        };
        Some(Self {
            namespace: meta.namespace.clone(),
            object: meta.name.clone(),
            addresses,
            is_pod: true,
            ports: ports
                .filter(|port| !port.name.is_empty())
                .map(|port| (port.name.clone(), u32::from(port.container_port)))
                .collect(),
            template,
        })
    }

    /// A workload entry, an object of its own or inline in a service entry.
    pub(crate) fn from_entry(entry: &WorkloadEntry, meta: &ObjectMeta, trust_domain: &str) -> Self {
        let mut labels = entry.labels.clone();
        labels.extend(meta.labels.clone());
        let tls_mode = match labels.get(TLS_MODE_LABEL) {
            Some(mode) => mode.as_str(),
            None if entry.service_account.is_empty() => TLS_MODE_DISABLED,
            None => TLS_MODE_ISTIO,
        }
        .to_owned();
        let service_account = match entry.service_account.as_str() {
            "" => String::new(),
            account => SpiffeId::new(trust_domain, &*meta.namespace, account).to_string(),
        };
        let locality = match entry.locality.as_str() {
            "" => declared_locality(&labels),
            text => Locality::parse(text),
        };
        add_topology(&mut labels, &locality, &entry.network, "");
        let template = Endpoint {
            address: String::new(),
            port: 0,
            port_name: String::new(),
            tls_mode,
            labels: Arc::new(labels),
            locality,
            service_account,
            namespace: meta.namespace.clone(),
            workload: meta.name.clone(),
            health: Health::Healthy,
            weight: entry.weight.max(1),
            network: entry.network.clone(),
            hostname: String::new(),
            subdomain: String::new(),
        };
        Self {
            namespace: meta.namespace.clone(),
            object: meta.name.clone(),
            addresses: Vec::from_iter(Some(entry.address.clone()).filter(|a| !a.is_empty())),
            is_pod: false,
            ports: entry.ports.clone(),
            template,
        }
    }
}

fn pod_tls_mode(meta: &ObjectMeta) -> String {
    if let Some(mode) = meta.labels.get(TLS_MODE_LABEL) {
        return mode.clone();
    }
    let injected = meta.annotations.contains_key(INJECTED_ANNOTATION);
    (if injected { TLS_MODE_ISTIO } else { TLS_MODE_DISABLED }).to_owned()
}

fn pod_health(meta: &ObjectMeta, status: &PodStatus) -> Health {
    if meta.deletion_timestamp.is_some() {
        Health::Terminating
    // An offline pod has no conditions; it is taken as it is meant to be.
    } else if status.conditions.is_empty() || status.is_ready() {
        Health::Healthy
    } else {
        Health::Unhealthy
    }
}

/// Name of what manages the pod: the Deployment behind a ReplicaSet, else the
/// controlling owner, else the pod itself.
fn controller_name(meta: &ObjectMeta) -> String {
    let Some(owner) = meta.owner_references.iter().find(|owner| owner.controller == Some(true))
    else {
        return meta.name.clone();
    };
    let hash = meta.labels.get("pod-template-hash");
    let deployment = hash
        .filter(|_| owner.kind == "ReplicaSet")
        .and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
    deployment.unwrap_or(&owner.name).to_owned()
}
