//! The build context: files on disk, seen through `.dockerignore`.
//!
//! Everything below the context is reached in-root, so that no link in a repository leads out of it; a file that is ignored does not
//! exist for any instruction.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dockerfile::Plan;
use dockerfile::ignore::{self, IgnoreFile};
use dockerfile::limits::IGNORE_FILE_MAX_BYTES;
use oci::Digest;
use source::git::{Checkout, FetchOptions};
use source::initializer::Initializer;
use source::path::RelPath;
use store::Store;
use tokio_util::sync::CancellationToken;

use super::DockerfileText;
use super::commits::Commits;
pub(crate) use super::files::{BuildContext, Rest};
use super::lookout::Lookout;
use super::uploaded::Shelf;
use super::workspace::Filling;
use crate::event::{Event, Failure, FailureKind};
use crate::failure::{
    chain, dockerfile as dockerfile_failure, failure, platform, source as source_failure,
};
use crate::recorder::Recorder;
use crate::rootfs::root::Root;
use crate::rootfs::unpack::{self, ExtractOptions, UnpackLimits};
use crate::spec::{BuildSpec, Context, NamedContext};

/// What explanations of contexts without a name are kept under.
const ARCHIVE: &str = "archive";
/// What a Dockerfile is called that nobody has named.
pub(super) const DOCKERFILE: &str = "Dockerfile";
/// Largest Dockerfile that is read.
const DOCKERFILE_MAX_BYTES: u64 = 1 << 20;

/// What the sources of a build turned out to be.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) context: BuildContext,
    pub(crate) dockerfile: Arc<DockerfileText>,
    /// When the commit was made, for git.
    pub(crate) commit_time: Option<i64>,
    /// Under what explanations are kept.
    pub(crate) project: String,
}

/// Where to look within the workspace, as asked for.
pub(crate) struct Places<'a> {
    pub(crate) dockerfile: Option<&'a str>,
    pub(crate) context_path: Option<&'a str>,
}

/// Brings the workspace here and opens what is needed of it.
pub(crate) async fn load(
    spec: &BuildSpec,
    context: &Context,
    places: &Places<'_>,
    recorder: &Recorder,
    (store, work): (&Store, (&Path, &CancellationToken)),
) -> Result<Workspace, Failure> {
    let step = recorder.begin("[internal] load build context", None);
    let brought = match bring(spec, context, (places, &step), (store, recorder), work).await {
        Ok(brought) => brought,
        Err(failure) => {
            step.fail(&failure.message);
            return Err(failure);
        }
    };
    let Brought {
        folder,
        text,
        checkout,
        project,
        rest,
    } = brought;
    let opened = open(&folder, text, places);
    match &opened {
        Ok(_) => step.finish(),
        Err(failure) => drop(step.fail(&failure.message)),
    }
    let (opened, dockerfile) = opened?;
    recorder.event(&Event::ContextReady {
        commit: checkout.as_ref().map(|checkout| checkout.commit.clone()),
    });
    Ok(Workspace {
        context: opened.remembering(context).with_rest(rest),
        project: format!("{project} {}", dockerfile.name),
        dockerfile: Arc::new(dockerfile),
        commit_time: checkout.map(|checkout| checkout.commit_time_unix),
    })
}

/// The files of a build, where they can be read.
struct Brought {
    folder: PathBuf,
    /// The Dockerfile, when it comes from elsewhere.
    text: Option<String>,
    /// For git.
    checkout: Option<Checkout>,
    project: String,
    /// Makes the files that are not in the folder.
    rest: Option<Rest>,
}

