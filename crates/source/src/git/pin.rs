//! Where the hosts of a fetch are: found out once, judged, and told to git, which does not ask again.

use egress::{LookUpError, Resolver};
use url::Host;

use super::error::FetchError;
use super::{FetchOptions, GitSource};

/// Returns a `http.curloptResolve` for each host that is a name.
///
/// Behind a proxy, names are the proxy's to resolve: one that cannot be resolved here is left to it, and one that can is judged.
pub(super) async fn pins(
    source: &GitSource,
    options: &FetchOptions,
) -> Result<Vec<String>, FetchError> {
    let resolver = Resolver::new(options.egress.clone());
    let mut pins = Vec::new();
    for remote in std::iter::once(&source.remote).chain(&source.upstream) {
        let url = remote.url();
        // Addresses were judged when the request was checked.
        let (Some(Host::Domain(host)), Some(port)) = (url.host(), url.port_or_known_default())
        else {
            continue;
        };
        let found = match resolver.look_up(host, port).await {
            Ok(found) => found,
            Err(LookUpError::Refused(refused)) => return Err(FetchError::Egress(refused)),
            Err(LookUpError::Resolve(_)) if options.proxy.is_some() => continue,
            Err(LookUpError::Resolve(source)) => {
                return Err(FetchError::Resolve {
                    host: host.to_owned(),
                    source,
                });
            }
        };
        let addresses: Vec<String> = found
            .iter()
            .map(|address| match address.ip() {
                std::net::IpAddr::V4(ip) => ip.to_string(),
                std::net::IpAddr::V6(ip) => format!("[{ip}]"),
            })
            .collect();
        pins.push(format!("{host}:{port}:{}", addresses.join(",")));
    }
    Ok(pins)
}
