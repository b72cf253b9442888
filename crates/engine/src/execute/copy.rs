//! COPY and ADD: files from the context, another stage or an image into what the steps before have left.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dockerfile::{CopyFrom, CopyOp, CopySource as Planned, InlineFile, Link, PathSource, Unpack};
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
use crate::rootfs::copy::{
    self, Archives, CopyError, CopyOptions, CopyReport, Destination, Mtime, Owner,
};
use crate::rootfs::filter::Source;
use crate::rootfs::overlay::{self, Upper};
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
    if let Some(source) = op
        .sources
        .iter()
        .find(|source| !matches!(source, Planned::Path(_)))
    {
        let what = match source {
            Planned::Git(_) => "a git repository",
            _ => "a URL",
        };
        let message = format!("ADD of {what} is not supported yet");
        return Err(failure(FailureKind::Dockerfile, message));
    }
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
    let mut files = source_files(execution, op, source).await?;
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

fn path_source(source: &PathSource, exclude: &[String]) -> Result<Source, Failure> {
    Source::new(&source.path, source.below.as_deref(), exclude)
        .map_err(|e| dockerfile_failure("choose what to copy", &e))
}

async fn source_files(
    execution: &Arc<Execution>,
    op: &CopyOp,
    source: &CopySource,
) -> Result<Vec<(String, Digest)>, Failure> {
    let paths = paths(op)?;
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    match source {
        CopySource::Context => {
            let (shared, op) = (Arc::clone(execution), op.clone());
            let digest = tokio::task::spawn_blocking(move || digest(&shared, &op, &paths, None));
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
            let names: Vec<String> = op.sources.iter().map(named).collect();
            // Content of a stage decides what its files are: told once, it need not be unpacked again to know.
            let key = (layers::content(layers).await?, &names, &op.exclude);
            let name = names.join(" ");
            if let Some(known) = execution.cache.memo("sources", &key) {
                return Ok(vec![(name, known)]);
            }
            let lowers = execution.depot.directories(layers).await?;
            let (shared, op) = (Arc::clone(execution), op.clone());
            let digest =
                tokio::task::spawn_blocking(move || digest(&shared, &op, &paths, Some(&lowers)));
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
    sources: &[Source],
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
        Some(lowers) => content::digest_sources(&view(lowers)?, sources, &options, cancel),
        None => content::digest_sources(&context.root, sources, &options, cancel),
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
        Ok((path, report)) => {
            if report.n_devices_skipped > 0 {
                let (n, names) = (report.n_devices_skipped, &report.devices_skipped);
                vertex.say(&skipped_devices(n, names));
            }
            let step = vertex.id;
            vertex.finish();
            Ok(Directory { path, step })
        }
        Err(failure) => Err(fail_step(execution, prepared.step, vertex, failure)),
    }
}

/// Says which devices are not in what was unpacked.
pub(super) fn skipped_devices(n: u64, names: &[String]) -> String {
    let more = if n > names.len() as u64 { ", …" } else { "" };
    let names = names.join(", ");
    format!("left out {n} device files, which builds cannot make: {names}{more}")
}

/// Where a COPY puts its files, and what becomes the layer.
struct Target {
    root: Root,
    upper: PathBuf,
    /// Whom the files belong to, when the instruction says it.
    chown: Option<(u32, u32)>,
}

fn target(execution: &Execution, op: &CopyOp, lowers: Vec<PathBuf>) -> Result<Target, Failure> {
    let (root, view, upper) = if op.link == Link::Yes {
        // No mount: what overlayfs writes down about new directories would hide what is below the layer later.
        let attempt = "make a place for a layer";
        let scratch = execution.scratch()?;
        let upper = Upper::create(None, &scratch).map_err(|e| platform(attempt, &e))?;
        let open = || Root::open(&upper.path()).map_err(|e| platform(attempt, &e));
        (open()?, open()?, upper.path())
    } else {
        let prospect = prospect(execution, lowers, |_, _| Ok(None))?;
        (Root::from_fd(prospect.root), prospect.view, prospect.upper)
    };
    let chown = op.chown.as_ref().map(|user| {
        user::lookup_owner(&view, user)
            .map_err(|e| dockerfile_failure(&format!("--chown={user}"), &e))
    });
    Ok(Target {
        root,
        upper,
        chown: chown.transpose()?,
    })
}

fn copy(
    execution: &Execution,
    op: &CopyOp,
    lowers: Vec<PathBuf>,
    from: Option<&[PathBuf]>,
) -> Result<(PathBuf, CopyReport), Failure> {
    let target = target(execution, op, lowers)?;
    let context = execution.files(&op.from)?.unwrap_or(&execution.context);
    let ignore = |path: &Path, is_dir: bool| context.is_ignored(path, is_dir);
    let given = target.chown.map(|(uid, gid)| Owner::Fixed(uid, gid));
    let fixed_time = execution.epoch.map_or(Mtime::FromSource, Mtime::Fixed);
    let base = CopyOptions {
        owner: given.unwrap_or(Owner::Fixed(0, 0)),
        mode: op.chmod.as_ref(),
        // Files of a context are as old as their checkout, which means nothing.
        mtime: fixed_time,
        destination: if op.destination_is_directory {
            Destination::Directory
        } else {
            Destination::Any
        },
        archives: Archives::Copy,
        ignore: None,
        limits: UnpackLimits {
            content_bytes: execution.limits.layer_bytes,
            ..UnpackLimits::default()
        },
    };
    let options = match from {
        None => CopyOptions {
            ignore: Some(&ignore),
            ..base
        },
        Some(_) => CopyOptions {
            owner: given.unwrap_or(Owner::FromSource),
            mtime: Mtime::FromSource,
            ..base
        },
    };
    let unpacking = Archives::Unpack(target.chown);
    let from = from.map(view).transpose()?;
    let from = from.as_ref().unwrap_or(&context.root);
    let dest = Path::new(&op.destination);
    let failed = |e: CopyError| dockerfile_failure("copy", &e);
    let mut report = CopyReport::default();
    for source in &op.sources {
        let Planned::Path(source) = source else {
            continue;
        };
        let source = path_source(source, &op.exclude)?;
        let options = CopyOptions {
            archives: match op.unpack {
                Unpack::None => Archives::Copy,
                Unpack::Local | Unpack::All => unpacking,
            },
            ..options
        };
        let cancel = &execution.cancel;
        let copied = copy::copy(from, &[source], &target.root, dest, &options, cancel);
        context.check()?;
        report.add(copied.map_err(failed)?);
    }
    if !op.inline.is_empty() {
        report.add(copy_inline(
            execution,
            &op.inline,
            &target.root,
            dest,
            &base,
        )?);
    }
    Ok((target.upper, report))
}

/// Copies files whose content is in the Dockerfile.
fn copy_inline(
    execution: &Execution,
    files: &[InlineFile],
    to: &Root,
    dest: &Path,
    options: &CopyOptions<'_>,
) -> Result<CopyReport, Failure> {
    let attempt = "write the files of a heredoc";
    let folder = execution.scratch()?;
    write_inline(&folder, files).map_err(|e| platform(attempt, &e))?;
    let sources = files.iter().map(|file| Source::literal(&file.name, &[]));
    let sources: Result<Vec<Source>, _> = sources.collect();
    let sources = sources.map_err(|e| platform(attempt, &e))?;
    let root = Root::open(&folder).map_err(|e| platform(attempt, &e))?;
    copy::copy(&root, &sources, to, dest, options, &execution.cancel)
        .map_err(|e| dockerfile_failure("copy", &e))
}

fn write_inline(folder: &Path, files: &[InlineFile]) -> std::io::Result<()> {
    for file in files {
        let path = folder.join(&file.name);
        fs::write(&path, &file.content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}
