//! Waits until the proxies know what the objects say.
//!
//! A pod that is ready is an endpoint only once the control plane has told the
//! proxies that call it: until then a request may fail, and the mesh is not
//! ready to a user. A pod that is to go is called until they have been told.

use std::sync::Arc;
use std::time::Duration;

use amime_control::discovery::Distribution;
use axum::body::Body;
use axum::extract::Request;
use http_body_util::{BodyExt, Limited};

use crate::cluster::{Cluster, MESH_NAMESPACE};
use crate::kubelet::Pod;
use crate::server::ask;

/// The control plane's monitoring port.
const MONITORING_PORT: u16 = 15014;
const CONTROL_PLANE: (&str, &str) = ("app", "istiod");
const POLL: Duration = Duration::from_millis(5);
/// A control plane that is asked in vain so often in a row tells nobody
/// anything.
const MAX_FAILURES: u32 = 100;
/// Longest answer that is read.
const MAX_ANSWER: usize = 1 << 20;

/// Returns when every connected proxy has answered for what the store holds
/// now, at once if no control plane runs here, and after `patience` anyway.
pub(crate) async fn wait(cluster: &Cluster, patience: Duration) {
    let Some(control_plane) = control_plane(cluster) else { return };
    let revision = cluster.store.revision();
    let mut last = None;
    let converged = async {
        // Acknowledging a type may bring a subscription to another, which
        // follows in a message of its own: twice in a row is enough.
        let (mut row, mut failures) = (0, 0);
        while row < 2 && failures < MAX_FAILURES {
            let answer = distribution(&control_plane, revision).await;
            failures = if answer.is_some() { 0 } else { failures + 1 };
            row = if answer.as_ref().is_some_and(|answer| answer.complete) { row + 1 } else { 0 };
            last = answer.or(last.take());
            tokio::time::sleep(POLL).await;
        }
    };
    if tokio::time::timeout(patience, converged).await.is_err() {
        let (reached, behind) = last.map(|last| (last.revision, last.behind)).unzip();
        tracing::warn!(
            revision,
            ?reached,
            ?behind,
            "not all proxies have answered for their configuration"
        );
    }
}

fn control_plane(cluster: &Cluster) -> Option<Arc<Pod>> {
    let (label, value) = CONTROL_PLANE;
    let object = cluster.store.list(amime_api::Kind::Pod, Some(MESH_NAMESPACE)).into_iter().find(
        |object| object.metadata().labels.get(label).is_some_and(|labelled| labelled == value),
    )?;
    cluster.pod(MESH_NAMESPACE, &object.metadata().name)
}

async fn distribution(control_plane: &Pod, revision: u64) -> Option<Distribution> {
    let path = format!("/debug/distribution?revision={revision}");
    let request = Request::get(path).body(Body::empty()).ok()?;
    let answer = ask(control_plane, MONITORING_PORT, request).await.ok()?;
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.ok()?;
    serde_json::from_slice(&body.to_bytes()).ok()
}
