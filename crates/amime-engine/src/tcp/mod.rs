//! TCP proxying: choose, dial, copy, record.

pub(crate) mod copy;
mod proxy;
mod tunnel;

pub(crate) use proxy::{Dialed, dial_speaking, open, proxy};
