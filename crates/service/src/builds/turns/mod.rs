//! Whose turn it is: how many builds run, who waits, and who of them is next. Pure: time and ids come from outside.
//!
//! Tenants share the places where builds run by what they have used of them, in time and by weight: who has used least is next. A build
//! counts with `ESTIMATE_MS` as long as nobody knows better, then with the time that it runs or has run. So tenants that want more than
//! there is get the same, however long their builds take and however many of them wait; nobody starves; and one who was idle begins where
//! the others are, and neither makes up for it nor pays for it. The builds of one tenant run in the order in which they came.
//!
//! Always: no more run than may, in all and of each tenant, but for those that ran before (a restart with lower limits); a place that is
//! free is free because nobody waits who may have it; a build waits or runs, or is not known here.

use std::collections::{BTreeMap, HashMap, VecDeque};

use engine::id::BuildId;

/// How long a build is taken to run before it has run longer, in milliseconds.
const ESTIMATE_MS: u64 = 30_000;
/// What is used is counted in thousandths, so that weights divide it without losing much.
const SCALE: u128 = 1000;

/// How much is taken on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnLimits {
    /// Builds that run at the same time.
    pub running: usize,
    /// Builds that wait for their turn.
    pub queued: usize,
    /// What a tenant may have that is not named.
    pub each: Share,
    /// What tenants may have, by name.
    pub tenants: BTreeMap<String, Share>,
}

/// What a tenant may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// How much it may use, compared with others; at least 1.
    pub weight: u32,
    /// Its builds that run at the same time.
    pub running: usize,
    /// Its builds that wait.
    pub queued: usize,
}

/// Why a build is not taken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// So many wait in all.
    Server(usize),
    /// So many of the tenant wait.
    Tenant(usize),
}

/// Who runs and who waits.
#[derive(Debug, Clone)]
pub(super) struct Turns {
    limits: TurnLimits,
    tenants: BTreeMap<String, Tenant>,
    /// Whose each build is that runs or waits.
    owners: HashMap<BuildId, String>,
    n_running: usize,
    n_waiting: usize,
    n_came: u64,
}

#[derive(Debug, Clone, Default)]
struct Tenant {
    /// What ended builds have used, in thousandths of a millisecond by weight.
    used: u128,
    /// Since when each build runs, in milliseconds.
    running: HashMap<BuildId, u64>,
    /// Those that wait, each with its number among all that came.
    waiting: VecDeque<(u64, BuildId)>,
}

impl Tenant {
    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Returns what it has used until now, each build that runs taken to run for at least `least_ms`.
    fn used(&self, weight: u32, now_ms: u64, least_ms: u64) -> u128 {
        let running = self.running.values();
        let running: u128 = running
            .map(|since| cost(now_ms.saturating_sub(*since).max(least_ms), weight))
            .sum();
        self.used + running
    }
}

fn cost(ms: u64, weight: u32) -> u128 {
    u128::from(ms) * SCALE / u128::from(weight.max(1))
}

impl Turns {
    pub(super) fn new(limits: TurnLimits) -> Self {
        Self {
            limits,
            tenants: BTreeMap::new(),
            owners: HashMap::new(),
            n_running: 0,
            n_waiting: 0,
            n_came: 0,
        }
    }

    fn share(&self, tenant: &str) -> Share {
        let named = self.limits.tenants.get(tenant);
        named.copied().unwrap_or(self.limits.each)
    }

    /// Tells whether one more build of a tenant may come.
    pub(super) fn admit(&self, tenant: &str) -> Result<(), Full> {
        let share = self.share(tenant);
        let (n_running, n_waiting) = self.tenants.get(tenant).map_or((0, 0), |tenant| {
            (tenant.running.len(), tenant.waiting.len())
        });
        let has_place = self.n_running < self.limits.running && n_running < share.running;
        if has_place {
            return Ok(());
        }
        if n_waiting >= share.queued {
            return Err(Full::Tenant(n_waiting));
        }
        if self.n_waiting >= self.limits.queued {
            return Err(Full::Server(self.n_waiting));
        }
        Ok(())
    }

