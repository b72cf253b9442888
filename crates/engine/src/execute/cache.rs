//! The step cache: which result belongs to which inputs, and why there is none.
//!
//! Two keys. The *operation* is everything that decides a step but its parent: instruction, environment, settings, digests of
//! input files, platform, tenant. The *step* is the operation on the parent's content. Never mtimes, never image history: what
//! enters is content (CVE-2024-24557). A step whose operation was never seen need not wait for its parent's digest to know
//! that there is no result.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use oci::Digest;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use store::Store;

use crate::share::document::SharedStep;
use crate::share::table::{Learnt, Origin, Table};

/// Changes whenever results of older versions must not be reused.
const VERSION: u32 = 3;
/// Most input files whose digests are kept to explain the next miss.
const EXPLAINED_FILES_MAX: usize = 20_000;

const STEPS: &str = "step";
const OPERATIONS: &str = "operation";
const LAST: &str = "last";
const LAST_FILES: &str = "last-files";
const SOURCES: &str = "sources";

/// Everything that decides a step's result but its parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Operation {
    /// The instruction after expansion.
    pub(crate) instruction: String,
    /// Environment and build arguments that it sees.
    pub(crate) variables: BTreeMap<String, String>,
    /// User, working directory, network, ownership and the like, in a fixed form.
    pub(crate) settings: BTreeMap<String, String>,
    /// Input files by name, with digests; many files that come together are one, [`Operation::MANY`].
    pub(crate) files: Vec<(String, Digest)>,
    /// The files of which [`Operation::MANY`] is the digest, to explain a miss.
    #[serde(skip)]
    pub(crate) many: Arc<Vec<(PathBuf, Digest)>>,
}

impl Operation {
    /// The name of files that are told apart only in explanations. No file is called so.
    pub(crate) const MANY: &str = "\0";
}

/// What is mixed into every key: nothing is shared across these.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Scope {
    pub(crate) tenant: String,
    pub(crate) platform: String,
}

impl Scope {
    /// Returns what is mixed into the keys of shared caches.
    fn shared(&self) -> Self {
        Self {
            tenant: String::new(),
            platform: self.platform.clone(),
        }
    }
}

/// The keys of an operation: in the store, and in shared caches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OperationKeys {
    own: Digest,
    shared: Digest,
}

/// A result that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) step: CachedStep,
    /// Which shared cache it is of; none when it was made here.
    pub(crate) origin: Option<Origin>,
}

/// A layer that a step made, as the cache remembers it; no layer when the step changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CachedLayer {
    pub(crate) diff_id: Digest,
    pub(crate) digest: Digest,
    pub(crate) size_bytes: u64,
    pub(crate) media_type: String,
}

/// The result of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CachedStep {
    pub(crate) layer: Option<CachedLayer>,
    /// When the step ran, Unix seconds.
    pub(crate) created: i64,
}

/// What a step was made of the last time.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Last {
    operation: Operation,
    parent: Option<Digest>,
}

/// The files that [`Operation::MANY`] stood for, apart: they are many, and seldom asked for.
#[derive(Debug, Default, Serialize, Deserialize)]
struct LastFiles {
    files: Vec<(String, Digest)>,
}

/// The cache of one build.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    store: Store,
    scope: Scope,
    /// What explanations are kept under: the same Dockerfile of the same project.
    project: String,
    /// Shared caches.
    pub(crate) table: Arc<Table>,
}

impl Cache {
    pub(crate) fn new(store: Store, scope: Scope, project: String, table: Arc<Table>) -> Self {
        Self {
            store,
            scope,
            project,
            table,
        }
    }

    /// Returns the keys of `operation`.
    pub(crate) fn operation_keys(&self, operation: &Operation) -> OperationKeys {
        let own = digest_of(&(VERSION, &self.scope, operation));
        let shared = if self.table.is_used() && !self.scope.tenant.is_empty() {
            digest_of(&(VERSION, self.scope.shared(), operation))
        } else {
            own.clone()
        };
        OperationKeys { own, shared }
    }

