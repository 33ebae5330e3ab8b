//! `%START_TIME(format)%`: strftime with Envoy's sub-second additions.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// A compiled time format, UTC.
#[derive(Clone, Debug)]
pub(super) struct TimeFormat(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Box<str>),
    Year,
    ShortYear,
    Month,
    MonthName,
    Day,
    Hour,
    Minute,
    Second,
    DayOfYear,
    EpochSeconds,
    /// Digits of the second's fraction, 1 to 9.
    Fraction(usize),
    /// `%E3S`: seconds with a fraction.
    SecondFraction(usize),
    Zone,
    /// `%F`: `%Y-%m-%d`.
    Date,
    /// `%T`: `%H:%M:%S`.
    Time,
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A point in time split into UTC calendar fields.
struct Civil {
    year: i64,
    month: u32,
    day: u32,
    day_of_year: u32,
    hour: u32,
    minute: u32,
    second: u32,
}

impl Civil {
    /// Splits seconds since 1970 by the days-from-civil algorithm over
    /// 400-year eras that start in March.
    fn from_epoch(seconds: i64) -> Self {
        let (days, time) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400) as u32);
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let march_day = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * march_day + 2) / 153;
        let day = (march_day - (153 * march_month + 2) / 5 + 1) as u32;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 } as u32;
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        // March 1st is day 60 of a common year, 61 of a leap year.
        let day_of_year = if month > 2 {
            march_day as u32 + 60 + u32::from(leap)
        } else {
            march_day as u32 - 305
        };
        Self {
            year,
            month,
            day,
            day_of_year,
            hour: time / 3600,
            minute: time / 60 % 60,
            second: time % 60,
        }
    }
}

impl TimeFormat {
    /// RFC 3339 with milliseconds, as `2018-04-27T20:38:36.123Z`.
    pub(super) const DEFAULT: &'static str = "%Y-%m-%dT%H:%M:%E3SZ";

    pub(super) fn parse(format: &str) -> Result<Self, &'static str> {
        let mut parts = vec![];
        let mut literal = String::new();
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            literal.push_str(&rest[..at]);
            let (part, len) = specifier(&rest[at + 1..])?;
            match part {
                Part::Literal(text) => literal.push_str(&text),
                part => {
                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal).into()));
                    }
                    parts.push(part);
                }
            }
            rest = &rest[at + 1 + len..];
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal.into()));
        }
        Ok(Self(parts))
    }

    pub(super) fn write(&self, at: SystemTime, out: &mut Vec<u8>) {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX / 2);
        let nanos = since.subsec_nanos();
        let civil = Civil::from_epoch(seconds);
        for part in &self.0 {
            match part {
                Part::Literal(text) => out.extend_from_slice(text.as_bytes()),
                Part::Year => padded(out, civil.year.unsigned_abs(), 4),
                Part::ShortYear => padded(out, civil.year.unsigned_abs() % 100, 2),
                Part::Month => padded(out, civil.month.into(), 2),
                Part::MonthName => {
                    out.extend_from_slice(MONTHS[civil.month as usize - 1].as_bytes());
                }
                Part::Day => padded(out, civil.day.into(), 2),
                Part::Hour => padded(out, civil.hour.into(), 2),
                Part::Minute => padded(out, civil.minute.into(), 2),
                Part::Second => padded(out, civil.second.into(), 2),
                Part::DayOfYear => padded(out, civil.day_of_year.into(), 3),
                // A write to a `Vec` cannot fail.
                Part::EpochSeconds => drop(write!(out, "{seconds}")),
                Part::Fraction(digits) => fraction(out, nanos, *digits),
                Part::SecondFraction(digits) => {
                    padded(out, civil.second.into(), 2);
                    out.push(b'.');
                    fraction(out, nanos, *digits);
                }
                Part::Zone => out.extend_from_slice(b"+0000"),
                Part::Date => {
                    padded(out, civil.year.unsigned_abs(), 4);
                    out.push(b'-');
                    padded(out, civil.month.into(), 2);
                    out.push(b'-');
                    padded(out, civil.day.into(), 2);
                }
                Part::Time => {
                    padded(out, civil.hour.into(), 2);
                    out.push(b':');
                    padded(out, civil.minute.into(), 2);
                    out.push(b':');
                    padded(out, civil.second.into(), 2);
                }
            }
        }
    }
}

