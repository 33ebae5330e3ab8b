//! The data path over loopback sockets, between small backends and raw
//! clients.

mod forwarding;
mod harness;