    /// Tells whether any result of this operation was ever kept, on whatever parent.
    pub(crate) fn may_hit(&self, operation: &OperationKeys) -> bool {
        let is_kept = self.store.record(OPERATIONS, operation.own.hex());
        matches!(is_kept, Ok(Some(_))) || self.table.may_hit(&operation.shared)
    }

    /// Returns the results of `operation` on `parent`: the one that is kept here, if its layer is still there, then those of shared caches.
    pub(crate) fn look_up(&self, operation: &OperationKeys, parent: &Digest) -> Vec<Hit> {
        let own = self.look_up_own(&operation.own, parent);
        let own = own.map(|step| Hit { step, origin: None });
        let key = digest_of(&(&operation.shared, parent));
        let shared = self.table.find(&key).map(|(step, origin)| Hit {
            step,
            origin: Some(origin.clone()),
        });
        own.into_iter().chain(shared).collect()
    }

    fn look_up_own(&self, operation: &Digest, parent: &Digest) -> Option<CachedStep> {
        let bytes = self
            .store
            .record(STEPS, digest_of(&(operation, parent)).hex())
            .ok()??;
        let step: CachedStep = serde_json::from_slice(&bytes).ok()?;
        let there = match &step.layer {
            Some(layer) => {
                matches!(self.store.size_of(&layer.digest), Ok(Some(size)) if size == layer.size_bytes)
            }
            None => true,
        };
        there.then_some(step)
    }

    /// Keeps a result.
    pub(crate) fn keep(&self, operation: &OperationKeys, parent: &Digest, step: &CachedStep) {
        let key = digest_of(&(&operation.own, parent));
        // A result that cannot be kept costs time later, nothing else.
        if let Ok(bytes) = serde_json::to_vec(step)
            && self.store.note_record(STEPS, key.hex(), &bytes).is_ok()
        {
            let _only_slower = self
                .store
                .note_record(OPERATIONS, operation.own.hex(), b"{}");
        }
    }

    /// Remembers the result of a step of the stage at `position` for the shared caches that this build writes.
    pub(crate) fn learn(
        &self,
        position: &str,
        operation: &OperationKeys,
        parent: &Digest,
        hit: &Hit,
    ) {
        self.table.learn(|| Learnt {
            stage: position.split(' ').next().unwrap_or_default().to_owned(),
            step: SharedStep {
                operation: operation.shared.clone(),
                step: digest_of(&(&operation.shared, parent)),
                layer: hit.step.layer.clone(),
                created: hit.step.created,
            },
            origin: hit.origin.clone(),
        });
    }

    /// Returns why the step at `position` (stage and index) is not in the cache.
    pub(crate) fn explain(
        &self,
        position: &str,
        operation: &Operation,
        parent: Option<&Digest>,
    ) -> String {
        let bytes = self
            .store
            .record(LAST, self.position_key(position).hex())
            .ok()
            .flatten();
        let last: Option<Last> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let files = || {
            let bytes = self
                .store
                .record(LAST_FILES, self.position_key(position).hex());
            let files: Option<LastFiles> = bytes
                .ok()
                .flatten()
                .and_then(|bytes| serde_json::from_slice(&bytes).ok());
            files.unwrap_or_default().files
        };
        match last {
            Some(last) => miss_reason(&last, operation, parent, files),
            None => "not built before".to_owned(),
        }
    }

