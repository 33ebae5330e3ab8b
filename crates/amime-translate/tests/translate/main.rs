//! Behaviour of the translation as a whole.

mod bookinfo;
mod envoy_filter;
mod generate;
mod golden;
mod simulation;
mod support;
