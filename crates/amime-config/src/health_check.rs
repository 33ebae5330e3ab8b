//! Active health checks: what is asked of endpoints, and how often.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/health_checking>

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as pb;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
use envoy_types::pb::envoy::r#type::v3 as kinds;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use pb::health_check::{HealthChecker, Payload, payload};

use amime_rules::Faults;
use amime_rules::values::{self, HostAddress, bool_or, u32_or};

/// A compiled `HealthCheck`.
#[derive(Clone, Debug)]
pub struct HealthCheck {
    pub timeout: Duration,
    pub initial_jitter: Duration,
    pub reuse_connection: bool,
    pub unhealthy_threshold: u32,
    pub healthy_threshold: u32,
    pub probe: Probe,
    interval: Duration,
    jitter: Duration,
    jitter_percent: u32,
    /// Pauses while the cluster has no traffic: unhealthy, healthy.
    no_traffic: [Duration; 2],
    unhealthy: Duration,
    /// Pauses after a change: to unhealthy, to healthy.
    edges: [Duration; 2],
}

/// What is asked.
#[derive(Clone, Debug)]
pub enum Probe {
    Http(HttpProbe),
    /// Bytes to send and to find in the answer; without any, a connection
    /// is enough.
    Tcp {
        send: Vec<u8>,
        receive: Vec<Vec<u8>>,
    },
    Grpc {
        service: String,
        authority: String,
        metadata: HeaderMap,
    },
}

/// A request and the answers that are good.
#[derive(Clone, Debug)]
pub struct HttpProbe {
    pub method: Method,
    pub path: String,
    /// Empty: the endpoint's name or the cluster's.
    pub host: String,
    pub headers: HeaderMap,
    pub remove: Vec<HeaderName>,
    pub http2: bool,
    expected: Vec<Range<u16>>,
    retriable: Vec<Range<u16>>,
}

/// What fits the bits in which failed checks are kept.
const MAX_CHECKS: usize = 64;

/// How an endpoint is checked differently from others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckedAs {
    pub disabled: bool,
    pub port: Option<u16>,
    pub address: Option<SocketAddr>,
    pub hostname: String,
}

impl HealthCheck {
    /// The checks of a cluster, all of which its endpoints have to pass.
    pub(crate) fn compile(list: &[pb::HealthCheck], faults: &mut Faults) -> Vec<Self> {
        if list.len() > MAX_CHECKS {
            faults.reject("health_checks", format!("more than {MAX_CHECKS}"));
            return Vec::new();
        }
        let check = |(index, value)| {
            faults.within(format!("health_checks[{index}]"), |faults| Self::one(value, faults))
        };
        list.iter().enumerate().filter_map(check).collect()
    }

    fn one(value: &pb::HealthCheck, faults: &mut Faults) -> Option<Self> {
        faults.ignore_if(!value.event_logger.is_empty(), "event_logger");
        faults.ignore_if(!value.event_log_path.is_empty(), "event_log_path");
        faults.ignore_if(value.event_service.is_some(), "event_service");
        faults.ignore_if(value.tls_options.is_some(), "tls_options");
        let criteria = value.transport_socket_match_criteria.is_some();
        faults.ignore_if(criteria, "transport_socket_match_criteria");
        let mut needed = |value: Option<&_>, field: &str| {
            let time = value.map(values::duration).filter(|time| !time.is_zero());
            if time.is_none() {
                faults.reject(field, "missing or zero");
            }
            time
        };
        let timeout = needed(value.timeout.as_ref(), "timeout");
        let interval = needed(value.interval.as_ref(), "interval");
        let mut threshold = |value: Option<&_>, field: &str| match u32_or(value, 0) {
            0 => {
                faults.reject(field, "missing or zero");
                None
            }
            count => Some(count),
        };
        let unhealthy_threshold =
            threshold(value.unhealthy_threshold.as_ref(), "unhealthy_threshold");
        let healthy_threshold = threshold(value.healthy_threshold.as_ref(), "healthy_threshold");
        let probe = Probe::compile(value.health_checker.as_ref(), faults)?;
        let interval = interval?;
        let time = |value: Option<&_>, default| value.map_or(default, values::duration);
        let unhealthy = time(value.unhealthy_interval.as_ref(), interval);
        let no_traffic = time(value.no_traffic_interval.as_ref(), Duration::from_secs(60));
        Some(Self {
            timeout: timeout?,
            initial_jitter: time(value.initial_jitter.as_ref(), Duration::ZERO),
            reuse_connection: bool_or(value.reuse_connection.as_ref(), true),
            unhealthy_threshold: unhealthy_threshold?,
            healthy_threshold: healthy_threshold?,
            probe,
            interval,
            jitter: time(value.interval_jitter.as_ref(), Duration::ZERO),
            jitter_percent: value.interval_jitter_percent,
            no_traffic: [no_traffic, time(value.no_traffic_healthy_interval.as_ref(), no_traffic)],
            unhealthy,
            edges: [
                time(value.unhealthy_edge_interval.as_ref(), unhealthy),
                time(value.healthy_edge_interval.as_ref(), interval),
            ],
        })
    }

    /// The pause before the next check.
    pub fn pause(&self, healthy: bool, changed: bool, traffic: bool) -> Duration {
        let base = match (traffic, changed, healthy) {
            (false, ..) => self.no_traffic[usize::from(healthy)],
            (true, true, _) => self.edges[usize::from(healthy)],
            (true, false, true) => self.interval,
            (true, false, false) => self.unhealthy,
        };
        let by_percent = base.mul_f64(f64::from(self.jitter_percent) / 100.0 * fastrand::f64());
        base + by_percent + self.jitter.mul_f64(fastrand::f64())
    }
}

