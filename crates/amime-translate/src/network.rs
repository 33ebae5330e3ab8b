//! Endpoints of other networks: their gateways stand in for them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use amime_core::Locality;
use amime_model::{Endpoint, Health, Labels, Networks, TLS_MODE_ISTIO, labels};
use serde_json::Value;

use crate::context::Context;

/// What is between one proxy and other networks.
pub(crate) struct Crossing<'a> {
    context: &'a Context<'a>,
    networks: &'a Networks,
    scale: u32,
}

impl<'a> Crossing<'a> {
    /// `None` if all endpoints are reached directly.
    pub(crate) fn of(context: &'a Context<'_>) -> Option<Self> {
        let networks = context.snapshot.networks();
        let scale = networks.scale()?;
        Some(Self { context, networks, scale })
    }

    /// The endpoints of one locality, those behind gateways as these; each
    /// with whether it takes mutual TLS, as the way through a gateway does.
    pub(crate) fn replaced(
        &self,
        endpoints: Vec<(Arc<Endpoint>, bool)>,
    ) -> Vec<(Arc<Endpoint>, bool)> {
        let locality = endpoints.first().map(|(endpoint, _)| endpoint.locality.clone());
        let mut found = Vec::new();
        let mut behind: BTreeMap<(IpAddr, u16, &str), u32> = BTreeMap::new();
        for (endpoint, mtls) in &endpoints {
            let network = self.networks.or_default(&endpoint.network);
            if !self.sees(network) {
                continue;
            }
            let weight = endpoint.weight.max(1).saturating_mul(self.scale);
            let Some(gateways) = self.gateways(network) else {
                found.push((Arc::new(Endpoint { weight, ..(**endpoint).clone() }), *mtls));
                continue;
            };
            // Gateways go by the server name of mutual TLS.
            if !mtls || endpoint.tls_mode != TLS_MODE_ISTIO {
                continue;
            }
            let share = weight / u32::try_from(gateways.len()).unwrap_or(u32::MAX).max(1);
            for (address, port) in gateways {
                let sum = behind.entry((address, port, network)).or_default();
                *sum = sum.saturating_add(share);
            }
        }
        let locality = locality.unwrap_or_default();
        let gateways = behind.into_iter().map(|((address, port, network), weight)| {
            (Arc::new(gateway(address, port, network, weight, &locality)), true)
        });
        found.extend(gateways);
        found
    }

    /// True if the proxy did not ask for other networks only.
    fn sees(&self, network: &str) -> bool {
        let wanted = match self.context.proxy.metadata.get("REQUESTED_NETWORK_VIEW") {
            Some(Value::String(text)) => text.split(',').collect(),
            Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        network.is_empty() || wanted.iter().all(|text| text.is_empty()) || wanted.contains(&network)
    }

    fn own_network(&self) -> &str {
        let proxy = self.context.proxy;
        let said = Some(proxy.text("NETWORK")).filter(|network| !network.is_empty());
        let labelled = || proxy.labels.get(labels::NETWORK).map(String::as_str);
        self.networks.or_default(said.or_else(labelled).unwrap_or_default())
    }

    /// The gateways that the proxy can use to get there; `None` if it needs none.
    fn gateways(&self, network: &str) -> Option<Vec<(IpAddr, u16)>> {
        let gateways = self.networks.gateways(network)?;
        if network == self.own_network() {
            return None;
        }
        let (v4, v6) = (self.context.proxy.supports_v4(), self.context.proxy.supports_v6());
        let reachable = |address: &IpAddr| match address.to_canonical() {
            IpAddr::V4(_) => v4 || !v6,
            IpAddr::V6(_) => v6 || !v4,
        };
        Some(gateways.iter().filter(|(address, _)| reachable(address)).copied().collect())
    }
}

/// A gateway in place of the endpoints behind it.
fn gateway(
    address: IpAddr,
    port: u16,
    network: &str,
    weight: u32,
    locality: &Locality,
) -> Endpoint {
    let labels = Labels::from([(labels::NETWORK.to_owned(), network.to_owned())]);
    Endpoint {
        address: address.to_string(),
        port: u32::from(port),
        port_name: String::new(),
        labels: Arc::new(labels),
        locality: locality.clone(),
        service_account: String::new(),
        tls_mode: TLS_MODE_ISTIO.to_owned(),
        namespace: String::new(),
        workload: String::new(),
        health: Health::Healthy,
        weight: weight.max(1),
        network: network.to_owned(),
        hostname: String::new(),
        subdomain: String::new(),
    }
}
