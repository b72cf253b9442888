//! The one place where names become addresses and URLs are allowed to be connected to.
//!
//! Every request of the client passes [`check`], redirects and token services included, and every name is resolved by
//! [`Dialer`]'s resolver, so that a policy about addresses sees each address that is then connected to.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use super::error::Problem;

/// Resolves names with the system's resolver.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Dialer;

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

impl Resolve for Dialer {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            // The port is set by the connector.
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let addresses: Vec<_> = found.collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}
