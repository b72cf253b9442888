//! The files that a step works on: what the steps before have left, and a fresh directory over it that takes what changes.
//!
//! Blocking, as all of `rootfs`. The layers below are never written to.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Execution;
use crate::event::Failure;
use crate::failure::platform;
use crate::rootfs::overlay::{self, Upper};
use crate::rootfs::root::Root;

/// A writable root filesystem: what the steps before have left, and a directory for what changes.
pub(super) struct Prospect {
    pub(super) root: OwnedFd,
    /// What the steps before have left, alone.
    pub(super) view: Root,
    /// Becomes the layer.
    pub(super) upper: PathBuf,
}

/// Mounts `lowers` under a fresh upper directory; `above` adds layers that are seen and never written into the image.
pub(super) fn prospect(
    execution: &Execution,
    mut lowers: Vec<PathBuf>,
    above: impl FnOnce(&Root, &Path) -> Result<Option<PathBuf>, Failure>,
) -> Result<Prospect, Failure> {
    let scratch = execution.scratch()?;
    let fail = |e: &(dyn std::error::Error + 'static)| platform("mount the root filesystem", e);
    if lowers.is_empty() {
        let empty = scratch.join("empty");
        fs::create_dir(&empty).map_err(|e| fail(&e))?;
        fs::set_permissions(&empty, fs::Permissions::from_mode(0o755)).map_err(|e| fail(&e))?;
        lowers.push(empty);
    }
    let view = Root::from_fd(overlay::mount(&lowers, None).map_err(|e| fail(&e))?);
    lowers.extend(above(&view, &scratch)?);
    let upper = Upper::create(Some(view.as_fd()), &scratch.join("step")).map_err(|e| fail(&e))?;
    let root = overlay::mount(&lowers, Some(&upper)).map_err(|e| fail(&e))?;
    Ok(Prospect {
        root,
        view,
        upper: upper.path(),
    })
}
