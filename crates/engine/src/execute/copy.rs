//! COPY and ADD: files from the context, another stage, an image or elsewhere into what the steps before have left.
//!
//! Here is what decides their result, and when they have to run; [`super::place`] does the work.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dockerfile::{CopyFrom, CopyOp, CopySource as Planned, PathSource};
use oci::Digest;
use serde::Serialize;

use super::cache::Operation;
use super::export::Directory;
use super::layers::{self, Layer};
use super::remote::{self, Remote};
use super::run::fail_step;
use super::stage::{Prepared, located, other_stage};
use super::{Execution, StageFuture, place};
use crate::event::{Failure, FailureKind};
use crate::failure::{dockerfile as dockerfile_failure, failure, platform};
use crate::rootfs::content::{self, ContentDigest, ContentOptions};
use crate::rootfs::copy::Owner;
use crate::rootfs::filter::Source;
use crate::rootfs::memory::{Memory, Recall, Settling};

/// Threads that hash the sources.
pub(super) const HASH_THREADS: usize = 2;

/// Kind of the records that say what files were when they were hashed.
const MEMORY: &str = "hashed";
/// Kind of the records that say what uploaded files are copied as, by what decides it in their list.
const LISTED: &str = "listed";

/// Where the sources of a COPY are.
pub(super) struct CopySource {
    /// Those that are paths.
    paths: Place,
    /// Those that are elsewhere.
    remotes: Vec<Remote>,
}

enum Place {
    /// In a context.
    Context,
    /// In these layers.
    Layers(Arc<Vec<Layer>>),
}

/// Finds the sources of `op`; waits for the stage that makes them, or for the server that has them.
pub(super) async fn source(
    execution: &Execution,
    op: &CopyOp,
    earlier: &[StageFuture],
) -> Result<CopySource, Failure> {
    let paths = match &op.from {
        CopyFrom::Context | CopyFrom::Named(_) => Place::Context,
        CopyFrom::Stage(index) => Place::Layers(other_stage(earlier, index.0).await?.layers),
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
            Place::Layers(Arc::new(layers.collect()))
        }
    };
    let remotes = remote::resolve(execution, op).await?;
    Ok(CopySource { paths, remotes })
}

/// Returns what decides the result of a COPY: what it says, and the content of what it copies.
pub(super) async fn operation(
    execution: &Arc<Execution>,
    op: &CopyOp,
    source: &CopySource,
) -> Result<Operation, Failure> {
    let sources: Vec<String> = op.sources.iter().map(named).collect();
    let settings = BTreeMap::from([
        (
            "the destination".to_owned(),
            format!("{} {}", op.destination, op.destination_is_directory),
        ),
        (
            "the ownership".to_owned(),
            op.chown.clone().unwrap_or_default(),
        ),
        (
            "the mode".to_owned(),
            op.chmod
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
        ),
        ("unpacking".to_owned(), format!("{:?}", op.unpack)),
        ("what is excluded".to_owned(), format!("{:?}", op.exclude)),
        ("the source patterns".to_owned(), format!("{sources:?}")),
    ]);
    let (mut files, many) = source_files(execution, op, &source.paths).await?;
    let remotes = source.remotes.iter();
    files.extend(remotes.map(|remote| (remote.name.clone(), remote.content.clone())));
    files.extend(
        op.inline
            .iter()
            .map(|file| (file.name.clone(), Digest::sha256(file.content.as_bytes()))),
    );
    Ok(Operation {
        instruction: "COPY".to_owned(),
        variables: BTreeMap::new(),
        settings,
        files,
        many,
    })
}

/// Returns a source as it counts in a key. Of what is fetched, only its name: the rest is in its content.
fn named(source: &Planned) -> String {
    match source {
        Planned::Path(source) => match &source.below {
            Some(below) => format!("{} /./ {below}", source.path),
            None => source.path.clone(),
        },
        Planned::File(file) => format!("file {}", file.name),
        Planned::Git(_) => "repository".to_owned(),
    }
}

/// Returns the sources that are paths.
fn paths(op: &CopyOp) -> Result<Vec<Source>, Failure> {
    let paths = op.sources.iter().filter_map(|source| match source {
        Planned::Path(source) => Some(path_source(source, &op.exclude)),
        Planned::File(_) | Planned::Git(_) => None,
    });
    paths.collect()
}

pub(super) fn path_source(source: &PathSource, exclude: &[String]) -> Result<Source, Failure> {
    Source::new(&source.path, source.below.as_deref(), exclude)
        .map_err(|e| dockerfile_failure("choose what to copy", &e))
}

/// Files that decide, and those that only explain.
type SourceFiles = (Vec<(String, Digest)>, Arc<Vec<(PathBuf, Digest)>>);

