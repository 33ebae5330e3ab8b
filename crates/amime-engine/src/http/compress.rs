//! Which bodies are compressed or decompressed on their way.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/compressor_filter>

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::body::DownstreamBody;
use super::coding::{Decoder, Encoder};
use super::exchange::Exchange;
use super::filters::{OnResponse, Payload};
use super::held::HeldBody;
use amime_config::filters::FilterKind;
use amime_rules::compression::{
    Coding, Compressor, CompressorRoute, Decompressor, no_transform, take_coding,
};
use amime_rules::matcher::joined;

/// What a compressor does to the response.
pub(crate) struct Compression {
    filter: Arc<Compressor>,
    coding: Coding,
    /// What the client takes; `None` if it does not say.
    accepted: Option<String>,
}

/// Compresses a request, and notes what the client takes of the response.
pub(super) fn begin(
    exchange: &Rc<Exchange>,
    body: &mut DownstreamBody,
    filter: &Arc<Compressor>,
    route: Option<&CompressorRoute>,
) {
    if route.is_some_and(|route| route.off) {
        return;
    }
    let coding = route.and_then(|route| route.coding).unwrap_or(filter.coding);
    let mut head = exchange.head.borrow_mut();
    let headers = &mut head.headers;
    if filter.response.is_some() {
        let accepted = joined(headers, &header::ACCEPT_ENCODING);
        let accepted = accepted.map(|value| String::from_utf8_lossy(&value).into_owned());
        let own = Compression { filter: filter.clone(), coding, accepted };
        exchange.on_response.borrow_mut().push(OnResponse::Compress(Box::new(own)));
        let remove = route.and_then(|route| route.remove_accept_encoding);
        if remove.unwrap_or(filter.remove_accept_encoding) {
            headers.remove(header::ACCEPT_ENCODING);
        }
    }
    if let Some(request) = &filter.request
        && !body.is_end_stream()
        && request.is_long_enough(headers)
        && request.takes_type(headers)
        && !headers.contains_key(header::CONTENT_ENCODING)
        && let Ok(encoder) = Encoder::new(coding)
    {
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
        HeldBody::of(body, exchange).push(Box::new(encoder));
    }
}

impl Compression {
    /// Compresses a response if its client wants it.
    pub(super) fn answer(
        self,
        exchange: &Exchange,
        headers: &mut HeaderMap,
        status: StatusCode,
        payload: &mut Payload<'_>,
    ) {
        let Self { filter, coding, accepted } = self;
        let Some(response) = &filter.response else { return };
        let tagged = filter.disable_on_etag && headers.contains_key(header::ETAG);
        let taken = [header::UPGRADE, header::CONTENT_ENCODING];
        let left_alone = tagged
            || no_transform(headers)
            || taken.iter().any(|name| headers.contains_key(name))
            || filter.uncompressible.contains(&status.as_u16());
        if left_alone || !response.is_long_enough(headers) || !response.takes_type(headers) {
            return;
        }
        if !matches!(payload, Payload::Nothing)
            && let Some(accepted) = &accepted
            && chosen(&compressors(exchange, headers), accepted) == Some(coding.name())
            && let Ok(encoder) = Encoder::new(coding)
        {
            loosen_etag(headers, filter.weaken_etag);
            headers.remove(header::CONTENT_LENGTH);
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
            payload.change(Box::new(encoder));
        }
        vary(headers);
    }
}

