//! Repositories: which blobs and manifests a repository has, and its tags.
//!
//! ```text
//! repositories/<name>/_blobs/<algorithm>/<hex>               an empty file: this repository may read that blob
//!                     _manifests/<algorithm>/<hex>           the same for a manifest
//!                     _referrers/<algorithm>/<hex>/<digest>  a manifest that names <hex> as its subject
//!                     _tags/<tag>                            the digest that the tag points to
//! ```
//!
//! A component of a repository's name cannot begin with `_`, so these folders and nested repositories never meet. Having a blob
//! in the store says nothing about a repository: without a link it is absent there. Links are written after what they point to
//! is durable. What a manifest says is not looked at here.

use std::io::{self, Read};

use oci::Digest;
use oci::digest::Algorithm;
use oci::reference::{is_repository, is_tag};

use crate::dir::Dir;
use crate::{BlobError, CommitError, LockError, Store};

/// Longest content of a tag's file, in bytes.
pub(crate) const TAG_FILE_MAX_BYTES: u64 = 256;

/// Tells why a repository could not be asked or changed.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// Not the name of a repository.
    #[error("{0:?} is not a repository name")]
    Name(String),
    /// Not a tag.
    #[error("{0:?} is not a tag")]
    Tag(String),
    /// Neither a tag nor a digest.
    #[error("{0:?} is neither a tag nor a digest")]
    Key(String),
    /// More bytes than a manifest may have.
    #[error("manifest has {size_bytes} bytes, at most {max_bytes} are stored")]
    ManifestTooLarge {
        /// What was given.
        size_bytes: usize,
        /// The limit.
        max_bytes: usize,
    },
    /// A link would point to nothing.
    #[error("link {digest} in repository {repository}: the store does not have it")]
    Missing {
        /// The repository.
        repository: String,
        /// What is not there.
        digest: Digest,
    },
    /// Links or tags could not be read.
    #[error("look into repository {repository}")]
    Look {
        /// The repository.
        repository: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Links or tags could not be changed.
    #[error("change repository {repository}")]
    Change {
        /// The repository.
        repository: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The repositories could not be listed.
    #[error("list the repositories")]
    List(#[source] io::Error),
    /// A manifest could not be stored.
    #[error("store a manifest of repository {repository}")]
    Store {
        /// The repository.
        repository: String,
        /// Why not.
        #[source]
        source: CommitError,
    },
    /// A manifest could not be read.
    #[error("read a manifest of repository {repository}")]
    Read {
        /// The repository.
        repository: String,
        /// Why not.
        #[source]
        source: BlobError,
    },
    /// The repository is being changed by somebody else and could not be locked.
    #[error("lock repository {repository}")]
    Lock {
        /// The repository.
        repository: String,
        /// Why not.
        #[source]
        source: LockError,
    },
}

impl Store {
    /// Lets a repository read a blob that the store has.
    pub fn link_blob(&self, repository: &str, digest: &Digest) -> Result<(), RepositoryError> {
        check_repository(repository)?;
        self.find_for(repository, digest)?;
        self.hold(repository, "_blobs", digest)
    }

    /// Links a blob, which is then never collected. A collection that had not seen the link may have taken the blob meanwhile: whoever still
    /// finds it after the link is there keeps it.
    fn hold(&self, repository: &str, kind: &str, digest: &Digest) -> Result<(), RepositoryError> {
        let folder = links(repository, kind, digest);
        self.change(repository, |root| add_link(root, &folder, digest.hex()))?;
        // When it is gone the link stays: somebody who brings the blob again may have found the link there, and relies on it.
        self.find_for(repository, digest)
    }

    fn find_for(&self, repository: &str, digest: &Digest) -> Result<(), RepositoryError> {
        let size = self
            .size_of(digest)
            .map_err(|source| RepositoryError::Read {
                repository: repository.to_owned(),
                source,
            })?;
        size.map(drop).ok_or_else(|| RepositoryError::Missing {
            repository: repository.to_owned(),
            digest: digest.clone(),
        })
    }

    /// Tells whether a repository may read a blob, and the store has it.
    pub fn has_blob(&self, repository: &str, digest: &Digest) -> Result<bool, RepositoryError> {
        if !self.has_link(repository, "_blobs", digest)? {
            return Ok(false);
        }
        let size = self
            .size_of(digest)
            .map_err(|source| RepositoryError::Read {
                repository: repository.to_owned(),
                source,
            })?;
        Ok(size.is_some())
    }

    /// Takes a blob away from a repository; false when it did not have it. The blob itself stays.
    pub fn unlink_blob(&self, repository: &str, digest: &Digest) -> Result<bool, RepositoryError> {
        check_repository(repository)?;
        self.change(repository, |root| {
            remove_link(root, &links(repository, "_blobs", digest), digest.hex())
        })
    }

    /// Stores a manifest in a repository and points `tag` to it. Returns its digest.
    pub fn put_manifest(
        &self,
        repository: &str,
        bytes: &[u8],
        tag: Option<&str>,
    ) -> Result<Digest, RepositoryError> {
        self.put_manifest_as(repository, bytes, &Digest::sha256(bytes), tag)
    }

    /// Stores a manifest under `digest`, which is verified, and points `tag` to it.
    pub fn put_manifest_as(
        &self,
        repository: &str,
        bytes: &[u8],
        digest: &Digest,
        tag: Option<&str>,
    ) -> Result<Digest, RepositoryError> {
        check_repository(repository)?;
        tag.map_or(Ok(()), check_tag)?;
        let max_bytes = self.limits().manifest_max_bytes;
        if bytes.len() > max_bytes {
            return Err(RepositoryError::ManifestTooLarge {
                size_bytes: bytes.len(),
                max_bytes,
            });
        }
        let digest = self
            .put_as(bytes, digest)
            .map_err(|source| RepositoryError::Store {
                repository: repository.to_owned(),
                source,
            })?;
        let _lock = self.lock_repository(repository)?;
        self.hold(repository, "_manifests", &digest)?;
        if let Some(tag) = tag {
            self.change(repository, |root| {
                let tags = root.make(&folder(repository, "_tags"))?;
                self.write_whole(&tags, tag, digest.to_string().as_bytes())
            })?;
        }
        Ok(digest)
    }

    /// Returns a manifest of a repository by tag or digest, verified; `None` when the repository has none of this name.
    pub fn manifest(
        &self,
        repository: &str,
        key: &str,
    ) -> Result<Option<(Digest, Vec<u8>)>, RepositoryError> {
        let Some(digest) = self.manifest_digest(repository, key)? else {
            return Ok(None);
        };
        let bytes = self
            .read_blob(&digest, self.limits().manifest_max_bytes)
            .map_err(|source| RepositoryError::Read {
                repository: repository.to_owned(),
                source,
            })?;
        Ok(bytes.map(|bytes| (digest, bytes)))
    }

    /// Returns the digest of a manifest by tag or digest; `None` when the repository has none of this name.
    pub fn manifest_digest(
        &self,
        repository: &str,
        key: &str,
    ) -> Result<Option<Digest>, RepositoryError> {
        check_repository(repository)?;
        let digest = if key.contains(':') {
            let digest = key.parse();
            Some(digest.map_err(|_| RepositoryError::Key(key.to_owned()))?)
        } else {
            check_tag(key)?;
            self.tag(repository, key)?
        };
        match digest {
            Some(digest) if self.has_link(repository, "_manifests", &digest)? => Ok(Some(digest)),
            _ => Ok(None),
        }
    }

    /// Returns the tags of a repository, sorted; `None` when there is no such repository.
    pub fn tags(&self, repository: &str) -> Result<Option<Vec<String>>, RepositoryError> {
        check_repository(repository)?;
        self.look(repository, |root| {
            let Some(dir) = root.sub_if_there(&format!("repositories/{repository}"))? else {
                return Ok(None);
            };
            let mut tags = match dir.sub_if_there("_tags")? {
                Some(tags) => tags.names()?,
                None if dir.stat("_manifests")?.is_none() && dir.stat("_blobs")?.is_none() => {
                    return Ok(None);
                }
                None => Vec::new(),
            };
            tags.retain(|tag| is_tag(tag));
            tags.sort_unstable();
            tags.truncate(self.limits().tags_max);
            Ok(Some(tags))
        })
    }

    /// Removes a tag; false when there was none. The manifest stays.
    pub fn delete_tag(&self, repository: &str, tag: &str) -> Result<bool, RepositoryError> {
        check_repository(repository)?;
        check_tag(tag)?;
        let _lock = self.lock_repository(repository)?;
        self.change(repository, |root| {
            remove_link(root, &folder(repository, "_tags"), tag)
        })
    }

    /// Removes a manifest and the tags that point to it from a repository; false when it was not there.
    pub fn delete_manifest(
        &self,
        repository: &str,
        digest: &Digest,
    ) -> Result<bool, RepositoryError> {
        check_repository(repository)?;
        let _lock = self.lock_repository(repository)?;
        let was_there = self.change(repository, |root| {
            remove_link(root, &links(repository, "_manifests", digest), digest.hex())
        })?;
        // The link is what counts: a tag that is left by a crash here points to nothing.
        for tag in self.tags(repository)?.unwrap_or_default() {
            if self.tag(repository, &tag)?.as_ref() == Some(digest) {
                self.change(repository, |root| {
                    remove_link(root, &folder(repository, "_tags"), &tag)
                })?;
            }
        }
        Ok(was_there)
    }

    /// Notes that the manifest `referrer` of a repository names `subject`, which need not be there.
    pub fn link_referrer(
        &self,
        repository: &str,
        subject: &Digest,
        referrer: &Digest,
    ) -> Result<(), RepositoryError> {
        check_repository(repository)?;
        self.change(repository, |root| {
            add_link(
                root,
                &referrer_folder(repository, subject),
                &file_name(referrer),
            )
        })
    }

    /// Forgets what [`Store::link_referrer`] noted; false when there was nothing.
    pub fn unlink_referrer(
        &self,
        repository: &str,
        subject: &Digest,
        referrer: &Digest,
    ) -> Result<bool, RepositoryError> {
        check_repository(repository)?;
        self.change(repository, |root| {
            remove_link(
                root,
                &referrer_folder(repository, subject),
                &file_name(referrer),
            )
        })
    }

    /// Returns the manifests of a repository that name `subject`, sorted.
    pub fn referrers(
        &self,
        repository: &str,
        subject: &Digest,
    ) -> Result<Vec<Digest>, RepositoryError> {
        check_repository(repository)?;
        let names = self.look(repository, |root| {
            let folder = referrer_folder(repository, subject);
            root.sub_if_there(&folder)?
                .map_or(Ok(Vec::new()), |dir| dir.names())
        })?;
        let mut found = Vec::new();
        for name in names {
            let Ok(digest) = name.replacen('-', ":", 1).parse() else {
                continue;
            };
            if self.has_link(repository, "_manifests", &digest)? {
                found.push(digest);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Returns the names of the repositories that hold a manifest or a tag, sorted.
    pub fn repositories(&self) -> Result<Vec<String>, RepositoryError> {
        let list = || {
            let mut found = Vec::new();
            let mut pending = vec![String::new()];
            while let Some(name) = pending.pop() {
                let Some(dir) = self.root().sub_if_there(&repository_path(&name))? else {
                    continue;
                };
                if has_manifests(&dir)? {
                    found.push(name.clone());
                }
                for child in dir.names()? {
                    let path = if name.is_empty() {
                        child
                    } else {
                        format!("{name}/{child}")
                    };
                    if is_repository(&path) && found.len() < self.limits().repositories_max {
                        pending.push(path);
                    }
                }
            }
            found.sort_unstable();
            Ok(found)
        };
        list().map_err(RepositoryError::List)
    }

    fn tag(&self, repository: &str, tag: &str) -> Result<Option<Digest>, RepositoryError> {
        self.look(repository, |root| {
            let Some(tags) = root.sub_if_there(&folder(repository, "_tags"))? else {
                return Ok(None);
            };
            let Some(file) = tags.open_file(tag)? else {
                return Ok(None);
            };
            let mut text = String::new();
            file.take(TAG_FILE_MAX_BYTES).read_to_string(&mut text)?;
            let digest = text.parse();
            digest
                .map(Some)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        })
    }

    fn has_link(
        &self,
        repository: &str,
        kind: &str,
        digest: &Digest,
    ) -> Result<bool, RepositoryError> {
        check_repository(repository)?;
        self.look(repository, |root| {
            let links = root.sub_if_there(&links(repository, kind, digest))?;
            links.map_or(Ok(false), |dir| Ok(dir.stat(digest.hex())?.is_some()))
        })
    }

    /// Waits for whoever is putting or deleting something.
    pub(crate) fn lock_repository_plainly(
        &self,
        repository: &str,
    ) -> Result<crate::LockGuard, LockError> {
        self.lock(&format!("repository/{repository}"))
    }

    fn lock_repository(&self, repository: &str) -> Result<crate::LockGuard, RepositoryError> {
        self.lock_repository_plainly(repository)
            .map_err(|source| RepositoryError::Lock {
                repository: repository.to_owned(),
                source,
            })
    }

    fn look<T>(
        &self,
        repository: &str,
        look: impl FnOnce(&Dir) -> io::Result<T>,
    ) -> Result<T, RepositoryError> {
        look(self.root()).map_err(|source| RepositoryError::Look {
            repository: repository.to_owned(),
            source,
        })
    }

    fn change<T>(
        &self,
        repository: &str,
        change: impl FnOnce(&Dir) -> io::Result<T>,
    ) -> Result<T, RepositoryError> {
        change(self.root()).map_err(|source| RepositoryError::Change {
            repository: repository.to_owned(),
            source,
        })
    }
}

fn check_repository(name: &str) -> Result<(), RepositoryError> {
    if is_repository(name) {
        Ok(())
    } else {
        Err(RepositoryError::Name(name.to_owned()))
    }
}

fn check_tag(tag: &str) -> Result<(), RepositoryError> {
    if is_tag(tag) {
        Ok(())
    } else {
        Err(RepositoryError::Tag(tag.to_owned()))
    }
}

pub(crate) fn repository_path(name: &str) -> String {
    if name.is_empty() {
        "repositories".to_owned()
    } else {
        format!("repositories/{name}")
    }
}

pub(crate) fn folder(repository: &str, kind: &str) -> String {
    format!("repositories/{repository}/{kind}")
}

pub(crate) fn links(repository: &str, kind: &str, digest: &Digest) -> String {
    format!(
        "repositories/{repository}/{kind}/{}",
        digest.algorithm().name()
    )
}

fn referrer_folder(repository: &str, subject: &Digest) -> String {
    format!(
        "{}/{}",
        links(repository, "_referrers", subject),
        subject.hex()
    )
}

pub(crate) fn file_name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().name(), digest.hex())
}

pub(crate) fn add_link(root: &Dir, folder: &str, name: &str) -> io::Result<()> {
    let dir = root.make(folder)?;
    match dir.create_new(name, 0o644) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    // Also when it was there: whoever made it may not have come so far yet.
    dir.sync()
}

pub(crate) fn remove_link(root: &Dir, folder: &str, name: &str) -> io::Result<bool> {
    let Some(dir) = root.sub_if_there(folder)? else {
        return Ok(false);
    };
    let was_there = dir.unlink(name)?;
    dir.sync()?;
    Ok(was_there)
}

fn has_manifests(dir: &Dir) -> io::Result<bool> {
    for algorithm in Algorithm::ALL {
        let manifests = dir.sub_if_there(&format!("_manifests/{}", algorithm.name()))?;
        if let Some(manifests) = manifests
            && !manifests.names()?.is_empty()
        {
            return Ok(true);
        }
    }
    Ok(false)
}
