//! Consistent hashing of requests, and the choice of an endpoint with it.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use http::HeaderValue;
use regex::bytes::Regex;
use smallvec::SmallVec;
use xxhash_rust::xxh64::xxh64;

use super::exchange::Exchange;
use super::forward::Plan;
use crate::upstream::{ClusterRuntime, Host, LbInput};
use amime_config::discovery::Discovery;
use amime_rules::hash_policy::{HashPolicy, HashSource};
use amime_rules::head::RequestHead;
use amime_rules::matcher::{HeaderSource, query_value};
use amime_rules::route_match::cookie;

/// A request's hash, and the cookies to set so that it stays.
#[derive(Default)]
pub(super) struct Hash {
    pub(super) value: Option<u64>,
    pub(super) cookies: SmallVec<[HeaderValue; 1]>,
}

/// The hash of a request to `cluster`, if endpoints are chosen by it.
pub(super) fn of(plan: &Plan<'_>, cluster: &ClusterRuntime) -> Hash {
    let settings = &cluster.config().lb;
    let mut hash = Hash::default();
    if !settings.policy.hashes() {
        return hash;
    }
    let own = !settings.hash.is_empty();
    let policies = if own { &settings.hash } else { &plan.action.hash };
    let mut jar = Some(&mut hash.cookies);
    hash.value = combined(policies, plan.exchange, plan.admitted.remote, &mut jar);
    hash
}

/// The hash by which a route draws one of its clusters. Cookies that are not
/// there yet are no part of it: they are set once the cluster is known.
pub(super) fn of_route(
    exchange: &Exchange,
    policies: &[HashPolicy],
    remote: IpAddr,
) -> Option<u64> {
    combined(policies, exchange, remote, &mut None)
}

/// Where cookies go that are to be set.
type Jar<'a> = Option<&'a mut SmallVec<[HeaderValue; 1]>>;

fn combined(
    policies: &[HashPolicy],
    exchange: &Exchange,
    remote: IpAddr,
    jar: &mut Jar<'_>,
) -> Option<u64> {
    let mut hash: Option<u64> = None;
    for HashPolicy { source, terminal } in policies {
        if let Some(part) = part(source, exchange, remote, jar) {
            // Rotated, so that two equal parts do not cancel out.
            hash = Some(hash.map_or(part, |before| before.rotate_left(1) ^ part));
        }
        if *terminal && hash.is_some() {
            break;
        }
    }
    hash
}

fn part(
    source: &HashSource,
    exchange: &Exchange,
    remote: IpAddr,
    jar: &mut Jar<'_>,
) -> Option<u64> {
    let head = exchange.head.borrow();
    match source {
        HashSource::Header(source, rewrite) => by_header(&head, source, rewrite.as_ref()),
        HashSource::SourceIp => Some(of_address(remote)),
        HashSource::Query(name) => {
            query_value(head.path.query()?, name).map(|value| xxh64(value.as_bytes(), 0))
        }
        HashSource::Cookie { name, ttl, attributes } => {
            if let Some(value) = cookie(&head, name).filter(|value| !value.is_empty()) {
                return Some(xxh64(value.as_bytes(), 0));
            }
            ttl.as_ref()?;
            let jar = jar.as_mut()?;
            // The same for all requests of a connection: those sent before
            // the first answer must not be scattered.
            let downstream = &exchange.connection.downstream;
            let ends = format!("{}{}", downstream.remote, downstream.local);
            let value = format!("{:016x}", xxh64(ends.as_bytes(), 0));
            let text = format!("{name}=\"{value}\"{attributes}");
            jar.extend(HeaderValue::from_str(&text).ok());
            Some(xxh64(value.as_bytes(), 0))
        }
    }
}

/// Several values count in the order of their bytes, not of their arrival.
fn by_header(
    head: &RequestHead,
    source: &HeaderSource,
    rewrite: Option<&(Regex, String)>,
) -> Option<u64> {
    let rewritten = |value: &[u8]| match rewrite {
        None => xxh64(value, 0),
        Some((regex, to)) => xxh64(&regex.replace_all(value, to.as_bytes()), 0),
    };
    let HeaderSource::Header(name) = source else {
        return source.value(head).map(|value| rewritten(&value));
    };
    let mut values = head.headers.get_all(name).iter();
    let first = values.next()?;
    let Some(second) = values.next() else { return Some(rewritten(first.as_bytes())) };
    let all = [first, second].into_iter().chain(values).map(HeaderValue::as_bytes);
    let mut all: Vec<_> = match rewrite {
        None => all.map(std::borrow::Cow::Borrowed).collect(),
        Some((regex, to)) => all.map(|value| regex.replace_all(value, to.as_bytes())).collect(),
    };
    all.sort_unstable();
    Some(all.iter().fold(0, |seed, value| xxh64(value, seed)))
}

/// The hash of a client's address, which is hashed as text.
pub(crate) fn of_address(address: IpAddr) -> u64 {
    let mut text = [0_u8; 48];
    let mut rest = text.as_mut_slice();
    // The longest address has 45 characters.
    let _ = write!(rest, "{address}");
    let free = rest.len();
    xxh64(&text[..text.len() - free], 0)
}

/// The endpoint that a header names, for clusters that heed one. Of several
/// each further attempt takes a later one.
fn named(plan: &Plan<'_>, cluster: &ClusterRuntime, input: LbInput<'_>) -> Option<Rc<Host>> {
    let head = plan.exchange.head.borrow();
    let names = cluster.config().lb.override_headers.iter();
    let lists = names.filter_map(|name| head.headers.get(name)?.to_str().ok());
    let attempt = input.retry.map_or(0, |retry| retry.tried.len());
    let mut left = lists.flat_map(|list| list.split(',')).skip(attempt);
    left.find_map(|address| cluster.session(address.trim().parse().ok()?))
}

/// The endpoint for a request.
pub(super) fn host(
    plan: &Plan<'_>,
    cluster: &Rc<ClusterRuntime>,
    input: LbInput<'_>,
) -> Option<Rc<Host>> {
    if !cluster.is_original_dst() {
        return named(plan, cluster, input).or_else(|| cluster.choose(input));
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
