//! The API of a running mesh, on a Unix socket in the state directory.
//!
//! Owns what a cluster's API server and kubelet would offer beyond objects:
//! status, exec, logs, HTTP into a pod, scale, shutdown. Objects are
//! `amime_control::api`'s.
//!
//! Paths: `GET /v1/status`, `POST /v1/exec`, `GET /v1/logs/{ns}/{pod}`,
//! `ANY /v1/http/{ns}/{pod}/{port}/{path}`,
//! `POST /v1/scale/{ns}/{deployment}?replicas=N`, `POST /v1/shutdown`.

mod exec;
mod logs;
mod relay;
mod report;

pub(crate) use relay::ask;

use std::sync::Arc;

use amime_api::{Kind, ObjectKey, Resource, decode};
use amime_control::api::Failure;
use amime_control::store::{Apply, Rejected};
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use serde::Deserialize;

use crate::cluster::Cluster;
use crate::kubelet::Pod;
use crate::status::MeshStatus;

/// Largest request that is looked into.
const MAX_APPLY_BYTES: usize = 32 << 20;

/// All routes.
pub(crate) fn router(cluster: Arc<Cluster>) -> Router {
    let objects = amime_control::api::router(Arc::clone(&cluster.store));
    let own = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/exec", post(exec::exec))
        .route("/v1/logs/{namespace}/{pod}", get(logs::logs))
        .route("/v1/http/{namespace}/{pod}/{port}", any(relay::relay_root))
        .route("/v1/http/{namespace}/{pod}/{port}/{*path}", any(relay::relay))
        .route("/v1/scale/{namespace}/{deployment}", post(scale))
        .route("/v1/shutdown", post(shutdown))
        .with_state(Arc::clone(&cluster));
    objects.merge(own).layer(axum::middleware::from_fn_with_state(cluster, check_images))
}

/// A failure with its status code, in the form of the object API.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(Failure { error: self.1 })).into_response()
    }
}

fn find_pod(cluster: &Cluster, namespace: &str, name: &str) -> Result<Arc<Pod>, Refused> {
    cluster.pod(namespace, name).ok_or_else(|| {
        Refused(
            StatusCode::NOT_FOUND,
            format!("pods {name:?} not found in namespace {namespace:?}"),
        )
    })
}

async fn status(State(cluster): State<Arc<Cluster>>) -> Json<MeshStatus> {
    Json(report::mesh(&cluster))
}

async fn shutdown(State(cluster): State<Arc<Cluster>>) -> StatusCode {
    cluster.shutdown.cancel();
    StatusCode::ACCEPTED
}

#[derive(Deserialize)]
struct Scale {
    replicas: u32,
}

/// Sets the number of replicas of a Deployment or StatefulSet.
async fn scale(
    State(cluster): State<Arc<Cluster>>,
    Path((namespace, name)): Path<(String, String)>,
    Query(scale): Query<Scale>,
) -> Result<StatusCode, Refused> {
    let key = |kind| ObjectKey { kind, namespace: namespace.clone(), name: name.clone() };
    let kinds = [Kind::Deployment, Kind::StatefulSet];
    let found = kinds.into_iter().find_map(|kind| cluster.store.get(&key(kind)).ok());
    let Some(found) = found else {
        let message = format!("deployments.apps {name:?} not found in namespace {namespace:?}");
        return Err(Refused(StatusCode::NOT_FOUND, message));
    };
    let replicas = i32::try_from(scale.replicas).map_err(|_| {
        Refused(StatusCode::BAD_REQUEST, format!("{} replicas are too many", scale.replicas))
    })?;
    let mut changed = (*found).clone();
    let raw = match &mut changed {
        Resource::Deployment(object) => {
            object.spec.replicas = Some(replicas);
            &mut object.raw
        }
        Resource::StatefulSet(object) => {
            object.spec.replicas = Some(replicas);
            &mut object.raw
        }
        _ => return Err(Refused(StatusCode::BAD_REQUEST, "cannot be scaled".to_owned())),
    };
    if let Some(spec) = raw.get_mut("spec").and_then(serde_json::Value::as_object_mut) {
        spec.insert("replicas".to_owned(), replicas.into());
    }
    let put = tokio::task::spawn_blocking(move || cluster.store.put(changed)).await;
    let stored = put.map_err(|error| error.to_string());
    stored
        .and_then(|stored| stored.map_err(|error| error.to_string()))
        .map_err(|error| Refused(StatusCode::INTERNAL_SERVER_ERROR, error))?;
    Ok(StatusCode::OK)
}

/// Refuses an apply with an image that nothing stands in for, before any of
/// it is stored.
async fn check_images(
    State(cluster): State<Arc<Cluster>>,
    request: Request,
    next: Next,
) -> Response {
    if request.uri().path() != "/v1/apply" {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let body = match axum::body::to_bytes(body, MAX_APPLY_BYTES).await {
        Ok(body) => body,
        Err(error) => {
            return Refused(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()).into_response();
        }
    };
    if let Ok(apply) = serde_json::from_slice::<Apply>(&body) {
        let errors = image_faults(&cluster, &apply);
        if !errors.is_empty() {
            let rejected = Rejected { errors, warnings: vec![] };
            return (StatusCode::UNPROCESSABLE_ENTITY, Json(rejected)).into_response();
        }
    }
    next.run(Request::from_parts(parts, Body::from(body))).await
}

/// Faults of the images in an apply; none while the files themselves have
/// faults, which the store reports.
pub(crate) fn image_faults(cluster: &Cluster, apply: &Apply) -> Vec<String> {
    let mut resources = Vec::new();
    for file in &apply.files {
        let decoded = decode::decode(&file.name, &file.text);
        if !decoded.errors.is_empty() {
            return Vec::new();
        }
        for mut resource in decoded.resources {
            let meta = resource.metadata_mut();
            if meta.namespace.is_empty() {
                meta.namespace.clone_from(&apply.namespace);
            }
            resources.push(resource);
        }
    }
    cluster.image_faults(&resources)
}
