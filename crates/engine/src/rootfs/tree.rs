//! Opening and listing directories, the same way everywhere.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat};
use rustix::io::Errno;

/// How often an open is tried again that met a rename elsewhere.
const ATTEMPTS: usize = 128;
/// Bytes of directory entries that are read at once.
const LISTING_BYTES: usize = 32 << 10;
/// Longest path that is followed, as the kernel has it, less its final NUL.
pub(super) const PATH_MAX_BYTES: usize = 4095;

/// Something in a directory.
pub(super) struct Node {
    pub(super) name: CString,
    pub(super) stat: Stat,
}

impl Node {
    pub(super) fn kind(&self) -> FileType {
        kind(&self.stat)
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind() == FileType::Directory
    }
}

pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Tells whether overlayfs takes this for "nothing here, whatever is below".
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Opens `path` as if `root` were `/`: neither `..` nor links lead out of it.
pub(super) fn open_in(root: impl AsFd, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    open_resolved(root, path, flags, ResolveFlags::IN_ROOT)
}

/// Opens `path` below `dir` without following any link.
pub(super) fn open_below(dir: impl AsFd, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    open_resolved(
        dir,
        path,
        flags,
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )
}

fn open_resolved(
    dir: impl AsFd,
    path: &[u8],
    flags: OFlags,
    resolve: ResolveFlags,
) -> io::Result<OwnedFd> {
    let path = match path {
        b"" => b".",
        path => path,
    };
    let flags = flags | OFlags::CLOEXEC;
    let resolve = resolve | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..ATTEMPTS {
        match rustix::fs::openat2(&dir, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
    Err(Errno::AGAIN.into())
}

/// Flags to list a directory with.
pub(super) fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW
}

/// Looks at `name` itself, not at what it may link to.
pub(super) fn look(dir: impl AsFd, name: &CStr) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Tells whether something could not be opened because it is a link.
pub(super) fn is_link(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::LOOP)
}

/// Returns the names in `dir`, sorted by bytes.
pub(super) fn names(dir: impl AsFd) -> io::Result<Vec<CString>> {
    let mut buffer = Vec::with_capacity(LISTING_BYTES);
    let mut names = Vec::new();
    rustix::fs::seek(&dir, rustix::fs::SeekFrom::Start(0))?;
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Returns what is in `dir`, sorted by name.
pub(super) fn list(dir: impl AsFd) -> io::Result<Vec<Node>> {
    let mut nodes = Vec::new();
    for name in names(&dir)? {
        if let Some(stat) = look(&dir, &name)? {
            nodes.push(Node { name, stat });
        }
    }
    Ok(nodes)
}

/// Returns `dir/name`, or `name` when `dir` is the root.
pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match dir {
        b"" => name.to_vec(),
        dir => [dir, b"/", name].concat(),
    }
}

/// Returns a name as the kernel wants it.
pub(super) fn c_name(name: &[u8]) -> io::Result<CString> {
    CString::new(name).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Returns the names that `path` is made of, `.` and empty ones left out; `None` if there is a `..`.
pub(super) fn components(path: &[u8]) -> Option<Vec<&[u8]>> {
    let parts = path.split(|byte| *byte == b'/');
    let parts: Vec<_> = parts.filter(|part| !matches!(*part, b"" | b".")).collect();
    let has_parent = parts.contains(&&b".."[..]);
    (!has_parent).then_some(parts)
}

/// Returns a path as it is shown to people.
pub(super) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
