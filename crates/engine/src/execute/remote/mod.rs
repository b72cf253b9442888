//! What ADD takes from elsewhere: files over http, and folders of git repositories.
//!
//! 1. [`resolve`] finds out what the content is, for the step's key: a file whose server says that it has not changed, or whose checksum
//!    the Dockerfile gives, is not downloaded for that; nor is a repository fetched whose commit the Dockerfile or the server names, once
//!    its files are known;
//! 2. when the step has to run, [`bring`] sees to it that the content is here.
//!
//! Downloads are blobs of the store. What is remembered of an address (tag, date, digest) is kept under a hash of it, per tenant, and says
//! nothing about the address itself, which may hold a password.

mod git;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use dockerfile::{
    Checksum, ChecksumAlgorithm, CopyOp, CopySource as Planned, GitFolder, RemoteFile,
};
use oci::Digest;
use serde::{Deserialize, Serialize};
use source::http::{self, Algorithm, Fetched, FileUrl, HttpError, HttpErrorKind, HttpOptions};

use super::Execution;
use crate::event::{Failure, FailureKind};
use crate::failure::{dockerfile as dockerfile_failure, failure, platform};
use crate::rootfs::overlay::times;
use crate::rootfs::root::Root;

/// Kind of the records about files by their address.
const FILES: &str = "http";
/// Kind of the records about files by a checksum that the store does not know them by.
const SUMS: &str = "http-sum";
/// Mode of a downloaded file.
const FILE_MODE: u32 = 0o600;

/// Something from elsewhere, of which the content is known.
#[derive(Debug)]
pub(super) struct Remote {
    /// Its place among the sources of the instruction.
    pub(super) index: usize,
    /// What it is called when something is said about it. Not its address: the same content from elsewhere is the same.
    pub(super) name: String,
    pub(super) content: Digest,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    File {
        file: RemoteFile,
        url: FileUrl,
    },
    Git {
        git: GitFolder,
        fetched: Option<git::Repository>,
    },
}

/// Something from elsewhere that is here.
#[derive(Debug)]
pub(super) struct Brought {
    pub(super) index: usize,
    /// The folder that it is in.
    pub(super) root: Root,
    /// Its name there.
    pub(super) name: String,
    /// When everything in it was last modified, if it is one time.
    pub(super) modified: Option<i64>,
}

/// What is known of a file from its last download.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Known {
    digest: Digest,
    tag: Option<String>,
    modified: i64,
}

/// Finds out what the sources of `op` that are elsewhere hold.
pub(super) async fn resolve(execution: &Execution, op: &CopyOp) -> Result<Vec<Remote>, Failure> {
    let mut remotes = Vec::new();
    for (index, source) in op.sources.iter().enumerate() {
        remotes.extend(match source {
            Planned::Path(_) => None,
            Planned::File(file) => Some(resolve_file(execution, index, file).await?),
            Planned::Git(git) => Some(git::resolve(execution, index, git, &op.exclude).await?),
        });
    }
    Ok(remotes)
}

/// Brings here what is not.
pub(super) async fn bring(
    execution: &Execution,
    remotes: Vec<Remote>,
) -> Result<Vec<Brought>, Failure> {
    let mut brought = Vec::new();
    for remote in remotes {
        let index = remote.index;
        brought.push(match remote.kind {
            Kind::File { file, url } => {
                bring_file(execution, index, (&file, &url), &remote.content).await?
            }
            Kind::Git { git, fetched } => {
                let fetched = match fetched {
                    Some(fetched) => fetched,
                    None => git::fetch(execution, &git).await?,
                };
                Brought {
                    index,
                    root: git::open_folder(&fetched, &git)?,
                    name: ".".to_owned(),
                    modified: Some(fetched.commit_time),
                }
            }
        });
    }
    Ok(brought)
}

async fn resolve_file(
    execution: &Execution,
    index: usize,
    file: &RemoteFile,
) -> Result<Remote, Failure> {
    let url = FileUrl::parse(&file.url).map_err(|e| dockerfile_failure("ADD", &e))?;
    let known: Option<Known> = execution.cache.recall(FILES, &url.expose());
    let by_sum = match &file.checksum {
        Some(Checksum {
            algorithm: ChecksumAlgorithm::Sha256,
            hex,
        }) => format!("sha256:{hex}").parse().ok(),
        Some(sum) => execution
            .cache
            .recall(SUMS, &(format!("{:?}", sum.algorithm), &sum.hex)),
        None => None,
    };
    let content = if let Some(digest) = by_sum {
        digest
    } else {
        // What is known of the file says nothing about a checksum of another kind.
        let known = known.filter(|_| file.checksum.is_none());
        let downloaded = download(execution, (file, &url), known.as_ref()).await?;
        downloaded.digest
    };
    Ok(Remote {
        index,
        name: file.name.clone(),
        content,
        kind: Kind::File {
            file: file.clone(),
            url,
        },
    })
}

/// Downloads a file into the store, unless it is what is `known`.
async fn download(
    execution: &Execution,
    (file, url): (&RemoteFile, &FileUrl),
    known: Option<&Known>,
) -> Result<Known, Failure> {
    let vertex = execution
        .recorder
        .begin(&format!("[internal] download {}", url.shown()), None);
    let got = get(execution, (file, url), known).await;
    match &got {
        Ok(_) => vertex.finish(),
        Err(failure) => drop(vertex.fail(&failure.message)),
    }
    got
}

