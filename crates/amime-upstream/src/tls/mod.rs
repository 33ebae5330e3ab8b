//! TLS on the data path: plain and encrypted streams behind one type.

mod failure;
mod stream;

pub use failure::{Counted, NOT_READY, SHOWS_HTTP, TlsFailure};
pub use stream::MaybeTls;
