//! Behaviour of the translation as a whole.

mod bookinfo;
mod details;
mod envoy_filter;
mod generate;
mod golden;
mod locality;
mod network;
mod proxy_settings;
mod quic;
mod secrets;
mod simulation;
mod sockets;
mod support;
