//! Small protobuf values turned into Rust ones: durations, percentages,
//! addresses, address ranges, wrappers, `Any`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use amime_core::unix;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::r#type::v3::{
    FractionalPercent, Percent, fractional_percent::DenominatorType,
};
use envoy_types::pb::google::protobuf as pb;
use ipnet::IpNet;
use prost::{Message, Name};

use super::faults::Faults;

/// A protobuf duration; negative ones count as zero.
pub fn duration(value: &pb::Duration) -> Duration {
    let nanos = u32::try_from(value.nanos).unwrap_or(0).min(999_999_999);
    Duration::new(u64::try_from(value.seconds).unwrap_or(0), nanos)
}

/// How much of a duration is added to it at most, as a fraction.
pub fn jitter(value: Option<&Percent>) -> f64 {
    value.map_or(0.0, |percent| (percent.value / 100.0).clamp(0.0, 1.0))
}

/// The duration with a random part of it added.
pub fn jittered(duration: Duration, jitter: f64) -> Duration {
    if jitter > 0.0 { duration + duration.mul_f64(jitter * fastrand::f64()) } else { duration }
}

/// A duration where absent means `default` and zero means disabled.
pub fn timeout(value: Option<&pb::Duration>, default: Option<Duration>) -> Option<Duration> {
    match value {
        None => default,
        Some(value) => Some(duration(value)).filter(|value| !value.is_zero()),
    }
}

/// How long to wait for a resource from `source` before going on without it.
pub fn fetch_timeout(source: Option<&core::ConfigSource>) -> Option<Duration> {
    let timeout = source.and_then(|source| source.initial_fetch_timeout.as_ref());
    self::timeout(timeout, Some(Duration::from_secs(15)))
}

pub fn u32_or(value: Option<&pb::UInt32Value>, default: u32) -> u32 {
    value.map_or(default, |value| value.value)
}

pub fn bool_or(value: Option<&pb::BoolValue>, default: bool) -> bool {
    value.map_or(default, |value| value.value)
}

/// Decodes `any` as `M`, or records why it is not one.
pub fn unpack<M: Message + Name + Default>(any: &pb::Any, faults: &mut Faults) -> Option<M> {
    if !is::<M>(any) {
        faults.reject("typed_config", format!("expected {}, got {}", M::full_name(), any.type_url));
        return None;
    }
    match M::decode(any.value.as_slice()) {
        Ok(message) => Some(message),
        Err(error) => {
            faults.reject("typed_config", format!("cannot decode {}: {error}", M::full_name()));
            None
        }
    }
}

/// True if `any` carries an `M`.
pub fn is<M: Name>(any: &pb::Any) -> bool {
    type_name(any) == M::full_name()
}

/// The message type an `Any` names, without its URL prefix.
pub fn type_name(any: &pb::Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

/// A probability in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fraction(u32);

impl Fraction {
    pub const ALWAYS: Self = Self(1_000_000);
    pub const NEVER: Self = Self(0);

    pub fn new(percent: &FractionalPercent) -> Self {
        let scale = match percent.denominator() {
            DenominatorType::Hundred => 10_000,
            DenominatorType::TenThousand => 100,
            DenominatorType::Million => 1,
        };
        Self(percent.numerator.saturating_mul(scale).min(1_000_000))
    }

    pub fn all_or_none(all: bool) -> Self {
        if all { Self::ALWAYS } else { Self::NEVER }
    }

    pub fn from_runtime(value: &core::RuntimeFractionalPercent) -> Self {
        value.default_value.as_ref().map_or(Self::ALWAYS, Self::new)
    }

    /// The lesser of this and `percent` of a hundred.
    pub fn at_most_percent(self, percent: u32) -> Self {
        Self(self.0.min(percent.saturating_mul(10_000)))
    }

    /// Draws; certain outcomes cost no randomness.
    pub fn draw(self) -> bool {
        match self.0 {
            0 => false,
            1_000_000 => true,
            part => fastrand::u32(0..1_000_000) < part,
        }
    }
}

/// An address as configured; names are left to the resolver.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostAddress {
    /// A literal IP address and port.
    Ip(SocketAddr),
    /// A name to resolve, and a port.
    Name(String, u16),
    /// The stand-in of a Unix stream socket, see [`amime_core::unix`].
    Pipe(SocketAddr),
}

