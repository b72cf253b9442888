//! The init layer: one thin overlay layer on top of a base that makes the places we mount on what they should be.
//!
//! A base image decides what `/dev`, `/proc`, `/sys` and `/etc/resolv.conf` are, and may make them symlinks to somewhere
//! else, sockets or devices. The layer made here hides whatever is not a plain directory or file behind one that is. It is
//! stacked as the highest lower layer of a step's root filesystem, so the launcher mounts on known ground and nothing in
//! a base redirects it.
//!
//! It never becomes part of an image: everything in it is mounted over while a command runs, and so cannot be copied up;
//! only the directories above can, which is why they carry the attributes of the base's own. So the places of a step's own mounts are
//! made here as well: what was not there before the mount is not there after it, and nobody has to clean up after a command.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
};
use rustix::io::Errno;

use crate::rootfs::root::Root;

/// The directories the kernel's filesystems are mounted on.
const DIRECTORIES: [&str; 3] = ["dev", "proc", "sys"];
/// The directory of the files below, unless it is a link.
const ETC: &str = "etc";
/// The files of `/etc` that are mounted over.
const FILES: [&str; 3] = ["resolv.conf", "hosts", "hostname"];

/// Why an init layer could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitLayerError {
    /// The base could not be looked at.
    #[error("look at /{path} of the base")]
    Look {
        /// Where, relative to the root.
        path: String,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// The layer could not be written.
    #[error("make /{path} of the init layer")]
    Make {
        /// Where, relative to the root.
        path: String,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
}

/// Something that has to be there to be mounted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// From the root, without links, `.`, `..` and a leading slash.
    pub path: String,
    /// What it has to be.
    pub kind: PlaceKind,
}

/// What is mounted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlaceKind {
    /// A directory.
    Directory,
    /// A file.
    File,
}

/// Fills the empty directory `dir` with the init layer for a base, which `view` shows merged and read-only, and with those of `places`
/// that the base does not have. Returns where `/etc` is: from the root, without links.
///
/// No link of the base is followed, but for `/etc` if that is one and leads to a directory of the base; and no file of the base is
/// opened for its data.
pub fn prepare_init_layer(
    view: BorrowedFd<'_>,
    dir: &Path,
    places: &[Place],
) -> Result<String, InitLayerError> {
    let layer = open_directory(CWD, dir).map_err(made(""))?;
    for path in DIRECTORIES {
        let like = look(view, path)?.filter(is_directory);
        make_directory(layer.as_fd(), path, like.as_ref())?;
    }
    let etc = place_of_etc(view)?;
    let (mut parents, mut own_etc) = (BTreeMap::new(), None);
    if etc == ETC {
        let like = look(view, ETC)?.filter(is_directory);
        let made = make_directory(layer.as_fd(), ETC, like.as_ref())?;
        own_etc = like.map(|like| (made, like));
    }
    for name in FILES {
        let place = Place {
            path: format!("{etc}/{name}"),
            kind: PlaceKind::File,
        };
        // Only what is wrong is hidden: a file of the base that is one may serve as the place to mount on itself.
        if !look(view, &place.path)?.is_some_and(|stat| is_file(&stat)) {
            make_place(view, layer.as_fd(), &place, &mut parents)?;
        }
    }
    for place in places {
        if look(view, &place.path)?.is_none() {
            make_place(view, layer.as_fd(), place, &mut parents)?;
        }
    }
    for (path, like) in &parents {
        let mirrored = open_directory(layer.as_fd(), path.as_str())
            .and_then(|parent| mirror(parent.as_fd(), like));
        mirrored.map_err(made(path))?;
    }
    // Last: making entries has changed the times.
    if let Some((made_etc, like)) = own_etc {
        mirror(made_etc.as_fd(), &like).map_err(made(ETC))?;
    }
    let root = look(view, ".")?;
    if let Some(root) = root {
        mirror(layer.as_fd(), &root).map_err(made(""))?;
    }
    Ok(etc)
}

