//! Paths below `/v2/`, read from their end, as repository names hold slashes.

use oci::Digest;
use oci::reference::{is_repository, is_tag};
use store::UploadId;

use super::failure::Failure;

/// What a path asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Base,
    Catalog,
    Tags { repository: String },
    Referrers { repository: String, digest: Digest },
    Manifest { repository: String, key: Key },
    Blob { repository: String, digest: Digest },
    Uploads { repository: String },
    Upload { repository: String, id: UploadId },
}

/// What a manifest is asked for by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key {
    Tag(String),
    Digest(Digest),
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => std::fmt::Display::fmt(digest, f),
        }
    }
}

impl Route {
    pub(super) fn parse(path: &str) -> Result<Self, Failure> {
        let rest = match path.strip_prefix("/v2") {
            Some("" | "/") => return Ok(Self::Base),
            Some("/_catalog") => return Ok(Self::Catalog),
            Some(rest) => rest.strip_prefix('/').ok_or_else(Failure::path)?,
            None => return Err(Failure::path()),
        };
        let mut from_end = rest.rsplitn(4, '/');
        let parts = [from_end.next(), from_end.next(), from_end.next()];
        let before = |n_parts: usize| {
            let mut name = rest;
            for _ in 0..n_parts {
                name = name.rsplit_once('/').map(|(name, _)| name)?;
            }
            Some(name)
        };
        let repository = |n_parts| match before(n_parts) {
            Some(name) if is_repository(name) => Ok(name.to_owned()),
            _ => Err(Failure::name(before(n_parts).unwrap_or(rest))),
        };
        match parts {
            [Some("list"), Some("tags"), Some(_)] => Ok(Self::Tags {
                repository: repository(2)?,
            }),
            [Some("") | None, Some("uploads"), Some("blobs")] => Ok(Self::Uploads {
                repository: repository(3)?,
            }),
            [Some("uploads"), Some("blobs"), Some(_)] => Ok(Self::Uploads {
                repository: repository(2)?,
            }),
            [Some(id), Some("uploads"), Some("blobs")] => Ok(Self::Upload {
                repository: repository(3)?,
                id: id.parse().map_err(|_| Failure::upload_unknown())?,
            }),
            [Some(digest), Some("blobs"), Some(_)] => Ok(Self::Blob {
                repository: repository(2)?,
                digest: parse_digest(digest)?,
            }),
            [Some(digest), Some("referrers"), Some(_)] => Ok(Self::Referrers {
                repository: repository(2)?,
                digest: parse_digest(digest)?,
            }),
            [Some(key), Some("manifests"), Some(_)] => Ok(Self::Manifest {
                repository: repository(2)?,
                key: parse_key(key)?,
            }),
            _ => Err(Failure::path()),
        }
    }

    pub(super) fn repository(&self) -> Option<&str> {
        match self {
            Self::Base | Self::Catalog => None,
            Self::Tags { repository }
            | Self::Referrers { repository, .. }
            | Self::Manifest { repository, .. }
            | Self::Blob { repository, .. }
            | Self::Uploads { repository }
            | Self::Upload { repository, .. } => Some(repository),
        }
    }
}

/// Parses a digest, in which some clients escape the colon.
pub(super) fn parse_digest(text: &str) -> Result<Digest, Failure> {
    let plain = text.replacen("%3A", ":", 1).replacen("%3a", ":", 1);
    plain.parse().map_err(|error| Failure::digest(&error))
}

fn parse_key(text: &str) -> Result<Key, Failure> {
    if is_tag(text) {
        return Ok(Key::Tag(text.to_owned()));
    }
    if text.contains([':', '%']) {
        return parse_digest(text).map(Key::Digest);
    }
    Err(Failure::tag())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_of_the_specification_is_understood() {
        let digest = Digest::sha256(b"x");
        let name = || "a/tags/b".to_owned();
        let id = "a".repeat(26);
        for (path, expected) in [
            ("/v2".to_owned(), Route::Base),
            ("/v2/".to_owned(), Route::Base),
            ("/v2/_catalog".to_owned(), Route::Catalog),
            (
                "/v2/a/tags/b/tags/list".to_owned(),
                Route::Tags { repository: name() },
            ),
            (
                "/v2/a/tags/b/manifests/list".to_owned(),
                Route::Manifest {
                    repository: name(),
                    key: Key::Tag("list".to_owned()),
                },
            ),
            (
                format!("/v2/a/tags/b/manifests/{digest}"),
                Route::Manifest {
                    repository: name(),
                    key: Key::Digest(digest.clone()),
                },
            ),
            (
                format!("/v2/a/tags/b/blobs/sha256%3A{}", digest.hex()),
                Route::Blob {
                    repository: name(),
                    digest: digest.clone(),
                },
            ),
            (
                "/v2/a/tags/b/blobs/uploads/".to_owned(),
                Route::Uploads { repository: name() },
            ),
            (
                "/v2/a/tags/b/blobs/uploads".to_owned(),
                Route::Uploads { repository: name() },
            ),
            (
                format!("/v2/a/tags/b/blobs/uploads/{id}"),
                Route::Upload {
                    repository: name(),
                    id: id.parse().unwrap(),
                },
            ),
            (
                format!("/v2/a/tags/b/referrers/{digest}"),
                Route::Referrers {
                    repository: name(),
                    digest: digest.clone(),
                },
            ),
        ] {
            assert_eq!(Route::parse(&path).unwrap(), expected, "{path}");
        }
    }

    #[test]
    fn no_path_leads_anywhere_else() {
        let hex = "a".repeat(64);
        for path in [
            "/v2x".to_owned(),
            "/v2//".to_owned(),
            "/v2/a".to_owned(),
            "/v2/tags/list".to_owned(),
            "/v2//tags/list".to_owned(),
            "/v2/../tags/list".to_owned(),
            "/v2/a/../b/tags/list".to_owned(),
            "/v2/a%2f..%2fb/tags/list".to_owned(),
            "/v2/A/tags/list".to_owned(),
            "/v2/_tags/tags/list".to_owned(),
            "/v2/a/manifests/".to_owned(),
            "/v2/a/manifests/..".to_owned(),
            "/v2/a/manifests/%2e%2e".to_owned(),
            "/v2/a/manifests/a%2fb".to_owned(),
            format!("/v2/a/manifests/md5:{hex}"),
            format!("/v2/a/blobs/{hex}"),
            format!("/v2/a/blobs/sha256:{}", "A".repeat(64)),
            "/v2/a/blobs/sha256:../../../../etc/passwd".to_owned(),
            "/v2/a/blobs/uploads/../../x".to_owned(),
            format!("/v2/a/blobs/uploads/{}", "A".repeat(26)),
            format!("/v2/blobs/sha256:{hex}"),
            format!("/v2/{}/tags/list", "a/".repeat(200)),
        ] {
            assert!(Route::parse(&path).is_err(), "{path}");
        }
    }
}
