//! Durations as configuration spells them.
//!
//! Reads proto3-JSON (`7s`, `0.5s`) and Go (`1h30m`, `250ms`, `1.5h`) forms; prints the proto
//! form. Negative durations are refused: nothing in the mesh waits for the past.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::time::Duration as StdDuration;

use serde::{Deserialize, Serialize};

/// A non-negative span of time; dereferences to [`std::time::Duration`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(pub StdDuration);

/// Why a text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// No number, no unit, or an unknown unit.
    #[error("{text:?} is not a duration such as \"10s\", \"0.5s\", \"250ms\" or \"1h30m\"")]
    Malformed {
        /// The text that was read.
        text: String,
    },
    /// A minus sign.
    #[error("duration {text:?} is negative")]
    Negative {
        /// The text that was read.
        text: String,
    },
    /// More than a `u64` of seconds.
    #[error("duration {text:?} is too long")]
    TooLong {
        /// The text that was read.
        text: String,
    },
}

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// Units and their nanoseconds; longer spellings first where one is a prefix of another.
const UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", NANOS_PER_SECOND),
    ("m", 60 * NANOS_PER_SECOND),
    ("h", 3600 * NANOS_PER_SECOND),
];

impl Duration {
    /// Zero.
    pub const ZERO: Self = Self(StdDuration::ZERO);

    /// A span of whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(StdDuration::from_secs(seconds))
    }

    /// A span of whole milliseconds.
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(StdDuration::from_millis(milliseconds))
    }

    /// The standard library's type.
    pub const fn std(self) -> StdDuration {
        self.0
    }
}

impl Deref for Duration {
    type Target = StdDuration;

    fn deref(&self) -> &StdDuration {
        &self.0
    }
}

impl From<StdDuration> for Duration {
    fn from(duration: StdDuration) -> Self {
        Self(duration)
    }
}

impl From<Duration> for StdDuration {
    fn from(duration: Duration) -> Self {
        duration.0
    }
}

impl FromStr for Duration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || DurationError::Malformed { text: text.to_owned() };
        let too_long = || DurationError::TooLong { text: text.to_owned() };
        if text.starts_with('-') {
            return Err(DurationError::Negative { text: text.to_owned() });
        }
        let mut rest = text.strip_prefix('+').unwrap_or(text);
        if rest == "0" {
            return Ok(Self::ZERO);
        }
        if rest.is_empty() {
            return Err(malformed());
        }
        let mut nanos: u128 = 0;
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            let (number, tail) = rest.split_at(end);
            let unit_end =
                tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_end);
            let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(malformed)?;
            let part = scaled(number, *scale).ok_or_else(malformed)?.ok_or_else(too_long)?;
            nanos = nanos.checked_add(part).ok_or_else(too_long)?;
            rest = tail;
        }
        let seconds = u64::try_from(nanos / NANOS_PER_SECOND).map_err(|_| too_long())?;
        let subsecond = u32::try_from(nanos % NANOS_PER_SECOND).map_err(|_| too_long())?;
        Ok(Self(StdDuration::new(seconds, subsecond)))
    }
}

/// `number × scale`; outer `None` if `number` is malformed, inner `None` if it overflows.
fn scaled(number: &str, scale: u128) -> Option<Option<u128>> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) {
        return None;
    }
    if whole.len() > 20 {
        return Some(None);
    }
    let mut total = whole.parse::<u128>().unwrap_or(0).checked_mul(scale);
    let mut unit = scale;
    for digit in fraction.bytes() {
        unit /= 10;
        total = total.and_then(|t| t.checked_add(u128::from(digit - b'0') * unit));
    }
    Some(total)
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.subsec_nanos();
        if nanos == 0 {
            return write!(f, "{}s", self.0.as_secs());
        }
        let fraction = format!("{nanos:09}");
        write!(f, "{}.{}s", self.0.as_secs(), fraction.trim_end_matches('0'))
    }
}

impl Serialize for Duration {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl serde::de::Visitor<'_> for Text {
            type Value = Duration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"10s\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Duration, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, nanos: u128) {
        assert_eq!(text.parse::<Duration>().map(|d| d.as_nanos()), Ok(nanos), "{text}");
    }

    #[test]
    fn proto_and_go_forms_are_read() {
        check("7s", 7_000_000_000);
        check("0.5s", 500_000_000);
        check(".5s", 500_000_000);
        check("1h30m", 5_400_000_000_000);
        check("250ms", 250_000_000);
        check("1.5h", 5_400_000_000_000);
        check("2us3ns", 2_003);
        check("0", 0);
        check("0s", 0);
        check("1.000000001s", 1_000_000_001);
    }

    #[test]
    fn other_text_is_refused() {
        for text in ["", "7", "s", "7 s", "7d", "1..5s", "seven", ".s", "1e3s", "-1s"] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
        let long = format!("{}h", "9".repeat(30));
        assert!(matches!(long.parse::<Duration>(), Err(DurationError::TooLong { .. })));
        let max = format!("{}h", u64::MAX);
        assert!(matches!(max.parse::<Duration>(), Err(DurationError::TooLong { .. })));
    }

    #[test]
    fn prints_the_proto_form() {
        for text in ["0s", "7s", "0.5s", "1.000000001s"] {
            assert_eq!(text.parse::<Duration>().map(|d| d.to_string()), Ok(text.to_owned()));
        }
        assert_eq!(
            serde_json::to_string(&Duration::from_millis(1500)).ok().as_deref(),
            Some("\"1.5s\"")
        );
    }
}
