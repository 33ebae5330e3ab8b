//! From an accepted socket to the filter chain that serves it.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use amime_telemetry::{ListenerStats, ResponseFlags, TcpEvent, TcpRecord};
use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::acceptor::{self, Acceptor, Ends};
use super::admission::Admitted;
use super::authorize::denied;
use super::io::{DownstreamIo, Prefixed, Transport};
use super::life::ChainLife;
use super::proxy_protocol::{self, Header};
use super::sniff;
use crate::http::{HttpConnection, admitted_by_service, serve};
use crate::overload::ListenerCap;
use crate::tcp::{self, Dialed};
use crate::worker::Worker;
use amime_config::chain_match::ChainInput;
use amime_config::listener::{
    FilterChain, ListenerConfig, NetworkLimit, ProxyProtocolMode, Terminal,
};
use amime_config::tls::DownstreamTls;
use amime_core::unix;
use amime_rules::connection::Connection;
use amime_rules::connection_cap::CountedIn;
use amime_rules::tls_facts::TlsFacts;
use amime_rules::token_bucket;
use amime_upstream::connect::keepalive_options;
use amime_upstream::tls::{self, Counted, NOT_READY, TlsFailure};

/// A listener as one worker serves it.
pub(crate) struct LiveListener {
    pub(crate) config: Arc<ListenerConfig>,
    pub(super) stats: Arc<ListenerStats>,
    /// Settings of QUIC, if it is what the listener accepts.
    #[cfg(feature = "http3")]
    pub(super) quic: Option<Arc<quinn::ServerConfig>>,
    /// By the chain's identity.
    chains: HashMap<u64, Rc<ChainLife>>,
    /// How many connections it may have, of all workers.
    pub(super) cap: Option<Arc<ListenerCap>>,
}

impl LiveListener {
    /// Takes over from `previous` the chains that have not changed.
    pub(crate) fn new(
        config: Arc<ListenerConfig>,
        previous: Option<&Rc<Self>>,
        worker: &Worker,
    ) -> Rc<Self> {
        let address = config.address();
        let name = match unix::path_of(address) {
            Some(path) => path.replace(':', "_"),
            None => format!("{}_{}", address.ip(), address.port()),
        };
        let stats = worker.telemetry.listener(&name);
        let life = |chain: &Arc<FilterChain>| {
            let same = previous.and_then(|old| old.chains.get(&chain.identity));
            (chain.identity, same.cloned().unwrap_or_default())
        };
        let chains = config.all_chains().map(life).collect();
        Rc::new(Self {
            stats,
            #[cfg(feature = "http3")]
            quic: config.quic.as_ref().and_then(super::quic::server_config),
            chains,
            cap: worker.limits().cap(&config.name),
            config,
        })
    }

    /// Ends the chains that `next` has not taken over.
    pub(crate) fn retire_for(&self, next: Option<&Rc<Self>>) {
        for (identity, life) in &self.chains {
            if !next.is_some_and(|next| next.chains.contains_key(identity)) {
                life.end();
            }
        }
    }

    /// The life of a chain of this listener.
    pub(super) fn life(&self, chain: &FilterChain) -> Rc<ChainLife> {
        self.chains.get(&chain.identity).cloned().unwrap_or_default()
    }
}

