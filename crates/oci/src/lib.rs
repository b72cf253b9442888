//! The nouns of the OCI image and distribution specifications, pure.
//!
//! Nothing here knows of sockets, clocks or tokio: values are made by parsing, serialised deterministically
//! (sorted maps, fixed field order), and layers are read and written over plain byte streams.
//!
//! | module | what it holds |
//! |---|---|
//! | [`digest`] | [`Digest`], the hasher that makes one |
//! | [`mod@reference`] | [`Reference`]: `host/repository[:tag][@digest]`, normalised as docker does |
//! | [`platform`] | [`Platform`]: `os/architecture[/variant]` |
//! | [`manifest`] | descriptors, manifests, indexes, and [`manifest::Document`] that tells them apart |
//! | [`config`] | the image configuration with Docker's extra fields, unknown fields kept |
//! | [`media_type`] | names of formats |
//! | [`tar`] | archives: a strict reader, a canonical writer |
//! | [`layer`] | archives in compressed form, with both digests |
//! | [`validate`] | checks that the parts of an image belong together |

#![forbid(unsafe_code)]

pub mod config;
pub mod digest;
pub mod layer;
pub mod manifest;
pub mod media_type;
pub mod platform;
pub mod reference;
pub mod tar;
pub mod validate;

pub use config::{History, ImageConfig, RootFs, RuntimeConfig};
pub use digest::{Digest, Hashed, Hasher};
pub use manifest::{Descriptor, Document, Index, Manifest};
pub use platform::Platform;
pub use reference::Reference;
