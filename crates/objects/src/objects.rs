//! The operations, the same for a folder and a bucket.

use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::Method;
use object_store::aws::AmazonS3;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::signer::Signer as _;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, WriteMultipart};
use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{Bucket, Name, ObjectError};

/// Time for a connection to be made.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for one request, with its part of an object.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);
/// Time for all tries of one request.
pub(crate) const TRIES_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest life of a signed address: what version 4 of the signatures allows.
pub const SIGNED_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Size of a part, unless there would be too many of them; what is not larger goes in one request.
const PART_BYTES: u64 = 8 << 20;
/// Most parts of an object: S3's limit.
const PARTS_MAX: u64 = 10_000;
/// Parts that are sent at the same time. With the one that is read, this is what putting an object takes of memory.
const PARTS_AT_ONCE: usize = 3;

/// Where objects are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a folder, which is made when it is missing.
    Folder(PathBuf),
    /// In a bucket.
    Bucket(Box<Bucket>),
}

/// Named objects in one place.
#[derive(Debug)]
pub struct Objects {
    backend: Backend,
    prefix: Option<Name>,
}

#[derive(Debug)]
enum Backend {
    Folder(LocalFileSystem),
    Bucket(AmazonS3),
}

/// An object in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: Name,
    /// Its size.
    pub size_bytes: u64,
}

impl Objects {
    /// Returns the objects in `place`. A bucket is not asked for anything yet.
    ///
    /// # Errors
    /// When the folder cannot be made, or the settings of the bucket make no sense.
    pub fn open(place: &Place) -> Result<Self, ObjectError> {
        match place {
            Place::Folder(path) => {
                let shown = || format!("folder {}", path.display());
                std::fs::create_dir_all(path).map_err(|source| ObjectError::Open {
                    place: shown(),
                    source: source.into(),
                })?;
                let folder =
                    LocalFileSystem::new_with_prefix(path).map_err(|source| ObjectError::Open {
                        place: shown(),
                        source: source.into(),
                    })?;
                Ok(Self {
                    backend: Backend::Folder(folder.with_fsync(true)),
                    prefix: None,
                })
            }
            Place::Bucket(bucket) => {
                let client = bucket.client().map_err(|source| ObjectError::Open {
                    place: format!("bucket {}", bucket.name),
                    source: source.into(),
                })?;
                Ok(Self {
                    backend: Backend::Bucket(client),
                    prefix: bucket.prefix.clone(),
                })
            }
        }
    }

    /// Puts the content of `file`, from its beginning, as `name`, in place of what was there; returns its size.
    ///
    /// # Errors
    /// Nothing has changed then, and nothing is left of what was sent, as far as the store can still be told.
    pub async fn put(
        &self,
        name: &Name,
        file: File,
        cancel: &CancellationToken,
    ) -> Result<u64, ObjectError> {
        let unread = |source| ObjectError::Read {
            name: name.clone(),
            source,
        };
        let size = file.metadata().map_err(unread)?.len();
        let mut file = tokio::fs::File::from_std(file);
        if size <= PART_BYTES {
            let put = self.put_small(name, &mut file, size);
            return cancel
                .run_until_cancelled(put)
                .await
                .unwrap_or_else(|| Err(ObjectError::Cancelled { name: name.clone() }));
        }
        let failed = |source| put_failed(name, source);
        let path = self.path(name);
        let upload = self.store().put_multipart(&path).await.map_err(failed)?;
        let part_bytes = PART_BYTES.max(size.div_ceil(PARTS_MAX));
        let part_bytes = usize::try_from(part_bytes).unwrap_or(usize::MAX);
        let mut parts = WriteMultipart::new_with_chunk_size(upload, part_bytes);
        let sent = send(&mut file, &mut parts, name, part_bytes);
        let sent = cancel
            .run_until_cancelled(sent)
            .await
            .unwrap_or_else(|| Err(ObjectError::Cancelled { name: name.clone() }))
            .and_then(|actual| same_size(name, size, actual));
        if let Err(error) = sent {
            // What cannot be told any more is left to the store's own rules for parts that nobody completed.
            let _told = parts.abort().await;
            return Err(error);
        }
        // Gives up what was sent when it fails.
        parts.finish().await.map_err(failed)?;
        Ok(size)
    }

    async fn put_small(
        &self,
        name: &Name,
        file: &mut tokio::fs::File,
        size: u64,
    ) -> Result<u64, ObjectError> {
        let mut content = Vec::new();
        let mut limited = file.take(PART_BYTES + 1);
        let read = limited.read_to_end(&mut content).await;
        let read = read.map_err(|source| ObjectError::Read {
            name: name.clone(),
            source,
        })?;
        same_size(name, size, read as u64)?;
        let path = self.path(name);
        let put = self.store().put(&path, content.into()).await;
        put.map_err(|source| put_failed(name, source))?;
        Ok(size)
    }

