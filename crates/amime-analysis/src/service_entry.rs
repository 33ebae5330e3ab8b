//! Rules of `ServiceEntry`, `WorkloadEntry` and `WorkloadGroup`.

use amime_api::networking::{Resolution, ServiceEntry, ServicePort, WorkloadEntry, WorkloadGroup};
use amime_core::Protocol;

use crate::problem::{At, Report};
use crate::{shared, syntax};

pub(crate) fn check(spec: &ServiceEntry, at: &At, report: &mut Report) {
    check_hosts(spec, at, report);
    for (at, address) in at.each("addresses", &spec.addresses) {
        report.check(&at, syntax::subnet(address));
        let range =
            address.contains('/') && !address.ends_with("/32") && !address.ends_with("/128");
        if range && !matches!(spec.resolution, Resolution::None | Resolution::Static) {
            report.error(&at, "a range needs resolution NONE or STATIC");
        }
    }
    check_ports(&spec.ports, at, report);
    shared::export_to(&spec.export_to, at, report);
    shared::labels_selector(spec.workload_selector.as_ref(), at, report);
    if spec.workload_selector.is_some() && !spec.endpoints.is_empty() {
        report.error(&at.field("endpoints"), "cannot be given together with workloadSelector");
    }
    for (at, endpoint) in at.each("endpoints", &spec.endpoints) {
        check_endpoint(endpoint, spec, &at, report);
    }
    check_resolution(spec, at, report);
}

fn check_hosts(spec: &ServiceEntry, at: &At, report: &mut Report) {
    if spec.hosts.is_empty() {
        report.error(&at.field("hosts"), "at least one host is required");
    }
    for (at, host) in at.each("hosts", &spec.hosts) {
        if host == "*" {
            report.error(&at, "\"*\" would cover every host");
        } else {
            report.check(&at, syntax::wildcard_host(host));
        }
    }
    // Without addresses only HTTP and TLS tell the hosts apart.
    let told_apart = |port: &ServicePort| {
        port.protocol.parse::<Protocol>().is_ok_and(|p| p.is_http() || p.is_tls())
    };
    if spec.hosts.len() > 1
        && spec.resolution != Resolution::None
        && !spec.ports.iter().all(told_apart)
    {
        report.warning(
            &at.field("hosts"),
            "several hosts cannot be told apart on ports without HTTP or TLS",
        );
    }
}

fn check_ports(ports: &[ServicePort], at: &At, report: &mut Report) {
    for (index, port) in ports.iter().enumerate() {
        let at = at.field("ports").nth(index);
        report.check(&at.field("number"), syntax::port(port.number));
        if port.name.is_empty() {
            report.error(&at.field("name"), "a name is required");
        } else {
            report.check(&at.field("name"), syntax::dns_label(&port.name.to_ascii_lowercase()));
        }
        if port.target_port != 0 {
            report.check(&at.field("targetPort"), syntax::port(port.target_port));
        }
        // Upstream treats a missing protocol as one to detect.
        if !port.protocol.is_empty() {
            report.check(&at.field("protocol"), syntax::protocol(&port.protocol));
        }
        let earlier = &ports[..index];
        if earlier.iter().any(|other| other.name == port.name) {
            report.error(&at.field("name"), format!("port name {:?} is given twice", port.name));
        }
        if earlier.iter().any(|other| other.number == port.number) {
            report.error(&at.field("number"), format!("port {} is given twice", port.number));
        }
    }
}

fn check_endpoint(endpoint: &WorkloadEntry, spec: &ServiceEntry, at: &At, report: &mut Report) {
    check_workload(endpoint, at, report);
    for name in endpoint.ports.keys() {
        if !spec.ports.iter().any(|port| port.name == *name) {
            report.error(&at.field("ports").key(name), "the service has no port of this name");
        }
    }
    if endpoint.address.starts_with("unix://") && spec.ports.len() > 1 {
        report.error(&at.field("address"), "a Unix socket serves one port only");
    }
    if endpoint.address.starts_with("unix://")
        && matches!(spec.resolution, Resolution::Dns | Resolution::DnsRoundRobin)
    {
        report.error(&at.field("address"), "a Unix socket needs resolution STATIC");
    }
    let name = !endpoint.address.is_empty()
        && !endpoint.address.starts_with("unix://")
        && syntax::ip(&endpoint.address).is_err();
    if name && spec.resolution == Resolution::Static {
        report
            .error(&at.field("address"), "resolution STATIC needs an IP address or a Unix socket");
    }
}

