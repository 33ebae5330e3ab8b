//! Response flags: why a request or connection ended as it did, in Envoy's
//! short names.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage>

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

/// A set of Envoy response flags.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ResponseFlags(u32);

/// Every flag in bit order: bit, short name, long name. Envoy prints a set in
/// this order.
const NAMES: [(ResponseFlags, &str, &str); 30] = [
    (ResponseFlags::LH, "LH", "FailedLocalHealthCheck"),
    (ResponseFlags::UH, "UH", "NoHealthyUpstream"),
    (ResponseFlags::UT, "UT", "UpstreamRequestTimeout"),
    (ResponseFlags::LR, "LR", "LocalReset"),
    (ResponseFlags::UR, "UR", "UpstreamRemoteReset"),
    (ResponseFlags::UF, "UF", "UpstreamConnectionFailure"),
    (ResponseFlags::UC, "UC", "UpstreamConnectionTermination"),
    (ResponseFlags::UO, "UO", "UpstreamOverflow"),
    (ResponseFlags::NR, "NR", "NoRouteFound"),
    (ResponseFlags::DI, "DI", "DelayInjected"),
    (ResponseFlags::FI, "FI", "FaultInjected"),
    (ResponseFlags::RL, "RL", "RateLimited"),
    (ResponseFlags::UAEX, "UAEX", "UnauthorizedExternalService"),
    (ResponseFlags::RLSE, "RLSE", "RateLimitServiceError"),
    (ResponseFlags::DC, "DC", "DownstreamConnectionTermination"),
    (ResponseFlags::URX, "URX", "UpstreamRetryLimitExceeded"),
    (ResponseFlags::SI, "SI", "StreamIdleTimeout"),
    (ResponseFlags::IH, "IH", "InvalidEnvoyRequestHeaders"),
    (ResponseFlags::DPE, "DPE", "DownstreamProtocolError"),
    (ResponseFlags::UMSDR, "UMSDR", "UpstreamMaxStreamDurationReached"),
    (ResponseFlags::RFCF, "RFCF", "ResponseFromCacheFilter"),
    (ResponseFlags::NFCF, "NFCF", "NoFilterConfigFound"),
    (ResponseFlags::DT, "DT", "DurationTimeout"),
    (ResponseFlags::UPE, "UPE", "UpstreamProtocolError"),
    (ResponseFlags::NC, "NC", "NoClusterFound"),
    (ResponseFlags::OM, "OM", "OverloadManagerTerminated"),
    (ResponseFlags::DF, "DF", "DnsResolutionFailed"),
    (ResponseFlags::DO, "DO", "DropOverload"),
    (ResponseFlags::DR, "DR", "DownstreamRemoteReset"),
    (ResponseFlags::UDO, "UDO", "UnconditionalDropOverload"),
];