/// Returns where `/etc` leads in the base. What leads to no directory, or into one that is mounted over, is hidden by a directory.
fn place_of_etc(view: BorrowedFd<'_>) -> Result<String, InitLayerError> {
    let is_link = |stat: Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    if !look(view, ETC)?.is_some_and(is_link) {
        return Ok(ETC.to_owned());
    }
    let failed = |source| InitLayerError::Look {
        path: ETC.to_owned(),
        source,
    };
    let view_of_ours = Root::from_fd(view.try_clone_to_owned().map_err(failed)?);
    // What cannot be followed, a loop for one, leads nowhere.
    let leads = view_of_ours.resolve(Path::new(ETC)).ok();
    let path = leads.and_then(|path| path.into_os_string().into_string().ok());
    let path = path.filter(|path| {
        let first = path.split('/').next().unwrap_or_default();
        !first.is_empty() && !DIRECTORIES.contains(&first)
    });
    Ok(match path {
        Some(path) if look(view, &path)?.is_some_and(|stat| is_directory(&stat)) => path,
        _ => ETC.to_owned(),
    })
}

fn made(path: &str) -> impl FnOnce(io::Error) -> InitLayerError {
    let path = path.to_owned();
    move |source| InitLayerError::Make { path, source }
}

/// Makes `place`, over whatever the base has there; adds directories above it that the base has to `parents`.
fn make_place(
    view: BorrowedFd<'_>,
    layer: BorrowedFd<'_>,
    place: &Place,
    parents: &mut BTreeMap<String, Stat>,
) -> Result<(), InitLayerError> {
    let fail = || made(&place.path);
    let mut directory = open_directory(layer, ".").map_err(fail())?;
    let mut here = String::new();
    let mut names = place.path.split('/').peekable();
    while let Some(name) = names.next() {
        here.push_str(name);
        if names.peek().is_none() && place.kind == PlaceKind::File {
            return match make_file(directory.as_fd(), name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                other => other.map_err(fail()),
            };
        }
        match rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                directory = open_directory(directory.as_fd(), name).map_err(fail())?;
                match look(view, &here)?.filter(is_directory) {
                    Some(stat) => drop(parents.insert(here.clone(), stat)),
                    None => rustix::fs::fchmod(&directory, Mode::from_raw_mode(0o755))
                        .map_err(|errno| fail()(errno.into()))?,
                }
            }
            Err(Errno::EXIST) => {
                directory = open_directory(directory.as_fd(), name).map_err(fail())?;
            }
            Err(errno) => return Err(fail()(errno.into())),
        }
        here.push('/');
    }
    Ok(())
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

fn look(view: BorrowedFd<'_>, path: &str) -> Result<Option<Stat>, InitLayerError> {
    stat_without_links(view, path).map_err(|source| InitLayerError::Look {
        path: path.to_owned(),
        source,
    })
}

fn stat_without_links(view: BorrowedFd<'_>, path: &str) -> io::Result<Option<Stat>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(view, path, flags, Mode::empty(), resolve) {
        Ok(fd) => Ok(Some(rustix::fs::statat(&fd, "", AtFlags::EMPTY_PATH)?)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn open_directory(at: BorrowedFd<'_>, path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, path, flags, Mode::empty())?)
}

fn make_directory(
    layer: BorrowedFd<'_>,
    path: &str,
    like: Option<&Stat>,
) -> Result<OwnedFd, InitLayerError> {
    let make = || {
        rustix::fs::mkdirat(layer, path, Mode::from_raw_mode(0o755))?;
        let directory = open_directory(layer, path)?;
        match like {
            Some(stat) => mirror(directory.as_fd(), stat)?,
            // The umask had its say in the mode above.
            None => rustix::fs::fchmod(&directory, Mode::from_raw_mode(0o755))?,
        }
        Ok(directory)
    };
    make().map_err(made(path))
}

fn make_file(etc: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(etc, name, flags, Mode::from_raw_mode(0o644))?;
    Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644))?)
}