    /// Puts a build at the end of its tenant's line.
    pub(super) fn wait(&mut self, tenant: &str, id: &BuildId, now_ms: u64) {
        self.wake(tenant, now_ms);
        let came = self.n_came;
        self.n_came += 1;
        self.n_waiting += 1;
        self.owners.insert(id.clone(), tenant.to_owned());
        let tenant = self.tenants.entry(tenant.to_owned()).or_default();
        tenant.waiting.push_back((came, id.clone()));
    }

    /// Takes note of a build that runs already.
    pub(super) fn run(&mut self, tenant: &str, id: &BuildId, now_ms: u64) {
        self.wake(tenant, now_ms);
        self.n_running += 1;
        self.owners.insert(id.clone(), tenant.to_owned());
        let tenant = self.tenants.entry(tenant.to_owned()).or_default();
        tenant.running.insert(id.clone(), now_ms);
    }

    /// Gives a tenant that was idle no more, and no less, than the one of the others who has used least.
    fn wake(&mut self, name: &str, now_ms: u64) {
        if self
            .tenants
            .get(name)
            .is_some_and(|tenant| !tenant.is_idle())
        {
            return;
        }
        let others = self.tenants.iter().filter(|(_, tenant)| !tenant.is_idle());
        let least = others
            // What is only taken to be used would be given back later, and would be kept from the newcomer for good.
            .map(|(name, tenant)| tenant.used(self.share(name).weight, now_ms, 0))
            .min();
        let tenant = self.tenants.entry(name.to_owned()).or_default();
        tenant.used = tenant.used.max(least.unwrap_or_default());
    }

    /// Returns a build whose turn it is now, if there is one; it runs from now on.
    pub(super) fn next(&mut self, now_ms: u64) -> Option<BuildId> {
        if self.n_running >= self.limits.running {
            return None;
        }
        let name = self.choose(now_ms, |tenant, share| tenant.running.len() < share.running)?;
        let tenant = self.tenants.get_mut(&name)?;
        let (_, id) = tenant.waiting.pop_front()?;
        tenant.running.insert(id.clone(), now_ms);
        self.n_waiting -= 1;
        self.n_running += 1;
        Some(id)
    }

    /// Returns the tenant with builds that wait who has used least of those that `may`; of several, the one whose build came first.
    fn choose(&self, now_ms: u64, may: impl Fn(&Tenant, Share) -> bool) -> Option<String> {
        let candidates = self.tenants.iter().filter_map(|(name, tenant)| {
            let (came, _) = tenant.waiting.front()?;
            let share = self.share(name);
            may(tenant, share)
                .then(|| (tenant.used(share.weight, now_ms, ESTIMATE_MS), *came, name))
        });
        candidates.min().map(|(_, _, name)| name.clone())
    }

    /// Forgets a build that runs or waits.
    pub(super) fn leave(&mut self, id: &BuildId, now_ms: u64) {
        let Some(name) = self.owners.remove(id) else {
            return;
        };
        let weight = self.share(&name).weight;
        let Some(tenant) = self.tenants.get_mut(&name) else {
            return;
        };
        if let Some(since) = tenant.running.remove(id) {
            self.n_running -= 1;
            tenant.used += cost(now_ms.saturating_sub(since).max(1), weight);
        } else {
            let n_before = tenant.waiting.len();
            tenant.waiting.retain(|(_, waits)| waits != id);
            self.n_waiting -= n_before - tenant.waiting.len();
        }
    }

    /// Returns how many wait.
    pub(super) fn n_waiting(&self) -> usize {
        self.n_waiting
    }

    /// Returns everybody who waits, in the order in which their turns come if nothing else does.
    pub(super) fn line(&self, now_ms: u64) -> Vec<BuildId> {
        let mut then = self.clone();
        let mut line = Vec::new();
        while let Some(name) = then.choose(now_ms, |_, _| true) {
            let weight = then.share(&name).weight;
            let Some(tenant) = then.tenants.get_mut(&name) else {
                break;
            };
            let Some((_, id)) = tenant.waiting.pop_front() else {
                break;
            };
            tenant.used += cost(ESTIMATE_MS, weight);
            line.push(id);
        }
        line
    }
}

#[cfg(test)]
mod tests;
