//! Puts the files of a COPY where they belong.
//!
//! Blocking, as all of `rootfs`; what is elsewhere has been brought here before ([`super::remote`]).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use dockerfile::{CopyOp, CopySource as Planned, InlineFile, Link, Unpack};

use super::Execution;
use super::copy::path_source;
use super::prospect::prospect;
use super::remote::Brought;
use crate::event::{Failure, FailureKind};
use crate::failure::{dockerfile as dockerfile_failure, failure, platform};
use crate::rootfs::copy::{self, Archives, CopyOptions, CopyReport, Destination, Mtime, Owner};
use crate::rootfs::filter::Source;
use crate::rootfs::overlay::{self, Upper};
use crate::rootfs::root::Root;
use crate::rootfs::unpack::UnpackLimits;
use crate::rootfs::user;

/// Mounts the layers that are copied from.
pub(super) fn view(lowers: &[PathBuf]) -> Result<Root, Failure> {
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

impl Target {
    fn given(&self) -> Option<Owner> {
        self.chown.map(|(uid, gid)| Owner::Fixed(uid, gid))
    }
}

fn target(execution: &Execution, op: &CopyOp, lowers: Vec<PathBuf>) -> Result<Target, Failure> {
    let (root, view, upper) = if op.link == Link::Yes {
        // No mount: what overlayfs writes down about new directories would hide what is below the layer later.
        let attempt = "make a place for a layer";
        let scratch = execution.scratch()?;
        let upper = Upper::create(None, &scratch).map_err(|e| platform(attempt, &e))?;
        let open = || Root::open(&upper.path()).map_err(|e| platform(attempt, &e));
        let view = if lowers.is_empty() {
            open()?
        } else {
            view(&lowers)?
        };
        (open()?, view, upper.path())
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

/// Copies everything that `op` says; returns the directory that becomes the layer.
pub(super) fn copy(
    execution: &Execution,
    op: &CopyOp,
    lowers: Vec<PathBuf>,
    (from, brought): (Option<&[PathBuf]>, &[Brought]),
) -> Result<(PathBuf, CopyReport), Failure> {
    let target = target(execution, op, lowers)?;
    let context = execution.files(&op.from)?.unwrap_or(&execution.context);
    let ignore = |path: &Path, is_dir: bool| context.is_ignored(path, is_dir);
    let base = options(execution, op, &target);
    let paths = match from {
        None => CopyOptions {
            ignore: Some(&ignore),
            ..base
        },
        Some(_) => CopyOptions {
            owner: target.given().unwrap_or(Owner::FromSource),
            mtime: Mtime::FromSource,
            ..base
        },
    };
    let from = from.map(view).transpose()?;
    let mut report = CopyReport::default();
    let mut copy_one = |root: &Root, source: Source, options: &CopyOptions<'_>| {
        let (dest, cancel) = (Path::new(&op.destination), &execution.cancel);
        let copied = copy::copy(root, &[source], &target.root, dest, options, cancel);
        context.check()?;
        report.add(copied.map_err(|e| dockerfile_failure("copy", &e))?);
        Ok::<_, Failure>(())
    };
    for (index, source) in op.sources.iter().enumerate() {
        if let Planned::Path(source) = source {
            let archives = match op.unpack {
                Unpack::None => Archives::Copy,
                Unpack::Local | Unpack::All => Archives::Unpack(target.chown),
            };
            let source = path_source(source, &op.exclude)?;
            let from = match &from {
                Some(layers) => layers,
                None => context.root()?,
            };
            copy_one(from, source, &CopyOptions { archives, ..paths })?;
            continue;
        }
        let remote = brought.iter().find(|remote| remote.index == index);
        let remote =
            remote.ok_or_else(|| failure(FailureKind::Platform, "a source was not fetched"))?;
        let options = CopyOptions {
            mtime: remote.modified.map_or(Mtime::FromSource, Mtime::Fixed),
            archives: match op.unpack {
                Unpack::All => Archives::Unpack(target.chown),
                Unpack::None | Unpack::Local => Archives::Copy,
            },
            ..base
        };
        copy_one(&remote.root, literal(&remote.name, &op.exclude)?, &options)?;
    }
    if !op.inline.is_empty() {
        let root = inline(execution, &op.inline)?;
        for file in &op.inline {
            copy_one(&root, literal(&file.name, &[])?, &base)?;
        }
    }
    Ok((target.upper, report))
}

fn literal(name: &str, exclude: &[String]) -> Result<Source, Failure> {
    Source::literal(name, exclude).map_err(|e| dockerfile_failure("choose what to copy", &e))
}

/// Returns how files are copied that come from nowhere in particular.
fn options<'a>(execution: &Execution, op: &'a CopyOp, target: &Target) -> CopyOptions<'a> {
    CopyOptions {
        owner: target.given().unwrap_or(Owner::Fixed(0, 0)),
        mode: op.chmod.as_ref(),
        // Files of a context are as old as their checkout, which means nothing.
        mtime: execution.epoch.map_or(Mtime::FromSource, Mtime::Fixed),
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
    }
}

/// Writes the files whose content is in the Dockerfile to a folder.
fn inline(execution: &Execution, files: &[InlineFile]) -> Result<Root, Failure> {
    let attempt = "write the files of a heredoc";
    let folder = execution.scratch()?;
    write_inline(&folder, files).map_err(|e| platform(attempt, &e))?;
    Root::open(&folder).map_err(|e| platform(attempt, &e))
}

fn write_inline(folder: &Path, files: &[InlineFile]) -> std::io::Result<()> {
    for file in files {
        let path = folder.join(&file.name);
        fs::write(&path, &file.content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}
