//! Which repositories of the embedded registry a build may read. Names only: nothing here looks at the store.
//!
//! The registry shares its store with every build, so nothing but this keeps one tenant's build from another tenant's images.

use serde::{Deserialize, Serialize};

/// Which repositories of the embedded registry may be read. Each name stands for itself and for everything below it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Readable {
    /// No others than these; all when not given.
    pub within: Option<Vec<String>>,
    /// None of these, whatever `within` says.
    pub without: Vec<String>,
    /// These, whatever the others say.
    pub shared: Vec<String>,
}

impl Readable {
    /// Tells whether a repository may be read.
    pub fn allows(&self, repository: &str) -> bool {
        let is_one = |names: &[String]| names.iter().any(|name| is_below(repository, name));
        is_one(&self.shared)
            || (self.within.as_deref().is_none_or(is_one) && !is_one(&self.without))
    }
}

/// Tells whether a repository is `name`, or below it.
pub fn is_below(repository: &str, name: &str) -> bool {
    let rest = repository.strip_prefix(name);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_for_itself_and_what_is_below_it() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let all = Readable::default();
        assert!(all.allows("a") && all.allows("a/b"));
        let some = Readable {
            within: Some(names(&["t/a"])),
            without: names(&["t/a/secret"]),
            shared: names(&["library", "t/a/secret/not"]),
        };
        for (name, allowed) in [
            ("t/a", true),
            ("t/a/x", true),
            ("t/ab", false),
            ("t", false),
            ("x/t/a", false),
            ("t/a/secret", false),
            ("t/a/secret/x", false),
            ("t/a/secret/not/x", true),
            ("t/a/secrets", true),
            ("library/alpine", true),
            ("libraryx", false),
        ] {
            assert_eq!(some.allows(name), allowed, "{name}");
        }
    }
}
