//! The root filesystem of an image, as an archive or as a folder.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::event::{Failure, FailureKind};
use crate::failure::{failure, platform};
use crate::rootfs::diff::{self, DiffOptions};
use crate::rootfs::overlay;
use crate::rootfs::unpack::{self, UnpackLimits};
use crate::spec::ExportFormat;

/// Writes the merged `lowers` to `path`.
pub(super) fn write(
    lowers: &[PathBuf],
    path: &Path,
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
            let mut out = BufWriter::new(file);
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
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(platform("write the folder", &error)),
            Err(_) => Err(failure(
                FailureKind::Platform,
                "writing the folder ended early",
            )),
        }
    })
}
