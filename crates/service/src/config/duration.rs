//! Durations as the published service writes them: `6h`, `1h30m`, `90s`, `500ms`.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// Parses a sum of whole numbers with units.
pub fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let unit = rest.get(..letters)?;
        rest = rest.get(letters..)?;
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(number.checked_mul(milliseconds)?))?;
    }
    Some(total)
}

/// Deserialises a duration from its text.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).ok_or_else(|| {
        serde::de::Error::custom(format!("{text:?} is not a duration such as 6h or 1h30m"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_numbers_with_units_are_durations() {
        for (text, seconds) in [
            ("6h", 21600),
            ("1h30m", 5400),
            ("90s", 90),
            ("0s", 0),
            ("7d", 604_800),
        ] {
            assert_eq!(parse(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for bad in [
            "",
            "6",
            "h",
            "6 h",
            "-1s",
            "1.5h",
            "6x",
            "99999999999999999999h",
            "18446744073709551615h",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
