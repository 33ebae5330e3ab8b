//! What `get` prints of each kind: headers and cells, as kubectl and the upstream CRDs define them.

use std::time::SystemTime;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::k8s::{PodStatus, ServiceStatus};
use crate::kind::Kind;
use crate::resource::Resource;

/// One column besides the name.
struct Column {
    header: &'static str,
    cell: Cell,
    /// Printed with `-o wide` only.
    wide: bool,
}

/// Where a cell comes from.
enum Cell {
    /// Field of the object's JSON, by dotted path.
    Path(&'static str),
    /// Number in the status by dotted path, 0 if missing.
    Count(&'static str),
    /// Computed.
    Of(fn(&Resource) -> String),
    /// Time since creation.
    Age,
}

const fn path(header: &'static str, path: &'static str) -> Column {
    Column { header, cell: Cell::Path(path), wide: false }
}

const fn count(header: &'static str, path: &'static str) -> Column {
    Column { header, cell: Cell::Count(path), wide: false }
}

const fn of(header: &'static str, cell: fn(&Resource) -> String) -> Column {
    Column { header, cell: Cell::Of(cell), wide: false }
}

const fn wide(header: &'static str, cell: fn(&Resource) -> String) -> Column {
    Column { header, cell: Cell::Of(cell), wide: true }
}

const AGE: Column = Column { header: "AGE", cell: Cell::Age, wide: false };

/// Columns after NAME.
fn table(kind: Kind) -> &'static [Column] {
    match kind {
        Kind::Namespace => const { &[of("STATUS", namespace_phase), AGE] },
        Kind::Service => {
            const {
                &[
                    of("TYPE", service_type),
                    of("CLUSTER-IP", cluster_ip),
                    of("EXTERNAL-IP", external_ip),
                    of("PORT(S)", service_ports),
                    AGE,
                    wide("SELECTOR", selector),
                ]
            }
        }
        Kind::Endpoints => const { &[of("ENDPOINTS", endpoints), AGE] },
        Kind::EndpointSlice => {
            const {
                &[
                    path("ADDRESSTYPE", "addressType"),
                    of("PORTS", slice_ports),
                    of("ENDPOINTS", slice_endpoints),
                    AGE,
                ]
            }
        }
        Kind::ServiceAccount => const { &[of("SECRETS", |r| entries(r, "secrets")), AGE] },
        Kind::Secret => const { &[path("TYPE", "type"), of("DATA", |r| entries(r, "data")), AGE] },
        Kind::ConfigMap => const { &[of("DATA", |r| entries(r, "data")), AGE] },
        Kind::Ingress => {
            const { &[path("CLASS", "spec.ingressClassName"), of("HOSTS", ingress_hosts), AGE] }
        }
        _ => workload_table(kind),
    }
}

/// Columns of what runs.
fn workload_table(kind: Kind) -> &'static [Column] {
    match kind {
        Kind::Pod => {
            const {
                &[
                    of("READY", ready_containers),
                    of("STATUS", pod_phase),
                    of("RESTARTS", restarts),
                    AGE,
                    wide("IP", pod_ip),
                    wide("NODE", node),
                ]
            }
        }
        Kind::Deployment => {
            const {
                &[
                    of("READY", ready_replicas),
                    count("UP-TO-DATE", "updatedReplicas"),
                    count("AVAILABLE", "availableReplicas"),
                    AGE,
                    wide("CONTAINERS", containers),
                    wide("IMAGES", images),
                    wide("SELECTOR", selector),
                ]
            }
        }
        Kind::StatefulSet => {
            const {
                &[
                    of("READY", ready_replicas),
                    AGE,
                    wide("CONTAINERS", containers),
                    wide("IMAGES", images),
                ]
            }
        }
        Kind::ReplicaSet => {
            const {
                &[
                    of("DESIRED", desired_replicas),
                    count("CURRENT", "replicas"),
                    count("READY", "readyReplicas"),
                    AGE,
                    wide("CONTAINERS", containers),
                    wide("IMAGES", images),
                    wide("SELECTOR", selector),
                ]
            }
        }
        Kind::DaemonSet => {
            const {
                &[
                    count("DESIRED", "desiredNumberScheduled"),
                    count("CURRENT", "currentNumberScheduled"),
                    count("READY", "numberReady"),
                    count("UP-TO-DATE", "updatedNumberScheduled"),
                    count("AVAILABLE", "numberAvailable"),
                    AGE,
                ]
            }
        }
        Kind::Job => const { &[of("COMPLETIONS", completions), AGE] },
        _ => mesh_table(kind),
    }
}

