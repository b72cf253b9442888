//! How much caches may take.

use std::time::Duration;

use serde::Deserialize;
use store::collect::{Kind, Policy};

use super::duration;

/// Part of the disk that caches may take when it is not said, in hundredths.
const SHARE_MAX: u64 = 60;
/// Part of the disk that is kept free when it is not said, in hundredths, and the most that this ever is.
const SHARE_FREE: u64 = 5;
const FREE_MAX_BYTES: u64 = 10 << 30;

/// What is kept of layers, snapshots, cache mounts and results of steps.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cache {
    /// What they may take in all.
    pub max_bytes: Option<u64>,
    /// What is to be free on the disk, if need be without a cache but for what was used within the last hour.
    pub min_free_bytes: Option<u64>,
    /// How long what nobody uses is kept.
    #[serde(deserialize_with = "duration::deserialize")]
    pub unused_for: Duration,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            max_bytes: None,
            min_free_bytes: None,
            unused_for: Duration::from_secs(30 * 24 * 3600),
        }
    }
}

impl Cache {
    /// Returns what is collected on a disk of this size.
    pub fn policy(&self, disk_bytes: u64) -> Policy {
        let share = |hundredths| disk_bytes / 100 * hundredths;
        let min_free = || share(SHARE_FREE).min(FREE_MAX_BYTES);
        Policy {
            kinds: Kind::ALL.to_vec(),
            only_unused_for: None,
            unused_for: Some(self.unused_for),
            max_bytes: Some(self.max_bytes.unwrap_or_else(|| share(SHARE_MAX))),
            min_free_bytes: Some(self.min_free_bytes.unwrap_or_else(min_free)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_follows_from_the_disk() {
        let policy = Cache::default().policy(1000 << 30);
        assert_eq!(policy.max_bytes, Some((1000 << 30) / 100 * 60));
        assert_eq!(policy.min_free_bytes, Some(10 << 30));
        let small = Cache::default().policy(10 << 30);
        assert_eq!(small.min_free_bytes, Some((10 << 30) / 100 * 5));
        let said = Cache {
            max_bytes: Some(0),
            min_free_bytes: Some(7),
            ..Cache::default()
        };
        let policy = said.policy(1 << 40);
        assert_eq!(
            (policy.max_bytes, policy.min_free_bytes),
            (Some(0), Some(7))
        );
    }
}