    /// Returns the size of an object; `None` when it is not there.
    pub async fn head(&self, name: &Name) -> Result<Option<u64>, ObjectError> {
        match self.store().head(&self.path(name)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(ObjectError::Head {
                name: name.clone(),
                source: Box::new(source),
            }),
        }
    }

    /// Returns the bytes of an object, or a range of them; `None` when it is not there.
    pub async fn get(
        &self,
        name: &Name,
        range: Option<Range<u64>>,
    ) -> Result<Option<BoxStream<'static, Result<Bytes, ObjectError>>>, ObjectError> {
        let options = GetOptions {
            range: range.map(GetRange::Bounded),
            ..GetOptions::default()
        };
        let path = self.path(name);
        let name = name.clone();
        let failed = move |source| ObjectError::Get {
            name: name.clone(),
            source: Box::new(source),
        };
        match self.store().get_opts(&path, options).await {
            Ok(found) => Ok(Some(found.into_stream().map_err(failed).boxed())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(failed(source)),
        }
    }

    /// Deletes an object; one that is not there is fine.
    pub async fn delete(&self, name: &Name) -> Result<(), ObjectError> {
        match self.store().delete(&self.path(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(ObjectError::Delete {
                name: name.clone(),
                source: Box::new(source),
            }),
        }
    }

    /// Returns the objects whose names begin with the parts of `below`, or all, in no order. What has a name that is none of ours is
    /// left out.
    pub fn list(&self, below: Option<&Name>) -> BoxStream<'static, Result<Listed, ObjectError>> {
        let path = match below {
            Some(below) => Some(self.path(below)),
            None => self
                .prefix
                .as_ref()
                .map(|prefix| Path::from(prefix.as_str())),
        };
        let prefix = self.prefix.clone();
        let found = self.store().list(path.as_ref());
        let listed = found.try_filter_map(move |meta| {
            let full: &str = meta.location.as_ref();
            let own = match &prefix {
                Some(prefix) => full
                    .strip_prefix(prefix.as_str())
                    .and_then(|rest| rest.strip_prefix('/')),
                None => Some(full),
            };
            let listed = own.and_then(|own| own.parse().ok()).map(|name| Listed {
                name,
                size_bytes: meta.size,
            });
            std::future::ready(Ok(listed))
        });
        listed
            .map_err(|source| ObjectError::List(Box::new(source)))
            .boxed()
    }

    /// Returns an address that anybody can read the object with, for `lifetime` and not longer than [`SIGNED_MAX`]. A folder has no
    /// addresses. Nobody is asked whether the object is there.
    pub async fn presign(
        &self,
        name: &Name,
        lifetime: Duration,
    ) -> Result<Option<Url>, ObjectError> {
        let Backend::Bucket(client) = &self.backend else {
            return Ok(None);
        };
        let signed = client
            .signed_url(Method::GET, &self.path(name), lifetime.min(SIGNED_MAX))
            .await;
        signed.map(Some).map_err(|source| ObjectError::Presign {
            name: name.clone(),
            source: Box::new(source),
        })
    }

    fn store(&self) -> &dyn ObjectStore {
        match &self.backend {
            Backend::Folder(folder) => folder,
            Backend::Bucket(client) => client,
        }
    }

    fn path(&self, name: &Name) -> Path {
        match &self.prefix {
            Some(prefix) => Path::from(format!("{prefix}/{name}")),
            None => Path::from(name.as_str()),
        }
    }
}

/// Reads a file to its end and hands over its parts; returns how many bytes there were.
async fn send(
    file: &mut tokio::fs::File,
    parts: &mut WriteMultipart,
    name: &Name,
    part_bytes: usize,
) -> Result<u64, ObjectError> {
    let mut total = 0;
    loop {
        let room = parts.wait_for_capacity(PARTS_AT_ONCE);
        room.await.map_err(|source| put_failed(name, source))?;
        let mut part = BytesMut::with_capacity(part_bytes);
        let mut limited = file.take(part_bytes as u64);
        while part.len() < part_bytes {
            let read = limited.read_buf(&mut part).await;
            let n = read.map_err(|source| ObjectError::Read {
                name: name.clone(),
                source,
            })?;
            if n == 0 {
                break;
            }
        }
        if part.is_empty() {
            return Ok(total);
        }
        total += part.len() as u64;
        parts.put(part.freeze());
    }
}

fn same_size(name: &Name, expected: u64, actual: u64) -> Result<u64, ObjectError> {
    if expected == actual {
        return Ok(actual);
    }
    Err(ObjectError::Changed {
        name: name.clone(),
        expected,
        actual,
    })
}

fn put_failed(name: &Name, source: object_store::Error) -> ObjectError {
    ObjectError::Put {
        name: name.clone(),
        source: Box::new(source),
    }
}
