//! How much a tree takes on disk.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir as Entries, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::dir::is_dot;

/// Unit of what a file takes, whatever the file system's own is.
const BLOCK_BYTES: u64 = 512;
const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Returns what a file or folder itself takes.
pub(super) fn bytes_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK_BYTES
}

/// A folder that is being looked through.
struct Level {
    pending: Vec<CString>,
    identity: (u64, u64),
}

/// Returns what the tree at `root` takes, the folder itself included; a file with several names in it counts once. What vanishes
/// meanwhile does not count. A tree of any depth is fine: one folder is open at a time, left through `..` and recognised again.
pub(super) fn weigh(root: impl AsFd) -> io::Result<u64> {
    let mut current = rustix::fs::openat(&root, ".", FOLDER, Mode::empty())?;
    let stat = rustix::fs::fstat(&current)?;
    let mut total = bytes_of(&stat);
    let mut seen = HashSet::new();
    let mut levels = vec![level(&current, &stat, &mut total, &mut seen)?];
    while let Some(top) = levels.last_mut() {
        if let Some(name) = top.pending.pop() {
            let Some((below, stat)) = enter(&current, &name)? else {
                continue;
            };
            current = below;
            levels.push(level(&current, &stat, &mut total, &mut seen)?);
            continue;
        }
        levels.pop();
        let Some(parent) = levels.last() else {
            break;
        };
        let above = rustix::fs::openat(&current, "..", FOLDER, Mode::empty())?;
        if identity(&rustix::fs::fstat(&above)?) != parent.identity {
            // Somebody moves folders around in a tree that is in use: what was counted is what can be said.
            break;
        }
        current = above;
    }
    Ok(total)
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// Opens a folder; `None` when it is gone or something else by now.
fn enter(parent: &OwnedFd, name: &CString) -> io::Result<Option<(OwnedFd, Stat)>> {
    match rustix::fs::openat(parent, name, FOLDER, Mode::empty()) {
        Ok(fd) => {
            let stat = rustix::fs::fstat(&fd)?;
            Ok(Some((fd, stat)))
        }
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Counts what is in a folder, and returns which folders are to be looked into.
fn level(
    dir: &OwnedFd,
    stat: &Stat,
    total: &mut u64,
    seen: &mut HashSet<(u64, u64)>,
) -> io::Result<Level> {
    let mut pending = Vec::new();
    for entry in Entries::read_from(dir)? {
        let entry = match entry {
            // Removed while it is read.
            Err(Errno::NOENT) => break,
            entry => entry?,
        };
        if is_dot(entry.file_name()) {
            continue;
        }
        let stat = match rustix::fs::statat(dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            stat => stat?,
        };
        let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !is_folder && stat.st_nlink > 1 && !seen.insert(identity(&stat)) {
            continue;
        }
        *total += bytes_of(&stat);
        if is_folder {
            pending.push(entry.file_name().to_owned());
        }
    }
    Ok(Level {
        pending,
        identity: identity(stat),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_tree_weighs_what_du_says() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("tree");
        let mut deep = root.clone();
        for _ in 0..300 {
            deep.push("folder");
        }
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), [7; 10_000]).unwrap();
        fs::write(root.join("one"), vec![7; 100_000]).unwrap();
        fs::hard_link(root.join("one"), root.join("folder/two")).unwrap();
        std::os::unix::fs::symlink("/usr", root.join("link")).unwrap();
        let sparse = fs::File::create(root.join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        let said = Command::new("du")
            .args(["-s", "--block-size=1"])
            .arg(&root)
            .output()
            .unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        let said: u64 = said.split_whitespace().next().unwrap().parse().unwrap();
        assert_eq!(weigh(fs::File::open(&root).unwrap()).unwrap(), said);
    }
}
