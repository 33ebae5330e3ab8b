//! `httpbin`: echoes requests and makes responses to order.
//!
//! Owns the endpoints that people use to try routing, retries, timeouts and
//! header rules; an unknown path is 404, a number out of bounds 400.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body::Body;
use http_body_util::{BodyExt, Limited, StreamBody};
use serde_json::{Map, Value, json};

use crate::reply::{self, Reply};

/// Longest body echoed, in bytes.
const MAX_ECHO: usize = 1 << 20;
/// Longest body made to order, in bytes.
const MAX_BYTES: usize = 16 << 20;
const MAX_DELAY: f64 = 60.0;
const MAX_LINES: u32 = 100;

/// A request whose body was read, and who sent it.
struct Call {
    peer: SocketAddr,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

/// Answers one request.
pub(crate) async fn handle<B>(peer: SocketAddr, request: Request<B>) -> Reply
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (parts, body) = request.into_parts();
    let Ok(body) = Limited::new(body, MAX_ECHO).collect().await else {
        return reply::error(StatusCode::PAYLOAD_TOO_LARGE, "body longer than 1 MiB");
    };
    let call = Call {
        peer,
        method: parts.method,
        uri: parts.uri,
        headers: parts.headers,
        body: body.to_bytes(),
    };
    route(&call).await
}

async fn route(call: &Call) -> Reply {
    let (name, rest) = match call.uri.path()[1..].split_once('/') {
        Some((name, rest)) => (name, rest),
        None => (&call.uri.path()[1..], ""),
    };
    match name {
        "" => reply::text(StatusCode::OK, "httpbin stand-in: /get /headers /status/CODE …\n"),
        "get" => only(call, &Method::GET),
        "post" => only(call, &Method::POST),
        "put" => only(call, &Method::PUT),
        "patch" => only(call, &Method::PATCH),
        "delete" => only(call, &Method::DELETE),
        "anything" => reply::json(StatusCode::OK, &call.echo()),
        "headers" => reply::json(StatusCode::OK, &json!({ "headers": headers(&call.headers) })),
        "ip" => reply::json(StatusCode::OK, &json!({ "origin": call.origin() })),
        "user-agent" => reply::json(StatusCode::OK, &json!({ "user-agent": call.agent() })),
        "status" => status(rest),
        "delay" => delay(call, rest).await,
        "bytes" => bytes(rest),
        "stream" => stream(call, rest),
        "drip" => drip(call),
        "redirect" => redirect(rest),
        "response-headers" => response_headers(call),
        "base64" => base64(rest),
        "cookies" => reply::json(StatusCode::OK, &json!({ "cookies": cookies(call) })),
        "basic-auth" => basic_auth(call, rest),
        "bearer" => bearer(call),
        "uuid" => reply::json(StatusCode::OK, &json!({ "uuid": uuid() })),
        "json" => reply::json(StatusCode::OK, &json!({ "slideshow": { "title": "A mesh" } })),
        "html" => reply::html("<!doctype html><title>html</title><h1>Some HTML</h1>".to_owned()),
        "health" => reply::text(StatusCode::OK, "OK"),
        _ => reply::not_found(),
    }
}

impl Call {
    fn echo(&self) -> Value {
        let body = String::from_utf8_lossy(&self.body);
        let host = self.headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or("");
        json!({
            "args": args(&self.uri),
            "data": body,
            "headers": headers(&self.headers),
            "json": serde_json::from_slice::<Value>(&self.body).unwrap_or(Value::Null),
            "method": self.method.as_str(),
            "origin": self.origin(),
            "url": format!("http://{host}{}", self.uri),
        })
    }

    fn origin(&self) -> String {
        let first = self.headers.get("x-forwarded-for").and_then(|v| v.to_str().ok());
        first.map_or_else(|| self.peer.ip().to_canonical().to_string(), str::to_owned)
    }

    fn agent(&self) -> String {
        text(self.headers.get(header::USER_AGENT))
    }
}

fn only(call: &Call, method: &Method) -> Reply {
    if call.method == *method || (call.method == Method::HEAD && *method == Method::GET) {
        return reply::json(StatusCode::OK, &call.echo());
    }
    reply::error(StatusCode::METHOD_NOT_ALLOWED, "wrong method for this path")
}

fn text(value: Option<&HeaderValue>) -> String {
    value.map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).unwrap_or_default()
}

fn headers(map: &HeaderMap) -> Value {
    let mut out = Map::new();
    for name in map.keys() {
        let values = map.get_all(name).iter().map(|v| text(Some(v)).into()).collect::<Vec<Value>>();
        out.insert(title_case(name), values.into());
    }
    out.into()
}

