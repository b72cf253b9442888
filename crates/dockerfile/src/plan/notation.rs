//! Values as `BuildKit` writes them into the history: Go's `%v`, `%q` and durations.

use oci::config::Healthcheck;

/// Returns `[a b]`.
pub(super) fn list(items: &[String]) -> String {
    format!("[{}]", items.join(" "))
}

/// Returns `["a" "b"]`.
pub(super) fn quoted_list(items: &[String]) -> String {
    let quoted: Vec<String> = items.iter().map(|item| quoted(item)).collect();
    list(&quoted)
}

/// Returns `text` as a Go string literal.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        let code = u32::from(c);
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            '\'' => out.push(c),
            // Unicode's own idea of what can be printed; Go has the same tables.
            c if c == ' ' || c.escape_debug().len() == 1 => out.push(c),
            _ if code < 0x80 => out.extend([format!("\\x{code:02x}")]),
            _ if code < 0x1_0000 => out.extend([format!("\\u{code:04x}")]),
            _ => out.extend([format!("\\U{code:08x}")]),
        }
    }
    out.push('"');
    out
}

/// Returns a health check as Go prints the struct.
pub(super) fn healthcheck(check: &Healthcheck) -> String {
    let time = |value: Option<u64>| duration(value.unwrap_or(0));
    format!(
        "{{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
        list(&check.test),
        time(check.interval),
        time(check.timeout),
        time(check.start_period),
        time(check.start_interval),
        check.retries.unwrap_or(0),
    )
}

/// Returns a duration as Go prints it: `1h2m3.5s`, `1.5ms`, `0s`.
fn duration(ns: u64) -> String {
    let decimal = |amount: u64, unit: u64| {
        let fraction = format!("{:09}", (amount % unit) * (1_000_000_000 / unit));
        let fraction = fraction.trim_end_matches('0');
        let dot = if fraction.is_empty() { "" } else { "." };
        format!("{}{dot}{fraction}", amount / unit)
    };
    match ns {
        0 => "0s".to_owned(),
        1..1_000 => format!("{ns}ns"),
        1_000..1_000_000 => format!("{}µs", decimal(ns, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", decimal(ns, 1_000_000)),
        _ => {
            let seconds = ns / 1_000_000_000;
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            let rest = decimal(ns % 60_000_000_000, 1_000_000_000);
            match (hours, minutes) {
                (0, 0) => format!("{rest}s"),
                (0, minutes) => format!("{minutes}m{rest}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{rest}s"),
            }
        }
    }
}

/// Parses a duration as Go does, without sign: `1h30m`, `1.5s`, `300ms`, `0`. Nanoseconds.
pub(super) fn parse_duration(text: &str) -> Option<u64> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(0);
    }
    let mut total: u64 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let unit_end = after
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let unit: u64 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let whole: u64 = if whole.is_empty() {
            0
        } else {
            whole.parse().ok()?
        };
        let mut part = whole.checked_mul(unit)?;
        let mut scale = unit;
        for digit in fraction.bytes() {
            scale /= 10;
            part = part.checked_add(u64::from(digit - b'0') * scale)?;
        }
        total = total.checked_add(part)?;
        rest = after;
    }
    i64::try_from(total).is_ok().then_some(total)
}

fn digits(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_quoted_as_go_does() {
        for (text, expected) in [
            ("a b", r#""a b""#),
            ("a\"b\\", r#""a\"b\\""#),
            ("\t\n\x07\x1b", r#""\t\n\a\x1b""#),
            ("it's é 日", r#""it's é 日""#),
            ("\u{200b}\u{e000}", "\"\\u200b\\ue000\""),
        ] {
            assert_eq!(quoted(text), expected);
        }
        assert_eq!(quoted_list(&[]), "[]");
    }

    #[test]
    fn durations_are_read_and_written_as_go_does() {
        for (text, expected) in [
            ("0", Some("0s")),
            ("30s", Some("30s")),
            ("1m30s", Some("1m30s")),
            ("90s", Some("1m30s")),
            ("1h", Some("1h0m0s")),
            ("1.5s", Some("1.5s")),
            ("1500ms", Some("1.5s")),
            ("1.5ms", Some("1.5ms")),
            ("2us", Some("2µs")),
            ("7ns", Some("7ns")),
            (".5s", Some("500ms")),
            ("", None),
            ("5", None),
            ("s", None),
            ("-1s", None),
            ("1d", None),
            ("1s ", None),
            ("99999999999999999999s", None),
        ] {
            let parsed = parse_duration(text).map(duration);
            assert_eq!(parsed.as_deref(), expected, "{text:?}");
        }
    }
}