/// The codings of the chain for a response of this type, each once, and
/// whether it comes first among equals.
fn compressors(exchange: &Exchange, headers: &HeaderMap) -> Vec<(&'static str, bool)> {
    let mut found: Vec<(&'static str, bool)> = Vec::new();
    for filter in &exchange.connection.config.filters {
        if let FilterKind::Compressor(filter) = &filter.kind
            && let Some(response) = &filter.response
            && response.takes_type(headers)
            && !found.iter().any(|(name, _)| *name == filter.coding.name())
        {
            found.push((filter.coding.name(), filter.choose_first));
        }
    }
    found
}

/// The coding that a client likes best, of those that there are.
fn chosen(codings: &[(&'static str, bool)], accepted: &str) -> Option<&'static str> {
    let mut codings = codings.to_vec();
    let mut wanted: Vec<(&str, f32)> = Vec::new();
    for part in accepted.split(',').filter(|part| !part.trim().is_empty()) {
        let (name, parameters) = part.split_once(';').unwrap_or((part, ""));
        let name = name.trim();
        let q = parameters.split_once('=').filter(|(key, _)| key.trim().eq_ignore_ascii_case("q"));
        let quality = match q.map(|(_, value)| value.trim().parse::<f32>()) {
            None => 1.0,
            Some(Ok(quality)) => quality,
            Some(Err(_)) => continue,
        };
        wanted.push((name, quality));
        if quality == 0.0 {
            codings.retain(|(known, _)| *known != name);
        }
    }
    let mut best = ("identity", 0.0_f32);
    for (name, quality) in wanted {
        let known = codings.iter().find(|(known, _)| *known == name);
        let usable = known.is_some() || matches!(name, "identity" | "*");
        let first = known.is_some_and(|(_, first)| *first);
        if usable && (quality > best.1 || quality == best.1 && first) {
            best = (name, quality);
        }
    }
    match best.0 {
        "*" => codings.first().map(|(name, _)| *name),
        best => codings.iter().find(|(name, _)| *name == best).map(|(name, _)| *name),
    }
}

/// A strong tag is of the bytes, which are others now.
fn loosen_etag(headers: &mut HeaderMap, weaken: bool) {
    let Some(tag) = headers.get(header::ETAG) else { return };
    let bytes = tag.as_bytes();
    if bytes.starts_with(b"W/") || bytes.starts_with(b"w/") {
        return;
    }
    let weak = HeaderValue::from_bytes(&[b"W/", bytes].concat()).ok().filter(|_| weaken);
    match weak {
        Some(weak) => headers.insert(header::ETAG, weak),
        None => headers.remove(header::ETAG),
    };
}

/// Tells caches that the response depends on what the client takes.
fn vary(headers: &mut HeaderMap) {
    const NAME: &str = "Accept-Encoding";
    let before = joined(headers, &header::VARY).map(Cow::into_owned).unwrap_or_default();
    let text = String::from_utf8_lossy(&before);
    if text.contains(NAME) {
        return;
    }
    let value = match text.is_empty() {
        true => HeaderValue::from_static(NAME),
        false => match HeaderValue::from_str(&format!("{text}, {NAME}")) {
            Ok(value) => value,
            Err(_) => return,
        },
    };
    headers.insert(header::VARY, value);
}

/// Decompresses a request, and tells the upstream that its response may be
/// compressed.
pub(super) fn undo(exchange: &Rc<Exchange>, body: &mut DownstreamBody, filter: &Arc<Decompressor>) {
    let mut head = exchange.head.borrow_mut();
    let headers = &mut head.headers;
    if filter.advertise {
        advertise(headers, filter.coding.name());
    }
    if filter.response.is_some() {
        exchange.on_response.borrow_mut().push(OnResponse::Decompress(filter.clone()));
    }
    if !body.is_end_stream()
        && filter.applies(filter.request, headers)
        && let Ok(decoder) = Decoder::new(filter)
    {
        headers.remove(header::CONTENT_LENGTH);
        take_coding(headers);
        HeldBody::of(body, exchange).push(Box::new(decoder));
    }
}

fn advertise(headers: &mut HeaderMap, coding: &str) {
    let before = joined(headers, &header::ACCEPT_ENCODING).map(Cow::into_owned);
    let before = String::from_utf8(before.unwrap_or_default()).unwrap_or_default();
    let others = before.split(',').map(str::trim).filter(|part| !part.is_empty());
    let mut all: Vec<&str> = others.filter(|part| part.split(';').next() != Some(coding)).collect();
    all.push(coding);
    if let Ok(value) = HeaderValue::from_str(&all.join(",")) {
        headers.insert(header::ACCEPT_ENCODING, value);
    }
}

/// Decompresses a response.
pub(super) fn undo_answer(
    filter: &Decompressor,
    headers: &mut HeaderMap,
    payload: &mut Payload<'_>,
) {
    if !matches!(payload, Payload::Nothing)
        && filter.applies(filter.response, headers)
        && let Ok(decoder) = Decoder::new(filter)
    {
        headers.remove(header::CONTENT_LENGTH);
        take_coding(headers);
        payload.change(Box::new(decoder));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_chooses_the_coding() {
        let all = [("gzip", false), ("br", false), ("zstd", true)];
        let check = |accepted, want| assert_eq!(chosen(&all, accepted), want, "{accepted}");
        check("gzip", Some("gzip"));
        check("gzip, br", Some("gzip"));
        check("gzip;q=0.5, br", Some("br"));
        check("gzip, br, zstd", Some("zstd"));
        check("*", Some("gzip"));
        check("gzip;q=0, *", Some("br"));
        check("identity", None);
        check("deflate", None);
        check("gzip;q=x", None);
        check("", None);
    }
}
