//! Response flags: why a request or connection ended as it did, in Envoy's
//! short names.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage>

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

/// A set of Envoy response flags, in the order in which they were set: Envoy
/// prints them so.
///
/// Each takes five bits, the first one the lowest; zero means none.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ResponseFlags(u64);

/// Bits of one flag.
const WIDTH: u32 = 5;

/// Every flag: short name, long name.
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
    pub const UH: Self = Self(2);
    /// Upstream request timeout.
    pub const UT: Self = Self(3);
    /// The stream was reset locally.
    pub const LR: Self = Self(4);
    /// The upstream reset the stream.
    pub const UR: Self = Self(5);
    /// The upstream connection could not be made.
    pub const UF: Self = Self(6);
    /// The upstream closed the connection.
    pub const UC: Self = Self(7);
    /// A circuit breaker opened.
    pub const UO: Self = Self(8);
    /// No route, or no filter chain for a connection.
    pub const NR: Self = Self(9);
    /// A fault filter delayed the request.
    pub const DI: Self = Self(10);
    /// A fault filter aborted the request.
    pub const FI: Self = Self(11);
    /// Rate limited.
    pub const RL: Self = Self(12);
    /// External authorization denied the request.
    pub const UAEX: Self = Self(13);
    /// The rate limit service failed.
    pub const RLSE: Self = Self(14);
    /// The client closed the connection.
    pub const DC: Self = Self(15);
    /// Retries, or connect attempts, were used up.
    pub const URX: Self = Self(16);
    /// Stream idle timeout.
    pub const SI: Self = Self(17);
    /// A strictly checked `x-envoy-*` header had an invalid value.
    pub const IH: Self = Self(18);
    /// The client broke the protocol.
    pub const DPE: Self = Self(19);
    /// The upstream request reached its maximal duration.
    pub const UMSDR: Self = Self(20);
    /// Answered from a cache.
    pub const RFCF: Self = Self(21);
    /// A filter's configuration did not arrive in time.
    pub const NFCF: Self = Self(22);
    /// The request or connection exceeded its maximal duration.
    pub const DT: Self = Self(23);
    /// The upstream broke the protocol.
    pub const UPE: Self = Self(24);
    /// The route names a cluster that does not exist.
    pub const NC: Self = Self(25);
    /// The overload manager ended the request.
    pub const OM: Self = Self(26);
    /// Name resolution of the upstream failed.
    pub const DF: Self = Self(27);
    /// Dropped on the load report's drop overload.
    pub const DO: Self = Self(28);
    /// The client reset the stream.
    pub const DR: Self = Self(29);
    /// Dropped unconditionally.
    pub const UDO: Self = Self(30);

    /// Whether no flag is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether any flag of `other` is set.
    pub fn intersects(self, other: Self) -> bool {
        other.each().any(|flag| self.each().any(|have| have == flag))
    }

    /// Adds the flags of `other`.
    pub fn insert(&mut self, other: Self) {
        for flag in other.each() {
            let taken = u64::BITS - self.0.leading_zeros();
            let room = taken.next_multiple_of(WIDTH);
            // Nothing sets more flags than there is room for.
            if room + WIDTH <= u64::BITS && !self.each().any(|have| have == flag) {
                self.0 |= flag.0 << room;
            }
        }
    }

    /// The flags one by one.
    fn each(self) -> impl Iterator<Item = Self> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let flag = left & ((1 << WIDTH) - 1);
            left >>= WIDTH;
            (flag != 0).then_some(Self(flag))
        })
    }

    /// The flag of this short name.
    pub fn from_short_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, short, _)| *short == name).map(|(flag, ..)| *flag)
    }

    /// The raw bits, stable within one process only.
    pub(crate) const fn bits(self) -> u64 {
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
        for row in self.each().filter_map(|flag| NAMES.iter().find(|row| row.0 == flag)) {
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
    fn bitor(mut self, rhs: Self) -> Self {
        self.insert(rhs);
        self
    }
}

impl BitOrAssign for ResponseFlags {
    fn bitor_assign(&mut self, rhs: Self) {
        self.insert(rhs);
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
    fn a_set_prints_its_short_names_in_the_order_in_which_they_were_set() {
        assert_eq!(ResponseFlags::NONE.to_string(), "-");
        assert_eq!((ResponseFlags::URX | ResponseFlags::UF).to_string(), "URX,UF");
        let mut flags = ResponseFlags::UDO;
        flags |= ResponseFlags::LH | ResponseFlags::UDO;
        assert_eq!(flags.to_string(), "UDO,LH");
        assert!(flags.intersects(ResponseFlags::LH) && !flags.intersects(ResponseFlags::UH));
    }

    #[test]
    fn more_flags_than_there_is_room_for_leave_the_first_ones() {
        let all = NAMES.iter().fold(ResponseFlags::NONE, |all, (flag, ..)| all | *flag);
        assert_eq!(all.to_string(), "LH,UH,UT,LR,UR,UF,UC,UO,NR,DI,FI,RL");
    }

    #[test]
    fn every_flag_is_found_by_its_name() {
        for (flag, short, _) in NAMES {
            assert_eq!(ResponseFlags::from_short_name(short), Some(flag));
        }
        assert_eq!(ResponseFlags::from_short_name("XX"), None);
    }
}
