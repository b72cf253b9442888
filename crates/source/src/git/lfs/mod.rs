//! Files that a repository keeps with LFS: pointers are replaced by what they stand for, when the configuration wants that.
//!
//! After a checkout, in order:
//!
//! 1. ask git which files have the attribute `filter=lfs`, and read those that are pointers;
//! 2. without [`Lfs::On`], say in the log which they are, and stop; they stay pointers;
//! 3. ask the repository's own LFS service, a hundred at a time, where the objects are;
//! 4. fetch each into a file of ours, at most as long as its pointer says, and compare its digest;
//! 5. put it in the place of its pointers.
//!
//! No filter and no other program is run. `.lfsconfig` is not read: the service is the one of the repository that was asked for. The
//! credential goes to that origin alone; what the service names is judged by the egress policy like everything else.

mod pointer;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION,
};
use reqwest::{Client, Response, StatusCode};
use serde::{Deserialize, Serialize};
use url::Url;

use self::pointer::{Object, Place, pointers};
use super::auth::Credential;
use super::command::{Git, Reach};
use super::error::FetchError;
use super::http;
use super::remote::RemoteUrl;
use super::{GitSource, Session};

/// Largest listing of files, as git writes it.
const MAX_LISTING_BYTES: usize = 64 << 20;

/// Most objects that are asked for at once.
const OBJECTS_PER_BATCH: usize = 100;

/// Largest answer to that.
const MAX_BATCH_BYTES: usize = 4 << 20;

/// Longest address of an object.
const MAX_HREF_BYTES: usize = 8 << 10;

/// Most headers that an object is asked for with.
const MAX_HEADERS: usize = 32;

/// Most redirects that lead to an object.
const MAX_REDIRECTS: usize = 5;

/// Most files that are named one by one in the log.
const MAX_NAMED: usize = 20;

/// The media type of the service.
const MEDIA_TYPE: &str = "application/vnd.git-lfs+json";

/// Whether files kept with LFS are fetched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lfs {
    /// They stay pointers; the log says which.
    #[default]
    Off,
    /// They are fetched from the repository's own service.
    On,
}

/// What the service is asked.
#[derive(Serialize)]
struct BatchRequest<'a> {
    operation: &'static str,
    transfers: [&'static str; 1],
    objects: &'a [Object],
}

/// What it answers; other fields do not matter.
#[derive(Deserialize)]
struct BatchAnswer {
    objects: Vec<AnsweredObject>,
}

#[derive(Deserialize)]
struct AnsweredObject {
    oid: String,
    actions: Option<Actions>,
}

#[derive(Deserialize)]
struct Actions {
    download: Option<Download>,
}

#[derive(Deserialize)]
struct Download {
    href: String,
    #[serde(default)]
    header: BTreeMap<String, String>,
}

/// What fetching objects needs.
struct Fetcher<'a> {
    session: &'a Session<'a>,
    remote: &'a RemoteUrl,
    credential: Option<&'a Credential>,
    client: Client,
    /// Where an object is until it is whole: in `.git`, which nothing of the repository gets into.
    scratch: PathBuf,
}

/// Whether a repository keeps anything with LFS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Nothing,
    Something,
}

/// Replaces the pointers that were checked out at `location`, or says in the log which there are.
pub(super) async fn fill(
    git: &Git<'_>,
    session: &Session<'_>,
    source: &GitSource,
    credential: Option<&Credential>,
    location: &Path,
) -> Result<Kept, FetchError> {
    let listing = git
        .expect(
            Reach::Local,
            &["ls-files", "-z", "--stage", "--", ":(top,attr:filter=lfs)"],
            MAX_LISTING_BYTES,
        )
        .await?;
    let pointers = pointers(location, &listing)?;
    if pointers.is_empty() {
        return Ok(Kept::Nothing);
    }
    if session.options.lfs == Lfs::Off {
        say_what_stays(git, location, &pointers);
        return Ok(Kept::Something);
    }
    let limits = &session.options.limits;
    let sizes = pointers
        .iter()
        .map(|(object, places)| object.size.saturating_mul(places.len() as u64));
    if sizes.fold(0, u64::saturating_add) > limits.size_bytes {
        return Err(limits.too_large());
    }
    let n_objects = pointers.len();
    git.remark(&format!(
        "fetching {n_objects} objects with LFS from {}",
        source.remote
    ));
    let fetcher = Fetcher {
        session,
        remote: &source.remote,
        credential,
        client: http::transfer_client(session.options).ok_or_else(|| FetchError::Lfs {
            url: source.remote.to_string(),
            reason: "the settings for downloads are of no use".to_owned(),
        })?,
        scratch: location.join(".git/kiln-lfs"),
    };
    tokio::select! {
        filled = fetcher.fill(&pointers) => filled.map(|()| Kept::Something),
        () = session.stop.cancelled() => Err(FetchError::Cancelled),
    }
}

