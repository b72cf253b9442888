//! `--cache-from` and `--cache-to`: the comma-separated `key=value` lists that docker buildx uses.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use engine::spec::{CachedSteps, LayoutImage, OnCacheError};
use oci::Reference;

/// A `--cache-from`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CacheFromArg {
    /// A cache in a registry, or an image that carries one.
    Registry(Reference),
    /// An OCI layout.
    Folder(PathBuf, LayoutImage),
}

/// A `--cache-to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CacheToArg {
    /// A cache in a registry.
    Registry(Reference, CachedSteps, OnCacheError),
    /// An OCI layout.
    Folder(PathBuf, CachedSteps),
    /// In the image.
    Inline,
}

/// Tells why an option about caches is not one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CacheArgError {
    #[error("{0:?} is not of the form KEY=VALUE")]
    NotAPair(String),
    #[error("{0} is given twice")]
    Twice(String),
    #[error("the type is missing: type=registry, local or inline")]
    NoType,
    #[error("caches of type {0:?} are not supported; there are registry, local and inline")]
    Type(String),
    #[error("type={0} needs {1}")]
    Missing(&'static str, &'static str),
    #[error("{key} is not supported for type={kind}")]
    Key { key: String, kind: String },
    #[error("mode is min or max, not {0:?}")]
    Mode(String),
    #[error("{0} is true or false, not {1:?}")]
    Flag(&'static str, String),
    #[error("{0:?} is not the name of an image")]
    Name(String, #[source] oci::reference::ReferenceError),
    #[error("a cache that is written has a tag and no digest")]
    Digest,
    #[error("{0:?} is not a digest")]
    NoDigest(String, #[source] oci::digest::DigestError),
}

/// The pairs of an option that nobody has asked for yet.
struct Pairs {
    kind: String,
    pairs: BTreeMap<String, String>,
}

impl Pairs {
    /// Reads pairs; text without any is the name of an image.
    fn read(text: &str) -> Result<Self, CacheArgError> {
        let mut pairs = BTreeMap::new();
        if !text.contains('=') {
            pairs.insert("ref".to_owned(), text.to_owned());
            let kind = "registry".to_owned();
            return Ok(Self { kind, pairs });
        }
        for field in text.split(',') {
            let pair = field.split_once('=');
            let (key, value) = pair.ok_or_else(|| CacheArgError::NotAPair(field.to_owned()))?;
            let key = key.trim().to_ascii_lowercase();
            if pairs.insert(key.clone(), value.to_owned()).is_some() {
                return Err(CacheArgError::Twice(key));
            }
        }
        let kind = pairs.remove("type").ok_or(CacheArgError::NoType)?;
        Ok(Self { kind, pairs })
    }

    fn take(&mut self, key: &str) -> Option<String> {
        self.pairs.remove(key)
    }

    fn reference(&mut self) -> Result<Reference, CacheArgError> {
        let name = self.take("ref");
        let name = name.ok_or(CacheArgError::Missing("registry", "ref=NAME"))?;
        name.parse()
            .map_err(|error| CacheArgError::Name(name, error))
    }

    fn steps(&mut self) -> Result<CachedSteps, CacheArgError> {
        match self.take("mode").as_deref() {
            None | Some("min") => Ok(CachedSteps::OfTheImage),
            Some("max") => Ok(CachedSteps::All),
            Some(mode) => Err(CacheArgError::Mode(mode.to_owned())),
        }
    }

    fn flag(&mut self, key: &'static str) -> Result<bool, CacheArgError> {
        match self.take(key).as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1") => Ok(true),
            Some(value) => Err(CacheArgError::Flag(key, value.to_owned())),
        }
    }

    /// Fails when something is left that nobody has asked for: nothing is accepted and ignored.
    fn finish(self) -> Result<(), CacheArgError> {
        match self.pairs.into_keys().next() {
            Some(key) => Err(CacheArgError::Key {
                key,
                kind: self.kind,
            }),
            None => Ok(()),
        }
    }
}

impl FromStr for CacheFromArg {
    type Err = CacheArgError;

    fn from_str(text: &str) -> Result<Self, CacheArgError> {
        let mut pairs = Pairs::read(text)?;
        let from = match pairs.kind.as_str() {
            "registry" => Self::Registry(pairs.reference()?),
            "local" => {
                let path = pairs.take("src");
                let path = path.ok_or(CacheArgError::Missing("local", "src=FOLDER"))?;
                let image = match (pairs.take("digest"), pairs.take("tag")) {
                    (Some(digest), _) => match digest.parse() {
                        Ok(digest) => LayoutImage::Digest(digest),
                        Err(error) => return Err(CacheArgError::NoDigest(digest, error)),
                    },
                    (None, Some(tag)) => LayoutImage::Tag(tag),
                    (None, None) => LayoutImage::Default,
                };
                Self::Folder(path.into(), image)
            }
            kind => return Err(CacheArgError::Type(kind.to_owned())),
        };
        pairs.finish()?;
        Ok(from)
    }
}

impl FromStr for CacheToArg {
    type Err = CacheArgError;

    fn from_str(text: &str) -> Result<Self, CacheArgError> {
        let mut pairs = Pairs::read(text)?;
        let to = match pairs.kind.as_str() {
            "registry" => {
                let reference = pairs.reference()?;
                if reference.digest().is_some() {
                    return Err(CacheArgError::Digest);
                }
                let steps = pairs.steps()?;
                let on_error = if pairs.flag("ignore-error")? {
                    OnCacheError::Warn
                } else {
                    OnCacheError::Fail
                };
                Self::Registry(reference, steps, on_error)
            }
            "local" => {
                let path = pairs.take("dest");
                let path = path.ok_or(CacheArgError::Missing("local", "dest=FOLDER"))?;
                Self::Folder(path.into(), pairs.steps()?)
            }
            "inline" => {
                // It can hold no more, and docker takes the word for it.
                if pairs.steps()? == CachedSteps::All {
                    return Err(CacheArgError::Key {
                        key: "mode=max".to_owned(),
                        kind: "inline".to_owned(),
                    });
                }
                Self::Inline
            }
            kind => return Err(CacheArgError::Type(kind.to_owned())),
        };
        pairs.finish()?;
        Ok(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_named_as_docker_names_them() {
        let name = |text: &str| text.parse::<Reference>().unwrap();
        let from = |text: &str| text.parse::<CacheFromArg>().unwrap();
        let to = |text: &str| text.parse::<CacheToArg>().unwrap();
        let registry = CacheFromArg::Registry(name("a.b/c:1"));
        assert_eq!(from("a.b/c:1"), registry);
        assert_eq!(from("type=registry,ref=a.b/c:1"), registry);
        assert_eq!(
            from("type=local,src=x,tag=y"),
            CacheFromArg::Folder("x".into(), LayoutImage::Tag("y".to_owned()))
        );
        assert_eq!(
            to("ref=a.b/c:1,type=registry,mode=max,ignore-error=true"),
            CacheToArg::Registry(name("a.b/c:1"), CachedSteps::All, OnCacheError::Warn)
        );
        assert_eq!(
            to("type=local,dest=x"),
            CacheToArg::Folder("x".into(), CachedSteps::OfTheImage)
        );
        assert_eq!(to("type=inline"), CacheToArg::Inline);
    }

    #[test]
    fn what_is_not_supported_is_said() {
        for (text, words) in [
            ("type=gha", "\"gha\" are not supported"),
            ("type=registry", "needs ref=NAME"),
            ("type=local,dest=x,mode=all", "min or max"),
            ("type=inline,mode=max", "mode=max is not supported"),
            ("type=registry,ref=a,compression=zstd", "compression is not"),
            ("type=registry,ref=a,ref=b", "twice"),
            ("ref=a", "type is missing"),
            ("type=registry,ref=UPPER/x", "not the name of an image"),
            ("type=registry,ref=a,ignore-error=maybe", "true or false"),
        ] {
            let error = text.parse::<CacheToArg>().unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        let digest = format!("a@sha256:{}", "0".repeat(64));
        assert!(digest.parse::<CacheToArg>().is_err());
        assert!("type=inline".parse::<CacheFromArg>().is_err());
        assert!("type=local,src=x,digest=y".parse::<CacheFromArg>().is_err());
    }
}