    /// Remembers the inputs of the step at `position`, to explain the next miss.
    pub(crate) fn remember(&self, position: &str, operation: &Operation, parent: Option<&Digest>) {
        let last = Last {
            operation: operation.clone(),
            parent: parent.cloned(),
        };
        let key = self.position_key(position);
        let Ok(bytes) = serde_json::to_vec(&last) else {
            return;
        };
        // Most often nothing has changed, and reading is cheaper than writing.
        let known = self.store.record(LAST, key.hex()).ok().flatten();
        if known.as_ref() == Some(&bytes) {
            return;
        }
        let known: Option<Last> = known.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let is_new = known.is_none_or(|known| known.operation.files != last.operation.files);
        let has_many = operation
            .files
            .iter()
            .any(|(name, _)| name == Operation::MANY);
        if is_new && has_many {
            let some = operation.many.iter().take(EXPLAINED_FILES_MAX);
            let name = |path: &PathBuf| path.to_string_lossy().into_owned();
            let files = some.map(|(path, digest)| (name(path), digest.clone()));
            let files = LastFiles {
                files: files.collect(),
            };
            if let Ok(bytes) = serde_json::to_vec(&files) {
                let _only_less_explained = self.store.note_record(LAST_FILES, key.hex(), &bytes);
            }
        }
        let _only_less_explained = self.store.note_record(LAST, key.hex(), &bytes);
    }

    fn position_key(&self, position: &str) -> Digest {
        digest_of(&(VERSION, &self.scope, &self.project, position))
    }

    /// Returns what was noted under `key` of `kind`.
    pub(crate) fn recall<T: DeserializeOwned>(
        &self,
        kind: &str,
        key: &impl Serialize,
    ) -> Option<T> {
        let key = digest_of(&(VERSION, &self.scope, key));
        let bytes = self.store.record(kind, key.hex()).ok()??;
        serde_json::from_slice(&bytes).ok()
    }

    /// Notes `value`.
    pub(crate) fn keep_note(&self, kind: &str, key: &impl Serialize, value: &impl Serialize) {
        let key = digest_of(&(VERSION, &self.scope, key));
        if let Ok(bytes) = serde_json::to_vec(value) {
            let _only_slower = self.store.note_record(kind, key.hex(), &bytes);
        }
    }

    /// Returns the bytes that were kept under `key` of `kind`.
    pub(crate) fn bytes(&self, kind: &str, key: &impl Serialize) -> Option<Vec<u8>> {
        let key = digest_of(&(VERSION, &self.scope, key));
        self.store.record(kind, key.hex()).ok()?
    }

    /// Keeps `bytes`.
    pub(crate) fn keep_bytes(&self, kind: &str, key: &impl Serialize, bytes: &[u8]) {
        let key = digest_of(&(VERSION, &self.scope, key));
        let _only_slower = self.store.note_record(kind, key.hex(), bytes);
    }

    /// Returns the digest of what is taken from a stage, as `key` says, if it was known before.
    pub(crate) fn source(&self, key: &impl Serialize) -> Option<Digest> {
        let own = digest_of(&(VERSION, &self.scope, key));
        let kept = self.store.record(SOURCES, own.hex()).ok().flatten();
        let kept = kept.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.parse().ok());
        let shared = || digest_of(&(VERSION, self.scope.shared(), key));
        let found = kept.or_else(|| self.table.source(&shared()))?;
        self.table.learn_source(shared, &found);
        Some(found)
    }

    /// Remembers the digest of what is taken from a stage.
    pub(crate) fn keep_source(&self, key: &impl Serialize, value: &Digest) {
        let own = digest_of(&(VERSION, &self.scope, key));
        let text = value.to_string();
        let _only_slower = self.store.note_record(SOURCES, own.hex(), text.as_bytes());
        let shared = || digest_of(&(VERSION, self.scope.shared(), key));
        self.table.learn_source(shared, value);
    }
}

/// Returns the digest of a value's JSON; maps are sorted, so that it is the same every time.
pub(crate) fn digest_of(value: &impl Serialize) -> Digest {
    // Only values of this module's callers come here, and all of them serialise; a failure would make one key of many.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    Digest::sha256(&bytes)
}

