//! TCP proxying: choose, dial, copy, record.

pub(crate) mod copy;
mod proxy;

pub(crate) use proxy::{Dialed, dial_speaking, proxy};