/// `x-request-id` as `X-Request-Id`, the way such services print names.
fn title_case(name: &HeaderName) -> String {
    let mut start = true;
    name.as_str()
        .chars()
        .map(|c| {
            let out = if start { c.to_ascii_uppercase() } else { c };
            start = c == '-';
            out
        })
        .collect()
}

fn pairs(uri: &Uri) -> impl Iterator<Item = (&str, &str)> {
    uri.query()
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn args(uri: &Uri) -> Value {
    pairs(uri).map(|(k, v)| (k.to_owned(), Value::from(v))).collect::<Map<_, _>>().into()
}

fn bad(message: &str) -> Reply {
    reply::error(StatusCode::BAD_REQUEST, message)
}

/// One code, or several to pick from: `200,503`.
fn status(list: &str) -> Reply {
    let codes: Option<Vec<StatusCode>> =
        list.split(',').map(|code| StatusCode::from_bytes(code.trim().as_bytes()).ok()).collect();
    match codes.as_deref() {
        Some(codes @ [_, ..]) => match codes[fastrand::usize(..codes.len())] {
            // An informational code cannot end a response.
            code if code.is_informational() => bad("not a final status code"),
            code => reply::text(code, Bytes::new()),
        },
        _ => bad("status code expected"),
    }
}

fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.trim_end_matches('s').parse().ok()?;
    (0.0..=MAX_DELAY).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}

async fn delay(call: &Call, rest: &str) -> Reply {
    let Some(delay) = seconds(rest) else { return bad("seconds expected, at most 60") };
    tokio::time::sleep(delay).await;
    reply::json(StatusCode::OK, &call.echo())
}

fn bytes(rest: &str) -> Reply {
    match rest.parse::<usize>() {
        Ok(count) if count <= MAX_BYTES => {
            let mut body = vec![0; count];
            fastrand::fill(&mut body);
            reply::with_type(StatusCode::OK, "application/octet-stream", body)
        }
        _ => bad("number of bytes expected, at most 16 MiB"),
    }
}

/// Lines of JSON, one after the other without pause.
fn stream(call: &Call, rest: &str) -> Reply {
    let Ok(lines) = rest.parse::<u32>().map(|n| n.min(MAX_LINES)) else {
        return bad("number of lines expected");
    };
    let mut line = call.echo();
    let mut body = String::new();
    for id in 0..lines {
        line["id"] = id.into();
        body.push_str(&line.to_string());
        body.push('\n');
    }
    reply::with_type(StatusCode::OK, "application/json", body)
}

/// `numbytes` bytes spread over `duration` seconds, after `delay`.
fn drip(call: &Call) -> Reply {
    let arg = |name: &str| pairs(&call.uri).find(|(key, _)| *key == name).map(|(_, value)| value);
    let count: u32 = arg("numbytes").and_then(|n| n.parse().ok()).unwrap_or(10).clamp(1, 10_000);
    let span = arg("duration").and_then(seconds).unwrap_or(Duration::from_secs(2));
    let first = arg("delay").and_then(seconds).unwrap_or_default();
    let code = arg("code").and_then(|c| c.parse().ok()).unwrap_or(StatusCode::OK);
    let pause = span / count;
    let frames = asterisks(count, first, pause);
    let mut reply = reply::with_type(code, "application/octet-stream", Bytes::new());
    *reply.body_mut() = StreamBody::new(frames).boxed_unsync();
    reply
}

type Frame = Result<http_body::Frame<Bytes>, Infallible>;

fn asterisks(
    count: u32,
    first: Duration,
    pause: Duration,
) -> impl futures_util::Stream<Item = Frame> + Send {
    futures_util::stream::unfold(0, move |sent| async move {
        if sent == count {
            return None;
        }
        tokio::time::sleep(if sent == 0 { first } else { pause }).await;
        Some((Ok(http_body::Frame::data(Bytes::from_static(b"*"))), sent + 1))
    })
}

fn redirect(rest: &str) -> Reply {
    let target = match rest.parse::<u32>() {
        Ok(1) => "/get".to_owned(),
        Ok(times @ 2..=100) => format!("/redirect/{}", times - 1),
        _ => return bad("number of redirects expected, 1 to 100"),
    };
    let mut reply = reply::text(StatusCode::FOUND, Bytes::new());
    let target = HeaderValue::from_str(&target).expect("digits and slashes fit a header");
    reply.headers_mut().insert(header::LOCATION, target);
    reply
}

