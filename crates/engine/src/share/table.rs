//! What was read of shared caches, and what this build has learnt for those that it writes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use oci::{Digest, Reference};

use super::document::{Document, SharedStep};
use crate::execute::cache::CachedStep;

/// Where a shared cache was read from, and where its layers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The repository of this name.
    Registry(Reference),
    /// An OCI layout.
    Folder(PathBuf),
}

/// A shared cache that was read.
#[derive(Debug)]
pub(crate) struct Imported {
    origin: Origin,
    operations: HashSet<Digest>,
    steps: HashMap<Digest, SharedStep>,
    sources: BTreeMap<Digest, Digest>,
}

impl Imported {
    pub(crate) fn new(origin: Origin, document: Document) -> Self {
        let steps = document.steps.into_iter();
        let steps: HashMap<Digest, SharedStep> =
            steps.map(|step| (step.step.clone(), step)).collect();
        Self {
            origin,
            operations: steps.values().map(|step| step.operation.clone()).collect(),
            steps,
            sources: document.sources,
        }
    }

    /// Returns how many steps it knows.
    pub(crate) fn n_steps(&self) -> usize {
        self.steps.len()
    }
}

/// Whether a build remembers what it learns, to write it somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Learning {
    On,
    Off,
}

/// A step of this build.
#[derive(Debug, Clone)]
pub(crate) struct Learnt {
    /// Of which stage, as the Dockerfile counts.
    pub(crate) stage: String,
    pub(crate) step: SharedStep,
    /// Where its layer is, when it was not made here.
    pub(crate) origin: Option<Origin>,
}

#[derive(Debug, Default)]
struct Learned {
    steps: Vec<Learnt>,
    sources: BTreeMap<Digest, Digest>,
}

/// What the step cache asks beside the store. Its keys hold no tenant: who may read a shared cache is a matter of where it is.
#[derive(Debug)]
pub(crate) struct Table {
    imported: Vec<Imported>,
    learning: Learning,
    learned: Mutex<Learned>,
}

impl Table {
    pub(crate) fn new(imported: Vec<Imported>, learning: Learning) -> Self {
        Self {
            imported,
            learning,
            learned: Mutex::default(),
        }
    }

    /// Tells whether anybody needs the keys of shared caches.
    pub(crate) fn is_used(&self) -> bool {
        !self.imported.is_empty() || self.learning == Learning::On
    }

    /// Tells whether any result of an operation is known, on whatever parent.
    pub(crate) fn may_hit(&self, operation: &Digest) -> bool {
        let knows = |imported: &Imported| imported.operations.contains(operation);
        self.imported.iter().any(knows)
    }

    /// Returns the results of a step, the first that was asked for first.
    pub(crate) fn find<'a>(
        &'a self,
        step: &'a Digest,
    ) -> impl Iterator<Item = (CachedStep, &'a Origin)> {
        self.imported.iter().filter_map(move |imported| {
            let found = imported.steps.get(step)?;
            let cached = CachedStep {
                layer: found.layer.clone(),
                created: found.created,
            };
            Some((cached, &imported.origin))
        })
    }

    /// Returns the digest of what a step takes from a stage.
    pub(crate) fn source(&self, key: &Digest) -> Option<Digest> {
        let mut imported = self.imported.iter();
        imported.find_map(|imported| imported.sources.get(key).cloned())
    }

    /// Remembers the result of a step.
    pub(crate) fn learn(&self, learnt: impl FnOnce() -> Learnt) {
        if self.learning == Learning::On {
            let learnt = learnt();
            self.lock().steps.push(learnt);
        }
    }

    /// Remembers the digest of what a step takes from a stage.
    pub(crate) fn learn_source(&self, key: impl FnOnce() -> Digest, digest: &Digest) {
        if self.learning == Learning::On {
            let key = key();
            self.lock().sources.insert(key, digest.clone());
        }
    }

    /// Returns what was learnt of the stages that `is_wanted` names: the document, the same whatever came first, and where its layers are.
    pub(crate) fn document(
        &self,
        is_wanted: impl Fn(&str) -> bool,
    ) -> (Document, HashMap<Digest, Option<Origin>>) {
        let learned = self.lock();
        let wanted = || {
            learned
                .steps
                .iter()
                .filter(|learnt| is_wanted(&learnt.stage))
        };
        let steps: BTreeMap<&Digest, &SharedStep> = wanted()
            .map(|learnt| (&learnt.step.step, &learnt.step))
            .collect();
        let origins = wanted().filter_map(|learnt| {
            let layer = learnt.step.layer.as_ref()?;
            Some((layer.digest.clone(), learnt.origin.clone()))
        });
        let document = Document {
            steps: steps.into_values().cloned().collect(),
            sources: learned.sources.clone(),
        };
        (document, origins.collect())
    }

    fn lock(&self) -> MutexGuard<'_, Learned> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
