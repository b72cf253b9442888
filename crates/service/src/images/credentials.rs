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

use crate::access::EcrHost;

/// Largest file that is read.
const FILE_MAX_BYTES: u64 = 4 << 20;

/// How long a credential helper may take.
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);

/// The helper that knows Amazon's registries; it keeps its tokens, one per account and region, until they expire.
const ECR_HELPER: &str = "ecr-login";

/// Whether Amazon's registries have credentials of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ecr {
    /// They are registries like any other.
    #[default]
    Ignore,
    /// `docker-credential-ecr-login` is asked for those that the file knows nothing of.
    Ask,
}

/// The credentials in a file that may change.
#[derive(Debug, Default)]
pub struct Credentials {
    path: Option<PathBuf>,
    ecr: Ecr,
    last: Mutex<Option<(Stamp, Arc<DockerConfig>)>>,
}

/// What changes when a file does, also when it is replaced by renaming or by moving a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Stamp {
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
    /// The helper of Amazon's registries cannot be asked.
    #[error("fetch a token for {host}")]
    Ecr {
        /// Which registry.
        host: String,
        /// Why.
        #[source]
        source: DockerConfigError,
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
    /// Returns the credentials in the file at `path`, if there is one, and of Amazon's registries, if they are to be asked for.
    pub fn new(path: Option<PathBuf>, ecr: Ecr) -> Self {
        Self {
            path,
            ecr,
            last: Mutex::default(),
        }
    }

    /// Returns what changes when the file does; `None` when there is none.
    pub(super) fn stamp(&self) -> Result<Option<Stamp>, CredentialsError> {
        let stamp = |path: &PathBuf| match std::fs::metadata(path) {
            Ok(metadata) => Ok(Stamp::of(&metadata)),
            Err(source) => Err(CredentialsError::Read {
                path: path.clone(),
                source,
            }),
        };
        self.path.as_ref().map(stamp).transpose()
    }

    /// Returns everything that stands in the file, and what its helpers say about `hosts`.
    pub async fn keychain(&self, hosts: &[&str]) -> Result<Keychain, CredentialsError> {
        let mut keychain = match self.path.clone() {
            Some(path) => self.in_file(path, hosts).await?,
            None => Keychain::empty(),
        };
        if self.ecr == Ecr::Ask {
            for host in hosts {
                // Whole hosts, taken apart: a look-alike never gets to see a token.
                if EcrHost::parse(host).is_some() && keychain.get(host).is_none() {
                    keychain.merge(of_ecr(host).await?);
                }
            }
        }
        Ok(keychain)
    }

    async fn in_file(&self, path: PathBuf, hosts: &[&str]) -> Result<Keychain, CredentialsError> {
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

/// Asks the helper of Amazon's registries for the credential of `host`.
async fn of_ecr(host: &str) -> Result<Keychain, CredentialsError> {
    let in_error = |source| CredentialsError::Ecr {
        host: host.to_owned(),
        source,
    };
    let document = serde_json::json!({"credHelpers": {host: ECR_HELPER}});
    let config = DockerConfig::parse(document.to_string().as_bytes()).map_err(in_error)?;
    let asked = config.keychain_for(&[host], HELPER_TIMEOUT).await;
    asked.map_err(in_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_helper_of_amazon_is_asked_for_amazon_s_hosts_and_for_no_look_alike() {
        let credentials = Credentials::new(None, Ecr::Ask);
        let real = "123456789012.dkr.ecr.eu-central-1.amazonaws.com";
        let fake = format!("{real}.evil.example");
        assert!(
            credentials
                .keychain(&[&fake, "docker.io"])
                .await
                .unwrap()
                .hosts()
                .next()
                .is_none()
        );
        // The helper is not installed where tests run: that it was asked for is told by the error.
        let error = credentials.keychain(&[real]).await.unwrap_err();
        let text = crate::failure::chain(&error);
        assert!(
            text.contains(real) && text.contains("docker-credential-ecr-login"),
            "{text}"
        );
        let ignoring = Credentials::new(None, Ecr::Ignore);
        assert!(
            ignoring
                .keychain(&[real])
                .await
                .unwrap()
                .hosts()
                .next()
                .is_none()
        );
    }

    #[tokio::test]
    async fn a_file_that_changes_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let credentials = Credentials::new(Some(path.clone()), Ecr::Ignore);
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