fn response_headers(call: &Call) -> Reply {
    let mut reply = reply::json(StatusCode::OK, &args(&call.uri));
    for (name, value) in pairs(&call.uri) {
        let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>())
        else {
            return bad("name or value cannot stand in a header");
        };
        // The server frames the body itself.
        if name != header::CONTENT_LENGTH && name != header::TRANSFER_ENCODING {
            reply.headers_mut().append(name, value);
        }
    }
    reply
}

fn base64(rest: &str) -> Reply {
    match STANDARD.decode(rest).or_else(|_| URL_SAFE.decode(rest)) {
        Ok(body) => reply::text(StatusCode::OK, body),
        Err(_) => bad("not base64"),
    }
}

fn cookies(call: &Call) -> Value {
    let line = text(call.headers.get(header::COOKIE));
    line.split(';')
        .filter_map(|pair| pair.trim().split_once('='))
        .map(|(name, value)| (name.to_owned(), Value::from(value)))
        .collect::<Map<_, _>>()
        .into()
}

fn basic_auth(call: &Call, rest: &str) -> Reply {
    let Some((user, password)) = rest.split_once('/') else { return bad("user/password expected") };
    let want = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    if text(call.headers.get(header::AUTHORIZATION)) == want {
        return reply::json(StatusCode::OK, &json!({ "authorized": true, "user": user }));
    }
    let mut reply = reply::text(StatusCode::UNAUTHORIZED, Bytes::new());
    let realm = HeaderValue::from_static("Basic realm=\"httpbin\"");
    reply.headers_mut().insert(header::WWW_AUTHENTICATE, realm);
    reply
}

fn bearer(call: &Call) -> Reply {
    match text(call.headers.get(header::AUTHORIZATION)).strip_prefix("Bearer ") {
        Some(token) => {
            reply::json(StatusCode::OK, &json!({ "authenticated": true, "token": token }))
        }
        None => reply::text(StatusCode::UNAUTHORIZED, Bytes::new()),
    }
}

/// A random version-4 UUID.
fn uuid() -> String {
    let n = (fastrand::u128(..) & !(0xf << 76) & !(0b11 << 62)) | (0x4 << 76) | (0b10 << 62);
    let hex = format!("{n:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    async fn call(method: &str, path: &str, headers: &[(&str, &str)]) -> (StatusCode, String) {
        let mut request = Request::builder().method(method).uri(path).header("host", "bin");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from_static(b"{}"))).expect("request");
        let reply = handle(([10, 0, 0, 1], 5000).into(), request).await;
        let status = reply.status();
        let body = reply.into_body().collect().await.expect("body").to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[track_caller]
    fn check((status, body): (StatusCode, String), want: u16, text: &str) {
        assert_eq!(status, want, "{body}");
        assert!(body.contains(text), "{text:?} is not in {body}");
    }

    #[tokio::test]
    async fn requests_are_echoed() {
        check(call("GET", "/get?a=1", &[("x-one", "2")]).await, 200, "\"X-One\":[\"2\"]");
        check(call("GET", "/get?a=1", &[]).await, 200, "\"args\":{\"a\":\"1\"}");
        check(call("POST", "/post", &[]).await, 200, "\"data\":\"{}\"");
        check(call("GET", "/ip", &[]).await, 200, "10.0.0.1");
        check(call("GET", "/post", &[]).await, 405, "wrong method");
    }

    #[tokio::test]
    async fn responses_are_made_to_order() {
        check(call("GET", "/status/503", &[]).await, 503, "");
        check(call("GET", "/status/x", &[]).await, 400, "");
        check(call("GET", "/status/100", &[]).await, 400, "");
        check(call("GET", "/base64/aGVsbG8=", &[]).await, 200, "hello");
        check(call("GET", "/redirect/2", &[]).await, 302, "");
        check(call("GET", "/bytes/99999999999", &[]).await, 400, "");
        check(call("GET", "/drip?numbytes=3&duration=0", &[]).await, 200, "***");
        check(call("GET", "/no-such", &[]).await, 404, "");
    }

    #[tokio::test]
    async fn credentials_are_compared() {
        let good = [("authorization", "Basic YTpi")];
        check(call("GET", "/basic-auth/a/b", &good).await, 200, "authorized");
        check(call("GET", "/basic-auth/a/c", &good).await, 401, "");
    }

    #[test]
    fn a_uuid_has_version_and_variant() {
        let id = uuid();
        assert_eq!((id.len(), &id[14..15]), (36, "4"));
        assert!("89ab".contains(&id[19..20]), "{id}");
    }
}