/// Gives `made` the owner, mode and modification time of `like`.
fn mirror(made: BorrowedFd<'_>, like: &Stat) -> io::Result<()> {
    rustix::fs::fchown(
        made,
        Some(Uid::from_raw(like.st_uid)),
        Some(Gid::from_raw(like.st_gid)),
    )?;
    rustix::fs::fchmod(made, Mode::from_raw_mode(like.st_mode & 0o7777))?;
    let time = Timespec {
        tv_sec: like.st_mtime,
        tv_nsec: like.st_mtime_nsec.cast_signed(),
    };
    Ok(rustix::fs::futimens(
        made,
        &Timestamps {
            last_access: time,
            last_modification: time,
        },
    )?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
    use std::path::PathBuf;

    use super::*;

    /// A base beside a canary directory that nothing may touch.
    struct Case {
        dir: tempfile::TempDir,
    }

    impl Case {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for part in ["base", "init", "canary"] {
                std::fs::create_dir(dir.path().join(part)).unwrap();
            }
            std::fs::write(dir.path().join("canary/ptmx"), "canary").unwrap();
            Self { dir }
        }

        fn path(&self, path: &str) -> PathBuf {
            self.dir.path().join(path)
        }

        fn prepare(&self) {
            let view = open_directory(CWD, self.path("base").as_path()).unwrap();
            prepare_init_layer(view.as_fd(), &self.path("init"), &[]).unwrap();
            let canary: Vec<_> = std::fs::read_dir(self.path("canary"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            assert_eq!(canary, ["ptmx"]);
            assert_eq!(std::fs::read(self.path("canary/ptmx")).unwrap(), b"canary");
            for directory in ["dev", "proc", "sys", "etc"] {
                let kind = std::fs::symlink_metadata(self.path("init").join(directory)).unwrap();
                assert!(kind.is_dir(), "{directory}");
            }
        }
    }

    #[test]
    fn an_empty_base_gets_every_place_to_mount_on() {
        let case = Case::new();
        case.prepare();
        for file in FILES {
            let metadata = std::fs::symlink_metadata(case.path("init/etc").join(file)).unwrap();
            assert!(metadata.is_file() && metadata.len() == 0 && metadata.mode() & 0o7777 == 0o644);
        }
        assert_eq!(
            std::fs::metadata(case.path("init/dev")).unwrap().mode() & 0o7777,
            0o755
        );
    }

    #[test]
    fn links_and_files_where_directories_belong_are_hidden_and_not_followed() {
        for (path, target) in [
            ("dev", "canary"),
            ("proc", "../canary"),
            ("sys", "/"),
            ("etc", "../../canary"),
        ] {
            let case = Case::new();
            let absolute = case.path("canary");
            let target = if target == "canary" {
                absolute.as_path()
            } else {
                Path::new(target)
            };
            symlink(target, case.path("base").join(path)).unwrap();
            case.prepare();
        }
        let case = Case::new();
        for path in ["dev", "proc", "sys", "etc"] {
            std::fs::write(case.path("base").join(path), "a file").unwrap();
        }
        case.prepare();
    }

    #[test]
    fn an_etc_that_is_a_link_stays_one_and_its_files_are_where_it_leads() {
        for target in [
            "usr/etc",
            "/usr/./etc",
            "../../usr/share/../etc",
            "/linked/etc",
        ] {
            let case = Case::new();
            std::fs::create_dir_all(case.path("base/usr/etc")).unwrap();
            std::fs::create_dir(case.path("base/usr/share")).unwrap();
            symlink("usr", case.path("base/linked")).unwrap();
            symlink(target, case.path("base/etc")).unwrap();
            std::fs::write(case.path("base/usr/etc/hosts"), "mine").unwrap();
            symlink("/run/resolv.conf", case.path("base/usr/etc/resolv.conf")).unwrap();
            let mode = std::fs::Permissions::from_mode(0o2751);
            std::fs::set_permissions(case.path("base/usr/etc"), mode).unwrap();
            let view = open_directory(CWD, case.path("base").as_path()).unwrap();
            let etc = prepare_init_layer(view.as_fd(), &case.path("init"), &[]).unwrap();
            assert_eq!(etc, "usr/etc", "{target}");
            assert!(std::fs::symlink_metadata(case.path("init/etc")).is_err());
            let entries = std::fs::read_dir(case.path("init/usr/etc")).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            assert_eq!(names, ["hostname", "resolv.conf"], "{target}");
            let mode = std::fs::metadata(case.path("init/usr/etc")).unwrap().mode();
            assert_eq!(mode & 0o7777, 0o2751);
        }
    }

    #[test]
    fn an_etc_that_leads_nowhere_or_to_what_is_mounted_over_is_hidden() {
        for target in [
            "etc", "/", "..", "missing", "dev/etc", "/proc/1", "file", "sys",
        ] {
            let case = Case::new();
            std::fs::create_dir_all(case.path("base/dev/etc")).unwrap();
            std::fs::create_dir_all(case.path("base/proc/1")).unwrap();
            std::fs::create_dir(case.path("base/sys")).unwrap();
            std::fs::write(case.path("base/file"), "").unwrap();
            symlink(target, case.path("base/etc")).unwrap();
            case.prepare();
            for file in FILES {
                assert!(case.path("init/etc").join(file).is_file(), "{target}");
            }
        }
    }

    #[test]
    fn whatever_is_not_a_file_where_a_file_belongs_is_hidden_by_one() {
        let case = Case::new();
        std::fs::create_dir(case.path("base/etc")).unwrap();
        symlink(case.path("canary/new"), case.path("base/etc/resolv.conf")).unwrap();
        std::fs::create_dir(case.path("base/etc/hosts")).unwrap();
        rustix::fs::mknodat(
            CWD,
            case.path("base/etc/hostname"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        case.prepare();
        for file in FILES {
            let metadata = std::fs::symlink_metadata(case.path("init/etc").join(file)).unwrap();
            assert!(metadata.is_file() && !metadata.file_type().is_fifo());
        }
    }

    #[test]
    fn places_of_mounts_are_made_below_directories_that_look_like_the_base_s_own() {
        let case = Case::new();
        std::fs::create_dir_all(case.path("base/srv/there")).unwrap();
        let srv = std::fs::Permissions::from_mode(0o2751);
        std::fs::set_permissions(case.path("base/srv"), srv).unwrap();
        let place = |path: &str, kind| Place {
            path: path.to_owned(),
            kind,
        };
        let view = open_directory(CWD, case.path("base").as_path()).unwrap();
        let places = [
            place("srv/there", PlaceKind::Directory),
            place("srv/new/file", PlaceKind::File),
            place("srv/new/dir", PlaceKind::Directory),
            place("etc/token", PlaceKind::File),
        ];
        prepare_init_layer(view.as_fd(), &case.path("init"), &places).unwrap();
        assert!(!case.path("init/srv/there").exists());
        assert!(case.path("init/srv/new/file").is_file() && case.path("init/etc/token").is_file());
        assert!(case.path("init/srv/new/dir").is_dir());
        let (made, base) = (case.path("init/srv"), case.path("base/srv"));
        let (made, base) = (
            std::fs::metadata(made).unwrap(),
            std::fs::metadata(base).unwrap(),
        );
        assert_eq!(made.mode(), base.mode());
        assert_eq!(
            (made.mtime(), made.mtime_nsec()),
            (base.mtime(), base.mtime_nsec())
        );
    }

    #[test]
    fn a_base_that_is_as_it_should_be_keeps_its_attributes_and_files() {
        let case = Case::new();
        std::fs::create_dir(case.path("base/etc")).unwrap();
        for file in FILES {
            std::fs::write(case.path("base/etc").join(file), "mine").unwrap();
        }
        std::fs::set_permissions(
            case.path("base/etc"),
            std::fs::Permissions::from_mode(0o2751),
        )
        .unwrap();
        std::fs::set_permissions(case.path("base"), std::fs::Permissions::from_mode(0o711))
            .unwrap();
        let time = Timespec {
            tv_sec: 86_400,
            tv_nsec: 7,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, case.path("base/etc"), &times, AtFlags::empty()).unwrap();
        case.prepare();
        let etc = std::fs::metadata(case.path("init/etc")).unwrap();
        assert_eq!(
            (etc.mode() & 0o7777, etc.mtime(), etc.mtime_nsec()),
            (0o2751, 86_400, 7)
        );
        assert_eq!(
            std::fs::metadata(case.path("init")).unwrap().mode() & 0o7777,
            0o711
        );
        assert_eq!(std::fs::read_dir(case.path("init/etc")).unwrap().count(), 0);
    }
}
