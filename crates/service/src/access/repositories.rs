//! Whose a repository of the embedded registry is. Pure.
//!
//! | repository | whose | who writes |
//! |---|---|---|
//! | the service's own (`base-images`, `workspace-images`) | the default tenant's | workers only, through the store |
//! | `TENANTS/NAME/base-images`, `TENANTS/NAME/workspace-images` | tenant NAME's | workers only |
//! | any other below `TENANTS/NAME` | tenant NAME's | builds and pushes of that tenant |
//! | every other | the default tenant's | builds and pushes of the default tenant |
//!
//! `TENANTS` is the configuration's `tenant_namespace`. No name of the default tenant is below it, whatever it is called: two tenants
//! never share a name. Where no callers are configured there is one tenant, and nothing is divided.

use engine::spec::{Readable, is_below};
use oci::Reference;

use super::{Caller, Right, Tenant};

/// Whose each repository is.
#[derive(Debug, Clone, Default)]
pub struct Repositories {
    /// What other tenants' names begin with; `None` where nothing is divided.
    pub tenants: Option<String>,
    /// The service's own repositories in the embedded registry.
    pub own: Vec<String>,
    /// What every tenant may pull.
    pub shared: Vec<String>,
}

impl Repositories {
    /// Returns what a tenant may read.
    pub fn readable(&self, tenant: &Tenant) -> Readable {
        let Some(tenants) = &self.tenants else {
            return Readable::default();
        };
        let (within, without) = if tenant.is_default() {
            (None, vec![tenants.clone()])
        } else {
            (Some(vec![below(tenants, tenant)]), Vec::new())
        };
        Readable {
            within,
            without,
            shared: self.shared.clone(),
        }
    }

    /// Tells whether a caller may read a repository.
    pub fn may_read(&self, caller: &Caller, repository: &str) -> bool {
        caller.may(Right::Admin)
            || (caller.may(Right::Pull) && self.readable(&caller.tenant).allows(repository))
    }

    /// Tells whether a caller may push to a repository, and remove from it.
    pub fn may_write(&self, caller: &Caller, repository: &str) -> bool {
        if self.is_services(repository) || !caller.may(Right::Build) {
            return false;
        }
        caller.may(Right::Admin) || self.is_of(&caller.tenant, repository)
    }

    /// Tells whether a repository is a tenant's.
    pub fn is_of(&self, tenant: &Tenant, repository: &str) -> bool {
        match &self.tenants {
            None => true,
            Some(tenants) if tenant.is_default() => !is_below(repository, tenants),
            Some(tenants) => is_below(repository, &below(tenants, tenant)),
        }
    }

    /// Returns the name of the tenant whose a repository is; `None` where nothing is divided.
    pub fn owner_of(&self, repository: &str) -> Option<String> {
        let tenants = self.tenants.as_ref()?;
        let rest = repository.strip_prefix(tenants.as_str());
        let rest = rest.and_then(|rest| rest.strip_prefix('/'));
        let name = rest.map(|rest| rest.split_once('/').map_or(rest, |(name, _)| name));
        let name = name.map(ToOwned::to_owned);
        Some(name.unwrap_or_else(|| Tenant::default().as_str().to_owned()))
    }

    /// Tells whether only workers may write to a repository, because the service looks images up there.
    pub fn is_services(&self, repository: &str) -> bool {
        let of_tenant = self.tenants.as_ref().and_then(|tenants| {
            let rest = repository
                .strip_prefix(tenants.as_str())?
                .strip_prefix('/')?;
            rest.split_once('/').map(|(_, name)| name)
        });
        let name = of_tenant.unwrap_or(repository);
        self.own.iter().any(|own| own == name)
    }

    /// Returns a tenant's part of one of the service's repositories. In another registry than the embedded one, tenants share it, and
    /// their tags differ.
    pub fn part_of(&self, repository: &Reference, tenant: &Tenant) -> Reference {
        let path = repository.repository();
        let tenants = self.tenants.as_ref().filter(|_| {
            let is_embedded = self.own.iter().any(|own| own == path);
            is_embedded && !tenant.is_default()
        });
        let part = tenants.and_then(|tenants| {
            let name = format!("{}/{}/{path}", repository.host(), below(tenants, tenant));
            name.parse().ok()
        });
        part.unwrap_or_else(|| repository.clone())
    }
}

