//! Sends one request, and follows redirects itself.
//!
//! Invariants: an `Authorization` header goes to the (scheme, host, port) that it was made for and nowhere else; no request
//! goes from https to http; a request with a body is never redirected; every wait has a limit; URLs are checked by the
//! module [`dial`] before each hop.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use egress::Resolver;
use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER,
};
use http::{Method, StatusCode};
use oci::reference::canonical_host;
use reqwest::{Certificate, Identity, NoProxy, Proxy, Response};
use url::Url;

use super::body::read_prefix;
use super::dial;
use super::error::{Error, Problem};
use super::retry::parse_retry_after;
use super::{Options, ProxyOptions};
use crate::hosts::{HostConfig, Hosts, HostsError};
use crate::wire::errors::first_error;

/// Redirects that are followed.
const REDIRECTS_MAX: usize = 5;
/// Bytes of all headers of an answer.
const HEADERS_MAX_BYTES: usize = 64 << 10;
/// Bytes that are kept of the body of an unsuccessful answer.
const ERROR_BODY_MAX_BYTES: usize = 64 << 10;
/// Hosts that no proxy is asked for.
const NEVER_PROXIED: &str = "localhost,127.0.0.0/8,::1";
/// Receive windows of HTTP/2: the default ones keep a fast link waiting.
const H2_STREAM_WINDOW_BYTES: u32 = 4 << 20;
const H2_CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// The connections to all registries. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: Options,
    resolver: Resolver,
    /// For plain http: never reads the system's certificates, which takes a while.
    plain: Pool,
    /// For https with the system's certificates.
    usual: Pool,
    /// For https with hosts that have settings of their own, by canonical host.
    special: BTreeMap<String, Pool>,
}

/// Connections that share TLS settings; made when first needed.
#[derive(Debug, Default)]
struct Pool {
    client: OnceLock<reqwest::Client>,
    tls: Tls,
}

#[derive(Debug, Default)]
struct Tls {
    kind: TlsKind,
    roots: Vec<Certificate>,
    identity: Option<Identity>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum TlsKind {
    None,
    #[default]
    Verified,
    Unverified,
}

/// One request without a body, or with one that can be given once.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) authorization: Option<HeaderValue>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response,
    /// Whether the host that was asked answered itself, and not one that it sent us to.
    pub(crate) is_from_origin: bool,
}

impl Transport {
    pub(crate) fn new(hosts: &Hosts, options: &Options) -> Result<Self, Error> {
        let mut special = BTreeMap::new();
        for host in hosts.hosts() {
            let Some(config) = hosts.get(host) else {
                continue;
            };
            let tls = Tls::of_host(host, config)
                .map_err(|problem| problem.into_error("configure TLS", host))?;
            if let Some(tls) = tls {
                let client = OnceLock::new();
                special.insert(host.to_owned(), Pool { client, tls });
            }
        }
        let plain = Pool {
            client: OnceLock::new(),
            tls: Tls {
                kind: TlsKind::None,
                ..Tls::default()
            },
        };
        let transport = Self {
            inner: Arc::new(Inner {
                options: options.clone(),
                resolver: Resolver::new(options.egress.clone()),
                plain,
                usual: Pool::default(),
                special,
            }),
        };
        // Proxies are the same for all pools: a wrong one is told now.
        let plain = transport.inner.plain.client(options);
        plain.map_err(|problem| problem.into_error("configure the proxy", "all registries"))?;
        Ok(transport)
    }

    /// Sends a GET or HEAD and follows where it is sent.
    pub(crate) async fn follow(&self, request: Request) -> Result<Answer, Problem> {
        let origin = request.url.origin();
        let mut url = request.url;
        let mut authorization = request.authorization;
        for _ in 0..=REDIRECTS_MAX {
            let hop = Request {
                method: request.method.clone(),
                url: url.clone(),
                headers: request.headers.clone(),
                authorization: authorization.clone(),
            };
            let limit = self.inner.options.header_timeout;
            let response = self.execute(hop, None, limit).await?;
            if !is_redirect(response.status()) {
                return Ok(Answer {
                    is_from_origin: url.origin() == origin,
                    response,
                });
            }
            let next = location(&url, response.headers())?;
            if url.scheme() == "https" && next.scheme() != "https" {
                return Err(refused("a redirect from https to http"));
            }
            if next.origin() != origin {
                // Never given back, not even when the way leads home again.
                authorization = None;
            }
            url = next;
        }
        Err(Problem::Refused(format!(
            "more than {REDIRECTS_MAX} redirects"
        )))
    }

    /// Sends a request that must be answered by its own host.
    pub(crate) async fn send(
        &self,
        request: Request,
        body: Option<reqwest::Body>,
        limit: Duration,
    ) -> Result<Response, Problem> {
        let response = self.execute(request, body, limit).await?;
        if is_redirect(response.status()) {
            return Err(refused("a redirect of a request that changes something"));
        }
        Ok(response)
    }

