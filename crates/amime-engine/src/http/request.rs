//! What the connection manager does to a request before routing.
//!
//! One pass over the header names finds what has to be touched; a plain
//! request is left almost as it came.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers>

use std::net::IpAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};

use super::error::ProxyError;
use super::path;
use super::serve::HttpConnection;
use super::{client_cert, names};
use amime_config::hcm::{HttpConfig, StripPort, Underscores, UserAgent};
use amime_core::unix::{is_stand_in, port_of};
use amime_rules::head::{RequestHead, Scheme};
use amime_rules::matcher::joined;

/// What one pass over the header names has seen.
#[derive(Default)]
struct Survey {
    hop_by_hop: bool,
    te: bool,
    upgrade: bool,
    forwarded_for: bool,
    forwarded_proto: bool,
    client_cert: bool,
    request_id: bool,
    envoy: bool,
    underscore: bool,
    peer_metadata: bool,
}

/// What was found out about a request on the way.
pub(crate) struct Admitted {
    /// The client's address after `x-forwarded-for`.
    pub(crate) remote: IpAddr,
    pub(crate) upgrade: bool,
    pub(crate) peer_metadata: Option<HeaderValue>,
    /// The client counts as internal.
    pub(crate) internal: bool,
}

/// Checks and edits a request as the connection manager of Envoy does.
pub(crate) fn admit(
    connection: &HttpConnection,
    head: &mut RequestHead,
) -> Result<Admitted, ProxyError> {
    let config = &*connection.config;
    check_version_and_host(config, head)?;
    if head.method.as_str() == "QUERY" && !head.headers.contains_key(header::CONTENT_TYPE) {
        return Err(ProxyError::Refused("query_missing_content_type"));
    }
    let survey = survey(&head.headers);
    if survey.underscore {
        underscores(config, head)?;
    }
    path::normalize(&config.path, head)?;
    host(config, connection.downstream.local.port(), head);
    let connect = head.method == Method::CONNECT;
    let upgrade = connect || survey.upgrade && is_upgrade(head);
    if survey.hop_by_hop {
        remove_hop_by_hop(head, upgrade)?;
        // That client has been told to go on; other expectations are the
        // server's.
        let expect = head.headers.get(header::EXPECT);
        if !config.proxy_100_continue
            && expect.is_some_and(|it| it.as_bytes().eq_ignore_ascii_case(b"100-continue"))
        {
            head.headers.remove(header::EXPECT);
        }
    }
    if survey.te {
        sanitize_te(&mut head.headers);
    }
    let (remote, internal) = remote_address(connection, head, survey.forwarded_for);
    forwarded_proto(connection, head, survey.forwarded_proto);
    if config.append_forwarded_port
        && let Some(port) = port_of(connection.downstream.local)
    {
        let port = HeaderValue::from(port);
        head.headers.entry("x-forwarded-port").or_insert(port);
    }
    if survey.envoy {
        clean_envoy_headers(&mut head.headers, internal, config.remote.use_remote && !internal);
    }
    if internal {
        head.headers.insert(names::X_ENVOY_INTERNAL, HeaderValue::from_static("true"));
    } else if config.remote.use_remote && !is_stand_in(remote) {
        // Behind other proxies each request has a client of its own.
        let address = Bytes::from(remote.to_string());
        if let Ok(value) = HeaderValue::from_maybe_shared(address) {
            head.headers.insert(names::EXTERNAL_ADDRESS, value);
        }
    }
    client_cert::edit(connection, head, survey.client_cert);
    request_id(config, head, survey.request_id, config.remote.use_remote && !internal);
    if let Some(agent) = &config.user_agent {
        tell_agent(&mut head.headers, agent);
    }
    if let Some(via) = &config.via {
        append_via(&mut head.headers, via);
    }
    // For our telemetry, not for the application.
    let peer_metadata = if survey.peer_metadata && config.peer_exchange.from_client {
        head.headers.remove(names::PEER_METADATA_ID);
        head.headers.remove(names::PEER_METADATA)
    } else {
        None
    };
    Ok(Admitted { remote, upgrade, peer_metadata, internal })
}

/// Who we are, which is also who asks if the client does not say.
fn tell_agent(headers: &mut HeaderMap, agent: &UserAgent) {
    headers.insert(names::DOWNSTREAM_CLUSTER, agent.cluster.clone());
    if headers.get(header::USER_AGENT).is_none_or(|value| value.is_empty()) {
        headers.insert(header::USER_AGENT, agent.cluster.clone());
    }
    if let Some(node) = &agent.node {
        headers.insert(names::DOWNSTREAM_NODE, node.clone());
    }
}

/// One field, whatever number there was.
fn append_via(headers: &mut HeaderMap, via: &HeaderValue) {
    let value = match joined(headers, &header::VIA) {
        Some(before) => HeaderValue::from_bytes(&[&before, &b", "[..], via.as_bytes()].concat()),
        None => Ok(via.clone()),
    };
    if let Ok(value) = value {
        headers.insert(header::VIA, value);
    }
}

