//! The Bookinfo sample: a small book shop cut into four services, plus the
//! stand-ins that people use to poke at a mesh (httpbin, sleep, tcp-echo,
//! helloworld). One program, the role is an argument.
//!
//! Owns the applications only. They know nothing of the mesh beyond passing
//! trace headers on, so the same program runs with or without a sidecar.
//!
//! Invariant: the timeouts of `productpage` and `reviews` keep the fault that
//! the fault-injection exercise looks for (see [`Timeouts`]).
//!
//! ```no_run
//! # async fn demo() -> anyhow::Result<()> {
//! use clap::Parser;
//! let args = bookinfo::Args::parse_from(["bookinfo", "reviews-v2", "--port", "9080"]);
//! bookinfo::run(args).await
//! # }
//! ```

mod books;
mod client;
mod config;
mod details;
mod forward;
mod helloworld;
mod httpbin;
mod page;
mod productpage;
mod ratings;
mod reply;
mod reviews;
mod server;
mod stop;
mod tcp_echo;

pub use config::{Args, ParseRoleError, Role, RoleVersion, Timeouts};

use std::sync::Arc;

use config::Config;
use server::App;

/// Runs one role until SIGTERM or SIGINT; connections in flight get a few
/// seconds to finish.
///
/// # Errors
///
/// When a port cannot be bound or an argument does not fit the role.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let config = Config::from_args(args)?;
    let app = match config.role {
        Role::Sleep => return stop::requested().await,
        Role::TcpEcho => return tcp_echo::serve(&config).await,
        Role::Productpage => App::Productpage(productpage::Productpage::new(&config)),
        Role::Details => App::Details,
        Role::Reviews => App::Reviews(reviews::Reviews::new(&config)),
        Role::Ratings => App::Ratings(ratings::Ratings::new(&config)),
        Role::Helloworld => App::Helloworld(helloworld::Helloworld::new(&config)),
        Role::Httpbin => App::Httpbin,
    };
    server::serve(Arc::new(app), config.port).await
}
