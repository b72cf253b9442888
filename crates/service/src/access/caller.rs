//! Who calls, and what they may do. Pure.
//!
//! A caller comes from the channel (a certificate, a token) and never from a field of a request. Every caller is of one tenant; what a
//! caller may do, it may do to what is its tenant's.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::Tenant;

/// Something that a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Right {
    /// Pull from the embedded registry: the tenant's repositories, and those that are shared.
    Pull,
    /// Look at builds, logs and images; pull.
    Read,
    /// Build, cancel, upload, push; read.
    Build,
    /// Ask for the service's registry credentials to be used.
    Credentials,
    /// Read what is counted.
    Metrics,
    /// All of these, and every tenant's repositories in the embedded registry.
    Admin,
}

impl Right {
    /// Tells whether who has this right has `other` by it.
    fn gives(self, other: Self) -> bool {
        match self {
            Self::Admin => true,
            Self::Build => matches!(other, Self::Build | Self::Read | Self::Pull),
            Self::Read => matches!(other, Self::Read | Self::Pull),
            Self::Pull | Self::Credentials | Self::Metrics => self == other,
        }
    }
}

/// What the one trusted caller is called; no configured one can be.
pub const ANYBODY: &str = "anybody";

/// Somebody who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// What the operator calls it.
    pub name: String,
    /// Whose it is.
    pub tenant: Tenant,
    /// What it may do.
    pub rights: BTreeSet<Right>,
}

impl Caller {
    /// Returns the one trusted caller of a service that has no callers configured.
    pub fn trusted() -> Self {
        Self {
            name: ANYBODY.to_owned(),
            tenant: Tenant::default(),
            rights: BTreeSet::from([Right::Admin]),
        }
    }

    /// Returns what is remembered of it: nothing of the one trusted caller.
    pub fn remembered(&self) -> &str {
        if self.name == ANYBODY { "" } else { &self.name }
    }

    /// Tells whether it has a right.
    pub fn may(&self, right: Right) -> bool {
        self.rights.iter().any(|has| has.gives(right))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_give_what_goes_without_saying_and_no_more() {
        let may = |has: Right| {
            let caller = Caller {
                rights: BTreeSet::from([has]),
                ..Caller::trusted()
            };
            let all = [
                Right::Pull,
                Right::Read,
                Right::Build,
                Right::Credentials,
                Right::Metrics,
                Right::Admin,
            ];
            let may: Vec<Right> = all.into_iter().filter(|right| caller.may(*right)).collect();
            may
        };
        assert_eq!(may(Right::Pull), [Right::Pull]);
        assert_eq!(may(Right::Read), [Right::Pull, Right::Read]);
        assert_eq!(may(Right::Build), [Right::Pull, Right::Read, Right::Build]);
        assert_eq!(may(Right::Credentials), [Right::Credentials]);
        assert_eq!(may(Right::Metrics), [Right::Metrics]);
        assert_eq!(may(Right::Admin).len(), 6);
    }
}
