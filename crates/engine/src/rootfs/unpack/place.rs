//! Puts entries in their places, each by the directory that holds it and its last name.

use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use oci::tar::{Entry, Kind, ReadError};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::{ExtractOptions, UnpackError};
use crate::rootfs::overlay::times;
use crate::rootfs::{attributes, remove, tree};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// What old unions kept for themselves; layers of theirs still hold it.
const UNION_PREFIX: &[u8] = b".wh..wh.";
/// Most devices that were left out of which the names are kept.
const DEVICES_NAMED_MAX: usize = 10;
/// Content is written in pieces of this size.
const COPY_BYTES: usize = 256 << 10;

/// What is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    /// A layer, with whiteouts.
    Layer,
    /// Plain files.
    Files(ExtractOptions),
}

pub(super) struct Placer {
    root: OwnedFd,
    policy: Policy,
    /// The last directory that something was put into: entries come in runs.
    last_parent: Option<(Vec<u8>, Rc<OwnedFd>)>,
    /// Times of directories; set at the end, as everything put inside changes them.
    times: Vec<(Vec<u8>, i64)>,
    buffer: Vec<u8>,
    pub(super) n_devices_skipped: u64,
    pub(super) devices_skipped: Vec<String>,
}

/// Where an entry goes.
struct Place {
    parent: Rc<OwnedFd>,
    name: CString,
    path: Vec<u8>,
}

impl Placer {
    pub(super) fn new(root: OwnedFd, policy: Policy) -> Self {
        Self {
            root,
            policy,
            last_parent: None,
            times: Vec::new(),
            buffer: Vec::new(),
            n_devices_skipped: 0,
            devices_skipped: Vec::new(),
        }
    }

