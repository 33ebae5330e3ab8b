//! The program `amime-proxy` as an operator starts it.

mod discovery;
mod running;
mod start;
mod stats;
