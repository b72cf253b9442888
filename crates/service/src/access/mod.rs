//! Who may do what: [`caller`]s and their rights, whose a repository is ([`repositories`]), and here, who may use which registry
//! credential. Pure: tables and parsers, no socket and no file. Who is at the other end of a connection, [`crate::identity`] says.
//!
//! | the request says | credentials of the service that it may pull with |
//! |---|---|
//! | no `auth`, or `auth` without a mode | none |
//! | `total`, `allow_all` set | all |
//! | `total`, `allow_all` not set | none |
//! | `selective` | those of the base repository's host if `allow_baserep`, of the workspace repository's host if `allow_workspacerep`, and of every host in `any_of` |
//!
//! `additional` credentials are used for their own host, and only where the table above gives none of the service's: they never
//! take the place of one. Hosts are compared whole, in the canonical form that is also dialled. An ECR host is a host like any
//! other: nothing is sent to one because of how it looks.
//!
//! What the service does on its own account (does the image exist, publish it) is done with [`publish_keychain`], whatever the
//! request says; a request can neither widen nor narrow that.

pub mod caller;
pub mod repositories;

use std::collections::BTreeSet;

use engine::spec::Readable;
use oci::reference::{canonical_host, is_repository};
use registry::keychain::Keychain;
use serde::Deserialize;

pub use self::caller::{Caller, Right};
pub use self::repositories::Repositories;

/// Longest name of a tenant, in bytes.
const TENANT_MAX_BYTES: usize = 128;

/// Whose request it is: comes from the channel, never from a field of the request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Tenant(String);

/// A text that names no tenant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "tenant must be 1 to {TENANT_MAX_BYTES} characters: words of a-z and 0-9, joined by `-`, `_` or `.`"
)]
pub struct TenantError;

impl Tenant {
    /// Returns the tenant of this name.
    pub fn new(name: &str) -> Result<Self, TenantError> {
        // It is a part of the names of repositories, whole and unchanged.
        if name.len() <= TENANT_MAX_BYTES && is_repository(name) && !name.contains('/') {
            Ok(Self(name.to_owned()))
        } else {
            Err(TenantError)
        }
    }

    /// Returns the tenant that nobody is, and that has nothing.
    pub(crate) fn nobody() -> Self {
        Self(String::new())
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Tells whether this is the trusted caller whose images have the published names.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl TryFrom<String> for Tenant {
    type Error = TenantError;

    fn try_from(name: String) -> Result<Self, TenantError> {
        Self::new(&name)
    }
}

impl Default for Tenant {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

/// Which of the service's credentials a request may pull with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Grant {
    /// None.
    #[default]
    Nothing,
    /// All.
    Everything,
    /// Those of some hosts.
    Hosts {
        /// Whether the base repository's host is one.
        base: Allow,
        /// Whether the workspace repository's host is one.
        workspace: Allow,
        /// Canonical hosts.
        others: BTreeSet<String>,
    },
}

/// Whether something is allowed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Allow {
    /// It is not.
    #[default]
    No,
    /// It is.
    Yes,
}

impl From<bool> for Allow {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// What a request may pull with.
#[derive(Debug, Clone, Default)]
pub struct Rights {
    /// Of the service's.
    pub grant: Grant,
    /// Of its own.
    pub additional: Keychain,
    /// What of the embedded registry it may read.
    pub readable: Readable,
    /// Who makes it, to be remembered; nothing where nobody is told from anybody else.
    pub caller: String,
}

/// The hosts of the service's own repositories, canonical.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnHosts {
    /// Where base images are.
    pub base: String,
    /// Where workspace images are.
    pub workspace: String,
}

impl Rights {
    /// Returns what is left of these for `caller`: what a request asks for is never more than its caller has.
    #[must_use]
    pub fn of(self, caller: &Caller, repositories: &Repositories) -> Self {
        Self {
            grant: if caller.may(Right::Credentials) {
                self.grant
            } else {
                Grant::Nothing
            },
            additional: self.additional,
            readable: repositories.readable(&caller.tenant),
            caller: caller.remembered().to_owned(),
        }
    }