    async fn execute(
        &self,
        request: Request,
        body: Option<reqwest::Body>,
        limit: Duration,
    ) -> Result<Response, Problem> {
        dial::check(&request.url)?;
        let allowed = self.inner.resolver.judge(&request.url).await;
        allowed.map_err(|why| Problem::Refused(why.to_string()))?;
        let client = self.pool_of(&request.url).client(&self.inner.options)?;
        let mut builder = client
            .request(request.method, request.url)
            .headers(request.headers)
            .header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(authorization) = request.authorization {
            builder = builder.header(AUTHORIZATION, authorization);
        }
        if let Some(body) = body {
            builder = builder.body(body);
        }
        // The connection has its own limit, and its time is not that of the answer.
        let total = limit.saturating_add(self.inner.options.connect_timeout);
        let response = match tokio::time::timeout(total, builder.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(source)) => {
                if let Some(why) = egress::refusal_in(&source) {
                    return Err(Problem::Refused(why.to_string()));
                }
                let what = match (source.is_connect(), source.is_timeout()) {
                    (true, true) => "connect in time",
                    (true, false) => "connect",
                    _ => "get an answer",
                };
                return Err(Problem::connection(what, source));
            }
            Err(_) => {
                return Err(Problem::TooSlow {
                    what: "the answer",
                    limit: total,
                });
            }
        };
        check_headers(response.headers())?;
        Ok(response)
    }

    fn pool_of(&self, url: &Url) -> &Pool {
        if url.scheme() == "http" {
            return &self.inner.plain;
        }
        host_of(url)
            .and_then(|host| self.inner.special.get(&host))
            .unwrap_or(&self.inner.usual)
    }

    /// Gives a successful answer back, and makes a problem of any other.
    pub(crate) async fn successful(&self, mut response: Response) -> Result<Response, Problem> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let retry_after = response.headers().get(RETRY_AFTER);
        let retry_after = retry_after
            .and_then(|value| value.to_str().ok())
            .and_then(|value| parse_retry_after(value, SystemTime::now()));
        let body = read_prefix(&mut response, ERROR_BODY_MAX_BYTES, &self.inner.options).await;
        Err(Problem::Status {
            status,
            entry: first_error(&body),
            retry_after,
        })
    }
}

impl Tls {
    fn of_host(host: &str, config: &HostConfig) -> Result<Option<Self>, Problem> {
        let is_usual =
            config.insecure != Some(true) && config.ca.is_empty() && config.keypair.is_empty();
        if is_usual {
            return Ok(None);
        }
        let unusable = |what| move |source| Problem::Transport { what, source };
        let mut tls = Self::default();
        if config.insecure == Some(true) {
            tls.kind = TlsKind::Unverified;
        }
        for pem in &config.ca {
            let text = pem.read(host).map_err(Problem::Hosts)?;
            let certificates = Certificate::from_pem_bundle(text.as_bytes());
            tls.roots
                .extend(certificates.map_err(unusable("a certificate (ca)"))?);
        }
        if let Some(pair) = config.keypair.first() {
            let read = || -> Result<String, HostsError> {
                Ok(format!(
                    "{}\n{}",
                    pair.key.read(host)?,
                    pair.cert.read(host)?
                ))
            };
            let text = read().map_err(Problem::Hosts)?;
            let identity = Identity::from_pem(text.as_bytes());
            tls.identity = Some(identity.map_err(unusable("a client certificate (keypair)"))?);
        }
        Ok(Some(tls))
    }
}

impl Pool {
    fn client(&self, options: &Options) -> Result<&reqwest::Client, Problem> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let built = self.build(options).map_err(|source| Problem::Transport {
            what: "TLS or proxy",
            source: source.without_url(),
        })?;
        Ok(self.client.get_or_init(|| built))
    }

    fn build(&self, options: &Options) -> reqwest::Result<reqwest::Client> {
        let mut builder = reqwest::Client::builder()
            .user_agent(&options.user_agent)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .connect_timeout(options.connect_timeout)
            .tcp_nodelay(true)
            .http2_initial_stream_window_size(H2_STREAM_WINDOW_BYTES)
            .http2_initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
            .dns_resolver(Resolver::new(options.egress.clone()));
        for proxy in options.proxy.iter().flat_map(proxies) {
            builder = builder.proxy(proxy?);
        }
        builder = match self.tls.kind {
            TlsKind::None => builder.tls_certs_only([]),
            TlsKind::Verified => builder.tls_certs_merge(self.tls.roots.iter().cloned()),
            TlsKind::Unverified => builder
                .tls_certs_only([])
                .tls_danger_accept_invalid_certs(true),
        };
        if let Some(identity) = &self.tls.identity {
            builder = builder.identity(identity.clone());
        }
        builder.build()
    }
}

fn proxies(options: &ProxyOptions) -> Vec<reqwest::Result<Proxy>> {
    let directly = format!("{NEVER_PROXIED},{}", options.no_proxy);
    let directly = NoProxy::from_string(&directly);
    let http = options.http.as_deref().map(Proxy::http);
    let https = options.https.as_deref().map(Proxy::https);
    let given = http.into_iter().chain(https);
    given
        .map(|proxy| proxy.map(|proxy| proxy.no_proxy(directly.clone())))
        .collect()
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Returns where an answer points to, relative to where it came from.
pub(crate) fn location(from: &Url, headers: &HeaderMap) -> Result<Url, Problem> {
    let value = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let target = value.and_then(|value| from.join(value).ok());
    let mut target = target.ok_or(Problem::Header("Location"))?;
    target.set_fragment(None);
    dial::check(&target)?;
    Ok(target)
}

/// Returns the canonical host of a URL, with its port when it is not the usual one.
pub(crate) fn host_of(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    match url.port() {
        Some(port) => canonical_host(&format!("{host}:{port}")),
        None => canonical_host(host),
    }
}

fn check_headers(headers: &HeaderMap) -> Result<(), Problem> {
    let sizes = headers.iter().map(|(k, v)| k.as_str().len() + v.len());
    if sizes.sum::<usize>() > HEADERS_MAX_BYTES {
        return Err(Problem::TooLarge {
            what: "the head of the answer",
            limit_bytes: HEADERS_MAX_BYTES as u64,
        });
    }
    match headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity" | b"") => Ok(()),
        Some(_) => Err(Problem::Header("Content-Encoding")),
    }
}

fn refused(what: &str) -> Problem {
    Problem::Refused(what.to_owned())
}