async fn bring(
    spec: &BuildSpec,
    context: &Context,
    (places, step): (&Places<'_>, &crate::recorder::Step),
    (store, recorder): (&Store, &Recorder),
    work: (&Path, &CancellationToken),
) -> Result<Brought, Failure> {
    let folder = work.0.join("workspace");
    let make = || std::fs::create_dir(&folder).map_err(|e| platform("create the workspace", &e));
    let mut text = None;
    let mut rest = None;
    let (folder, checkout, project) = match context {
        Context::Git(git) => {
            make()?;
            let wanted = Lookout::of(None, places)?;
            let from = (store, recorder, step);
            let (checkout, more) = committed(spec, git, from, (&folder, &wanted), work.1).await?;
            rest = more;
            (folder, Some(checkout), git.remote.as_str().to_owned())
        }
        Context::Uploaded {
            dockerfile_text,
            name,
            ..
        } => {
            let wanted = Lookout::of(dockerfile_text.as_deref(), places)?;
            text.clone_from(dockerfile_text);
            let from = (store, recorder);
            let (folder, more) = uploaded(spec, context, from, (folder, &wanted), work.1).await?;
            rest = more;
            (folder, None, name.clone())
        }
        Context::Archive { path } => {
            let folder = unpack(spec, path, folder, work.1).await?;
            (folder, None, ARCHIVE.to_owned())
        }
        Context::Filled { initializer } => {
            make()?;
            let checkout = fill(spec, initializer, &folder, step, work).await?;
            (folder, checkout, name_of(initializer))
        }
        Context::Directory {
            path,
            dockerfile_text,
            name,
        } => {
            text.clone_from(dockerfile_text);
            (path.clone(), None, name.clone())
        }
    };
    Ok(Brought {
        folder,
        text,
        checkout,
        project,
        rest,
    })
}

/// Fetches a commit into the new folder `into`; only what of its files is wanted when it was fetched before, with what fetches it when
/// somebody needs the others.
async fn committed(
    spec: &BuildSpec,
    git: &source::git::GitSource,
    (store, recorder, step): (&Store, &Recorder, &crate::recorder::Step),
    (into, wanted): (&Path, &Lookout),
    cancel: &CancellationToken,
) -> Result<(Checkout, Option<Rest>), Failure> {
    let options = fetch_options(spec);
    let commits = Commits {
        store,
        tenant: &spec.tenant,
        git,
        options: &options,
        wanted,
    };
    let say = |line: &str| step.say(line);
    if let Some((checkout, key)) = commits.recall(into, &say, cancel).await? {
        let all = into.with_extension("all");
        let later = commits.later((&checkout.commit, key), all, (recorder, cancel));
        return Ok((checkout, Some(Rest::Commit(Box::new(later)))));
    }
    let checkout = fetch(spec, git, into, step, cancel).await?;
    let key = commits.remember(into, &checkout);
    let there = key.map(|key| Rest::Commit(Box::new(commits.there(key))));
    Ok((checkout, there))
}

/// Brings the files of an uploaded context that are wanted into the new folder `into`, and returns where they are, and what makes the others
/// when somebody needs them; all of them when it is an archive, or where links have a say.
async fn uploaded(
    spec: &BuildSpec,
    context: &Context,
    (store, recorder): (&Store, &Recorder),
    (into, wanted): (PathBuf, &Lookout),
    cancel: &CancellationToken,
) -> Result<(PathBuf, Option<Rest>), Failure> {
    let Context::Uploaded {
        context, archive, ..
    } = context
    else {
        let message = "a context that was not uploaded was taken for one that was";
        return Err(failure(FailureKind::Platform, message));
    };
    let shelf = Shelf {
        store: store.clone(),
        tenant: spec.tenant.clone(),
    };
    let Some(archive) = archive.clone() else {
        let opened = shelf.open(context, (into, wanted), recorder, cancel).await;
        return opened.map(|(folder, rest)| (folder, rest.map(Rest::Uploaded)));
    };
    let id = context.clone();
    let open = move || shelf.open_file(&id, &archive);
    let unpacked = unpack_file(spec, open, into, cancel).await?;
    Ok((unpacked, None))
}

/// Unpacks an archive of files; returns the folder that they are in.
async fn unpack(
    spec: &BuildSpec,
    archive: &Path,
    folder: PathBuf,
    cancel: &CancellationToken,
) -> Result<PathBuf, Failure> {
    let archive = archive.to_owned();
    let open = move || std::fs::File::open(&archive).map_err(|e| platform("open the context", &e));
    unpack_file(spec, open, folder, cancel).await
}

async fn unpack_file(
    spec: &BuildSpec,
    open: impl FnOnce() -> Result<std::fs::File, Failure> + Send + 'static,
    folder: PathBuf,
    cancel: &CancellationToken,
) -> Result<PathBuf, Failure> {
    std::fs::create_dir(&folder).map_err(|e| platform("create the workspace", &e))?;
    let limits = UnpackLimits {
        content_bytes: spec.limits.context_bytes,
        entries: spec.limits.context_files,
        ..UnpackLimits::default()
    };
    let (into, cancel) = (folder.clone(), cancel.clone());
    let unpacked = tokio::task::spawn_blocking(move || {
        let file = open()?;
        let root = Root::open(&into).map_err(|e| platform("open the workspace", &e))?;
        let wrong =
            |e: &(dyn std::error::Error + 'static)| dockerfile_failure("unpack the context", e);
        let plain = oci::layer::decompress_any(file, oci::layer::Limits::default())
            .map_err(|e| wrong(&e))?;
        // Whoever made it has no say in who its files belong to.
        let options = ExtractOptions {
            owner: Some((0, 0)),
            ..ExtractOptions::default()
        };
        let report = unpack::extract(plain, root.into_fd(), options, &limits, &cancel);
        report.map(drop).map_err(|e| wrong(&e))
    });
    unpacked
        .await
        .unwrap_or_else(|e| Err(platform("unpack the context", &e)))?;
    Ok(folder)
}

/// Opens the files of the named contexts that `plan` needs; what nothing needs is not fetched.
pub(crate) async fn load_named(
    spec: &BuildSpec,
    plan: &Plan,
    recorder: &Recorder,
    (store, work): (&Store, (&Path, &CancellationToken)),
) -> Result<BTreeMap<String, BuildContext>, Failure> {
    let mut loaded = BTreeMap::new();
    for (index, name) in plan.named_files().into_iter().enumerate() {
        let Some(NamedContext::Files { context, folder }) = spec.contexts.get(name) else {
            let message = format!("the plan names a context {name:?} that is not there");
            return Err(failure(FailureKind::Platform, message));
        };
        let step = recorder.begin(&format!("[internal] load context {name}"), None);
        let mut rest = None;
        let files = match context {
            Context::Directory { path, .. } => Ok(path.clone()),
            Context::Uploaded { .. } => {
                let into = work.0.join(format!("context-{index}"));
                let wanted = Lookout::of_named(folder);
                let brought = match wanted {
                    Ok(wanted) => {
                        uploaded(spec, context, (store, recorder), (into, &wanted), work.1).await
                    }
                    Err(failure) => Err(failure),
                };
                brought.map(|(folder, deferred)| {
                    rest = deferred;
                    folder
                })
            }
            Context::Archive { path } => {
                let into = work.0.join(format!("context-{index}"));
                unpack(spec, path, into, work.1).await
            }
            Context::Filled { initializer } => {
                let into = work.0.join(format!("context-{index}"));
                std::fs::create_dir(&into).map_err(|e| platform("create a workspace", &e))?;
                let filled = fill(spec, initializer, &into, &step, work).await;
                filled.map(|_| into)
            }
            Context::Git(git) => {
                let into = work.0.join(format!("context-{index}"));
                std::fs::create_dir(&into).map_err(|e| platform("create a workspace", &e))?;
                let fetched = fetch(spec, git, &into, &step, work.1).await;
                fetched.map(|_| into)
            }
        };
        match files.and_then(|files| open_named(&files, folder)) {
            Ok(opened) => {
                step.finish();
                let opened = opened.remembering(context).with_rest(rest);
                loaded.insert(name.to_owned(), opened);
            }
            Err(failure) => {
                step.fail(&failure.message);
                let message = format!("context {name}: {}", failure.message);
                return Err(Failure { message, ..failure });
            }
        }
    }
    Ok(loaded)
}

/// Opens a folder of files that have a `.dockerignore` of their own.
fn open_named(files: &Path, folder: &str) -> Result<BuildContext, Failure> {
    let files = Root::open(files).map_err(|e| dockerfile_failure("open the files", &e))?;
    let root = subdirectory(&files, &Lookout::of_named(folder)?.folder)?;
    let ignore = read_ignore(&[(&root, ignore::FILE_NAME)])?;
    Ok(BuildContext::new(root, ignore))
}

/// Fills a workspace with something else than one repository.
async fn fill(
    spec: &BuildSpec,
    initializer: &Initializer,
    folder: &Path,
    step: &crate::recorder::Step,
    (work, cancel): (&Path, &CancellationToken),
) -> Result<Option<Checkout>, Failure> {
    let filling = Filling {
        tenant: &spec.tenant,
        options: fetch_options(spec),
        folder,
        work,
        step,
        cancel,
    };
    filling.fill(initializer).await
}

/// Returns what explanations are kept under: the first repository, or else the kind.
fn name_of(initializer: &Initializer) -> String {
    let repositories = initializer.repositories();
    let first = repositories.first().map(|git| git.remote.as_str());
    first.unwrap_or(initializer.name()).to_owned()
}

fn fetch_options(spec: &BuildSpec) -> FetchOptions {
    let mut options: FetchOptions = spec.fetch.clone();
    options.limits.size_bytes = options.limits.size_bytes.min(spec.limits.context_bytes);
    options.limits.n_files = options.limits.n_files.min(spec.limits.context_files);
    options
}

async fn fetch(
    spec: &BuildSpec,
    git: &source::git::GitSource,
    folder: &Path,
    step: &crate::recorder::Step,
    cancel: &CancellationToken,
) -> Result<Checkout, Failure> {
    let options = fetch_options(spec);
    let say = |line: &str| step.say(line);
    let fetched = source::git::fetch(git, folder, &options, &say, cancel).await;
    fetched.map_err(|e| source_failure(&e))
}

fn open(
    folder: &Path,
    text: Option<String>,
    places: &Places<'_>,
) -> Result<(BuildContext, DockerfileText), Failure> {
    let workspace = Root::open(folder).map_err(|e| dockerfile_failure("open the workspace", &e))?;
    let Lookout {
        folder: context_path,
        dockerfile,
    } = Lookout::of(text.as_deref(), places)?;
    let dockerfile = match text {
        Some(_) => dockerfile,
        None => in_lower_case(&workspace, dockerfile)?,
    };
    let (text, name) = match text {
        Some(text) => (text.into_bytes(), dockerfile.as_str().to_owned()),
        None => (
            read_dockerfile(&workspace, &dockerfile)?,
            dockerfile.as_str().to_owned(),
        ),
    };
    let root = subdirectory(&workspace, &context_path)?;
    // `<Dockerfile>.dockerignore` beside the Dockerfile wins over `.dockerignore` in the context.
    let own = own_ignore(dockerfile.as_str());
    let ignore = read_ignore(&[(&workspace, &own), (&root, ignore::FILE_NAME)])?;
    Ok((
        BuildContext::new(root, ignore),
        DockerfileText { name, text },
    ))
}

/// Returns the name of the ignore file that goes with a Dockerfile.
pub(super) fn own_ignore(dockerfile: &str) -> String {
    format!("{dockerfile}{}", ignore::FILE_NAME)
}

/// A `Dockerfile` that is not there may be called `dockerfile`, as with docker.
fn in_lower_case(workspace: &Root, path: RelPath) -> Result<RelPath, Failure> {
    let Some(lower) = lower_case(path.as_str()) else {
        return Ok(path);
    };
    let is_there = |path: &str| {
        let found = workspace.stat(Path::new(path));
        found.is_ok_and(|found| found.is_some())
    };
    if !is_there(path.as_str()) && is_there(&lower) {
        let invalid = |e| dockerfile_failure(&format!("Dockerfile path {lower:?}"), &e);
        return RelPath::parse_in_workspace(&lower).map_err(invalid);
    }
    Ok(path)
}

/// Returns what else a Dockerfile of this path may be called.
pub(super) fn lower_case(path: &str) -> Option<String> {
    let folder = path.strip_suffix(DOCKERFILE)?;
    let is_name = folder.is_empty() || folder.ends_with('/');
    is_name.then(|| format!("{folder}{}", DOCKERFILE.to_ascii_lowercase()))
}

fn read_dockerfile(workspace: &Root, path: &RelPath) -> Result<Vec<u8>, Failure> {
    workspace
        .read_file(Path::new(path.as_str()), DOCKERFILE_MAX_BYTES)
        .map_err(|e| {
            let message = format!(
                "could not find Dockerfile at {:?}: {}",
                path.as_str(),
                chain(&e)
            );
            failure(FailureKind::Dockerfile, message)
        })
}

fn subdirectory(workspace: &Root, path: &RelPath) -> Result<Root, Failure> {
    let failed = |e| dockerfile_failure(&format!("open the context {:?}", path.as_str()), &e);
    workspace
        .subdirectory(Path::new(path.as_str()))
        .map_err(failed)
}

/// Reads the first of these files that is there.
fn read_ignore(candidates: &[(&Root, &str)]) -> Result<(IgnoreFile, Digest), Failure> {
    for (root, name) in candidates {
        let path = Path::new(name);
        let failed = |e: &(dyn std::error::Error + 'static)| dockerfile_failure(name, e);
        if root.stat(path).map_err(|e| failed(&e))?.is_some() {
            let bytes = root
                .read_file(path, IGNORE_FILE_MAX_BYTES as u64)
                .map_err(|e| failed(&e))?;
            let parsed = IgnoreFile::parse(&bytes).map_err(|e| failed(&e))?;
            return Ok((parsed, Digest::sha256(&bytes)));
        }
    }
    Ok((IgnoreFile::empty(), Digest::sha256(b"")))
}

/// Returns the path of the scratch directory of a build.
pub(crate) fn work_folder(folder: &Path) -> PathBuf {
    folder.join("work")
}
