//! Headers a service hands on to the services it calls.
//!
//! A mesh can join the spans of one request only if the application passes
//! these on; each family belongs to one tracing system.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Name of the header that says who is logged in.
pub(crate) const END_USER: HeaderName = HeaderName::from_static("end-user");

const FORWARDED: [&str; 20] = [
    "x-request-id",
    // B3, in many headers and in one.
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "b3",
    "x-ot-span-context",
    "x-datadog-trace-id",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    // W3C Trace Context.
    "traceparent",
    "tracestate",
    "x-cloud-trace-context",
    "grpc-trace-bin",
    "sw8",
    // What the request's author is allowed and prefers.
    "user-agent",
    "cookie",
    "authorization",
    "jwt",
];

/// The headers of `incoming` that go on, `end-user` included.
pub(crate) fn headers(incoming: &HeaderMap) -> HeaderMap {
    let mut out = HeaderMap::new();
    for name in FORWARDED.into_iter().map(HeaderName::from_static).chain([END_USER]) {
        if let Some(value) = incoming.get(&name) {
            out.insert(name, value.clone());
        }
    }
    out
}

/// As [`headers`], with `end-user` set from the login cookie when there is one.
pub(crate) fn headers_of_user(incoming: &HeaderMap) -> HeaderMap {
    let mut out = headers(incoming);
    if let Some(user) = logged_in(incoming).and_then(|user| HeaderValue::from_str(&user).ok()) {
        out.insert(END_USER, user);
    }
    out
}

/// User named by the login cookie.
pub(crate) fn logged_in(headers: &HeaderMap) -> Option<String> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().strip_prefix("user="))
        .map(str::to_owned)
        .find(|user| !user.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v)))
            .collect()
    }

    #[test]
    fn trace_headers_go_on_and_others_stay() {
        let out = headers(&map(&[("traceparent", "00-1-2-01"), ("accept", "*/*"), ("b3", "0")]));
        assert_eq!(out, map(&[("traceparent", "00-1-2-01"), ("b3", "0")]));
    }

    #[test]
    fn the_login_cookie_names_the_end_user() {
        let out = headers_of_user(&map(&[("cookie", "a=1; user=jason"), ("end-user", "other")]));
        assert_eq!(out.get(END_USER).expect("set"), "jason");
    }

    #[test]
    fn without_a_login_the_incoming_end_user_stays() {
        let out = headers_of_user(&map(&[("cookie", "user="), ("end-user", "jason")]));
        assert_eq!(out.get(END_USER).expect("set"), "jason");
    }
}