impl Probe {
    fn compile(value: Option<&HealthChecker>, faults: &mut Faults) -> Option<Self> {
        match value {
            Some(HealthChecker::HttpHealthCheck(http)) => faults
                .within("http_health_check", |faults| HttpProbe::compile(http, faults))
                .map(Self::Http),
            Some(HealthChecker::TcpHealthCheck(tcp)) => {
                faults.within("tcp_health_check", |faults| {
                    faults.ignore_if(tcp.proxy_protocol_config.is_some(), "proxy_protocol_config");
                    let send = tcp.send.as_ref().map(|send| bytes(send, "send", faults));
                    let receive =
                        tcp.receive.iter().map(|one| bytes(one, "receive", faults)).collect();
                    Some(Self::Tcp { send: send.unwrap_or_default(), receive })
                })
            }
            Some(HealthChecker::GrpcHealthCheck(grpc)) => Some(Self::Grpc {
                service: grpc.service_name.clone(),
                authority: grpc.authority.clone(),
                metadata: headers(
                    &grpc.initial_metadata,
                    "grpc_health_check.initial_metadata",
                    faults,
                ),
            }),
            Some(HealthChecker::CustomHealthCheck(custom)) => {
                faults.reject("custom_health_check", format!("`{}` is not supported", custom.name));
                None
            }
            None => {
                faults.reject("health_checker", "missing");
                None
            }
        }
    }
}

impl HttpProbe {
    fn compile(value: &pb::health_check::HttpHealthCheck, faults: &mut Faults) -> Option<Self> {
        faults.ignore_if(value.send.is_some(), "send");
        faults.ignore_if(!value.receive.is_empty(), "receive");
        faults.ignore_if(value.service_name_matcher.is_some(), "service_name_matcher");
        if value.path.is_empty() {
            faults.reject("path", "missing");
            return None;
        }
        let method = match pb::RequestMethod::try_from(value.method) {
            Ok(pb::RequestMethod::MethodUnspecified) | Err(_) => Method::GET,
            Ok(pb::RequestMethod::Connect) => {
                faults.reject("method", "CONNECT is no check");
                return None;
            }
            Ok(method) => method.as_str_name().parse().unwrap_or(Method::GET),
        };
        let removed = value.request_headers_to_remove.iter();
        Some(Self {
            method,
            path: value.path.clone(),
            host: value.host.clone(),
            headers: headers(&value.request_headers_to_add, "request_headers_to_add", faults),
            remove: removed.filter_map(|name| name.parse().ok()).collect(),
            http2: value.codec_client_type == kinds::CodecClientType::Http2 as i32,
            expected: statuses(&value.expected_statuses, "expected_statuses", faults),
            retriable: statuses(&value.retriable_statuses, "retriable_statuses", faults),
        })
    }

    pub fn expects(&self, status: u16) -> bool {
        self.expected.is_empty() && status == 200
            || self.expected.iter().any(|range| range.contains(&status))
    }

    /// True for a status that must come several times to count as a failure.
    pub fn may_retry(&self, status: u16) -> bool {
        self.retriable.iter().any(|range| range.contains(&status))
    }
}

impl CheckedAs {
    pub(crate) fn compile(
        value: &endpoint::endpoint::HealthCheckConfig,
        faults: &mut Faults,
    ) -> Self {
        let address = value.address.as_ref().and_then(|address| {
            match values::address(Some(address), faults)? {
                HostAddress::Ip(address) | HostAddress::Pipe(address) => Some(address),
                HostAddress::Name(..) => {
                    faults.reject("endpoint.health_check_config.address", "not an IP address");
                    None
                }
            }
        });
        Self {
            disabled: value.disable_active_health_check,
            port: u16::try_from(value.port_value).ok().filter(|port| *port > 0),
            address,
            hostname: value.hostname.clone(),
        }
    }
}

fn statuses(list: &[kinds::Int64Range], field: &str, faults: &mut Faults) -> Vec<Range<u16>> {
    let mut ranges = Vec::with_capacity(list.len());
    for range in list {
        match (u16::try_from(range.start), u16::try_from(range.end)) {
            (Ok(start), Ok(end)) if start < end && start >= 100 && end <= 600 => {
                ranges.push(start..end);
            }
            _ => faults.reject(field, "not a range within 100 to 600"),
        }
    }
    ranges
}

fn headers(list: &[pb::HeaderValueOption], field: &str, faults: &mut Faults) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for option in list {
        let Some(header) = &option.header else { continue };
        let name = header.key.parse::<HeaderName>();
        let value = HeaderValue::from_str(&header.value);
        match (name, value) {
            (Ok(name), Ok(value)) if !header.value.contains('%') => {
                headers.append(name, value);
            }
            _ => faults.reject(field, format!("`{}` is not a fixed header", header.key)),
        }
    }
    headers
}

fn bytes(value: &Payload, field: &str, faults: &mut Faults) -> Vec<u8> {
    match &value.payload {
        Some(payload::Payload::Binary(bytes)) => bytes.clone(),
        Some(payload::Payload::Text(text)) => {
            let digits = |at: usize| text.get(at..at + 2).map(|two| u8::from_str_radix(two, 16));
            let decoded: Option<Result<Vec<u8>, _>> =
                (0..text.len()).step_by(2).map(digits).collect::<Option<_>>();
            match decoded {
                Some(Ok(bytes)) => bytes,
                _ => {
                    faults.reject(field, "not hexadecimal");
                    Vec::new()
                }
            }
        }
        None => Vec::new(),
    }
}
