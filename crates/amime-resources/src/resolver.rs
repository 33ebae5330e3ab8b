//! Looking names up.
//!
//! The queries carry the mark of upstream sockets: interception would send
//! others to the proxy's own name server, whose addresses lead back here.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::time::{Duration, Instant};

use hickory_resolver::Resolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ProtocolConfig, ResolverConfig,
};
use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{RuntimeProvider, TokioRuntimeProvider};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use amime_net::socket::set_mark;

use crate::names::Answer;
use amime_config::discovery::{DnsServers, Family};
use amime_config::dynamic_hosts::CacheSettings;
use amime_config::host_cache::{Looked, NO_RECORDS};

/// For a connection to a name server, where its settings name no other time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Resolvers by their settings, made when first used.
pub struct Resolvers {
    known: HashMap<(DnsServers, Family), Option<MarkedResolver>>,
    sockets: Marked,
}

/// A resolver on marked sockets.
pub type MarkedResolver = Resolver<Marked>;

impl Resolvers {
    /// `mark` is for the sockets of queries.
    pub fn new(mark: Option<u32>) -> Self {
        let sockets = Marked { runtime: TokioRuntimeProvider::default(), mark };
        Self { known: HashMap::new(), sockets }
    }

    /// The resolver of these settings; `None` if the system has none.
    pub fn get(&mut self, servers: &DnsServers, family: Family) -> Option<MarkedResolver> {
        let key = (servers.clone(), family);
        self.known
            .entry(key)
            .or_insert_with(|| {
                let built = build(servers, family, &self.sockets);
                built.inspect_err(|error| tracing::warn!(%error, "no resolver")).ok()
            })
            .clone()
    }
}

fn build(
    servers: &DnsServers,
    family: Family,
    sockets: &Marked,
) -> Result<MarkedResolver, NetError> {
    let mut builder = if servers.servers.is_empty() {
        Resolver::builder(sockets.clone())?
    } else {
        let connection = |protocol, port| {
            let mut connection = ConnectionConfig::new(protocol);
            connection.port = port;
            connection
        };
        let server = |address: &std::net::SocketAddr| {
            let mut connections = vec![connection(ProtocolConfig::Tcp, address.port())];
            if !servers.tcp {
                connections.insert(0, connection(ProtocolConfig::Udp, address.port()));
            }
            NameServerConfig::new(address.ip(), true, connections)
        };
        let config = servers.servers.iter().map(server).collect();
        Resolver::builder_with_config(
            ResolverConfig::from_parts(None, Vec::new(), config),
            sockets.clone(),
        )
    };
    let options = builder.options_mut();
    // Each lookup is meant: what is cached is the cluster's own.
    options.cache_size = 0;
    options.ip_strategy = match family {
        Family::V4 => LookupIpStrategy::Ipv4Only,
        Family::V6 => LookupIpStrategy::Ipv6Only,
        Family::Auto => LookupIpStrategy::Ipv6thenIpv4,
        Family::V4Preferred => LookupIpStrategy::Ipv4thenIpv6,
        Family::All => LookupIpStrategy::Ipv6AndIpv4,
    };
    if let Some(timeout) = servers.timeout {
        options.timeout = timeout;
    }
    if let Some(tries) = servers.tries {
        options.attempts = tries as usize;
    }
    builder.build()
}

/// Tokio's sockets, marked before they send.
#[derive(Clone)]
pub struct Marked {
    runtime: TokioRuntimeProvider,
    mark: Option<u32>,
}

type Pending<T> = Pin<Box<dyn Send + Future<Output = io::Result<T>>>>;

impl RuntimeProvider for Marked {
    type Handle = <TokioRuntimeProvider as RuntimeProvider>::Handle;
    type Timer = <TokioRuntimeProvider as RuntimeProvider>::Timer;
    type Udp = UdpSocket;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> Self::Handle {
        self.runtime.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        from: Option<SocketAddr>,
        timeout: Option<Duration>,
    ) -> Pending<Self::Tcp> {
        let mark = self.mark;
        Box::pin(async move {
            let socket = if server.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            if let Some(mark) = mark {
                set_mark(&socket, mark)?;
            }
            if let Some(from) = from {
                socket.bind(from)?;
            }
            socket.set_nodelay(true)?;
            let connecting = socket.connect(server);
            let connected = tokio::time::timeout(timeout.unwrap_or(CONNECT_TIMEOUT), connecting);
            Ok(AsyncIoTokioAsStd(connected.await.map_err(io::Error::from)??))
        })
    }

