//! Cache mounts: which directory of the store belongs to which tenant, name and first content.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dockerfile::{CacheMount, Sharing};
use oci::Digest;
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use store::{CacheMountError, CacheMountGuard, CacheUse};

use super::{Source, Waits};
use crate::event::{Failure, FailureKind};
use crate::execute::Execution;
use crate::execute::cache::digest_of;
use crate::failure::{failure, platform};
use crate::rootfs::copy::{self, Archives, CopyOptions, Destination, Mtime, Owner};
use crate::rootfs::filter;
use crate::rootfs::overlay;
use crate::rootfs::root::Root;
use crate::rootfs::unpack::UnpackLimits;

/// Changes whenever what older versions left must not be found.
const VERSION: u32 = 1;
/// The build argument that tells cache mounts apart beyond their ids, as with `BuildKit`.
const NAMESPACE: &str = "BUILDKIT_CACHE_MOUNT_NS";

/// How long a step waits without saying so.
const SILENCE: Duration = Duration::from_secs(1);

/// A cache mount that a step wants.
pub(super) struct Wish {
    /// Which of the step's mounts it is.
    pub(super) index: usize,
    pub(super) key: Digest,
    pub(super) cache: CacheMount,
    /// The directories that it begins with, and what of them.
    pub(super) first: Option<(Vec<PathBuf>, String)>,
}

/// Returns the key of a cache mount. `first` is the digest of what it begins with: another one makes it another mount.
pub(super) fn key(execution: &Execution, cache: &CacheMount, first: Option<&Digest>) -> Digest {
    let arguments = &execution.options.build_args;
    let owner = cache.owner.map(|owner| (owner.uid, owner.gid, owner.mode));
    digest_of(&(
        VERSION,
        &execution.mounts_of,
        arguments.get(NAMESPACE),
        &cache.id,
        first,
        owner,
    ))
}

/// Takes all of them, in the order of their keys, so that two steps that lock the same ones never wait for each other. One that is
/// wanted twice is taken once.
pub(super) async fn take(
    execution: &Arc<Execution>,
    mut wishes: Vec<Wish>,
    waits: Waits,
) -> Result<Vec<(usize, Source)>, Failure> {
    if wishes.is_empty() {
        return Ok(Vec::new());
    }
    wishes.sort_by(|a, b| a.key.cmp(&b.key));
    let shared = Arc::clone(execution);
    let taking = tokio::task::spawn_blocking(move || take_all(&shared, wishes, &waits));
    taking
        .await
        .unwrap_or_else(|e| Err(platform("take a cache mount", &e)))
}

fn take_all(
    execution: &Execution,
    wishes: Vec<Wish>,
    waits: &Waits,
) -> Result<Vec<(usize, Source)>, Failure> {
    let mut taken: BTreeMap<Digest, Arc<CacheMountGuard>> = BTreeMap::new();
    let mut sources = Vec::new();
    for wish in wishes {
        let guard = match taken.get(&wish.key) {
            Some(guard) => Arc::clone(guard),
            None => Arc::new(take_one(execution, &wish, waits)?),
        };
        taken.insert(wish.key, Arc::clone(&guard));
        // What it begins with was cut out of its source already.
        let source = match wish.first {
            Some(_) => ".".to_owned(),
            None => wish.cache.source,
        };
        sources.push((wish.index, Source::Cache(guard, source)));
    }
    Ok(sources)
}

fn take_one(execution: &Execution, wish: &Wish, waits: &Waits) -> Result<CacheMountGuard, Failure> {
    let how = match wish.cache.sharing {
        Sharing::Shared => CacheUse::Shared,
        Sharing::Private => CacheUse::Private,
        Sharing::Locked => CacheUse::Locked,
    };
    let fill = |draft: &Path| fill(execution, wish, draft);
    let (since, is_told) = (Instant::now(), Cell::new(false));
    let give_up = || {
        if !is_told.get() && since.elapsed() >= SILENCE {
            is_told.set(true);
            let target = &wish.cache.target;
            waits(&format!(
                "waiting for the cache mount at {target}, which is in use by another step"
            ));
        }
        execution.cancel.is_cancelled()
    };
    let taken = execution
        .depot
        .store
        .cache_mount(&wish.key, how, &fill, &give_up);
    taken.map_err(|error| match error {
        CacheMountError::GivenUp { .. } => failure(FailureKind::Platform, "cancelled"),
        error => platform("take a cache mount", &error),
    })
}

fn fill(
    execution: &Execution,
    wish: &Wish,
    draft: &Path,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let to = Root::open(draft)?;
    if let Some((lowers, path)) = &wish.first
        && !lowers.is_empty()
    {
        let from = Root::from_fd(overlay::mount(lowers, None)?);
        let options = CopyOptions {
            owner: Owner::FromSource,
            mode: None,
            mtime: Mtime::FromSource,
            destination: Destination::Directory,
            archives: Archives::Copy,
            ignore: None,
            limits: UnpackLimits {
                content_bytes: execution.limits.layer_bytes,
                ..UnpackLimits::default()
            },
        };
        let source = filter::Source::literal(path, &[])?;
        let root = Path::new("/");
        copy::copy(&from, &[source], &to, root, &options, &execution.cancel)?;
    }
    if let Some(owner) = wish.cache.owner {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, draft, flags, Mode::empty())?;
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        rustix::fs::fchown(&directory, Some(uid), Some(gid))?;
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(owner.mode))?;
    }
    Ok(())
}