/// Accepts until the task is aborted. The listener served is looked up anew
/// for each connection, so an update keeps the socket.
pub(crate) async fn accept_loop(worker: Rc<Worker>, name: Rc<RefCell<Arc<str>>>, socket: Acceptor) {
    loop {
        if worker.overload().accept_none {
            worker.changed().await;
            continue;
        }
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = worker.changed() => continue,
        };
        match accepted {
            Ok((stream, ends)) => {
                let name = name.borrow().clone();
                let Some(listener) = worker.snapshot().listener(&name) else { continue };
                let Some(admitted) = listener.admit(&worker) else { continue };
                let served = connection(worker.clone(), listener, (stream, ends), admitted);
                tokio::task::spawn_local(served);
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
    (stream, ends): (TcpStream, Ends),
    _admitted: Admitted,
) {
    let _ = stream.set_nodelay(true);
    let Ok((own, peer)) = ends.known(&stream) else { return };
    let filters = &listener.config.filters;
    let mut local = own;
    if (filters.original_dst || listener.config.hand_off)
        && let Ok(original) = amime_net::socket::original_dst(&stream)
    {
        local = acceptor::unmapped(original);
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
            proxied: false,
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
                        let end = ConnectionEnd::default();
                        return end.log(&worker, &listener, None, &self.facts);
                    }
                }
            }
        };
        let dialed = match inspected {
            Inspected::Known => None,
            Inspected::ServerFirst(dialed) => Some(*dialed),
            Inspected::Refused => {
                let end = ConnectionEnd::default();
                return end.log(&worker, &listener, None, &self.facts);
            }
        };
        let Some(chain) = self.chain(&listener.config) else {
            listener.stats.no_filter_chain_match.inc();
            let end = ConnectionEnd {
                flags: ResponseFlags::NR,
                details: Some("filter_chain_not_found".into()),
                ..ConnectionEnd::default()
            };
            return end.log(&worker, &listener, None, &self.facts);
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
        let facts = self.facts.clone();
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

    /// The chain for a client that says nothing, if it proxies plain TCP and
    /// such clients are served at all.
    fn server_first_chain(&self, listener: &ListenerConfig) -> Option<Arc<FilterChain>> {
        if !listener.continue_on_timeout {
            return None;
        }
        let chain = self.chain(listener)?;
        let plain = chain.tls.is_none() && matches!(chain.terminal, Terminal::Tcp(_));
        plain.then_some(chain)
    }

    /// Reads more bytes; false at the end of the stream.
    async fn read_more(&mut self) -> bool {
        self.buffer.reserve(4096);
        matches!(self.stream.read_buf(&mut self.buffer).await, Ok(count) if count > 0)
    }

    async fn proxy_protocol(&mut self, mode: ProxyProtocolMode) -> bool {
        loop {
            match proxy_protocol::read(&self.buffer, mode) {
                Header::NeedMore if self.buffer.len() < 4096 => {
                    if !self.read_more().await {
                        return false;
                    }
                }
                Header::NeedMore | Header::Malformed => return false,
                Header::Absent => return mode.optional,
                Header::Present { length, addresses } => {
                    self.buffer.advance(length);
                    if let Some((source, destination)) = addresses {
                        self.facts.remote = source;
                        self.facts.local = destination;
                        self.facts.proxied = true;
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
        choose_chain(listener, &self.facts, self.transport)
    }

    async fn serve(
        mut self,
        worker: Rc<Worker>,
        listener: Rc<LiveListener>,
        chain: Arc<FilterChain>,
        dialed: Option<Dialed>,
    ) {
        let Some(tls) = chain.tls.clone() else {
            let io = Prefixed::new(self.buffer.split().freeze(), Transport::Tcp(self.stream));
            return dispatch(worker, self.facts, io, (listener, chain), dialed).await;
        };
        let limit = chain.handshake_timeout.unwrap_or(HANDSHAKE_TIMEOUT);
        let mut facts = self.facts.clone();
        match tokio::time::timeout(limit, self.handshake(&mut facts, tls, (&listener, &chain)))
            .await
        {
            Ok(Ok(io)) => dispatch(worker, facts, io, (listener, chain), dialed).await,
            Ok(Err(reason)) => {
                let failure = Some(reason).filter(|reason| !reason.is_empty());
                let end = ConnectionEnd { failure, ..ConnectionEnd::default() };
                end.log(&worker, &listener, Some(&chain), &facts);
            }
            Err(_) => {
                listener.stats.downstream_cx_transport_socket_connect_timeout.inc();
                let details = Some("transport socket timeout was reached".into());
                let end = ConnectionEnd { details, ..ConnectionEnd::default() };
                end.log(&worker, &listener, Some(&chain), &facts);
            }
        }
    }

    /// The stream within TLS, or why there is none; `facts` learns what the
    /// client offers.
    async fn handshake(
        mut self,
        facts: &mut Connection,
        tls: Arc<DownstreamTls>,
        (listener, chain): (&LiveListener, &FilterChain),
    ) -> Result<DownstreamIo, String> {
        // Also without a TLS inspector the client's ALPN must be known before
        // the settings are chosen.
        while self.transport != "tls" {
            if !self.buffer.is_empty() && !self.sniff_tls() {
                break;
            }
            if self.transport != "tls" && !self.read_more().await {
                return Err(String::new());
            }
        }
        while self.buffer.len() < tls::SHOWS_HTTP {
            if !self.read_more().await {
                return Err(String::new());
            }
        }
        // A client without TLS would take an alert for the answer.
        if let Some(failure) = TlsFailure::of_http(&self.buffer) {
            count_failure(&listener.stats, failure.counted);
            return Err(failure.reason);
        }
        facts.sni.clone_from(&self.facts.sni);
        facts.application.clone_from(&self.facts.application);
        if !tls.ready() {
            listener.stats.ssl_context_not_ready.inc();
            return Err(NOT_READY.to_owned());
        }
        if tls.require_sni && self.facts.sni.is_none() {
            listener.stats.ssl_connection_error.inc();
            return Err(String::new());
        }
        let acceptor = TlsAcceptor::from(tls.config(&self.facts.application));
        let first = self.buffer.split().freeze();
        let io = Prefixed::new(first, self.stream);
        match acceptor.accept(io).await {
            Ok(stream) => {
                let session = stream.get_ref().1;
                let tls = TlsFacts::of(session, tls.local(), chain.prints_certificates);
                count_handshake(&listener.stats, session, &tls);
                facts.tls = Some(tls);
                Ok(Prefixed::new(Bytes::new(), Transport::Tls(Box::new(stream))))
            }
            Err(error) => {
                let failure = TlsFailure::of(&error);
                count_failure(&listener.stats, failure.counted);
                tracing::debug!(
                    listener = %listener.config.name,
                    client = %facts.remote,
                    %error,
                    "TLS handshake failed"
                );
                Err(failure.reason)
            }
        }
    }
}

/// The filter chain for a connection of which all is known.
pub(super) fn choose_chain(
    listener: &ListenerConfig,
    facts: &Connection,
    transport: &str,
) -> Option<Arc<FilterChain>> {
    let input = ChainInput {
        destination: facts.local,
        source: facts.remote,
        direct_source: facts.direct_remote.ip(),
        server_name: facts.sni.as_deref().unwrap_or_default(),
        transport,
        application: &facts.application,
    };
    listener.chain(&input).cloned()
}

fn count_handshake(stats: &ListenerStats, session: &rustls::ServerConnection, tls: &TlsFacts) {
    stats.handshake(tls.version, tls.cipher);
    if !tls.mutual() {
        stats.ssl_no_certificate.inc();
    }
    if session.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
        stats.ssl_session_reused.inc();
    }
}

fn count_failure(stats: &ListenerStats, counted: Counted) {
    match counted {
        Counted::NoCertificate => stats.ssl_fail_verify_no_cert.inc(),
        Counted::Verify => stats.ssl_fail_verify_error.inc(),
        Counted::San => stats.ssl_fail_verify_san.inc(),
        Counted::Pin => stats.ssl_fail_verify_cert_hash.inc(),
        Counted::Protocol => stats.ssl_connection_error.inc(),
        Counted::Nowhere => {}
    }
}

/// How a connection ended, for the listener's access log and, where no network
/// filter came to see it, that of the TCP proxy.
#[derive(Default)]
pub(super) struct ConnectionEnd {
    pub(super) flags: ResponseFlags,
    details: Option<Cow<'static, str>>,
    /// Why the handshake failed.
    failure: Option<String>,
}

impl ConnectionEnd {
    pub(super) fn log(
        &self,
        worker: &Worker,
        listener: &LiveListener,
        unserved: Option<&FilterChain>,
        facts: &Connection,
    ) {
        let proxy = match unserved.map(|chain| &chain.terminal) {
            Some(Terminal::Tcp(config)) => Some(&config.telemetry),
            _ => None,
        };
        for telemetry in proxy.into_iter().chain(&listener.config.log) {
            let mut record = TcpRecord::new(telemetry, TcpEvent::Closed, facts.accepted);
            record.downstream = facts.record();
            record.downstream.transport_failure = self.failure.as_deref();
            record.duration = facts.accepted.elapsed().unwrap_or_default();
            record.flags = self.flags;
            record.connection_termination_details = self.details.as_deref();
            worker.telemetry.tcp(&record);
        }
    }
}

/// How long a client may take for its handshake when the chain sets no limit.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a client may stay silent before the upstream is dialed to see
/// whether that one speaks first. Shorter than anybody notices, long enough
/// that clients on a busy machine do not cause connections for nothing.
const SERVER_FIRST_GRACE: Duration = Duration::from_millis(50);

async fn dispatch(
    worker: Rc<Worker>,
    facts: Connection,
    io: DownstreamIo,
    (listener, chain): (Rc<LiveListener>, Arc<FilterChain>),
    dialed: Option<Dialed>,
) {
    let mut end = ConnectionEnd::default();
    let life = listener.life(&chain);
    life.hold_stats(&worker, &chain);
    if let Some(policy) = denied(&worker, &facts, &chain).await {
        end.details = Some(format!("rbac_access_denied_matched_policy[{policy}]").into());
        return end.log(&worker, &listener, Some(&chain), &facts);
    }
    let Some(_counted) = within_limits(&worker, &chain, &mut end.flags).await else {
        return end.log(&worker, &listener, Some(&chain), &facts);
    };
    let logged = listener.config.log.is_some().then(|| facts.clone());
    match &chain.terminal {
        Terminal::Http(config) => {
            let connection = HttpConnection::new(worker.clone(), facts, config.clone(), life);
            serve(connection, io).await;
        }
        Terminal::Tcp(config) => {
            let parts = (config.clone(), chain.clone());
            tcp::proxy(worker.clone(), facts, io, parts, dialed).await;
        }
        Terminal::Echo => tcp::echo(io).await,
        Terminal::Say(text) => tcp::say(io, text).await,
        Terminal::Close => {}
    }
    if let Some(facts) = logged {
        end.log(&worker, &listener, None, &facts);
    }
}

/// What counts the connection in, if the limits let one more in.
pub(super) async fn within_limits(
    worker: &Rc<Worker>,
    chain: &FilterChain,
    flags: &mut ResponseFlags,
) -> Option<Vec<CountedIn>> {
    let mut counted = Vec::new();
    for limit in &chain.limits {
        let within = match limit {
            NetworkLimit::Local(limit) => {
                let within = limit.admits(token_bucket::now());
                if !within {
                    // Envoy's choice of a flag.
                    flags.insert(ResponseFlags::URX);
                }
                within
            }
            NetworkLimit::Global(limit) => admitted_by_service(worker, limit).await,
            NetworkLimit::Open(cap) => {
                let entered = cap.enter();
                if let (None, Some(delay)) = (&entered, cap.delay) {
                    tokio::time::sleep(delay).await;
                }
                let within = entered.is_some();
                counted.extend(entered);
                within
            }
        };
        if !within {
            return None;
        }
    }
    Some(counted)
}
