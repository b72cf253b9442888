//! `--build-context`: folders, layouts and repositories brought to where the worker finds them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use engine::spec::{CacheFrom, Context, Limits, NamedContext};

use super::context::{self, Dockerfile, FolderInput};
use super::import::{self, Reader};
use crate::args::cache::CacheFromArg;
use crate::args::named::{NamedArg, NamedWhat};
use crate::failure::{Exit, Failure, OrExit, Outcome};
use crate::terminal;

/// Names of copies within a build's scratch folder begin with this.
const COPY_PREFIX: &str = "named-";
/// And those of copies of caches with this.
const CACHE_PREFIX: &str = "cache-";

/// Returns what stands for which name. Copies are made below `scratch`.
pub(crate) fn prepare(
    args: &[NamedArg],
    scratch: &Path,
    reader: Reader,
    limits: &Limits,
) -> Outcome<BTreeMap<String, NamedContext>> {
    let mut contexts = BTreeMap::new();
    for (index, arg) in args.iter().enumerate() {
        let into = scratch.join(format!("{COPY_PREFIX}{index}"));
        let context = match &arg.what {
            NamedWhat::Scratch => NamedContext::Scratch,
            NamedWhat::Image(reference) => NamedContext::Image {
                reference: reference.clone(),
            },
            NamedWhat::Layout(path, image) => NamedContext::Layout {
                path: import::layout(&folder(path)?, &into, reader, limits)?,
                image: image.clone(),
            },
            NamedWhat::Repository(address) => {
                let input = context::repository_at(address)?;
                NamedContext::Files {
                    context: Context::Git(input.source),
                    folder: input.context_path,
                }
            }
            NamedWhat::Folder(path) => NamedContext::Files {
                context: files(path, &into, reader, limits)?,
                folder: String::new(),
            },
        };
        if contexts.insert(arg.name.clone(), context).is_some() {
            let text = format!("two contexts are called {:?}", arg.name);
            return Err(Failure::text(Exit::Usage, text));
        }
    }
    Ok(contexts)
}

/// Returns the caches that are read. Copies are made below `scratch`. A folder that is not there is nothing to fail for: the first
/// build of all has none.
pub(crate) fn caches(
    args: &[CacheFromArg],
    scratch: &Path,
    reader: Reader,
    limits: &Limits,
) -> Outcome<Vec<CacheFrom>> {
    let mut caches = Vec::new();
    for (index, arg) in args.iter().enumerate() {
        match arg {
            CacheFromArg::Registry(reference) => caches.push(CacheFrom::Registry {
                reference: reference.clone(),
            }),
            CacheFromArg::Folder(path, _) if !is_there(path) => {}
            CacheFromArg::Folder(path, image) => {
                let into = scratch.join(format!("{CACHE_PREFIX}{index}"));
                caches.push(CacheFrom::Folder {
                    path: import::layout(&folder(path)?, &into, reader, limits)?,
                    image: image.clone(),
                });
            }
        }
    }
    Ok(caches)
}

/// Tells whether there is a cache in a folder, and tells the user if not.
pub(crate) fn is_there(path: &Path) -> bool {
    let found = path.is_dir();
    if !found {
        terminal::say(&format!(
            "warning: there is no cache in {}.",
            path.display()
        ));
    }
    found
}

/// Returns the folder that `path` names, all links resolved.
pub(crate) fn folder(path: &Path) -> Outcome<PathBuf> {
    let shown = path.display();
    let failed = |e| anyhow::Error::new(e).context(format!("open the context \"{shown}\""));
    let found = fs::canonicalize(path)
        .map_err(failed)
        .or_exit(Exit::Usage)?;
    if !found.is_dir() {
        let text = format!("the context \"{shown}\" is not a folder");
        return Err(Failure::text(Exit::Usage, text));
    }
    Ok(found)
}

fn files(path: &Path, into: &Path, reader: Reader, limits: &Limits) -> Outcome<Context> {
    Ok(import::prepare(&folder_input(path)?, into, reader, limits)?.context)
}

/// Returns what a folder that stands for a stage is as an input.
pub(crate) fn folder_input(path: &Path) -> Outcome<FolderInput> {
    Ok(FolderInput {
        path: Some(folder(path)?),
        dockerfile: Dockerfile::Outside {
            text: String::new(),
            path: None,
        },
        name: path.display().to_string(),
    })
}