fn survey(headers: &HeaderMap) -> Survey {
    let mut found = Survey::default();
    for name in headers.keys() {
        let name = name.as_str();
        match name {
            "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "expect" => {
                found.hop_by_hop = true;
            }
            "upgrade" => {
                found.hop_by_hop = true;
                found.upgrade = true;
            }
            "te" => found.te = true,
            "x-forwarded-for" => found.forwarded_for = true,
            "x-forwarded-proto" => found.forwarded_proto = true,
            "x-forwarded-client-cert" => found.client_cert = true,
            "x-request-id" => found.request_id = true,
            "x-envoy-peer-metadata" | "x-envoy-peer-metadata-id" => found.peer_metadata = true,
            _ => {
                found.envoy |= name.starts_with("x-envoy-");
                found.underscore |= name.contains('_');
            }
        }
    }
    found
}

fn check_version_and_host(config: &HttpConfig, head: &mut RequestHead) -> Result<(), ProxyError> {
    if head.version == Version::HTTP_10 || head.version == Version::HTTP_09 {
        if !config.http1.accept_http_10 {
            return Err(ProxyError::Http10);
        }
        if !head.headers.contains_key(header::HOST)
            && let Some(host) = &config.http1.default_host
        {
            head.headers.insert(header::HOST, host.clone());
        }
    }
    match head.headers.get(header::HOST) {
        None => Err(ProxyError::MissingHost),
        Some(_) if several_hosts(&head.headers) => {
            // As one value that no virtual host has by accident.
            let joined = joined(&head.headers, &header::HOST).unwrap_or_default().into_owned();
            let value = HeaderValue::from_bytes(&joined);
            let value = value.map_err(|_| ProxyError::BadRequest("http.invalid_authority"))?;
            head.headers.insert(header::HOST, value);
            Ok(())
        }
        Some(host) if !valid_authority(host.as_bytes()) => {
            Err(ProxyError::BadRequest("http.invalid_authority"))
        }
        Some(_) => Ok(()),
    }
}

fn several_hosts(headers: &HeaderMap) -> bool {
    headers.get_all(header::HOST).iter().nth(1).is_some()
}

/// Characters that an authority may have; spaces, slashes and the like are
/// how requests are smuggled past a virtual host.
fn valid_authority(authority: &[u8]) -> bool {
    authority
        .iter()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@[]%".contains(byte))
}

fn underscores(config: &HttpConfig, head: &mut RequestHead) -> Result<(), ProxyError> {
    match config.underscores {
        Underscores::Allow => Ok(()),
        Underscores::Reject => Err(ProxyError::BadRequest("http1.unexpected_underscore")),
        Underscores::Drop => {
            let bad: Vec<HeaderName> =
                head.headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
            for name in bad {
                head.headers.remove(name);
            }
            Ok(())
        }
    }
}

fn host(config: &HttpConfig, port: u16, head: &mut RequestHead) {
    if config.strip_port == StripPort::No && !config.strip_trailing_dot {
        return;
    }
    let host = head.authority();
    let (mut name, mut with_port) = match host.rsplit_once(':') {
        Some((name, text)) if !name.ends_with(':') && text.parse::<u16>().is_ok() => {
            (name, Some(text))
        }
        _ => (host, None),
    };
    let strip = match config.strip_port {
        StripPort::No => false,
        StripPort::Any => true,
        StripPort::Matching => with_port.and_then(|text| text.parse().ok()) == Some(port),
    };
    if strip {
        with_port = None;
    }
    if config.strip_trailing_dot {
        name = name.strip_suffix('.').unwrap_or(name);
    }
    let new = match with_port {
        Some(port) => format!("{name}:{port}"),
        None => name.to_owned(),
    };
    if new != host
        && let Ok(value) = HeaderValue::from_str(&new)
    {
        head.headers.insert(header::HOST, value);
    }
}

fn is_upgrade(head: &RequestHead) -> bool {
    head.headers
        .get(header::UPGRADE)
        // Upgrading to HTTP/2 in the clear is obsolete; it is ignored.
        .is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"h2c"))
        && head.headers.get(header::CONNECTION).is_some_and(|value| {
            value.to_str().is_ok_and(|text| {
                text.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
            })
        })
}

fn remove_hop_by_hop(head: &mut RequestHead, upgrade: bool) -> Result<(), ProxyError> {
    let headers = &mut head.headers;
    if let Some(connection) = headers.get(header::CONNECTION).cloned() {
        remove_nominated(headers, &connection)?;
    }
    if !upgrade {
        headers.remove(header::CONNECTION);
        headers.remove(header::UPGRADE);
    }
    headers.remove(names::KEEP_ALIVE);
    headers.remove(names::PROXY_CONNECTION);
    headers.remove(header::TRANSFER_ENCODING);
    Ok(())
}