fn miss_reason(
    last: &Last,
    now: &Operation,
    parent: Option<&Digest>,
    last_files: impl FnOnce() -> Vec<(String, Digest)>,
) -> String {
    let then = &last.operation;
    if then.instruction != now.instruction {
        return "the instruction changed".to_owned();
    }
    if let Some(name) = first_difference(&then.variables, &now.variables) {
        return format!("variable {name} changed");
    }
    if let Some(name) = first_difference(&then.settings, &now.settings) {
        return format!("{name} changed");
    }
    if then.files != now.files {
        let (before, after) = (apart(&then.files), apart(&now.files));
        let has_many = |operation: &Operation| {
            let mut files = operation.files.iter();
            files.any(|(name, _)| name == Operation::MANY)
        };
        let many = if has_many(then) {
            last_files()
        } else {
            Vec::new()
        };
        // Their digest may be known without them.
        if (has_many(then) && many.is_empty()) || (has_many(now) && now.many.is_empty()) {
            return "a file changed".to_owned();
        }
        let before = many.into_iter().chain(before).collect();
        let some = now.many.iter().take(EXPLAINED_FILES_MAX);
        let some = some.map(|(path, digest)| (path.to_string_lossy().into_owned(), digest.clone()));
        let reason = file_difference(&before, &some.chain(after).collect());
        return reason.unwrap_or_else(|| "a file changed".to_owned());
    }
    match (last.parent.as_ref(), parent) {
        (Some(then), Some(now)) if then == now => "its result is no longer in the cache".to_owned(),
        _ => "what it is built on changed".to_owned(),
    }
}

fn first_difference<'a>(
    then: &'a BTreeMap<String, String>,
    now: &'a BTreeMap<String, String>,
) -> Option<&'a str> {
    let changed = now
        .iter()
        .find(|(name, value)| then.get(*name) != Some(*value));
    let gone = then.keys().find(|name| !now.contains_key(*name));
    changed
        .map(|(name, _)| name.as_str())
        .or(gone.map(String::as_str))
}

/// Returns the files that are told apart in the operation itself.
fn apart(files: &[(String, Digest)]) -> impl Iterator<Item = (String, Digest)> {
    let is_apart = |(name, _): &&(String, Digest)| name != Operation::MANY;
    files.iter().filter(is_apart).cloned()
}

