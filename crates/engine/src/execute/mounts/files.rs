//! The files of mounts: their digests, and directories that hold them and are not changed any more.
//!
//! Layers are never changed once a step has left them. A context may be, and holds what its ignore file leaves out: what is mounted of
//! it is a copy, made once for each source, which belongs to root as everything from a context does.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dockerfile::Mount;
use oci::Digest;
use rustix::fs::FileType;

use super::Files;
use crate::event::Failure;
use crate::execute::{Execution, layers};
use crate::failure::{dockerfile as dockerfile_failure, platform};
use crate::resolve::context::BuildContext;
use crate::rootfs::content::{self, ContentOptions};
use crate::rootfs::copy::{self, Archives, CopyOptions, Destination, Mtime, Owner};
use crate::rootfs::filter::Source;
use crate::rootfs::overlay;
use crate::rootfs::root::Root;
use crate::rootfs::unpack::UnpackLimits;

/// Threads that hash.
const HASH_THREADS: usize = 2;

/// Kind of the records that say what mounts of uploaded files are made of, by what decides it in their list.
const LISTED: &str = "listed-mounts";

/// What a file of a context is called in its copy; a directory is the copy itself.
const FILE: &str = "file";

fn source_of(mount: &Mount) -> &str {
    match mount {
        Mount::Bind(bind) => &bind.source,
        Mount::Cache(cache) => &cache.source,
        Mount::Tmpfs(_) | Mount::Secret(_) | Mount::Ssh(_) => ".",
    }
}

/// Returns the digest of what `mount` takes from `files`, and the names and digests that it is made of.
pub(super) async fn digest(
    execution: &Arc<Execution>,
    mount: &Mount,
    files: &Files,
) -> Result<Option<(Digest, Vec<(String, Digest)>)>, Failure> {
    let path = source_of(mount).to_owned();
    let target = mount.target().unwrap_or_default().to_owned();
    match files {
        Files::Nothing => Ok(None),
        Files::Context => {
            let (shared, mount) = (Arc::clone(execution), mount.clone());
            let digest =
                tokio::task::spawn_blocking(move || digest_context(&shared, &mount, &path));
            let digest = digest
                .await
                .unwrap_or_else(|e| Err(platform("read the context", &e)))?;
            Ok(Some(digest))
        }
        Files::Layers(layers) => {
            let key = (layers::content(layers).await?, "mount", &path);
            let name = format!("{path} for {target}");
            if let Some(known) = execution.cache.source(&key) {
                return Ok(Some((known.clone(), vec![(name, known)])));
            }
            let lowers = execution.depot.directories(layers).await?;
            let (shared, wanted) = (Arc::clone(execution), path.clone());
            let digest =
                tokio::task::spawn_blocking(move || digest_layers(&shared, lowers, &wanted));
            let digest = digest
                .await
                .unwrap_or_else(|e| Err(platform("read what is to be mounted", &e)))?;
            execution.cache.keep_source(&key, &digest);
            Ok(Some((digest.clone(), vec![(name, digest)])))
        }
    }
}

fn literal(path: &str) -> Result<Source, Failure> {
    Source::literal(path, &[]).map_err(|e| platform("choose what to mount", &e))
}

fn digest_context(
    execution: &Execution,
    mount: &Mount,
    path: &str,
) -> Result<(Digest, Vec<(String, Digest)>), Failure> {
    let context = context_of(execution, mount)?;
    let sources = [literal(path)?];
    let listed = context.listed(&sources)?;
    let key = listed.map(|key| (content::FORMAT, key, path));
    if let Some(key) = &key
        && let Some(known) = execution.cache.recall(LISTED, key)
    {
        return Ok(known);
    }
    let ignore = |path: &Path, is_dir: bool| context.is_ignored(path, is_dir);
    let options = ContentOptions {
        owner: Owner::Fixed(0, 0),
        mode: None,
        ignore: Some(&ignore),
        n_threads: HASH_THREADS,
    };
    let root = context.root()?;
    let digest = content::digest_sources(root, &sources, &options, &execution.cancel);
    context.check()?;
    let digest = digest.map_err(|e| dockerfile_failure("find what is to be mounted", &e))?;
    let named = digest.files.into_iter();
    let named = named.map(|(path, digest)| (path.to_string_lossy().into_owned(), digest));
    let found = (digest.digest, named.collect());
    if let Some(key) = &key {
        execution.cache.keep_note(LISTED, key, &found);
    }
    Ok(found)
}

