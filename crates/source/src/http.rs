//! One file over http or https, as ADD wants it.
//!
//! [`fetch`] asks for a file, with the tag under which it was known before, follows redirects, and writes what comes to a place that
//! the caller opens. What comes is what is written: no encoding is asked for, and none is undone.
//!
//! It keeps nothing, knows no name for the file, and reads no environment. Addresses may hold a password: no text of an error and no
//! [`FileUrl::shown`] does. Where it connects to is judged by [`egress`], for each address that it is sent to.

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use aws_lc_rs::digest;
use egress::Resolver;
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, ETAG, HeaderValue, IF_NONE_MATCH, LAST_MODIFIED, LOCATION,
};
use reqwest::{Certificate, Client, Response, StatusCode, redirect};
use tokio_util::sync::CancellationToken;
use url::Url;

/// Longest accepted address.
const URL_MAX_BYTES: usize = 8 << 10;
/// Longest tag that is kept.
const TAG_MAX_BYTES: usize = 1 << 10;
/// Most redirects that are followed.
const REDIRECTS_MAX: usize = 10;
/// Time for one connection attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Time until an answer begins, and between two pieces of it.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The address of a file.
#[derive(Clone, PartialEq, Eq)]
pub struct FileUrl(Url);

/// Tells why a text is no address of a file. The text is not repeated: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FileUrlError {
    /// Longer than an address may be.
    #[error("the address is longer than {URL_MAX_BYTES} bytes")]
    TooLong,
    /// Not an address at all.
    #[error("the address is malformed")]
    Malformed,
    /// Neither http nor https.
    #[error("the address is neither http:// nor https://")]
    Scheme,
}

impl FileUrl {
    /// Parses an address.
    pub fn parse(text: &str) -> Result<Self, FileUrlError> {
        if text.len() > URL_MAX_BYTES {
            return Err(FileUrlError::TooLong);
        }
        let mut url = Url::parse(text).map_err(|_| FileUrlError::Malformed)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(FileUrlError::Scheme);
        }
        url.set_fragment(None);
        Ok(Self(url))
    }

    /// Returns the whole address, with what is secret in it: to be hashed, not to be shown.
    pub fn expose(&self) -> &str {
        self.0.as_str()
    }

    /// Returns the host's name.
    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }

    /// Returns the address without what may be secret in it: user, password and query.
    pub fn shown(&self) -> String {
        shown(&self.0)
    }
}

fn shown(url: &Url) -> String {
    format!("{}{}", url.origin().ascii_serialization(), url.path())
}

impl fmt::Debug for FileUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FileUrl").field(&self.shown()).finish()
    }
}

/// How files are fetched.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// Most bytes of a file.
    pub max_bytes: u64,
    /// How often to try what fails for passing reasons; at least once.
    pub attempts: u32,
    /// Pause before the second try; doubled for each further one.
    pub retry_pause: Duration,
    /// The proxy for all addresses.
    pub proxy: Option<String>,
    /// Hosts reached without it.
    pub no_proxy: Option<String>,
    /// Certificate authorities in PEM form, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Where connections may lead.
    pub egress: egress::Policy,
}

/// How a checksum is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// What to fetch.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Where from.
    pub url: &'a FileUrl,
    /// The tag that the file had when it was fetched before: if it still has it, it is not fetched again.
    pub tag: Option<&'a str>,
    /// What the content has to be, in lower-case hexadecimal digits.
    pub checksum: Option<(Algorithm, &'a str)>,
    /// What is shown as authorization, to the host of the address and to no other that it redirects to.
    pub authorization: Option<&'a str>,
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("url", &self.url)
            .field("tag", &self.tag)
            .field("checksum", &self.checksum)
            .finish_non_exhaustive()
    }
}

/// What came of it.
#[derive(Debug)]
pub enum Fetched<W> {
    /// The file is what it was.
    Unchanged,
    /// The file is in `out`, whole.
    Whole {
        /// Where it was written.
        out: W,
        /// Its tag, to ask with next time.
        tag: Option<String>,
        /// When it was last modified, in seconds since 1970, as its server says.
        modified: Option<i64>,
    },
}

/// What a failed fetch means to whoever asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpErrorKind {
    /// There is no such file, or it may not be had, or it is not what it should be.
    Refused,
    /// Trying later may help.
    Unavailable,
    /// The caller cancelled.
    Cancelled,
    /// This machine failed.
    Local,
}

