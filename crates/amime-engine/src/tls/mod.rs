//! TLS on the data path: plain and encrypted streams behind one type.

mod stream;

pub use amime_config::secrets::{NoSecrets, SecretSource};
pub(crate) use stream::MaybeTls;