fn digest_layers(
    execution: &Execution,
    lowers: Vec<PathBuf>,
    path: &str,
) -> Result<Digest, Failure> {
    let lowers = or_empty(execution, lowers)?;
    let view = overlay::mount(&lowers, None);
    let view = Root::from_fd(view.map_err(|e| platform("mount what is to be mounted", &e))?);
    let options = ContentOptions {
        owner: Owner::FromSource,
        mode: None,
        ignore: None,
        n_threads: HASH_THREADS,
    };
    let sources = [literal(path)?];
    let digest = content::digest_sources(&view, &sources, &options, &execution.cancel);
    Ok(digest
        .map_err(|e| dockerfile_failure("find what is to be mounted", &e))?
        .digest)
}

fn context_of<'a>(execution: &'a Execution, mount: &Mount) -> Result<&'a BuildContext, Failure> {
    let files = mount.from().map(|from| execution.files(from)).transpose()?;
    Ok(files.flatten().unwrap_or(&execution.context))
}

/// Returns directories, bottom first, and the path in them that `mount` takes.
pub(super) async fn directories(
    execution: &Arc<Execution>,
    mount: &Mount,
    files: &Files,
) -> Result<(Vec<PathBuf>, String), Failure> {
    let path = source_of(mount).to_owned();
    match files {
        Files::Nothing => Ok((or_empty(execution, Vec::new())?, path)),
        Files::Layers(layers) => {
            let lowers = execution.depot.directories(layers).await?;
            Ok((or_empty(execution, lowers)?, path))
        }
        Files::Context => {
            let key = format!("{:?} {path}", mount.from());
            // Held while copying: whoever wants the same waits for it.
            let mut copies = execution.context_copies.lock().await;
            if let Some((directory, path)) = copies.get(&key) {
                return Ok((vec![directory.clone()], path.clone()));
            }
            let (shared, mount) = (Arc::clone(execution), mount.clone());
            let copying = tokio::task::spawn_blocking(move || copy_context(&shared, &mount, &path));
            let made = copying
                .await
                .unwrap_or_else(|e| Err(platform("copy what is to be mounted", &e)))?;
            copies.insert(key, made.clone());
            Ok((vec![made.0], made.1))
        }
    }
}

fn or_empty(execution: &Execution, lowers: Vec<PathBuf>) -> Result<Vec<PathBuf>, Failure> {
    if !lowers.is_empty() {
        return Ok(lowers);
    }
    let empty = execution.scratch()?;
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&empty, mode).map_err(|e| platform("make an empty directory", &e))?;
    Ok(vec![empty])
}

fn copy_context(
    execution: &Execution,
    mount: &Mount,
    path: &str,
) -> Result<(PathBuf, String), Failure> {
    let attempt = "copy what is to be mounted";
    let context = context_of(execution, mount)?;
    let root = context.root()?;
    let found = root.stat(Path::new(path));
    let found = found.map_err(|e| dockerfile_failure(attempt, &e))?;
    let is_directory = found.is_some_and(|found| found.kind == FileType::Directory);
    let directory = execution.scratch()?;
    let mode = match found {
        Some(found) if is_directory => found.mode,
        _ => 0o755,
    };
    let to = Root::open(&directory).map_err(|e| platform(attempt, &e))?;
    let ignore = |path: &Path, is_dir: bool| context.is_ignored(path, is_dir);
    let options = CopyOptions {
        owner: Owner::Fixed(0, 0),
        mode: None,
        mtime: execution.epoch.map_or(Mtime::FromSource, Mtime::Fixed),
        destination: if is_directory {
            Destination::Directory
        } else {
            Destination::Any
        },
        archives: Archives::Copy,
        ignore: Some(&ignore),
        limits: UnpackLimits {
            content_bytes: execution.limits.context_bytes,
            ..UnpackLimits::default()
        },
    };
    let into = if is_directory { "." } else { FILE };
    let dest = Path::new("/").join(into);
    let sources = [literal(path)?];
    let copied = copy::copy(root, &sources, &to, &dest, &options, &execution.cancel);
    context.check()?;
    copied.map_err(|e| dockerfile_failure(attempt, &e))?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(mode))
        .map_err(|e| platform(attempt, &e))?;
    Ok((directory, into.to_owned()))
}