/// Reads an Envoy address, recording a fault for kinds that cannot be used.
pub fn address(value: Option<&core::Address>, faults: &mut Faults) -> Option<HostAddress> {
    match value.and_then(|value| value.address.as_ref()) {
        Some(core::address::Address::SocketAddress(socket)) => socket_address(socket, faults),
        Some(core::address::Address::Pipe(pipe)) => pipe_address(&pipe.path, faults),
        Some(core::address::Address::EnvoyInternalAddress(_)) => {
            faults.reject("address", "internal addresses are not supported");
            None
        }
        None => {
            faults.reject("address", "missing");
            None
        }
    }
}

fn pipe_address(path: &str, faults: &mut Faults) -> Option<HostAddress> {
    if path.is_empty() || path.len() > unix::MAX_PATH || path.contains('\0') {
        let reason = format!("not the path of a Unix socket, of 1 to {} bytes", unix::MAX_PATH);
        faults.reject("address.pipe.path", reason);
        return None;
    }
    Some(HostAddress::Pipe(unix::stand_in(path)))
}

/// True if `ip` is in `net`; Unix sockets are in none.
pub fn within(net: &IpNet, ip: IpAddr) -> bool {
    net.contains(&ip) && !unix::is_stand_in(ip)
}

/// Reads an address that may be one for UDP.
pub fn datagram_address(value: &core::Address, faults: &mut Faults) -> Option<HostAddress> {
    let mut value = value.clone();
    if let Some(core::address::Address::SocketAddress(socket)) = &mut value.address {
        socket.protocol = core::socket_address::Protocol::Tcp as i32;
    }
    address(Some(&value), faults)
}

/// The port of an address, unless it is none.
pub fn port(socket: &core::SocketAddress) -> Option<u16> {
    match &socket.port_specifier {
        Some(core::socket_address::PortSpecifier::PortValue(port)) => u16::try_from(*port).ok(),
        None => Some(0),
        Some(core::socket_address::PortSpecifier::NamedPort(_)) => None,
    }
}

fn socket_address(socket: &core::SocketAddress, faults: &mut Faults) -> Option<HostAddress> {
    let Some(port) = port(socket) else {
        faults.reject("address.socket_address.port_value", "not a port number");
        return None;
    };
    if socket.protocol() == core::socket_address::Protocol::Udp {
        faults.reject("address.socket_address.protocol", "UDP is not supported");
        return None;
    }
    Some(match socket.address.parse::<IpAddr>() {
        Ok(ip) => HostAddress::Ip(SocketAddr::new(ip, port)),
        Err(_) => HostAddress::Name(socket.address.clone(), port),
    })
}

/// Reads an address range; the bits beyond the prefix are dropped as Envoy does.
pub fn cidr(value: &core::CidrRange, faults: &mut Faults) -> Option<IpNet> {
    let ip: Option<IpAddr> = value.address_prefix.parse().ok();
    let net = ip.and_then(|ip| {
        let bits = value.prefix_len.as_ref().map_or(0, |length| length.value);
        IpNet::new(ip, u8::try_from(bits).ok()?).ok()
    });
    if net.is_none() {
        faults.reject("address_prefix", format!("`{}` is not a range", value.address_prefix));
    }
    net.map(|net| net.trunc())
}

/// The bytes of a data source, read now from file or environment.
pub fn data_source(source: &core::DataSource) -> Result<Vec<u8>, String> {
    use core::data_source::Specifier;
    match &source.specifier {
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes.clone()),
        Some(Specifier::InlineString(text)) => Ok(text.clone().into_bytes()),
        Some(Specifier::Filename(path)) => {
            std::fs::read(path).map_err(|error| format!("cannot read {path}: {error}"))
        }
        Some(Specifier::EnvironmentVariable(name)) => std::env::var(name)
            .map(String::into_bytes)
            .map_err(|_| format!("environment variable {name} is not set")),
        None => Err("empty data source".to_owned()),
    }
}

/// A string in nested struct metadata, e.g. `filter_metadata.istio.config`.
pub fn metadata_string<'a>(
    metadata: Option<&'a core::Metadata>,
    filter: &str,
    key: &str,
) -> Option<&'a str> {
    match metadata?.filter_metadata.get(filter)?.fields.get(key)?.kind.as_ref()? {
        pb::value::Kind::StringValue(text) => Some(text),
        _ => None,
    }
}
