//! Pins base images: reference → digest, configuration, layers. Nothing of their content is pulled here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use dockerfile::BaseKey;
use oci::{Document, ImageConfig, Platform, Reference};
use registry::client::Client;
use store::Store;

use crate::assemble::LayerRef;
use crate::event::{Event, Failure, FailureKind};
use crate::execute::shown::Stored;
use crate::failure::{base_image, failure, platform as platform_failure};
use crate::recorder::Recorder;
use crate::spec::{LayoutImage, Registries};

/// A base image that is pinned.
#[derive(Debug, Clone)]
pub(crate) struct BaseImage {
    pub(crate) pinned: Reference,
    pub(crate) config: ImageConfig,
    pub(crate) layers: Vec<LayerRef>,
    pub(crate) manifest_bytes: Vec<u8>,
    pub(crate) manifest: oci::Manifest,
    pub(crate) config_bytes: Vec<u8>,
}

/// Where base images are looked for.
#[derive(Debug, Clone)]
pub(crate) struct Library {
    pub(crate) store: Store,
    pub(crate) pull: Client,
    pub(crate) registries: Registries,
    pub(crate) recorder: Recorder,
    /// OCI layouts by the names that they stand for.
    pub(crate) layouts: BTreeMap<String, (PathBuf, LayoutImage)>,
    /// What of a layout may be in the store instead.
    pub(crate) stored: Stored,
}

impl Library {
    /// Pins the image of `key`.
    pub(crate) async fn pin(&self, key: &BaseKey) -> Result<BaseImage, Failure> {
        let (reference, platform) = (&key.reference, &key.platform);
        let layout = key.layout.as_deref();
        let step = self.recorder.begin(
            &format!("[internal] load metadata for {}", reference.familiar()),
            None,
        );
        match self.look_up(reference, platform, layout).await {
            Ok(image) => {
                if let Some(digest) = image.pinned.digest() {
                    self.recorder.event(&Event::BaseResolved {
                        reference: reference.familiar(),
                        digest: digest.clone(),
                    });
                }
                step.finish();
                Ok(image)
            }
            Err(failure) => {
                step.fail(&failure.message);
                Err(failure)
            }
        }
    }

    async fn look_up(
        &self,
        reference: &Reference,
        platform: &Platform,
        layout: Option<&str>,
    ) -> Result<BaseImage, Failure> {
        if let Some(name) = layout {
            return self.read_layout(name, reference, platform).await;
        }
        let is_ours = self.is_embedded(reference);
        // In the same words as for one that is not there: nobody learns what others have.
        if is_ours && !self.registries.readable.allows(reference.repository()) {
            return Err(missing(reference));
        }
        if is_ours || self.is_kept(reference) {
            let (library, reference, platform) =
                (self.clone(), reference.clone(), platform.clone());
            let found = tokio::task::spawn_blocking(move || {
                read_from_store(&library.store, &reference, &platform)
            })
            .await;
            return found.unwrap_or_else(|e| Err(platform_failure("read a base image", &e)));
        }
        let image = self
            .pull
            .image(reference, platform)
            .await
            .map_err(|e| base_image(reference, &e))?;
        let pinned = reference.with_digest(image.descriptor.digest.clone());
        let layers = layers_of(&image.manifest, &image.config, &pinned)?;
        Ok(BaseImage {
            layers,
            pinned,
            config: image.config,
            manifest_bytes: image.manifest_bytes.to_vec(),
            manifest: image.manifest,
            config_bytes: image.config_bytes.to_vec(),
        })
    }