fn file_difference(
    before: &BTreeMap<String, Digest>,
    after: &BTreeMap<String, Digest>,
) -> Option<String> {
    let mut reasons = after
        .iter()
        .filter_map(|(name, digest)| match before.get(name) {
            None => Some(format!("file {name} was added")),
            Some(known) if known != digest => Some(format!("file {name} changed")),
            Some(_) => None,
        });
    let first = reasons.next();
    let n_more = reasons.count();
    let gone: Vec<_> = before
        .keys()
        .filter(|name| !after.contains_key(*name))
        .collect();
    let reason = match (first, gone.first()) {
        (Some(reason), _) => reason,
        (None, Some(name)) => format!("file {name} was removed"),
        (None, None) => return None,
    };
    let n_more = if reason.ends_with("removed") {
        gone.len() - 1
    } else {
        n_more + gone.len()
    };
    Some(match n_more {
        0 => reason,
        n => format!("{reason}, and {n} more"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::table::{Imported, Learning};

    fn table(imported: Vec<Imported>) -> Arc<Table> {
        Arc::new(Table::new(imported, Learning::Off))
    }

    fn operation() -> Operation {
        Operation {
            instruction: "COPY . /src".to_owned(),
            variables: BTreeMap::from([("A".to_owned(), "1".to_owned())]),
            settings: BTreeMap::from([("the user".to_owned(), "0".to_owned())]),
            files: vec![
                ("a".to_owned(), Digest::sha256(b"a")),
                ("b".to_owned(), Digest::sha256(b"b")),
            ],
            many: Arc::default(),
        }
    }

    fn reason(change: impl FnOnce(&mut Operation)) -> String {
        let parent = Digest::sha256(b"parent");
        let last = Last {
            operation: operation(),
            parent: Some(parent.clone()),
        };
        let mut now = operation();
        change(&mut now);
        miss_reason(&last, &now, Some(&parent), Vec::new)
    }

    #[test]
    fn every_miss_names_what_changed() {
        assert_eq!(
            reason(|now| now.instruction.push('x')),
            "the instruction changed"
        );
        assert_eq!(reason(|now| now.variables.clear()), "variable A changed");
        assert_eq!(
            reason(|now| drop(now.settings.insert("the user".to_owned(), "1".to_owned()))),
            "the user changed"
        );
        assert_eq!(
            reason(|now| now.files[1].1 = Digest::sha256(b"c")),
            "file b changed"
        );
        assert_eq!(
            reason(|now| now.files[0].0 = "c".to_owned()),
            "file c was added, and 1 more"
        );
        assert_eq!(reason(|now| now.files.truncate(1)), "file b was removed");
        assert_eq!(reason(|_| ()), "its result is no longer in the cache");
    }

    #[test]
    fn a_result_is_found_only_for_the_same_operation_parent_and_tenant() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), None).unwrap();
        let scope = |tenant: &str| Scope {
            tenant: tenant.to_owned(),
            platform: "linux/amd64".to_owned(),
        };
        let cache = Cache::new(store.clone(), scope("a"), "p".to_owned(), table(Vec::new()));
        let other = Cache::new(store, scope("b"), "p".to_owned(), table(Vec::new()));
        let (parent, stranger) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        let step = CachedStep {
            layer: None,
            created: 5,
        };
        let key = cache.operation_keys(&operation());
        assert!(!cache.may_hit(&key));
        cache.keep(&key, &parent, &step);
        assert!(cache.may_hit(&key));
        let hit = Hit { step, origin: None };
        assert_eq!(cache.look_up(&key, &parent), [hit]);
        assert_eq!(cache.look_up(&key, &stranger), []);
        let foreign = other.operation_keys(&operation());
        assert_ne!(foreign, key);
        assert_eq!(other.look_up(&foreign, &parent), []);
    }

    #[test]
    fn what_one_tenant_wrote_into_a_shared_cache_another_finds_who_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let cache_of = |tenant: &str, table: Arc<Table>| {
            let store = Store::open(&folder.path().join(format!("s{tenant}")), None).unwrap();
            let scope = Scope {
                tenant: tenant.to_owned(),
                platform: "linux/amd64".to_owned(),
            };
            Cache::new(store, scope, "p".to_owned(), table)
        };
        let writer = cache_of("a", Arc::new(Table::new(Vec::new(), Learning::On)));
        let (parent, stranger) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        let step = CachedStep {
            layer: None,
            created: 5,
        };
        let hit = Hit { step, origin: None };
        let keys = writer.operation_keys(&operation());
        writer.learn("0 1", &keys, &parent, &hit);
        writer.learn("7 1", &keys, &stranger, &hit);
        writer.keep_source(&("content", "/out"), &Digest::sha256(b"out"));
        let (document, _) = writer.table.document(|stage| stage == "0");
        assert_eq!(document.steps.len(), 1);

        let origin = Origin::Folder("/cache".into());
        let reader = cache_of("", table(vec![Imported::new(origin.clone(), document)]));
        let keys = reader.operation_keys(&operation());
        assert!(reader.may_hit(&keys));
        let found = Hit {
            origin: Some(origin),
            ..hit
        };
        assert_eq!(reader.look_up(&keys, &parent), [found]);
        assert_eq!(reader.look_up(&keys, &stranger), []);
        let source = reader.source(&("content", "/out"));
        assert_eq!(source, Some(Digest::sha256(b"out")));
        assert_eq!(reader.source(&("content", "/other")), None);
    }
}
