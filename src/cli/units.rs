//! Durations, sizes and times as people write and read them. Pure.

use crate::error::{Error, Result};
use std::time::Duration;

/// The longest duration that is taken: a year, far below where sums of times could overflow.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);

/// A duration of a flag: `90s`, `1h30m`, `500ms`, or a bare number of seconds.
///
/// # Errors
/// `InvalidArgument` naming the flag.
pub(super) fn duration(flag: &str, text: &str) -> Result<Duration> {
    let wrong = || {
        Error::invalid(format!(
            "{flag} {text:?} is no duration; write 90s, 5m, 1h30m or 500ms (at most a year of 366 days)"
        ))
    };
    let parsed =
        if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok().map(Duration::from_secs) } else { parts(text) };
    parsed.filter(|d| *d <= MAX_DURATION).ok_or_else(wrong)
}

/// What `--timeout` says, if it is there.
///
/// # Errors
/// As [`duration`], and for none at all.
pub(super) fn timeout(text: Option<&str>) -> Result<Option<Duration>> {
    let timeout = text.map(|text| duration("--timeout", text)).transpose()?;
    if timeout == Some(Duration::ZERO) {
        return Err(Error::invalid("--timeout 0 would end it at once; leave it out for no deadline"));
    }
    Ok(timeout)
}

/// Numbers with units, one after the other.
fn parts(text: &str) -> Option<Duration> {
    let mut sum = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at(letters);
        let number: u64 = number.parse().ok()?;
        let part = match unit {
            "ms" => Some(Duration::from_millis(number)),
            "s" => Some(Duration::from_secs(number)),
            "m" => number.checked_mul(60).map(Duration::from_secs),
            "h" => number.checked_mul(3600).map(Duration::from_secs),
            "d" => number.checked_mul(24 * 3600).map(Duration::from_secs),
            _ => None,
        }?;
        sum = sum.checked_add(part)?;
        rest = tail;
    }
    Some(sum)
}

/// How long ago, as kubectl shows it: two units while the first is small, then one (duration.HumanDuration of apimachinery).
pub(super) fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / (24 * 3600));
    let two = |first: u64, a: &str, second: u64, b: &str| match second {
        0 => format!("{first}{a}"),
        second => format!("{first}{a}{second}{b}"),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        _ => two(days / 365, "y", days % 365, "d"),
    }
}

/// How long before now a time of a record is; a clock that was set back makes it zero.
pub(super) fn age_of(time_ns: i64) -> String {
    let then = Duration::from_nanos(u64::try_from(time_ns).unwrap_or(0));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    age(now.saturating_sub(then))
}

/// A time of a record, RFC 3339 in UTC with nanoseconds, as in logs: compares as text.
pub(super) fn timestamp(time_ns: i64) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(time_ns)) {
        Ok(time) => format!("{time:.9}"),
        Err(_) => String::new(), // no i64 of nanoseconds is outside of its range
    }
}

/// Bytes, rounded, in the units of Kubernetes: `12.3Mi`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    let mut tenths = u128::from(bytes) * 10;
    let mut unit = "";
    for next in UNITS {
        if tenths < 10_235 {
            break;
        }
        tenths = (tenths + 512) / 1024;
        unit = next;
    }
    if tenths < 1000 && !tenths.is_multiple_of(10) {
        return format!("{}.{}{unit}", tenths / 10, tenths % 10);
    }
    format!("{}{unit}", (tenths + 5) / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_taken_as_people_write_them_and_nothing_else() {
        for (text, ms) in
            [("90s", 90_000), ("1h30m", 5_400_000), ("500ms", 500), ("30", 30_000), ("0s", 0), ("1d", 86_400_000)]
        {
            assert_eq!(duration("--timeout", text).expect(text), Duration::from_millis(ms), "{text}");
        }
        for text in ["", "s", "1", "-1s", "1.5s", "1 s", "1w", "99999999999999999999s", "400d", "1m1"] {
            let refused = duration("--timeout", text);
            assert_eq!(refused.is_err(), text != "1", "{text}");
        }
        let told = duration("--grace", "soon").expect_err("no duration").to_string();
        assert!(told.starts_with("--grace \"soon\""), "{told}");
    }

    #[test]
    fn ages_are_as_kubectl_shows_them() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (190, "3m10s"),
            (600, "10m"),
            (10_800, "3h"),
            (12_000, "3h20m"),
            (86_400, "24h"),
            (180_000, "2d2h"),
            (86_400 * 10, "10d"),
            (86_400 * 800, "2y70d"),
        ] {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn sizes_are_short_and_never_a_thousand_of_the_smaller_unit() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1Ki"),
            (1536, "1.5Ki"),
            (10 << 20, "10Mi"),
            (1_234_567, "1.2Mi"),
            (123_456_789, "118Mi"),
            ((1 << 30) - 1, "1Gi"),
            (u64::MAX, "16Ei"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn times_are_rfc_3339_with_nine_digits() {
        assert_eq!(timestamp(1), "1970-01-01T00:00:00.000000001Z");
        assert_eq!(timestamp(1_767_366_245_000_000_000), "2026-01-02T15:04:05.000000000Z");
    }
}
