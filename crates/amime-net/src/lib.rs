//! Everything that speaks to the Linux kernel below the socket API.
//!
//! Owns socket options of intercepted connections ([`socket`]), namespaces
//! and the processes in them ([`namespace`]), links, addresses and routes
//! ([`link`]), packet-filter rules ([`nft`]), the last two over netlink, so that
//! no `ip`, `nft` or `iptables` binary has to be installed; and the process's
//! own code pages ([`memory`]); files that are put into directories
//! ([`watch`]); and descriptors that go to another process ([`descriptors`]).
//! What the rules and namespaces are *for* is decided by the callers.
//!
//! ```
//! use std::net::TcpListener;
//!
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! let _client = std::net::TcpStream::connect(listener.local_addr()?)?;
//! let (accepted, _) = listener.accept()?;
//! // A connection that nothing redirected has no original destination, or
//! // (with conntrack active) its own address.
//! match amime_net::socket::original_dst(&accepted) {
//!     Ok(addr) => assert_eq!(addr, listener.local_addr()?),
//!     Err(_) => {}
//! }
//! # Ok::<(), std::io::Error>(())
//! ```

// The one crate that may: `fork`-like process creation, ioctls and descriptor
// adoption have no safe form. Each block names its safety argument.
#![allow(unsafe_code)]

pub mod descriptors;
pub mod link;
pub mod memory;
pub mod namespace;
mod netlink;
pub mod nft;
pub mod socket;
pub mod watch;
