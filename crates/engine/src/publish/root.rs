//! The root filesystem of an image, as an archive or as a folder.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::export::{Cap, Capped};
use crate::event::{Failure, FailureKind};
use crate::failure::{failure, platform};
use crate::rootfs::diff::{self, DiffOptions};
use crate::rootfs::overlay;
use crate::rootfs::unpack::{self, UnpackLimits};
use crate::spec::ExportFormat;

/// Writes the merged `lowers` to `path`.
pub(super) fn write(
    lowers: &[PathBuf],
    (path, cap): (&Path, Cap),
    format: ExportFormat,
    cancel: &CancellationToken,
) -> Result<(), Failure> {
    if lowers.is_empty() {
        return Err(failure(
            FailureKind::Dockerfile,
            "the image has no files to export",
        ));
    }
    let merged = overlay::mount(lowers, None).map_err(|e| platform("mount the image", &e))?;
    match format {
        ExportFormat::Local => folder(&merged, path, cancel),
        ExportFormat::Tar | ExportFormat::Oci | ExportFormat::Docker => {
            let file = File::create(path).map_err(|e| platform("create the archive", &e))?;
            let mut out = BufWriter::new(Capped::new(file, cap));
            archive(&merged, &mut out, cancel)?;
            out.flush().map_err(|e| platform("write the archive", &e))
        }
    }
}

fn archive(
    merged: &OwnedFd,
    out: &mut impl Write,
    cancel: &CancellationToken,
) -> Result<(), Failure> {
    // A merged view is walked like an upper directory: there is nothing left in it to hide.
    let view = PathBuf::from(format!("/proc/self/fd/{}/.", merged.as_raw_fd()));
    let options = DiffOptions::default();
    diff::diff(&view, out, options, cancel)
        .map(drop)
        .map_err(|e| platform("read the root filesystem", &e))
}

fn folder(merged: &OwnedFd, path: &Path, cancel: &CancellationToken) -> Result<(), Failure> {
    fs::create_dir(path).map_err(|e| platform("create the folder", &e))?;
    let (reader, mut writer) = io::pipe().map_err(|e| platform("create a pipe", &e))?;
    std::thread::scope(|scope| {
        let unpacked =
            scope.spawn(move || unpack::unpack(reader, path, &UnpackLimits::default(), cancel));
        let archived = archive(merged, &mut writer, cancel);
        drop(writer);
        let unpacked = unpacked.join();
        archived?;
        match unpacked {
            Ok(Ok(_)) => hand_over(path).map_err(|e| platform("hand the folder over", &e)),
            Ok(Err(error)) => Err(platform("write the folder", &error)),
            Err(_) => Err(failure(
                FailureKind::Platform,
                "writing the folder ended early",
            )),
        }
    })
}

/// Gives everything below `path` to root, who is the user that asked where that is not root itself, and lets its owner read it all: what
/// belongs to a subordinate id could be neither read nor removed by anybody.
///
/// Nobody else works in this folder, and links are not followed.
fn hand_over(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let (path, found) = (entry.path(), entry.metadata()?);
        lchown(&path, Some(0), Some(0))?;
        if found.is_symlink() {
            continue;
        }
        let needed = if found.is_dir() { 0o700 } else { 0o400 };
        let mode = found.permissions().mode() & 0o777;
        fs::set_permissions(&path, Permissions::from_mode(mode | needed))?;
        if found.is_dir() {
            hand_over(&path)?;
        }
    }
    Ok(())
}