fn below(tenants: &str, tenant: &Tenant) -> String {
    format!("{tenants}/{}", tenant.as_str())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn repositories() -> Repositories {
        Repositories {
            tenants: Some("tenants".to_owned()),
            own: vec!["base-images".to_owned(), "workspace-images".to_owned()],
            shared: vec!["library".to_owned(), "tenants/a/open".to_owned()],
        }
    }

    fn caller(tenant: &str, right: Right) -> Caller {
        Caller {
            name: "c".to_owned(),
            tenant: Tenant::new(tenant).unwrap(),
            rights: BTreeSet::from([right]),
        }
    }

    #[test]
    fn each_repository_is_one_tenants() {
        let all = repositories();
        for (repository, reads, writes) in [
            ("builds/app", "default", "default"),
            ("builds/a/app", "default", "default"),
            ("tenants", "", ""),
            ("tenantsx/app", "default", "default"),
            ("base-images", "default", ""),
            ("tenants/a/app", "a", "a"),
            ("tenants/a", "a", "a"),
            ("tenants/a/base-images", "a", ""),
            ("tenants/a/base-images/x", "a", "a"),
            ("tenants/aa/app", "aa", "aa"),
            ("tenants/a/open/x", "default a aa", "a"),
            ("library/alpine", "default a aa", "default"),
            ("libraryx", "default", "default"),
        ] {
            let who = |may: &dyn Fn(&Caller) -> bool| {
                let tenants = ["default", "a", "aa"].into_iter();
                let may: Vec<&str> = tenants
                    .filter(|tenant| may(&caller(tenant, Right::Build)))
                    .collect();
                may.join(" ")
            };
            assert_eq!(
                who(&|caller| all.may_read(caller, repository)),
                reads,
                "{repository}"
            );
            assert_eq!(
                who(&|caller| all.may_write(caller, repository)),
                writes,
                "{repository}"
            );
            let owner = all.owner_of(repository).unwrap();
            assert!(writes.is_empty() || writes == owner, "{repository}");
        }
    }

    #[test]
    fn who_may_pull_may_not_push_and_an_admin_may_reach_every_tenant() {
        let all = repositories();
        let puller = caller("a", Right::Pull);
        assert!(all.may_read(&puller, "tenants/a/app"));
        assert!(!all.may_write(&puller, "tenants/a/app"));
        assert!(!all.may_read(&caller("a", Right::Metrics), "library/alpine"));
        let admin = caller("default", Right::Admin);
        assert!(all.may_read(&admin, "tenants/a/app") && all.may_write(&admin, "tenants/a/app"));
        assert!(!all.may_write(&admin, "tenants/a/workspace-images"));
    }

    #[test]
    fn tenants_have_their_own_part_of_the_services_repositories() {
        let all = repositories();
        let part = |name: &str, tenant: &str| {
            let repository = name.parse().unwrap();
            let part = all.part_of(&repository, &Tenant::new(tenant).unwrap());
            part.name()
        };
        assert_eq!(part("h:1/base-images", "default"), "h:1/base-images");
        assert_eq!(part("h:1/base-images", "a"), "h:1/tenants/a/base-images");
        assert_eq!(part("elsewhere.example/b", "a"), "elsewhere.example/b");
    }

    #[test]
    fn without_callers_nothing_is_divided() {
        let all = Repositories {
            tenants: None,
            ..repositories()
        };
        let anybody = Caller::trusted();
        assert!(all.may_write(&anybody, "tenants/a/app"));
        assert!(!all.may_write(&anybody, "base-images"));
        assert_eq!(all.owner_of("tenants/a/app"), None);
        assert!(all.readable(&anybody.tenant).allows("tenants/a/app"));
    }
}
