//! Behaviour of the translation as a whole.

mod bookinfo;
mod generate;
mod golden;
mod simulation;
mod support;
