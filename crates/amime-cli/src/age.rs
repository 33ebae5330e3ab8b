//! Ages as kubectl writes them: `45s`, `3m20s`, `5h`, `2d`.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Age of an RFC 3339 time; `<unknown>` when it is none.
pub(crate) fn since(timestamp: &str, now: OffsetDateTime) -> String {
    match OffsetDateTime::parse(timestamp, &Rfc3339) {
        Ok(then) => human((now - then).try_into().unwrap_or_default()),
        Err(_) => "<unknown>".to_owned(),
    }
}

/// A duration in at most two units.
pub(crate) fn human(duration: Duration) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let seconds = duration.as_secs();
    let two = |big: u64, unit: &str, rest: u64, small: &str| match rest {
        0 => format!("{big}{unit}"),
        rest => format!("{big}{unit}{rest}{small}"),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(seconds / MINUTE, "m", seconds % MINUTE, "s"),
        600..10_800 => format!("{}m", seconds / MINUTE),
        10_800..28_800 => two(seconds / HOUR, "h", seconds % HOUR / MINUTE, "m"),
        28_800..172_800 => format!("{}h", seconds / HOUR),
        172_800..691_200 => two(seconds / DAY, "d", seconds % DAY / HOUR, "h"),
        _ => format!("{}d", seconds / DAY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_lose_precision_as_they_grow() {
        let text = |seconds| human(Duration::from_secs(seconds));
        assert_eq!(text(5), "5s");
        assert_eq!(text(119), "119s");
        assert_eq!(text(200), "3m20s");
        assert_eq!(text(3600), "60m");
        assert_eq!(text(3 * 3600 + 120), "3h2m");
        assert_eq!(text(3 * 86_400 + 7200), "3d2h");
        assert_eq!(text(30 * 86_400), "30d");
    }

    #[test]
    fn a_time_that_is_none_has_no_age() {
        assert_eq!(since("yesterday", OffsetDateTime::UNIX_EPOCH), "<unknown>");
        assert_eq!(since("1969-12-31T23:59:50Z", OffsetDateTime::UNIX_EPOCH), "10s");
    }
}