async fn get(
    execution: &Execution,
    (file, url): (&RemoteFile, &FileUrl),
    known: Option<&Known>,
) -> Result<Known, Failure> {
    let attempt = "keep a download";
    let store = &execution.depot.store;
    let authorization = authorization(execution, url)?;
    let mut open = || store.ingest().map_err(io::Error::other);
    let request = http::Request {
        url,
        tag: known.and_then(|known| known.tag.as_deref()),
        checksum: other_checksum(file),
        authorization: authorization.as_deref(),
    };
    let options = http_options(execution);
    let fetched = http::fetch(&request, &options, &mut open, &execution.cancel).await;
    let (ingest, tag, modified) = match (fetched.map_err(|e| http_failure(&e))?, known) {
        (Fetched::Unchanged, Some(known)) => return Ok(known.clone()),
        (Fetched::Unchanged, None) => {
            return Err(failure(FailureKind::Source, "nothing came of a download"));
        }
        (Fetched::Whole { out, tag, modified }, _) => (out, tag, modified),
    };
    let committed = tokio::task::spawn_blocking(move || ingest.commit(None)).await;
    let committed = committed.map_err(|e| platform(attempt, &e))?;
    let (digest, _) = committed.map_err(|e| platform(attempt, &e))?;
    let known = Known {
        digest,
        tag,
        // A file without a date has the first one that there is.
        modified: modified.unwrap_or(0),
    };
    if let Some(sum) = &file.checksum {
        if sum.algorithm == ChecksumAlgorithm::Sha256 && sum.hex != known.digest.hex() {
            let (shown, found) = (url.shown(), known.digest.hex());
            let message = format!("{shown} has the checksum {found}, not {}", sum.hex);
            return Err(failure(FailureKind::Dockerfile, message));
        }
        let key = (format!("{:?}", sum.algorithm), &sum.hex);
        execution.cache.keep_note(SUMS, &key, &known.digest);
    }
    execution.cache.keep_note(FILES, &url.expose(), &known);
    Ok(known)
}

/// Returns what the build's secrets have for the host of `url`: `HTTP_AUTH_TOKEN_host`, or `HTTP_AUTH_HEADER_host` for all of the header.
fn authorization(execution: &Execution, url: &FileUrl) -> Result<Option<String>, Failure> {
    for (name, scheme) in [("HTTP_AUTH_TOKEN_", "Bearer "), ("HTTP_AUTH_HEADER_", "")] {
        let name = format!("{name}{}", url.host());
        let Some(secret) = execution.secrets.get(&name) else {
            continue;
        };
        let secret = std::str::from_utf8(secret.reveal());
        let secret = secret.map_err(|_| {
            let message = format!("the secret {name} is not text");
            failure(FailureKind::Dockerfile, message)
        })?;
        return Ok(Some(format!("{scheme}{}", secret.trim_end())));
    }
    Ok(None)
}

/// Returns the checksum that the store does not compute anyway.
fn other_checksum(file: &RemoteFile) -> Option<(Algorithm, &str)> {
    let sum = file.checksum.as_ref()?;
    let algorithm = match sum.algorithm {
        ChecksumAlgorithm::Sha256 => return None,
        ChecksumAlgorithm::Sha384 => Algorithm::Sha384,
        ChecksumAlgorithm::Sha512 => Algorithm::Sha512,
    };
    Some((algorithm, &sum.hex))
}

fn http_options(execution: &Execution) -> HttpOptions {
    let fetch = &execution.fetch;
    HttpOptions {
        max_bytes: execution.limits.layer_bytes,
        attempts: fetch.attempts,
        retry_pause: fetch.retry_pause,
        proxy: fetch.proxy.clone(),
        no_proxy: fetch.no_proxy.clone(),
        ca_file: fetch.ca_file.clone(),
        egress: fetch.egress.clone(),
    }
}

fn http_failure(error: &HttpError) -> Failure {
    let failed = dockerfile_failure("ADD", error);
    match error.kind() {
        HttpErrorKind::Refused => failed,
        HttpErrorKind::Unavailable => Failure {
            kind: FailureKind::Source,
            ..failed
        },
        HttpErrorKind::Cancelled | HttpErrorKind::Local => platform("ADD", error),
    }
}

/// Sees to it that a file is in a folder, under the name that it gets.
async fn bring_file(
    execution: &Execution,
    index: usize,
    (file, url): (&RemoteFile, &FileUrl),
    content: &Digest,
) -> Result<Brought, Failure> {
    let store = &execution.depot.store;
    let known: Option<Known> = execution.cache.recall(FILES, &url.expose());
    let known = known.filter(|known| known.digest == *content);
    let is_here = matches!(store.size_of(content), Ok(Some(_)));
    let known = match known.filter(|_| is_here) {
        Some(known) => known,
        // Without the tag: it is the content that is missing.
        None => download(execution, (file, url), None).await?,
    };
    if known.digest != *content {
        let message = format!("{} changed while it was being built", url.shown());
        return Err(failure(FailureKind::Source, message));
    }
    let folder = execution.scratch()?;
    let attempt = "put a download in its place";
    let blob = store
        .open_blob(content)
        .map_err(|e| platform(attempt, &e))?;
    let blob = blob.ok_or_else(|| failure(FailureKind::Platform, "a download is gone"))?;
    let path = folder.join(&file.name);
    let placed = tokio::task::spawn_blocking(move || place(blob, &path, known.modified)).await;
    placed
        .unwrap_or_else(|e| Err(io::Error::other(e)))
        .map_err(|e| platform(attempt, &e))?;
    Ok(Brought {
        index,
        root: Root::open(&folder).map_err(|e| platform(attempt, &e))?,
        name: file.name.clone(),
        modified: None,
    })
}

fn place(mut blob: File, path: &Path, modified: i64) -> io::Result<()> {
    let mut options = File::options();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)?;
    io::copy(&mut blob, &mut file)?;
    file.set_permissions(fs::Permissions::from_mode(FILE_MODE))?;
    rustix::fs::futimens(&file, &times(modified))?;
    Ok(())
}
