//! TLS on the data path: plain and encrypted streams behind one type.

mod failure;
mod stream;

pub use amime_config::secrets::{NoSecrets, SecretSource};
pub(crate) use failure::{Counted, NOT_READY, TlsFailure};
pub(crate) use stream::MaybeTls;
