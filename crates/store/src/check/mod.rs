//! Whether everything in the store is as it has to be, and putting right what is not.
//!
//! In order, so that what one part moves away the next one misses:
//!
//! 1. `blobs`: every blob is what its name says;
//! 2. `repositories`: links lead to blobs, tags to manifests, manifests to everything they name;
//! 3. `caches`: snapshots and their notes, records and their seals, cache mounts;
//! 4. `contexts`: uploaded folders and their contents;
//! 5. `leftovers`: what dead processes have left, and what is nobody's.
//!
//! It runs beside everything else that uses the store, and notes no use of anything: what looks wrong is looked at again under the lock of
//! those who might just be changing it. Unless it is to repair, it changes nothing. Then what can be made again is moved to quarantine or
//! removed; what somebody has named is forgotten only by [`Repair::AndForget`], and every time the finding says so.
//!
//! What is inside a snapshot is not looked at: nothing says what it should be but the layer that it was made from.
//!
//! Must run as whom everything belongs to: the data plane of an ordinary user, or the host's root.

mod blobs;
mod caches;
mod contexts;
mod leftovers;
mod repositories;

use std::io;

use oci::Digest;
use serde::{Deserialize, Serialize};

use crate::collect::NamedRecords;
use crate::{LockError, Store};

/// Findings that are told one by one; of more only their number is.
pub const FINDINGS_MAX: usize = 10_000;

/// How a store is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checking {
    /// What is looked at.
    pub depth: Depth,
    /// What is done about it.
    pub repair: Repair,
}

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Depth {
    /// Names, sizes, links and small documents.
    Names,
    /// All of it: every byte is read and hashed.
    Bytes,
}

/// What is done about what is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Repair {
    /// Nothing.
    Nothing,
    /// What can be made again is moved away or removed.
    MadeAgain,
    /// Names of what is incomplete are removed too.
    AndForget,
}

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Something that somebody was promised is not there any more.
    Lost,
    /// Something is wrong that can be made again.
    Damaged,
    /// It costs room and nothing else.
    Leftover,
}

/// Something that is not as it has to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub subject: String,
    /// What is wrong, a fragment.
    pub problem: String,
    /// What somebody can do, a fragment; nothing where repairing is all there is to do.
    pub advice: String,
    /// What repairing does, a fragment that begins with a verb in the third person; `None` when it does nothing.
    pub remedy: Option<String>,
    /// What of repairing is needed for that.
    pub needs: Repair,
    /// What has come of it.
    pub outcome: Outcome,
}

/// What has come of a finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing was to be done, or can be.
    Told,
    /// It was repaired as the remedy says.
    Repaired,
    /// That failed.
    Failed(String),
}

/// How much was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Blobs.
    pub n_blobs: u64,
    /// Bytes that were read and hashed.
    pub n_bytes: u64,
    /// Repositories.
    pub n_repositories: u64,
    /// Manifests in repositories.
    pub n_manifests: u64,
    /// Tags.
    pub n_tags: u64,
    /// Snapshots.
    pub n_snapshots: u64,
    /// Records.
    pub n_records: u64,
    /// Uploaded folders.
    pub n_contexts: u64,
    /// Damaged blobs in quarantine.
    pub n_quarantined: u64,
    /// Builds.
    pub n_builds: u64,
}

/// What a check has found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// One after the other, in the order of the check.
    pub findings: Vec<Finding>,
    /// How many more there are that are not told.
    pub n_untold: u64,
    /// How much was looked at.
    pub counts: Counts,
}

/// Tells why a store could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// A folder could not be looked through.
    #[error("look through the store")]
    Look(#[source] io::Error),
    /// Whoever may be changing something could not be waited for.
    #[error("wait for whoever changes what is checked")]
    Lock(#[source] LockError),
}

impl From<io::Error> for CheckError {
    fn from(source: io::Error) -> Self {
        Self::Look(source)
    }
}

impl From<LockError> for CheckError {
    fn from(source: LockError) -> Self {
        Self::Lock(source)
    }
}

/// What can be done about a finding.
pub struct Remedy<'a> {
    what: String,
    needs: Repair,
    act: Box<dyn FnOnce() -> io::Result<()> + 'a>,
}

