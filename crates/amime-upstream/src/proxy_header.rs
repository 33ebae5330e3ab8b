//! The PROXY header that tells an upstream whom a connection is for.
//!
//! Spec: <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>

use std::net::{IpAddr, SocketAddr};

use amime_config::tls::ProxyHeader;
use amime_core::unix::is_stand_in;

/// Source and destination as the client sees them.
pub type Ends = (SocketAddr, SocketAddr);

/// The header of a connection. `client` is the downstream side, if it counts;
/// else the connection speaks for itself: version 1 with `own` ends, version
/// 2 by saying that it is local.
pub(crate) fn encode(version: ProxyHeader, client: Option<Ends>, own: Ends) -> Vec<u8> {
    let named = |ends: &Ends| !is_stand_in(ends.0.ip()) && !is_stand_in(ends.1.ip());
    let client = client.filter(named);
    match version {
        // The text form has no other way to say that there are no addresses.
        ProxyHeader::V1 if client.is_none() && !named(&own) => b"PROXY UNKNOWN\r\n".to_vec(),
        ProxyHeader::V1 => version1(client.unwrap_or(own)),
        ProxyHeader::V2 => version2(client),
    }
}

/// Both ends in one family: the header has room for one.
fn same_family((source, destination): Ends) -> Ends {
    if source.is_ipv4() == destination.is_ipv4() {
        return (source, destination);
    }
    let mapped = |end: SocketAddr| match end.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), end.port()),
        IpAddr::V6(_) => end,
    };
    (mapped(source), mapped(destination))
}

fn version1(ends: Ends) -> Vec<u8> {
    let (source, destination) = same_family(ends);
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (source.ip(), destination.ip());
    format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
}

fn version2(client: Option<Ends>) -> Vec<u8> {
    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    let mut out = Vec::with_capacity(52);
    out.extend_from_slice(SIGNATURE);
    let Some(ends) = client else {
        out.extend_from_slice(&[0x20, 0, 0, 0]);
        return out;
    };
    let (source, destination) = same_family(ends);
    let mut body = Vec::with_capacity(36);
    for ip in [source.ip(), destination.ip()] {
        match ip {
            IpAddr::V4(ip) => body.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => body.extend_from_slice(&ip.octets()),
        }
    }
    body.extend_from_slice(&source.port().to_be_bytes());
    body.extend_from_slice(&destination.port().to_be_bytes());
    let family = if source.is_ipv4() { 0x11 } else { 0x21 };
    out.extend_from_slice(&[0x21, family, 0, body.len() as u8]);
    out.extend_from_slice(&body);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(version: ProxyHeader, client: Option<[&str; 2]>, want: &[u8]) {
        let client = client
            .map(|ends| ends.map(|end| end.parse::<SocketAddr>().expect("an address")))
            .map(|[source, destination]| (source, destination));
        let own = ("10.0.0.1:1".parse().expect("it"), "10.0.0.2:2".parse().expect("it"));
        assert_eq!(encode(version, client, own), want, "{}", want.escape_ascii());
    }

    #[test]
    fn both_versions_name_the_client_or_else_speak_for_themselves() {
        let client = Some(["1.2.3.4:1000", "5.6.7.8:80"]);
        check(ProxyHeader::V1, client, b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 80\r\n");
        check(ProxyHeader::V1, None, b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n");
        let mixed = Some(["1.2.3.4:1000", "[::1]:80"]);
        check(ProxyHeader::V1, mixed, b"PROXY TCP6 ::ffff:1.2.3.4 ::1 1000 80\r\n");
        check(
            ProxyHeader::V2,
            client,
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x01\x02\x03\x04\x05\x06\x07\x08\x03\xe8\0\x50",
        );
        check(ProxyHeader::V2, None, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
    }
}
