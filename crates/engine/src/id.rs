//! Identifiers of builds.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Names one build: 26 characters of `[a-z2-7]` that encode 128 random bits. Safe as a file name, not guessable.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BuildId(String);

/// A text that is not a build id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("build id must be {LENGTH} characters of a-z and 2-7")]
pub struct BuildIdError;

const LENGTH: usize = 26;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

impl BuildId {
    /// Returns the id that encodes `random`.
    pub fn from_random(random: [u8; 16]) -> Self {
        let mut bits = u128::from_be_bytes(random);
        let mut text = String::with_capacity(LENGTH);
        for _ in 0..LENGTH {
            let index = usize::try_from(bits & 31).unwrap_or(0);
            text.push(ALPHABET.get(index).copied().unwrap_or(b'a').into());
            bits >>= 5;
        }
        Self(text)
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BuildId {
    type Err = BuildIdError;

    fn from_str(text: &str) -> Result<Self, BuildIdError> {
        if text.len() == LENGTH && text.bytes().all(|b| ALPHABET.contains(&b)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BuildIdError)
        }
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for BuildId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for BuildId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_file_names_and_survive_parsing() {
        let id = BuildId::from_random([0xff; 16]);
        assert_eq!(id.as_str().parse::<BuildId>(), Ok(id));
        for bad in [
            "",
            "../../../../../../etc/passwd",
            "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
            "aaaaaaaaaaaaaaaaaaaaaaaaa/",
        ] {
            assert!(bad.parse::<BuildId>().is_err(), "{bad} was accepted");
        }
    }
}
