//! The one place where URLs that registries give us are allowed to be connected to.
//!
//! Every request of the client passes [`check`], redirects and token services included; which addresses may be connected to is
//! decided by [`egress`], when the request is sent and again when its host is resolved.

use url::{Host, Url};

use super::error::Problem;

/// Refuses URLs that no registry has a reason to send us to.
pub(crate) fn check(url: &Url) -> Result<(), Problem> {
    let refused = |why: &str| Err(Problem::Refused(format!("a URL {why}")));
    if !matches!(url.scheme(), "http" | "https") {
        return refused("that is neither http nor https");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return refused("with a user name in it");
    }
    match url.host() {
        Some(Host::Domain("")) | None => refused("without a host"),
        Some(_) => Ok(()),
    }
}
