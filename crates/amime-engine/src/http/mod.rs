//! HTTP: from a downstream connection to an upstream and back.
//!
//! Codecs are hyper's; `amime_config::head` and [`body`] are the boundary behind which
//! another codec can take its place. A request passes [`request`] (what the
//! connection manager does), [`router`] (route, filters, action), [`forward`]
//! (attempts) and [`response`]; [`exchange`] accompanies it and tells
//! telemetry at its end.

pub(crate) mod attempt;
mod attempts;
pub(crate) mod body;
mod connect;
mod error;
pub(crate) mod exchange;
mod filters;
mod forward;
mod hash;
mod mirror;
mod names;
mod path;
pub(crate) mod pipe;
mod prepare;
mod refusal;
mod request;
mod response;
mod retry;
mod router;
mod serve;
mod timeouts;
pub(crate) mod upgrade;

pub(crate) use hash::of_address;
pub(crate) use serve::{HttpConnection, serve};
