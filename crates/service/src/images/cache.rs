//! Digests that are kept at hand, by normalised name.
//!
//! An entry says who may be told: everybody when no credential of ours was at hand for its host, else those who may use that
//! credential. An entry that was not renewed for two intervals is not used.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use oci::Reference;

/// Who may be told what an entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// Everybody.
    Everybody,
    /// Who may use the service's credential of the image's host.
    Entitled,
}

/// The entries.
#[derive(Debug)]
pub(super) struct Cache {
    lifetime_ms: u64,
    entries: RwLock<HashMap<String, Entry>>,
}

#[derive(Debug, Clone)]
struct Entry {
    resolved: Reference,
    audience: Audience,
    at_ms: u64,
}

impl Cache {
    /// Returns a cache whose entries are renewed every `interval`.
    pub(super) fn new(interval: Duration) -> Self {
        let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        Self {
            lifetime_ms: interval_ms.saturating_mul(2),
            entries: RwLock::default(),
        }
    }

    /// Returns the digest form of `reference`, and who may be told.
    pub(super) fn get(&self, reference: &Reference, now_ms: u64) -> Option<(Reference, Audience)> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get(&key(reference)?)?;
        let is_fresh = now_ms.saturating_sub(entry.at_ms) <= self.lifetime_ms;
        is_fresh.then(|| (entry.resolved.clone(), entry.audience))
    }

    /// Keeps the digest form of `reference`.
    pub(super) fn put(
        &self,
        reference: &Reference,
        resolved: Reference,
        audience: Audience,
        now_ms: u64,
    ) {
        let Some(key) = key(reference) else {
            return;
        };
        let entry = Entry {
            resolved,
            audience,
            at_ms: now_ms,
        };
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.insert(key, entry);
    }
}

/// Returns the normalised name; a reference with a digest needs no cache.
fn key(reference: &Reference) -> Option<String> {
    if reference.digest().is_some() {
        return None;
    }
    Some(format!(
        "{}:{}",
        reference.name(),
        reference.tag_or_latest()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_go_by_normalised_name_and_grow_old() {
        let cache = Cache::new(Duration::from_secs(1));
        let reference: Reference = "alpine".parse().unwrap();
        let resolved = reference.with_digest(oci::Digest::sha256(b"x"));
        cache.put(&reference, resolved.clone(), Audience::Entitled, 1000);
        for name in [
            "alpine",
            "alpine:latest",
            "docker.io/library/alpine",
            "index.docker.io/library/alpine:latest",
        ] {
            let found = cache.get(&name.parse().unwrap(), 3000);
            assert_eq!(
                found,
                Some((resolved.clone(), Audience::Entitled)),
                "{name}"
            );
        }
        assert_eq!(cache.get(&"alpine:3".parse().unwrap(), 1000), None);
        assert_eq!(cache.get(&reference, 3001), None);
    }
}
