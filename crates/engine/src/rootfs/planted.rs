//! An uploaded folder made again: entries and contents → files, in an empty folder.
//!
//! Entries come from a manifest that has been verified, in an order in which every folder comes before what is in it
//! ([`store::context::Sequence`]). Each is made below a folder that is held open, new, and never through a link; folders get their
//! modes and times when they are left, because what is made in them changes both. Nobody else works in the folder meanwhile.
//! Files are made in that order too, and get their contents, modes and times on other threads: through their descriptors, so that it
//! changes no folder.
//!
//! Files belong to whoever makes them: who owned them on the client has no say here.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps};
use store::context::{Context, ContextError, Entry, EntryKind, ManifestError, parent_of};
use tokio_util::sync::CancellationToken;

use super::{attributes, tree};

/// Threads that fill files, while another makes them.
const FILLERS: usize = 2;
/// Files that are made before they are filled: each is open.
const FILES_AHEAD: usize = 64;

/// Tells why a folder was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlantError {
    /// The list of entries cannot be read.
    #[error("read the uploaded context")]
    Context(#[source] ContextError),
    /// An entry cannot be read.
    #[error("read the uploaded context")]
    Entry(#[source] ManifestError),
    /// A content is not there.
    #[error("read the content of {path:?}")]
    Content {
        path: String,
        #[source]
        source: ContextError,
    },
    /// A content is not as long as its entry says.
    #[error("the content of {path:?} is damaged")]
    Damaged { path: String },
    /// Something cannot be made.
    #[error("make {path:?}")]
    Make {
        path: String,
        #[source]
        source: io::Error,
    },
    /// There is no such file in it.
    #[error("{path:?} is no file of the uploaded context")]
    NoFile { path: String },
    /// The build was cancelled.
    #[error("the build was cancelled")]
    Cancelled,
}

/// Makes the folder of `context` in the empty folder `into`.
pub(crate) fn plant(
    context: &Context,
    into: OwnedFd,
    cancel: &CancellationToken,
) -> Result<(), PlantError> {
    let entries = context.entries().map_err(PlantError::Context)?;
    plant_some(context, entries, into, cancel)
}

/// Makes these entries of `context` alone; the folders that each is in have to be among them.
pub(crate) fn plant_some(
    context: &Context,
    entries: impl Iterator<Item = Result<Entry, ManifestError>>,
    into: OwnedFd,
    cancel: &CancellationToken,
) -> Result<(), PlantError> {
    std::thread::scope(|scope| {
        let (files, to_fill) = sync_channel(FILES_AHEAD);
        let to_fill = Arc::new(Mutex::new(to_fill));
        let fillers = (0..FILLERS).map(|_| {
            let to_fill = Arc::clone(&to_fill);
            scope.spawn(move || fill_all(context, &to_fill))
        });
        let fillers: Vec<_> = fillers.collect();
        // Whoever hands files over is to notice when nobody is left who takes them.
        drop(to_fill);
        let garden = Garden {
            root: into,
            files,
            open: Vec::new(),
        };
        let made = make_all(entries, garden, cancel);
        let mut filled = Ok(());
        for filler in fillers {
            filled = filled.and(filler.join().unwrap_or(Err(PlantError::Cancelled)));
        }
        // What went wrong with a content is why a file could not be handed over.
        filled.and(made)
    })
}

/// Makes every entry, files without their contents.
fn make_all(
    entries: impl Iterator<Item = Result<Entry, ManifestError>>,
    mut garden: Garden,
    cancel: &CancellationToken,
) -> Result<(), PlantError> {
    for entry in entries {
        if cancel.is_cancelled() {
            return Err(PlantError::Cancelled);
        }
        let entry = entry.map_err(PlantError::Entry)?;
        garden.leave_to(parent_of(&entry.path))?;
        garden.entry(entry)?;
    }
    garden.leave_to(b"")
}

/// Fills files until there are no more.
fn fill_all(context: &Context, to_fill: &Mutex<Receiver<(File, Entry)>>) -> Result<(), PlantError> {
    loop {
        let next = to_fill
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let Ok((file, entry)) = next else {
            return Ok(());
        };
        fill(context, file, &entry)?;
    }
}

/// Gives a new file its content, and then what its entry says of it.
fn fill(context: &Context, mut file: File, entry: &Entry) -> Result<(), PlantError> {
    let failed = make(&entry.path);
    if let EntryKind::File { size, content } = &entry.kind
        && *size > 0
    {
        let source = context.open_content(*content);
        let mut source = source.map_err(|source| PlantError::Content {
            path: tree::shown(&entry.path),
            source,
        })?;
        // Within the kernel where it can: shared extents, or copy_file_range.
        let n = io::copy(&mut source, &mut file).map_err(&failed)?;
        if n != *size {
            return Err(PlantError::Damaged {
                path: tree::shown(&entry.path),
            });
        }
    }
    finish(&file, entry).map_err(failed)
}

/// Opens the content of the file at `path`.
pub(crate) fn open_file(context: &Context, path: &[u8]) -> Result<File, PlantError> {
    let none = || PlantError::NoFile {
        path: tree::shown(path),
    };
    for entry in context.entries().map_err(PlantError::Context)? {
        let entry = entry.map_err(PlantError::Entry)?;
        if entry.path != path {
            continue;
        }
        let EntryKind::File { content, .. } = entry.kind else {
            return Err(none());
        };
        let file = context.open_content(content);
        return file.map_err(|source| PlantError::Content {
            path: tree::shown(path),
            source,
        });
    }
    Err(none())
}

struct Garden {
    root: OwnedFd,
    /// Where files go that are to be filled.
    files: SyncSender<(File, Entry)>,
    /// The folders that are being filled, each within the one before it.
    open: Vec<(OwnedFd, Entry)>,
}

impl Garden {
    /// Leaves every folder but `folder` and those it is in.
    fn leave_to(&mut self, folder: &[u8]) -> Result<(), PlantError> {
        while let Some((fd, entry)) = self
            .open
            .pop_if(|(_, entry)| !is_within(folder, &entry.path))
        {
            finish(&fd, &entry).map_err(make(&entry.path))?;
        }
        Ok(())
    }

    fn entry(&mut self, entry: Entry) -> Result<(), PlantError> {
        let failed = make(&entry.path);
        let folder = self.open.last().map_or(&self.root, |(fd, _)| fd);
        let name = entry
            .path
            .rsplit(|byte| *byte == b'/')
            .next()
            .unwrap_or_default();
        let name = tree::c_name(name).map_err(&failed)?;
        match &entry.kind {
            EntryKind::Folder => {
                let made = rustix::fs::mkdirat(folder, &name, Mode::RWXU)
                    .map_err(io::Error::from)
                    .and_then(|()| {
                        tree::open_below(folder, name.to_bytes(), tree::directory_flags())
                    });
                let made = made.map_err(failed)?;
                self.open.push((made, entry));
                return Ok(());
            }
            EntryKind::File { .. } => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let file = rustix::fs::openat(folder, &name, flags, Mode::RUSR | Mode::WUSR);
                let file = File::from(file.map_err(|e| failed(e.into()))?);
                // Nobody takes it any more: one of them tells why.
                let handed = self.files.send((file, entry));
                return handed.map_err(|_| PlantError::Cancelled);
            }
            EntryKind::Symlink(to) => rustix::fs::symlinkat(&to[..], folder, &name)
                .and_then(|()| {
                    let flags = AtFlags::SYMLINK_NOFOLLOW;
                    rustix::fs::utimensat(folder, &name, &times(&entry), flags)
                })
                .map_err(io::Error::from),
            EntryKind::HardLink(to) => self.link(to, folder, &name),
            EntryKind::Pipe => pipe(folder, &name, &entry).map_err(io::Error::from),
        }
        .map_err(failed)
    }

    /// Makes another name for what was made at `to`, which no link leads to.
    fn link(&self, to: &[u8], folder: &OwnedFd, name: &std::ffi::CStr) -> io::Result<()> {
        let parent = tree::open_below(&self.root, parent_of(to), tree::directory_flags())?;
        let earlier = to.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        Ok(rustix::fs::linkat(
            parent,
            earlier,
            folder,
            name,
            AtFlags::empty(),
        )?)
    }
}

