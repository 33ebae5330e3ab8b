//! Words every other crate speaks: names, identities, protocols, durations.
//!
//! Owns newtypes without behaviour beyond parsing, printing and comparing,
//! and (feature `process`) the log set-up of binaries. Leaves I/O, clocks and
//! runtimes to others.
//!
//! ```
//! use amime_core::{Hostname, Protocol};
//!
//! let wildcard = Hostname::new("*.default.svc.cluster.local");
//! assert!(wildcard.matches(&Hostname::new("reviews.default.svc.cluster.local")));
//! assert_eq!(Protocol::from_port("http-admin", None, 8080), Protocol::Http);
//! ```

pub mod build;
pub mod duration;
pub mod grpc;
mod hostname;
mod locality;
#[cfg(feature = "process")]
pub mod log;
mod name;
mod protocol;
mod spiffe;
pub mod unix;

pub use duration::Duration;
pub use hostname::Hostname;
pub use locality::Locality;
pub use name::NamespacedName;
pub use protocol::{Protocol, UnknownProtocol};
pub use spiffe::{SpiffeId, SpiffeIdError};
