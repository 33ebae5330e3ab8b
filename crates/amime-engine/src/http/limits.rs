//! Limits of HTTP/2 heads, which are the codec's in Envoy: a request beyond
//! them is not answered, its stream is reset.
//!
//! `h2` decodes; what it cannot know is checked here. For HTTP/1 all of this
//! is `amime_http1`'s.

use std::rc::Rc;

use amime_telemetry::ResponseFlags;
use http::{HeaderMap, Version, header};

use super::body::BodyError;
use super::exchange::{Codec, End, Exchange, ExchangeGuard};
use super::parsed;
use super::serve::HttpConnection;
use amime_config::hcm::{HttpConfig, Underscores};

/// Pseudo headers of a request count too.
const PSEUDO: usize = 4;

/// The stream is reset because of this.
#[derive(Debug, thiserror::Error)]
#[error("the request is refused: {0}")]
struct Refused(&'static str);

/// What `h2` may decode of one head, by its own count, which is larger than
/// Envoy's. It answers what is longer with 431.
pub(super) fn decoded(config: &HttpConfig) -> u32 {
    config.max_headers_kb.saturating_mul(4 * 1024)
}

/// The detail for which Envoy would reset the stream.
pub(super) fn check(config: &HttpConfig, headers: &HeaderMap) -> Result<(), &'static str> {
    if headers.len() + PSEUDO > config.max_headers {
        // Envoy counts cookies once they are joined.
        let cookies = headers.get_all(header::COOKIE).iter().count();
        if headers.len() + PSEUDO - cookies.saturating_sub(1) > config.max_headers {
            return Err("http2.too_many_headers");
        }
    }
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if bytes > config.max_headers_kb as usize * 1024 {
        return Err("http2.header_list_size_too_large");
    }
    let reject = config.underscores == Underscores::Reject;
    if reject && headers.keys().any(|name| name.as_str().contains('_')) {
        return Err("http2.unexpected_underscore");
    }
    Ok(())
}

/// Tells telemetry of a request that is not answered.
pub(super) fn refuse(connection: &Rc<HttpConnection>, details: &'static str) -> BodyError {
    connection.begin(Version::HTTP_2);
    let mut head = parsed::unreadable();
    head.version = Version::HTTP_2;
    let exchange = Exchange::new(connection.clone(), head, Codec::default());
    {
        let mut log = exchange.log.borrow_mut();
        log.flags.insert(ResponseFlags::DR);
        log.details = details.into();
    }
    ExchangeGuard::new(exchange).finish(End::Complete);
    Refused(details).into()
}
