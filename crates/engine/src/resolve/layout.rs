//! An image in an OCI layout on disk: read, verified, and brought into the store.
//!
//! A layout is a folder that somebody else made. Everything in it is reached in-root and believed only under its digest.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use oci::manifest::{DOCUMENT_MAX_BYTES, Manifest};
use oci::{Descriptor, Digest, Document, ImageConfig, Platform, Reference};
use store::Store;

use super::bases::{BaseImage, layers_of};
use crate::event::{Failure, FailureKind};
use crate::execute::shown::Stored;
use crate::failure::{chain, failure};
use crate::rootfs::root::Root;
use crate::spec::LayoutImage;

/// How deep indexes may nest.
const DEPTH_MAX: usize = 4;
/// The annotation that names an image in a layout.
const NAME: &str = "org.opencontainers.image.ref.name";
/// The tag of an image that is asked for without one.
const DEFAULT_TAG: &str = "latest";

/// Returns the image of `layout` for `platform`; its blobs are in the store then. `reference` is what it is called.
pub(crate) fn read(
    (store, stored): (&Store, Stored),
    (layout, image): &(PathBuf, LayoutImage),
    reference: &Reference,
    platform: &Platform,
) -> Result<BaseImage, Failure> {
    let fail = |what: String| {
        let message = format!("OCI layout {}: {what}", layout.display());
        failure(FailureKind::BaseImage, message)
    };
    let root = Root::open(layout).map_err(|e| fail(chain(&e)))?;
    let (digest, bytes, manifest) = manifest(&root, image, platform).map_err(fail)?;
    let mut found = vec![&manifest.config];
    found.extend(&manifest.layers);
    for descriptor in found {
        import((store, stored), &root, descriptor).map_err(fail)?;
    }
    let config_bytes = store
        .read_blob(&manifest.config.digest, oci::config::CONFIG_MAX_BYTES)
        .map_err(|e| fail(chain(&e)))?
        .ok_or_else(|| fail("its configuration is missing".to_owned()))?;
    let config: ImageConfig = serde_json::from_slice(&config_bytes).map_err(|e| fail(chain(&e)))?;
    let pinned = reference.with_digest(digest);
    let mut layers = layers_of(&manifest, &config, &pinned)?;
    for layer in &mut layers {
        // No registry has them under this name: the store does.
        layer.origin = None;
    }
    Ok(BaseImage {
        pinned,
        config,
        layers,
        manifest_bytes: bytes,
        manifest,
        config_bytes,
    })
}

/// Returns the configuration of an image of the layout at `path`; nothing is brought into any store.
pub fn config(
    path: &Path,
    image: &LayoutImage,
    platform: &Platform,
) -> Result<ImageConfig, Failure> {
    let fail = |what: String| {
        let message = format!("OCI layout {}: {what}", path.display());
        failure(FailureKind::BaseImage, message)
    };
    let root = Root::open(path).map_err(|e| fail(chain(&e)))?;
    let (_, _, manifest) = manifest(&root, image, platform).map_err(fail)?;
    let bytes = blob(
        &root,
        &manifest.config.digest,
        oci::config::CONFIG_MAX_BYTES as u64,
    );
    serde_json::from_slice(&bytes.map_err(fail)?).map_err(|e| fail(chain(&e)))
}

/// Returns a manifest of a layout, with its digest and bytes.
pub(crate) fn manifest(
    root: &Root,
    image: &LayoutImage,
    platform: &Platform,
) -> Result<(Digest, Vec<u8>, Manifest), String> {
    let mut digest = match image {
        LayoutImage::Digest(digest) => digest.clone(),
        image => {
            let bytes = file(root, Path::new("index.json"))?;
            let document = Document::parse(None, &bytes).map_err(|e| chain(&e))?;
            let Document::Index(index) = document else {
                return Err("index.json is no index".to_owned());
            };
            choose(&index.manifests, image)?.digest.clone()
        }
    };
    for _ in 0..DEPTH_MAX {
        let bytes = blob(root, &digest, DOCUMENT_MAX_BYTES as u64)?;
        match Document::parse(None, &bytes).map_err(|e| chain(&e))? {
            Document::Manifest(manifest) => return Ok((digest, bytes, manifest)),
            Document::Index(index) => {
                let entry = index.for_platform(platform);
                let entry = entry.ok_or_else(|| format!("there is no image for {platform}"))?;
                digest = entry.digest.clone();
            }
        }
    }
    Err("its indexes nest too deep".to_owned())
}

fn choose<'d>(entries: &'d [Descriptor], image: &LayoutImage) -> Result<&'d Descriptor, String> {
    let tag = match image {
        LayoutImage::Tag(tag) => tag.as_str(),
        _ => DEFAULT_TAG,
    };
    let named = |entry: &&Descriptor| {
        let name = entry.annotations.get(NAME).map(String::as_str);
        // Some tools write the tag, others the whole reference.
        name.is_some_and(|name| name == tag || name.ends_with(&format!(":{tag}")))
    };
    match (entries.iter().find(named), image, entries) {
        (Some(entry), ..) | (None, LayoutImage::Default, [entry]) => Ok(entry),
        (None, LayoutImage::Default, entries) => Err(format!(
            "none of its {} images has the tag {tag:?}: name one with PATH:TAG or PATH@DIGEST",
            entries.len()
        )),
        _ => Err(format!("no image has the tag {tag:?}")),
    }
}

fn blob_path(digest: &Digest) -> PathBuf {
    ["blobs", digest.algorithm().name(), digest.hex()]
        .iter()
        .collect()
}

fn file(root: &Root, path: &Path) -> Result<Vec<u8>, String> {
    root.read_file(path, DOCUMENT_MAX_BYTES as u64)
        .map_err(|e| chain(&e))
}

/// Returns the content of a blob of at most `max_bytes`, verified.
pub(crate) fn blob(root: &Root, digest: &Digest, max_bytes: u64) -> Result<Vec<u8>, String> {
    let bytes = root.read_file(&blob_path(digest), max_bytes);
    let bytes = bytes.map_err(|e| chain(&e))?;
    let mut hasher = digest.hasher();
    hasher.update(&bytes);
    if hasher.finish() != *digest {
        return Err(format!("{digest} has other content"));
    }
    Ok(bytes)
}

/// Copies a blob into the store, verified, unless it is there.
pub(crate) fn import(
    (store, stored): (&Store, Stored),
    root: &Root,
    descriptor: &Descriptor,
) -> Result<(), String> {
    let digest = &descriptor.digest;
    let known = store.size_of(digest).map_err(|e| chain(&e))?;
    if known.is_some() && stored == Stored::Enough {
        return Ok(());
    }
    let file = root
        .open_regular(&blob_path(digest))
        .map_err(|e| chain(&e))?;
    let mut ingest = store.ingest_as(digest.algorithm()).map_err(|e| chain(&e))?;
    // One byte more than it may have is enough to see that it has too many.
    let mut limited = file.take(descriptor.size.saturating_add(1));
    io::copy(&mut limited, &mut ingest).map_err(|e| format!("{digest}: {e}"))?;
    let committed = ingest.commit(Some(digest));
    committed.map(drop).map_err(|e| chain(&e))
}
