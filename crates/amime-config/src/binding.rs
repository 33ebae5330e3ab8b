//! Where a listener accepts, and with which options of its sockets.

use std::net::SocketAddr;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;

use amime_rules::Faults;
use amime_rules::values::{self, HostAddress, bool_or};

/// One address that a listener accepts on, or the stand-in of a Unix socket.
/// Equal ones can share a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    pub address: SocketAddr,
    /// An IPv6 wildcard that takes no IPv4 clients.
    pub v6_only: bool,
    pub transparent: bool,
    pub free_bind: bool,
    /// Each worker has a queue of its own; else they share one.
    pub reuse_port: bool,
    pub options: Vec<SocketOption>,
    /// A socket for datagrams, of QUIC.
    pub datagrams: bool,
    /// Permissions of a Unix socket's file; 0 leaves them as they come.
    pub mode: u32,
}

/// An option by its numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOption {
    pub level: i32,
    pub name: i32,
    pub value: Vec<u8>,
    pub stage: SocketStage,
}

/// When an option is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketStage {
    BeforeBind,
    Bound,
    Listening,
}

/// The addresses of a listener, its own first.
pub(crate) fn bindings(value: &pb::Listener, faults: &mut Faults) -> Option<Vec<Binding>> {
    let options = options(&value.socket_options, faults);
    let mut all = vec![binding(value, value.address.as_ref(), &options, faults)?];
    for (index, more) in value.additional_addresses.iter().enumerate() {
        faults.enter(format!("additional_addresses[{index}]"));
        faults.ignore_if(more.tcp_keepalive.is_some(), "tcp_keepalive");
        let own =
            more.socket_options.as_ref().map(|own| self::options(&own.socket_options, faults));
        let own = own.as_ref().unwrap_or(&options);
        let binding = binding(value, more.address.as_ref(), own, faults);
        faults.leave();
        all.push(binding?);
    }
    Some(all)
}

fn binding(
    value: &pb::Listener,
    address: Option<&core::Address>,
    options: &[SocketOption],
    faults: &mut Faults,
) -> Option<Binding> {
    let datagrams = value.udp_listener_config.is_some();
    let ip = match listened(address, datagrams, faults)? {
        HostAddress::Ip(ip) | HostAddress::Pipe(ip) => ip,
        HostAddress::Name(..) => {
            faults.reject("address", "neither an IP address nor a Unix socket");
            return None;
        }
    };
    let mode = match address.and_then(|address| address.address.as_ref()) {
        Some(core::address::Address::Pipe(pipe)) => pipe.mode,
        _ => 0,
    };
    if mode > 0o777 {
        faults.reject("address.pipe.mode", "above 0777");
    }
    let socket = match address.and_then(|address| address.address.as_ref()) {
        Some(core::address::Address::SocketAddress(socket)) => Some(socket),
        _ => None,
    };
    let compatible = socket.is_some_and(|socket| socket.ipv4_compat);
    if compatible && ip.is_ipv4() {
        faults.reject("address.socket_address.ipv4_compat", "means something for `::` only");
    }
    let namespace = socket.is_some_and(|one| !one.network_namespace_filepath.is_empty());
    faults.reject_if(namespace, "address.socket_address.network_namespace_filepath");
    Some(Binding {
        address: ip,
        v6_only: ip.is_ipv6() && !compatible,
        transparent: bool_or(value.transparent.as_ref(), false),
        free_bind: bool_or(value.freebind.as_ref(), false),
        reuse_port: bool_or(value.enable_reuse_port.as_ref(), true),
        options: options.to_vec(),
        mode,
        datagrams,
    })
}

/// The address, which is one of UDP for QUIC.
fn listened(
    address: Option<&core::Address>,
    datagrams: bool,
    faults: &mut Faults,
) -> Option<HostAddress> {
    if !datagrams {
        return values::address(address, faults);
    }
    let udp = match address.and_then(|address| address.address.as_ref()) {
        Some(core::address::Address::SocketAddress(socket)) => {
            socket.protocol() == core::socket_address::Protocol::Udp
        }
        _ => false,
    };
    if !udp {
        faults.reject("address.socket_address.protocol", "QUIC needs UDP");
        return None;
    }
    values::datagram_address(address?, faults)
}

fn options(list: &[core::SocketOption], faults: &mut Faults) -> Vec<SocketOption> {
    use core::socket_option::{SocketState, Value};
    let mut options = Vec::with_capacity(list.len());
    for (index, option) in list.iter().enumerate() {
        faults.enter(format!("socket_options[{index}]"));
        let number = |value: i64| i32::try_from(value).ok();
        let value = match &option.value {
            Some(Value::IntValue(value)) => {
                number(*value).map(|value| value.to_ne_bytes().to_vec())
            }
            Some(Value::BufValue(bytes)) => Some(bytes.clone()),
            None => None,
        };
        match (number(option.level), number(option.name), value) {
            (Some(level), Some(name), Some(value)) => {
                let stage = match option.state() {
                    SocketState::StatePrebind => SocketStage::BeforeBind,
                    SocketState::StateBound => SocketStage::Bound,
                    SocketState::StateListening => SocketStage::Listening,
                };
                // Listeners are stream sockets, so the type asked for is met
                // or the option is for others.
                options.push(SocketOption { level, name, value, stage });
            }
            _ => faults.reject("value", "level, name and value must be numbers of 32 bits"),
        }
        faults.leave();
    }
    options
}
