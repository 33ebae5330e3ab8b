//! `GET /v1/logs/{ns}/{pod}?container=&follow=&tail=`.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;

use super::{Refused, find_pod};
use crate::cluster::Cluster;
use crate::logs::ContainerLog;

#[derive(Deserialize)]
pub(super) struct Selection {
    #[serde(default)]
    container: String,
    #[serde(default)]
    follow: bool,
    tail: Option<usize>,
}

pub(super) async fn logs(
    State(cluster): State<Arc<Cluster>>,
    Path((namespace, name)): Path<(String, String)>,
    Query(selection): Query<Selection>,
) -> Result<Response, Refused> {
    let pod = find_pod(&cluster, &namespace, &name)?;
    let wanted = Some(selection.container.as_str()).filter(|name| !name.is_empty());
    let container = pod.container(wanted).ok_or_else(|| {
        let names: Vec<_> = pod.containers.iter().map(|container| container.name()).collect();
        let message = format!(
            "container {:?} is not in pod {name}; it has {}",
            selection.container,
            names.join(", ")
        );
        Refused(StatusCode::BAD_REQUEST, message)
    })?;
    let log = container.log.clone();
    let watch = log.watch();
    let (text, position) = log
        .tail(selection.tail)
        .map_err(|error| Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    if !selection.follow {
        return Ok(text.into_response());
    }
    let follower = Follower { log, watch, position, first: Some(text) };
    let body = stream::unfold(follower, |mut follower| async move {
        let bytes = follower.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(bytes)), follower))
    });
    Ok(Body::from_stream(body).into_response())
}

struct Follower {
    log: ContainerLog,
    watch: tokio::sync::watch::Receiver<u64>,
    position: u64,
    first: Option<Vec<u8>>,
}

impl Follower {
    /// What came next; none when it cannot be read any more.
    async fn next(&mut self) -> Option<Vec<u8>> {
        if let Some(first) = self.first.take().filter(|first| !first.is_empty()) {
            return Some(first);
        }
        loop {
            let position = self.position;
            self.watch.wait_for(|written| *written > position).await.ok()?;
            let bytes = self.log.read_from(&mut self.position).ok()?;
            if !bytes.is_empty() {
                return Some(bytes);
            }
        }
    }
}
