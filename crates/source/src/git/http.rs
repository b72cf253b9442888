//! What is asked for over http without git: a one-time secret, the place a remote redirects to, and clients for what LFS keeps.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderValue, LOCATION};
use reqwest::{Certificate, Client, ClientBuilder, redirect};

use super::auth::Credential;
use super::remote::RemoteUrl;
use super::{FetchOptions, Session};

/// Time for one connection attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for one whole request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Time between two pieces of a long answer.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// What git asks for first.
const INFO_REFS: &str = "/info/refs";

/// Returns a client for small answers, which follows no redirect and reads no environment.
pub(super) fn client(options: &FetchOptions) -> Option<Client> {
    builder(options)?.timeout(REQUEST_TIMEOUT).build().ok()
}

/// Returns such a client for answers of any length, which may take as long as something comes.
pub(super) fn transfer_client(options: &FetchOptions) -> Option<Client> {
    builder(options)?.read_timeout(STALL_TIMEOUT).build().ok()
}

fn builder(options: &FetchOptions) -> Option<ClientBuilder> {
    let mut builder = Client::builder()
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .user_agent("kiln")
        .no_proxy()
        .dns_resolver(egress::Resolver::new(options.egress.clone()));
    if let Some(path) = &options.ca_file {
        let bytes = std::fs::read(path).ok()?;
        builder = builder.tls_certs_only(Certificate::from_pem_bundle(&bytes).ok()?);
    }
    if let Some(proxy) = &options.proxy {
        let exceptions = options
            .no_proxy
            .as_deref()
            .and_then(reqwest::NoProxy::from_string);
        builder = builder.proxy(reqwest::Proxy::all(proxy).ok()?.no_proxy(exceptions));
    }
    Some(builder)
}

/// Returns where `remote` redirects to, if that is another path at the same scheme, host and port.
///
/// Hosts redirect `/group/name` to `/group/name.git`. Git itself is told to follow nothing, because it would carry the
/// credential along wherever it is sent.
pub(super) async fn same_origin_hop(
    session: &Session<'_>,
    remote: &RemoteUrl,
    credential: Option<&Credential>,
) -> Option<RemoteUrl> {
    let mut url = remote.url().clone();
    url.set_path(&format!("{}{INFO_REFS}", url.path().trim_end_matches('/')));
    url.set_query(Some("service=git-upload-pack"));
    let mut request = client(session.options)?.get(url.clone());
    if let Some(credential) = credential {
        let mut header = HeaderValue::from_str(&credential.header()).ok()?;
        header.set_sensitive(true);
        request = request.header(AUTHORIZATION, header);
    }
    let response = tokio::select! {
        response = request.send() => response.ok()?,
        () = session.stop.cancelled() => return None,
    };
    if !response.status().is_redirection() {
        return None;
    }
    let target = url
        .join(response.headers().get(LOCATION)?.to_str().ok()?)
        .ok()?;
    let path = target.path().strip_suffix(INFO_REFS)?;
    let mut hop = target.clone();
    hop.set_path(path);
    hop.set_query(None);
    hop.set_fragment(None);
    let hop = RemoteUrl::parse(hop.as_str()).ok()?;
    (hop.origin() == remote.origin() && hop != *remote).then_some(hop)
}
