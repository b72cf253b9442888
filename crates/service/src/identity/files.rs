//! A file of tokens, one a line; empty lines and those that begin with `#` are none.

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::config::TokenHash;
use crate::failure::chain;

/// Largest file that is read.
const FILE_MAX_BYTES: u64 = 1 << 20;
/// Shortest token: one that cannot be guessed.
const TOKEN_MIN_BYTES: usize = 24;
/// Longest token: it must fit into a header.
const TOKEN_MAX_BYTES: usize = 4096;

/// Tells why a file of tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// It cannot be read.
    #[error("read the tokens in {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line is no token. What it is instead is not said: it may be one.
    #[error(
        "read the tokens in {}: line {line} is not one token of {TOKEN_MIN_BYTES} to {TOKEN_MAX_BYTES} printable characters",
        path.display()
    )]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
    },
}

/// A file of tokens, and what it held when it was last read.
#[derive(Debug)]
pub(super) struct TokenFile {
    path: PathBuf,
    last: Mutex<Last>,
}

#[derive(Debug)]
struct Last {
    /// `None` when it could not be read.
    stamp: Option<Stamp>,
    hashes: Vec<TokenHash>,
}

/// What is another one when the file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: (u64, u64),
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(found: &Metadata) -> Self {
        Self {
            inode: (found.dev(), found.ino()),
            size: found.size(),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

impl TokenFile {
    /// Reads it for the first time.
    pub(super) fn open(path: &Path) -> Result<Self, TokenFileError> {
        let (stamp, hashes) = read(path)?;
        let last = Last {
            stamp: Some(stamp),
            hashes,
        };
        Ok(Self {
            path: path.to_owned(),
            last: Mutex::new(last),
        })
    }

    /// Returns the tokens that it holds.
    pub(super) fn hashes(&self) -> Vec<TokenHash> {
        self.last().hashes.clone()
    }

    /// Reads it again when it is another one. Tells whether it was.
    pub(super) fn look(&self, caller: &str) -> bool {
        let mut last = self.last();
        let now = fs::metadata(&self.path).map(|found| Stamp::of(&found));
        if matches!((&last.stamp, &now), (Some(last), Ok(now)) if last == now) {
            return false;
        }
        match read(&self.path) {
            Ok((stamp, hashes)) => {
                tracing::info!(caller, n = hashes.len(), "tokens were read again");
                last.stamp = Some(stamp);
                last.hashes = hashes;
            }
            Err(error) => {
                // Said once, not every second.
                if last.stamp.is_some() || !last.hashes.is_empty() {
                    tracing::error!(
                        caller,
                        error = chain(&error),
                        "nobody gets in by these tokens"
                    );
                }
                last.stamp = None;
                last.hashes = Vec::new();
            }
        }
        true
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Path) -> Result<(Stamp, Vec<TokenHash>), TokenFileError> {
    let failed = |source| TokenFileError::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(failed)?;
    let stamp = Stamp::of(&file.metadata().map_err(failed)?);
    if stamp.size > FILE_MAX_BYTES {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    let mut bytes = Vec::new();
    let mut limited = file.by_ref().take(FILE_MAX_BYTES);
    limited.read_to_end(&mut bytes).map_err(failed)?;
    let mut hashes = Vec::new();
    for (line, text) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let token = text.trim_ascii();
        if token.is_empty() || token.starts_with(b"#") {
            continue;
        }
        let fits = (TOKEN_MIN_BYTES..=TOKEN_MAX_BYTES).contains(&token.len());
        if !fits || !token.iter().all(u8::is_ascii_graphic) {
            let path = path.to_owned();
            return Err(TokenFileError::Line { path, line });
        }
        hashes.push(TokenHash::of(token));
    }
    Ok((stamp, hashes))
}
