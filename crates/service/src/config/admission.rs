//! Which builds are taken on, and how tenants share what there is.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Config, ConfigError, value};
use crate::access::Tenant;
use crate::builds::turns::{Share, TurnLimits};

/// Which builds are taken on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admission {
    /// Builds of one tenant that run at the same time.
    pub tenant_running: Option<usize>,
    /// Builds of one tenant that wait for their turn.
    pub tenant_queued: Option<usize>,
    /// What has to be free on the disk for another build.
    pub min_free_bytes: Option<u64>,
    /// Tenants for which something else is meant.
    pub tenants: BTreeMap<String, TenantAdmission>,
}

/// What is meant for one tenant.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TenantAdmission {
    /// How much it gets when others want something too, compared with them.
    pub weight: u32,
    /// Its builds that run at the same time.
    pub running: Option<usize>,
    /// Its builds that wait for their turn.
    pub queued: Option<usize>,
}

impl Default for TenantAdmission {
    fn default() -> Self {
        Self {
            weight: 1,
            running: None,
            queued: None,
        }
    }
}

/// Largest weight.
const WEIGHT_MAX: u32 = 1000;

impl Config {
    /// Returns how much is taken on.
    pub fn turn_limits(&self) -> TurnLimits {
        let (server, admission) = (&self.server, &self.admission);
        // One tenant of several does not take the whole line.
        let otherwise = if self.callers.is_empty() {
            server.max_queued_builds
        } else {
            server.max_queued_builds.div_ceil(2)
        };
        let each = Share {
            weight: 1,
            running: admission
                .tenant_running
                .unwrap_or(server.max_running_builds),
            queued: admission.tenant_queued.unwrap_or(otherwise),
        };
        let named = admission.tenants.iter().map(|(name, tenant)| {
            let share = Share {
                weight: tenant.weight,
                running: tenant.running.unwrap_or(each.running),
                queued: tenant.queued.unwrap_or(each.queued),
            };
            (name.clone(), share)
        });
        TurnLimits {
            running: server.max_running_builds,
            queued: server.max_queued_builds,
            each,
            tenants: named.collect(),
        }
    }

    pub(super) fn check_admission(&self) -> Result<(), ConfigError> {
        let admission = &self.admission;
        if admission.tenant_running == Some(0) {
            return Err(value("admission.tenant_running", "must be at least 1"));
        }
        for (name, tenant) in &admission.tenants {
            let refuse = |problem: &str| {
                let problem = format!("{name:?} {problem}");
                Err(value("admission.tenants", &problem))
            };
            if Tenant::new(name).is_err() {
                return refuse("is not the name of a tenant");
            }
            if !(1..=WEIGHT_MAX).contains(&tenant.weight) {
                return refuse("has a weight that is not between 1 and 1000");
            }
            if tenant.running == Some(0) {
                return refuse("could never build: running must be at least 1");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::config::parse;

    #[test]
    fn what_is_not_said_of_a_tenant_follows_from_the_rest() {
        let text =
            "[admission]\ntenant_queued = 7\n[admission.tenants.a]\nweight = 3\nrunning = 2\n";
        let limits = parse(text).unwrap().config.turn_limits();
        assert_eq!((limits.running, limits.queued), (8, 256));
        assert_eq!((limits.each.running, limits.each.queued), (8, 7));
        let a = limits.tenants["a"];
        assert_eq!((a.weight, a.running, a.queued), (3, 2, 7));
        assert_eq!(parse("").unwrap().config.turn_limits().each.queued, 256);
        let hash = "0".repeat(64);
        let callers = format!(
            "[[callers]]\nname = \"x\"\nrights = [\"read\"]\ntoken_sha256 = [\"{hash}\"]\n"
        );
        assert_eq!(
            parse(&callers).unwrap().config.turn_limits().each.queued,
            128
        );
        for bad in [
            "[admission]\ntenant_running = 0",
            "[admission.tenants.A]\nweight = 1",
            "[admission.tenants.a]\nweight = 0",
            "[admission.tenants.a]\nweight = 1001",
            "[admission.tenants.a]\nrunning = 0",
            "[admission.tenants.a]\nmax = 0",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
