//! The program `amime-proxy` as an operator starts it.

mod discovery;
mod overload;
mod restart;
mod running;
mod start;
mod stats;
