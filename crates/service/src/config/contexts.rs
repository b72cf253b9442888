//! How folders are taken that callers upload to build from.

use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, duration, value};

/// Part of the disk that one tenant's may take when it is not said, in hundredths.
const SHARE_MAX: u64 = 20;

/// How uploaded folders are taken, and how long they are kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Contexts {
    /// How long a build can be started from one. What was uploaded stays for up to twice as long, and need not be sent again.
    #[serde(deserialize_with = "duration::deserialize")]
    pub lifetime: Duration,
    /// What one tenant's may take in all.
    pub max_bytes: Option<u64>,
    /// Uploads of one tenant at the same time; more wait.
    pub max_uploads: usize,
    /// How long they wait, in the order in which they came, before they are refused with `RESOURCE_EXHAUSTED`.
    #[serde(deserialize_with = "duration::deserialize")]
    pub wait_timeout: Duration,
    /// How long the next piece of an upload may take to come.
    #[serde(deserialize_with = "duration::deserialize")]
    pub piece_timeout: Duration,
}

impl Default for Contexts {
    fn default() -> Self {
        Self {
            lifetime: Duration::from_secs(3600),
            max_bytes: None,
            max_uploads: 4,
            wait_timeout: Duration::from_secs(120),
            piece_timeout: Duration::from_secs(60),
        }
    }
}

impl Contexts {
    /// Returns what one tenant's may take on a disk of this size.
    pub fn max_bytes(&self, disk_bytes: u64) -> u64 {
        let otherwise = || disk_bytes / 100 * SHARE_MAX;
        self.max_bytes.unwrap_or_else(otherwise)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        // Kept times are whole seconds.
        if self.lifetime < Duration::from_secs(1) {
            return Err(value("contexts.lifetime", "must be a second or more"));
        }
        if self.max_uploads == 0 {
            return Err(value("contexts.max_uploads", "must be 1 or more"));
        }
        if self.piece_timeout.is_zero() {
            return Err(value("contexts.piece_timeout", "must be more than nothing"));
        }
        Ok(())
    }
}
