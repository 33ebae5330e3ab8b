//! The routes.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use amime_api::{Kind, ObjectKey, Resource};
use axum::body::{Body, Bytes};
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde_json::Value;
use tokio::net::UnixListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::{Deleted, Failure, LabelRequest, Labelled, Objects, WatchLine};
use crate::store::{Apply, Rejected, ResumePoint, Store, StoreError, Watch};

/// Largest request. JSON may escape each byte of a file as six, and a file of
/// ten megabytes should be refused for its content, with a position.
const MAX_BODY_BYTES: usize = 72 * 1024 * 1024;
/// Lines that a watcher's connection may hold unsent.
const WATCH_QUEUE: usize = 64;

/// The API over `store`.
pub fn router(store: Arc<Store>) -> Router {
    Router::new()
        .route("/v1/apply", post(apply))
        .route("/v1/objects/{kind}", get(list))
        .route("/v1/objects/{kind}/{name}", delete(delete_cluster_wide))
        .route("/v1/objects/{kind}/{namespace}/{name}", delete(delete_namespaced))
        .route("/v1/label", post(label))
        .route("/v1/watch", get(watch))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(store)
}

/// Serves `router` on a Unix socket until `shutdown`, which ends the watches.
pub async fn serve(
    listener: UnixListener,
    router: Router,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let router = router.layer(Extension(shutdown.clone()));
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

/// A failure with its status code.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(Failure { error: self.1 })).into_response()
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::NotFound { .. } | StoreError::NoNamespace { .. } => StatusCode::NOT_FOUND,
            StoreError::Protected { .. } => StatusCode::FORBIDDEN,
            StoreError::Address(_) => StatusCode::UNPROCESSABLE_ENTITY,
            StoreError::Full => StatusCode::INSUFFICIENT_STORAGE,
            StoreError::Journal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(code, error.to_string())
    }
}

impl From<JsonRejection> for Refused {
    fn from(rejection: JsonRejection) -> Self {
        Self(rejection.status(), rejection.body_text())
    }
}

impl From<amime_api::UnknownKind> for Refused {
    fn from(error: amime_api::UnknownKind) -> Self {
        Self(StatusCode::NOT_FOUND, error.to_string())
    }
}

/// Runs store work, which syncs files, off the runtime's own threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refused> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

async fn apply(
    State(store): State<Arc<Store>>,
    request: Result<Json<Apply>, JsonRejection>,
) -> Result<Response, Refused> {
    let Json(request) = request?;
    let outcome = blocking(move || store.apply(&request)).await?;
    Ok(match outcome {
        Ok(applied) => Json(applied).into_response(),
        Err(rejected) => unprocessable(&rejected),
    })
}

fn unprocessable(rejected: &Rejected) -> Response {
    (StatusCode::UNPROCESSABLE_ENTITY, Json(rejected)).into_response()
}

#[derive(Deserialize)]
struct Selection {
    namespace: Option<String>,
    name: Option<String>,
}

async fn list(
    State(store): State<Arc<Store>>,
    Path(kind): Path<String>,
    Query(selection): Query<Selection>,
) -> Result<Json<Objects>, Refused> {
    let kind = Kind::parse(&kind)?;
    let namespace = selection.namespace.filter(|namespace| !namespace.is_empty());
    let items = match selection.name.filter(|name| !name.is_empty()) {
        Some(name) => {
            let namespace = if kind.is_namespaced() { namespace } else { None };
            let key = ObjectKey { kind, namespace: namespace.unwrap_or_default(), name };
            vec![store.get(&key)?.to_json()]
        }
        None => store
            .list(kind, namespace.as_deref().filter(|_| kind.is_namespaced()))
            .iter()
            .map(|object| object.to_json())
            .collect(),
    };
    Ok(Json(Objects { items }))
}

async fn delete_cluster_wide(
    store: State<Arc<Store>>,
    Path((kind, name)): Path<(String, String)>,
) -> Result<Json<Deleted>, Refused> {
    delete_object(store, &kind, String::new(), name).await
}

async fn delete_namespaced(
    store: State<Arc<Store>>,
    Path((kind, namespace, name)): Path<(String, String, String)>,
) -> Result<Json<Deleted>, Refused> {
    delete_object(store, &kind, namespace, name).await
}

async fn delete_object(
    State(store): State<Arc<Store>>,
    kind: &str,
    namespace: String,
    name: String,
) -> Result<Json<Deleted>, Refused> {
    let key = ObjectKey { kind: Kind::parse(kind)?, namespace, name };
    let deleted = blocking(move || store.delete(&key)).await??;
    let deleted = deleted.iter().map(|object| object.to_json()).collect();
    Ok(Json(Deleted { deleted }))
}

async fn label(
    State(store): State<Arc<Store>>,
    request: Result<Json<LabelRequest>, JsonRejection>,
) -> Result<Json<Labelled>, Refused> {
    let Json(request) = request?;
    let kind = Kind::parse(&request.kind)?;
    let namespace = if kind.is_namespaced() { request.namespace } else { String::new() };
    let key = ObjectKey { kind, namespace, name: request.name };
    let (object, changed): (Arc<Resource>, bool) =
        blocking(move || store.label(&key, &request.labels)).await??;
    Ok(Json(Labelled { changed, object: object.to_json() }))
}

#[derive(Deserialize)]
struct WatchFrom {
    instance: Option<String>,
    since: Option<u64>,
}

async fn watch(
    State(store): State<Arc<Store>>,
    shutdown: Option<Extension<CancellationToken>>,
    Query(from): Query<WatchFrom>,
) -> Result<Response, Refused> {
    let point = from.since.map(|revision| {
        // Nobody's instance is empty, so that a bare number is gone.
        ResumePoint { instance: from.instance.unwrap_or_default(), revision }
    });
    let watch =
        store.watch(point.as_ref()).map_err(|gone| Refused(StatusCode::GONE, gone.to_string()))?;
    let (lines, queue) = tokio::sync::mpsc::channel(WATCH_QUEUE);
    let shutdown = shutdown.map(|Extension(token)| token).unwrap_or_default();
    tokio::spawn(async move {
        tokio::select! {
            () = send_changes(watch, lines) => {}
            () = shutdown.cancelled() => {}
        }
    });
    let stream = ReceiverStream::new(queue).map(Ok::<Bytes, Infallible>);
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(stream)).into_response())
}

/// Ends when the watcher goes or falls too far behind.
async fn send_changes(mut watch: Watch, lines: tokio::sync::mpsc::Sender<Bytes>) {
    for change in watch.initial() {
        if lines.send(to_line(&WatchLine::of(&change))).await.is_err() {
            return;
        }
    }
    let point = watch.point().clone();
    let synced = WatchLine::Synced { revision: point.revision, instance: point.instance };
    if lines.send(to_line(&synced)).await.is_err() {
        return;
    }
    loop {
        let change = tokio::select! {
            change = watch.next() => change,
            () = lines.closed() => return,
        };
        let Some(change) = change else { return };
        if lines.send(to_line(&WatchLine::of(&change))).await.is_err() {
            return;
        }
    }
}

fn to_line(line: &WatchLine) -> Bytes {
    let value = serde_json::to_value(line).unwrap_or(Value::Null);
    Bytes::from(format!("{value}\n"))
}
