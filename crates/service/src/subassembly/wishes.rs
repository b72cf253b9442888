//! What was asked for and has no end yet: a file for each, so that a restart forgets nothing.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use engine::subassembly::{self, Format};
use oci::{Digest, Reference};
use serde::{Deserialize, Serialize};

use crate::access::{Caller, Grant, Right, Rights};

/// What keys of builds that make subassemblies begin with: those of images are other texts.
pub(super) const KEY_PREFIX: &str = "subassembly-";
/// Most wishes that are read after a restart.
const WISHES_MAX: usize = 100_000;

/// Tells why wishes cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum WishError {
    /// The folder cannot be used.
    #[error("use the folder {}", path.display())]
    Folder {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A wish cannot be written down or removed.
    #[error("write {}", path.display())]
    Write {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Returns what is wrong with a file of a wish.
pub(crate) fn problem(path: &Path) -> io::Result<Option<String>> {
    let wish = serde_json::from_slice::<Wish>(&fs::read(path)?);
    Ok(wish.err().map(|error| error.to_string()))
}

/// A subassembly that somebody wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wish {
    pub(super) tenant: String,
    /// The image, with its digest.
    pub(super) image: Reference,
    /// What it is pulled with.
    #[serde(default)]
    pub(super) pulls_as: Pulling,
}

/// What an image is pulled with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Pulling {
    /// The service's credentials, as all were while there was one tenant.
    #[default]
    Service,
    /// Nothing.
    Nobody,
}

impl Pulling {
    /// Returns what a caller may pull with.
    pub(super) fn of(caller: &Caller) -> Self {
        if caller.may(Right::Credentials) {
            Self::Service
        } else {
            Self::Nobody
        }
    }

    pub(super) fn rights(self) -> Rights {
        Rights {
            grant: match self {
                Self::Service => Grant::Everything,
                Self::Nobody => Grant::Nothing,
            },
            ..Rights::default()
        }
    }
}

impl Wish {
    /// Returns the key of the build that fulfils it.
    pub(super) fn key(&self, format: Format) -> String {
        let nothing = Digest::sha256(b"");
        let digest = self.image.digest().unwrap_or(&nothing);
        format!(
            "{KEY_PREFIX}{}",
            subassembly::key(&self.tenant, digest, format)
        )
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Wishes {
    folder: PathBuf,
    n_drafts: AtomicU64,
}

impl Wishes {
    pub(super) fn open(folder: &Path) -> Result<Self, WishError> {
        let created = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        created.map_err(|source| WishError::Folder {
            path: folder.to_owned(),
            source,
        })?;
        Ok(Self {
            folder: folder.to_owned(),
            n_drafts: AtomicU64::new(0),
        })
    }

    /// Writes a wish down; it is durable when this returns.
    pub(super) fn add(&self, wish: &Wish, format: Format) -> Result<(), WishError> {
        let path = self.path(&wish.key(format));
        let write = || {
            // Several may ask for the same at once.
            let n = self.n_drafts.fetch_add(1, Ordering::Relaxed);
            let draft = path.with_extension(format!("draft{n}"));
            let mut file = File::create(&draft)?;
            file.write_all(&serde_json::to_vec(wish)?)?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(|source| WishError::Write {
            path: path.clone(),
            source,
        })
    }

    /// Takes a wish off the list; one that is not there is fine.
    pub(super) fn remove(&self, key: &str) -> Result<(), WishError> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(WishError::Write { path, source })
            }
            _ => Ok(()),
        }
    }

    /// Returns every wish; a file that is none is left where it is.
    pub(super) fn all(&self) -> Result<Vec<Wish>, WishError> {
        let failed = |source| WishError::Folder {
            path: self.folder.clone(),
            source,
        };
        let mut wishes = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed)?.take(WISHES_MAX) {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let wish = fs::read(&path)
                .ok()
                .and_then(|text| serde_json::from_slice(&text).ok());
            if let Some(wish) = wish {
                wishes.push(wish);
            } else {
                tracing::warn!(path = %path.display(), "not the wish for a subassembly");
            }
        }
        Ok(wishes)
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_remembered_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let digest = Digest::sha256(b"image");
        let image: Reference = format!("registry.example/a@{digest}").parse().unwrap();
        let wish = Wish {
            tenant: "default".to_owned(),
            image,
            pulls_as: Pulling::Nobody,
        };
        let wishes = Wishes::open(folder.path()).unwrap();
        wishes.add(&wish, Format::TarZstd).unwrap();
        wishes.add(&wish, Format::TarZstd).unwrap();
        fs::write(folder.path().join("other.json"), "{").unwrap();
        let again = Wishes::open(folder.path()).unwrap();
        assert_eq!(again.all().unwrap(), std::slice::from_ref(&wish));
        again.remove(&wish.key(Format::TarZstd)).unwrap();
        again.remove(&wish.key(Format::TarZstd)).unwrap();
        assert!(again.all().unwrap().is_empty());
    }

    #[test]
    fn keys_differ_by_tenant_image_and_format() {
        let wish = |tenant: &str, content: &[u8]| Wish {
            tenant: tenant.to_owned(),
            image: format!("registry.example/a@{}", Digest::sha256(content))
                .parse()
                .unwrap(),
            pulls_as: Pulling::Service,
        };
        let keys = [
            wish("a", b"1").key(Format::TarZstd),
            wish("b", b"1").key(Format::TarZstd),
            wish("a", b"2").key(Format::TarZstd),
            wish("a", b"1").key(Format::Squashfs),
        ];
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), 4);
    }
}
