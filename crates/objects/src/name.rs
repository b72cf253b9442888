//! Names of objects, and prefixes of them: relative, plain, the same in a folder and in a bucket.
//!
//! Only characters that no file system, no address and no signature takes for something else; so no name is ever encoded.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name, in bytes: with a prefix as long, it fits into the 1024 that S3 allows.
const NAME_MAX_BYTES: usize = 511;
/// Longest part between two slashes: what Linux allows for a file.
const PART_MAX_BYTES: usize = 255;

/// Name of an object: parts of letters, digits, `.`, `_`, `-` and `=`, separated by `/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Tells that a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no name of an object: up to {NAME_MAX_BYTES} letters, digits, and . _ - = with / between them"
)]
pub struct ParseNameError(String);

impl Name {
    /// Returns it as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-=".contains(&byte);
        // A part that begins with a dot is hidden in a folder, and two of them lead out of it.
        let is_part = |part: &str| {
            !part.is_empty()
                && part.len() <= PART_MAX_BYTES
                && !part.starts_with('.')
                && part.bytes().all(is_plain)
        };
        if text.len() <= NAME_MAX_BYTES && text.split('/').all(is_part) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseNameError(text.chars().take(64).collect()))
        }
    }
}

impl TryFrom<String> for Name {
    type Error = ParseNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_below_is_a_name() {
        for good in ["a", "sha256/0af", "a-b/c_d/e.tar=1", &"x".repeat(255)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        let long = vec!["y"; 257].join("/");
        for bad in [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            "..",
            "../a",
            "a/../b",
            "a/.",
            ".hidden",
            "a b",
            "a%2fb",
            "a\\b",
            "a\0",
            "a\n",
            "é",
            "a?b",
            "a#1",
            &"x".repeat(256),
            &long,
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
            let document = serde_json::to_string(bad).unwrap();
            assert!(serde_json::from_str::<Name>(&document).is_err(), "{bad:?}");
        }
    }
}
