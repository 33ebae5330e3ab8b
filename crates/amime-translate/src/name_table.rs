//! NDS: names that the proxy's agent answers itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use amime_model::{Health, Registry, Resolution, Service, UNSPECIFIED_V4};
use amime_xds::istio::nds::{NameInfo, NameTable};

use crate::context::Context;

/// Names of all services in the proxy's sight, full ones only: short forms
/// follow from `shortname` and `namespace`.
pub(crate) fn build(context: &Context<'_>) -> NameTable {
    let mut table = BTreeMap::new();
    for egress in &context.scope.egress {
        for service in &egress.services {
            add(context, &mut table, service);
        }
    }
    NameTable { table }
}

fn add(context: &Context<'_>, table: &mut BTreeMap<String, NameInfo>, service: &Arc<Service>) {
    let all = service.addresses_for(context.view);
    let headless = all.iter().any(|address| address == UNSPECIFIED_V4);
    let mut ips: Vec<String> = Vec::new();
    if !headless {
        ips = all.into_iter().filter(|address| is_ip(address)).collect();
    } else if service.resolution == Resolution::Passthrough {
        ips = add_pods(context, table, service);
    }
    if ips.is_empty() {
        return;
    }
    let kubernetes = service.registry == Registry::Kubernetes;
    let host = service.hostname.as_str();
    match table.get_mut(host) {
        None => {
            table.insert(host.to_owned(), info(service, ips, &service.name));
        }
        // A Kubernetes service goes before a ServiceEntry that decorates it.
        Some(known) if known.registry == Registry::Kubernetes.as_str() => {}
        Some(known) if kubernetes => *known = info(service, ips, &service.name),
        Some(known) => known.ips.extend(ips),
    }
}

/// Addresses behind a headless service; pods with host names get their own.
fn add_pods(
    context: &Context<'_>,
    table: &mut BTreeMap<String, NameInfo>,
    service: &Service,
) -> Vec<String> {
    let Some(endpoints) = context.snapshot.endpoints(service) else { return Vec::new() };
    let mut seen = BTreeSet::new();
    let mut ips = Vec::new();
    let mut named: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for endpoint in endpoints.ports.values().flatten() {
        let ready = service.publish_not_ready || endpoint.health == Health::Healthy;
        if !ready || !is_ip(&endpoint.address) || !seen.insert(endpoint.address.clone()) {
            continue;
        }
        ips.push(endpoint.address.clone());
        if !endpoint.subdomain.is_empty() {
            let short = format!("{}.{}", endpoint.hostname, endpoint.subdomain);
            named.entry(short).or_default().push(endpoint.address.clone());
        }
    }
    let domain = service.hostname.as_str().split_once('.').map(|(_, domain)| domain);
    for (short, ips) in named {
        if let Some(domain) = domain {
            table.insert(format!("{short}.{domain}"), info(service, ips, &short));
        }
    }
    ips
}

fn info(service: &Service, ips: Vec<String>, short: &str) -> NameInfo {
    let kubernetes = service.registry == Registry::Kubernetes;
    let own = |text: &str| if kubernetes { text.to_owned() } else { String::new() };
    NameInfo {
        ips,
        registry: service.registry.as_str().to_owned(),
        shortname: own(short),
        namespace: own(&service.namespace),
    }
}

fn is_ip(address: &str) -> bool {
    address.parse::<IpAddr>().is_ok()
}
