//! Directories for one test.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A directory that is removed when this is dropped.
#[derive(Debug)]
pub struct Scratch(TempDir);

impl Scratch {
    /// Makes a new directory.
    #[must_use]
    pub fn new() -> Self {
        // Workers of root run as somebody else and walk through here.
        let passable = std::fs::Permissions::from_mode(0o711);
        let directory = tempfile::Builder::new()
            .prefix("kiln-test-")
            .permissions(passable)
            .tempdir();
        Self(directory.unwrap_or_else(|error| panic!("make a scratch directory: {error}")))
    }

    /// Returns the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Returns the path of `name` in the directory.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file, with the directories it needs, and returns its path.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        let written = path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(&path, content));
        written.unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
        path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mounts = mounts_below(self.path());
        if mounts.is_empty() && std::fs::remove_dir_all(self.path()).is_err() {
            // An ordinary user's workers leave files of his subordinate ids; in a namespace that has them they are his.
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-auto", "--map-root-user", "rm", "-rf"]);
            let _tried = command.arg(self.path()).output();
        }
        if std::thread::panicking() {
            return;
        }
        assert!(
            mounts.is_empty(),
            "still mounted below {}: {mounts:?}",
            self.path().display()
        );
    }
}

/// Returns every mount point below `directory` in this process's mount table.
#[must_use]
pub fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from);
    points
        .filter(|point| point.starts_with(directory))
        .collect()
}