/// A failed [`fetch`]. No text in it holds a password.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The certificates or the proxy of the configuration are of no use.
    #[error("the settings for downloads are of no use")]
    Settings,
    /// What was to be shown as authorization cannot be sent.
    #[error("the authorization for {url} holds characters that cannot be sent")]
    Authorization {
        /// What was to be asked for.
        url: String,
    },
    /// No answer, or a broken one.
    #[error("{url} could not be reached")]
    Request {
        /// What was asked for.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The address, or one that it redirects to, leads where nothing is connected to.
    #[error(transparent)]
    Egress(egress::Refused),
    /// Nothing came for too long.
    #[error("{url} did not answer for {} s", STALL_TIMEOUT.as_secs())]
    Stalled {
        /// What was asked for.
        url: String,
    },
    /// An answer that is no file.
    #[error("{url} was answered with status {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// The answer.
        status: u16,
    },
    /// A redirect to something that is not followed.
    #[error("{url} redirects to {reason}")]
    Redirect {
        /// What was asked for.
        url: String,
        /// What is wrong with where it leads.
        reason: &'static str,
    },
    /// A file that is larger than allowed.
    #[error("{url} is larger than {max_bytes} bytes")]
    TooLarge {
        /// What was asked for.
        url: String,
        /// The limit.
        max_bytes: u64,
    },
    /// Another content than the one that was asked for.
    #[error("{url} has the checksum {found}, not {expected}")]
    Checksum {
        /// What was asked for.
        url: String,
        /// What was asked for.
        expected: String,
        /// What came.
        found: String,
    },
    /// What came could not be written.
    #[error("a download could not be written")]
    Write(#[source] io::Error),
    /// The caller wanted no more of it.
    #[error("the download was cancelled")]
    Cancelled,
}

impl HttpError {
    /// Returns what it means.
    pub fn kind(&self) -> HttpErrorKind {
        match self {
            Self::Settings | Self::Write(_) => HttpErrorKind::Local,
            Self::Request { .. } | Self::Stalled { .. } => HttpErrorKind::Unavailable,
            Self::Status { status, .. } if *status == 429 || *status >= 500 => {
                HttpErrorKind::Unavailable
            }
            Self::Authorization { .. }
            | Self::Status { .. }
            | Self::Egress(_)
            | Self::Redirect { .. }
            | Self::TooLarge { .. }
            | Self::Checksum { .. } => HttpErrorKind::Refused,
            Self::Cancelled => HttpErrorKind::Cancelled,
        }
    }
}

/// Fetches a file into what `open` opens; it is opened anew for every try.
///
/// # Errors
/// See [`HttpError`].
pub async fn fetch<W: Write + Send>(
    request: &Request<'_>,
    options: &HttpOptions,
    open: &mut (dyn FnMut() -> io::Result<W> + Send),
    cancel: &CancellationToken,
) -> Result<Fetched<W>, HttpError> {
    let client = client(options).ok_or(HttpError::Settings)?;
    let mut pause = options.retry_pause;
    let mut n_left = options.attempts.max(1);
    loop {
        let fetched = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(HttpError::Cancelled),
            fetched = once(&client, request, options, open) => fetched,
        };
        n_left -= 1;
        match fetched {
            Err(error) if error.kind() == HttpErrorKind::Unavailable && n_left > 0 => {}
            other => return other,
        }
        tokio::select! {
            () = cancel.cancelled() => return Err(HttpError::Cancelled),
            () = tokio::time::sleep(pause) => pause *= 2,
        }
    }
}

/// Returns a client that follows no redirect and reads no environment.
fn client(options: &HttpOptions) -> Option<Client> {
    let mut builder = Client::builder()
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .user_agent("kiln")
        .no_proxy()
        .dns_resolver(Resolver::new(options.egress.clone()));
    if let Some(path) = &options.ca_file {
        let bytes = std::fs::read(path).ok()?;
        builder = builder.tls_certs_only(Certificate::from_pem_bundle(&bytes).ok()?);
    }
    if let Some(proxy) = &options.proxy {
        let exceptions = options.no_proxy.as_deref();
        let exceptions = exceptions.and_then(reqwest::NoProxy::from_string);
        builder = builder.proxy(reqwest::Proxy::all(proxy).ok()?.no_proxy(exceptions));
    }
    builder.build().ok()
}

async fn once<W: Write>(
    client: &Client,
    request: &Request<'_>,
    options: &HttpOptions,
    open: &mut (dyn FnMut() -> io::Result<W> + Send),
) -> Result<Fetched<W>, HttpError> {
    let resolver = Resolver::new(options.egress.clone());
    let mut url = request.url.0.clone();
    for _ in 0..=REDIRECTS_MAX {
        resolver.judge(&url).await.map_err(HttpError::Egress)?;
        let authorization = authorization(request, &mut url)?;
        let mut asked = client.get(url.clone());
        asked = asked.header(ACCEPT_ENCODING, "identity");
        if let Some(authorization) = authorization {
            asked = asked.header(AUTHORIZATION, authorization);
        }
        if let Some(tag) = request.tag {
            asked = asked.header(IF_NONE_MATCH, tag);
        }
        let response = tokio::time::timeout(STALL_TIMEOUT, asked.send()).await;
        let response = response
            .map_err(|_| HttpError::Stalled { url: shown(&url) })?
            .map_err(|error| failed(&url, error))?;
        if !is_redirect(response.status()) {
            return receive(response, request, options, open).await;
        }
        url = hop(&url, &response)?;
    }
    Err(HttpError::Redirect {
        url: request.url.shown(),
        reason: "too many other addresses",
    })
}

