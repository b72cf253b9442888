//! COPY and ADD: files from the context, another stage or an image into what the steps before have left.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dockerfile::{CopyFrom, CopyOp, InlineFile};
use oci::Digest;

use super::cache::Operation;
use super::export::Directory;
use super::layers::{self, Layer};
use super::run::{fail_step, prospect};
use super::stage::{Prepared, other_stage};
use super::{Execution, StageFuture};
use crate::event::{Failure, FailureKind};
use crate::failure::{dockerfile as dockerfile_failure, failure, platform};
use crate::rootfs::content::{self, ContentDigest, ContentOptions};
use crate::rootfs::copy::{self, Archives, CopyError, CopyOptions, Destination, Mtime, Owner};
use crate::rootfs::overlay;
use crate::rootfs::root::Root;
use crate::rootfs::unpack::UnpackLimits;
use crate::rootfs::user;

/// Threads that hash the sources.
const HASH_THREADS: usize = 2;

/// Where the sources of a COPY are.
pub(super) enum CopySource {
    /// In a context.
    Context,
    /// In these layers.
    Layers(Arc<Vec<Layer>>),
}

/// Finds the sources of `op`; waits for the stage that makes them.
pub(super) async fn source(
    execution: &Execution,
    op: &CopyOp,
    earlier: &[StageFuture],
) -> Result<CopySource, Failure> {
    match &op.from {
        CopyFrom::Context | CopyFrom::Named(_) => Ok(CopySource::Context),
        CopyFrom::Stage(index) => Ok(CopySource::Layers(
            other_stage(earlier, index.0).await?.layers,
        )),
        CopyFrom::Image(key) => {
            let base = execution.bases.get(key);
            let base = base.ok_or_else(|| {
                failure(
                    FailureKind::Platform,
                    "the plan names an image that was not resolved",
                )
            })?;
            let layers = base
                .layers
                .iter()
                .map(|layer| Layer::known(Some(layer.clone()), None));
            Ok(CopySource::Layers(Arc::new(layers.collect())))
        }
    }
}

/// Returns what decides the result of a COPY: what it says, and the content of what it copies.
pub(super) async fn operation(
    execution: &Arc<Execution>,
    op: &CopyOp,
    source: &CopySource,
) -> Result<Operation, Failure> {
    let settings = BTreeMap::from([
        (
            "the destination".to_owned(),
            format!("{} {}", op.destination, op.destination_is_directory),
        ),
        (
            "the ownership".to_owned(),
            op.chown.clone().unwrap_or_default(),
        ),
        ("the mode".to_owned(), format!("{:?}", op.chmod)),
        ("unpacking".to_owned(), op.unpack_archives.to_string()),
        (
            "the source patterns".to_owned(),
            format!("{:?}", op.sources),
        ),
    ]);
    let mut files = source_files(execution, op, source).await?;
    files.extend(
        op.inline
            .iter()
            .map(|file| (file.name.clone(), Digest::sha256(file.content.as_bytes()))),
    );
    let keyword = if op.unpack_archives { "ADD" } else { "COPY" };
    Ok(Operation {
        instruction: keyword.to_owned(),
        variables: BTreeMap::new(),
        settings,
        files,
    })
}

async fn source_files(
    execution: &Arc<Execution>,
    op: &CopyOp,
    source: &CopySource,
) -> Result<Vec<(String, Digest)>, Failure> {
    if op.sources.is_empty() {
        return Ok(Vec::new());
    }
    match source {
        CopySource::Context => {
            let (shared, op) = (Arc::clone(execution), op.clone());
            let digest = tokio::task::spawn_blocking(move || digest(&shared, &op, None));
            let digest = digest
                .await
                .unwrap_or_else(|e| Err(platform("read the context", &e)))?;
            let name = |path: &Path| path.to_string_lossy().into_owned();
            Ok(digest
                .files
                .iter()
                .map(|(path, digest)| (name(path), digest.clone()))
                .collect())
        }
        CopySource::Layers(layers) => {
            // Content of a stage decides what its files are: told once, it need not be unpacked again to know.
            let key = (layers::content(layers).await?, &op.sources);
            let name = op.sources.join(" ");
            if let Some(known) = execution.cache.memo("sources", &key) {
                return Ok(vec![(name, known)]);
            }
            let lowers = execution.depot.directories(layers).await?;
            let (shared, op) = (Arc::clone(execution), op.clone());
            let digest = tokio::task::spawn_blocking(move || digest(&shared, &op, Some(&lowers)));
            let digest = digest
                .await
                .unwrap_or_else(|e| Err(platform("read what is to be copied", &e)))?;
            execution.cache.set_memo("sources", &key, &digest.digest);
            Ok(vec![(name, digest.digest)])
        }
    }
}

/// Digests the sources: in the directories of layers, else in the context. Ownership and modes that the instruction sets are settings
/// of the operation, not content.
fn digest(
    execution: &Execution,
    op: &CopyOp,
    layers: Option<&[PathBuf]>,
) -> Result<ContentDigest, Failure> {
    let context = execution.files(&op.from)?.unwrap_or(&execution.context);
    let ignore = |path: &Path, is_dir: bool| context.is_ignored(path, is_dir);
    let options = ContentOptions {
        owner: if layers.is_some() {
            Owner::FromSource
        } else {
            Owner::Fixed(0, 0)
        },
        mode: None,
        ignore: if layers.is_some() {
            None
        } else {
            Some(&ignore)
        },
        n_threads: HASH_THREADS,
    };
    let cancel = &execution.cancel;
    let digest = match layers {
        Some(lowers) => content::digest_sources(&view(lowers)?, &op.sources, &options, cancel),
        None => content::digest_sources(&context.root, &op.sources, &options, cancel),
    };
    context.check()?;
    digest.map_err(|e| dockerfile_failure("find the files to copy", &e))
}

