//! Fills a workspace: what an [`Initializer`] asks for, in its order, until something fails.
//!
//! Each part may have put links into the workspace that lead anywhere; everything that a later one writes is opened in-root, and git,
//! which opens by name, is given no location behind a link. A downloaded file gets its name when its digest is right, and not before.

use std::fs::File;
use std::path::{Path, PathBuf};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use oci::Digest;
use oci::digest::Algorithm;
use source::git::{Checkout, FetchOptions, GitSource};
use source::http::{self, Fetched, HttpOptions, Request};
use source::initializer::{Download, Initializer, SnapshotKey};
use source::path::RelPath;
use tokio_util::sync::CancellationToken;

use crate::event::{Failure, FailureKind};
use crate::failure::{chain, failure, platform, source as source_failure};
use crate::recorder::Step;
use crate::rootfs::remove;
use crate::rootfs::root::Root;
use crate::rootfs::unpack::{self, ExtractOptions, Rest, UnpackLimits};

/// Name of a tenant's backup in the store of snapshots, below a folder of the tenant's name.
const BACKUP: &str = "full.tar";
/// Where files are while it is not known whether they are the right ones.
const ARRIVALS: &str = "arrivals";

/// What a workspace is filled with, and how.
pub(super) struct Filling<'a> {
    pub(super) tenant: &'a str,
    /// How things are fetched, with the limits of the build.
    pub(super) options: FetchOptions,
    /// The workspace.
    pub(super) folder: &'a Path,
    /// Scratch, on the same filesystem.
    pub(super) work: &'a Path,
    pub(super) step: &'a Step,
    pub(super) cancel: &'a CancellationToken,
}

impl Filling<'_> {
    /// Carries `initializer` out; returns the first commit that was checked out.
    pub(super) fn fill<'b>(
        &'b self,
        initializer: &'b Initializer,
    ) -> BoxFuture<'b, Result<Option<Checkout>, Failure>> {
        async move {
            match initializer {
                Initializer::Empty => Ok(None),
                Initializer::Git(git) => self.git(git).await.map(Some),
                Initializer::Composite { parts } => {
                    let mut first = None;
                    for part in parts {
                        self.step.say(&format!("initializer {}", part.name()));
                        first = first.or(self.fill(part).await?);
                    }
                    Ok(first)
                }
                Initializer::Download { files, target } => {
                    self.download(files, target).await.map(|()| None)
                }
                Initializer::Snapshot { key } => self
                    .archive(key.path(), &RelPath::default())
                    .await
                    .map(|()| None),
                Initializer::Backup { location } => {
                    let key = self.backup()?;
                    self.archive(key.path(), location).await.map(|()| None)
                }
                Initializer::Prebuild { snapshot, git } => self.prebuild(snapshot, git).await,
            }
        }
        .boxed()
    }

    async fn git(&self, git: &GitSource) -> Result<Checkout, Failure> {
        let say = |line: &str| self.step.say(line);
        let fetched = source::git::fetch(git, self.folder, &self.options, &say, self.cancel).await;
        fetched.map_err(|e| source_failure(&e))
    }

    async fn prebuild(
        &self,
        snapshot: &SnapshotKey,
        git: &[GitSource],
    ) -> Result<Option<Checkout>, Failure> {
        let failed = match self.archive(snapshot.path(), &RelPath::default()).await {
            Ok(()) => return Ok(None),
            Err(failed) => failed,
        };
        if git.is_empty() || self.cancel.is_cancelled() {
            return Err(failed);
        }
        self.step.say(&format!(
            "{}; its repositories are fetched instead",
            failed.message
        ));
        self.clear()?;
        let mut first = None;
        for git in git {
            let checkout = self.git(git).await?;
            first = first.or(Some(checkout));
        }
        Ok(first)
    }

    /// Empties the workspace of what a failed archive left.
    fn clear(&self) -> Result<(), Failure> {
        let fail = |e: &(dyn std::error::Error + 'static)| platform("empty the workspace", e);
        remove::remove_tree(self.folder).map_err(|e| fail(&e))?;
        std::fs::create_dir(self.folder).map_err(|e| fail(&e))
    }

    fn backup(&self) -> Result<SnapshotKey, Failure> {
        let name = format!("{}/{BACKUP}", self.tenant);
        name.parse().map_err(|e| platform("name the backup", &e))
    }

    /// Unpacks an archive of the store of snapshots.
    async fn archive(&self, key: &RelPath, location: &RelPath) -> Result<(), Failure> {
        let Some(store) = self.options.snapshots.clone() else {
            return Err(failure(
                FailureKind::Source,
                "snapshots are not configured here",
            ));
        };
        let limits = UnpackLimits {
            content_bytes: self.options.limits.size_bytes,
            entries: self.options.limits.n_files,
            ..UnpackLimits::default()
        };
        let (folder, key, location) = (self.folder.to_owned(), key.clone(), location.clone());
        let cancel = self.cancel.clone();
        let unpacked = tokio::task::spawn_blocking(move || {
            let archive = open_snapshot(&store, &key)?;
            unpack_into(archive, &folder, &location, &limits, &cancel).map_err(|why| {
                failure(
                    FailureKind::Source,
                    format!("snapshot {:?}: {why}", key.as_str()),
                )
            })
        });
        let unpacked = tokio::time::timeout(self.options.timeout, unpacked).await;
        let after = self.options.timeout.as_secs();
        let joined = unpacked.map_err(|_| {
            let text = format!("a snapshot was not unpacked within {after} s");
            failure(FailureKind::Source, text)
        })?;
        joined.unwrap_or_else(|e| Err(platform("unpack a snapshot", &e)))
    }

    async fn download(&self, files: &[Download], target: &RelPath) -> Result<(), Failure> {
        let arrivals = self.work.join(ARRIVALS);
        std::fs::create_dir_all(&arrivals)
            .map_err(|e| platform("create a folder for downloads", &e))?;
        let mut left = self.options.limits.size_bytes;
        for (index, file) in files.iter().enumerate() {
            let path = target.join(&file.path);
            let here = arrivals.join(index.to_string());
            self.step
                .say(&format!("downloading {:?} to {}", file.url, path.as_str()));
            let fetched = self.fetch_file(file, &here, left);
            let fetched = tokio::time::timeout(self.options.timeout, fetched).await;
            let after = self.options.timeout.as_secs();
            let size = fetched.unwrap_or_else(|_| {
                let text = format!("{:?} was not downloaded within {after} s", file.url);
                Err(failure(FailureKind::Source, text))
            })?;
            left = left.saturating_sub(size);
            place(&here, self.folder, &path).map_err(|why| {
                failure(
                    FailureKind::Source,
                    format!("write {:?}: {why}", path.as_str()),
                )
            })?;
        }
        Ok(())
    }

    /// Downloads one file to `here` and returns its size; its digest is right then.
    async fn fetch_file(
        &self,
        file: &Download,
        here: &Path,
        max_bytes: u64,
    ) -> Result<u64, Failure> {
        let refused = |text: String| failure(FailureKind::Source, text);
        let url = file.url.file_url().map_err(|e| refused(e.to_string()))?;
        let options = HttpOptions {
            max_bytes,
            attempts: self.options.attempts,
            retry_pause: self.options.retry_pause,
            proxy: self.options.proxy.clone(),
            no_proxy: self.options.no_proxy.clone(),
            ca_file: self.options.ca_file.clone(),
            egress: self.options.egress.clone(),
        };
        let request = Request {
            url: &url,
            tag: None,
            checksum: Some((checksum_of(&file.digest), file.digest.hex())),
            authorization: None,
        };
        // Anew for every try: what an answer that broke off left is never part of the next one.
        let mut open = || File::create(here);
        match http::fetch(&request, &options, &mut open, self.cancel).await {
            Ok(Fetched::Whole { out, .. }) => {
                let size = out
                    .metadata()
                    .map_err(|e| platform("look at a download", &e))?
                    .len();
                Ok(size)
            }
            Ok(Fetched::Unchanged) => Err(refused("nothing came of a download".to_owned())),
            Err(error) => Err(refused(format!("cannot download: {}", chain(&error)))),
        }
    }
}