/// Columns of the mesh's own kinds.
fn mesh_table(kind: Kind) -> &'static [Column] {
    match kind {
        Kind::VirtualService => {
            const { &[path("GATEWAYS", "spec.gateways"), path("HOSTS", "spec.hosts"), AGE] }
        }
        Kind::DestinationRule => const { &[path("HOST", "spec.host"), AGE] },
        Kind::ServiceEntry => {
            const {
                &[
                    path("HOSTS", "spec.hosts"),
                    path("LOCATION", "spec.location"),
                    path("RESOLUTION", "spec.resolution"),
                    AGE,
                ]
            }
        }
        Kind::WorkloadEntry => const { &[AGE, path("ADDRESS", "spec.address")] },
        Kind::HTTPRoute => const { &[path("HOSTNAMES", "spec.hostnames"), AGE] },
        Kind::AuthorizationPolicy => const { &[path("ACTION", "spec.action"), AGE] },
        Kind::PeerAuthentication => const { &[path("MODE", "spec.mtls.mode"), AGE] },
        _ => const { &[AGE] },
    }
}

/// Headers of a kind's table, `NAME` first.
pub fn headers(kind: Kind, wide: bool) -> Vec<&'static str> {
    let shown = table(kind).iter().filter(|column| wide || !column.wide);
    std::iter::once("NAME").chain(shown.map(|column| column.header)).collect()
}

/// Cells of one row, in the order of [`headers`].
pub fn columns(resource: &Resource, wide: bool, now: SystemTime) -> Vec<String> {
    let shown = table(resource.kind()).iter().filter(|column| wide || !column.wide);
    let cells = shown.map(|column| match column.cell {
        Cell::Path(path) => lookup(resource, path).map(as_text).unwrap_or_default(),
        Cell::Count(path) => status_count(resource, path).to_string(),
        Cell::Of(cell) => cell(resource),
        Cell::Age => age(resource, now),
    });
    std::iter::once(resource.name().to_owned()).chain(cells).collect()
}

/// Time since creation as kubectl writes it, such as `90s`, `5m30s`, `3h`, `12d`.
pub fn age(resource: &Resource, now: SystemTime) -> String {
    let created = resource.metadata().creation_timestamp.as_deref();
    let Some(created) = created.and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok()) else {
        return "<unknown>".to_owned();
    };
    let seconds = (OffsetDateTime::from(now) - created).whole_seconds().max(0);
    human_duration(seconds)
}

fn human_duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    // Small numbers of a unit carry the next smaller one.
    let pair = |big: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => pair(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, "d", hours % 24, "h"),
        _ if days < 730 => format!("{days}d"),
        _ => format!("{}y", days / 365),
    }
}

fn lookup<'a>(resource: &'a Resource, path: &str) -> Option<&'a Value> {
    let mut segments = path.split('.');
    let first = resource.raw().get(segments.next()?)?;
    segments.try_fold(first, |value, segment| value.get(segment))
}

fn as_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn status_count(resource: &Resource, path: &str) -> u64 {
    resource.status().and_then(|status| status.get(path)).and_then(Value::as_u64).unwrap_or(0)
}

fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".to_owned() } else { text }
}

/// At most three items, then how many more.
fn joined(items: impl IntoIterator<Item = String>) -> String {
    let items: Vec<String> = items.into_iter().collect();
    match items.len() {
        0 => "<none>".to_owned(),
        1..=3 => items.join(","),
        n => format!("{} + {} more...", items[..3].join(","), n - 3),
    }
}

fn entries(resource: &Resource, field: &str) -> String {
    let count = match resource.raw().get(field) {
        Some(Value::Object(fields)) => fields.len(),
        Some(Value::Array(items)) => items.len(),
        _ => 0,
    };
    count.to_string()
}

fn namespace_phase(resource: &Resource) -> String {
    let phase = resource.status().and_then(|status| status.get("phase")).map(as_text);
    phase.unwrap_or_else(|| "Active".to_owned())
}

fn service_type(resource: &Resource) -> String {
    let text = lookup(resource, "spec.type").map(as_text).unwrap_or_default();
    if text.is_empty() { "ClusterIP".to_owned() } else { text }
}

fn cluster_ip(resource: &Resource) -> String {
    or_none(lookup(resource, "spec.clusterIP").map(as_text).unwrap_or_default())
}

