//! The file that the callers are configured in, read again when it changes: for its callers, and for nothing else.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Callers;
use super::files::Stamp;
use crate::config::{self, ConfigError};
use crate::failure::chain;

/// The file, as it was when it was last looked at.
#[derive(Debug)]
pub(super) struct ConfigFile {
    path: PathBuf,
    /// `None` when it could not be looked at.
    stamp: Option<Stamp>,
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("use {}", path.display())]
    Parse {
        path: PathBuf,
        #[source]
        source: ConfigError,
    },
}

impl ConfigFile {
    /// Takes it to have been read already, as it is now.
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            stamp: fs::metadata(path).ok().map(|found| Stamp::of(&found)),
        }
    }

    /// Reads it when it is another one, and lets its callers in. Who is in stays when it cannot be used.
    pub(super) fn look(&mut self, callers: &Callers) {
        let now = fs::metadata(&self.path).ok().map(|found| Stamp::of(&found));
        // Each state of it is told once.
        if now == self.stamp {
            return;
        }
        self.stamp = now;
        let replaced = self
            .read()
            .map_err(|error| chain(&error))
            .and_then(|found| {
                let replaced = callers.replace(&found);
                replaced
                    .map(|()| found.len())
                    .map_err(|error| chain(&error))
            });
        match replaced {
            Ok(n) => tracing::info!(
                n,
                "callers were read again; what else is configured needs a restart"
            ),
            Err(error) => tracing::error!(error, "callers stay as they were"),
        }
    }

    fn read(&self) -> Result<Vec<config::Caller>, ReadError> {
        let path = || self.path.clone();
        let text = fs::read_to_string(&self.path).map_err(|source| ReadError::Read {
            path: path(),
            source,
        })?;
        let parsed = config::parse(&text).map_err(|source| ReadError::Parse {
            path: path(),
            source,
        })?;
        Ok(parsed.config.callers)
    }
}
