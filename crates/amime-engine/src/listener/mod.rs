//! Accepting connections and finding out what they are: original
//! destination, PROXY protocol, first bytes, filter chain, TLS.

mod accept;
mod acceptor;
mod admission;
mod authorize;
#[cfg(test)]
mod fuzz;
mod io;
mod life;
mod proxy_protocol;
#[cfg(feature = "http3")]
mod quic;
mod sniff;

pub(crate) use accept::{LiveListener, accept_loop};
pub(crate) use acceptor::Acceptor;
pub(crate) use amime_rules::connection::Connection;
pub(crate) use io::{DownstreamIo, Prefixed};
pub(crate) use life::ChainLife;
#[cfg(feature = "http3")]
pub(crate) use quic::quic_loop;