    pub(super) fn place(
        &mut self,
        entry: &Entry,
        content: &mut impl Read,
        cancel: &CancellationToken,
    ) -> Result<(), UnpackError> {
        let path = || tree::shown(&entry.path);
        let parts = self.components(&entry.path);
        let parts = parts.ok_or_else(|| UnpackError::Escapes { path: path() })?;
        let Some((name, parents)) = parts.split_last() else {
            return self.place_root(entry);
        };
        let is_device = matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice);
        if is_device && parts.first() == Some(&&b"dev"[..]) {
            self.n_devices_skipped += 1;
            if self.devices_skipped.len() < DEVICES_NAMED_MAX {
                self.devices_skipped.push(tree::shown(&parts.join(&b'/')));
            }
            return Ok(());
        }
        if is_device {
            return Err(UnpackError::Device { path: path() });
        }
        match self.policy {
            Policy::Layer if parts.iter().any(|part| part.starts_with(WHITEOUT_PREFIX)) => {
                return self.place_whiteout(entry, parents, name);
            }
            Policy::Files(_) if parts.iter().any(|part| part.starts_with(WHITEOUT_PREFIX)) => {
                return Err(UnpackError::ReservedName { path: path() });
            }
            _ => {}
        }
        let place = self.at(entry, parents, name)?;
        match entry.kind {
            Kind::File => self.place_file(entry, &place, content, cancel),
            Kind::Directory => self.place_directory(entry, &place),
            Kind::Symlink => self.place_symlink(entry, &place),
            Kind::HardLink => self.place_hard_link(entry, &place),
            Kind::Fifo => self.place_fifo(entry, &place),
            Kind::CharDevice | Kind::BlockDevice => Err(UnpackError::Device { path: path() }),
        }
    }

    /// Returns the names that a path of the archive is made of; `None` if it leads out of the root, or, in a layer, has a `..` at all.
    fn components<'p>(&self, path: &'p [u8]) -> Option<Vec<&'p [u8]>> {
        if self.policy == Policy::Layer {
            return tree::components(path);
        }
        let mut parts = Vec::new();
        let is_absolute = path.starts_with(b"/");
        for part in path.split(|byte| *byte == b'/') {
            match part {
                b".." if parts.pop().is_none() && !is_absolute => return None,
                b"" | b"." | b".." => {}
                part => parts.push(part),
            }
        }
        Some(parts)
    }

    /// Sets the times of directories.
    pub(super) fn finish(&mut self) -> Result<(), UnpackError> {
        // Backwards: what the archive said last about a directory is set first, and must not be set over.
        let mut done = std::collections::HashSet::new();
        while let Some((path, mtime)) = self.times.pop() {
            if done.contains(&path) {
                continue;
            }
            // Not there any more when something replaced it.
            if let Ok(dir) = tree::open_in(&self.root, &path, tree::directory_flags()) {
                rustix::fs::futimens(&dir, &times(mtime))
                    .map_err(|error| io_error("set the time of", &path)(error.into()))?;
            }
            done.insert(path);
        }
        Ok(())
    }

    fn place_root(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        if entry.kind != Kind::Directory {
            let path = tree::shown(&entry.path);
            return Err(UnpackError::ReplacesRoot { path });
        }
        if self.policy != Policy::Layer {
            return Ok(());
        }
        let flags = tree::directory_flags();
        let root = tree::open_below(&self.root, b".", flags).map_err(io_error("open", b"/"))?;
        self.times.push((Vec::new(), entry.mtime));
        self.set_metadata(entry, &root)
    }

    fn place_whiteout(
        &mut self,
        entry: &Entry,
        parents: &[&[u8]],
        name: &[u8],
    ) -> Result<(), UnpackError> {
        let invalid = || UnpackError::Whiteout {
            path: tree::shown(&entry.path),
        };
        let is_union = |part: &&[u8]| part.starts_with(UNION_PREFIX);
        let is_whiteout = |part: &&[u8]| part.starts_with(WHITEOUT_PREFIX);
        if parents.iter().any(is_union) {
            return Ok(());
        }
        if parents.iter().any(is_whiteout) {
            return Err(invalid());
        }
        if name == OPAQUE_MARKER {
            let parent = self.parent(entry, parents)?;
            return attributes::set_opaque(&*parent).map_err(io_error("mark", &entry.path));
        }
        if is_union(&name) {
            return Ok(());
        }
        let hidden = match name.strip_prefix(WHITEOUT_PREFIX) {
            None | Some(b"" | b"." | b"..") => return Err(invalid()),
            Some(hidden) => hidden,
        };
        let place = self.at(entry, parents, hidden)?;
        let found = tree::look(&*place.parent, &place.name);
        match found.map_err(io_error("look at", &entry.path))? {
            // What this layer holds itself is not hidden; what lies below it is.
            Some(stat) if tree::kind(&stat) == FileType::Directory => {
                let dir = tree::open_below(&*place.parent, hidden, tree::directory_flags())
                    .map_err(io_error("open", &entry.path))?;
                attributes::set_opaque(&dir).map_err(io_error("mark", &entry.path))
            }
            Some(_) => Ok(()),
            None => rustix::fs::mknodat(
                &*place.parent,
                &*place.name,
                FileType::CharacterDevice,
                Mode::empty(),
                0,
            )
            .map_err(|error| io_error("white out", &entry.path)(error.into())),
        }
    }

    fn place_file(
        &mut self,
        entry: &Entry,
        place: &Place,
        content: &mut impl Read,
        cancel: &CancellationToken,
    ) -> Result<(), UnpackError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = self.make(entry, place, || {
            rustix::fs::openat(&*place.parent, &*place.name, flags, mode)
        })?;
        self.buffer.resize(COPY_BYTES, 0);
        loop {
            let n = match content.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(UnpackError::Archive(ReadError::Truncated));
                }
                Err(error) => return Err(UnpackError::Read(error)),
            };
            let mut piece = self.buffer.get(..n).unwrap_or_default();
            while !piece.is_empty() {
                let n = rustix::io::write(&file, piece)
                    .map_err(|error| io_error("write", &entry.path)(error.into()))?;
                piece = piece.get(n..).unwrap_or_default();
            }
            if cancel.is_cancelled() {
                return Err(UnpackError::Cancelled);
            }
        }
        self.set_metadata(entry, &file)?;
        rustix::fs::futimens(&file, &times(entry.mtime))
            .map_err(|error| io_error("set the time of", &entry.path)(error.into()))
    }

    fn place_directory(&mut self, entry: &Entry, place: &Place) -> Result<(), UnpackError> {
        let failed = |attempt| io_error(attempt, &entry.path);
        let found = tree::look(&*place.parent, &place.name).map_err(failed("look at"))?;
        let was_whiteout = found.as_ref().is_some_and(tree::is_whiteout);
        if found.is_none_or(|stat| tree::kind(&stat) != FileType::Directory) {
            self.make(entry, place, || {
                rustix::fs::mkdirat(&*place.parent, &*place.name, Mode::RWXU)
            })?;
        }
        let flags = tree::directory_flags();
        let dir = tree::open_below(&*place.parent, place.name.to_bytes(), flags)
            .map_err(failed("open"))?;
        if was_whiteout && self.policy == Policy::Layer {
            attributes::set_opaque(&dir).map_err(failed("mark"))?;
        }
        self.times.push((place.path.clone(), entry.mtime));
        self.set_metadata(entry, &dir)
    }

    fn place_symlink(&mut self, entry: &Entry, place: &Place) -> Result<(), UnpackError> {
        self.make(entry, place, || {
            rustix::fs::symlinkat(&entry.link[..], &*place.parent, &*place.name)
        })?;
        self.set_link_metadata(entry, place)
    }

    fn place_fifo(&mut self, entry: &Entry, place: &Place) -> Result<(), UnpackError> {
        self.make(entry, place, || {
            rustix::fs::mkfifoat(&*place.parent, &*place.name, Mode::RUSR)
        })?;
        self.set_pipe_metadata(entry, place)
    }

    /// Sets owner, mode and time of something that is not opened and is no symbolic link.
    fn set_pipe_metadata(&self, entry: &Entry, place: &Place) -> Result<(), UnpackError> {
        self.set_link_metadata(entry, place)?;
        let mode = Mode::from_raw_mode(entry.mode);
        rustix::fs::chmodat(&*place.parent, &*place.name, mode, AtFlags::empty())
            .map_err(|error| io_error("set the mode of", &entry.path)(error.into()))
    }

    fn place_hard_link(&mut self, entry: &Entry, place: &Place) -> Result<(), UnpackError> {
        let refused = || UnpackError::HardLink {
            path: tree::shown(&entry.path),
            target: tree::shown(&entry.link),
        };
        let parts = self.components(&entry.link).ok_or_else(refused)?;
        let (name, parents) = parts.split_last().ok_or_else(refused)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let from = tree::open_in(&self.root, &parents.join(&b'/'), flags).map_err(|_| refused())?;
        let from_name = tree::c_name(name).map_err(|_| refused())?;
        let target = tree::look(&from, &from_name).map_err(|_| refused())?;
        let target = target.ok_or_else(refused)?;
        if tree::kind(&target) == FileType::Directory || tree::is_whiteout(&target) {
            return Err(refused());
        }
        let found = tree::look(&*place.parent, &place.name);
        let found = found.map_err(io_error("look at", &entry.path))?;
        let is_same = |stat: &Stat| stat.st_ino == target.st_ino && stat.st_dev == target.st_dev;
        if !found.as_ref().is_some_and(is_same) {
            self.make(entry, place, || {
                let flags = AtFlags::empty();
                rustix::fs::linkat(&from, &*from_name, &*place.parent, &*place.name, flags)
            })?;
        }
        if self.policy == Policy::Layer {
            return Ok(());
        }
        match tree::kind(&target) {
            FileType::Symlink => self.set_link_metadata(entry, place),
            _ => self.set_pipe_metadata(entry, place),
        }
    }

    /// Makes something, and if something is there already, makes it in its place.
    fn make<T>(
        &mut self,
        entry: &Entry,
        place: &Place,
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T, UnpackError> {
        match make() {
            Err(Errno::EXIST) => {}
            other => {
                return other.map_err(|error| io_error("make", &entry.path)(error.into()));
            }
        }
        self.last_parent = None;
        remove::remove_at(place.parent.as_fd(), &place.name)
            .map_err(io_error("replace", &entry.path))?;
        make().map_err(|error| io_error("make", &entry.path)(error.into()))
    }

    fn at(&mut self, entry: &Entry, parents: &[&[u8]], name: &[u8]) -> Result<Place, UnpackError> {
        let parent = self.parent(entry, parents)?;
        let name_of = tree::c_name(name).map_err(io_error("make", &entry.path))?;
        Ok(Place {
            parent,
            name: name_of,
            path: tree::join(&parents.join(&b'/'), name),
        })
    }

    /// Opens the directory that `parents` lead to inside the root; makes what is missing.
    fn parent(&mut self, entry: &Entry, parents: &[&[u8]]) -> Result<Rc<OwnedFd>, UnpackError> {
        let path = parents.join(&b'/');
        if let Some((last, dir)) = &self.last_parent
            && *last == path
        {
            return Ok(Rc::clone(dir));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir = match tree::open_in(&self.root, &path, flags) {
            Ok(dir) => dir,
            Err(error) if super::super::root::is_absent(&error) => {
                self.make_parents(entry, parents)?
            }
            Err(error) => return Err(io_error("open the parent of", &entry.path)(error)),
        };
        let dir = Rc::new(dir);
        self.last_parent = Some((path, Rc::clone(&dir)));
        Ok(dir)
    }

    fn make_parents(&mut self, entry: &Entry, parents: &[&[u8]]) -> Result<OwnedFd, UnpackError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let failed = |attempt| io_error(attempt, &entry.path);
        let mut path = Vec::new();
        let mut dir = tree::open_in(&self.root, b".", flags).map_err(failed("open"))?;
        for name in parents {
            path = tree::join(&path, name);
            match tree::open_in(&self.root, &path, flags) {
                Ok(next) => {
                    dir = next;
                    continue;
                }
                Err(error) if super::super::root::is_absent(&error) => {}
                Err(error) => return Err(failed("open the parent of")(error)),
            }
            let c_name = tree::c_name(name).map_err(failed("make a parent of"))?;
            let found = tree::look(&dir, &c_name).map_err(failed("look at a parent of"))?;
            let was_whiteout = match found {
                None => false,
                Some(stat) if tree::is_whiteout(&stat) && self.policy == Policy::Layer => true,
                // A file, or a link that leads nowhere.
                Some(_) => {
                    let path = tree::shown(&entry.path);
                    return Err(UnpackError::NotADirectory { path });
                }
            };
            if was_whiteout {
                remove::remove_at(dir.as_fd(), &c_name).map_err(failed("replace"))?;
            }
            rustix::fs::mkdirat(&dir, &c_name, Mode::RWXU)
                .map_err(|error| failed("make a parent of")(error.into()))?;
            dir = tree::open_below(&dir, name, tree::directory_flags())
                .map_err(failed("open the parent of"))?;
            if was_whiteout {
                attributes::set_opaque(&dir).map_err(failed("mark a parent of"))?;
            }
            rustix::fs::fchown(&dir, Some(Uid::ROOT), Some(Gid::ROOT))
                .and_then(|()| rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o755)))
                .map_err(|error| failed("set the mode of a parent of")(error.into()))?;
            self.times.push((path.clone(), 0));
        }
        Ok(dir)
    }

    fn owner_of(&self, entry: &Entry) -> (u32, u32) {
        match self.policy {
            Policy::Files(options) => options.owner.unwrap_or((entry.uid, entry.gid)),
            Policy::Layer => (entry.uid, entry.gid),
        }
    }

    /// Sets owner, then mode, then attributes: a change of owner clears setuid bits and capabilities.
    fn set_metadata(&self, entry: &Entry, file: &OwnedFd) -> Result<(), UnpackError> {
        let (uid, gid) = self.owner_of(entry);
        rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .map_err(|error| owner_error(entry, (uid, gid), error))?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode))
            .map_err(|error| io_error("set the mode of", &entry.path)(error.into()))?;
        let limited = entry.xattrs.iter().take(attributes::ATTRIBUTES_MAX);
        attributes::write(file, limited).map_err(io_error("set an attribute of", &entry.path))
    }

    /// Sets owner and time of something that cannot be opened.
    fn set_link_metadata(&self, entry: &Entry, place: &Place) -> Result<(), UnpackError> {
        let (uid, gid) = self.owner_of(entry);
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(
            &*place.parent,
            &*place.name,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            flags,
        )
        .map_err(|error| owner_error(entry, (uid, gid), error))?;
        rustix::fs::utimensat(&*place.parent, &*place.name, &times(entry.mtime), flags)
            .map_err(|error| io_error("set the time of", &entry.path)(error.into()))
    }
}

fn owner_error(entry: &Entry, (uid, gid): (u32, u32), error: Errno) -> UnpackError {
    let path = tree::shown(&entry.path);
    match error {
        Errno::INVAL => UnpackError::Owner { path, uid, gid },
        error => UnpackError::Io {
            attempt: "set the owner of",
            path,
            source: error.into(),
        },
    }
}

fn io_error(attempt: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> UnpackError {
    let path = tree::shown(path);
    move |source| UnpackError::Io {
        attempt,
        path,
        source,
    }
}