/// Removes headers that `connection` names; naming one that routing or
/// policies rely on is an attack.
fn remove_nominated(headers: &mut HeaderMap, connection: &HeaderValue) -> Result<(), ProxyError> {
    let Ok(text) = connection.to_str() else { return Ok(()) };
    for token in text.split(',').map(str::trim) {
        let lower = token.to_ascii_lowercase();
        match lower.as_str() {
            "" | "close" | "keep-alive" | "upgrade" | "te" => {}
            "x-forwarded-for" | "x-forwarded-host" | "x-forwarded-proto" => {
                return Err(ProxyError::BadRequest("http1.connection_header_rejected"));
            }
            "host" => return Err(ProxyError::MissingHost),
            name if name.starts_with(':') => {
                return Err(ProxyError::Refused("http1.connection_header_rejected"));
            }
            name => {
                headers.remove(name);
            }
        }
    }
    Ok(())
}

/// Only `trailers` means anything to the next hop.
pub(super) fn sanitize_te(headers: &mut HeaderMap) {
    let trailers = headers.get_all(header::TE).iter().any(|value| {
        value.to_str().is_ok_and(|text| {
            text.split(',').any(|part| {
                part.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("trailers")
            })
        })
    });
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    } else {
        headers.remove(header::TE);
    }
}

/// The client's address, and whether it is internal.
fn remote_address(
    connection: &HttpConnection,
    head: &mut RequestHead,
    forwarded: bool,
) -> (IpAddr, bool) {
    let remote = &connection.config.remote;
    let direct = connection.downstream.remote.ip();
    let mut client = direct;
    let mut single = true;
    if forwarded {
        let (address, only) = forwarded_for(&head.headers, remote.trusted_hops, remote.use_remote);
        single = only && !remote.use_remote;
        if let Some(address) = address {
            client = address;
        }
    }
    if remote.use_remote && !remote.skip_append && !is_stand_in(direct) {
        append_forwarded_for(&mut head.headers, direct);
    }
    let internal = single && remote.internal.iter().any(|net| net.contains(&client));
    (client, internal)
}

/// The address `hops` from the right of `x-forwarded-for`, and whether the
/// header holds that address alone.
fn forwarded_for(headers: &HeaderMap, hops: u32, use_remote: bool) -> (Option<IpAddr>, bool) {
    let Some(text) = headers.get("x-forwarded-for").and_then(|value| value.to_str().ok()) else {
        return (None, false);
    };
    // With the remote address in use, that one is hop zero.
    let skip = match (use_remote, hops) {
        (true, 0) => return (None, false),
        (true, hops) => hops - 1,
        (false, hops) => hops,
    };
    let mut parts = text.rsplit(',').map(str::trim);
    let address = parts.nth(skip as usize).and_then(|part| part.parse().ok());
    (address, !text.contains(','))
}

pub(super) fn append_forwarded_for(headers: &mut HeaderMap, address: IpAddr) {
    let value = match headers.get("x-forwarded-for").and_then(|value| value.to_str().ok()) {
        Some(before) if !before.is_empty() => format!("{before},{address}"),
        _ => address.to_string(),
    };
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(value)) {
        headers.insert(names::X_FORWARDED_FOR, value);
    }
}

fn forwarded_proto(connection: &HttpConnection, head: &mut RequestHead, present: bool) {
    let tls = connection.downstream.tls.is_some();
    let trusted = connection.config.remote.use_remote && connection.config.remote.trusted_hops == 0;
    if !present || trusted {
        let scheme = if tls { "https" } else { "http" };
        head.headers.insert(names::X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
    if let Some(scheme) = connection.config.scheme {
        head.scheme = scheme;
        let value = HeaderValue::from_static(scheme.as_str());
        head.headers.insert(names::X_FORWARDED_PROTO, value);
    } else if let Some(proto) = head.headers.get(names::X_FORWARDED_PROTO) {
        head.scheme = if proto == "https" { Scheme::Https } else { Scheme::Http };
    }
}

/// Headers by which trusted clients steer the proxy; others may not.
fn clean_envoy_headers(headers: &mut HeaderMap, internal: bool, edge: bool) {
    if internal {
        return;
    }
    for name in names::INTERNAL_ONLY {
        headers.remove(*name);
    }
    if edge {
        for name in names::EDGE_ONLY {
            headers.remove(*name);
        }
    }
}

fn request_id(config: &HttpConfig, head: &mut RequestHead, present: bool, edge: bool) {
    if !config.request_id.generate {
        return;
    }
    if !present || (edge && !config.request_id.preserve_external) {
        head.headers.insert(names::X_REQUEST_ID, random_uuid());
    }
}

/// A random UUID of version 4.
fn random_uuid() -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut random = fastrand::u128(..).to_be_bytes();
    random[6] = random[6] & 0x0f | 0x40;
    random[8] = random[8] & 0x3f | 0x80;
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (index, byte) in random.into_iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            at += 1;
        }
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    HeaderValue::from_maybe_shared(Bytes::copy_from_slice(&text)).expect("hex digits are a value")
}
