//! Consistent hashing of requests, and the choice of an endpoint with it.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use http::HeaderValue;
use xxhash_rust::xxh64::xxh64;

use super::exchange::Exchange;
use super::forward::Plan;
use crate::upstream::{ClusterRuntime, Host, LbInput};
use amime_config::cluster::Discovery;
use amime_config::matcher::{joined, query_value};
use amime_config::route_action::{HashPolicy, HashSource};
use amime_config::route_match::cookie;

/// A request's hash, and the cookie to set so that it stays.
#[derive(Default)]
pub(super) struct Hash {
    pub(super) value: Option<u64>,
    pub(super) cookie: Option<HeaderValue>,
}

/// Combines the policies as Envoy does.
pub(super) fn of(policies: &[HashPolicy], exchange: &Rc<Exchange>, remote: IpAddr) -> Hash {
    let mut hash = Hash::default();
    for policy in policies {
        let part = part(&policy.source, exchange, remote, &mut hash.cookie);
        if let Some(part) = part {
            // Rotated, so that two equal parts do not cancel out.
            hash.value = Some(match hash.value {
                Some(before) => before.rotate_left(1) ^ part,
                None => part,
            });
        }
        if policy.terminal && hash.value.is_some() {
            break;
        }
    }
    hash
}

fn part(
    source: &HashSource,
    exchange: &Rc<Exchange>,
    remote: IpAddr,
    set_cookie: &mut Option<HeaderValue>,
) -> Option<u64> {
    let head = exchange.head.borrow();
    match source {
        HashSource::Header(name) => joined(&head.headers, name).map(|value| xxh64(&value, 0)),
        HashSource::SourceIp => Some(xxh64(remote.to_string().as_bytes(), 0)),
        HashSource::Query(name) => {
            query_value(head.path.query()?, name).map(|value| xxh64(value.as_bytes(), 0))
        }
        HashSource::Cookie { name, ttl, path, attributes } => {
            if let Some(value) = cookie(&head, name) {
                return Some(xxh64(value.as_bytes(), 0));
            }
            let value = format!("{:016x}", fastrand::u64(..));
            let text = cookie_text((name, &value), (*ttl)?, path, attributes);
            *set_cookie = HeaderValue::from_str(&text).ok();
            Some(xxh64(value.as_bytes(), 0))
        }
    }
}

fn cookie_text((name, value): (&str, &str), ttl: Duration, path: &str, attributes: &str) -> String {
    let mut text = format!("{name}=\"{value}\"");
    if !ttl.is_zero() {
        text.push_str(&format!("; Max-Age={}", ttl.as_secs()));
    }
    if !path.is_empty() {
        text.push_str(&format!("; Path={path}"));
    }
    text.push_str(attributes);
    text.push_str("; HttpOnly");
    text
}

/// The endpoint for a request.
pub(super) fn host(
    plan: &Plan<'_>,
    cluster: &Rc<ClusterRuntime>,
    input: LbInput<'_>,
) -> Option<Rc<Host>> {
    if !cluster.is_original_dst() {
        return cluster.choose(input);
    }
    let Discovery::OriginalDst { header, port } = &cluster.config().discovery else { return None };
    let by_header = header.as_ref().and_then(|name| {
        let head = plan.exchange.head.borrow();
        head.headers.get(name)?.to_str().ok()?.parse::<SocketAddr>().ok()
    });
    let downstream = &plan.exchange.connection.downstream;
    let mut address = match by_header {
        Some(address) => address,
        None if downstream.redirected => downstream.local,
        None => return None,
    };
    if let Some(port) = port {
        address.set_port(*port);
    }
    Some(cluster.original_dst(address))
}
