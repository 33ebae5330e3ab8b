//! HTTP/3 connections: from a UDP socket to the filter chain that serves them.
//!
//! Invariant: a worker has an endpoint of its own on a socket of its own; the
//! kernel keeps the packets of one client together.

use std::cell::RefCell;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use amime_config::listener::Terminal;
use amime_config::quic::{ALPN, Quic, TRANSPORT};
use amime_rules::connection::Connection;
use amime_rules::tls_facts::TlsFacts;
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn::{Endpoint, EndpointConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt};

use super::accept::{ConnectionEnd, LiveListener, choose_chain, within_limits};
use super::acceptor::unmapped;
use super::authorize::denied;
use crate::http::{HttpConnection, serve_http3};
use crate::worker::Worker;

/// Settings of the connections that come from now on.
pub(super) fn server_config(quic: &Quic) -> Option<Arc<ServerConfig>> {
    let tls = QuicServerConfig::try_from(quic.tls.clone());
    let tls = tls.inspect_err(|error| tracing::error!(%error, "no TLS for QUIC")).ok()?;
    let mut transport = TransportConfig::default();
    let limits = quic.limits;
    transport
        .max_concurrent_bidi_streams(limits.max_streams.into())
        .stream_receive_window(limits.stream_window.into())
        .receive_window(limits.connection_window.into())
        .max_idle_timeout(limits.idle_timeout.and_then(|it| IdleTimeout::try_from(it).ok()));
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    Some(Arc::new(config))
}

/// Accepts until the task is aborted, as the loop for TCP does.
pub(crate) async fn quic_loop(worker: Rc<Worker>, name: Rc<RefCell<Arc<str>>>, socket: UdpSocket) {
    let current = || worker.snapshot().listener(&name.borrow());
    let config = current().and_then(|listener| listener.quic.clone());
    let endpoint = config.ok_or_else(|| io::Error::other("no TLS")).and_then(|config| {
        let config = Some((*config).clone());
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = Endpoint::new(EndpointConfig::default(), config, socket, runtime)?;
        let address = endpoint.local_addr()?;
        Ok((endpoint, address))
    });
    let (endpoint, address) = match endpoint {
        Ok(endpoint) => endpoint,
        Err(error) => {
            tracing::error!(listener = %name.borrow(), %error, "socket unusable");
            return;
        }
    };
    while let Some(incoming) = endpoint.accept().await {
        let Some(listener) = current() else {
            incoming.refuse();
            continue;
        };
        tokio::task::spawn_local(connection(worker.clone(), listener, incoming, address));
    }
}

async fn connection(
    worker: Rc<Worker>,
    listener: Rc<LiveListener>,
    incoming: quinn::Incoming,
    bound: SocketAddr,
) {
    let Some(quic) = &listener.config.quic else { return incoming.refuse() };
    let Some(config) = listener.quic.clone() else { return incoming.refuse() };
    let Some(_admitted) = listener.admit(&worker) else { return incoming.refuse() };
    let stats = listener.stats.clone();
    stats.downstream_cx_total.inc();
    stats.downstream_cx_active.inc();
    let local = SocketAddr::new(incoming.local_ip().unwrap_or(bound.ip()), bound.port());
    let remote = unmapped(incoming.remote_address());
    let mut facts = Connection {
        id: worker.next_connection_id(),
        accepted: SystemTime::now(),
        local: unmapped(local),
        redirected: false,
        remote,
        direct_remote: remote,
        proxied: false,
        sni: None,
        application: vec![ALPN.to_vec()],
        tls: None,
    };
    let handshake = async { incoming.accept_with(config)?.await };
    match tokio::time::timeout(quic.limits.handshake_timeout, handshake).await {
        Ok(Ok(connection)) => {
            let data =
                connection.handshake_data().and_then(|it| it.downcast::<HandshakeData>().ok());
            facts.sni = data.and_then(|data| data.server_name).map(Into::into);
            serve(&worker, &listener, facts, connection).await;
        }
        failed => {
            if let Ok(Err(error)) = &failed {
                tracing::debug!(client = %facts.remote, %error, "QUIC handshake failed");
                stats.ssl_connection_error.inc();
            } else {
                stats.downstream_cx_transport_socket_connect_timeout.inc();
            }
            ConnectionEnd::default().log(&worker, &listener, None, &facts);
        }
    }
    stats.downstream_cx_active.dec();
    stats.downstream_cx_destroy.inc();
}

async fn serve(
    worker: &Rc<Worker>,
    listener: &Rc<LiveListener>,
    mut facts: Connection,
    connection: quinn::Connection,
) {
    let Some(chain) = choose_chain(&listener.config, &facts, TRANSPORT) else {
        listener.stats.no_filter_chain_match.inc();
        return ConnectionEnd::default().log(worker, listener, None, &facts);
    };
    let (Terminal::Http(config), Some(tls)) = (&chain.terminal, &chain.tls) else { return };
    facts.tls = Some(TlsFacts {
        version: "TLSv1.3",
        local: tls.local(),
        alpn: Some(ALPN.to_vec()),
        ..TlsFacts::default()
    });
    let mut end = ConnectionEnd::default();
    let life = listener.life(&chain);
    life.hold_stats(worker, &chain);
    if denied(worker, &facts, &chain).await.is_none()
        && let Some(_counted) = within_limits(worker, &chain, &mut end.flags).await
    {
        let served = HttpConnection::new(worker.clone(), facts.clone(), config.clone(), life);
        serve_http3(served, connection.clone()).await;
    }
    connection.close(VarInt::from_u32(0x100), b"");
    end.log(worker, listener, None, &facts);
}
