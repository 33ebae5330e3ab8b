//! A look inside, as JSON.
//!
//! `/debug/syncz` and `/debug/config_dump` have Istio's shapes, because
//! `istioctl` reads them; the others are for people.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use amime_model::{Endpoint, Snapshot};
use amime_translate::ProxyKind;
use amime_xds::TypeUrl;
use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::discovery::{Distribution, ProxySync, SyncState, TypeSync};
use crate::server::http::Monitored;

type Refused = (StatusCode, String);

/// Where one proxy stands.
#[derive(Serialize)]
struct SyncStatus {
    cluster_id: String,
    proxy: String,
    proxy_type: &'static str,
    istio_version: String,
    connected_at: String,
    /// Snapshot that the proxy was compared with last.
    snapshot: u64,
    /// Nonces under Istio's names: `cluster_sent`, `cluster_acked`, …
    #[serde(flatten)]
    nonces: BTreeMap<String, String>,
    /// The same by type (`CDS`), in words and with times.
    types: BTreeMap<&'static str, TypeStatus>,
}

#[derive(Serialize)]
struct TypeStatus {
    state: &'static str,
    resources: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    sent_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    acked_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(crate) async fn syncz(State(monitored): State<Monitored>) -> Json<Value> {
    let proxies = monitored.discovery.sync_status();
    let statuses: Vec<SyncStatus> =
        proxies.iter().map(|proxy| sync_status(proxy, &monitored.cluster_id)).collect();
    Json(serde_json::to_value(statuses).unwrap_or_default())
}

#[derive(Deserialize)]
pub(crate) struct Since {
    /// Default 0: whatever there is.
    #[serde(default)]
    revision: u64,
}

/// Whether a revision of the store has reached every connected proxy.
pub(crate) async fn distribution(
    State(monitored): State<Monitored>,
    Query(since): Query<Since>,
) -> Json<Distribution> {
    Json(monitored.discovery.distribution(since.revision))
}

fn sync_status(sync: &ProxySync, cluster_id: &str) -> SyncStatus {
    let mut nonces = BTreeMap::new();
    let mut types = BTreeMap::new();
    for (type_url, of_type) in &sync.types {
        if let Some(name) = istio_name(*type_url) {
            let nonce = |stamp: &Option<amime_xds::server::Stamp>| {
                stamp.as_ref().map(|stamp| stamp.nonce.clone()).unwrap_or_default()
            };
            nonces.insert(format!("{name}_sent"), nonce(&of_type.status.sent));
            nonces.insert(format!("{name}_acked"), nonce(&of_type.status.acked));
        }
        types.insert(type_url.short(), type_status(of_type));
    }
    let said = |key: &str| sync.proxy.metadata.get(key).and_then(Value::as_str).map(str::to_owned);
    let cluster = Some(sync.proxy.cluster_id.clone()).filter(|cluster| !cluster.is_empty());
    SyncStatus {
        cluster_id: cluster.unwrap_or_else(|| cluster_id.to_owned()),
        proxy: sync.proxy.id.clone(),
        proxy_type: match sync.proxy.kind {
            ProxyKind::Sidecar => "sidecar",
            ProxyKind::Router => "router",
        },
        istio_version: said("ISTIO_VERSION").unwrap_or_default(),
        connected_at: rfc3339(sync.connected_at),
        snapshot: sync.snapshot_version,
        nonces,
        types,
    }
}

fn type_status(sync: &TypeSync) -> TypeStatus {
    let state = match sync.state() {
        SyncState::Synced => "SYNCED",
        SyncState::NotSent => "NOT SENT",
        SyncState::Stale => "STALE",
        SyncState::Error => "ERROR",
    };
    TypeStatus {
        state,
        resources: sync.status.resources,
        sent_at: sync.sent_at.map(rfc3339),
        acked_at: sync.acked_at.map(rfc3339),
        error: sync.status.nack.as_ref().map(|nack| nack.message.clone()),
    }
}

fn istio_name(type_url: TypeUrl) -> Option<&'static str> {
    match type_url {
        TypeUrl::Cluster => Some("cluster"),
        TypeUrl::Listener => Some("listener"),
        TypeUrl::Route => Some("route"),
        TypeUrl::Endpoint => Some("endpoint"),
        TypeUrl::ExtensionConfig => Some("extensionconfig"),
        _ => None,
    }
}

