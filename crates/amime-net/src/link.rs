//! Network interfaces, their addresses and the routes over them, in the
//! network namespace of the calling thread.
//!
//! Calls are synchronous and take microseconds; run them on a thread that
//! entered the namespace (see [`crate::namespace::in_netns`]).
//!
//! Spec: rtnetlink(7).

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::NetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{
    AddressMessageBuilder, LinkDummy, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};

use crate::netlink::{Failure, REQUEST_ACK, Socket};

const CREATE_EXCLUSIVE: u16 = 0x400 | 0x200;
const CREATE_REPLACE: u16 = 0x400 | 0x100;

/// The kernel refused a change of a link, address, route or neighbour.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The route socket could not be opened or used.
    #[error("the route netlink socket failed")]
    Socket(#[source] io::Error),
    /// The change named in `what` was refused.
    #[error("could not {what}{}", detail.as_ref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused {
        /// The change, as a verb phrase.
        what: String,
        /// The kernel's own words, when it had any.
        detail: Option<String>,
        /// The errno.
        #[source]
        source: io::Error,
    },
}

/// A route over one interface; see [`Links::add_route`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route<'a> {
    /// Destination network; `0.0.0.0/0` is the default route.
    pub destination: (Ipv4Addr, u8),
    /// Interface that the packets leave by.
    pub interface: &'a str,
    /// Next hop, taken to be on the link even if no address covers it;
    /// none: the destination itself is on the link.
    pub via: Option<Ipv4Addr>,
    /// Source address preferred for packets that the namespace itself sends.
    pub source: Option<Ipv4Addr>,
}

/// The links of the calling thread's network namespace.
pub struct Links {
    socket: Socket,
    sequence: u32,
}

impl Links {
    /// Opens a route socket in the thread's current network namespace; later
    /// calls act there whichever thread makes them, except that interface
    /// names are resolved in the calling thread's namespace.
    ///
    /// # Errors
    /// [`LinkError::Socket`].
    pub fn open() -> Result<Self, LinkError> {
        let socket = Socket::open(NETLINK_ROUTE).map_err(LinkError::Socket)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Creates a veth pair: `name` here and `peer` in `peer_netns`. Both ends
    /// are down.
    ///
    /// # Errors
    /// [`LinkError::Refused`], for example when the name is taken.
    pub fn add_veth(
        &mut self,
        name: &str,
        peer: &str,
        peer_netns: BorrowedFd<'_>,
    ) -> Result<(), LinkError> {
        let peer_end = LinkUnspec::new_with_name(peer).setns_by_fd(peer_netns.as_raw_fd()).build();
        let message = LinkMessageBuilder::<LinkVeth>::new(name, peer)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer_end)))
            .build();
        self.new_link(message, &format!("create the veth pair {name}"))
    }

    /// Creates a dummy interface (down), a place for addresses that belong to
    /// no link.
    ///
    /// # Errors
    /// [`LinkError::Refused`].
    pub fn add_dummy(&mut self, name: &str) -> Result<(), LinkError> {
        self.new_link(LinkDummy::new(name).build(), &format!("create the interface {name}"))
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// [`LinkError::Refused`], `ENODEV` when there is no such interface.
    pub fn set_up(&mut self, name: &str) -> Result<(), LinkError> {
        let what = format!("bring up {name}");
        let index = index_of(name, &what)?;
        let message = LinkUnspec::new_with_index(index).up().build();
        self.request(RouteNetlinkMessage::SetLink(message), 0, &what)
    }

    /// Removes an interface (with its peer, if it is a veth).
    ///
    /// # Errors
    /// [`LinkError::Refused`], `ENODEV` when there is no such interface.
    pub fn delete(&mut self, name: &str) -> Result<(), LinkError> {
        let what = format!("delete {name}");
        let index = index_of(name, &what)?;
        let message = LinkUnspec::new_with_index(index).build();
        self.request(RouteNetlinkMessage::DelLink(message), 0, &what)
    }

    /// Gives an interface an address.
    ///
    /// # Errors
    /// [`LinkError::Refused`], `EEXIST` when it has the address.
    pub fn add_address(
        &mut self,
        name: &str,
        address: Ipv4Addr,
        prefix_len: u8,
    ) -> Result<(), LinkError> {
        let what = format!("add {address}/{prefix_len} to {name}");
        let index = index_of(name, &what)?;
        let message = AddressMessageBuilder::<Ipv4Addr>::new()
            .index(index)
            .address(address, prefix_len)
            .build();
        self.request(RouteNetlinkMessage::NewAddress(message), CREATE_EXCLUSIVE, &what)
    }

    /// Adds a route, replacing one to the same destination.
    ///
    /// # Errors
    /// [`LinkError::Refused`].
    pub fn add_route(&mut self, route: &Route<'_>) -> Result<(), LinkError> {
        let (network, prefix_len) = route.destination;
        let what = format!("add the route to {network}/{prefix_len} over {}", route.interface);
        let index = index_of(route.interface, &what)?;
        let mut message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(network, prefix_len)
            .output_interface(index);
        message = match route.via {
            Some(gateway) => message.gateway(gateway).onlink(),
            None => message.scope(RouteScope::Link),
        };
        if let Some(source) = route.source {
            message = message.pref_source(source);
        }
        self.request(RouteNetlinkMessage::NewRoute(message.build()), CREATE_REPLACE, &what)
    }

    /// Adds a permanent neighbour entry, so that `address` needs no ARP.
    ///
    /// # Errors
    /// [`LinkError::Refused`].
    pub fn add_neighbour(
        &mut self,
        name: &str,
        address: IpAddr,
        mac: [u8; 6],
    ) -> Result<(), LinkError> {
        let what = format!("add the neighbour {address} on {name}");
        let mut message = NeighbourMessage::default();
        message.header.ifindex = index_of(name, &what)?;
        message.header.state = NeighbourState::Permanent;
        let destination = match address {
            IpAddr::V4(v4) => {
                message.header.family = AddressFamily::Inet;
                NeighbourAddress::Inet(v4)
            }
            IpAddr::V6(v6) => {
                message.header.family = AddressFamily::Inet6;
                NeighbourAddress::Inet6(v6)
            }
        };
        message.attributes.push(NeighbourAttribute::Destination(destination));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        self.request(RouteNetlinkMessage::NewNeighbour(message), CREATE_REPLACE, &what)
    }

    fn new_link(&mut self, message: LinkMessage, what: &str) -> Result<(), LinkError> {
        self.request(RouteNetlinkMessage::NewLink(message), CREATE_EXCLUSIVE, what)
    }

    fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        what: &str,
    ) -> Result<(), LinkError> {
        self.sequence += 1;
        let mut message = NetlinkMessage::from(message);
        message.header.flags = REQUEST_ACK | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.transact(&bytes, self.sequence).map_err(|failure| match failure {
            Failure::Socket(source) => LinkError::Socket(source),
            Failure::Refused(refused) => LinkError::Refused {
                what: what.to_owned(),
                detail: refused.detail,
                source: refused.source,
            },
        })
    }
}

fn index_of(name: &str, what: &str) -> Result<u32, LinkError> {
    if_nametoindex(name).map_err(|errno| LinkError::Refused {
        what: what.to_owned(),
        detail: None,
        source: errno.into(),
    })
}
