//! For HTTP clients: they ask us where a name is, and connect to what we answer.

use std::net::SocketAddr;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use url::{Host, Url};

use crate::policy::{Policy, Refused};

/// Resolves names with the system's resolver, and gives away only addresses that may be connected to.
///
/// A client does not say for which port it asks, so that a host which is named with some port is resolved for all of them:
/// [`Resolver::judge`] each URL first, which knows.
#[derive(Debug, Clone)]
pub struct Resolver {
    policy: Arc<Policy>,
}

impl Resolver {
    /// Returns a resolver.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy: Arc::new(policy),
        }
    }

    /// Judges a URL that is about to be asked for: all that [`Policy::check_url`] does, and the port of a host that is named with others.
    ///
    /// # Errors
    /// When it may not be connected to.
    pub async fn judge(&self, url: &Url) -> Result<(), Refused> {
        self.policy.check_url(url)?;
        let (Some(Host::Domain(host)), Some(port)) = (url.host(), url.port_or_known_default())
        else {
            return Ok(());
        };
        let named = self.named_ports(host);
        if named.is_empty() || named.contains(&port) {
            return Ok(());
        }
        match self.look_up(host, port).await {
            Err(LookUpError::Refused(refused)) => Err(refused),
            // Whoever connects finds out, and has better words for it.
            Ok(_) | Err(LookUpError::Resolve(_)) => Ok(()),
        }
    }

    /// Returns where `host` is, as far as it may be connected to.
    ///
    /// # Errors
    /// When it cannot be resolved, or none of its addresses may be connected to.
    pub async fn look_up(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, LookUpError> {
        let found = tokio::net::lookup_host((host, port)).await;
        let found = found.map_err(LookUpError::Resolve)?;
        self.policy
            .choose(host, port, found)
            .map_err(LookUpError::Refused)
    }

    /// Returns every port that the policy names with the host.
    fn named_ports(&self, host: &str) -> Vec<u16> {
        let host = host.trim_end_matches('.');
        let named = self.policy.hosts.iter().filter_map(|named| {
            let (name, port) = named.rsplit_once(':')?;
            (name == host).then(|| port.parse().ok())?
        });
        named.collect()
    }
}

/// Tells why a host is not connected to.
#[derive(Debug, thiserror::Error)]
pub enum LookUpError {
    /// There is no such name, or nobody who knows.
    #[error("resolve the name")]
    Resolve(#[source] std::io::Error),
    /// It may not be connected to.
    #[error(transparent)]
    Refused(Refused),
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            let host = name.as_str().to_ascii_lowercase();
            // The port is set by whoever connects.
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            let mut refused = None;
            for port in std::iter::once(0).chain(this.named_ports(&host)) {
                match this.policy.choose(&host, port, found.iter().copied()) {
                    Ok(chosen) => return Ok(Box::new(chosen.into_iter()) as Addrs),
                    Err(why) => refused = Some(why),
                }
            }
            Err(refused.map_or_else(
                || std::io::Error::other("nothing is known of the name").into(),
                Into::into,
            ))
        })
    }
}

/// Returns the refusal that is among the causes of an error, if one is.
pub fn refusal_in(error: &(dyn std::error::Error + 'static)) -> Option<Refused> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(refused) = error.downcast_ref::<Refused>() {
            return Some(refused.clone());
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    fn client(policy: Policy) -> reqwest::Client {
        let builder = reqwest::Client::builder().no_proxy().tls_certs_only([]);
        builder.dns_resolver(Resolver::new(policy)).build().unwrap()
    }

    /// Answers one request, and returns where.
    async fn server() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            let _read = stream.read(&mut head).await.unwrap();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            stream.write_all(answer).await.unwrap();
        });
        port
    }

    #[tokio::test]
    async fn a_name_that_leads_to_this_machine_is_not_connected_to_for_others() {
        let port = server().await;
        let error = client(Policy::public())
            .get(format!("http://localhost:{port}/"))
            .send()
            .await
            .unwrap_err();
        assert!(
            matches!(refusal_in(&error), Some(Refused::Address { .. })),
            "{error:?}"
        );
        let answer = client(Policy::default())
            .get(format!("http://localhost:{port}/"))
            .send()
            .await;
        assert!(answer.unwrap().status().is_success());
    }

    #[tokio::test]
    async fn a_name_that_the_operator_vouches_for_is_connected_to() {
        let port = server().await;
        let mut policy = Policy::public();
        policy.allow_host(&format!("localhost:{port}"));
        let answer = client(policy.clone())
            .get(format!("http://localhost:{port}/"))
            .send()
            .await;
        assert!(answer.unwrap().status().is_success());
        let resolver = Resolver::new(policy);
        assert!(
            !resolver
                .look_up("localhost", port)
                .await
                .unwrap()
                .is_empty()
        );
        assert!(matches!(
            resolver.look_up("localhost", 1).await,
            Err(LookUpError::Refused(_))
        ));
        let url = |port: u16| Url::parse(&format!("http://localhost:{port}/")).unwrap();
        resolver.judge(&url(port)).await.unwrap();
        let another = resolver.judge(&url(1)).await;
        assert!(
            another.is_err(),
            "another port of a host that is named with one"
        );
    }
}