fn checksum_of(digest: &Digest) -> http::Algorithm {
    match digest.algorithm() {
        Algorithm::Sha256 => http::Algorithm::Sha256,
        Algorithm::Sha512 => http::Algorithm::Sha512,
    }
}

/// Opens an archive of the store, whatever links its folder has: they stay within it.
fn open_snapshot(store: &Path, key: &RelPath) -> Result<File, Failure> {
    let name = key.as_str();
    let missing = |why: String| {
        failure(
            FailureKind::Source,
            format!("there is no snapshot {name:?}: {why}"),
        )
    };
    let store = Root::open(store).map_err(|e| platform("open the folder of snapshots", &e))?;
    store
        .open_regular(Path::new(name))
        .map_err(|e| missing(chain(&e)))
}

fn unpack_into(
    archive: File,
    folder: &Path,
    location: &RelPath,
    limits: &UnpackLimits,
    cancel: &CancellationToken,
) -> Result<(), String> {
    let workspace = Root::open(folder).map_err(|e| chain(&e))?;
    let below = Path::new(location.as_str());
    if !location.is_root() {
        workspace
            .create_dir_all(below, 0o755, (0, 0))
            .map_err(|e| chain(&e))?;
    }
    let place = workspace.subdirectory(below).map_err(|e| chain(&e))?;
    let plain =
        oci::layer::decompress(archive, oci::layer::Limits::default()).map_err(|e| chain(&e))?;
    // Whoever packed it, here it is ours: builds copy files, and not owners, from their context.
    let options = ExtractOptions {
        owner: Some((0, 0)),
        rest: Rest::Read,
    };
    let unpacked = unpack::extract(plain, place.into_fd(), options, limits, cancel);
    unpacked.map(drop).map_err(|e| chain(&e))
}

/// Gives a file that has arrived its place in the workspace, in one step.
fn place(here: &PathBuf, folder: &Path, path: &RelPath) -> Result<(), String> {
    let workspace = Root::open(folder).map_err(|e| chain(&e))?;
    let parent = path.parent();
    if !parent.is_root() {
        let parent = Path::new(parent.as_str());
        workspace
            .create_dir_all(parent, 0o755, (0, 0))
            .map_err(|e| chain(&e))?;
    }
    let parent = workspace
        .subdirectory(Path::new(parent.as_str()))
        .map_err(|e| chain(&e))?;
    let name = path.components().last().unwrap_or_default();
    let renamed = rustix::fs::renameat(rustix::fs::CWD, here, parent.as_fd(), name);
    renamed.map_err(|e| std::io::Error::from(e).to_string())
}
