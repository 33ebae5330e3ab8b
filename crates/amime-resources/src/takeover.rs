//! Listening sockets that go from a proxy to the one that takes its place.
//!
//! Owns which socket is which: by the listener's name and the address that it
//! asked for, since port 0 is another one each time. How they travel is the
//! program's.
//!
//! Invariant: both proxies have the same sockets, and with them the same
//! queues: no client that waits in one is lost.

use std::net::{SocketAddr, TcpListener};

use crate::listeners::takes_one;
use amime_config::binding::Binding;
use amime_core::unix::Shown;

/// The sockets of one address of a listener.
#[derive(Debug)]
pub struct TakenSockets {
    /// Name of the listener.
    pub listener: String,
    /// The address that it asked for, as text.
    pub address: String,
    /// All that there are.
    pub sockets: Vec<TcpListener>,
}

impl TakenSockets {
    pub(crate) fn of(listener: &str, asked: &Binding, sockets: Vec<TcpListener>) -> Self {
        Self { listener: listener.to_owned(), address: text(asked.address), sockets }
    }
}

/// Sockets that wait for their listeners.
#[derive(Debug, Default)]
pub struct Inherited(Vec<TakenSockets>);

impl Inherited {
    /// All that a predecessor has sent.
    pub fn new(sockets: Vec<TakenSockets>) -> Self {
        Self(sockets)
    }

    /// Those of a listener's address, under whatever name the listener had if
    /// there is but one such address.
    pub(crate) fn take(&mut self, listener: &str, asked: &Binding) -> Option<Vec<TcpListener>> {
        // QUIC's connections belong to the process that has their keys.
        if asked.datagrams {
            return None;
        }
        let address = text(asked.address);
        let same = |one: &TakenSockets| one.address == address;
        let named = |one: &TakenSockets| same(one) && one.listener == listener;
        let fixed = |one: &TakenSockets| same(one) && takes_one(asked.address);
        let at = self.0.iter().position(named).or_else(|| self.0.iter().position(fixed))?;
        Some(self.0.swap_remove(at).sockets)
    }
}

fn text(address: SocketAddr) -> String {
    Shown(address).to_string()
}
