//! The resources that a proxy holds: received, compiled, warming, in force.
//!
//! Owns which version of each listener, route configuration, cluster, endpoint
//! assignment and secret serves, the sockets of listeners and the names of
//! endpoints and secrets' files. It leaves to `amime-config` what a resource
//! means, to `amime-engine` the workers that serve by it, and to its caller
//! the thread that does what time asks for.
//!
//! [`State`] is the way in: it takes updates, and gives one [`Published`] value
//! for all workers.
//!
//! Invariant: what is published is whole. A resource that does not compile
//! leaves its predecessor in force, and one that lacks others waits beside it.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/operations/init>

mod awaited;
mod clusters;
mod dump;
mod gauges;
mod held;
mod listeners;
mod names;
mod published;
mod resolver;
mod routes;
mod state;
mod takeover;

pub use clusters::DnsJob;
pub use dump::{ClusterDump, EndpointDump, ListenerDump, RejectedDump, ResourceDump, RuntimeDump};
pub use names::{Answer, NamePort};
pub use published::{Published, SocketSet};
pub use resolver::{MarkedResolver, Resolvers, look_up, look_up_host};
pub use state::{State, StateOptions};
pub use takeover::{Inherited, TakenSockets};
