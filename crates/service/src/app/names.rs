//! What everything is called that is called after our address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use oci::Reference;
use oci::reference::canonical_host;

use super::RunError;
use crate::access::OwnHosts;
use crate::config::Config;

/// Our address in its several uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Addresses {
    /// What the socket is bound to.
    pub(super) bound: SocketAddr,
    /// `host:port` under which clients reach us.
    pub(super) public: String,
    /// Canonical hosts that mean the embedded registry.
    pub(super) embedded: Vec<String>,
    /// Where base images are published.
    pub(super) base_repository: Reference,
    /// Where workspace images are published.
    pub(super) workspace_repository: Reference,
}

impl Addresses {
    /// Returns the addresses of a server that is bound to `bound`.
    pub(super) fn new(config: &Config, bound: SocketAddr) -> Result<Self, RunError> {
        let public = match &config.address {
            Some(address) => address.clone(),
            None => reachable(bound).to_string(),
        };
        let public = canonical_host(&public).ok_or(RunError::Address { address: public })?;
        let repository = |configured: &Option<Reference>, name: &str| {
            if let Some(repository) = configured {
                return Ok(repository.clone());
            }
            let text = format!("{public}/{name}");
            let parsed = text.parse();
            parsed.map_err(|_| RunError::Address { address: text })
        };
        Ok(Self {
            embedded: embedded(&public, bound),
            base_repository: repository(&config.base_image_repository, "base-images")?,
            workspace_repository: repository(
                &config.workspace_image_repository,
                "workspace-images",
            )?,
            public,
            bound,
        })
    }

    /// Returns the hosts of our repositories.
    pub(super) fn own_hosts(&self) -> OwnHosts {
        OwnHosts {
            base: self.base_repository.host().to_owned(),
            workspace: self.workspace_repository.host().to_owned(),
        }
    }

    /// Returns `scheme://host:port`.
    pub(super) fn url(&self, config: &Config) -> String {
        let scheme = match config.tls {
            Some(_) => "https",
            None => "http",
        };
        format!("{scheme}://{}", self.public)
    }
}

/// Returns `bound`, with this machine in the place of an address that means every address.
fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, bound.port())
}

/// Returns every host that leads to us: the public one, and this machine's own names when we listen there.
fn embedded(public: &str, bound: SocketAddr) -> Vec<String> {
    let port = bound.port();
    let mut hosts = vec![public.to_owned()];
    hosts.extend(canonical_host(&reachable(bound).to_string()));
    if bound.ip().is_unspecified() || bound.ip().is_loopback() {
        hosts.push(format!("localhost:{port}"));
    }
    if bound.ip().is_unspecified() {
        hosts.push(format!("127.0.0.1:{port}"));
        hosts.push(format!("[::1]:{port}"));
    }
    hosts.sort();
    hosts.dedup();
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(config: &Config, bound: &str) -> Addresses {
        Addresses::new(config, bound.parse().unwrap()).unwrap()
    }

    #[test]
    fn repositories_are_named_after_the_bound_address() {
        let names = addresses(&Config::default(), "127.0.0.1:4321");
        assert_eq!(names.base_repository.name(), "127.0.0.1:4321/base-images");
        assert_eq!(names.embedded, ["127.0.0.1:4321", "localhost:4321"]);
        let names = addresses(&Config::default(), "0.0.0.0:80");
        assert_eq!(
            names.workspace_repository.name(),
            "127.0.0.1:80/workspace-images"
        );
        let names = addresses(&Config::default(), "[::1]:80");
        assert_eq!(names.base_repository.name(), "[::1]:80/base-images");
    }

    #[test]
    fn configured_names_come_first() {
        let config = crate::config::parse(
            "address = \"kiln.example\"\nbase_image_repository = \"r.example/b\"",
        );
        let names = addresses(&config.unwrap().config, "10.0.0.1:80");
        assert_eq!(names.base_repository.name(), "r.example/b");
        assert_eq!(
            names.workspace_repository.name(),
            "kiln.example/workspace-images"
        );
        assert_eq!(names.embedded, ["10.0.0.1:80", "kiln.example"]);
        assert_eq!(names.own_hosts().base, "r.example");
    }
}
