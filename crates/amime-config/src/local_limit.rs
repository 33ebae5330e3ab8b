//! Rate limits by buckets of this process.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/local_rate_limit_filter>

use std::sync::{Arc, Mutex, PoisonError};

use amime_telemetry::SharedCounter;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3 as common;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::local_ratelimit::v3 as network;
use http::StatusCode;

use super::Compiler;
use amime_rules::Faults;
use amime_rules::headers::HeaderEdits;
use amime_rules::rate_limit::{Descriptor, LimitPolicy, VhostLimits, policies};
use amime_rules::token_bucket::TokenBucket;
use amime_rules::values::{Fraction, bool_or, u32_or};

/// A compiled `LocalRateLimit` of HTTP.
#[derive(Debug)]
pub struct LocalLimit {
    pub status: StatusCode,
    /// `None`: nothing is limited.
    pub buckets: Option<Buckets>,
    pub enabled: Fraction,
    pub enforced: Fraction,
    /// Edits of the answer to who is over the limit.
    pub response_edits: HeaderEdits,
    /// Edits of requests over the limit that pass all the same.
    pub request_edits: HeaderEdits,
    pub policies: Vec<LimitPolicy>,
    pub stage: u32,
    pub vhost: VhostLimits,
    /// Each connection has buckets of its own.
    pub per_connection: bool,
    /// Tell the state of the bucket by `x-ratelimit-*`.
    pub tell: bool,
    pub retry_after: bool,
    pub resource_exhausted: bool,
    pub stats: LimitStats,
}

/// `<stat_prefix>.http_local_rate_limit.*`
#[derive(Debug)]
pub struct LimitStats {
    pub enabled: SharedCounter,
    pub enforced: SharedCounter,
    pub ok: SharedCounter,
    pub rate_limited: SharedCounter,
}

impl LimitStats {
    fn new(prefix: &str, compiler: &Compiler<'_>) -> Self {
        let counter = |name| {
            let dotted = format!("{prefix}.http_local_rate_limit.{name}");
            compiler.telemetry.counter(&dotted, &[("envoy_local_http_ratelimit_prefix", prefix)])
        };
        Self {
            enabled: counter("enabled"),
            enforced: counter("enforced"),
            ok: counter("ok"),
            rate_limited: counter("rate_limited"),
        }
    }
}

/// The buckets that requests take from.
#[derive(Debug)]
pub struct Buckets {
    default: Arc<TokenBucket>,
    always_default: bool,
    /// Slowest first, as the scarcest one decides.
    by_descriptor: Vec<Described>,
    max_dynamic: usize,
}

#[derive(Debug)]
struct Described {
    entries: Vec<(String, String)>,
    bucket: Arc<TokenBucket>,
    shadow: bool,
    /// Buckets by the values of entries that leave theirs open, the last used
    /// first. Only requests that meet such an entry take the lock.
    dynamic: Option<Mutex<Vec<DynamicBucket>>>,
}

type DynamicBucket = (Vec<(String, String)>, Arc<TokenBucket>);

/// What buckets say of a request, and which one said it.
pub struct Taken {
    pub allowed: bool,
    pub bucket: Arc<TokenBucket>,
}

impl LocalLimit {
    pub(crate) fn compile(value: &pb::LocalRateLimit, compiler: &mut Compiler<'_>) -> Option<Self> {
        let stats = LimitStats::new(&value.stat_prefix, compiler);
        let faults = &mut compiler.faults;
        let cluster_wide = value.local_cluster_rate_limit.is_some();
        faults.ignore_if(cluster_wide, "local_cluster_rate_limit");
        let status = value.status.as_ref().and_then(|status| u16::try_from(status.code).ok());
        let status = status.filter(|code| *code >= 400);
        let edits = |list: &[_], field, faults: &mut Faults| {
            HeaderEdits::compile(list, &[], [field, ""], faults)
        };
        let fraction = |value: Option<&_>| value.map_or(Fraction::NEVER, Fraction::from_runtime);
        Some(Self {
            status: status
                .and_then(|code| StatusCode::from_u16(code).ok())
                .unwrap_or(StatusCode::TOO_MANY_REQUESTS),
            buckets: match &value.token_bucket {
                Some(_) => Some(Buckets::compile(value, faults)?),
                None => {
                    faults.reject_if(!value.descriptors.is_empty(), "descriptors");
                    None
                }
            },
            enabled: fraction(value.filter_enabled.as_ref()),
            enforced: fraction(value.filter_enforced.as_ref()),
            response_edits: edits(
                &value.response_headers_to_add,
                "response_headers_to_add",
                faults,
            ),
            request_edits: edits(
                &value.request_headers_to_add_when_not_enforced,
                "request_headers_to_add_when_not_enforced",
                faults,
            ),
            policies: policies(&value.rate_limits, "rate_limits", faults),
            stage: value.stage,
            vhost: match value.vh_rate_limits() {
                common::VhRateLimitsOptions::Override => VhostLimits::Fallback,
                common::VhRateLimitsOptions::Include => VhostLimits::Include,
                common::VhRateLimitsOptions::Ignore => VhostLimits::Ignore,
            },
            per_connection: value.local_rate_limit_per_downstream_connection,
            tell: value.enable_x_ratelimit_headers()
                == common::XRateLimitHeadersRfcVersion::DraftVersion03,
            retry_after: value.enable_retry_after_header,
            resource_exhausted: value.rate_limited_as_resource_exhausted,
            stats,
        })
    }
}

