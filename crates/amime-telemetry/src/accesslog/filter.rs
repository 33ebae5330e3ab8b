//! Access log filters: which requests a logger takes.

use std::time::Duration;

use envoy_types::pb::envoy::config::accesslog::v3::{
    AccessLogFilter, ComparisonFilter, access_log_filter::FilterSpecifier, comparison_filter::Op,
};
use envoy_types::pb::envoy::data::accesslog::v3::AccessLogType;
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};

use super::config::AccessLogError;
use super::format::Subject;
use super::grpc::{from_http, grpc_status};
use super::header_filter::HeaderFilter;
use crate::ResponseFlags;

/// A compiled filter.
#[derive(Debug)]
pub(crate) enum Filter {
    Status(Comparison),
    Duration(Comparison),
    Flags(Vec<ResponseFlags>),
    /// Passes one request in `of` with this chance.
    Sample {
        numerator: u32,
        of: u32,
    },
    NotHealthCheck,
    Header(HeaderFilter),
    /// gRPC requests with one of these codes, or with none of them.
    Grpc {
        codes: Vec<u64>,
        exclude: bool,
    },
    /// Logs of the ends of requests, of connections, or of neither.
    Kind {
        requests: bool,
        connections: bool,
    },
    All(Vec<Filter>),
    Any(Vec<Filter>),
}

/// `value op bound`.
#[derive(Debug)]
pub(crate) struct Comparison {
    op: Op,
    bound: u64,
}

impl Comparison {
    fn compile(filter: Option<&ComparisonFilter>) -> Result<Self, AccessLogError> {
        let filter = filter.ok_or(AccessLogError::Missing { field: "comparison" })?;
        let op = Op::try_from(filter.op)
            .map_err(|_| AccessLogError::Unsupported { what: "comparison operator".into() })?;
        let bound = filter.value.as_ref().map_or(0, |value| u64::from(value.default_value));
        Ok(Self { op, bound })
    }

    fn holds(&self, value: u64) -> bool {
        match self.op {
            Op::Eq => value == self.bound,
            Op::Ge => value >= self.bound,
            Op::Le => value <= self.bound,
            Op::Ne => value != self.bound,
        }
    }
}

impl Filter {
    pub(super) fn compile(filter: &AccessLogFilter) -> Result<Self, AccessLogError> {
        let specifier = filter.filter_specifier.as_ref();
        let specifier = specifier.ok_or(AccessLogError::Missing { field: "filter_specifier" })?;
        let each = |filters: &[AccessLogFilter]| {
            filters.iter().map(Self::compile).collect::<Result<Vec<_>, _>>()
        };
        Ok(match specifier {
            FilterSpecifier::StatusCodeFilter(f) => {
                Self::Status(Comparison::compile(f.comparison.as_ref())?)
            }
            FilterSpecifier::DurationFilter(f) => {
                Self::Duration(Comparison::compile(f.comparison.as_ref())?)
            }
            FilterSpecifier::NotHealthCheckFilter(_) => Self::NotHealthCheck,
            FilterSpecifier::AndFilter(f) => Self::All(each(&f.filters)?),
            FilterSpecifier::OrFilter(f) => Self::Any(each(&f.filters)?),
            FilterSpecifier::RuntimeFilter(f) => sample(f.percent_sampled.as_ref()),
            FilterSpecifier::HeaderFilter(f) => {
                let header = f.header.as_ref();
                let header = header.ok_or(AccessLogError::Missing { field: "header" })?;
                Self::Header(HeaderFilter::compile(header)?)
            }
            FilterSpecifier::GrpcStatusFilter(f) => Self::Grpc {
                codes: f.statuses.iter().filter_map(|code| u64::try_from(*code).ok()).collect(),
                exclude: f.exclude,
            },
            FilterSpecifier::LogTypeFilter(f) => {
                let listed = |kind| f.types.contains(&i32::from(kind)) != f.exclude;
                Self::Kind {
                    requests: listed(AccessLogType::DownstreamEnd),
                    connections: listed(AccessLogType::TcpConnectionEnd),
                }
            }
            FilterSpecifier::ResponseFlagFilter(f) => {
                let mut flags = Vec::with_capacity(f.flags.len());
                for name in &f.flags {
                    let flag = ResponseFlags::from_short_name(name).ok_or_else(|| {
                        AccessLogError::Unsupported { what: format!("response flag {name}") }
                    })?;
                    flags.push(flag);
                }
                Self::Flags(flags)
            }
            other => {
                let what = format!("{other:?}");
                let what = what.split('(').next().unwrap_or_default();
                return Err(AccessLogError::Unsupported { what: format!("filter {what}") });
            }
        })
    }

    pub(super) fn accepts(&self, subject: &Subject<'_>) -> bool {
        match self {
            Self::Status(comparison) => {
                comparison.holds(subject.http.map_or(0, |http| u64::from(http.response_code)))
            }
            Self::Duration(comparison) => comparison.holds(millis(subject.duration)),
            // An empty list means: any flag at all.
            Self::Flags(flags) if flags.is_empty() => !subject.flags.is_empty(),
            Self::Flags(flags) => flags.iter().any(|flag| subject.flags.intersects(*flag)),
            Self::Sample { numerator, of } => fastrand::u32(..*of) < *numerator,
            Self::NotHealthCheck => !subject.http.is_some_and(|http| http.health_check),
            Self::Header(header) => header.holds(subject),
            Self::Grpc { codes, exclude } => {
                // Whatever is no gRPC counts by its HTTP status, as in Envoy.
                let status = grpc_status(subject).unwrap_or_else(|| {
                    from_http(subject.http.map_or(0, |http| http.response_code))
                });
                codes.contains(&status) != *exclude
            }
            Self::Kind { requests, connections } => {
                if subject.http.is_some() {
                    *requests
                } else {
                    *connections
                }
            }
            Self::All(filters) => filters.iter().all(|filter| filter.accepts(subject)),
            Self::Any(filters) => filters.iter().any(|filter| filter.accepts(subject)),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn sample(percent: Option<&FractionalPercent>) -> Filter {
    let Some(percent) = percent else { return Filter::Sample { numerator: 100, of: 100 } };
    let of = match percent.denominator() {
        DenominatorType::Hundred => 100,
        DenominatorType::TenThousand => 10_000,
        DenominatorType::Million => 1_000_000,
    };
    Filter::Sample { numerator: percent.numerator, of }
}
