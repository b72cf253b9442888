//! Which places may be reached.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use url::{Host, Url};

use crate::address::{self, Kind};

/// Most addresses of a name that are looked at.
const ADDRESSES_MAX: usize = 64;

/// Which places may be reached without being named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// Public ones: for requests of others.
    Public,
    /// Also this machine and private networks: for one's own.
    Private,
}

/// Which places may be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// By their kind.
    pub reach: Reach,
    /// By their network, whatever their kind.
    #[serde(default)]
    pub networks: Vec<Network>,
    /// By their name, in lower case: `name` with every port, `name:port` with one. Whoever runs kiln vouches for what they resolve to.
    #[serde(default)]
    pub hosts: BTreeSet<String>,
}

impl Default for Policy {
    /// Returns the policy for what one does on one's own machine.
    fn default() -> Self {
        Self {
            reach: Reach::Private,
            networks: Vec::new(),
            hosts: BTreeSet::new(),
        }
    }
}

/// Tells why a place is not connected to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The place is of a kind that may not be reached.
    #[error("{host} is not connected to: {address} is {kind} (the operator's setting egress)")]
    Address {
        /// As the request names it.
        host: String,
        /// Where that leads.
        address: IpAddr,
        /// What is wrong with it.
        kind: &'static str,
    },
    /// Something else than http or https.
    #[error("{0} addresses are not connected to")]
    Scheme(String),
    /// An address without a host.
    #[error("an address without a host cannot be connected to")]
    NoHost,
}

/// A network, as `10.0.0.0/8` or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// Tells that a text is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a network such as 10.0.0.0/8")]
pub struct ParseNetworkError(String);

impl FromStr for Network {
    type Err = ParseNetworkError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseNetworkError(text.chars().take(64).collect());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => {
                bits.parse().map_err(|_| wrong())?
            }
            Some(_) => return Err(wrong()),
            None => most,
        };
        (bits <= most)
            .then_some(Self { address, bits })
            .ok_or_else(wrong)
    }
}

impl TryFrom<String> for Network {
    type Error = ParseNetworkError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl Network {
    /// Tells whether `address` is in it. An IPv4 address written as IPv6 is the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let keep = |width: u32| width.saturating_sub(u32::from(self.bits));
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = keep(32);
                u32::from(network).checked_shr(shift) == u32::from(address).checked_shr(shift)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let shift = keep(128);
                u128::from(network).checked_shr(shift) == u128::from(address).checked_shr(shift)
            }
            _ => false,
        }
    }
}

impl Policy {
    /// Returns the policy for requests of others.
    pub fn public() -> Self {
        Self {
            reach: Reach::Public,
            ..Self::default()
        }
    }

    /// Adds a host that may be reached wherever it is: `name` or `name:port`.
    pub fn allow_host(&mut self, host: &str) {
        self.hosts.insert(host.to_ascii_lowercase());
    }

    /// Judges what can be judged of a URL before its name is resolved: its scheme, and a host that is an address.
    pub fn check_url(&self, url: &Url) -> Result<(), Refused> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Refused::Scheme(url.scheme().chars().take(32).collect()));
        }
        let port = url.port_or_known_default().unwrap_or(0);
        match url.host() {
            None | Some(Host::Domain("")) => Err(Refused::NoHost),
            Some(Host::Domain(_)) => Ok(()),
            Some(Host::Ipv4(address)) => self.check(&address.to_string(), port, address.into()),
            Some(Host::Ipv6(address)) => self.check(&address.to_string(), port, address.into()),
        }
    }

    /// Judges one address that a host leads to.
    pub fn check(&self, host: &str, port: u16, address: IpAddr) -> Result<(), Refused> {
        if self.is_named(host, port)
            || self
                .networks
                .iter()
                .any(|network| network.contains(address))
        {
            return Ok(());
        }
        let kind = address::kind(address);
        let may = match (kind, self.reach) {
            (Kind::Public, Reach::Private) => true,
            // A public address of this machine is this machine.
            (Kind::Public, Reach::Public) => !is_own(address),
            (Kind::Loopback | Kind::Private, reach) => reach == Reach::Private,
            (Kind::LinkLocal | Kind::Metadata | Kind::Special, _) => false,
        };
        if may {
            return Ok(());
        }
        Err(Refused::Address {
            host: host.chars().take(256).collect(),
            address,
            kind: if kind == Kind::Public {
                "this machine itself"
            } else {
                kind.name()
            },
        })
    }

    /// Returns those of `addresses` that may be connected to.
    ///
    /// # Errors
    /// When there are some and none of them may.
    pub fn choose(
        &self,
        host: &str,
        port: u16,
        addresses: impl IntoIterator<Item = SocketAddr>,
    ) -> Result<Vec<SocketAddr>, Refused> {
        let (mut chosen, mut refused) = (Vec::new(), None);
        for address in addresses.into_iter().take(ADDRESSES_MAX) {
            match self.check(host, port, address.ip()) {
                Ok(()) => chosen.push(address),
                Err(why) => refused = Some(why),
            }
        }
        match refused {
            Some(why) if chosen.is_empty() => Err(why),
            _ => Ok(chosen),
        }
    }

    fn is_named(&self, host: &str, port: u16) -> bool {
        // `localhost.` and `localhost` are one name.
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        self.hosts.contains(&host)
            || self.hosts.contains(&format!("{host}:{port}"))
            || (host.contains(':') && self.hosts.contains(&format!("[{host}]:{port}")))
    }
}

