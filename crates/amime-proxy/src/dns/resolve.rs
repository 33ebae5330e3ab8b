//! Resolves the few names the agent itself dials, past its own interception.
//!
//! The system's resolver cannot be used: its packets carry no mark, so they
//! would come back to this very process before it is able to answer.

use std::io;
use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};

use super::answer::Transport;
use super::forward::Upstreams;

/// Addresses of `host`, from a literal, `hosts` (the text of `/etc/hosts`) or
/// the upstream resolvers, with search domains for short names.
pub(crate) async fn resolve(
    host: &str,
    port: u16,
    hosts: &str,
    search: &[String],
    upstreams: &Upstreams,
) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let found = in_hosts(hosts, host);
    if !found.is_empty() {
        return Ok(found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect());
    }
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("no address of {host}"));
    let expanded = search.iter().map(|domain| format!("{host}.{domain}"));
    for name in std::iter::once(host.to_owned()).chain(expanded) {
        match ask(&name, upstreams).await {
            Ok(ips) if !ips.is_empty() => {
                return Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect());
            }
            Ok(_) => {}
            Err(error) => last = error,
        }
    }
    if host == "localhost" {
        return Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))]);
    }
    Err(last)
}

async fn ask(name: &str, upstreams: &Upstreams) -> io::Result<Vec<IpAddr>> {
    let mut parsed = Name::from_ascii(name).map_err(|_| io::ErrorKind::InvalidInput)?;
    parsed.set_fqdn(true);
    let mut ips = vec![];
    for record in [RecordType::A, RecordType::AAAA] {
        let mut query = Message::new(0, MessageType::Query, OpCode::Query);
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(parsed.clone(), record));
        let query = query.to_vec().map_err(|_| io::ErrorKind::InvalidInput)?;
        let reply = upstreams.exchange(&query, Transport::Udp).await?;
        let reply = Message::from_vec(&reply).map_err(|_| io::ErrorKind::InvalidData)?;
        ips.extend(reply.answers.iter().filter_map(|record| match record.data {
            RData::A(ip) => Some(IpAddr::V4(ip.0)),
            RData::AAAA(ip) => Some(IpAddr::V6(ip.0)),
            _ => None,
        }));
        if !ips.is_empty() {
            break;
        }
    }
    Ok(ips)
}

fn in_hosts(hosts: &str, host: &str) -> Vec<IpAddr> {
    let lines = hosts.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let ip = words.next()?.parse().ok()?;
            words.any(|name| name.eq_ignore_ascii_case(host)).then_some(ip)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn literals_and_the_hosts_file_need_no_upstream() {
        let none = Upstreams::default();
        let hosts = "127.0.0.1 localhost # here\n10.0.0.5 istiod.istio-system.svc istiod\n";
        let find = async |host: &str| {
            let found = resolve(host, 15012, hosts, &[], &none).await;
            found.map(|found| found[0].to_string()).map_err(|error| error.kind())
        };
        assert_eq!(find("::1").await, Ok("[::1]:15012".into()));
        assert_eq!(find("ISTIOD").await, Ok("10.0.0.5:15012".into()));
        assert_eq!(find("elsewhere").await, Err(io::ErrorKind::NotFound));
    }
}
