//! HTTP/1.0 and 1.1 on the wire: what the proxy reads and writes.
//!
//! Owns the syntax and the framing of messages, of requests and responses
//! alike: where a head ends, how long a body is, and whether a connection can
//! go on after it. What a request means, which headers are for the next hop
//! and who may ask for what is left to the data path.
//!
//! The decoders and [`encode`] know no sockets: bytes in, events out. They
//! take what Envoy takes and refuse what it refuses, so that a front proxy and
//! this one never disagree about where a message ends. [`Server`] and
//! [`Client`] drive them over a stream of tokio's.
//!
//! Invariant: a peer's bytes cause an event or a [`ParseError`], never a panic,
//! and no more of them are held than a head's limit and one read.
//!
//! ```
//! use amime_http1::{BodyLength, Event, Options, RequestDecoder, Target};
//! use bytes::{Bytes, BytesMut};
//!
//! let mut bytes = BytesMut::from("POST /orders HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi");
//! let mut decoder = RequestDecoder::new(Options::default());
//! let Ok(Some(Event::Head(head))) = decoder.decode(&mut bytes) else { panic!("a head") };
//! assert_eq!(head.target, Target::Path(Bytes::from("/orders")));
//! assert_eq!(head.body, BodyLength::Known(2));
//! assert_eq!(decoder.decode(&mut bytes), Ok(Some(Event::Data(Bytes::from("hi")))));
//! assert_eq!(decoder.decode(&mut bytes), Ok(Some(Event::End)));
//! ```
//!
//! Spec: <https://www.rfc-editor.org/rfc/rfc9112>

mod body;
mod casing;
mod client;
mod codec;
mod connection;
mod encode;
mod error;
mod fields;
mod request;
mod response;
mod server;
mod target;
mod transport;

pub use casing::{Casing, HeaderCase};
pub use client::{Client, Follows};
pub use codec::{BodyLength, Event, Options};
pub use connection::ReadError;
pub use encode::{
    Framing, encode_chunk, encode_last_chunk, encode_request, encode_response, reason,
};
pub use error::ParseError;
pub use request::{RequestDecoder, RequestHead};
pub use response::{ResponseDecoder, ResponseHead, ResponseTo};
pub use server::{Server, ServerOptions};
pub use target::Target;
