//! The service's own registry credentials: a docker configuration file, read again when it changes.
//!
//! Looked at on every use instead of watched: one `stat` for a request that goes on to talk to a registry. A file that has become
//! unreadable or nonsensical is an error of that request, not a reason to go on with what it used to say.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use registry::keychain::Keychain;
use registry::keychain::docker::{DockerConfig, DockerConfigError};

/// Largest file that is read.
const FILE_MAX_BYTES: u64 = 4 << 20;

/// How long a credential helper may take.
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);

/// The credentials in a file that may change.
#[derive(Debug, Default)]
pub struct Credentials {
    path: Option<PathBuf>,
    last: Mutex<Option<(Stamp, Arc<DockerConfig>)>>,
}

/// What changes when a file does, also when it is replaced by renaming or by moving a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Tells why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be read.
    #[error("read pull secret file {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file makes no sense.
    #[error("use pull secret file {}", path.display())]
    Parse {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: DockerConfigError,
    },
}

impl Credentials {
    /// Returns the credentials in the file at `path`; none without one.
    pub fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            last: Mutex::default(),
        }
    }

    /// Returns everything that stands in the file, and what its helpers say about `hosts`.
    pub async fn keychain(&self, hosts: &[&str]) -> Result<Keychain, CredentialsError> {
        let Some(path) = self.path.clone() else {
            return Ok(Keychain::empty());
        };
        let config = self.load(&path)?;
        let asked = config.keychain_for(hosts, HELPER_TIMEOUT).await;
        let mut keychain = asked.map_err(|source| CredentialsError::Parse { path, source })?;
        keychain.merge(config.keychain().clone());
        Ok(keychain)
    }

    fn load(&self, path: &Path) -> Result<Arc<DockerConfig>, CredentialsError> {
        let read_error = |source| CredentialsError::Read {
            path: path.to_owned(),
            source,
        };
        let metadata = std::fs::metadata(path).map_err(read_error)?;
        let stamp = Stamp::of(&metadata);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((seen, config)) = &*last
            && *seen == stamp
        {
            return Ok(Arc::clone(config));
        }
        if metadata.len() > FILE_MAX_BYTES {
            return Err(read_error(io::ErrorKind::FileTooLarge.into()));
        }
        let bytes = std::fs::read(path).map_err(read_error)?;
        let parsed = DockerConfig::parse(&bytes).map_err(|source| CredentialsError::Parse {
            path: path.to_owned(),
            source,
        })?;
        let config = Arc::new(parsed);
        *last = Some((stamp, Arc::clone(&config)));
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_changes_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let credentials = Credentials::new(Some(path.clone()));
        assert!(credentials.keychain(&[]).await.is_err());
        // "a:b" and "a:c"
        for (host, auth) in [("one.example", "YTpi"), ("two.example", "YTpj")] {
            let text = format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#);
            std::fs::write(&path, text).unwrap();
            let keychain = credentials.keychain(&[]).await.unwrap();
            assert_eq!(keychain.hosts().collect::<Vec<_>>(), [host]);
        }
        std::fs::write(&path, "nonsense").unwrap();
        assert!(credentials.keychain(&[]).await.is_err());
    }
}
