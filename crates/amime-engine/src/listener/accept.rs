//! From an accepted socket to the filter chain that serves it.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use amime_telemetry::ListenerStats;
use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::io::{DownstreamIo, Prefixed, Transport};
use super::proxy_protocol::{self, Header};
use super::sniff;
use crate::http::{HttpConnection, serve};
use crate::tcp::{self, Dialed};
use crate::upstream::connect::keepalive_options;
use crate::worker::Worker;
use amime_config::chain_match::{ChainInput, choose};
use amime_config::connection::Connection;
use amime_config::listener::{FilterChain, ListenerConfig, ProxyProtocolMode, Terminal};
use amime_config::rbac::Subject;
use amime_config::tls::DownstreamTls;
use amime_config::tls_facts::TlsFacts;

/// A listener as one worker serves it.
pub(crate) struct LiveListener {
    pub(crate) config: Arc<ListenerConfig>,
    stats: Arc<ListenerStats>,
    retired: Cell<Option<Instant>>,
}

/// How long connections of a listener that was replaced may stay idle before
/// they are closed; Envoy's drain time.
const DRAIN: Duration = Duration::from_secs(600);

impl LiveListener {
    pub(crate) fn new(config: Arc<ListenerConfig>, worker: &Worker) -> Rc<Self> {
        let address = config.address;
        let stats = worker.telemetry.listener(&format!("{}_{}", address.ip(), address.port()));
        Rc::new(Self { config, stats, retired: Cell::new(None) })
    }

    /// True once another version has taken its place: connections are asked
    /// to come back, none is cut.
    pub(crate) fn retired(&self) -> bool {
        self.retired.get().is_some()
    }

    /// When connections are no longer waited for.
    pub(crate) fn drained_at(&self) -> Option<Instant> {
        self.retired.get().map(|since| since + DRAIN)
    }

    pub(crate) fn retire(&self) {
        self.retired.set(Some(Instant::now()));
    }
}

