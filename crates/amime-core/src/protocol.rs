//! Application protocol of a port, declared or guessed from its name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Protocol spoken on a port.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Protocol {
    /// HTTP/1.x, with HTTP/2 prior knowledge detected by the proxy.
    Http,
    /// HTTP/2 in the clear.
    Http2,
    /// gRPC.
    Grpc,
    /// gRPC-Web.
    GrpcWeb,
    /// HTTP over TLS that the proxy does not terminate.
    Https,
    /// Opaque bytes.
    Tcp,
    /// TLS that the proxy does not terminate.
    Tls,
    /// Datagrams; never handled by the proxy.
    Udp,
    /// MongoDB wire protocol.
    Mongo,
    /// Redis wire protocol.
    Redis,
    /// MySQL wire protocol.
    Mysql,
    /// HTTP requests in absolute form, as to a forward proxy.
    HttpProxy,
    /// Not declared: the proxy detects it.
    #[default]
    Auto,
}

/// A protocol name that is not in Istio's list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown protocol {name:?}")]
pub struct UnknownProtocol {
    /// The text that was read.
    pub name: String,
}

const NAMES: [(&str, Protocol); 13] = [
    ("http", Protocol::Http),
    ("http2", Protocol::Http2),
    ("grpc", Protocol::Grpc),
    ("grpc-web", Protocol::GrpcWeb),
    ("https", Protocol::Https),
    ("tcp", Protocol::Tcp),
    ("tls", Protocol::Tls),
    ("udp", Protocol::Udp),
    ("mongo", Protocol::Mongo),
    ("redis", Protocol::Redis),
    ("mysql", Protocol::Mysql),
    ("http_proxy", Protocol::HttpProxy),
    ("auto", Protocol::Auto),
];

/// Ports of protocols where the server speaks first: waiting for client bytes would hang them.
const SERVER_FIRST_PORTS: [u16; 4] = [25, 53, 3306, 27017];

impl Protocol {
    /// Protocol of a Kubernetes service port.
    ///
    /// `app_protocol` beats the name; a name is `<protocol>[-suffix]` in any case. An unknown or
    /// missing name means [`Protocol::Auto`], or [`Protocol::Tcp`] on well-known server-first ports.
    /// Transport UDP is the caller's to check first.
    pub fn from_port(name: &str, app_protocol: Option<&str>, port: u16) -> Self {
        match app_protocol {
            Some("kubernetes.io/h2c") => return Self::Http2,
            Some("kubernetes.io/ws") => return Self::Http,
            Some("kubernetes.io/wss") => return Self::Https,
            _ => {}
        }
        match Self::from_prefix(app_protocol.unwrap_or(name)) {
            Some(protocol) => protocol,
            None if SERVER_FIRST_PORTS.contains(&port) => Self::Tcp,
            None => Self::Auto,
        }
    }

    fn from_prefix(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        if name.starts_with("grpc-web") {
            return Some(Self::GrpcWeb);
        }
        let prefix = name.split('-').next().unwrap_or_default();
        NAMES.iter().find(|(known, _)| *known == prefix && prefix != "auto").map(|&(_, p)| p)
    }

    /// Lower-case name as in port names.
    pub fn as_str(self) -> &'static str {
        NAMES.iter().find(|&&(_, p)| p == self).map_or("auto", |&(name, _)| name)
    }

    /// True if requests are routed as HTTP.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::HttpProxy) || self.is_http2()
    }

    /// True if the upstream connection must be HTTP/2.
    pub fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    /// True for gRPC in both framings.
    pub fn is_grpc(self) -> bool {
        matches!(self, Self::Grpc | Self::GrpcWeb)
    }

    /// True if connections are proxied as bytes, TLS included.
    pub fn is_tcp(self) -> bool {
        matches!(
            self,
            Self::Tcp | Self::Https | Self::Tls | Self::Mongo | Self::Redis | Self::Mysql
        )
    }

    /// True if the bytes are TLS that the proxy routes by SNI only.
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Tls)
    }

    /// True if the protocol has to be detected.
    pub fn is_auto(self) -> bool {
        self == Self::Auto
    }
}

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.to_ascii_lowercase();
        NAMES
            .iter()
            .find(|(name, _)| *name == lower)
            .map(|&(_, protocol)| protocol)
            .ok_or_else(|| UnknownProtocol { name: text.to_owned() })
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, app_protocol: Option<&str>, port: u16, want: Protocol) {
        assert_eq!(Protocol::from_port(name, app_protocol, port), want);
    }

    #[test]
    fn the_port_name_prefix_decides() {
        check("http", None, 80, Protocol::Http);
        check("HTTP2-web", None, 80, Protocol::Http2);
        check("grpc-web-x", None, 80, Protocol::GrpcWeb);
        check("grpc-x", None, 80, Protocol::Grpc);
        check("https", None, 443, Protocol::Https);
        check("httpx", None, 80, Protocol::Auto);
        check("", None, 9080, Protocol::Auto);
        check("http-mysql", None, 3306, Protocol::Http);
    }

    #[test]
    fn server_first_ports_are_never_sniffed() {
        check("", None, 3306, Protocol::Tcp);
        check("foo", None, 27017, Protocol::Tcp);
    }

    #[test]
    fn app_protocol_beats_the_name() {
        check("tcp", Some("http"), 80, Protocol::Http);
        check("tcp", Some("kubernetes.io/h2c"), 80, Protocol::Http2);
        check("tcp", Some("kubernetes.io/wss"), 80, Protocol::Https);
        check("http", Some("unknown"), 80, Protocol::Auto);
    }

    #[test]
    fn names_round_trip() {
        for (name, protocol) in NAMES {
            assert_eq!(name.to_uppercase().parse::<Protocol>(), Ok(protocol));
            assert_eq!(protocol.to_string(), name);
        }
        assert!("quic".parse::<Protocol>().is_err());
    }
}
