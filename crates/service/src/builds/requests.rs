//! Requests of builds, as they can be made once more: a file for each, without anything secret.
//!
//! They lie with the server and not in the folders of builds, which belong to workers: what is asked once more is what was asked. What they
//! say is not known here. They go with their builds.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use engine::id::BuildId;

/// Largest request that is kept.
pub const REQUEST_MAX_BYTES: usize = 1 << 20;
/// What the names of files that are not whole end with.
const DRAFT: &str = "draft";

/// All of them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Requests {
    folder: PathBuf,
}

impl Requests {
    /// Returns those in `folder`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(folder: &Path) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    fn path(&self, id: &BuildId) -> PathBuf {
        self.folder.join(id.as_str())
    }

    /// Keeps the request of a build, unless there is one already or it is too large. A crash of the machine may lose it: then the build
    /// cannot be asked for once more, and nothing else is lost.
    ///
    /// # Errors
    /// What the system says.
    pub fn keep(&self, id: &BuildId, request: &[u8]) -> io::Result<()> {
        let path = self.path(id);
        if request.len() > REQUEST_MAX_BYTES || path.exists() {
            return Ok(());
        }
        let draft = path.with_extension(DRAFT);
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let written = options
            .open(&draft)
            .and_then(|mut file| file.write_all(request))
            .and_then(|()| fs::rename(&draft, &path));
        written.inspect_err(|_| {
            // Nothing was kept: nothing is to be left.
            let _gone = fs::remove_file(&draft);
        })
    }

    /// Returns the request of a build; `None` when it is not kept.
    ///
    /// # Errors
    /// What the system says.
    pub fn read(&self, id: &BuildId) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.path(id)) {
            Ok(request) => Ok(Some(request)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Forgets the request of a build.
    ///
    /// # Errors
    /// What the system says.
    pub fn forget(&self, id: &BuildId) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Forgets every request whose build is not among `known`: a crash may have left it.
    ///
    /// # Errors
    /// What the system says.
    pub fn forget_others(&self, known: &HashSet<BuildId>) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.parse().ok());
            if id.is_none_or(|id| !known.contains(&id)) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_kept_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let requests = Requests::open(folder.path()).unwrap();
        let [one, two] = [1, 2].map(|n| BuildId::from_random([n; 16]));
        requests.keep(&one, b"one").unwrap();
        requests.keep(&one, b"other").unwrap();
        assert_eq!(requests.read(&one).unwrap().as_deref(), Some(&b"one"[..]));
        requests
            .keep(&two, &vec![0; REQUEST_MAX_BYTES + 1])
            .unwrap();
        assert_eq!(requests.read(&two).unwrap(), None);
        requests.keep(&two, b"two").unwrap();
        fs::write(folder.path().join("left.draft"), "x").unwrap();
        requests
            .forget_others(&HashSet::from([two.clone()]))
            .unwrap();
        assert_eq!(requests.read(&one).unwrap(), None);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        for _ in 0..2 {
            requests.forget(&two).unwrap();
        }
        assert_eq!(requests.read(&two).unwrap(), None);
    }
}
