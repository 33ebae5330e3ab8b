//! Packet-filter rules: nftables over netlink, as data.
//!
//! Owns the description of tables, chains and rules and their transfer to the
//! kernel in one atomic batch; [`encode`] owns the wire format. Rules are a
//! closed vocabulary, the one that interception and service addresses need.
//!
//! Invariant: a batch is applied as a whole or not at all.
//!
//! Spec: <https://wiki.nftables.org/> and `linux/netfilter/nf_tables.h`.

mod encode;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::netlink::{Failure, Socket};

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4 only.
    Ip,
    /// IPv4 and IPv6.
    Inet,
}

/// Where in the packet's way a base chain is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Packets that arrive, before routing.
    Prerouting,
    /// Packets that arrive for this namespace.
    Input,
    /// Packets that pass through.
    Forward,
    /// Packets made here.
    Output,
    /// Packets that leave, after routing.
    Postrouting,
}

/// What a base chain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChainType {
    /// Accept and drop.
    Filter,
    /// Rewrite addresses; called for a connection's first packet only.
    Nat,
}

/// Layer-4 protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum L4 {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// One condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// The packet carries this mark (`SO_MARK` of its socket).
    Mark(u32),
    /// The protocol, any port.
    Protocol(L4),
    /// The destination port is one of these (one or more).
    DestinationPort(L4, Vec<u16>),
    /// The source port is this one.
    SourcePort(L4, u16),
    /// The source lies in the network.
    Source(Ipv4Addr, u8),
    /// The destination lies in the network.
    Destination(Ipv4Addr, u8),
    /// The destination lies outside of the network.
    NotDestination(Ipv4Addr, u8),
    /// Source and destination, as the packet has them now, are one of the
    /// pairs.
    SourceAndDestination(Vec<(Ipv4Addr, Ipv4Addr)>),
    /// The packet leaves by this interface.
    OutputInterface(String),
    /// The packet arrived on this interface.
    InputInterface(String),
}

/// What happens to a packet that meets all conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ends this hook for the packet.
    Accept,
    /// Goes back to the calling chain; in a base chain: the chain's policy.
    Return,
    /// Discards the packet.
    Drop,
    /// Answers with a TCP reset.
    Reset,
    /// Belongs to no connection: nothing is rewritten or remembered. Only in
    /// filter chains before [`UNTRACKED`].
    Untrack,
    /// Sends the connection to this port of the namespace itself.
    Redirect(u16),
    /// Sends the connection to one of the addresses, chosen at random.
    Dnat(Vec<SocketAddrV4>),
    /// Gives the connection the address of the interface that it leaves by.
    Masquerade,
}

/// One rule; see [`Batch::rule`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Why the rule is there; shown as its comment and in errors.
    pub purpose: String,
    /// All must hold. Empty: every packet.
    pub when: Vec<Match>,
    /// Count the packets that got this far.
    pub counter: bool,
    /// The action.
    pub action: Action,
}

impl Rule {
    /// A rule without counter.
    pub fn new(purpose: impl Into<String>, when: Vec<Match>, action: Action) -> Self {
        Self { purpose: purpose.into(), when, counter: false, action }
    }

    /// Adds a counter of the packets that match.
    #[must_use]
    pub fn counted(mut self) -> Self {
        self.counter = true;
        self
    }
}

/// Priority of chains that see packets before connections are looked up.
pub const UNTRACKED: i32 = -300;

/// A chain called by the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseChain<'a> {
    /// Name within the table.
    pub name: &'a str,
    /// What it may do.
    pub kind: ChainType,
    /// When it is called.
    pub hook: Hook,
    /// Order among the chains of the hook; destination NAT is -100, source
    /// NAT 100, filter 0.
    pub priority: i32,
}

/// The kernel refused a batch; nothing of it was applied.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The netfilter socket could not be opened or used.
    #[error("the netfilter netlink socket failed")]
    Socket(#[source] io::Error),
    /// The change named in `what` was refused.
    #[error("nftables refused to {what}{}", detail.as_ref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused {
        /// The change, as a verb phrase that names the table, chain or rule.
        what: String,
        /// The kernel's own words, when it had any.
        detail: Option<String>,
        /// The errno.
        #[source]
        source: io::Error,
    },
}

/// Changes to one table, applied together by [`Batch::commit`].
pub struct Batch {
    family: Family,
    table: String,
    messages: encode::Messages,
    /// What each message does, by its sequence number minus one.
    descriptions: Vec<String>,
}

impl Batch {
    /// Starts a batch that replaces the table with an empty one, whether or
    /// not it exists.
    pub fn replace_table(family: Family, table: &str) -> Self {
        let mut batch = Self {
            family,
            table: table.to_owned(),
            messages: encode::Messages::new(),
            descriptions: vec!["begin the batch".to_owned()],
        };
        // Deleting a table that is not there is an error; adding one that is
        // there is not.
        for change in
            [encode::TableChange::Add, encode::TableChange::Delete, encode::TableChange::Add]
        {
            batch.messages.table(family, table, change);
            batch.descriptions.push(format!("{} the table {table}", change.verb()));
        }
        batch
    }

    /// Adds a chain that the kernel calls (policy accept).
    pub fn base_chain(&mut self, chain: BaseChain<'_>) -> &mut Self {
        self.messages.chain(self.family, &self.table, chain);
        self.descriptions.push(format!("add the chain {} {}", self.table, chain.name));
        self
    }

    /// Appends a rule to a chain.
    pub fn rule(&mut self, chain: &str, rule: &Rule) -> &mut Self {
        let what = format!("add the rule {:?} to {} {chain}", rule.purpose, self.table);
        let added = self.messages.rule(self.family, &self.table, chain, rule);
        self.descriptions.extend(std::iter::repeat_n(what, added));
        self
    }

    /// Applies the batch in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`NftError`]; the namespace is then as before.
    pub fn commit(self) -> Result<(), NftError> {
        let mut socket = Socket::open(NETLINK_NETFILTER).map_err(NftError::Socket)?;
        let (bytes, last) = self.messages.finish();
        socket.transact(&bytes, last).map_err(|failure| match failure {
            Failure::Socket(source) => NftError::Socket(source),
            Failure::Refused(refused) => NftError::Refused {
                what: self
                    .descriptions
                    .get((refused.sequence as usize).saturating_sub(1))
                    .map_or("apply the batch", String::as_str)
                    .to_owned(),
                detail: refused.detail,
                source: refused.source,
            },
        })
    }
}
