//! What the tests of this module share: a directory with a canary beside it, archives in one line per entry, and listings.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use oci::tar::{Entry, Kind, Writer};
use tokio_util::sync::CancellationToken;

use super::unpack::{UnpackError, UnpackLimits, UnpackReport, unpack};

/// A place for a test: `canary/` must stay as it is, whatever is done in the rest.
pub(super) struct Place {
    dir: tempfile::TempDir,
    canary: String,
}

impl Place {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let canary = dir.path().join("canary");
        fs::create_dir(&canary).unwrap();
        fs::write(canary.join("secret"), "do not read, do not change").unwrap();
        fs::set_permissions(canary.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir(canary.join("sub")).unwrap();
        let mut this = Self {
            dir,
            canary: String::new(),
        };
        this.canary = listing(&this.path("canary"));
        this
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a directory.
    pub(super) fn dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    pub(super) fn canary(&self) -> PathBuf {
        self.path("canary")
    }
}

/// A device file with device 1:5. In a user namespace, where none can be made, the host's is mounted in its place.
pub(super) struct Device {
    path: PathBuf,
    is_mounted: bool,
}

impl Device {
    pub(super) fn zero(path: PathBuf) -> Self {
        use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
        let made = mknodat(
            CWD,
            &path,
            FileType::CharacterDevice,
            Mode::RUSR,
            makedev(1, 5),
        );
        if made.is_err() {
            fs::write(&path, "").unwrap();
            rustix::mount::mount_bind("/dev/zero", &path).unwrap();
        }
        Self {
            path,
            is_mounted: made.is_err(),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.is_mounted {
            rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH).unwrap();
        }
    }
}

/// Tells whether this process is root of the host, not just of a user namespace.
pub(super) fn is_host_root() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let now = listing(&self.path("canary"));
            assert_eq!(now, self.canary, "the canary was touched");
        }
    }
}

/// Lists a tree, one line per file: path, kind and mode, owner, time of files, target or content.
pub(super) fn listing(top: &Path) -> String {
    let mut lines = Vec::new();
    let mut pending = vec![top.to_owned()];
    while let Some(dir) = pending.pop() {
        for found in fs::read_dir(&dir).unwrap() {
            let path = found.unwrap().path();
            let shown = path.strip_prefix(top).unwrap().display().to_string();
            let metadata = path.symlink_metadata().unwrap();
            let mode = metadata.mode() & 0o7777;
            let owner = format!("{}:{}", metadata.uid(), metadata.gid());
            let kind = metadata.file_type();
            let line = if kind.is_dir() {
                pending.push(path);
                format!("{shown}/ {mode:o} {owner}")
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                format!("{shown} -> {} {owner}", target.display())
            } else if kind.is_char_device() && metadata.rdev() == 0 {
                format!("{shown} whiteout")
            } else if kind.is_fifo() {
                format!("{shown} pipe {mode:o} {owner}")
            } else {
                let content = fs::read(&path).unwrap();
                let content = String::from_utf8_lossy(&content).into_owned();
                format!("{shown} {mode:o} {owner} {content:?}")
            };
            lines.push(line);
        }
    }
    lines.sort();
    lines.join("\n")
}

pub(super) fn file(path: &str, content: &str) -> (Entry, Vec<u8>) {
    let mut entry = Entry::new(path, Kind::File);
    entry.mode = 0o644;
    entry.size = content.len() as u64;
    (entry, content.into())
}

pub(super) fn directory(path: &str, mode: u32) -> (Entry, Vec<u8>) {
    let mut entry = Entry::new(path, Kind::Directory);
    entry.mode = mode;
    (entry, Vec::new())
}

pub(super) fn link(kind: Kind, path: &str, target: impl AsRef<Path>) -> (Entry, Vec<u8>) {
    let mut entry = Entry::new(path, kind);
    entry.link = target.as_ref().as_os_str().as_encoded_bytes().to_vec();
    (entry, Vec::new())
}

pub(super) fn symlink(path: &str, target: impl AsRef<Path>) -> (Entry, Vec<u8>) {
    link(Kind::Symlink, path, target)
}

pub(super) fn with_xattrs(
    (mut entry, content): (Entry, Vec<u8>),
    xattrs: &[(&str, &[u8])],
) -> (Entry, Vec<u8>) {
    let pairs = xattrs.iter();
    let pairs = pairs.map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec()));
    entry.xattrs = pairs.collect::<BTreeMap<_, _>>();
    (entry, content)
}

pub(super) fn archive(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, content) in entries {
        writer.append(entry, &mut &content[..]).unwrap();
    }
    writer.finish().unwrap()
}

pub(super) fn unpack_into(
    dest: &Path,
    entries: &[(Entry, Vec<u8>)],
) -> Result<UnpackReport, UnpackError> {
    let archive = archive(entries);
    let limits = UnpackLimits::default();
    unpack(&archive[..], dest, &limits, &CancellationToken::new())
}

/// Returns an attribute of a file of this machine.
pub(super) fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 4096];
    let n = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(n);
    Some(value)
}
