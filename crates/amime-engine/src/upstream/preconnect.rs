//! Connections opened ahead of requests, so that the next ones need not wait
//! for a handshake.
//!
//! HTTP/1 only: an HTTP/2 connection has room for further requests anyway.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/cluster/v3/cluster.proto#config-cluster-v3-cluster-preconnectpolicy>

use super::Resource;
use super::open::OpenGuard;
use super::pool::{Acquire, ConnKey, Lease, Sender, dial, start_h1};

/// The most that one request opens, as in Envoy.
const AT_ONCE: usize = 3;

/// Opens what is missing to the cluster's ratio of connections to requests, of
/// which one has just got its connection.
pub(super) fn keep_ahead(request: Acquire<'_>, key: &ConnKey) {
    let Acquire { cluster, host, priority, mark, .. } = request;
    let Some(ratio) = cluster.config().preconnect else { return };
    // Such a connection would serve the one client that is served already.
    if key.client.is_some() || host.retired() {
        return;
    }
    let wanted = (f64::from(host.active.get()) * ratio).ceil();
    for _ in 0..AT_ONCE {
        let full = host.endpoint.state.is_full(&cluster.config().limits[priority]);
        if f64::from(host.pool.open.get()) >= wanted
            || full
            || !cluster.take(priority, Resource::Connections)
        {
            return;
        }
        let guard = OpenGuard::new(request);
        let (cluster, host, key) = (cluster.clone(), host.clone(), key.clone());
        tokio::task::spawn_local(async move {
            let (cluster, host) = (&cluster, &host);
            let request = Acquire { cluster, host, priority, mark, fresh: true };
            open_ahead(request, key, guard).await;
        });
    }
}

/// Opens a connection for whoever comes next.
async fn open_ahead(request: Acquire<'_>, key: ConnKey, guard: OpenGuard) {
    let Ok((io, facts)) = dial(request, &key).await else { return };
    let Lease { sender, conn, .. } = start_h1(request, io, facts, key, guard);
    conn.unused();
    if let Sender::H1(sender) = sender
        && !request.host.retired()
    {
        request.host.pool.put(sender, conn);
    }
}