pub(crate) async fn registryz(State(monitored): State<Monitored>) -> Result<Json<Value>, Refused> {
    let snapshot = snapshot(&monitored)?;
    let services: Vec<Value> = snapshot
        .services()
        .all()
        .iter()
        .map(|service| {
            let ports: Vec<Value> = service
                .ports
                .iter()
                .map(|port| {
                    let protocol = format!("{:?}", port.protocol);
                    json!({"name": port.name, "port": port.number, "protocol": protocol})
                })
                .collect();
            json!({
                "hostname": service.hostname.to_string(),
                "name": service.name,
                "namespace": service.namespace,
                "registry": service.registry.as_str(),
                "resolution": format!("{:?}", service.resolution),
                "meshExternal": service.mesh_external,
                "address": service.address,
                "ports": ports,
                "selector": service.selector,
                "exportTo": service.export_to,
                "creationTime": service.created,
            })
        })
        .collect();
    Ok(Json(services.into()))
}

pub(crate) async fn endpointz(State(monitored): State<Monitored>) -> Result<Json<Value>, Refused> {
    let snapshot = snapshot(&monitored)?;
    let mut out = Vec::new();
    for service in snapshot.services().all() {
        let Some(endpoints) = snapshot.endpoints(service) else { continue };
        for (port, endpoints) in &endpoints.ports {
            let endpoints: Vec<Value> = endpoints.iter().map(|e| endpoint(e)).collect();
            let service = service.hostname.to_string();
            out.push(json!({"service": service, "port": port, "endpoints": endpoints}));
        }
    }
    Ok(Json(out.into()))
}

fn endpoint(endpoint: &Endpoint) -> Value {
    json!({
        "address": endpoint.address,
        "port": endpoint.port,
        "health": format!("{:?}", endpoint.health),
        "workload": endpoint.workload,
        "namespace": endpoint.namespace,
        "serviceAccount": endpoint.service_account,
        "tlsMode": endpoint.tls_mode,
        "locality": endpoint.locality.to_string(),
        "network": endpoint.network,
        "weight": endpoint.weight,
        "labels": *endpoint.labels,
    })
}

/// The mesh's own kinds only: there are secrets among the others.
pub(crate) async fn configz(State(monitored): State<Monitored>) -> Result<Json<Value>, Refused> {
    let snapshot = snapshot(&monitored)?;
    let objects: Vec<Value> = snapshot
        .resources()
        .filter(|(key, _)| key.kind.is_mesh_config())
        .map(|(_, resource)| resource.to_json())
        .collect();
    Ok(Json(objects.into()))
}

