//! The variables of a stage: what ENV and ARG set, in the order in which names were first set.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::types::Environment;
use crate::expand::Variables;

/// The variables that instructions of a stage can see.
#[derive(Debug, Clone, Default)]
pub(super) struct Scope {
    pairs: Arc<Vec<(String, String)>>,
    index: BTreeMap<String, usize>,
    bytes: usize,
}

impl Scope {
    /// Sets a variable; one that exists keeps its place.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.bytes += value.len();
        // Copies the pairs only when a step has taken them since the last change.
        let pairs = Arc::make_mut(&mut self.pairs);
        if let Some(pair) = self.index.get(name).and_then(|at| pairs.get_mut(*at)) {
            self.bytes -= pair.1.len();
            value.clone_into(&mut pair.1);
            return;
        }
        self.bytes += name.len();
        self.index.insert(name.to_owned(), pairs.len());
        pairs.push((name.to_owned(), value.to_owned()));
    }

    /// Returns all of them, shared.
    pub(super) fn snapshot(&self) -> Environment {
        Arc::clone(&self.pairs)
    }

    /// Tells whether the next change has to copy everything.
    pub(super) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.pairs) > 1
    }

    /// Returns how many bytes all names and values take.
    pub(super) fn size_bytes(&self) -> usize {
        self.bytes
    }
}

impl Variables for Scope {
    fn value(&self, name: &str) -> Option<&str> {
        let at = self.index.get(name)?;
        self.pairs.get(*at).map(|(_, value)| value.as_str())
    }
}
