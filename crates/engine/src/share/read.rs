//! Reads shared caches: before the first step, all at once, for a limited time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use oci::{Document as OciDocument, Platform, Reference};
use registry::client::Client;

use super::CacheFrom;
use super::document::{DOCUMENT_MAX_BYTES, Document, MEDIA_TYPE};
use super::table::{Imported, Origin};
use crate::failure::chain;
use crate::recorder::Recorder;
use crate::resolve::bases::Library;
use crate::resolve::layout;
use crate::rootfs::root::Root;
use crate::spec::LayoutImage;

/// How long a build waits for a cache that may make it faster.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How deep indexes may nest.
const DEPTH_MAX: usize = 4;

/// Where uploaded layouts were put together, by their ids, or why they were not.
pub(crate) type Uploads = BTreeMap<String, Result<PathBuf, String>>;

/// Reads every cache that can be read; what cannot is a warning.
pub(crate) async fn read_all(
    (from, uploads): (&[CacheFrom], &Uploads),
    platform: &Platform,
    library: &Library,
    recorder: &Recorder,
) -> Vec<Imported> {
    let read = from.iter().map(|from| async move {
        let name = name_of(from);
        let step = recorder.begin(&format!("[internal] read cache {name}"), None);
        let read = async {
            match from {
                CacheFrom::Registry { reference } if library.is_embedded(reference) => {
                    of_store(reference, platform, library).await
                }
                CacheFrom::Registry { reference } => {
                    of_registry(reference, platform, &library.pull).await
                }
                CacheFrom::Folder { path, image } => of_folder(path, image, platform).await,
                CacheFrom::Uploaded { context, image } => {
                    let path = uploads.get(context).cloned();
                    let path = path.ok_or_else(|| "its upload is gone".to_owned())?;
                    of_folder(&path?, image, platform).await
                }
            }
        };
        let read = tokio::time::timeout(READ_TIMEOUT, read).await;
        let read = read.unwrap_or_else(|_| {
            let seconds = READ_TIMEOUT.as_secs();
            Err(format!("it could not be read within {seconds} s"))
        });
        match read {
            Ok(imported) => {
                step.say(&format!("{} steps", imported.n_steps()));
                step.finish();
                Some(imported)
            }
            Err(why) => {
                step.fail(&why);
                recorder.warn(format!("cache {name} is not used: {why}"));
                None
            }
        }
    });
    join_all(read).await.into_iter().flatten().collect()
}

fn name_of(from: &CacheFrom) -> String {
    match from {
        CacheFrom::Registry { reference } => reference.familiar(),
        CacheFrom::Folder { path, .. } => {
            let name = path.file_name().unwrap_or(path.as_os_str());
            name.to_string_lossy().into_owned()
        }
        CacheFrom::Uploaded { .. } => "of the caller".to_owned(),
    }
}

async fn of_registry(
    reference: &Reference,
    platform: &Platform,
    client: &Client,
) -> Result<Imported, String> {
    let mut wanted = reference.clone();
    for _ in 0..DEPTH_MAX {
        let resolved = client.resolve(&wanted).await.map_err(|e| chain(&e))?;
        let manifest = match resolved.document {
            OciDocument::Manifest(manifest) => manifest,
            OciDocument::Index(index) => {
                let entry = index.for_platform(platform);
                let entry = entry.ok_or_else(|| format!("it has nothing for {platform}"))?;
                wanted = reference.with_digest(entry.digest.clone());
                continue;
            }
        };
        let config = client
            .blob_bytes(reference, &manifest.config, DOCUMENT_MAX_BYTES)
            .await
            .map_err(|e| chain(&e))?;
        let document = document(&manifest.config.media_type, &config)?;
        return Ok(Imported::new(Origin::Registry(reference.clone()), document));
    }
    Err("its indexes nest too deep".to_owned())
}

/// Of the embedded registry: it is in the store, and nothing has to be connected to.
async fn of_store(
    reference: &Reference,
    platform: &Platform,
    library: &Library,
) -> Result<Imported, String> {
    let missing = || "it is not in the embedded registry".to_owned();
    if !library.registries.readable.allows(reference.repository()) {
        return Err(missing());
    }
    let (store, reference, platform) = (library.store.clone(), reference.clone(), platform.clone());
    let read = move || {
        let mut key = reference.manifest_key();
        for _ in 0..DEPTH_MAX {
            let found = store.manifest(reference.repository(), &key);
            let (_, bytes) = found.map_err(|e| chain(&e))?.ok_or_else(missing)?;
            let manifest = match OciDocument::parse(None, &bytes).map_err(|e| chain(&e))? {
                OciDocument::Manifest(manifest) => manifest,
                OciDocument::Index(index) => {
                    let entry = index.for_platform(&platform);
                    let entry = entry.ok_or_else(|| format!("it has nothing for {platform}"))?;
                    key = entry.digest.to_string();
                    continue;
                }
            };
            let config = store.read_blob(&manifest.config.digest, DOCUMENT_MAX_BYTES);
            let config = config.map_err(|e| chain(&e))?.ok_or_else(missing)?;
            let document = document(&manifest.config.media_type, &config)?;
            return Ok(Imported::new(Origin::Registry(reference), document));
        }
        Err("its indexes nest too deep".to_owned())
    };
    let read = tokio::task::spawn_blocking(read).await;
    read.unwrap_or_else(|e| Err(e.to_string()))
}

async fn of_folder(
    path: &Path,
    image: &LayoutImage,
    platform: &Platform,
) -> Result<Imported, String> {
    let (path, image, platform) = (path.to_owned(), image.clone(), platform.clone());
    let read = tokio::task::spawn_blocking(move || {
        let root = Root::open(&path).map_err(|e| chain(&e))?;
        let (_, _, manifest) = layout::manifest(&root, &image, &platform)?;
        let config = layout::blob(&root, &manifest.config.digest, DOCUMENT_MAX_BYTES as u64)?;
        let document = document(&manifest.config.media_type, &config)?;
        Ok(Imported::new(Origin::Folder(path), document))
    });
    read.await.unwrap_or_else(|e| Err(e.to_string()))
}

fn document(media_type: &str, config: &[u8]) -> Result<Document, String> {
    if media_type == MEDIA_TYPE {
        return Document::parse(config).map_err(|e| chain(&e));
    }
    let found = Document::of_image(config).map_err(|e| chain(&e))?;
    found.ok_or_else(|| "it is an image that carries no cache of kiln".to_owned())
}