fn check_resolution(spec: &ServiceEntry, at: &At, report: &mut Report) {
    if spec.resolution == Resolution::DynamicDns && !spec.addresses.is_empty() {
        report.error(&at.field("addresses"), "resolution DYNAMIC_DNS goes by host names only");
    }
    if spec.resolution == Resolution::None && spec.workload_selector.is_some() {
        let at = at.field("workloadSelector");
        report.warning(&at, "has no effect with resolution NONE, where clients choose addresses");
    }
    let wildcard = spec.hosts.iter().any(|host| host.starts_with('*'));
    let endpoints = at.field("endpoints");
    match spec.resolution {
        Resolution::None if !spec.endpoints.is_empty() => {
            report.error(&endpoints, "resolution NONE takes no endpoints");
        }
        Resolution::None => {}
        Resolution::Static if spec.endpoints.is_empty() && spec.workload_selector.is_none() => {
            report.error(&endpoints, "resolution STATIC needs endpoints or a workloadSelector");
        }
        Resolution::Static => {}
        Resolution::Dns | Resolution::DnsRoundRobin => {
            if wildcard && spec.endpoints.is_empty() {
                report.error(&at.field("hosts"), "a wildcard cannot be resolved without endpoints");
            }
            if spec.resolution == Resolution::DnsRoundRobin && spec.endpoints.len() > 1 {
                report.error(&endpoints, "resolution DNS_ROUND_ROBIN takes one endpoint");
            }
        }
        Resolution::DynamicDns => {
            if spec.hosts.len() != 1 || !wildcard {
                report.error(&at.field("hosts"), "resolution DYNAMIC_DNS takes one wildcard host");
            }
            if !spec.endpoints.is_empty() {
                report.error(&endpoints, "resolution DYNAMIC_DNS takes no endpoints");
            }
        }
    }
}

pub(crate) fn check_workload(entry: &WorkloadEntry, at: &At, report: &mut Report) {
    let address = at.field("address");
    match entry.address.strip_prefix("unix://") {
        Some(path) => {
            if !path.starts_with(['/', '@']) {
                report.error(&address, "the path of a Unix socket must be absolute");
            }
            if !entry.ports.is_empty() {
                report.error(&at.field("ports"), "a Unix socket has no ports");
            }
        }
        None if entry.address.is_empty() => {
            if entry.network.is_empty() {
                report.error(&address, "an address is required, unless network is given");
            }
        }
        None if syntax::ip(&entry.address).is_ok() => {}
        None => report.check(&address, syntax::host_name(&entry.address)),
    }
    for (name, number) in &entry.ports {
        report.check(&at.field("ports").key(name), syntax::port(*number));
        report.check(&at.field("ports").key(name), syntax::dns_label(&name.to_ascii_lowercase()));
    }
    shared::labels(&entry.labels, &at.field("labels"), report);
}

pub(crate) fn check_group(group: &WorkloadGroup, at: &At, report: &mut Report) {
    match &group.template {
        None => report.error(&at.field("template"), "a template is required"),
        Some(template) => {
            let at = at.field("template");
            for (name, number) in &template.ports {
                report.check(&at.field("ports").key(name), syntax::port(*number));
            }
            shared::labels(&template.labels, &at.field("labels"), report);
        }
    }
    if let Some(metadata) = &group.metadata {
        shared::labels(&metadata.labels, &at.field("metadata").field("labels"), report);
    }
    let Some(probe) = &group.probe else { return };
    let at = at.field("probe");
    let none = probe.http_get.is_none()
        && probe.tcp_socket.is_none()
        && probe.exec.is_none()
        && probe.grpc.is_none();
    if none {
        report.error(&at, "one of httpGet, tcpSocket, exec and grpc is required");
    }
    if let Some(check) = &probe.http_get {
        report.check(&at.field("httpGet").field("port"), syntax::port(check.port));
    }
    if let Some(check) = &probe.tcp_socket {
        report.check(&at.field("tcpSocket").field("port"), syntax::port(check.port));
    }
    if probe.exec.as_ref().is_some_and(|exec| exec.command.is_empty()) {
        report.error(&at.field("exec").field("command"), "a command is required");
    }
}
