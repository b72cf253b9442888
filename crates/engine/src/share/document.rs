//! What a shared cache says.

use std::collections::BTreeMap;

use oci::Digest;
use serde::{Deserialize, Serialize};

use crate::execute::cache::CachedLayer;

/// Media type of the configuration of a manifest that is a cache.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.kiln.cache.v1+json";
/// Field of an image's configuration that is a cache.
pub(crate) const FIELD: &str = "dev.kiln.cache.v1";
/// Largest document that is read or written.
pub(crate) const DOCUMENT_MAX_BYTES: usize = 16 << 20;
/// Most steps of a document that is read.
const STEPS_MAX: usize = 100_000;

/// A shared cache.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Document {
    /// Results of steps.
    pub(crate) steps: Vec<SharedStep>,
    /// Digests of what steps take from stages: what is taken, and its digest. So that a stage need not be unpacked to know.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) sources: BTreeMap<Digest, Digest>,
}

/// The result of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SharedStep {
    /// Everything that decides its result but what it is built on.
    pub(crate) operation: Digest,
    /// The same, on what it is built on.
    pub(crate) step: Digest,
    /// The layer that it made; none when it changed nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) layer: Option<CachedLayer>,
    /// When it ran, Unix seconds.
    pub(crate) created: i64,
}

/// Tells why bytes are no shared cache.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocumentError {
    #[error("it has more than {DOCUMENT_MAX_BYTES} bytes")]
    TooLarge,
    #[error("it is not a cache that this version reads")]
    Json(#[source] serde_json::Error),
    #[error("it has more than {STEPS_MAX} steps")]
    TooManySteps,
    #[error("layer {0} has the media type {1:?}")]
    MediaType(Digest, String),
}

impl Document {
    /// Reads a document that somebody else has written.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        if bytes.len() > DOCUMENT_MAX_BYTES {
            return Err(DocumentError::TooLarge);
        }
        let document: Self = serde_json::from_slice(bytes).map_err(DocumentError::Json)?;
        document.checked()
    }

    /// Reads the document in the configuration of an image, if there is one.
    pub(crate) fn of_image(config: &[u8]) -> Result<Option<Self>, DocumentError> {
        #[derive(Deserialize)]
        struct Config {
            #[serde(rename = "dev.kiln.cache.v1")]
            cache: Option<Document>,
        }
        let config: Config = serde_json::from_slice(config).map_err(DocumentError::Json)?;
        config.cache.map(Self::checked).transpose()
    }

    fn checked(self) -> Result<Self, DocumentError> {
        if self.steps.len() > STEPS_MAX {
            return Err(DocumentError::TooManySteps);
        }
        for layer in self.steps.iter().filter_map(|step| step.layer.as_ref()) {
            if !oci::media_type::is_layer(&layer.media_type) {
                let name = layer.media_type.clone();
                return Err(DocumentError::MediaType(layer.digest.clone(), name));
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(media_type: &str) -> Document {
        Document {
            steps: vec![SharedStep {
                operation: Digest::sha256(b"operation"),
                step: Digest::sha256(b"step"),
                layer: Some(CachedLayer {
                    diff_id: Digest::sha256(b"plain"),
                    digest: Digest::sha256(b"packed"),
                    size_bytes: 7,
                    media_type: media_type.to_owned(),
                }),
                created: 17,
            }],
            sources: BTreeMap::from([(Digest::sha256(b"a"), Digest::sha256(b"b"))]),
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let written = document(oci::media_type::OCI_LAYER_GZIP);
        let bytes = serde_json::to_vec(&written).unwrap();
        assert_eq!(Document::parse(&bytes).unwrap(), written);
        let config = serde_json::json!({ "os": "linux", FIELD: written });
        let config = serde_json::to_vec(&config).unwrap();
        assert_eq!(Document::of_image(&config).unwrap(), Some(written));
        assert_eq!(Document::of_image(b"{\"os\":\"linux\"}").unwrap(), None);
    }

    #[test]
    fn what_is_no_cache_is_an_error() {
        let strange = serde_json::to_vec(&document("text/html")).unwrap();
        let bad: [&[u8]; 6] = [
            b"",
            b"null",
            b"{\"steps\":17}",
            b"{\"steps\":[{\"operation\":\"sha256:../../etc\",\"step\":\"x\",\"created\":1}]}",
            b"\xff\xfe",
            &strange,
        ];
        for bytes in bad {
            assert!(Document::parse(bytes).is_err(), "{}", bytes.escape_ascii());
        }
        let large = vec![b' '; DOCUMENT_MAX_BYTES + 1];
        assert!(matches!(
            Document::parse(&large),
            Err(DocumentError::TooLarge)
        ));
    }
}