/// The specifier after a `%` and its length.
fn specifier(text: &str) -> Result<(Part, usize), &'static str> {
    let mut bytes = text.bytes();
    let part = match bytes.next().ok_or("the time format ends in %")? {
        b'Y' => Part::Year,
        b'y' => Part::ShortYear,
        b'm' => Part::Month,
        b'b' | b'h' => Part::MonthName,
        b'd' => Part::Day,
        b'H' => Part::Hour,
        b'M' => Part::Minute,
        b'S' => Part::Second,
        b'j' => Part::DayOfYear,
        b's' => Part::EpochSeconds,
        b'f' => Part::Fraction(9),
        b'z' => Part::Zone,
        b'Z' => Part::Literal("UTC".into()),
        b'%' => Part::Literal("%".into()),
        b'F' => Part::Date,
        b'T' => Part::Time,
        digit @ b'1'..=b'9' if bytes.next() == Some(b'f') => {
            return Ok((Part::Fraction(usize::from(digit - b'0')), 2));
        }
        b'E' => {
            let digit = bytes.next().filter(u8::is_ascii_digit).filter(|digit| *digit != b'0');
            return match (digit, bytes.next()) {
                (Some(digit), Some(b'S')) => {
                    Ok((Part::SecondFraction(usize::from(digit - b'0')), 3))
                }
                _ => Err("unknown %E specifier in the time format"),
            };
        }
        _ => return Err("unknown specifier in the time format"),
    };
    Ok((part, 1))
}

fn padded(out: &mut Vec<u8>, value: u64, width: u32) {
    let mut unit = 10u64.pow(width - 1);
    while unit > 0 {
        out.push(b'0' + (value / unit % 10) as u8);
        unit /= 10;
    }
}

fn fraction(out: &mut Vec<u8>, nanos: u32, digits: usize) {
    let digits = u32::try_from(digits.clamp(1, 9)).unwrap_or(9);
    padded(out, u64::from(nanos / 10u32.pow(9 - digits)), digits);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[track_caller]
    fn check(format: &str, seconds: u64, nanos: u32, want: &str) {
        let mut out = vec![];
        let at = UNIX_EPOCH + Duration::new(seconds, nanos);
        TimeFormat::parse(format).expect("format parses").write(at, &mut out);
        assert_eq!(String::from_utf8(out).expect("utf-8"), want);
    }

    #[test]
    fn the_default_is_rfc_3339_with_milliseconds() {
        check(TimeFormat::DEFAULT, 1_522_796_769, 123_456_789, "2018-04-03T23:06:09.123Z");
        check(TimeFormat::DEFAULT, 0, 0, "1970-01-01T00:00:00.000Z");
        check(TimeFormat::DEFAULT, 1_709_164_800, 999_999_999, "2024-02-29T00:00:00.999Z");
    }

    #[test]
    fn envoys_specifiers_are_known() {
        check("%Y/%m/%dT%H:%M:%S%z %s", 1_522_796_769, 0, "2018/04/03T23:06:09+0000 1522796769");
        check(
            "%s.%3f %f %E6S %j %b %F %T %%",
            1_522_796_769,
            120_000_000,
            "1522796769.120 120000000 09.120000 093 Apr 2018-04-03 23:06:09 %",
        );
        check("%j", 1_735_603_200, 0, "366");
        check("%j", 1_704_067_200, 0, "001");
    }

    #[test]
    fn unknown_specifiers_are_refused() {
        assert!(TimeFormat::parse("%Q").is_err());
        assert!(TimeFormat::parse("abc%").is_err());
        assert!(TimeFormat::parse("%E0S").is_err());
    }
}
