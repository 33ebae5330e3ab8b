//! Accepting connections and finding out what they are: original
//! destination, PROXY protocol, first bytes, filter chain, TLS.

mod accept;
mod acceptor;
mod io;
mod proxy_protocol;
#[cfg(feature = "http3")]
mod quic;
mod sniff;

pub(crate) use accept::{ChainLife, LiveListener, accept_loop};
pub(crate) use acceptor::Acceptor;
pub(crate) use amime_config::connection::Connection;
pub(crate) use io::{DownstreamIo, Prefixed};
#[cfg(feature = "http3")]
pub(crate) use quic::quic_loop;