fn external_ip(resource: &Resource) -> String {
    let Resource::Service(service) = resource else { return String::new() };
    let status: ServiceStatus = service.status_as();
    let given = status.load_balancer.unwrap_or_default().ingress.into_iter();
    let mut addresses: Vec<String> =
        given.map(|i| if i.ip.is_empty() { i.hostname } else { i.ip }).collect();
    addresses.extend(service.spec.external_ips.iter().cloned());
    match service.spec.r#type.as_str() {
        "ExternalName" => service.spec.external_name.clone(),
        "LoadBalancer" if addresses.is_empty() => "<pending>".to_owned(),
        _ => or_none(addresses.join(",")),
    }
}

fn service_ports(resource: &Resource) -> String {
    let Resource::Service(service) = resource else { return String::new() };
    let ports = service.spec.ports.iter().map(|port| {
        let protocol = if port.protocol.is_empty() { "TCP" } else { &port.protocol };
        match port.node_port {
            Some(node_port) => format!("{}:{node_port}/{protocol}", port.port),
            None => format!("{}/{protocol}", port.port),
        }
    });
    or_none(ports.collect::<Vec<_>>().join(","))
}

fn selector(resource: &Resource) -> String {
    let labels = match resource {
        Resource::Service(object) => Some(&object.spec.selector),
        Resource::Deployment(object) => object.spec.selector.as_ref().map(|s| &s.match_labels),
        Resource::ReplicaSet(object) => object.spec.selector.as_ref().map(|s| &s.match_labels),
        _ => None,
    };
    let pairs = labels.into_iter().flatten().map(|(key, value)| format!("{key}={value}"));
    or_none(pairs.collect::<Vec<_>>().join(","))
}

fn endpoints(resource: &Resource) -> String {
    let Resource::Endpoints(object) = resource else { return String::new() };
    joined(object.spec.subsets.iter().flat_map(|subset| {
        let ports = subset.ports.iter();
        ports.flat_map(|port| {
            subset.addresses.iter().map(move |a| format!("{}:{}", a.ip, port.port))
        })
    }))
}

fn slice_ports(resource: &Resource) -> String {
    let Resource::EndpointSlice(object) = resource else { return String::new() };
    joined(object.spec.ports.iter().filter_map(|port| port.port.map(|p| p.to_string())))
}

fn slice_endpoints(resource: &Resource) -> String {
    let Resource::EndpointSlice(object) = resource else { return String::new() };
    joined(object.spec.endpoints.iter().flat_map(|endpoint| endpoint.addresses.clone()))
}

fn pod_status(resource: &Resource) -> PodStatus {
    match resource {
        Resource::Pod(pod) => pod.status_as(),
        _ => PodStatus::default(),
    }
}

fn ready_containers(resource: &Resource) -> String {
    let Resource::Pod(pod) = resource else { return String::new() };
    let stays = |c: &&crate::k8s::Container| c.restart_policy.as_deref() == Some("Always");
    let status = pod_status(resource);
    let staying = pod.spec.init_containers.iter().filter(stays);
    let total = pod.spec.containers.len() + staying.clone().count();
    let all = status.container_statuses.iter().chain(
        status.init_container_statuses.iter().filter(|s| staying.clone().any(|c| c.name == s.name)),
    );
    format!("{}/{total}", all.filter(|container| container.ready).count())
}

fn pod_phase(resource: &Resource) -> String {
    if resource.metadata().deletion_timestamp.is_some() {
        return "Terminating".to_owned();
    }
    let status = pod_status(resource);
    let broken = status.container_statuses.iter().find_map(|container| {
        let state = container.state.as_ref()?;
        let waiting = state.waiting.as_ref().map(|waiting| waiting.reason.clone());
        waiting.or_else(|| state.terminated.as_ref().map(|ended| ended.reason.clone()))
    });
    match broken.filter(|reason| !reason.is_empty()) {
        Some(reason) => reason,
        None if !status.reason.is_empty() => status.reason,
        None if status.phase.is_empty() => "Pending".to_owned(),
        None => status.phase,
    }
}

fn restarts(resource: &Resource) -> String {
    let status = pod_status(resource);
    status.container_statuses.iter().map(|c| i64::from(c.restart_count)).sum::<i64>().to_string()
}

fn pod_ip(resource: &Resource) -> String {
    or_none(pod_status(resource).pod_ip)
}

