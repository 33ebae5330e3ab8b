//! The data path of the proxy: from an accepted connection to an upstream and
//! back, as Envoy v3 resources say.
//!
//! Owns the worker threads, listeners, HTTP and TCP proxying, and the pools of
//! upstream connections. It leaves to `amime-resources` which configuration is
//! in force, to `amime-upstream` which endpoint that is and how to reach it, to
//! `amime-proxy` where resources and certificates come from and who may look at
//! them, and to `amime-telemetry` what becomes of its records.
//!
//! [`runtime::Runtime`] is the way in; [`overload`] turns some away. A connection goes through `listener`
//! (what is it?), `http` or `tcp` (where to?) and `upstream` (through which
//! connection?); `amime-config` holds what these look things up in, `worker`
//! the thread they run on.
//!
//! Invariant: a request sees one configuration from beginning to end, and
//! nothing on its path waits for another thread.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/intro/life_of_a_request>

mod http;
mod listener;
pub mod overload;
pub mod runtime;
mod tcp;
mod upstream;
mod worker;
