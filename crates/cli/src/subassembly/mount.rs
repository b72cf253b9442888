//! Mounting a file that is a filesystem. The kernel reads it, with no right for anything in it.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use engine::subassembly::Format;
use oci::Reference;

use super::here;
use crate::args::subassembly::MountArgs;
use crate::failure::{Exit, Failure, OrExit, Outcome};
use crate::{place, terminal};

/// What a squashfs file begins with.
const SQUASHFS_MAGIC: &[u8] = b"hsqs";
/// What a zstd stream begins with.
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Programs of the image mean nothing here: no set-user-id, no devices.
const OPTIONS: &str = "ro,nosuid,nodev,loop";

/// `kiln subassembly mount`.
pub(super) fn run(args: &MountArgs) -> Outcome {
    let path = file(args)?;
    let mut magic = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(4).read_to_end(&mut magic));
    read.with_context(|| format!("read {}", path.display()))
        .or_exit(Exit::Usage)?;
    if magic.starts_with(ZSTD_MAGIC) {
        let text = format!("{} is an archive and cannot be mounted", path.display());
        let hint = format!(
            "unpack it with `tar --zstd -xf {}`, or make one with --format squashfs",
            path.display()
        );
        return Err(Failure::text(Exit::Usage, text).hint(hint));
    }
    if !magic.starts_with(SQUASHFS_MAGIC) {
        return Err(Failure::text(
            Exit::Usage,
            format!("{} is not the file of a subassembly", path.display()),
        ));
    }
    if !rustix::process::geteuid().is_root() {
        let failure = Failure::text(Exit::Machine, "only root may mount a file");
        return Err(failure.hint(format!(
            "squashfuse mounts it for anybody: `squashfuse {} DIR`",
            path.display()
        )));
    }
    mount(&path, &args.folder)?;
    terminal::say(&format!(
        "mounted; `umount {}` ends it",
        args.folder.display()
    ));
    Ok(())
}

/// Returns the file that is meant.
fn file(args: &MountArgs) -> Outcome<PathBuf> {
    let path = PathBuf::from(&args.what);
    if path.is_file() {
        return Ok(path);
    }
    let reference: Reference = args
        .what
        .parse()
        .with_context(|| format!("{:?} is neither a file nor an image", args.what))
        .or_exit(Exit::Usage)?;
    let ready = place::find(&args.place)?.ready()?;
    let image = reference
        .digest()
        .cloned()
        .or_else(|| engine::kept_image(&here::open(&ready).ok()?, &reference));
    let unknown = || {
        let text = format!("no subassembly of {} was made here", reference.familiar());
        Failure::text(Exit::Usage, text).hint(
            "`kiln subassembly create --format squashfs` makes one; name the image by its digest",
        )
    };
    let image = image.ok_or_else(unknown)?;
    let stored = here::look_up(&ready, &image, Format::Squashfs)?.ok_or_else(unknown)?;
    Ok(here::path_of(&ready, &stored.digest))
}

fn mount(path: &Path, folder: &Path) -> Outcome {
    let ran = Command::new("mount")
        .args(["-t", "squashfs", "-o", OPTIONS, "--"])
        .arg(path)
        .arg(folder)
        .output()
        .context("run mount (Debian package mount)")
        .or_exit(Exit::Machine)?;
    if ran.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ran.stderr).trim().to_owned();
    Err(Failure::text(
        Exit::Machine,
        format!("mount {} at {}: {said}", path.display(), folder.display()),
    ))
}