pub(crate) async fn mesh(State(monitored): State<Monitored>) -> Result<Json<Value>, Refused> {
    let snapshot = snapshot(&monitored)?;
    serde_json::to_value(snapshot.mesh())
        .map(Json)
        .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

#[derive(Deserialize)]
pub(crate) struct DumpOf {
    #[serde(rename = "proxyID")]
    proxy_id: Option<String>,
}

/// What a connected proxy is sent at present, without secrets.
pub(crate) async fn config_dump(
    State(monitored): State<Monitored>,
    Query(of): Query<DumpOf>,
) -> Result<Json<Value>, Refused> {
    let missing = || (StatusCode::BAD_REQUEST, "give a proxy as ?proxyID=POD.NAMESPACE\n".into());
    let id = of.proxy_id.filter(|id| !id.is_empty()).ok_or_else(missing)?;
    let proxies = monitored.discovery.sync_status();
    let sync = proxies
        .iter()
        .find(|sync| sync.proxy.id == id || sync.node_id == id)
        .ok_or_else(|| (StatusCode::NOT_FOUND, format!("no proxy {id:?} is connected\n")))?;
    let snapshot = snapshot(&monitored)?;
    let proxy = Arc::clone(&sync.proxy);
    // Translation and printing take milliseconds, which other requests need not wait for.
    let dumped = tokio::task::spawn_blocking(move || dump(&snapshot, &proxy)).await;
    let failed = |error: String| (StatusCode::INTERNAL_SERVER_ERROR, error);
    dumped.map_err(|error| failed(error.to_string()))?.map(Json).map_err(failed)
}

fn dump(snapshot: &Snapshot, proxy: &amime_translate::Proxy) -> Result<Value, String> {
    let dump = amime_translate::dump(snapshot, proxy);
    let config = |kind: &str, list: &str, field: &str, items: Vec<Value>| {
        let items: Vec<Value> = items.into_iter().map(|item| json!({ field: item })).collect();
        json!({"@type": format!("type.googleapis.com/envoy.admin.v3.{kind}"), list: items})
    };
    let configs = vec![
        config("ClustersConfigDump", "dynamic_active_clusters", "cluster", all(&dump.clusters)?),
        config(
            "ListenersConfigDump",
            "dynamic_listeners",
            "active_state",
            all(&dump.listeners)?.into_iter().map(|l| json!({"listener": l})).collect(),
        ),
        config("RoutesConfigDump", "dynamic_route_configs", "route_config", all(&dump.routes)?),
        config(
            "EndpointsConfigDump",
            "dynamic_endpoint_configs",
            "endpoint_config",
            all(&dump.endpoints)?,
        ),
    ];
    Ok(json!({"configs": configs}))
}

/// Each message as Envoy prints an `Any`: its fields beside its type.
fn all<M: prost::Message + prost::Name>(messages: &[M]) -> Result<Vec<Value>, String> {
    let typed = |message: &M| {
        let mut json = amime_xds::json::to_json(message).map_err(|error| error.to_string())?;
        if let Value::Object(fields) = &mut json {
            let name = format!("type.googleapis.com/{}", M::full_name());
            fields.insert("@type".to_owned(), name.into());
        }
        Ok(json)
    };
    messages.iter().map(typed).collect()
}

fn snapshot(monitored: &Monitored) -> Result<Arc<Snapshot>, Refused> {
    monitored.discovery.snapshot().ok_or_else(|| {
        (StatusCode::SERVICE_UNAVAILABLE, "waiting for the configuration source\n".to_owned())
    })
}

fn rfc3339(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use amime_translate::Proxy;

    use super::*;

    #[test]
    fn a_config_dump_has_envoys_shape() {
        let service = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: default}
spec: {clusterIP: 10.96.0.9, ports: [{port: 9080, name: http}], selector: {app: reviews}}
";
        let decoded = amime_api::decode::decode("s.yaml", service);
        let resources = decoded.resources.into_iter().map(Arc::new);
        let snapshot = Snapshot::build(resources, Arc::default(), 1);
        let proxy = r#"{"type": "sidecar", "ips": ["10.0.0.1"], "id": "app.default",
            "dns_domain": "default.svc.cluster.local"}"#;
        let proxy = Proxy::from_json(proxy).expect("a proxy");
        let dumped = dump(&snapshot, &proxy).expect("prints");

        let types: Vec<&str> = dumped["configs"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|config| config["@type"].as_str()?.rsplit('.').next())
            .collect();
        let want = [
            "ClustersConfigDump",
            "ListenersConfigDump",
            "RoutesConfigDump",
            "EndpointsConfigDump",
        ];
        assert_eq!(types, want);
        let clusters = dumped["configs"][0]["dynamic_active_clusters"].as_array().expect("a list");
        let named = |cluster: &&Value| {
            cluster["cluster"]["name"] == "outbound|9080||reviews.default.svc.cluster.local"
        };
        let cluster = &clusters.iter().find(named).expect("the service's")["cluster"];
        assert_eq!(cluster["@type"], "type.googleapis.com/envoy.config.cluster.v3.Cluster");
        let listeners = &dumped["configs"][1]["dynamic_listeners"];
        assert!(listeners[0]["active_state"]["listener"]["name"].is_string());
    }
}