impl ResponseFlags {
    /// Nothing to report; prints as `-`.
    pub const NONE: Self = Self(0);
    /// The local service failed its health check.
    pub const LH: Self = Self(1);
    /// No healthy upstream host.
    pub const UH: Self = Self(1 << 1);
    /// Upstream request timeout.
    pub const UT: Self = Self(1 << 2);
    /// The stream was reset locally.
    pub const LR: Self = Self(1 << 3);
    /// The upstream reset the stream.
    pub const UR: Self = Self(1 << 4);
    /// The upstream connection could not be made.
    pub const UF: Self = Self(1 << 5);
    /// The upstream closed the connection.
    pub const UC: Self = Self(1 << 6);
    /// A circuit breaker opened.
    pub const UO: Self = Self(1 << 7);
    /// No route, or no filter chain for a connection.
    pub const NR: Self = Self(1 << 8);
    /// A fault filter delayed the request.
    pub const DI: Self = Self(1 << 9);
    /// A fault filter aborted the request.
    pub const FI: Self = Self(1 << 10);
    /// Rate limited.
    pub const RL: Self = Self(1 << 11);
    /// External authorization denied the request.
    pub const UAEX: Self = Self(1 << 12);
    /// The rate limit service failed.
    pub const RLSE: Self = Self(1 << 13);
    /// The client closed the connection.
    pub const DC: Self = Self(1 << 14);
    /// Retries, or connect attempts, were used up.
    pub const URX: Self = Self(1 << 15);
    /// Stream idle timeout.
    pub const SI: Self = Self(1 << 16);
    /// A strictly checked `x-envoy-*` header had an invalid value.
    pub const IH: Self = Self(1 << 17);
    /// The client broke the protocol.
    pub const DPE: Self = Self(1 << 18);
    /// The upstream request reached its maximal duration.
    pub const UMSDR: Self = Self(1 << 19);
    /// Answered from a cache.
    pub const RFCF: Self = Self(1 << 20);
    /// A filter's configuration did not arrive in time.
    pub const NFCF: Self = Self(1 << 21);
    /// The request or connection exceeded its maximal duration.
    pub const DT: Self = Self(1 << 22);
    /// The upstream broke the protocol.
    pub const UPE: Self = Self(1 << 23);
    /// The route names a cluster that does not exist.
    pub const NC: Self = Self(1 << 24);
    /// The overload manager ended the request.
    pub const OM: Self = Self(1 << 25);
    /// Name resolution of the upstream failed.
    pub const DF: Self = Self(1 << 26);
    /// Dropped on the load report's drop overload.
    pub const DO: Self = Self(1 << 27);
    /// The client reset the stream.
    pub const DR: Self = Self(1 << 28);
    /// Dropped unconditionally.
    pub const UDO: Self = Self(1 << 29);

    /// Whether no flag is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether any flag of `other` is set.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Adds the flags of `other`.
    pub fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// The flag of this short name.
    pub fn from_short_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, short, _)| *short == name).map(|(flag, ..)| *flag)
    }

    /// The raw bits, stable within one process only.
    pub(crate) const fn bits(self) -> u32 {
        self.0
    }

    /// Appends the comma-separated short names, or `-`.
    pub fn write_short(self, out: &mut Vec<u8>) {
        self.write(out, |(_, short, _)| short);
    }

    /// Appends the comma-separated long names, or `-`.
    pub(crate) fn write_long(self, out: &mut Vec<u8>) {
        self.write(out, |(_, _, long)| long);
    }

    fn write(
        self,
        out: &mut Vec<u8>,
        name: fn(&(Self, &'static str, &'static str)) -> &'static str,
    ) {
        if self.is_empty() {
            return out.push(b'-');
        }
        let mut first = true;
        for row in NAMES.iter().filter(|row| self.intersects(row.0)) {
            if !first {
                out.push(b',');
            }
            first = false;
            out.extend_from_slice(name(row).as_bytes());
        }
    }
}

impl BitOr for ResponseFlags {
    type Output = Self;
    fn bitor(self, rhs: Self) -> Self {
        Self(self.0 | rhs.0)
    }
}

impl BitOrAssign for ResponseFlags {
    fn bitor_assign(&mut self, rhs: Self) {
        self.0 |= rhs.0;
    }
}

impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::with_capacity(16);
        self.write_short(&mut text);
        f.write_str(&String::from_utf8_lossy(&text))
    }
}

impl fmt::Debug for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_prints_its_short_names_in_envoys_order() {
        assert_eq!(ResponseFlags::NONE.to_string(), "-");
        assert_eq!((ResponseFlags::URX | ResponseFlags::UF).to_string(), "UF,URX");
    }

    #[test]
    fn every_flag_is_found_by_its_name() {
        for (flag, short, _) in NAMES {
            assert_eq!(ResponseFlags::from_short_name(short), Some(flag));
        }
        assert_eq!(ResponseFlags::from_short_name("XX"), None);
    }
}