    async fn read_layout(
        &self,
        name: &str,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<BaseImage, Failure> {
        let layout = self.layouts.get(name).cloned().ok_or_else(|| {
            let message = format!("there is no OCI layout called {name:?}");
            failure(FailureKind::Platform, message)
        })?;
        let (library, reference, platform) = (self.clone(), reference.clone(), platform.clone());
        let read = tokio::task::spawn_blocking(move || {
            let store = (&library.store, library.stored);
            super::layout::read(store, &layout, &reference, &platform)
        });
        read.await
            .unwrap_or_else(|e| Err(platform_failure("read an OCI layout", &e)))
    }

    /// Tells whether `reference` is a name in the embedded registry.
    pub(crate) fn is_embedded(&self, reference: &Reference) -> bool {
        let mut hosts = self.registries.embedded.iter();
        hosts.any(|host| host == reference.host())
    }

    /// Tells whether `reference` names an image that was built here and kept under that name.
    fn is_kept(&self, reference: &Reference) -> bool {
        self.registries.use_kept && is_kept(&self.store, reference)
    }
}

fn is_kept(store: &Store, reference: &Reference) -> bool {
    let record = store.record(crate::publish::KEPT, &crate::publish::kept_key(reference));
    reference.digest().is_none() && matches!(record, Ok(Some(_)))
}

/// Returns the configuration of the image that was kept in `store` under a name; `None` when none was.
pub fn kept_config(
    store: &Store,
    reference: &Reference,
    platform: &Platform,
) -> Option<Result<ImageConfig, Failure>> {
    let read = || read_from_store(store, reference, platform).map(|image| image.config);
    is_kept(store, reference).then(read)
}

fn missing(reference: &Reference) -> Failure {
    let message = format!("base image does not exist: {}", reference.familiar());
    failure(FailureKind::BaseImageMissing, message)
}

fn read_from_store(
    store: &Store,
    reference: &Reference,
    platform: &Platform,
) -> Result<BaseImage, Failure> {
    let missing = || missing(reference);
    let broken = |error: &(dyn std::error::Error + 'static)| {
        platform_failure(&format!("read image {}", reference.familiar()), error)
    };
    let read = |key: &str| {
        store
            .manifest(reference.repository(), key)
            .map_err(|e| broken(&e))
    };
    let (mut digest, mut bytes) = read(&reference.manifest_key())?.ok_or_else(missing)?;
    let mut document = Document::parse(None, &bytes).map_err(|e| broken(&e))?;
    if let Document::Index(index) = &document {
        let entry = index.for_platform(platform).ok_or_else(missing)?;
        (digest, bytes) = read(&entry.digest.to_string())?.ok_or_else(missing)?;
        document = Document::parse(None, &bytes).map_err(|e| broken(&e))?;
    }
    let Document::Manifest(manifest) = document else {
        return Err(missing());
    };
    let config_bytes = store.read_blob(&manifest.config.digest, oci::config::CONFIG_MAX_BYTES);
    let config_bytes = config_bytes.map_err(|e| broken(&e))?.ok_or_else(missing)?;
    let config: ImageConfig = serde_json::from_slice(&config_bytes).map_err(|e| broken(&e))?;
    let pinned = reference.with_digest(digest);
    Ok(BaseImage {
        layers: layers_of(&manifest, &config, &pinned)?,
        pinned,
        config,
        manifest_bytes: bytes,
        manifest,
        config_bytes,
    })
}

pub(super) fn layers_of(
    manifest: &oci::Manifest,
    config: &ImageConfig,
    pinned: &Reference,
) -> Result<Vec<LayerRef>, Failure> {
    if manifest.layers.len() != config.rootfs.diff_ids.len() {
        let message = format!(
            "image {} is broken: {} layers, but {} diff ids",
            pinned.familiar(),
            manifest.layers.len(),
            config.rootfs.diff_ids.len()
        );
        return Err(failure(FailureKind::BaseImage, message));
    }
    let pairs = manifest.layers.iter().zip(&config.rootfs.diff_ids);
    let layers = pairs.map(|(descriptor, diff_id)| LayerRef {
        diff_id: diff_id.clone(),
        descriptor: descriptor.clone(),
        origin: Some(pinned.clone()),
    });
    Ok(layers.collect())
}
