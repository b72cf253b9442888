//! Which builds the image under a name may have come from, kept for as long as there is such an image or a build of the name.
//!
//! The published name of an image does not cover everything that changes what is built. So the service writes down, before a build
//! starts, which inputs ([`crate::names::Inputs::identity`]) go for a name, and the digest once it has succeeded. An image that is
//! found under a name is then reused only by who asks for the same inputs:
//!
//! | the digest under the name | reused |
//! |---|---|
//! | is one that the same inputs of the same tenant made | yes |
//! | is one that other inputs made | no |
//! | is not known, and other inputs were ever started for this name | no |
//! | is not known at all | only by requests that set nothing beyond what the name covers |
//!
//! Not reused means built again, which costs little: steps are cached by content.
//!
//! A name goes when nothing stands under it, no build of it is kept, and nobody has started one meanwhile.

use std::fs::{self, DirBuilder, ReadDir};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use oci::Digest;
use serde::{Deserialize, Serialize};

use crate::whole;

/// Version of the files.
const VERSION: u32 = 1;
/// Most inputs that are remembered for one name; the oldest go first.
const ENTRIES_MAX: usize = 64;
/// Names that can be written at the same time: each waits for the disk, and the disk takes many for the price of one.
const LOCKS: usize = 32;

/// What is known of names. Blocking.
#[derive(Debug)]
pub struct Provenance {
    folder: PathBuf,
    // Files are read, changed and replaced: each by one at a time.
    writing: [Mutex<()>; LOCKS],
}

/// Tells why it is not known where an image came from.
#[derive(Debug, thiserror::Error)]
pub enum ProvenanceError {
    /// A file cannot be read, or makes no sense.
    #[error("read what is known of a name from {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("write what is known of a name to {}", path.display())]
    Write {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Who asks for an image, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// Hash of all inputs and the tenant.
    pub identity: &'a str,
    /// Whether nothing is set beyond what the name covers.
    pub is_plain: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    version: u32,
    name: String,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    identity: String,
    /// Not there until a build of these inputs has succeeded.
    digest: Option<Digest>,
}

/// A name, and what was known of it at some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remembered {
    name: String,
    bytes: Vec<u8>,
}

impl Remembered {
    #[cfg(test)]
    pub(crate) fn of(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            bytes: Vec::new(),
        }
    }

    /// Returns the name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// Returns what is wrong with a file of what is known of names.
pub(crate) fn problem(path: &Path) -> io::Result<Option<String>> {
    let bytes = fs::read(path)?;
    let known: Known = match serde_json::from_slice(&bytes) {
        Ok(known) => known,
        Err(error) => return Ok(Some(error.to_string())),
    };
    let file = format!("{}.json", Digest::sha256(known.name.as_bytes()).hex());
    let is_its = path.file_name().is_some_and(|name| name == file.as_str());
    Ok(if known.version != VERSION {
        Some(format!("it has version {}", known.version))
    } else if is_its {
        None
    } else {
        Some(format!("it is that of another name, {:?}", known.name))
    })
}

impl Provenance {
    /// Keeps what is known in `folder`, which is created when it is not there.
    pub fn open(folder: &Path) -> Result<Self, ProvenanceError> {
        let created = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        created.map_err(|source| ProvenanceError::Write {
            path: folder.to_owned(),
            source,
        })?;
        Ok(Self {
            folder: folder.to_owned(),
            writing: [const { Mutex::new(()) }; LOCKS],
        })
    }

    /// Remembers that a build of these inputs is about to be started for `name`.
    pub fn starts(&self, name: &str, identity: &str) -> Result<(), ProvenanceError> {
        self.change(name, |entries| {
            if !entries.iter().any(|entry| entry.identity == identity) {
                entries.push(Entry {
                    identity: identity.to_owned(),
                    digest: None,
                });
            }
        })
    }