/// Tells whether an address is one of this machine's: nobody else's can be listened at.
fn is_own(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn requests_of_others_reach_no_inner_place_however_it_is_written() {
        let policy = Policy::public();
        for text in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://017700000001/",
            "http://0.0.0.0/",
            "http://0/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:7f00:1]/",
            "http://[64:ff9b::7f00:1]/",
            "http://169.254.169.254/latest/meta-data/",
            "http://[fd00:ec2::254]/",
            "http://[fe80::1]/",
            "http://10.0.0.1/",
            "http://172.16.0.1:6379/",
            "http://192.168.0.1:22/",
            "http://100.64.0.1/",
            "http://192.0.0.1/",
            "http://198.18.0.1/",
            "http://224.0.0.1/",
            "https://127.0.0.1:8443/",
        ] {
            assert!(
                matches!(policy.check_url(&url(text)), Err(Refused::Address { .. })),
                "{text}"
            );
        }
        for text in [
            "file:///etc/passwd",
            "ftp://x/",
            "gopher://x/",
            "data:,x",
            "unix:/x",
        ] {
            assert!(policy.check_url(&url(text)).is_err(), "{text}");
        }
        for text in [
            "https://1.1.1.1/",
            "https://example.com/",
            "http://[2606:4700::1111]/",
        ] {
            policy.check_url(&url(text)).unwrap();
        }
    }

    #[test]
    fn ones_own_requests_reach_private_places_and_never_a_metadata_service() {
        let policy = Policy::default();
        for text in [
            "http://127.0.0.1:5000/",
            "http://10.0.0.1/",
            "http://[::1]/",
        ] {
            policy.check_url(&url(text)).unwrap();
        }
        for text in [
            "http://169.254.169.254/",
            "http://169.254.1.1/",
            "http://[fe80::1]/",
            "http://0.0.0.0/",
        ] {
            assert!(policy.check_url(&url(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn what_the_operator_names_is_reached() {
        let mut policy = Policy::public();
        policy.networks = vec!["10.1.0.0/16".parse().unwrap(), "fd00::/8".parse().unwrap()];
        policy.allow_host("Registry.Internal:5000");
        policy.allow_host("127.0.0.1:5000");
        let check =
            |host: &str, port, address: &str| policy.check(host, port, address.parse().unwrap());
        check("x", 80, "10.1.2.3").unwrap();
        check("x", 80, "::ffff:10.1.2.3").unwrap();
        check("x", 80, "fd01::1").unwrap();
        check("registry.internal", 5000, "192.168.0.7").unwrap();
        check("REGISTRY.internal.", 5000, "192.168.0.7").unwrap();
        policy.check_url(&url("http://127.0.0.1:5000/v2/")).unwrap();
        for (host, port, address) in [
            ("x", 80, "10.2.0.1"),
            ("registry.internal", 22, "192.168.0.7"),
            ("evil.registry.internal", 5000, "192.168.0.7"),
            ("127.0.0.1", 5001, "127.0.0.1"),
        ] {
            assert!(check(host, port, address).is_err(), "{host}:{port}");
        }
    }

    #[test]
    fn of_several_addresses_the_permitted_ones_are_chosen() {
        let policy = Policy::public();
        let at = |text: &str| format!("{text}:443").parse::<SocketAddr>().unwrap();
        let chosen = policy
            .choose("x", 443, [at("127.0.0.1"), at("1.1.1.1")])
            .unwrap();
        assert_eq!(chosen, [at("1.1.1.1")]);
        let refused = policy
            .choose("x.example", 443, [at("10.0.0.1")])
            .unwrap_err();
        assert!(refused.to_string().contains("x.example"), "{refused}");
        assert!(policy.choose("x", 443, []).unwrap().is_empty());
    }

    #[test]
    fn networks_are_read_strictly() {
        for text in [
            "",
            "x",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            "::/129",
            "10.0/8",
        ] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
        let all: Network = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("8.8.8.8".parse().unwrap()));
        assert!(!all.contains("2606::1".parse().unwrap()));
        let one: Network = "10.0.0.1".parse().unwrap();
        assert!(
            one.contains("10.0.0.1".parse().unwrap()) && !one.contains("10.0.0.2".parse().unwrap())
        );
    }

    #[test]
    fn a_policy_travels_as_json() {
        let mut policy = Policy::public();
        policy.networks.push("10.0.0.0/8".parse().unwrap());
        policy.allow_host("a:1");
        let text = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<Policy>(&text).unwrap(), policy);
    }
}
