//! HTTP: from a downstream connection to an upstream and back.
//!
//! HTTP/1 is `amime_http1`'s, HTTP/2 is hyper's; `amime_rules::head` and [`body`]
//! are the boundary that hides which it is. A request passes [`request`] (what the
//! connection manager does), [`router`] (route, [`filters`], action), [`forward`]
//! (attempts), [`deliver`] and [`response`]; [`exchange`] accompanies it and
//! tells telemetry at its end. Filters change bodies through [`stage`], those of
//! requests behind [`held`].

pub(crate) mod attempt;
mod attempts;
pub(crate) mod body;
mod buffer;
mod client_cert;
mod coding;
mod compress;
mod connect;
mod date;
mod deliver;
mod dynamic_host;
mod error;
pub(crate) mod exchange;
mod fault;
mod filters;
mod forward;
mod frames;
mod grpc_bridge;
mod grpc_web;
mod h1;
#[cfg(feature = "http3")]
mod h3;
mod hash;
mod held;
mod limits;
mod linger;
mod metadata;
mod mirror;
mod names;
mod pace;
mod parsed;
mod path;
pub(crate) mod pipe;
mod prepare;
mod rate_limit;
mod redirect;
mod replay;
mod request;
mod response;
mod retry;
mod router;
mod serve;
mod session;
mod stage;
mod stall;
mod timeouts;
mod trailers;
pub(crate) mod upgrade;
mod watch;

#[cfg(feature = "http3")]
pub(crate) use h3::serve_http3;
pub(crate) use hash::of_address;
pub(crate) use rate_limit::admitted_by_service;
pub(crate) use serve::{HttpConnection, serve};