    /// Remembers that these inputs made `digest` and that it stands under `name`.
    pub fn made(&self, name: &str, identity: &str, digest: &Digest) -> Result<(), ProvenanceError> {
        self.change(name, |entries| {
            entries.retain(|entry| entry.identity != identity);
            entries.push(Entry {
                identity: identity.to_owned(),
                digest: Some(digest.clone()),
            });
        })
    }

    /// Tells whether the image that stands under `name` may be given to who claims it.
    pub fn allows(
        &self,
        name: &str,
        digest: &Digest,
        claim: Claim<'_>,
    ) -> Result<bool, ProvenanceError> {
        let entries = self.read(name)?;
        let mut makers = entries
            .iter()
            .filter(|entry| entry.digest.as_ref() == Some(digest))
            .peekable();
        if makers.peek().is_some() {
            return Ok(makers.any(|entry| entry.identity == claim.identity));
        }
        let others = entries.iter().any(|entry| entry.identity != claim.identity);
        Ok(claim.is_plain && !others)
    }

    /// Waits until nobody else writes what is known of a name.
    fn lock(&self, name: &str) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let index = usize::try_from(hasher.finish() % LOCKS as u64);
        let lock = index.ok().and_then(|index| self.writing.get(index));
        let lock = lock.unwrap_or(&self.writing[0]);
        lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, name: &str) -> PathBuf {
        let file = Digest::sha256(name.as_bytes());
        self.folder.join(format!("{}.json", file.hex()))
    }

    fn read(&self, name: &str) -> Result<Vec<Entry>, ProvenanceError> {
        let path = self.path(name);
        let failed = |source| ProvenanceError::Read {
            path: path.clone(),
            source,
        };
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let known: Known = serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))?;
        if known.version != VERSION || known.name != name {
            return Err(failed(io::ErrorKind::InvalidData.into()));
        }
        Ok(known.entries)
    }

    fn change(
        &self,
        name: &str,
        change: impl FnOnce(&mut Vec<Entry>),
    ) -> Result<(), ProvenanceError> {
        let _one_at_a_time = self.lock(name);
        let mut entries = self.read(name)?;
        change(&mut entries);
        if entries.len() > ENTRIES_MAX {
            entries.drain(..entries.len() - ENTRIES_MAX);
        }
        let path = self.path(name);
        let known = Known {
            version: VERSION,
            name: name.to_owned(),
            entries,
        };
        let replaced = serde_json::to_vec(&known)
            .map_err(io::Error::from)
            .and_then(|bytes| whole::replace(&path, &bytes));
        replaced.map_err(|source| ProvenanceError::Write { path, source })
    }

    /// Returns the files, one for each name, in no order.
    pub(crate) fn files(&self) -> io::Result<ReadDir> {
        fs::read_dir(&self.folder)
    }

    /// Returns the name whose file this is; `None` when it is not there any more, or is none.
    pub(crate) fn remembered(&self, file: &Path) -> Option<Remembered> {
        let bytes = fs::read(file).ok()?;
        let known: Known = serde_json::from_slice(&bytes).ok()?;
        let is_its = known.version == VERSION && self.path(&known.name) == file;
        is_its.then_some(Remembered {
            name: known.name,
            bytes,
        })
    }

    /// Forgets a name, unless something has become known of it since it was seen, or it is needed. Tells whether it is forgotten.
    /// Whoever starts a build of the name from now on writes it down anew.
    pub(crate) fn forget(
        &self,
        seen: &Remembered,
        is_needed: impl FnOnce() -> bool,
    ) -> Result<bool, ProvenanceError> {
        let _one_at_a_time = self.lock(&seen.name);
        let path = self.path(&seen.name);
        let is_as_seen = match fs::read(&path) {
            Ok(bytes) => bytes == seen.bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(source) => return Err(ProvenanceError::Read { path, source }),
        };
        if !is_as_seen || is_needed() {
            return Ok(false);
        }
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(source) => Err(ProvenanceError::Write { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "registry.example/workspace-images:tag";

    fn plain(identity: &str) -> Claim<'_> {
        Claim {
            identity,
            is_plain: true,
        }
    }

    fn special(identity: &str) -> Claim<'_> {
        Claim {
            identity,
            is_plain: false,
        }
    }

    #[test]
    fn an_image_is_reused_by_the_same_inputs_only() {
        let folder = tempfile::tempdir().unwrap();
        let names = Provenance::open(&folder.path().join("names")).unwrap();
        let (ours, theirs) = (Digest::sha256(b"ours"), Digest::sha256(b"theirs"));
        let allows = |digest, claim| names.allows(NAME, digest, claim).unwrap();

        // Nobody knows where it came from: only who sets nothing special takes it.
        assert!(allows(&ours, plain("us")));
        assert!(!allows(&ours, special("us")));

        // Others have started: what stands there now may be theirs.
        names.starts(NAME, "them").unwrap();
        assert!(!allows(&theirs, plain("us")));
        names.made(NAME, "them", &theirs).unwrap();
        assert!(!allows(&theirs, plain("us")));
        assert!(allows(&theirs, special("them")));

        // We built it too: now each takes their own.
        names.starts(NAME, "us").unwrap();
        names.made(NAME, "us", &ours).unwrap();
        assert!(allows(&ours, special("us")));
        assert!(!allows(&theirs, plain("us")));
        assert!(!allows(&ours, plain("them")));

        // Different inputs that made the same image.
        names.made(NAME, "them", &ours).unwrap();
        assert!(allows(&ours, plain("us")));
        assert!(allows(&ours, plain("them")));
    }

    #[test]
    fn what_is_known_survives_a_restart_and_stays_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let digest = Digest::sha256(b"x");
        {
            let names = Provenance::open(folder.path()).unwrap();
            for n in 0..=ENTRIES_MAX {
                names.made(NAME, &format!("{n}"), &digest).unwrap();
            }
        }
        let names = Provenance::open(folder.path()).unwrap();
        assert_eq!(names.read(NAME).unwrap().len(), ENTRIES_MAX);
        assert!(!names.allows(NAME, &digest, plain("0")).unwrap());
        assert!(names.allows(NAME, &digest, plain("1")).unwrap());
    }

    #[test]
    fn a_name_is_forgotten_only_as_it_was_seen_and_when_nobody_needs_it() {
        let folder = tempfile::tempdir().unwrap();
        let names = Provenance::open(folder.path()).unwrap();
        let file = names.path(NAME);
        assert_eq!(names.remembered(&file), None);
        names.starts(NAME, "us").unwrap();
        let seen = names.remembered(&file).unwrap();
        assert_eq!(seen.name(), NAME);
        assert!(!names.forget(&seen, || true).unwrap());
        // Another build of the name starts after it was seen, and before it would be forgotten.
        names.starts(NAME, "them").unwrap();
        assert!(!names.forget(&seen, || false).unwrap());
        let seen = names.remembered(&file).unwrap();
        assert!(names.forget(&seen, || false).unwrap());
        assert!(!file.exists());
        assert!(!names.forget(&seen, || false).unwrap());
        // Files that are none of a name.
        let elsewhere = folder.path().join("elsewhere.json");
        std::fs::write(&elsewhere, &seen.bytes).unwrap();
        assert_eq!(names.remembered(&elsewhere), None);
    }

    #[test]
    fn a_damaged_file_is_an_error_not_an_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        let names = Provenance::open(folder.path()).unwrap();
        names.starts(NAME, "us").unwrap();
        std::fs::write(names.path(NAME), "{").unwrap();
        let allowed = names.allows(NAME, &Digest::sha256(b"x"), plain("us"));
        assert!(matches!(allowed, Err(ProvenanceError::Read { .. })));
    }
}