    /// Tells whether the service's credential of the canonical `host` may be used.
    pub fn may_use(&self, host: &str, own: &OwnHosts) -> bool {
        match &self.grant {
            Grant::Nothing => false,
            Grant::Everything => true,
            Grant::Hosts {
                base,
                workspace,
                others,
            } => {
                (*base == Allow::Yes && host == own.base)
                    || (*workspace == Allow::Yes && host == own.workspace)
                    || others.contains(host)
            }
        }
    }

    /// Returns the hosts that a request names itself: those whose credentials have to be at hand to decide.
    pub fn named_hosts<'a>(&'a self, own: &'a OwnHosts) -> BTreeSet<&'a str> {
        let mut hosts = BTreeSet::from([own.base.as_str(), own.workspace.as_str()]);
        if let Grant::Hosts { others, .. } = &self.grant {
            hosts.extend(others.iter().map(String::as_str));
        }
        hosts
    }
}

/// Returns what a request pulls with, given the service's credentials.
pub fn pull_keychain(rights: &Rights, own: &OwnHosts, service: &Keychain) -> Keychain {
    let granted: Vec<&str> = service
        .hosts()
        .filter(|host| rights.may_use(host, own))
        .collect();
    let mut keychain = service.only(&granted);
    // `merge` fills gaps only: the service's own come first.
    keychain.merge(rights.additional.clone());
    keychain
}

/// Returns what results are published, and looked for, with.
pub fn publish_keychain(own: &OwnHosts, service: &Keychain) -> Keychain {
    service.only(&[&own.base, &own.workspace])
}

/// An `any_of` entry that is not a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{host:?} is not a registry host")]
pub struct HostError {
    host: String,
}

/// Returns the canonical form of the hosts in `any_of`.
pub fn parse_hosts(hosts: &[String]) -> Result<BTreeSet<String>, HostError> {
    let canonical = |host: &String| {
        canonical_host(host).ok_or_else(|| HostError {
            host: host.chars().take(64).collect(),
        })
    };
    hosts.iter().map(canonical).collect()
}

/// A private registry of Amazon's, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EcrHost {
    /// The account, twelve digits.
    pub account: String,
    /// The region: `eu-central-1`, `us-gov-west-1`.
    pub region: String,
}

impl EcrHost {
    /// Parses a canonical host: exactly `<account>.dkr.ecr[-fips].<region>.<amazonaws.com or amazonaws.com.cn>`, or the
    /// dual-stack form `<account>.dkr-ecr[-fips].<region>.on.aws`, without a port. Look-alikes are refused: their account's
    /// owner is not Amazon.
    pub fn parse(host: &str) -> Option<Self> {
        let (account, rest) = host.split_once('.')?;
        if account.len() != 12 || !account.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let after =
            |prefixes: [&str; 2]| prefixes.iter().find_map(|prefix| rest.strip_prefix(prefix));
        let (region, domain) = match after(["dkr.ecr.", "dkr.ecr-fips."]) {
            Some(rest) => rest.split_once('.')?,
            None => after(["dkr-ecr.", "dkr-ecr-fips."])?.split_once('.')?,
        };
        let is_dual_stack = rest.starts_with("dkr-ecr");
        let is_amazons = match domain {
            "amazonaws.com" => !is_dual_stack && !region.starts_with("cn-"),
            "amazonaws.com.cn" => !is_dual_stack && region.starts_with("cn-"),
            "on.aws" => is_dual_stack,
            _ => false,
        };
        (is_amazons && is_region(region)).then(|| Self {
            account: account.to_owned(),
            region: region.to_owned(),
        })
    }
}

/// Tells whether `region` is words of lower-case letters joined by `-`, the last one a number.
fn is_region(region: &str) -> bool {
    let parts: Vec<&str> = region.split('-').collect();
    let Some((number, words)) = parts.split_last() else {
        return false;
    };
    (2..=3).contains(&words.len())
        && words
            .iter()
            .all(|word| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase()))
        && (1..=2).contains(&number.len())
        && number.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests;
