//! `RUN --mount`: from what the plan says to what the sandbox mounts.
//!
//! 1. [`inputs`]: where the files of each mount are, and the digests of their content, which are part of the step's key;
//! 2. [`fetch`]: the files themselves as directories that nobody changes any more; cache mounts are locked; sockets of agents listen;
//! 3. [`attach`]: for a root filesystem, the places to mount on and the mounts.
//!
//! Of a cache mount neither its id nor its content is part of any key, as with `BuildKit`; of a secret its name is and its value is not.

mod agent;
mod attach;
mod caches;
mod files;

use std::path::PathBuf;
use std::sync::Arc;

use dockerfile::{CopyFrom, Mount, RunOp};
use oci::Digest;

pub(super) use attach::{Attached, attach};

use super::layers::Layer;
use super::stage::other_stage;
use super::{Execution, StageFuture};
use crate::event::{Failure, FailureKind};
use crate::failure::failure;
use crate::sandbox::SecretBytes;

/// Where the files of a mount are.
#[derive(Debug, Clone)]
enum Files {
    /// In a context.
    Context,
    /// In these layers.
    Layers(Arc<Vec<Layer>>),
    /// It has none, or begins empty.
    Nothing,
}

/// What the mounts of a step are made from.
#[derive(Debug)]
pub(super) struct Inputs {
    /// For each mount.
    files: Vec<(Files, Option<Digest>)>,
    /// The names and digests of all of them.
    pub(super) named: Vec<(String, Digest)>,
}

/// Finds the files of the mounts of `op`, and their digests; waits for the stages that make them.
pub(super) async fn inputs(
    execution: &Arc<Execution>,
    op: &RunOp,
    earlier: &[StageFuture],
) -> Result<Inputs, Failure> {
    let mut inputs = Inputs {
        files: Vec::new(),
        named: Vec::new(),
    };
    for mount in &op.mounts {
        let files = files_of(execution, mount, earlier).await?;
        let digested = files::digest(execution, mount, &files).await?;
        let digest = digested.as_ref().map(|(digest, _)| digest.clone());
        inputs
            .named
            .extend(digested.into_iter().flat_map(|(_, named)| named));
        inputs.files.push((files, digest));
    }
    Ok(inputs)
}

async fn files_of(
    execution: &Execution,
    mount: &Mount,
    earlier: &[StageFuture],
) -> Result<Files, Failure> {
    Ok(match mount.from() {
        None => Files::Nothing,
        Some(CopyFrom::Context | CopyFrom::Named(_)) => Files::Context,
        Some(CopyFrom::Stage(index)) => Files::Layers(other_stage(earlier, index.0).await?.layers),
        Some(CopyFrom::Image(key)) => {
            let base = execution.bases.get(key).ok_or_else(|| {
                failure(
                    FailureKind::Platform,
                    "the plan names an image that was not resolved",
                )
            })?;
            let layers = base.layers.iter().cloned();
            let layers = layers.map(|layer| Layer::known(Some(layer), None));
            Files::Layers(Arc::new(layers.collect()))
        }
    })
}

/// Says what a mount is, as far as it counts: not by which name a cache is found, nor where in its source the files are.
pub(super) fn describe(mount: &Mount) -> String {
    match mount {
        Mount::Bind(bind) => format!("bind {} {:?}", bind.target, bind.access),
        Mount::Cache(cache) => {
            format!(
                "cache {} {:?} {:?}",
                cache.target, cache.access, cache.owner
            )
        }
        Mount::Tmpfs(tmpfs) => format!("{tmpfs:?}"),
        Mount::Secret(secret) => format!("{secret:?}"),
        Mount::Ssh(ssh) => format!("{ssh:?}"),
    }
}

/// What the mounts of a step need while it runs. Dropping it lets go of locks and sockets.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    sources: Vec<Source>,
}

/// What one mount shows.
#[derive(Debug)]
enum Source {
    /// A path in a stack of directories, bottom first.
    Directories(Vec<PathBuf>, String),
    Cache(Arc<store::CacheMountGuard>, String),
    Memory,
    /// Nothing, for the build has no such secret.
    NoSecret,
    Secret(SecretBytes),
    /// Nothing, for the build has no such agent.
    NoAgent,
    Agent(agent::Socket),
}

/// Is told, line by line, what is being waited for.
pub(super) type Waits = Arc<dyn Fn(&str) + Send + Sync>;

/// Brings everything here that the mounts of `op` show. Waits for cache mounts that are locked, and says so.
pub(super) async fn fetch(
    execution: &Arc<Execution>,
    op: &RunOp,
    inputs: &Inputs,
    waits: Waits,
) -> Result<Fetched, Failure> {
    let mut sources = Vec::new();
    let mut caches = Vec::new();
    for (index, (mount, (files, digest))) in op.mounts.iter().zip(&inputs.files).enumerate() {
        sources.push(match mount {
            Mount::Bind(_) => {
                let (directories, path) = files::directories(execution, mount, files).await?;
                Source::Directories(directories, path)
            }
            Mount::Cache(cache) => {
                let first = files::directories(execution, mount, files).await?;
                caches.push(caches::Wish {
                    index,
                    key: caches::key(execution, cache, digest.as_ref()),
                    cache: cache.clone(),
                    first: digest.is_some().then_some(first),
                });
                // Taken below, all of them in one order.
                Source::Memory
            }
            Mount::Tmpfs(_) => Source::Memory,
            Mount::Secret(secret) => match execution.secrets.get(&secret.id) {
                Some(content) => Source::Secret(content.clone()),
                None if secret.required => {
                    let id = &secret.id;
                    let message = format!(
                        "secret {id:?} is required, and was not given (--secret id={id},src=FILE)"
                    );
                    return Err(failure(FailureKind::Dockerfile, message));
                }
                None => Source::NoSecret,
            },
            Mount::Ssh(ssh) => match execution.ssh.get(&ssh.id) {
                Some(path) => Source::Agent(agent::listen(&execution.scratch()?, ssh.owner, path)?),
                None if ssh.required => {
                    let id = &ssh.id;
                    let message =
                        format!("SSH agent {id:?} is required, and was not given (--ssh {id})");
                    return Err(failure(FailureKind::Dockerfile, message));
                }
                None => Source::NoAgent,
            },
        });
    }
    for (index, taken) in caches::take(execution, caches, waits).await? {
        if let Some(source) = sources.get_mut(index) {
            *source = taken;
        }
    }
    Ok(Fetched { sources })
}
