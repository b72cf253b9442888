//! Who may do what in the embedded registry.
//!
//! What builds publish into the service's own repositories is written by workers, through the store, and by nobody else. A repository that
//! a caller may not read is not there for it, whether it exists or not.

use std::sync::Arc;

use ::http::StatusCode;
use registry::server::{Access, Action, Decision, ServerOptions};

use super::names::Addresses;
use crate::access::{Caller, Repositories, Right};
use crate::config::Config;
use crate::identity::Callers;

/// How a client is asked who it is.
const CHALLENGE: &str = "Basic realm=\"kiln\", charset=\"UTF-8\"";

/// Returns whose each repository is.
pub(super) fn repositories(
    config: &Config,
    addresses: &Addresses,
    callers: &Callers,
) -> Repositories {
    let own = [&addresses.base_repository, &addresses.workspace_repository];
    let is_embedded = |host: &str| addresses.embedded.iter().any(|embedded| embedded == host);
    let own = own
        .into_iter()
        .filter(|repository| is_embedded(repository.host()));
    Repositories {
        tenants: callers
            .are_listed()
            .then(|| config.tenant_namespace.clone()),
        own: own.map(|own| own.repository().to_owned()).collect(),
        shared: config.shared_repositories.clone(),
    }
}

/// Returns the embedded registry's options.
pub(super) fn options(repositories: Repositories) -> ServerOptions {
    let all = repositories.clone();
    let owner_of = move |repository: &str| all.owner_of(repository);
    let authorize = move |access: &Access<'_>| {
        let caller = access.extensions.get::<Arc<Caller>>();
        decide(&repositories, caller.map(AsRef::as_ref), access)
    };
    ServerOptions {
        authorize: Some(Arc::new(authorize)),
        owner_of: Some(Arc::new(owner_of)),
        ..ServerOptions::default()
    }
}

fn decide(all: &Repositories, caller: Option<&Caller>, access: &Access<'_>) -> Decision {
    let Some(caller) = caller else {
        return Decision::Deny {
            status: StatusCode::UNAUTHORIZED,
            www_authenticate: Some(CHALLENGE.to_owned()),
        };
    };
    let refused = Decision::Deny {
        status: StatusCode::FORBIDDEN,
        www_authenticate: None,
    };
    let repository = access.repository;
    match access.action {
        Action::List | Action::Pull if !caller.may(Right::Pull) => refused,
        Action::Pull if repository.is_some_and(|name| !all.may_read(caller, name)) => {
            Decision::Hide
        }
        // Of a list, each repository is asked for.
        Action::Ping | Action::List | Action::Pull => Decision::Allow,
        Action::Push | Action::Delete => match repository {
            Some(name) if !all.may_write(caller, name) => refused,
            None if !caller.may(Right::Build) => refused,
            _ => Decision::Allow,
        },
    }
}
