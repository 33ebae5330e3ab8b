//! Looking names up.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ProtocolConfig, ResolverConfig,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;

use super::names::Answer;
use amime_config::discovery::{DnsServers, Family};

/// Resolvers by their settings, made when first used.
#[derive(Default)]
pub(super) struct Resolvers(HashMap<(DnsServers, Family), Option<TokioResolver>>);

impl Resolvers {
    /// The resolver of these settings; `None` if the system has none.
    pub(super) fn get(&mut self, servers: &DnsServers, family: Family) -> Option<TokioResolver> {
        let key = (servers.clone(), family);
        self.0
            .entry(key)
            .or_insert_with(|| {
                let built = build(servers, family);
                built.inspect_err(|error| tracing::warn!(%error, "no resolver")).ok()
            })
            .clone()
    }
}

fn build(servers: &DnsServers, family: Family) -> Result<TokioResolver, NetError> {
    let mut builder = if servers.servers.is_empty() {
        TokioResolver::builder_tokio()?
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
        TokioResolver::builder_with_config(
            ResolverConfig::from_parts(None, Vec::new(), config),
            TokioRuntimeProvider::default(),
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

/// Addresses of `name`; an empty list if it is known to have none.
pub(super) async fn look_up(resolver: Option<TokioResolver>, name: &str) -> Answer {
    if let Ok(ip) = name.parse::<IpAddr>() {
        return Some((vec![ip], None));
    }
    let resolver = resolver?;
    match resolver.lookup_ip(name).await {
        Ok(found) => {
            let ttl = found.valid_until().saturating_duration_since(Instant::now());
            let mut addresses: Vec<IpAddr> = Vec::new();
            for address in found.iter() {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            // Rounded: a part of a second has passed since the answer.
            let ttl = std::time::Duration::from_secs(ttl.as_millis().div_ceil(1000) as u64);
            Some((addresses, Some(ttl)))
        }
        Err(error) if has_none(&error) => Some((Vec::new(), None)),
        Err(error) => {
            tracing::debug!(%name, %error, "name not resolved");
            None
        }
    }
}

fn has_none(error: &NetError) -> bool {
    let NetError::Dns(DnsError::NoRecordsFound(none)) = error else { return false };
    matches!(none.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
}
