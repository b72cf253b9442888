//! Files that builds export: what they are called, how they are opened, and how long they wait to be fetched.
//!
//! They lie in the build's own folder, which belongs to its worker: whatever is there is opened beneath a folder that is held open, and
//! only if it is a regular file. They go when they were fetched to their end, after [`LIFETIME`], or with the build.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};

/// How long exported files wait, from the end of their build.
pub const LIFETIME: Duration = Duration::from_secs(3600);
/// What the names of exported files begin with.
const NAME_PREFIX: &str = "output-";
/// The folder that they are in.
pub(crate) const FOLDER: &str = "output";

/// Returns what the export that is output number `index` of a request is called.
pub fn name(index: u32) -> String {
    format!("{NAME_PREFIX}{index}")
}

/// Returns which output of a request it is that is called so.
pub fn index_of(name: &str) -> Option<u32> {
    let index = name.strip_prefix(NAME_PREFIX)?.parse().ok()?;
    (self::name(index) == name).then_some(index)
}

/// A file that is open, and can be removed.
#[derive(Debug)]
pub struct Exported {
    /// The file.
    pub file: File,
    /// Its size in bytes.
    pub size: u64,
    folder: OwnedFd,
    name: String,
}

/// Opens the export number `index` of the build in `build`; `None` when it is not there, or not any more.
///
/// # Errors
/// What the system says.
pub fn open(build: &Path, index: u32) -> io::Result<Option<Exported>> {
    let within = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(CWD, build, within | OFlags::DIRECTORY, Mode::empty())
        .and_then(|build| {
            rustix::fs::openat(build, FOLDER, within | OFlags::DIRECTORY, Mode::empty())
        });
    let Some(folder) = there(folder)? else {
        return Ok(None);
    };
    let name = name(index);
    // Not blocking: a pipe in its place must not hold us.
    let file = rustix::fs::openat(&folder, &name, within | OFlags::NONBLOCK, Mode::empty());
    let Some(file) = there(file)? else {
        return Ok(None);
    };
    let stat = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    Ok(Some(Exported {
        file: file.into(),
        size: u64::try_from(stat.st_size).unwrap_or(0),
        folder,
        name,
    }))
}

fn there(opened: Result<OwnedFd, rustix::io::Errno>) -> io::Result<Option<OwnedFd>> {
    use rustix::io::Errno;
    match opened {
        Ok(fd) => Ok(Some(fd)),
        // A link, something that is no folder, or a socket: not what we have asked for.
        Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Exported {
    /// Removes it: it was fetched. Of several who fetch it at the same time, one does.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove(self) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.folder, &self.name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fetches_what_another_has_just_fetched_gets_no_error() {
        let build = tempfile::tempdir().unwrap();
        std::fs::create_dir(build.path().join(FOLDER)).unwrap();
        std::fs::write(build.path().join(FOLDER).join(name(0)), "x").unwrap();
        let both = [0, 0].map(|index| open(build.path(), index).unwrap().unwrap());
        for one in both {
            one.remove().unwrap();
        }
        assert!(open(build.path(), 0).unwrap().is_none());
    }

    #[test]
    fn what_is_no_regular_file_in_its_place_is_not_opened() {
        let build = tempfile::tempdir().unwrap();
        assert!(open(build.path(), 0).unwrap().is_none());
        let output = build.path().join(FOLDER);
        std::fs::create_dir(&output).unwrap();
        std::fs::write(build.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("../secret", output.join("output-0")).unwrap();
        rustix::fs::mkfifoat(CWD, output.join("output-1"), Mode::RUSR).unwrap();
        std::fs::create_dir(output.join("output-2")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(output.join("output-3")).unwrap();
        for index in 0..5 {
            assert!(open(build.path(), index).unwrap().is_none(), "{index}");
        }
        std::fs::write(output.join("output-4"), "four").unwrap();
        let exported = open(build.path(), 4).unwrap().unwrap();
        assert_eq!(exported.size, 4);
        exported.remove().unwrap();
        assert!(open(build.path(), 4).unwrap().is_none());
        std::fs::rename(&output, build.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", &output).unwrap();
        assert!(open(build.path(), 4).unwrap().is_none());
    }
}
