//! A file system of the benchmark's own: ext4 with a journal, as it is made by default, in a sparse file.
//!
//! Every cold build begins with the removal of all that its builder knew. An ext4 without a journal, as disks of virtual machines have it, looks
//! for minutes after that past every inode that was in use a while ago, for each file that is made: then everybody's builds take three times as
//! long, and the time says how many files are made and nothing else.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Its size; what is not used takes no room.
const BYTES: u64 = 40 << 30;

/// A file system that goes with this value.
#[derive(Debug)]
pub(crate) struct Own {
    image: PathBuf,
    mount: PathBuf,
}

impl Own {
    /// Makes and mounts one below `parent`.
    pub(crate) fn make(parent: &Path) -> Result<Self> {
        let name = format!("kiln-bench-{}", std::process::id());
        let own = Self {
            image: parent.join(format!("{name}.img")),
            mount: parent.join(format!("{name}.mnt")),
        };
        let file = File::create(&own.image);
        file.and_then(|file| file.set_len(BYTES))
            .with_context(|| format!("make {}", own.image.display()))?;
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&own.image))?;
        std::fs::create_dir(&own.mount).with_context(|| format!("make {}", own.mount.display()))?;
        let mut mount = Command::new("mount");
        run(mount
            .args(["-o", "loop,discard"])
            .arg(&own.image)
            .arg(&own.mount))
        .context("mount a file system to measure on: be root, or name one with --scratch")?;
        Ok(own)
    }

    /// Returns where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.mount
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // What was not mounted need not be unmounted.
        let _ = Command::new("umount").arg(&self.mount).status();
        let _ = std::fs::remove_dir(&self.mount);
        let _ = std::fs::remove_file(&self.image);
    }
}

fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("run {command:?} (Debian packages e2fsprogs and mount)"))?;
    ensure!(status.success(), "{command:?} failed");
    Ok(())
}