async fn source_files(
    execution: &Arc<Execution>,
    op: &CopyOp,
    paths_in: &Place,
) -> Result<SourceFiles, Failure> {
    let paths = paths(op)?;
    if paths.is_empty() {
        return Ok(SourceFiles::default());
    }
    match paths_in {
        Place::Context => {
            let (shared, op) = (Arc::clone(execution), op.clone());
            let digest = tokio::task::spawn_blocking(move || remembered(&shared, &op, &paths));
            let digest = digest
                .await
                .unwrap_or_else(|e| Err(platform("read the context", &e)))?;
            let all = vec![(Operation::MANY.to_owned(), digest.digest)];
            Ok((all, Arc::new(digest.files)))
        }
        Place::Layers(layers) => {
            let names: Vec<String> = op.sources.iter().map(named).collect();
            // Content of a stage decides what its files are: told once, it need not be unpacked again to know.
            let key = (layers::content(layers).await?, &names, &op.exclude);
            let name = names.join(" ");
            if let Some(known) = execution.cache.source(&key) {
                return Ok((vec![(name, known)], Arc::default()));
            }
            let lowers = execution.depot.directories(layers).await?;
            let (shared, op) = (Arc::clone(execution), op.clone());
            let digest = tokio::task::spawn_blocking(move || {
                digest(&shared, &op, &paths, (Some(&lowers), None))
            });
            let digest = digest
                .await
                .unwrap_or_else(|e| Err(platform("read what is to be copied", &e)))?;
            execution.cache.keep_source(&key, &digest.digest);
            Ok((vec![(name, digest.digest)], Arc::default()))
        }
    }
}

/// Digests sources in a context. Of a folder that stays where it is, files that were not touched since another build are not read again.
fn remembered(
    execution: &Execution,
    op: &CopyOp,
    sources: &[Source],
) -> Result<ContentDigest, Failure> {
    let context = execution.files(&op.from)?.unwrap_or(&execution.context);
    let names: Vec<String> = op.sources.iter().map(named).collect();
    if let Some(key) = context.listed(sources)? {
        let key = (content::FORMAT, key, names, &op.exclude);
        return from_list(execution, op, sources, &key);
    }
    let Some(identity) = context.identity else {
        return digest(execution, op, sources, (None, None));
    };
    let key = (identity, names, &op.exclude);
    let known = execution.cache.bytes(MEMORY, &key).unwrap_or_default();
    let memory = Memory::from_bytes(&known);
    let recall = Recall {
        memory: &memory,
        now_ms: i64::try_from(execution.recorder.now_ms()).unwrap_or(0),
        settling: Settling::of(context.root()?.as_fd()),
    };
    let digest = digest(execution, op, sources, (None, Some(recall)))?;
    if let Some(learnt) = &digest.memory {
        execution.cache.keep_bytes(MEMORY, &key, &learnt.to_bytes());
    }
    Ok(digest)
}

/// Digests sources in an uploaded context. What was digested before is known by `key`, what decides it in the list, and no file is made
/// to know it; which files those are is not known then, and a miss is explained without their names.
fn from_list(
    execution: &Execution,
    op: &CopyOp,
    sources: &[Source],
    key: &impl Serialize,
) -> Result<ContentDigest, Failure> {
    if let Some(known) = execution.cache.recall(LISTED, key) {
        return Ok(ContentDigest {
            digest: known,
            files: Vec::new(),
            content_bytes: 0,
            memory: None,
        });
    }
    let digest = digest(execution, op, sources, (None, None))?;
    execution.cache.keep_note(LISTED, key, &digest.digest);
    Ok(digest)
}

/// Digests the sources: in the directories of layers, else in the context. Ownership and modes that the instruction sets are settings
/// of the operation, not content.
fn digest(
    execution: &Execution,
    op: &CopyOp,
    sources: &[Source],
    (layers, recall): (Option<&[PathBuf]>, Option<Recall<'_>>),
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
        Some(lowers) => content::digest_sources(&place::view(lowers)?, sources, &options, cancel),
        None => content::digest_recalled(context.root()?, sources, &options, recall, cancel),
    };
    context.check()?;
    digest.map_err(|e| dockerfile_failure("find the files to copy", &e))
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
    let from = match &source.paths {
        Place::Context => None,
        Place::Layers(layers) => Some(execution.depot.directories(layers).await?),
    };
    let brought = remote::bring(execution, source.remotes).await;
    let brought = brought.map_err(|f| located(execution, prepared.step, f))?;
    let vertex = execution.recorder.begin(&prepared.name, Some(reason));
    let (shared, op) = (Arc::clone(execution), op.clone());
    let copied = tokio::task::spawn_blocking(move || {
        place::copy(&shared, &op, lowers, (from.as_deref(), &brought))
    });
    match copied
        .await
        .unwrap_or_else(|e| Err(platform("copy files", &e)))
    {
        Ok((path, report)) => {
            if report.n_devices_skipped > 0 {
                let (n, names) = (report.n_devices_skipped, &report.devices_skipped);
                vertex.say(&place::skipped_devices(n, names));
            }
            let step = vertex.id;
            vertex.finish();
            Ok(Directory { path, step })
        }
        Err(failure) => Err(fail_step(execution, prepared.step, vertex, failure)),
    }
}