impl<'a> Remedy<'a> {
    /// For what can be made again.
    pub fn of(what: impl Into<String>, act: impl FnOnce() -> io::Result<()> + 'a) -> Self {
        Self {
            what: what.into(),
            needs: Repair::MadeAgain,
            act: Box::new(act),
        }
    }

    /// For what somebody has named.
    pub fn forgetting(what: impl Into<String>, act: impl FnOnce() -> io::Result<()> + 'a) -> Self {
        Self {
            needs: Repair::AndForget,
            ..Self::of(what, act)
        }
    }
}

impl std::fmt::Debug for Remedy<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remedy").field("what", &self.what).finish()
    }
}

/// What is wrong with what.
#[derive(Debug, Clone)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub subject: String,
    /// What is wrong.
    pub problem: String,
    /// What somebody can do.
    pub advice: String,
}

impl Problem {
    /// Makes one without advice.
    pub fn new(severity: Severity, subject: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            severity,
            subject: subject.into(),
            problem: problem.into(),
            advice: String::new(),
        }
    }

    /// Adds what somebody can do.
    #[must_use]
    pub fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = advice.into();
        self
    }
}

impl Report {
    /// Adds what was found, and does what is to be done about it.
    pub fn add(&mut self, repair: Repair, problem: Problem, remedy: Option<Remedy<'_>>) {
        let (what, needs) = match &remedy {
            Some(remedy) => (Some(remedy.what.clone()), remedy.needs),
            None => (None, Repair::Nothing),
        };
        let outcome = match remedy {
            Some(remedy) if repair >= remedy.needs => match (remedy.act)() {
                Ok(()) => Outcome::Repaired,
                Err(error) => Outcome::Failed(error.to_string()),
            },
            _ => Outcome::Told,
        };
        if self.findings.len() >= FINDINGS_MAX {
            self.n_untold += 1;
            return;
        }
        self.findings.push(Finding {
            severity: problem.severity,
            subject: problem.subject,
            problem: problem.problem,
            advice: problem.advice,
            remedy: what,
            needs,
            outcome,
        });
    }

    /// Tells whether something is wrong that was not put right, or was put right by forgetting it. What only costs room is not wrong.
    pub fn is_wrong(&self) -> bool {
        let is_wrong = |finding: &Finding| match (finding.severity, &finding.outcome) {
            (Severity::Leftover, _) | (Severity::Damaged, Outcome::Repaired) => false,
            (Severity::Damaged | Severity::Lost, _) => true,
        };
        self.n_untold > 0 || self.findings.iter().any(is_wrong)
    }
}

impl Store {
    /// Checks everything in the store. Records of the kinds `named` hold the digest of what somebody gave a name.
    ///
    /// # Errors
    /// See [`CheckError`]: when it could not be checked. What is wrong is in the report.
    pub fn check(&self, how: Checking, named: NamedRecords<'_>) -> Result<Report, CheckError> {
        let mut checker = Checker {
            store: self,
            how,
            report: Report::default(),
        };
        let holders = checker.holders()?;
        checker.blobs(&holders)?;
        checker.repositories()?;
        checker.snapshots()?;
        checker.records(named)?;
        checker.mounts()?;
        checker.contexts()?;
        checker.leftovers()?;
        Ok(checker.report)
    }
}

/// A check on its way.
struct Checker<'a> {
    store: &'a Store,
    how: Checking,
    report: Report,
}

impl Checker<'_> {
    fn add(&mut self, problem: Problem, remedy: Option<Remedy<'_>>) {
        self.report.add(self.how.repair, problem, remedy);
    }

    /// Tells of something that no part of kiln has put there.
    fn nobodys(&mut self, subject: impl Into<String>) {
        let problem = "it is nothing that kiln puts there";
        self.add(
            Problem::new(Severity::Leftover, subject, problem)
                .advice("remove it unless you know what it is"),
            None,
        );
    }

    /// Returns the size of a blob without noting its use; `None` when it is not there.
    fn size_of(&self, digest: &Digest) -> io::Result<Option<u64>> {
        let path = format!("blobs/{}", digest.algorithm().name());
        let stat = self.store.root().sub(&path)?.stat(digest.hex())?;
        let is_file =
            |mode| rustix::fs::FileType::from_raw_mode(mode) == rustix::fs::FileType::RegularFile;
        Ok(stat
            .filter(|stat| is_file(stat.st_mode))
            .and_then(|stat| u64::try_from(stat.st_size).ok()))
    }
}
