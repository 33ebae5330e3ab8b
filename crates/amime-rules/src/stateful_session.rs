//! Stateful sessions: the endpoint that a client stays with, told to it in a
//! cookie or a header.
//!
//! Values are Envoy's, so that sessions survive a change of the proxy.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/stateful_session_filter>

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3 as pb;
use envoy_types::pb::envoy::extensions::http::stateful_session::{
    cookie::v3::CookieBasedSessionState, header::v3::HeaderBasedSessionState,
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use prost::Message;

use super::faults::Faults;
use super::hash_policy::set_cookie_tail;
use super::head::RequestHead;
use super::route_match::cookie;
use super::values::{is, type_name, unpack};

/// A compiled `StatefulSession`.
#[derive(Debug)]
pub struct StatefulSession {
    state: State,
    /// Fail rather than go elsewhere when the endpoint is gone.
    pub strict: bool,
    /// What a strict session without its endpoint gets.
    pub missing_status: StatusCode,
}

#[derive(Debug)]
enum State {
    Cookie {
        name: String,
        path: String,
        ttl_seconds: u64,
        /// The part of `Set-Cookie` after the value.
        tail: String,
    },
    Header(HeaderName),
}

/// What a request says of its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing: the session begins here.
    Any,
    /// The endpoint at this address, if that is one.
    Endpoint(Option<SocketAddr>),
}

/// A cookie's value, before it is encoded.
#[derive(Clone, PartialEq, Message)]
struct CookieValue {
    #[prost(string, tag = "1")]
    address: String,
    /// Seconds of the epoch; 0: never.
    #[prost(int64, tag = "2")]
    expires: i64,
}

impl StatefulSession {
    /// `None` if it keeps no state, or cannot be used.
    pub fn compile(value: &pb::StatefulSession, faults: &mut Faults) -> Option<Self> {
        faults.ignore_if(!value.stat_prefix.is_empty(), "stat_prefix");
        let any = value.session_state.as_ref()?.typed_config.as_ref();
        let state = faults.within("session_state", |faults| match any {
            Some(any) if is::<CookieBasedSessionState>(any) => {
                State::of_cookie(&unpack(any, faults)?, faults)
            }
            Some(any) if is::<HeaderBasedSessionState>(any) => {
                let config: HeaderBasedSessionState = unpack(any, faults)?;
                let name = config.name.parse();
                name.map_err(|_| faults.reject("name", "not a header name")).ok().map(State::Header)
            }
            Some(any) => {
                let name = type_name(any);
                faults.reject("typed_config", format!("{name} is not supported"));
                None
            }
            None => {
                faults.reject("typed_config", "missing");
                None
            }
        });
        let code = match value.status_on_strict_destination_not_found {
            0 => 503,
            code => code,
        };
        let status = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
        if status.is_none() {
            faults.reject("status_on_strict_destination_not_found", "not a status code");
        }
        Some(Self { state: state?, strict: value.strict, missing_status: status? })
    }

    /// What `head` says of its endpoint; `None` if it takes no part. `now` is
    /// in seconds of the epoch.
    pub fn wanted(&self, head: &RequestHead, now: u64) -> Option<Wanted> {
        let text = match &self.state {
            State::Cookie { name, path, .. } => {
                if !path_matches(head.path.as_str(), path) {
                    return None;
                }
                cookie(head, name).map(decoded).map(|value| of_cookie_value(value, now))
            }
            State::Header(name) => {
                head.headers.get(name).map(|value| decoded_bytes(value.as_bytes())).map(text)
            }
        };
        Some(match text {
            Some(Some(address)) => Wanted::Endpoint(address.parse().ok()),
            _ => Wanted::Any,
        })
    }

    /// The response header that tells of `endpoint`. `now` is in seconds of
    /// the epoch.
    pub fn tell(&self, endpoint: SocketAddr, now: u64) -> Option<(HeaderName, HeaderValue)> {
        match &self.state {
            State::Header(name) => {
                let value = STANDARD.encode(endpoint.to_string());
                Some((name.clone(), HeaderValue::from_str(&value).ok()?))
            }
            State::Cookie { name, ttl_seconds, tail, .. } => {
                let expires = match ttl_seconds {
                    0 => 0,
                    ttl => i64::try_from(now.saturating_add(*ttl)).unwrap_or(i64::MAX),
                };
                let value = CookieValue { address: endpoint.to_string(), expires };
                let value = STANDARD.encode(value.encode_to_vec());
                let text = format!("{name}=\"{value}\"{tail}");
                Some((header::SET_COOKIE, HeaderValue::from_str(&text).ok()?))
            }
        }
    }
}

