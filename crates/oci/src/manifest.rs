//! Descriptors, manifests and indexes, as pulled from and pushed to registries.
//!
//! What was pulled is kept as raw bytes by whoever pulled it and never serialised again: its digest is the digest of those
//! bytes. What we write has a fixed field order and sorted maps.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, Platform, media_type};

/// Largest manifest or index that is read, in bytes.
pub const DOCUMENT_MAX_BYTES: usize = 4 << 20;
/// Most layers an image may have: overlayfs and docker stop at 127.
pub const LAYERS_MAX: usize = 127;
/// Most entries of an index that are read.
pub const INDEX_ENTRIES_MAX: usize = 1024;

/// Says where content is found and how to verify it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Format of the content.
    #[serde(default)]
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Size of the content in bytes.
    pub size: u64,
    /// What the image behind this descriptor runs on; in indexes only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free key-value pairs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// One image: its configuration and layers, bottom first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Format of this document.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Kind of a manifest that is not an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The image configuration.
    pub config: Descriptor,
    /// Layers, bottom first.
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    /// What this manifest refers to (signatures and the like).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free key-value pairs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A list of manifests, usually one per platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// Format of this document.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Kind of an index that is not one image for several platforms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The manifests.
    pub manifests: Vec<Descriptor>,
    /// What this index refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free key-value pairs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What a registry answers for a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// One image for several platforms.
    Index(Index),
}

/// Tells why bytes are not a manifest or an index.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Longer than [`DOCUMENT_MAX_BYTES`].
    #[error("manifest is larger than {DOCUMENT_MAX_BYTES} bytes")]
    TooLarge,
    /// Not JSON of the expected shape.
    #[error("manifest is not valid JSON")]
    Json(#[source] serde_json::Error),
    /// Not schema version 2.
    #[error("manifest has schema version {0}, only version 2 is supported")]
    SchemaVersion(u64),
    /// Fields of both kinds, or a media type that contradicts the fields (CVE-2021-41190).
    #[error("manifest is ambiguous: {0}")]
    Ambiguous(&'static str),
    /// A kind of document that is not an image.
    #[error("media type {0:?} is not an image manifest or index")]
    UnsupportedMediaType(String),
    /// More than [`LAYERS_MAX`] layers.
    #[error("image has {0} layers, at most {LAYERS_MAX} are supported")]
    TooManyLayers(usize),
    /// More than [`INDEX_ENTRIES_MAX`] entries.
    #[error("index has {0} entries, at most {INDEX_ENTRIES_MAX} are read")]
    TooManyEntries(usize),
}

impl Document {
    /// Parses what a registry answered. `content_type` is the answer's header without parameters, if it had one.
    ///
    /// # Errors
    /// See [`DocumentError`]; a document that could be read in two ways is refused.
    pub fn parse(content_type: Option<&str>, bytes: &[u8]) -> Result<Self, DocumentError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Shape {
            schema_version: Option<u64>,
            media_type: Option<String>,
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
            config: Option<serde::de::IgnoredAny>,
        }
        if bytes.len() > DOCUMENT_MAX_BYTES {
            return Err(DocumentError::TooLarge);
        }
        let shape: Shape = serde_json::from_slice(bytes).map_err(DocumentError::Json)?;
        match shape.schema_version {
            Some(2) => {}
            version => return Err(DocumentError::SchemaVersion(version.unwrap_or(0))),
        }
        let is_index = shape.manifests.is_some();
        if is_index && (shape.layers.is_some() || shape.config.is_some()) {
            return Err(DocumentError::Ambiguous("it has both manifests and layers"));
        }
        let known = |name: &&str| media_type::is_index(name) || media_type::is_manifest(name);
        let stated = shape.media_type.as_deref().filter(|name| !name.is_empty());
        if let Some(name) = stated.filter(|name| !known(name)) {
            return Err(DocumentError::UnsupportedMediaType(name.to_owned()));
        }
        for name in [stated, content_type.filter(known)].into_iter().flatten() {
            if media_type::is_index(name) != is_index {
                return Err(DocumentError::Ambiguous(
                    "its media type contradicts its fields",
                ));
            }
        }
        if is_index {
            Self::parse_index(bytes)
        } else {
            Self::parse_manifest(bytes)
        }
    }

    fn parse_index(bytes: &[u8]) -> Result<Self, DocumentError> {
        let index: Index = serde_json::from_slice(bytes).map_err(DocumentError::Json)?;
        match index.manifests.len() {
            n if n > INDEX_ENTRIES_MAX => Err(DocumentError::TooManyEntries(n)),
            _ => Ok(Self::Index(index)),
        }
    }

    fn parse_manifest(bytes: &[u8]) -> Result<Self, DocumentError> {
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(DocumentError::Json)?;
        match manifest.layers.len() {
            n if n > LAYERS_MAX => Err(DocumentError::TooManyLayers(n)),
            _ => Ok(Self::Manifest(manifest)),
        }
    }

    /// Returns the media type to store and push this document under.
    pub fn media_type(&self) -> &str {
        match self {
            Self::Manifest(manifest) if manifest.media_type.is_empty() => media_type::OCI_MANIFEST,
            Self::Manifest(manifest) => &manifest.media_type,
            Self::Index(index) if index.media_type.is_empty() => media_type::OCI_INDEX,
            Self::Index(index) => &index.media_type,
        }
    }
}

impl Index {
    /// Returns the first manifest that serves `wanted`.
    pub fn for_platform(&self, wanted: &Platform) -> Option<&Descriptor> {
        self.manifests.iter().find(|descriptor| {
            descriptor
                .platform
                .as_ref()
                .is_some_and(|platform| platform.satisfies(wanted))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(media_type: &str) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::sha256(b"x"),
            size: 1,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn a_document_with_manifests_and_layers_is_ambiguous() {
        let text = br#"{"schemaVersion":2,"manifests":[],"layers":[]}"#;
        assert!(matches!(
            Document::parse(None, text),
            Err(DocumentError::Ambiguous(_))
        ));
    }

    #[test]
    fn a_media_type_that_contradicts_the_fields_is_refused() {
        let index = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[]}}"#,
            media_type::OCI_MANIFEST
        );
        assert!(matches!(
            Document::parse(None, index.as_bytes()),
            Err(DocumentError::Ambiguous(_))
        ));
        let plain = br#"{"schemaVersion":2,"manifests":[]}"#;
        assert!(Document::parse(Some(media_type::DOCKER_MANIFEST), plain).is_err());
        assert!(Document::parse(Some(media_type::DOCKER_INDEX), plain).is_ok());
    }

    #[test]
    fn limits_are_kept() {
        let layers = vec![descriptor(media_type::OCI_LAYER_GZIP); LAYERS_MAX + 1];
        let manifest = Manifest {
            schema_version: 2,
            media_type: media_type::OCI_MANIFEST.to_owned(),
            artifact_type: None,
            config: descriptor(media_type::OCI_CONFIG),
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        };
        let bytes = serde_json::to_vec(&manifest).unwrap();
        assert!(matches!(
            Document::parse(None, &bytes),
            Err(DocumentError::TooManyLayers(128))
        ));
        let deep = "[".repeat(100_000);
        assert!(matches!(
            Document::parse(None, deep.as_bytes()),
            Err(DocumentError::Json(_))
        ));
        assert!(Document::parse(None, br#"{"schemaVersion":1}"#).is_err());
        assert!(
            Document::parse(
                None,
                br#"{"schemaVersion":2,"config":{"digest":"sha256:zz","size":-1}}"#
            )
            .is_err()
        );
    }
}
