//! Points in time, as people write them: `10m` ago, `2026-11-27T22:05:00Z`, or Unix seconds.

use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

const DAY_S: u64 = 86_400;

/// A point in time, in Unix milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(pub(crate) u64);

/// Tells that a text is no point in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is neither a duration such as 10m or 1h30m, nor a time such as 2026-11-27T22:05:00Z or Unix seconds"
)]
pub(crate) struct MomentError(String);

impl FromStr for Moment {
    type Err = MomentError;

    fn from_str(text: &str) -> Result<Self, MomentError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_ms = now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        parse(text, now_ms)
            .map(Self)
            .ok_or_else(|| MomentError(text.to_owned()))
    }
}

fn parse(text: &str, now_ms: u64) -> Option<u64> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse::<u64>().ok()?.checked_mul(1000);
    }
    if let Some(ago) = service::config::parse_duration(text) {
        return Some(now_ms.saturating_sub(u64::try_from(ago.as_millis()).ok()?));
    }
    from_utc(text)
}

/// Parses `2026-11-27T22:05:00Z`, with or without a fraction.
fn from_utc(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let number = |text: &str, n_digits: usize| -> Option<u64> {
        let is_one = text.len() == n_digits && text.bytes().all(|b| b.is_ascii_digit());
        is_one.then(|| text.parse().ok()).flatten()
    };
    let mut parts = date.split('-');
    let (year, month) = (number(parts.next()?, 4)?, number(parts.next()?, 2)?);
    let day = number(parts.next()?, 2)?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut clock = time.split(':');
    let (hour, minute) = (number(clock.next()?, 2)?, number(clock.next()?, 2)?);
    let second = number(clock.next()?, 2)?;
    let is_over = parts.next().is_some() || clock.next().is_some();
    let fits = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=days_in(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if is_over || !fits || fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("00".chars()).take(3).collect();
    let years: u64 = (1970..year)
        .map(|year| if is_leap(year) { 366 } else { 365 })
        .sum();
    let months: u64 = (1..month).map(|month| days_in(year, month)).sum();
    let days = years + months + day - 1;
    let seconds = days * DAY_S + hour * 3600 + minute * 60 + second;
    Some(seconds * 1000 + digits.parse::<u64>().ok()?)
}

/// Returns a time as [`Moment`] reads it, to the second.
pub(crate) fn utc(ms: u64) -> String {
    let seconds = ms / 1000;
    let (mut days, clock) = (seconds / DAY_S, seconds % DAY_S);
    let mut year = 1970;
    loop {
        let n = if is_leap(year) { 366 } else { 365 };
        if days < n || year >= 9999 {
            break;
        }
        days -= n;
        year += 1;
    }
    let mut month = 1;
    while month < 12 && days >= days_in(year, month) {
        days -= days_in(year, month);
        month += 1;
    }
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    format!(
        "{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z",
        days + 1
    )
}

fn is_leap(year: u64) -> bool {
    (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400)
}

fn days_in(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        const NOW_MS: u64 = 10_000_000;
        for (text, ms) in [
            ("10m", NOW_MS - 600_000),
            ("1h30m", NOW_MS - 5_400_000),
            ("400000d", 0),
            ("0", 0),
            ("1700000000", 1_700_000_000_000),
            ("2023-11-14T22:13:20Z", 1_700_000_000_000),
            ("2023-11-14T22:13:20.5Z", 1_700_000_000_500),
            ("2024-02-29T00:00:00Z", 1_709_164_800_000),
            ("1970-01-01T00:00:00.001234Z", 1),
        ] {
            assert_eq!(parse(text, NOW_MS), Some(ms), "{text}");
        }
        for wrong in [
            "",
            "yesterday",
            "-5m",
            "2023-02-29T00:00:00Z",
            "2023-11-14",
            "2023-11-14T22:13:20",
            "2023-11-14T24:00:00Z",
            "2023-13-01T00:00:00Z",
            "2023-1-01T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "2023-11-14T22:13:20.Z",
            "2023-11-14T22:13:20:00Z",
            "99999999999999999999",
        ] {
            assert_eq!(parse(wrong, NOW_MS), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for seconds in (0..4_000_000_000_u64).step_by(12_345_678) {
            assert_eq!(from_utc(&utc(seconds * 1000)), Some(seconds * 1000));
        }
    }
}
