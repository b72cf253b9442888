//! Lists of builds: which are wanted, and pages that do not move when builds are added.
//!
//! A page begins after a place, and a place is a time and an id: whatever is accepted or forgotten meanwhile, no build is returned
//! twice, and none is passed over that was there all the time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use engine::event::{FailureKind, Phase};
use engine::id::BuildId;
use engine::spec::{Purpose, Record};
use engine::state::BuildState;
use oci::Digest;

use super::Builds;
use super::build::Build;
use crate::access::Tenant;

/// How many builds are looked at before others get at the table.
const CHUNK: usize = 1000;
/// How much of the filter's digest is in a token.
const FILTER_DIGITS: usize = 16;

/// Which builds are wanted. The default one wants all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Where they stand; anywhere when empty.
    pub standings: BTreeSet<Standing>,
    /// Why they have not ended well; anyhow when empty.
    pub reasons: BTreeSet<Reason>,
    /// Name of the image or its base.
    pub reference: Option<String>,
    /// Who says to have asked.
    pub triggered_by: Option<String>,
    /// What their requests say about themselves, at least.
    pub labels: BTreeMap<String, String>,
    /// Accepted then or later, in Unix milliseconds.
    pub since_ms: u64,
    /// Accepted before.
    pub until_ms: Option<u64>,
    /// What they make; anything when empty.
    pub purposes: BTreeSet<Purpose>,
}

/// Where a build stands, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Accepted.
    Queued,
    /// Fetching the context and pinning bases.
    Resolving,
    /// Making the plan.
    Planning,
    /// Carrying out steps.
    Running,
    /// Publishing.
    Pushing,
    /// Ended well.
    Succeeded,
    /// Ended otherwise.
    Failed,
    /// Ended by request.
    Cancelled,
}

impl Standing {
    /// Returns where a build of this state stands.
    pub fn of(state: &BuildState) -> Self {
        match state {
            BuildState::Queued { .. } => Self::Queued,
            BuildState::Active { phase } => match phase {
                Phase::Resolving => Self::Resolving,
                Phase::Planning => Self::Planning,
                Phase::Running => Self::Running,
                Phase::Pushing => Self::Pushing,
            },
            BuildState::Succeeded { .. } => Self::Succeeded,
            BuildState::Failed { .. } => Self::Failed,
            BuildState::Cancelled => Self::Cancelled,
        }
    }
}

/// Why a build has not ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It failed of this.
    Failed(FailureKind),
    /// Somebody has ended it.
    Cancelled,
}

impl Reason {
    /// Returns why a build of this state has not ended well; `None` when it has, or runs.
    pub fn of(state: &BuildState) -> Option<Self> {
        match state {
            BuildState::Failed { failure } => Some(Self::Failed(failure.kind)),
            BuildState::Cancelled => Some(Self::Cancelled),
            BuildState::Queued { .. }
            | BuildState::Active { .. }
            | BuildState::Succeeded { .. } => None,
        }
    }

    /// Returns its name in metrics and lists.
    pub fn word(self) -> &'static str {
        match self {
            Self::Failed(kind) => kind.word(),
            Self::Cancelled => "cancelled",
        }
    }
}

impl Filter {
    /// Tells whether a build is wanted.
    pub fn wants(&self, record: &Record, state: &BuildState) -> bool {
        let is_named = |name: &String| record.reference == *name || record.base_reference == *name;
        let is_by = |who: &String| record.triggered_by == *who;
        let has_label = |(name, value): (&String, &String)| record.labels.get(name) == Some(value);
        let is_in_time = record.started_at_ms >= self.since_ms
            && self
                .until_ms
                .is_none_or(|until| record.started_at_ms < until);
        is_in_time
            && is_any(&self.standings, &Standing::of(state))
            && (self.reasons.is_empty()
                || Reason::of(state).is_some_and(|reason| self.reasons.contains(&reason)))
            && is_any(&self.purposes, &record.purpose)
            && self.reference.as_ref().is_none_or(is_named)
            && self.triggered_by.as_ref().is_none_or(is_by)
            && self.labels.iter().all(has_label)
    }

    /// Returns what tells this filter from others.
    fn fingerprint(&self) -> String {
        let digest = Digest::sha256(format!("{self:?}").as_bytes());
        let digits = digest.hex();
        digits.get(..FILTER_DIGITS).unwrap_or(digits).to_owned()
    }
}

fn is_any<T: Ord>(wanted: &BTreeSet<T>, one: &T) -> bool {
    wanted.is_empty() || wanted.contains(one)
}

/// Where a page begins: after this build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    started_at_ms: u64,
    id: BuildId,
}

/// Tells that a text is no place in the list of this filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// Nobody has got it from us.
    #[error("is no token of a page")]
    Unknown,
    /// It belongs to another list.
    #[error("belongs to a list with other filters")]
    Other,
}

impl Place {
    fn of(build: &Build) -> Self {
        Self {
            started_at_ms: build.record.started_at_ms,
            id: build.record.id.clone(),
        }
    }

    /// Returns the place as a token, good for this filter.
    pub fn token(&self, filter: &Filter) -> String {
        let text = format!(
            "{} {} {}",
            self.started_at_ms,
            self.id,
            filter.fingerprint()
        );
        URL_SAFE_NO_PAD.encode(text)
    }