fn pipe(folder: &OwnedFd, name: &std::ffi::CStr, entry: &Entry) -> Result<(), rustix::io::Errno> {
    rustix::fs::mkfifoat(folder, name, Mode::RUSR)?;
    // What was just made here is no link.
    rustix::fs::chmodat(folder, name, mode(entry), AtFlags::empty())?;
    rustix::fs::utimensat(folder, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)
}

fn finish(fd: impl AsFd, entry: &Entry) -> io::Result<()> {
    attributes::write(&fd, &entry.xattrs)?;
    rustix::fs::fchmod(&fd, mode(entry))?;
    Ok(rustix::fs::futimens(&fd, &times(entry))?)
}

fn mode(entry: &Entry) -> Mode {
    Mode::from_raw_mode(entry.mode)
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec {
        tv_sec: entry.modified_s,
        tv_nsec: entry.modified_ns.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn is_within(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder)
        .is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
}

fn make(path: &[u8]) -> impl Fn(io::Error) -> PlantError + use<> {
    let path = tree::shown(path);
    move |source| PlantError::Make {
        path: path.clone(),
        source,
    }
}

/// Opens a folder of ours.
pub(crate) fn open_folder(path: &std::path::Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt};
    use std::time::Duration;

    use store::Store;
    use store::context::{Allowance, Announced, ContentId, Keeping};

    use super::*;

    const TENANT: &str = "t";

    fn entry(path: &str, mode: u32, kind: EntryKind) -> Entry {
        Entry {
            path: path.into(),
            mode,
            modified_s: 1_000_000_000,
            modified_ns: 5,
            xattrs: BTreeMap::new(),
            kind,
        }
    }

    fn file(path: &str, mode: u32, content: &[u8]) -> Entry {
        let (size, content) = (content.len() as u64, ContentId::of(content));
        entry(path, mode, EntryKind::File { size, content })
    }

    fn uploaded(store: &Store, entries: &[Entry], contents: &[u8], n_bytes: u64) -> Context {
        let keeping = Keeping {
            now_ms: 2_000_000_000_000,
            lifetime: Duration::from_secs(3600),
        };
        let announced = Announced {
            n_entries: entries.len() as u64,
            n_bytes,
        };
        let mut draft = store
            .begin_context(TENANT, announced, keeping, Allowance::default())
            .unwrap();
        draft.entries(entries).unwrap();
        draft.content(contents).unwrap();
        let created = draft.commit(keeping.now_ms).unwrap();
        store.context(TENANT, &created.id).unwrap().unwrap()
    }

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store"), None).unwrap();
        (folder, store)
    }

    #[test]
    fn every_kind_of_entry_is_made_with_its_mode_and_time() {
        let (folder, store) = store();
        let mut labelled = file("closed/b", 0o600, b"two");
        labelled
            .xattrs
            .insert(b"user.label".to_vec(), b"x".to_vec());
        let entries = [
            entry("closed", 0o500, EntryKind::Folder),
            file("closed/a", 0o4755, b"one"),
            labelled,
            entry("closed/deep", 0o2775, EntryKind::Folder),
            entry("closed/deep/pipe", 0o640, EntryKind::Pipe),
            entry(
                "closed/same",
                0o600,
                EntryKind::HardLink(b"closed/a".to_vec()),
            ),
            file("empty", 0o444, b""),
            entry(
                "out",
                0o777,
                EntryKind::Symlink(b"../../etc/passwd".to_vec()),
            ),
        ];
        let context = uploaded(&store, &entries, b"onetwo", 6);
        let into = folder.path().join("into");
        std::fs::create_dir(&into).unwrap();
        plant(
            &context,
            open_folder(&into).unwrap(),
            &CancellationToken::new(),
        )
        .unwrap();
        for (path, mode) in [
            ("closed", 0o500),
            ("closed/a", 0o4755),
            ("closed/b", 0o600),
            ("closed/deep", 0o2775),
            ("closed/deep/pipe", 0o640),
            ("empty", 0o444),
        ] {
            let found = into.join(path).symlink_metadata().unwrap();
            assert_eq!(found.permissions().mode() & 0o7777, mode, "{path}");
            assert_eq!(
                (found.mtime(), found.mtime_nsec()),
                (1_000_000_000, 5),
                "{path}"
            );
        }
        assert_eq!(std::fs::read(into.join("closed/same")).unwrap(), b"one");
        let inode = |path: &str| into.join(path).symlink_metadata().unwrap().ino();
        assert_eq!(inode("closed/a"), inode("closed/same"));
        assert!(
            into.join("closed/deep/pipe")
                .symlink_metadata()
                .unwrap()
                .file_type()
                .is_fifo()
        );
        let link = into.join("out");
        assert_eq!(
            std::fs::read_link(&link).unwrap().to_str(),
            Some("../../etc/passwd")
        );
        assert_eq!(link.symlink_metadata().unwrap().mtime(), 1_000_000_000);
        let read = attributes::read(File::open(into.join("closed/b")).unwrap()).unwrap();
        assert_eq!(
            read.get(&b"user.label"[..]).map(Vec::as_slice),
            Some(&b"x"[..])
        );
        std::fs::set_permissions(into.join("closed"), PermissionsExt::from_mode(0o700)).unwrap();
    }

    /// Returns where the only content of the store is.
    fn content_in(store: &Store) -> std::path::PathBuf {
        let mut places = vec![store.path().join("contexts")];
        while let Some(place) = places.pop() {
            if !place.is_dir() && place.file_name().unwrap().len() == 64 {
                return place;
            }
            let entries = std::fs::read_dir(place).into_iter().flatten();
            places.extend(entries.map(|entry| entry.unwrap().path()));
        }
        panic!("there is no content");
    }

    #[test]
    fn a_content_that_has_gone_or_has_another_length_is_an_error_that_names_its_file() {
        let (folder, store) = store();
        let context = uploaded(&store, &[file("a", 0o600, b"one")], b"one", 3);
        let place = content_in(&store);
        let failed = |name: &str| {
            let into = folder.path().join(name);
            std::fs::create_dir(&into).unwrap();
            let into = open_folder(&into).unwrap();
            plant(&context, into, &CancellationToken::new()).unwrap_err()
        };
        std::fs::remove_file(&place).unwrap();
        let gone = failed("gone");
        assert!(
            matches!(&gone, PlantError::Content { path, .. } if path == "a"),
            "{gone:?}"
        );
        std::fs::write(&place, "on").unwrap();
        let short = failed("short");
        assert!(
            matches!(&short, PlantError::Damaged { path } if path == "a"),
            "{short:?}"
        );
    }

    #[test]
    fn one_file_is_opened_by_its_path() {
        let (_folder, store) = store();
        let entries = [
            file("context.tar", 0o600, b"one"),
            entry("link", 0o777, EntryKind::Symlink(b"context.tar".to_vec())),
        ];
        let context = uploaded(&store, &entries, b"one", 3);
        let text = io::read_to_string(open_file(&context, b"context.tar").unwrap()).unwrap();
        assert_eq!(text, "one");
        for path in [&b"link"[..], b"", b"/context.tar", b"../store"] {
            assert!(matches!(
                open_file(&context, path),
                Err(PlantError::NoFile { .. })
            ));
        }
    }

    #[test]
    fn a_build_that_is_cancelled_makes_nothing_more() {
        let (folder, store) = store();
        let context = uploaded(&store, &[file("a", 0o600, b"one")], b"one", 3);
        let cancel = CancellationToken::new();
        cancel.cancel();
        let into = open_folder(folder.path()).unwrap();
        assert!(matches!(
            plant(&context, into, &cancel),
            Err(PlantError::Cancelled)
        ));
        assert!(!folder.path().join("a").exists());
    }
}
