//! Networks whose workloads reach each other through gateways only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use amime_api::Object;
use amime_api::k8s::{ServiceSpec, ServiceStatus};

use crate::labels::NETWORK;
use crate::service::Labels;

const PORT_LABEL: &str = "networking.istio.io/gatewayPort";
const DEFAULT_PORT: u16 = 15443;

/// The gateways into each network.
#[derive(Clone, Debug, Default)]
pub struct Networks {
    gateways: BTreeMap<String, BTreeSet<(IpAddr, u16)>>,
    /// Network of workloads that name none.
    default: String,
}

impl Networks {
    /// From services with a network's label, and the labels of the control
    /// plane's namespace.
    pub(crate) fn build<'r>(
        services: impl Iterator<Item = &'r Object<ServiceSpec>>,
        home: Option<&Labels>,
    ) -> Self {
        let mut gateways: BTreeMap<String, BTreeSet<(IpAddr, u16)>> = BTreeMap::new();
        for service in services {
            let labels = &service.metadata.labels;
            let Some(network) = labels.get(NETWORK).filter(|network| !network.is_empty()) else {
                continue;
            };
            let declared = labels.get(PORT_LABEL).and_then(|port| port.parse().ok());
            let port = declared.unwrap_or(DEFAULT_PORT);
            if service.spec.ports.iter().any(|own| own.port == port) {
                let found = addresses(service).into_iter().map(|address| (address, port));
                gateways.entry(network.clone()).or_default().extend(found);
            }
        }
        gateways.retain(|_, found| !found.is_empty());
        let default = home.and_then(|labels| labels.get(NETWORK)).cloned().unwrap_or_default();
        Self { gateways, default }
    }

    /// Gateways into a network, sorted; `None` if it is reached directly.
    pub fn gateways(&self, network: &str) -> Option<&BTreeSet<(IpAddr, u16)>> {
        self.gateways.get(network)
    }

    /// The network, or the one that holds where none is named.
    pub fn or_default<'n>(&'n self, network: &'n str) -> &'n str {
        if network.is_empty() { &self.default } else { network }
    }

    /// What weights have to be multiplied with so that those of the gateways
    /// of each network are whole numbers; `None` if there are no gateways.
    pub fn scale(&self) -> Option<u32> {
        let counts = self.gateways.values().filter_map(|found| u32::try_from(found.len()).ok());
        counts.reduce(|scale, count| (scale / gcd(scale, count)).saturating_mul(count))
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Where a service is reached from outside; names are not resolved.
fn addresses(service: &Object<ServiceSpec>) -> Vec<IpAddr> {
    let status: ServiceStatus = service.status_as();
    let balancer = status.load_balancer.filter(|_| service.spec.r#type == "LoadBalancer");
    let ingress = balancer.into_iter().flat_map(|balancer| balancer.ingress);
    let given = ingress.map(|ingress| ingress.ip).chain(service.spec.external_ips.clone());
    given.filter_map(|address| address.parse().ok()).collect()
}