/// Returns what to show to the host of `url`; it goes before what the address itself has.
fn authorization(request: &Request<'_>, url: &mut Url) -> Result<Option<HeaderValue>, HttpError> {
    let Some(text) = request.authorization else {
        return Ok(None);
    };
    if url.origin() != request.url.0.origin() {
        return Ok(None);
    }
    let invalid = |_| HttpError::Authorization {
        url: request.url.shown(),
    };
    let mut value = HeaderValue::from_str(text).map_err(invalid)?;
    value.set_sensitive(true);
    // Neither can fail: addresses without a host do not come here.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    Ok(Some(value))
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Returns where a redirect leads.
fn hop(from: &Url, response: &Response) -> Result<Url, HttpError> {
    let refused = |reason| HttpError::Redirect {
        url: shown(from),
        reason,
    };
    let location = response.headers().get(LOCATION);
    let location = location.and_then(|location| location.to_str().ok());
    let location = location.filter(|location| location.len() <= URL_MAX_BYTES);
    let location = location.ok_or_else(|| refused("nowhere"))?;
    let url = from.join(location);
    let mut url = url.map_err(|_| refused("something that is no address"))?;
    match (from.scheme(), url.scheme()) {
        (_, "https") | ("http", "http") => {}
        (_, "http") => return Err(refused("an address without TLS")),
        _ => return Err(refused("something that is neither http nor https")),
    }
    url.set_fragment(None);
    Ok(url)
}

async fn receive<W: Write>(
    mut response: Response,
    request: &Request<'_>,
    options: &HttpOptions,
    open: &mut (dyn FnMut() -> io::Result<W> + Send),
) -> Result<Fetched<W>, HttpError> {
    let url = request.url.shown();
    let tag = text_of(&response, &ETAG).filter(|tag| tag.len() <= TAG_MAX_BYTES);
    let status = response.status();
    // Some servers send a file again whose tag they know to be the same.
    let is_same = tag.is_some() && tag.as_deref().map(strong) == request.tag.map(strong);
    match status {
        StatusCode::NOT_MODIFIED if request.tag.is_some() => return Ok(Fetched::Unchanged),
        _ if status.is_success() && is_same => return Ok(Fetched::Unchanged),
        _ if status.is_success() => {}
        _ => {
            let status = status.as_u16();
            return Err(HttpError::Status { url, status });
        }
    }
    let modified = text_of(&response, &LAST_MODIFIED).and_then(|date| seconds(&date));
    let max_bytes = options.max_bytes;
    let too_large = || HttpError::TooLarge {
        url: url.clone(),
        max_bytes,
    };
    if response.content_length().is_some_and(|n| n > max_bytes) {
        return Err(too_large());
    }
    let mut out = open().map_err(HttpError::Write)?;
    let mut checksum = request
        .checksum
        .map(|(algorithm, expected)| (digest::Context::new(context_of(algorithm)), expected));
    let mut n_bytes = 0;
    loop {
        let piece = tokio::time::timeout(STALL_TIMEOUT, response.chunk()).await;
        let piece = piece.map_err(|_| HttpError::Stalled { url: url.clone() })?;
        let Some(piece) = piece.map_err(|error| failed(&request.url.0, error))? else {
            break;
        };
        n_bytes += piece.len() as u64;
        if n_bytes > max_bytes {
            return Err(too_large());
        }
        if let Some((context, _)) = &mut checksum {
            context.update(&piece);
        }
        out.write_all(&piece).map_err(HttpError::Write)?;
    }
    if let Some((context, expected)) = checksum {
        let found = hex(context.finish().as_ref());
        if found != expected {
            let expected = expected.to_owned();
            return Err(HttpError::Checksum {
                url,
                expected,
                found,
            });
        }
    }
    Ok(Fetched::Whole { out, tag, modified })
}

fn text_of(response: &Response, name: &reqwest::header::HeaderName) -> Option<String> {
    let value = response.headers().get(name)?.to_str().ok()?;
    (!value.is_empty()).then(|| value.to_owned())
}

/// Returns a tag without the mark that the file is only as good as the same.
fn strong(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

fn seconds(date: &str) -> Option<i64> {
    let time = httpdate::parse_http_date(date).ok()?;
    let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok()
}

fn context_of(algorithm: Algorithm) -> &'static digest::Algorithm {
    match algorithm {
        Algorithm::Sha256 => &digest::SHA256,
        Algorithm::Sha384 => &digest::SHA384,
        Algorithm::Sha512 => &digest::SHA512,
    }
}

/// Returns lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |n: u8| char::from_digit(n.into(), 16).unwrap_or('0');
    let digits = bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]);
    digits.collect()
}

fn failed(url: &Url, error: reqwest::Error) -> HttpError {
    if let Some(refused) = egress::refusal_in(&error) {
        return HttpError::Egress(refused);
    }
    HttpError::Request {
        url: shown(url),
        source: error.without_url(),
    }
}
