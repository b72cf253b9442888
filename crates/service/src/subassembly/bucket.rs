//! The bucket that files of subassemblies are put into, as the configuration and the process have it.
//!
//! Files with keys are read for each use, so that keys can be changed under a running service; a client is made again when what it is
//! made of has changed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use objects::{Bucket, Keys, ObjectError, Objects, Place};

use crate::config::Config;

/// Where a store says it is, when nobody else does.
const REGION: &str = "us-east-1";
/// Largest file with a key.
const KEY_MAX_BYTES: usize = 16 << 10;

/// What the process's environment says about buckets, where the configuration does not.
#[derive(Debug, Clone, Default)]
pub struct Ambient {
    /// Who we are.
    pub keys: Option<Keys>,
    /// The store.
    pub endpoint: Option<String>,
    /// Where the store says it is.
    pub region: Option<String>,
}

/// Tells why the bucket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// There are no keys for it.
    #[error("open bucket {name}: no keys: see [objects] of the configuration")]
    NoKeys {
        /// Which bucket.
        name: String,
    },
    /// A file with a key cannot be read, or holds none.
    #[error("read the key in {}", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its settings make no sense.
    #[error("open bucket {name}")]
    Open {
        /// Which bucket.
        name: String,
        /// Why.
        #[source]
        source: ObjectError,
    },
}

/// The bucket, and how it is opened.
#[derive(Debug)]
pub struct Shelf {
    name: String,
    prefix: Option<objects::Name>,
    endpoint: Option<String>,
    region: String,
    keys: KeySource,
    last: Mutex<Option<Opened>>,
}

/// The bucket with the keys of this moment.
#[derive(Debug, Clone)]
pub(super) struct Opened {
    pub(super) bucket: Bucket,
    pub(super) objects: Arc<Objects>,
}

#[derive(Debug, Clone)]
enum KeySource {
    Files {
        id: PathBuf,
        secret: PathBuf,
        session: Option<PathBuf>,
    },
    Given(Keys),
}

impl Shelf {
    /// Returns the bucket that the configuration names, if it names one.
    ///
    /// # Errors
    /// When it cannot be opened as things are now. The store itself is not asked.
    pub fn new(config: &Config, ambient: &Ambient) -> Result<Option<Self>, BucketError> {
        let Some(name) = config.subassembly.bucket.clone() else {
            return Ok(None);
        };
        let from = &config.objects;
        let keys = match (&from.access_key_id_file, &from.secret_access_key_file) {
            (Some(id), Some(secret)) => KeySource::Files {
                id: id.clone(),
                secret: secret.clone(),
                session: from.session_token_file.clone(),
            },
            _ => match &ambient.keys {
                Some(keys) => KeySource::Given(keys.clone()),
                None => return Err(BucketError::NoKeys { name }),
            },
        };
        let region = from.region.clone().or_else(|| ambient.region.clone());
        let shelf = Self {
            name,
            prefix: config.subassembly.bucket_prefix.clone(),
            endpoint: from.endpoint.clone().or_else(|| ambient.endpoint.clone()),
            region: region.unwrap_or_else(|| REGION.to_owned()),
            keys,
            last: Mutex::default(),
        };
        shelf.open()?;
        Ok(Some(shelf))
    }

    /// Opens the bucket. Blocks for as long as it takes to read two small files.
    pub(super) fn open(&self) -> Result<Opened, BucketError> {
        let bucket = Bucket {
            name: self.name.clone(),
            prefix: self.prefix.clone(),
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            keys: self.keys.read()?,
        };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = last.as_ref().filter(|opened| opened.bucket == bucket) {
            return Ok(opened.clone());
        }
        let objects = Objects::open(&Place::Bucket(Box::new(bucket.clone())));
        let objects = objects.map_err(|source| BucketError::Open {
            name: self.name.clone(),
            source,
        })?;
        let opened = Opened {
            bucket,
            objects: Arc::new(objects),
        };
        *last = Some(opened.clone());
        Ok(opened)
    }
}

impl KeySource {
    fn read(&self) -> Result<Keys, BucketError> {
        match self {
            Self::Files {
                id,
                secret,
                session,
            } => Ok(Keys::new(
                read_key(id)?,
                read_key(secret)?,
                session.as_deref().map(read_key).transpose()?,
            )),
            Self::Given(keys) => Ok(keys.clone()),
        }
    }
}

fn read_key(path: &Path) -> Result<String, BucketError> {
    let read = || {
        let text = std::fs::read_to_string(path)?;
        let text = text.trim();
        if text.is_empty() || text.len() > KEY_MAX_BYTES || text.contains(char::is_whitespace) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not one word on one line",
            ));
        }
        Ok(text.to_owned())
    };
    read().map_err(|source| BucketError::Key {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(folder: &Path) -> Config {
        let mut config = Config::default();
        config.subassembly.bucket = Some("files".to_owned());
        config.objects.access_key_id_file = Some(folder.join("id"));
        config.objects.secret_access_key_file = Some(folder.join("secret"));
        config
    }

    #[test]
    fn keys_are_read_again_and_the_client_is_made_again_only_then() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text);
        write("id", "one\n").unwrap();
        write("secret", "hidden\n").unwrap();
        let shelf = Shelf::new(&config(folder.path()), &Ambient::default());
        let shelf = shelf.unwrap().unwrap();
        let first = shelf.open().unwrap();
        assert_eq!(first.bucket.region, REGION);
        assert!(Arc::ptr_eq(&first.objects, &shelf.open().unwrap().objects));
        write("secret", "changed").unwrap();
        let second = shelf.open().unwrap();
        assert!(!Arc::ptr_eq(&first.objects, &second.objects));
        assert!(!format!("{shelf:?}").contains("changed"));
        for nonsense in ["", " \n", "two words", "two\nlines"] {
            write("secret", nonsense).unwrap();
            let error = shelf.open().unwrap_err();
            assert!(matches!(error, BucketError::Key { .. }), "{nonsense:?}");
        }
    }

    #[test]
    fn what_the_configuration_does_not_say_is_taken_from_the_environment() {
        let mut config = Config::default();
        let mut ambient = Ambient {
            region: Some("there".to_owned()),
            ..Ambient::default()
        };
        assert!(Shelf::new(&config, &ambient).unwrap().is_none());
        config.subassembly.bucket = Some("files".to_owned());
        let error = Shelf::new(&config, &ambient).unwrap_err();
        assert!(matches!(error, BucketError::NoKeys { .. }));
        let keys = Keys::new("id".to_owned(), "secret".to_owned(), None);
        ambient.keys = Some(keys.clone());
        let opened = Shelf::new(&config, &ambient).unwrap().unwrap().open();
        let bucket = opened.unwrap().bucket;
        assert_eq!((bucket.keys, bucket.region.as_str()), (keys, "there"));
        config.objects.region = Some("here".to_owned());
        let opened = Shelf::new(&config, &ambient).unwrap().unwrap().open();
        assert_eq!(opened.unwrap().bucket.region, "here");
    }
}