/// Says which files stay pointers.
fn say_what_stays(git: &Git<'_>, location: &Path, pointers: &BTreeMap<Object, Vec<Place>>) {
    let places: Vec<&Place> = pointers.values().flatten().collect();
    for place in places.iter().take(MAX_NAMED) {
        let path = place.path.strip_prefix(location).unwrap_or(&place.path);
        git.remark(&format!(
            "{} is kept with LFS and stays a pointer: the configuration wants no LFS (git.lfs)",
            path.display()
        ));
    }
    if let Some(n_more @ 1..) = places.len().checked_sub(MAX_NAMED) {
        git.remark(&format!("{n_more} more files stay pointers"));
    }
}

impl Fetcher<'_> {
    /// Steps 3 to 5.
    async fn fill(&self, pointers: &BTreeMap<Object, Vec<Place>>) -> Result<(), FetchError> {
        let objects: Vec<Object> = pointers.keys().cloned().collect();
        for batch in objects.chunks(OBJECTS_PER_BATCH) {
            let mut answer = self.ask(batch).await?;
            for object in batch {
                let download = answer.remove(&object.oid).flatten();
                let download = download
                    .ok_or_else(|| self.failed(format!("there is no object {}", object.oid)))?;
                self.fetch(object, &download).await?;
                for place in pointers.get(object).into_iter().flatten() {
                    let put = put(&self.scratch, place);
                    put.map_err(|source| prepare(&place.path, source))?;
                }
            }
        }
        match fs::remove_file(&self.scratch) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(prepare(&self.scratch, error))
            }
            _ => Ok(()),
        }
    }

    /// Asks where objects are.
    async fn ask(
        &self,
        objects: &[Object],
    ) -> Result<BTreeMap<String, Option<Download>>, FetchError> {
        let url = service(self.remote);
        let body = serde_json::to_vec(&BatchRequest {
            operation: "download",
            transfers: ["basic"],
            objects,
        });
        let body = body.map_err(|error| self.failed(error.to_string()))?;
        let resolver = egress::Resolver::new(self.session.options.egress.clone());
        resolver.judge(&url).await.map_err(FetchError::Egress)?;
        let mut left = self.session.options.attempts.max(1);
        let mut pause = self.session.options.retry_pause;
        let answer = loop {
            left -= 1;
            let mut headers = self.credential_headers(&url)?;
            headers.insert(ACCEPT, HeaderValue::from_static(MEDIA_TYPE));
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
            let request = self.client.post(url.clone()).headers(headers);
            let asked = async {
                let response = self.judge(request.body(body.clone()).send().await)?;
                self.read(response).await
            };
            match asked.await {
                Err(FetchError::Unavailable { .. }) if left > 0 => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                answer => break answer?,
            }
        };
        let answer: BatchAnswer = serde_json::from_slice(&answer)
            .map_err(|_| self.failed("its answer is not one of LFS".to_owned()))?;
        let answered = answer.objects.into_iter();
        Ok(answered
            .map(|object| {
                (
                    object.oid,
                    object.actions.and_then(|actions| actions.download),
                )
            })
            .collect())
    }

    /// Reads a small answer.
    async fn read(&self, mut response: Response) -> Result<Vec<u8>, FetchError> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.broken(&e))? {
            if body.len() + chunk.len() > MAX_BATCH_BYTES {
                return Err(
                    self.failed(format!("its answer is longer than {MAX_BATCH_BYTES} bytes"))
                );
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// Fetches one object into the scratch file, which is begun anew by every attempt.
    async fn fetch(&self, object: &Object, download: &Download) -> Result<(), FetchError> {
        let mut left = self.session.options.attempts.max(1);
        let mut pause = self.session.options.retry_pause;
        loop {
            left -= 1;
            match self.fetch_once(object, download).await {
                Err(FetchError::Unavailable { .. }) if left > 0 => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                fetched => return fetched,
            }
        }
    }

    async fn fetch_once(&self, object: &Object, download: &Download) -> Result<(), FetchError> {
        let mut response = self.open(download).await?;
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&self.scratch)
            .map_err(|source| prepare(&self.scratch, source))?;
        let mut hash = digest::Context::new(&digest::SHA256);
        let mut n_bytes = 0_u64;
        while let Some(chunk) = response.chunk().await.map_err(|e| self.broken(&e))? {
            n_bytes += chunk.len() as u64;
            if n_bytes > object.size {
                break;
            }
            hash.update(&chunk);
            file.write_all(&chunk)
                .map_err(|source| prepare(&self.scratch, source))?;
        }
        let found = crate::http::hex(hash.finish().as_ref());
        if n_bytes != object.size || found != object.oid {
            return Err(FetchError::Hostile {
                url: self.remote.to_string(),
                what: "an LFS object with another content than its pointer's",
            });
        }
        Ok(())
    }

    /// Asks for an object, following redirects; headers of the service go to the address that it named and not further.
    async fn open(&self, download: &Download) -> Result<Response, FetchError> {
        let mut url = self.address(None, &download.href)?;
        let mut headers = self.credential_headers(&url)?;
        if download.header.len() > MAX_HEADERS {
            return Err(self.failed("it wants too many headers".to_owned()));
        }
        for (name, value) in &download.header {
            let (name, value) = HeaderName::from_bytes(name.as_bytes())
                .ok()
                .zip(HeaderValue::from_str(value).ok())
                .ok_or_else(|| self.failed("it wants a header that is none".to_owned()))?;
            // Those that say where a request goes and how long it is are for the client to write.
            if !matches!(
                name.as_str(),
                "host" | "content-length" | "transfer-encoding" | "connection"
            ) {
                headers.insert(name, value);
            }
        }
        for _ in 0..=MAX_REDIRECTS {
            let resolver = egress::Resolver::new(self.session.options.egress.clone());
            resolver.judge(&url).await.map_err(FetchError::Egress)?;
            let request = self.client.get(url.clone()).headers(headers.clone());
            let response = self.judge(request.send().await)?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION);
            let location = location.and_then(|location| location.to_str().ok());
            let next = self.address(Some(&url), location.unwrap_or_default())?;
            if next.origin() != url.origin() {
                headers = HeaderMap::new();
            }
            url = next;
        }
        Err(self.failed("an object redirects too often".to_owned()))
    }

    /// Parses an address that the service named. It may be signed, so no error repeats it.
    fn address(&self, base: Option<&Url>, text: &str) -> Result<Url, FetchError> {
        let refused = || self.failed("the address of an object is not acceptable".to_owned());
        let parsed = match base {
            _ if text.is_empty() || text.len() > MAX_HREF_BYTES => return Err(refused()),
            Some(base) => base.join(text),
            None => Url::parse(text),
        };
        let url = parsed.map_err(|_| refused())?;
        let is_plain = url.scheme() == "http" && self.session.options.allows_plain_http(&url);
        let has_user = !url.username().is_empty() || url.password().is_some();
        if has_user || !(url.scheme() == "https" || is_plain) {
            return Err(refused());
        }
        Ok(url)
    }

    /// Returns the credential as a header if it is one for `url`.
    fn credential_headers(&self, url: &Url) -> Result<HeaderMap, FetchError> {
        let mut headers = HeaderMap::new();
        let is_its_own = url.origin() == self.remote.url().origin();
        if let Some(credential) = self.credential.filter(|_| is_its_own) {
            let value = HeaderValue::from_str(&credential.header());
            let mut value =
                value.map_err(|_| self.failed("the credential is no header".to_owned()))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Ok(headers)
    }

    /// Tells what an answer means that is neither a success nor a redirect.
    fn judge(&self, sent: Result<Response, reqwest::Error>) -> Result<Response, FetchError> {
        let response = sent.map_err(|error| self.broken(&error))?;
        let status = response.status();
        let (url, detail) = (
            self.remote.to_string(),
            format!("LFS answered with status {}", status.as_u16()),
        );
        match status {
            _ if status.is_success() || status.is_redirection() => Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(FetchError::Unauthorized { url, detail })
            }
            StatusCode::TOO_MANY_REQUESTS => Err(FetchError::Unavailable { url, detail }),
            _ if status.is_server_error() => Err(FetchError::Unavailable { url, detail }),
            _ => Err(self.failed(detail)),
        }
    }

    /// Tells why there was no answer, or no whole one. What reqwest says names the address, which may be signed.
    fn broken(&self, error: &reqwest::Error) -> FetchError {
        match egress::refusal_in(error) {
            Some(refused) => FetchError::Egress(refused),
            None => FetchError::Unavailable {
                url: self.remote.to_string(),
                detail: "LFS could not be reached or broke off".to_owned(),
            },
        }
    }

    fn failed(&self, reason: String) -> FetchError {
        FetchError::Lfs {
            url: self.remote.to_string(),
            reason,
        }
    }
}

fn prepare(path: &Path, source: io::Error) -> FetchError {
    FetchError::Prepare {
        path: path.to_path_buf(),
        source,
    }
}

/// Puts a copy of a whole object in the place of its pointer.
fn put(object: &Path, place: &Place) -> io::Result<()> {
    let copy = object.with_extension("copy");
    fs::copy(object, &copy)?;
    fs::set_permissions(&copy, Permissions::from_mode(place.mode))?;
    fs::rename(&copy, &place.path)
}

/// Returns where a repository's LFS service is asked for objects.
fn service(remote: &RemoteUrl) -> Url {
    let mut url = remote.url().clone();
    let path = url.path().trim_end_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path);
    url.set_path(&format!("{path}.git/info/lfs/objects/batch"));
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_is_below_the_repository() {
        for text in [
            "https://a.b/x/y",
            "https://a.b/x/y.git",
            "https://a.b/x/y.git/",
        ] {
            let remote = RemoteUrl::parse(text).unwrap();
            assert_eq!(
                service(&remote).as_str(),
                "https://a.b/x/y.git/info/lfs/objects/batch"
            );
        }
    }
}
