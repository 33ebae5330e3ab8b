//! TCP proxying: choose, dial, copy, record.

pub(crate) mod copy;
mod proxy;
mod simple;
mod tunnel;

pub(crate) use proxy::{Dialed, dial_speaking, open, proxy};
pub(crate) use simple::{echo, say};