/// Accepts until the task is aborted. The listener served is looked up anew
/// for each connection, so an update keeps the socket.
pub(crate) async fn accept_loop(
    worker: Rc<Worker>,
    name: Rc<RefCell<Arc<str>>>,
    socket: TcpListener,
) {
    loop {
        match socket.accept().await {
            Ok((stream, peer)) => {
                let name = name.borrow().clone();
                let Some(listener) = worker.snapshot().listener(&name) else { continue };
                tokio::task::spawn_local(connection(worker.clone(), listener, stream, peer));
            }
            // Out of descriptors, or a client that left: neither is for ever.
            Err(error) => {
                tracing::warn!(listener = %name.borrow(), %error, "accept failed");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// A connection under inspection.
struct Incoming {
    stream: TcpStream,
    buffer: BytesMut,
    facts: Connection,
    transport: &'static str,
}

async fn connection(
    worker: Rc<Worker>,
    listener: Rc<LiveListener>,
    stream: TcpStream,
    peer: SocketAddr,
) {
    let _active = worker.connection_opened();
    let _ = stream.set_nodelay(true);
    let Ok(own) = stream.local_addr() else { return };
    let (own, peer) = (unmapped(own), unmapped(peer));
    let filters = &listener.config.filters;
    let mut local = own;
    if (filters.original_dst || listener.config.hand_off)
        && let Ok(original) = amime_net::socket::original_dst(&stream)
    {
        local = unmapped(original);
    }
    let redirected = local != own;
    let listener = match redirected && listener.config.hand_off {
        true => worker.snapshot().hand_off(local).unwrap_or(listener),
        false => listener,
    };
    if let Some(keepalive) = &listener.config.keepalive {
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive_options(keepalive));
    }
    let stats = listener.stats.clone();
    stats.downstream_cx_total.inc();
    stats.downstream_cx_active.inc();
    let incoming = Incoming {
        stream,
        buffer: BytesMut::new(),
        facts: Connection {
            id: worker.next_connection_id(),
            accepted: SystemTime::now(),
            local,
            redirected,
            remote: peer,
            direct_remote: peer,
            sni: None,
            application: Vec::new(),
            tls: None,
        },
        transport: "raw_buffer",
    };
    incoming.run(worker, listener).await;
    stats.downstream_cx_active.dec();
    stats.downstream_cx_destroy.inc();
}

/// IPv4 clients of an IPv6 socket, as the IPv4 addresses they have.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// How inspection ended.
enum Inspected {
    Known,
    /// The upstream spoke before the client did.
    ServerFirst(Box<Dialed>),
    Refused,
}

impl Incoming {
    async fn run(mut self, worker: Rc<Worker>, listener: Rc<LiveListener>) {
        let inspected = match listener.config.filters_timeout {
            None => self.inspect(&worker, &listener.config).await,
            Some(limit) => {
                match tokio::time::timeout(limit, self.inspect(&worker, &listener.config)).await {
                    Ok(inspected) => inspected,
                    Err(_) if listener.config.continue_on_timeout => Inspected::Known,
                    Err(_) => {
                        listener.stats.downstream_pre_cx_timeout.inc();
                        return;
                    }
                }
            }
        };
        let dialed = match inspected {
            Inspected::Known => None,
            Inspected::ServerFirst(dialed) => Some(*dialed),
            Inspected::Refused => return,
        };
        let Some(chain) = self.chain(&listener.config) else {
            listener.stats.no_filter_chain_match.inc();
            return;
        };
        self.serve(worker, listener, chain, dialed).await;
    }

    /// Reads what the listener filters and the chain need to know.
    async fn inspect(&mut self, worker: &Rc<Worker>, listener: &ListenerConfig) -> Inspected {
        if let Some(mode) = listener.filters.proxy_protocol
            && !self.proxy_protocol(mode).await
        {
            return Inspected::Refused;
        }
        if !listener.inspects(self.facts.local.port()) {
            return Inspected::Known;
        }
        let server_first = self.server_first_chain(listener);
        let Some(chain) = server_first else {
            self.sniff(listener).await;
            return Inspected::Known;
        };
        let Terminal::Tcp(config) = &chain.terminal else { return Inspected::Known };
        let facts = self.facts_copy();
        let speaking = async {
            // Nearly all clients that speak first have spoken by then; dialing
            // for each of them would open connections for nothing.
            tokio::time::sleep(SERVER_FIRST_GRACE).await;
            tcp::dial_speaking(worker, &facts, config).await
        };
        tokio::select! {
            biased;
            () = self.sniff(listener) => Inspected::Known,
            dialed = speaking => Inspected::ServerFirst(Box::new(dialed)),
        }
    }

    /// The chain for a client that says nothing, if it proxies plain TCP.
    fn server_first_chain(&self, listener: &ListenerConfig) -> Option<Arc<FilterChain>> {
        let chain = self.chain(listener)?;
        let plain = chain.tls.is_none() && matches!(chain.terminal, Terminal::Tcp(_));
        plain.then_some(chain)
    }

    fn facts_copy(&self) -> Connection {
        Connection {
            id: self.facts.id,
            accepted: self.facts.accepted,
            local: self.facts.local,
            redirected: self.facts.redirected,
            remote: self.facts.remote,
            direct_remote: self.facts.direct_remote,
            sni: None,
            application: Vec::new(),
            tls: None,
        }
    }

    /// Reads more bytes; false at the end of the stream.
    async fn read_more(&mut self) -> bool {
        self.buffer.reserve(4096);
        matches!(self.stream.read_buf(&mut self.buffer).await, Ok(count) if count > 0)
    }

    async fn proxy_protocol(&mut self, mode: ProxyProtocolMode) -> bool {
        loop {
            match proxy_protocol::read(&self.buffer) {
                Header::NeedMore if self.buffer.len() < 4096 => {
                    if !self.read_more().await {
                        return false;
                    }
                }
                Header::NeedMore | Header::Malformed => return false,
                Header::Absent => return mode == ProxyProtocolMode::Optional,
                Header::Present { length, addresses } => {
                    self.buffer.advance(length);
                    if let Some((source, destination)) = addresses {
                        self.facts.remote = source;
                        self.facts.local = destination;
                    }
                    return true;
                }
            }
        }
    }

    async fn sniff(&mut self, listener: &ListenerConfig) {
        let port = self.facts.local.port();
        let on = |set: &Option<amime_config::listener::PortSet>| {
            set.as_ref().is_some_and(|off| !off.contains(port))
        };
        let mut tls = on(&listener.filters.tls_inspector);
        let mut http = on(&listener.filters.http_inspector);
        while tls || http {
            if !self.buffer.is_empty() {
                tls = tls && self.sniff_tls();
                if self.transport == "tls" {
                    // What is inside cannot be seen.
                    return;
                }
                http = http && self.sniff_http();
            }
            if (tls || http) && !self.read_more().await {
                return;
            }
        }
    }

    /// Looks for a ClientHello; true if more bytes are needed.
    fn sniff_tls(&mut self) -> bool {
        match sniff::tls(&self.buffer) {
            sniff::Tls::NeedMore => true,
            sniff::Tls::Other => false,
            sniff::Tls::Hello { server_name, alpn } => {
                self.transport = "tls";
                self.facts.sni = server_name.map(Into::into);
                self.facts.application = alpn;
                false
            }
        }
    }

    fn sniff_http(&mut self) -> bool {
        let found = sniff::http(&self.buffer);
        if let Some(name) = found.application() {
            self.facts.application = vec![name.to_vec()];
        }
        found == sniff::Http::NeedMore
    }

    fn chain(&self, listener: &ListenerConfig) -> Option<Arc<FilterChain>> {
        let facts = &self.facts;
        let input = ChainInput {
            destination: facts.local,
            source: facts.remote,
            direct_source: facts.direct_remote.ip(),
            server_name: facts.sni.as_deref().unwrap_or_default(),
            transport: self.transport,
            application: &facts.application,
        };
        choose(&listener.chains, &input).or(listener.default_chain.as_ref()).cloned()
    }

    async fn serve(
        mut self,
        worker: Rc<Worker>,
        listener: Rc<LiveListener>,
        chain: Arc<FilterChain>,
        dialed: Option<Dialed>,
    ) {
        let io = match &chain.tls {
            None => Prefixed::new(self.buffer.split().freeze(), Transport::Tcp(self.stream)),
            Some(tls) => {
                let limit = chain.handshake_timeout.unwrap_or(HANDSHAKE_TIMEOUT);
                match tokio::time::timeout(limit, self.handshake(tls.clone(), &listener)).await {
                    Ok(Some((io, facts))) => {
                        return dispatch(worker, facts, io, (listener, chain), dialed).await;
                    }
                    Ok(None) => return,
                    Err(_) => {
                        listener.stats.downstream_cx_transport_socket_connect_timeout.inc();
                        return;
                    }
                }
            }
        };
        dispatch(worker, self.facts, io, (listener, chain), dialed).await;
    }

    async fn handshake(
        mut self,
        tls: Arc<DownstreamTls>,
        listener: &LiveListener,
    ) -> Option<(DownstreamIo, Connection)> {
        // Also without a TLS inspector the client's ALPN must be known before
        // the settings are chosen.
        while self.transport != "tls" {
            if !self.buffer.is_empty() && !self.sniff_tls() {
                break;
            }
            if self.transport != "tls" && !self.read_more().await {
                return None;
            }
        }
        if tls.require_sni && self.facts.sni.is_none() {
            listener.stats.ssl_connection_error.inc();
            return None;
        }
        let acceptor = TlsAcceptor::from(tls.config(&self.facts.application));
        let io = Prefixed::new(self.buffer.split().freeze(), self.stream);
        match acceptor.accept(io).await {
            Ok(stream) => {
                listener.stats.ssl_handshake.inc();
                self.facts.tls = Some(TlsFacts::of(stream.get_ref().1, tls.local_uri_san()));
                let io = Prefixed::new(Bytes::new(), Transport::Tls(Box::new(stream)));
                Some((io, self.facts))
            }
            Err(error) => {
                listener.stats.ssl_connection_error.inc();
                tracing::debug!(
                    listener = %listener.config.name,
                    client = %self.facts.remote,
                    %error,
                    "TLS handshake failed"
                );
                None
            }
        }
    }
}

/// How long a client may take for its handshake when the chain sets no limit.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a client may stay silent before the upstream is dialed to see
/// whether that one speaks first.
const SERVER_FIRST_GRACE: Duration = Duration::from_millis(2);

async fn dispatch(
    worker: Rc<Worker>,
    facts: Connection,
    io: DownstreamIo,
    (listener, chain): (Rc<LiveListener>, Arc<FilterChain>),
    dialed: Option<Dialed>,
) {
    if !admitted(&worker, &facts, &chain) {
        return;
    }
    match &chain.terminal {
        Terminal::Http(config) => {
            let connection = HttpConnection::new(worker, facts, config.clone(), listener);
            serve(connection, io).await;
        }
        Terminal::Tcp(config) => {
            let parts = (config.clone(), chain.clone());
            tcp::proxy(worker, facts, io, parts, dialed).await;
        }
        Terminal::Close => {}
    }
}

/// Runs the network access-control filters.
fn admitted(worker: &Worker, facts: &Connection, chain: &FilterChain) -> bool {
    let subject = Subject { connection: facts, request: None, remote: facts.remote.ip() };
    let stat_prefix = match &chain.terminal {
        Terminal::Http(config) => &config.stat_prefix,
        Terminal::Tcp(config) => &config.stat_prefix,
        Terminal::Close => return true,
    };
    chain.rbac.iter().all(|rbac| {
        let Some(rules) = &rbac.rules else { return true };
        let verdict = rules.check(subject);
        let stats = worker.telemetry.tcp_proxy(stat_prefix);
        if verdict.allowed {
            stats.rbac_allowed.inc();
        } else {
            stats.rbac_denied.inc();
        }
        verdict.allowed
    })
}
