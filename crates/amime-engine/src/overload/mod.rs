//! What the proxy does when it runs out of something: it turns work away
//! before the kernel turns away the proxy.
//!
//! Owns what is watched, and which actions follow from it ([`plan`]); the
//! actions are done where the work comes in, by [`crate::listener`] and
//! [`crate::http`].
//!
//! Invariant: work that is asked whether it may go on reads a number of its
//! own thread. The thread that keeps time reads the pressures.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/operations/overload_manager/overload_manager>

mod plan;
mod state;
#[cfg(test)]
mod tests;

pub use plan::OverloadPlan;
pub(crate) use plan::{Counted, ListenerCap};
pub(crate) use state::watch_pressures;

/// What is asked of the work that comes in.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Actions {
    /// Requests that are answered with 503.
    pub(crate) refuse_requests: Share,
    /// Answers after which a connection closes.
    pub(crate) close_connections: Share,
    /// Connections that are closed as soon as they are there.
    pub(crate) reject_connections: Share,
    /// Connections are left to the kernel's queue.
    pub(crate) accept_none: bool,
}

/// How many of all, from none (0) to all (1).
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub(crate) struct Share(f64);

impl Share {
    /// True for this share of those who ask.
    pub(crate) fn drawn(self) -> bool {
        self.0 > 0.0 && (self.0 >= 1.0 || fastrand::f64() < self.0)
    }
}