fn node(resource: &Resource) -> String {
    or_none(lookup(resource, "spec.nodeName").map(as_text).unwrap_or_default())
}

fn desired_replicas(resource: &Resource) -> String {
    lookup(resource, "spec.replicas").map_or_else(|| "1".to_owned(), as_text)
}

fn ready_replicas(resource: &Resource) -> String {
    format!("{}/{}", status_count(resource, "readyReplicas"), desired_replicas(resource))
}

fn completions(resource: &Resource) -> String {
    let wanted = lookup(resource, "spec.completions").map_or_else(|| "1".to_owned(), as_text);
    format!("{}/{wanted}", status_count(resource, "succeeded"))
}

fn template_containers(resource: &Resource) -> &[crate::k8s::Container] {
    match resource {
        Resource::Deployment(object) => &object.spec.template.spec.containers,
        Resource::StatefulSet(object) => &object.spec.template.spec.containers,
        Resource::ReplicaSet(object) => &object.spec.template.spec.containers,
        _ => &[],
    }
}

fn containers(resource: &Resource) -> String {
    let names = template_containers(resource).iter().map(|container| container.name.as_str());
    names.collect::<Vec<_>>().join(",")
}

fn images(resource: &Resource) -> String {
    let names = template_containers(resource).iter().map(|container| container.image.as_str());
    names.collect::<Vec<_>>().join(",")
}

fn ingress_hosts(resource: &Resource) -> String {
    let Resource::Ingress(object) = resource else { return String::new() };
    let hosts = object.spec.rules.iter().map(|rule| rule.host.clone());
    let hosts: Vec<String> = hosts.filter(|host| !host.is_empty()).collect();
    if hosts.is_empty() { "*".to_owned() } else { joined(hosts) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expect_test::{Expect, expect};

    use super::*;

    #[track_caller]
    fn check(text: &str, wide: bool, want: Expect) {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let decoded = crate::decode::decode("f", text);
        assert_eq!(decoded.errors, []);
        let mut lines = Vec::new();
        for resource in &decoded.resources {
            lines.push(headers(resource.kind(), wide).join(" | "));
            lines.push(columns(resource, wide, now).join(" | "));
        }
        want.assert_eq(&lines.join("\n"));
    }

    #[test]
    fn rows_look_as_in_kubectl() {
        check(
            r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: bookinfo, creationTimestamp: "2001-09-09T01:40:00Z"}
spec: {hosts: ["*"], gateways: [bookinfo-gateway]}
---
apiVersion: v1
kind: Service
metadata: {name: gw, creationTimestamp: "2001-09-08T01:46:40Z"}
spec: {type: LoadBalancer, clusterIP: 10.0.0.1, ports: [{port: 80, nodePort: 30080}, {port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Pod
metadata: {name: p}
spec: {containers: [{name: a}, {name: istio-proxy}]}
status:
  phase: Running
  podIP: 10.0.0.2
  containerStatuses: [{name: a, ready: true, restartCount: 2, state: {running: {}}}, {name: istio-proxy}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
spec: {template: {metadata: {labels: {app: d}}, spec: {containers: [{name: c, image: i:1}]}}}
status: {readyReplicas: 1, availableReplicas: 1, updatedReplicas: 1}
"#,
            true,
            expect![[r#"
                NAME | GATEWAYS | HOSTS | AGE
                bookinfo | ["bookinfo-gateway"] | ["*"] | 6m40s
                NAME | TYPE | CLUSTER-IP | EXTERNAL-IP | PORT(S) | AGE | SELECTOR
                gw | LoadBalancer | 10.0.0.1 | <pending> | 80:30080/TCP,53/UDP | 24h | <none>
                NAME | READY | STATUS | RESTARTS | AGE | IP | NODE
                p | 1/2 | Running | 2 | <unknown> | 10.0.0.2 | <none>
                NAME | READY | UP-TO-DATE | AVAILABLE | AGE | CONTAINERS | IMAGES | SELECTOR
                d | 1/1 | 1 | 1 | <unknown> | c | i:1 | app=d"#]],
        );
    }

    #[test]
    fn durations_are_rounded_as_kubectl_does() {
        let all = [0, 119, 120, 130, 599, 600, 7200, 10_860, 90_000, 180_000, 864_000, 90_000_000];
        let text: Vec<String> = all.into_iter().map(human_duration).collect();
        assert_eq!(text.join(" "), "0s 119s 2m 2m10s 9m59s 10m 120m 3h1m 25h 2d2h 10d 2y");
    }
}
