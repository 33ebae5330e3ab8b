//! Listeners for HTTP/3: their limits, and the certificates of all chains
//! behind one TLS context.
//!
//! A QUIC server answers the first packet before it can look at the client's
//! name, so there is one context a listener: the name chooses the certificate
//! within the handshake, and the chain after it, by the same rules.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/listener/v3/quic_config.proto>

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::listener::v3 as pb;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::chain_match::{ChainInput, choose};
use super::hcm::Codec;
use super::listener::{FilterChain, Terminal};
use amime_rules::Faults;
use amime_rules::values::{self, u32_or};

/// What filter chains know QUIC by.
pub const TRANSPORT: &str = "quic";
/// The protocol's name in ALPN.
pub const ALPN: &[u8] = b"h3";

/// A compiled `QuicProtocolOptions`.
#[derive(Debug)]
pub struct Quic {
    pub limits: QuicLimits,
    /// Shows the certificate of the chain that the client's name chooses.
    pub tls: Arc<ServerConfig>,
}

/// Limits of connections.
#[derive(Clone, Copy, Debug)]
pub struct QuicLimits {
    pub max_streams: u32,
    pub stream_window: u32,
    pub connection_window: u32,
    pub idle_timeout: Option<Duration>,
    pub handshake_timeout: Duration,
}

/// Reads a listener's options; `None` if it is one for TCP.
pub(crate) fn limits(value: &pb::Listener, faults: &mut Faults) -> Option<QuicLimits> {
    let udp = value.udp_listener_config.as_ref()?;
    if !cfg!(feature = "http3") {
        faults.reject("udp_listener_config", "HTTP/3 is not part of this build");
        return None;
    }
    let Some(options) = &udp.quic_options else {
        faults.reject("udp_listener_config", "of UDP, only QUIC is supported");
        return None;
    };
    faults.enter("udp_listener_config");
    faults.ignore_if(udp.downstream_socket_config.is_some(), "downstream_socket_config");
    faults.ignore_if(
        udp.udp_packet_packet_writer_config.is_some(),
        "udp_packet_packet_writer_config",
    );
    faults.enter("quic_options");
    without_effect(options, faults);
    let protocol = options.quic_protocol_options.clone().unwrap_or_default();
    let window = |value: Option<&_>| u32_or(value, 16 << 20).max(1);
    let limits = QuicLimits {
        max_streams: u32_or(protocol.max_concurrent_streams.as_ref(), 100),
        stream_window: window(protocol.initial_stream_window_size.as_ref()),
        connection_window: window(protocol.initial_connection_window_size.as_ref()),
        idle_timeout: values::timeout(
            options.idle_timeout.as_ref(),
            Some(Duration::from_secs(300)),
        ),
        handshake_timeout: options
            .crypto_handshake_timeout
            .as_ref()
            .map_or(Duration::from_secs(20), values::duration),
    };
    faults.leave();
    faults.leave();
    Some(limits)
}

/// Reports what is not honoured.
fn without_effect(options: &pb::QuicProtocolOptions, faults: &mut Faults) {
    let enabled = options.enabled.as_ref().and_then(|flag| flag.default_value);
    faults.reject_if(enabled.is_some_and(|enabled| !enabled.value), "enabled");
    faults.reject_if(options.reject_new_connections, "reject_new_connections");
    let set = [
        (
            options.packets_to_read_to_connection_count_ratio.is_some(),
            "packets_to_read_to_connection_count_ratio",
        ),
        (options.crypto_stream_config.is_some(), "crypto_stream_config"),
        (options.proof_source_config.is_some(), "proof_source_config"),
        (options.connection_id_generator_config.is_some(), "connection_id_generator_config"),
        (options.server_preferred_address_config.is_some(), "server_preferred_address_config"),
        (options.send_disable_active_migration.is_some(), "send_disable_active_migration"),
        (options.connection_debug_visitor_config.is_some(), "connection_debug_visitor_config"),
        (!options.save_cmsg_config.is_empty(), "save_cmsg_config"),
    ];
    for (set, field) in set {
        faults.ignore_if(set, field);
    }
    let Some(protocol) = &options.quic_protocol_options else { return };
    faults.within("quic_protocol_options", |faults| {
        faults.ignore_if(protocol.connection_keepalive.is_some(), "connection_keepalive");
        faults.ignore_if(!protocol.connection_options.is_empty(), "connection_options");
        faults.ignore_if(protocol.idle_network_timeout.is_some(), "idle_network_timeout");
        faults.ignore_if(protocol.max_packet_length.is_some(), "max_packet_length");
        faults.ignore_if(
            protocol.num_timeouts_to_trigger_port_migration.is_some(),
            "num_timeouts_to_trigger_port_migration",
        );
    });
}

impl Quic {
    /// Puts the certificates of `chains` together; the default one is last.
    pub(crate) fn of(
        limits: QuicLimits,
        address: SocketAddr,
        chains: &[Arc<FilterChain>],
        default: Option<&Arc<FilterChain>>,
        faults: &mut Faults,
    ) -> Option<Self> {
        for chain in chains.iter().chain(default) {
            let http3 =
                matches!(&chain.terminal, Terminal::Http(http) if http.codec == Codec::Http3);
            if !http3 || chain.tls.is_none() {
                faults.reject("filter_chains", "QUIC carries HTTP/3 in its own TLS, nothing else");
                return None;
            }
        }
        let first = chains.iter().chain(default).find_map(|chain| chain.tls.as_ref())?;
        let mut tls = first.server_config();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.cert_resolver =
            Arc::new(ByName { chains: chains.to_vec(), default: default.cloned(), address });
        Some(Self { limits, tls: Arc::new(tls) })
    }
}

/// Shows the certificate of the chain for a name.
#[derive(Debug)]
struct ByName {
    chains: Vec<Arc<FilterChain>>,
    default: Option<Arc<FilterChain>>,
    address: SocketAddr,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // The client's address is not known here; chains that ask for it are
        // found again by it after the handshake.
        let nobody = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let application: Vec<Vec<u8>> =
            hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect();
        let input = ChainInput {
            destination: self.address,
            source: SocketAddr::new(nobody, 0),
            direct_source: nobody,
            server_name: hello.server_name().unwrap_or_default(),
            transport: TRANSPORT,
            application: &application,
        };
        let chain = choose(&self.chains, &input).or(self.default.as_ref())?;
        chain.tls.as_ref()?.certificates().resolve(hello)
    }
}
