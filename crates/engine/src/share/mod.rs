//! Results of steps that travel: caches kept in registries, folders and images, for machines that have never built the same.
//!
//! A shared cache is an OCI manifest: its configuration is a [`document::Document`], which says for each step what it was made of (in
//! digests) and which layer it made; its layers are those layers. Inside an image it is a field of the image's configuration, and
//! its layers are the image's. Who reads one trusts who wrote it with the content of the image, as with a base.
//!
//! Reading never fails a build, and holds it up for a limited time only: what cannot be read is a warning. A step that is found there
//! is not run, and its layer is pulled when something needs it, like the layers of a base.
//!
//! | file | what it holds |
//! |---|---|
//! | [`document`] | what is written |
//! | [`table`] | what was read, and what this build learns, as the step cache asks for it |
//! | `read` | from registries and folders |
//! | `write` | to registries and folders |

pub(crate) mod document;
pub(crate) mod read;
pub(crate) mod table;
pub(crate) mod write;

use std::path::PathBuf;

use oci::Reference;
use serde::{Deserialize, Serialize};

use crate::spec::LayoutImage;

/// A cache that is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CacheFrom {
    /// In a registry: a cache of its own, or an image that carries one.
    Registry {
        /// Its name.
        reference: Reference,
    },
    /// In an OCI layout that the worker can read.
    Folder {
        /// The layout.
        path: PathBuf,
        /// Which of its manifests.
        image: LayoutImage,
    },
    /// In an OCI layout that was uploaded.
    Uploaded {
        /// Id of the uploaded context that it is.
        context: String,
        /// Which of its manifests.
        image: LayoutImage,
    },
}

/// A cache that is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CacheTo {
    /// Into a registry, with what results are published with.
    Registry {
        /// Its name, with a tag.
        reference: Reference,
        /// What of the build.
        steps: CachedSteps,
        /// What becomes of the build when it cannot be written.
        on_error: OnCacheError,
    },
    /// As an OCI layout below the build's output folder.
    Folder {
        /// Name below the output folder; one path component.
        name: String,
        /// What of the build.
        steps: CachedSteps,
    },
    /// The same as a tar archive.
    Archive {
        /// Name below the output folder; one path component.
        name: String,
        /// What of the build.
        steps: CachedSteps,
    },
    /// Into the configuration of the image itself: steps of its own stages.
    Inline,
}

/// Which steps are written to a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CachedSteps {
    /// Those of the stages that the image consists of: docker's `mode=min`.
    #[default]
    OfTheImage,
    /// Those of all stages: docker's `mode=max`.
    All,
}

/// What becomes of a build whose cache cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnCacheError {
    /// It fails.
    #[default]
    Fail,
    /// It is told.
    Warn,
}