    /// Returns the place that a token means in the list of this filter.
    pub fn parse(token: &str, filter: &Filter) -> Result<Self, PlaceError> {
        let unknown = PlaceError::Unknown;
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| unknown.clone())?;
        let text = String::from_utf8(bytes).map_err(|_| unknown.clone())?;
        let mut words = text.split(' ');
        let (time, id, fingerprint) = (words.next(), words.next(), words.next());
        let place = Self {
            started_at_ms: time
                .and_then(|time| time.parse().ok())
                .ok_or(unknown.clone())?,
            id: id.and_then(|id| id.parse().ok()).ok_or(unknown)?,
        };
        match fingerprint {
            Some(print) if print == filter.fingerprint() => Ok(place),
            _ => Err(PlaceError::Other),
        }
    }
}

/// A page of a list.
#[derive(Debug)]
pub struct Page {
    /// The newest first.
    pub builds: Vec<Arc<Build>>,
    /// Where the next one begins, if there is one.
    pub next: Option<Place>,
}

impl Builds {
    /// Returns at most `size` builds of a tenant, the newest first: from the place on, else from the newest of all.
    pub fn page(&self, tenant: &Tenant, filter: &Filter, from: Option<Place>, size: usize) -> Page {
        let mut bound = match (from, filter.until_ms) {
            (Some(place), _) => Some((place.started_at_ms, place.id)),
            // No id is before this one.
            (None, Some(until_ms)) => Some((until_ms, BuildId::from_random([0; 16]))),
            (None, None) => None,
        };
        let mut builds: Vec<Arc<Build>> = Vec::new();
        loop {
            let chunk = self.older(tenant, bound.as_ref());
            let is_last = chunk.len() < CHUNK;
            for build in &chunk {
                if build.record.started_at_ms < filter.since_ms {
                    return Page { builds, next: None };
                }
                if !build.stands(|state| filter.wants(&build.record, state)) {
                    continue;
                }
                if builds.len() >= size {
                    let next = builds.last().map(|build| Place::of(build));
                    return Page { builds, next };
                }
                builds.push(Arc::clone(build));
            }
            let last = chunk.last().map(|build| Place::of(build));
            match last {
                Some(last) if !is_last => bound = Some((last.started_at_ms, last.id)),
                _ => return Page { builds, next: None },
            }
        }
    }

    /// Returns the next builds of a tenant that are older than the bound, the newest first.
    fn older(&self, tenant: &Tenant, bound: Option<&(u64, BuildId)>) -> Vec<Arc<Build>> {
        let table = self.table();
        let Some(line) = table.lines_by_tenant.get(tenant.as_str()) else {
            return Vec::new();
        };
        let builds = match bound {
            Some(bound) => line.range(..bound.clone()),
            None => line.range(..),
        };
        let builds = builds.rev().take(CHUNK);
        builds
            .filter_map(|(_, id)| table.builds.get(id).map(Arc::clone))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: u8) -> Record {
        Record {
            id: BuildId::from_random([n; 16]),
            tenant: "default".to_owned(),
            triggered_by: "somebody".to_owned(),
            caller: String::new(),
            supervisor_ref: String::new(),
            reference: "registry.example/app:1".to_owned(),
            base_reference: "registry.example/base:1".to_owned(),
            started_at_ms: 1000 + u64::from(n),
            key: String::new(),
            purpose: Purpose::Named,
            request: String::new(),
            labels: BTreeMap::from([
                ("team".to_owned(), "a".to_owned()),
                ("run".to_owned(), n.to_string()),
            ]),
        }
    }

    type Change = fn(&mut Filter);

    #[test]
    fn every_word_of_a_filter_counts() {
        let record = record(1);
        let state = BuildState::Cancelled;
        let wants = |change: fn(&mut Filter)| {
            let mut filter = Filter::default();
            change(&mut filter);
            filter.wants(&record, &state)
        };
        let pairs: [(Change, Change); 8] = [
            (
                |f| f.standings = [Standing::Cancelled].into(),
                |f| f.standings = [Standing::Failed].into(),
            ),
            (
                |f| f.reasons = [Reason::Cancelled].into(),
                |f| f.reasons = [Reason::Failed(FailureKind::Timeout)].into(),
            ),
            (
                |f| f.reference = Some("registry.example/base:1".to_owned()),
                |f| f.reference = Some("registry.example/base".to_owned()),
            ),
            (
                |f| f.triggered_by = Some("somebody".to_owned()),
                |f| f.triggered_by = Some("some".to_owned()),
            ),
            (
                |f| f.labels = [("run".to_owned(), "1".to_owned())].into(),
                |f| f.labels = [("run".to_owned(), "2".to_owned())].into(),
            ),
            (|f| f.since_ms = 1001, |f| f.since_ms = 1002),
            (|f| f.until_ms = Some(1002), |f| f.until_ms = Some(1001)),
            (
                |f| f.purposes = [Purpose::Named].into(),
                |f| f.purposes = [Purpose::Image].into(),
            ),
        ];
        for (n, (yes, no)) in pairs.into_iter().enumerate() {
            assert!(wants(yes), "{n}");
            assert!(!wants(no), "{n}");
        }
    }

    #[test]
    fn a_token_is_good_for_its_own_list() {
        let filter = Filter::default();
        let other = Filter {
            since_ms: 1,
            ..Filter::default()
        };
        let place = Place {
            started_at_ms: 17,
            id: BuildId::from_random([9; 16]),
        };
        let token = place.token(&filter);
        assert_eq!(Place::parse(&token, &filter), Ok(place));
        assert_eq!(Place::parse(&token, &other), Err(PlaceError::Other));
        for wrong in ["", "x", "????", "MTcgeCB5", &token[1..]] {
            assert!(Place::parse(wrong, &filter).is_err(), "{wrong}");
        }
    }
}