    fn bind_udp(&self, local: SocketAddr, _server: SocketAddr) -> Pending<Self::Udp> {
        let mark = self.mark;
        Box::pin(async move {
            let socket = UdpSocket::bind(local).await?;
            if let Some(mark) = mark {
                set_mark(&socket, mark)?;
            }
            Ok(socket)
        })
    }
}

/// Addresses of `name`; an empty list if it is known to have none.
pub async fn look_up(resolver: Option<MarkedResolver>, name: &str) -> Answer {
    if let Ok(ip) = name.parse::<IpAddr>() {
        return Some((vec![ip], None));
    }
    match ask(&resolver?, name).await {
        Ok((addresses, ttl)) => Some((addresses, Some(ttl))),
        Err(error) if none_code(&error).is_some() => Some((Vec::new(), None)),
        Err(error) => {
            tracing::debug!(%name, %error, "name not resolved");
            None
        }
    }
}

/// Looks a host of a cache up; reasons are in Envoy's words, on which access
/// logs are searched.
pub async fn look_up_host(
    resolver: Option<MarkedResolver>,
    name: &str,
    settings: &CacheSettings,
) -> Looked {
    let family = settings.dns.family;
    match name.parse::<IpAddr>() {
        Ok(ip) if ip.is_ipv4() && family == Family::V6 => return Looked::Failed(BAD_NAME),
        Ok(ip) if ip.is_ipv6() && family == Family::V4 => return Looked::Failed(BAD_NAME),
        Ok(ip) => return Looked::Up(vec![ip], None),
        Err(_) if !may_be_asked(name) => return Looked::Failed(BAD_NAME),
        Err(_) => {}
    }
    let Some(resolver) = resolver else { return Looked::Failed(NO_CONTACT) };
    let asked = match settings.query_timeout {
        Some(limit) => tokio::time::timeout(limit, ask(&resolver, name)).await,
        None => Ok(ask(&resolver, name).await),
    };
    match asked {
        Ok(Ok((addresses, ttl))) => Looked::Up(addresses, Some(ttl)),
        Ok(Err(error)) => match none_code(&error) {
            Some(ResponseCode::NXDomain) => Looked::Empty(NOT_FOUND),
            Some(_) => Looked::Empty(NO_RECORDS),
            None => {
                tracing::debug!(%name, %error, "name not resolved");
                Looked::Failed(NO_CONTACT)
            }
        },
        Err(_) => Looked::TimedOut,
    }
}

const BAD_NAME: &str = "cares_failure:Misformatted_domain_name";
const NO_CONTACT: &str = "cares_failure:Could_not_contact_DNS_servers";
const NOT_FOUND: &str = "cares_norecords:Domain_name_not_found";

/// Names come from clients: only what a host may be called is asked for.
fn may_be_asked(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/*".contains(&byte);
    !name.is_empty() && name.len() <= 255 && name.bytes().all(plain)
}

async fn ask(resolver: &MarkedResolver, name: &str) -> Result<(Vec<IpAddr>, Duration), NetError> {
    let found = resolver.lookup_ip(name).await?;
    let ttl = found.valid_until().saturating_duration_since(Instant::now());
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in found.iter() {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    // Rounded: a part of a second has passed since the answer.
    Ok((addresses, Duration::from_secs(ttl.as_millis().div_ceil(1000) as u64)))
}

/// The answer's code, if it says that there are no addresses.
fn none_code(error: &NetError) -> Option<ResponseCode> {
    let NetError::Dns(DnsError::NoRecordsFound(none)) = error else { return None };
    let code = none.response_code;
    matches!(code, ResponseCode::NoError | ResponseCode::NXDomain).then_some(code)
}