fn view(lowers: &[PathBuf]) -> Result<Root, Failure> {
    if lowers.is_empty() {
        return Err(failure(
            FailureKind::Dockerfile,
            "there are no files in what is to be copied from",
        ));
    }
    let mounted = overlay::mount(lowers, None)
        .map_err(|e| platform("mount what is to be copied from", &e))?;
    Ok(Root::from_fd(mounted))
}

/// Copies.
pub(super) async fn run(
    execution: &Arc<Execution>,
    prepared: &Prepared<'_>,
    op: &CopyOp,
    source: CopySource,
    reason: String,
) -> Result<Directory, Failure> {
    let lowers = execution.depot.directories(prepared.parents).await?;
    let from = match &source {
        CopySource::Context => None,
        CopySource::Layers(layers) => Some(execution.depot.directories(layers).await?),
    };
    let vertex = execution.recorder.begin(&prepared.name, Some(reason));
    let (shared, op) = (Arc::clone(execution), op.clone());
    let copied = tokio::task::spawn_blocking(move || copy(&shared, &op, lowers, from.as_deref()));
    match copied
        .await
        .unwrap_or_else(|e| Err(platform("copy files", &e)))
    {
        Ok(path) => {
            let step = vertex.id;
            vertex.finish();
            Ok(Directory { path, step })
        }
        Err(failure) => Err(fail_step(execution, prepared.step, vertex, failure)),
    }
}

fn copy(
    execution: &Execution,
    op: &CopyOp,
    lowers: Vec<PathBuf>,
    from: Option<&[PathBuf]>,
) -> Result<PathBuf, Failure> {
    let prospect = prospect(execution, lowers, |_, _| Ok(None))?;
    let chown = match &op.chown {
        Some(user) => Some(
            user::lookup_owner(&prospect.view, user)
                .map_err(|e| dockerfile_failure(&format!("--chown={user}"), &e))?,
        ),
        None => None,
    };
    let to = Root::from_fd(prospect.root);
    let context = execution.files(&op.from)?.unwrap_or(&execution.context);
    let ignore = |path: &Path, is_dir: bool| context.is_ignored(path, is_dir);
    let is_directory = op.destination_is_directory || op.sources.len() + op.inline.len() > 1;
    let own = if from.is_some() {
        Owner::FromSource
    } else {
        Owner::Fixed(0, 0)
    };
    let options = CopyOptions {
        owner: chown.map_or(own, |(uid, gid)| Owner::Fixed(uid, gid)),
        mode: op.chmod,
        // Files of a context are as old as their checkout, which means nothing.
        mtime: match (from, execution.epoch) {
            (None, Some(epoch)) => Mtime::Fixed(epoch),
            _ => Mtime::FromSource,
        },
        destination: if is_directory {
            Destination::Directory
        } else {
            Destination::Any
        },
        archives: if op.unpack_archives {
            Archives::Unpack
        } else {
            Archives::Copy
        },
        ignore: if from.is_some() { None } else { Some(&ignore) },
        limits: UnpackLimits {
            content_bytes: execution.limits.layer_bytes,
            ..UnpackLimits::default()
        },
    };
    let dest = Path::new(&op.destination);
    let failed = |e: CopyError| dockerfile_failure("copy", &e);
    if !op.sources.is_empty() {
        let copied = match from {
            Some(lowers) => copy::copy(
                &view(lowers)?,
                &op.sources,
                &to,
                dest,
                &options,
                &execution.cancel,
            ),
            None => copy::copy(
                &context.root,
                &op.sources,
                &to,
                dest,
                &options,
                &execution.cancel,
            ),
        };
        context.check()?;
        copied.map_err(failed)?;
    }
    if !op.inline.is_empty() {
        copy_inline(execution, &op.inline, &to, dest, options)?;
    }
    Ok(prospect.upper)
}

/// Copies files whose content is in the Dockerfile.
fn copy_inline(
    execution: &Execution,
    files: &[InlineFile],
    to: &Root,
    dest: &Path,
    options: CopyOptions<'_>,
) -> Result<(), Failure> {
    let folder = execution.scratch()?;
    write_inline(&folder, files).map_err(|e| platform("write the files of a heredoc", &e))?;
    let names: Vec<String> = files.iter().map(|file| file.name.clone()).collect();
    let root = Root::open(&folder).map_err(|e| platform("write the files of a heredoc", &e))?;
    let options = CopyOptions {
        ignore: None,
        ..options
    };
    let copied = copy::copy(&root, &names, to, dest, &options, &execution.cancel);
    copied.map(drop).map_err(|e| dockerfile_failure("copy", &e))
}

fn write_inline(folder: &Path, files: &[InlineFile]) -> std::io::Result<()> {
    for file in files {
        let path = folder.join(&file.name);
        fs::write(&path, &file.content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}
