//! TLS on the data path: where secrets come from and what handshakes told.

mod facts;
mod secrets;
mod stream;

pub(crate) use facts::TlsFacts;
pub use secrets::{NoSecrets, SecretSource};
pub(crate) use secrets::{SecretStore, load_certificate};
pub(crate) use stream::MaybeTls;
