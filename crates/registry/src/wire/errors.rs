//! The error document of the distribution specification: `{"errors":[{"code":…,"message":…,"detail":…}]}`.

use serde::{Deserialize, Serialize};

/// Longest message that is kept of an error document, in characters.
pub const MESSAGE_MAX_CHARS: usize = 400;
/// Longest code that is kept, in characters.
const CODE_MAX_CHARS: usize = 64;

/// A list of errors, as registries answer it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDocument {
    /// The errors.
    #[serde(default)]
    pub errors: Vec<ErrorEntry>,
}

/// One error.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorEntry {
    /// A word such as `MANIFEST_UNKNOWN`.
    #[serde(default)]
    pub code: String,
    /// A text for people.
    #[serde(default)]
    pub message: String,
}

/// Reads the first error out of the body of an unsuccessful answer, fit to be shown.
/// A body that is no error document gives its first line, for proxies answer in plain text.
pub fn first_error(body: &[u8]) -> ErrorEntry {
    let document = serde_json::from_slice::<ErrorDocument>(body).ok();
    let entry = match document.and_then(|document| document.errors.into_iter().next()) {
        Some(entry) => entry,
        None => ErrorEntry {
            code: String::new(),
            message: first_line_of_text(body),
        },
    };
    ErrorEntry {
        code: printable(&entry.code, CODE_MAX_CHARS),
        message: printable(&entry.message, MESSAGE_MAX_CHARS),
    }
}

/// Returns `text` without control characters, cut after `max_chars`.
pub fn printable(text: &str, max_chars: usize) -> String {
    let shown = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let cut: String = shown.take(max_chars).collect();
    cut.trim().to_owned()
}

fn first_line_of_text(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let line = text.lines().find(|line| !line.trim().is_empty());
    // A page of HTML or an unknown JSON document helps nobody.
    line.filter(|line| !line.trim_start().starts_with(['<', '{', '[']))
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_is_shown_without_control_characters() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no\u001b[31m\nway","detail":{"a":1}},{"code":"X"}]}"#;
        let entry = first_error(body);
        assert_eq!(entry.code, "DENIED");
        assert_eq!(entry.message, "no [31m way");
    }

    #[test]
    fn bodies_that_are_no_error_document_do_no_harm() {
        for (body, message) in [
            (&b""[..], ""),
            (b"<html>", ""),
            (b"\n bad gateway \nmore", "bad gateway"),
            (b"{\"errors\":7}", ""),
            (b"{\"errors\":[]}", ""),
            (b"\xff\xfe", "\u{fffd}\u{fffd}"),
        ] {
            assert_eq!(first_error(body).message, message, "{body:?}");
        }
        let long = format!(
            "{{\"errors\":[{{\"message\":\"{}\"}}]}}",
            "x".repeat(10_000)
        );
        assert_eq!(
            first_error(long.as_bytes()).message.len(),
            MESSAGE_MAX_CHARS
        );
    }
}
