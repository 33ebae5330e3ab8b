//! The door to the mesh: a listening socket of the host, relayed to a pod.
//!
//! The socket was opened in the host's network and is accepted from here, in
//! the router's, where the pod can be dialed.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

/// Connections relayed at the same time; more wait in the accept queue.
const MOST_CONNECTIONS: usize = 4096;
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Relays connections to a ready target, in turn, until the task is dropped.
/// A connection that comes while there is no target is closed.
pub(crate) async fn relay(listener: TcpListener, targets: watch::Receiver<Vec<SocketAddrV4>>) {
    let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut turn = 0;
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                // Out of descriptors, most likely; it passes.
                tracing::warn!(%error, "accepting on the host port failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let target = {
            let targets = targets.borrow();
            turn += 1;
            targets.get(turn % targets.len().max(1)).copied()
        };
        tokio::spawn(async move {
            let _slot = slot;
            if let Some(target) = target {
                join(client, target).await;
            }
        });
    }
}

async fn join(mut client: TcpStream, target: SocketAddrV4) {
    let dialed = tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect(target)).await;
    let Ok(Ok(mut pod)) = dialed else {
        tracing::debug!(%target, "the gateway did not accept a connection from the host");
        return;
    };
    let _ = (client.set_nodelay(true), pod.set_nodelay(true));
    // Half-closes are passed on; a reset on either side ends both.
    let _ = tokio::io::copy_bidirectional(&mut client, &mut pod).await;
}
