//! The data path over loopback sockets, between small backends and raw
//! clients.

mod balancing;
mod filters;
mod forwarding;
mod harness;
mod listeners;
mod peer_metadata;
#[cfg(feature = "oracle")]
mod placement;
mod retries;
mod routing;
mod tls;
mod tunnels;
mod updates;
mod warming;