impl Buckets {
    fn compile(value: &pb::LocalRateLimit, faults: &mut Faults) -> Option<Self> {
        let default = value.token_bucket.as_ref()?;
        let default =
            faults.within("token_bucket", |faults| TokenBucket::compile(default, faults))?;
        let mut by_descriptor = Vec::with_capacity(value.descriptors.len());
        for (index, descriptor) in value.descriptors.iter().enumerate() {
            let compile = |faults: &mut Faults| Described::compile(descriptor, faults);
            by_descriptor.push(faults.within(format!("descriptors[{index}]"), compile)?);
        }
        by_descriptor.sort_by(|a, b| a.bucket.rate().total_cmp(&b.bucket.rate()));
        Some(Self {
            default: Arc::new(default),
            always_default: bool_or(value.always_consume_default_token_bucket.as_ref(), true),
            by_descriptor,
            max_dynamic: u32_or(value.max_dynamic_descriptors.as_ref(), 20).max(1) as usize,
        })
    }

    /// Full buckets with the same settings.
    pub fn fresh(&self) -> Self {
        Self {
            default: Arc::new(self.default.fresh()),
            always_default: self.always_default,
            by_descriptor: self.by_descriptor.iter().map(Described::fresh).collect(),
            max_dynamic: self.max_dynamic,
        }
    }

    /// Takes what a request with these descriptors needs.
    pub fn take(&self, descriptors: &[Descriptor], now: f64) -> Taken {
        let mut first = None;
        for described in &self.by_descriptor {
            let Some(descriptor) = descriptors.iter().find(|it| described.matches(&it.entries))
            else {
                continue;
            };
            let bucket = described.bucket(&descriptor.entries, self.max_dynamic);
            let hits = u32::try_from(descriptor.hits.unwrap_or(1)).unwrap_or(u32::MAX);
            if !bucket.take(hits, now) && !described.shadow {
                return Taken { allowed: false, bucket };
            }
            first.get_or_insert(bucket);
        }
        if first.is_some() && !self.always_default {
            return Taken { allowed: true, bucket: first.unwrap_or_else(|| self.default.clone()) };
        }
        let allowed = self.default.take(1, now);
        let bucket = first.filter(|_| allowed).unwrap_or_else(|| self.default.clone());
        Taken { allowed, bucket }
    }
}

impl Described {
    fn compile(value: &common::LocalRateLimitDescriptor, faults: &mut Faults) -> Option<Self> {
        let Some(bucket) = value.token_bucket.as_ref() else {
            faults.reject("token_bucket", "missing");
            return None;
        };
        let bucket =
            faults.within("token_bucket", |faults| TokenBucket::compile(bucket, faults))?;
        let entry =
            |entry: &common::rate_limit_descriptor::Entry| (entry.key.clone(), entry.value.clone());
        let entries: Vec<_> = value.entries.iter().map(entry).collect();
        let open = entries.iter().any(|(_, value)| value.is_empty());
        Some(Self {
            entries,
            bucket: Arc::new(bucket),
            shadow: value.shadow_mode,
            dynamic: open.then(Mutex::default),
        })
    }

    fn fresh(&self) -> Self {
        Self {
            entries: self.entries.clone(),
            bucket: Arc::new(self.bucket.fresh()),
            shadow: self.shadow,
            dynamic: self.dynamic.as_ref().map(|_| Mutex::default()),
        }
    }

    fn matches(&self, entries: &[(String, String)]) -> bool {
        self.entries.len() == entries.len()
            && self
                .entries
                .iter()
                .zip(entries)
                .all(|(want, have)| want.0 == have.0 && (want.1.is_empty() || want.1 == have.1))
    }

    fn bucket(&self, entries: &[(String, String)], max: usize) -> Arc<TokenBucket> {
        let Some(dynamic) = &self.dynamic else { return self.bucket.clone() };
        let mut dynamic = dynamic.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match dynamic.iter().position(|(have, _)| *have == *entries) {
            Some(at) => dynamic.remove(at),
            None => (entries.to_vec(), Arc::new(self.bucket.fresh())),
        };
        let bucket = found.1.clone();
        dynamic.insert(0, found);
        dynamic.truncate(max);
        bucket
    }
}

/// A limit of new connections.
#[derive(Debug)]
pub struct ConnectionLimit {
    bucket: TokenBucket,
    enabled: Fraction,
    rate_limited: SharedCounter,
}

impl ConnectionLimit {
    pub(crate) fn compile(
        value: &network::LocalRateLimit,
        compiler: &mut Compiler<'_>,
    ) -> Option<Self> {
        let prefix = &value.stat_prefix;
        let rate_limited = compiler.telemetry.counter(
            &format!("local_rate_limit.{prefix}.rate_limited"),
            &[("envoy_local_network_ratelimit_prefix", prefix)],
        );
        let faults = &mut compiler.faults;
        faults.ignore_if(!value.share_key.is_empty(), "share_key");
        let Some(bucket) = value.token_bucket.as_ref() else {
            faults.reject("token_bucket", "missing");
            return None;
        };
        let enabled = value.runtime_enabled.as_ref();
        let enabled = enabled.and_then(|flag| flag.default_value.as_ref());
        Some(Self {
            bucket: faults.within("token_bucket", |faults| TokenBucket::compile(bucket, faults))?,
            enabled: match bool_or(enabled, true) {
                true => Fraction::ALWAYS,
                false => Fraction::NEVER,
            },
            rate_limited,
        })
    }

    /// True if one more connection may be served.
    pub fn admits(&self, now: f64) -> bool {
        let admitted = !self.enabled.draw() || self.bucket.take(1, now);
        if !admitted {
            self.rate_limited.inc();
        }
        admitted
    }
}
