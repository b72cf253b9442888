//! What a request asks for, in our words: decoded, checked, nothing looked up yet. [`crate::grpc`] makes these.

use oci::Reference;
use source::initializer::Initializer;

use crate::access::Rights;
use crate::names::{NamedFields, Rebuild};

/// What an image is made from.
#[derive(Debug, Clone)]
pub enum Source {
    /// An image that exists. Has a digest once it is resolved.
    Image(Reference),
    /// A Dockerfile in a workspace.
    File(Box<FileSource>),
}

/// A Dockerfile in a workspace.
#[derive(Debug, Clone)]
pub struct FileSource {
    /// What the workspace is filled with.
    pub initializer: Initializer,
    /// Path of the Dockerfile within the workspace, normalised.
    pub dockerfile: Option<String>,
    /// Folder within the workspace that COPY sees, normalised.
    pub context_path: Option<String>,
    /// What the name is made of.
    pub fields: NamedFields,
}

/// A request to build.
#[derive(Debug, Clone)]
pub struct BuildCall {
    /// From what.
    pub source: Source,
    /// With which credentials.
    pub rights: Rights,
    /// Whether an image that exists is enough.
    pub rebuild: Rebuild,
    /// Who says to have asked; never trusted.
    pub triggered_by: String,
    /// Recorded.
    pub supervisor_ref: String,
    /// A base image that the caller resolved earlier.
    pub resolved_base: Option<String>,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns a source to start tests from.
    pub(crate) fn file_source() -> Source {
        let git = serde_json::json!({
            "remote": "https://example.com/a.git",
            "target_mode": "remote_commit",
            "target": "deadbeef",
        });
        Source::File(Box::new(FileSource {
            initializer: Initializer::Git(Box::new(serde_json::from_value(git).unwrap())),
            dockerfile: Some("Dockerfile".to_owned()),
            context_path: None,
            fields: NamedFields::default(),
        }))
    }
}