impl State {
    fn of_cookie(value: &CookieBasedSessionState, faults: &mut Faults) -> Option<Self> {
        let Some(cookie) = value.cookie.as_ref().filter(|cookie| !cookie.name.is_empty()) else {
            faults.reject("cookie.name", "missing");
            return None;
        };
        let ttl_seconds = cookie.ttl.as_ref().map_or(0, |ttl| ttl.seconds.max(0).unsigned_abs());
        let attributes = cookie.attributes.iter();
        let pairs = attributes.map(|attribute| (&*attribute.name, &*attribute.value));
        Some(Self::Cookie {
            name: cookie.name.clone(),
            path: cookie.path.clone(),
            ttl_seconds,
            tail: set_cookie_tail(ttl_seconds, &cookie.path, pairs),
        })
    }
}

/// A cookie of `/foo` is sent to `/foo` and below, not to `/foobar`.
fn path_matches(path: &str, of_cookie: &str) -> bool {
    let Some(rest) = path.strip_prefix(of_cookie) else { return false };
    of_cookie.ends_with('/')
        || of_cookie.is_empty()
        || rest.is_empty()
        || rest.starts_with(['/', '?', '#'])
}

fn decoded(value: &str) -> Vec<u8> {
    decoded_bytes(value.as_bytes())
}

/// Empty if it is no base64.
fn decoded_bytes(value: &[u8]) -> Vec<u8> {
    STANDARD.decode(value).unwrap_or_default()
}

fn text(bytes: Vec<u8>) -> Option<String> {
    String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
}

/// The address of a decoded cookie that has not expired. Older proxies wrote
/// the bare address.
fn of_cookie_value(bytes: Vec<u8>, now: u64) -> Option<String> {
    match CookieValue::decode(bytes.as_slice()) {
        Ok(value) => {
            let expired =
                value.expires != 0 && i64::try_from(now).is_ok_and(|now| now > value.expires);
            Some(value.address).filter(|address| !expired && !address.is_empty())
        }
        Err(_) => text(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(path: &str, ttl_seconds: u64) -> StatefulSession {
        let tail = set_cookie_tail(ttl_seconds, path, [("SameSite", "Strict")].into_iter());
        let state =
            State::Cookie { name: "sess".to_owned(), path: path.to_owned(), ttl_seconds, tail };
        StatefulSession { state, strict: false, missing_status: StatusCode::SERVICE_UNAVAILABLE }
    }

    fn head(path: &str, cookie: &str) -> RequestHead {
        let mut head = RequestHead {
            method: http::Method::GET,
            path: path.parse().expect("a path"),
            headers: http::HeaderMap::new(),
            version: http::Version::HTTP_11,
            scheme: crate::head::Scheme::Http,
        };
        head.headers.insert(header::COOKIE, cookie.parse().expect("a value"));
        head
    }

    #[track_caller]
    fn check(path: &str, cookie: &str, want: Option<Wanted>) {
        assert_eq!(session("/p", 120).wanted(&head(path, cookie), 1000), want, "{path} {cookie}");
    }

    const HERE: &str = "127.0.0.1:18182";

    #[test]
    fn cookies_are_those_of_envoy() {
        let (name, value) =
            session("/p", 120).tell(HERE.parse().expect("it"), 1_795_255_130).expect("a header");
        assert_eq!(name, header::SET_COOKIE);
        assert_eq!(
            value,
            "sess=\"Cg8xMjcuMC4wLjE6MTgxODIQ0teF2AY=\"; Max-Age=120; Path=/p; SameSite=Strict; HttpOnly"
        );
        let (_, value) = session("", 0).tell(HERE.parse().expect("it"), 7).expect("a header");
        assert_eq!(value, "sess=\"Cg8xMjcuMC4wLjE6MTgxODI=\"; SameSite=Strict; HttpOnly");
    }

    #[test]
    fn a_cookie_names_its_endpoint_until_it_expires() {
        let here = Some(Wanted::Endpoint(HERE.parse().ok()));
        check("/p", "sess=Cg8xMjcuMC4wLjE6MTgxODI=", here);
        check("/p", "a=b; sess=\"Cg8xMjcuMC4wLjE6MTgxODIQ0teF2AY=\"", here);
        check("/p", "sess=MTI3LjAuMC4xOjE4MTgy", here);
        check("/p", "sess=Cg8xMjcuMC4wLjE6MTgxODIQAQ==", Some(Wanted::Any));
        check("/p", "sess=%%%", Some(Wanted::Any));
        check("/p", "sess=aGVsbG8=", Some(Wanted::Endpoint(None)));
        check("/p", "other=1", Some(Wanted::Any));
    }

    #[test]
    fn a_cookies_path_decides_which_requests_take_part() {
        for path in ["/p", "/p/x", "/p?a"] {
            check(path, "a=b", Some(Wanted::Any));
        }
        for path in ["/", "/q", "/px"] {
            check(path, "a=b", None);
        }
    }
}
