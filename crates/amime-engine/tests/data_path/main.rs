//! The data path over loopback sockets, between small backends and raw
//! clients.

mod affinity;
mod balancing;
mod bandwidth;
mod closing;
mod credentials;
mod dns;
mod filters;
mod floods;
mod forwarding;
mod harness;
mod health;
#[cfg(feature = "http3")]
mod http3;
mod listeners;
mod peer_metadata;
mod pki;
#[cfg(feature = "oracle")]
mod placement;
mod proxy_protocol;
mod rate_limits;
mod raw_http2;
#[cfg(feature = "oracle")]
mod reports;
mod retries;
mod routing;
mod slow;
mod tcp;
mod tls;
mod tunnels;
mod unix;
mod updates;
mod warming;
#[cfg(feature = "oracle")]
mod zones;
