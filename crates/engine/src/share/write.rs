//! Writes what a build has learnt where other machines find it.

use std::collections::{BTreeMap, HashMap};

use dockerfile::{BaseRef, Plan};
use oci::manifest::LAYERS_MAX;
use oci::{Descriptor, Digest, Manifest, media_type};

use super::document::{DOCUMENT_MAX_BYTES, Document, MEDIA_TYPE};
use super::table::{Origin, Table};
use super::{CacheTo, CachedSteps, OnCacheError};
use crate::assemble::{Image, LayerRef, descriptor};
use crate::event::{Failure, FailureKind};
use crate::failure::failure;
use crate::publish::{self, Publisher};
use crate::recorder::Recorder;

/// Writes every cache that is a thing of its own.
pub(crate) async fn write_all(
    to: &[CacheTo],
    table: &Table,
    plan: &Plan,
    publisher: &Publisher,
    recorder: &Recorder,
) -> Result<(), Failure> {
    for to in to {
        let (name, steps) = match to {
            CacheTo::Registry {
                reference, steps, ..
            } => (reference.familiar(), *steps),
            CacheTo::Folder { name, steps } | CacheTo::Archive { name, steps } => {
                (name.clone(), *steps)
            }
            CacheTo::Inline => continue,
        };
        let step = recorder.begin(&format!("[internal] write cache {name}"), None);
        let written = async {
            let image = artifact(table, plan, steps)?;
            match to {
                CacheTo::Registry { reference, .. } => {
                    publish::cache_to_registry(publisher, &image, reference).await
                }
                CacheTo::Folder { name, .. } => {
                    publish::cache_to_folder(publisher, &image, name).await
                }
                CacheTo::Archive { name, .. } => {
                    publish::cache_to_archive(publisher, &image, name).await
                }
                CacheTo::Inline => Ok(()),
            }
        };
        let Err(failure) = written.await else {
            step.finish();
            continue;
        };
        step.fail(&failure.message);
        match to {
            CacheTo::Registry {
                on_error: OnCacheError::Warn,
                ..
            } => recorder.warn(format!("cache {name} is not written: {}", failure.message)),
            _ => return Err(failure),
        }
    }
    Ok(())
}

/// Returns what an image carries of its own stages.
pub(crate) fn inline(table: &Table, plan: &Plan) -> Document {
    of_own_stages(table, plan).0
}

fn of_own_stages(table: &Table, plan: &Plan) -> (Document, HashMap<Digest, Option<Origin>>) {
    let stages = of_the_image(plan);
    let (document, origins) = table.document(|stage| stages.iter().any(|own| own == stage));
    // What is taken of other stages is known by what those are made of, and they are not in it.
    let document = Document {
        sources: BTreeMap::new(),
        ..document
    };
    (document, origins)
}

/// Returns the cache as something that is published like an image.
fn artifact(table: &Table, plan: &Plan, steps: CachedSteps) -> Result<Image, Failure> {
    let (document, origins) = match steps {
        CachedSteps::All => table.document(|_| true),
        CachedSteps::OfTheImage => of_own_stages(table, plan),
    };
    let encode = |error: serde_json::Error| {
        let text = format!("encode the cache: {error}");
        failure(FailureKind::Platform, text)
    };
    let config_bytes = serde_json::to_vec(&document).map_err(encode)?;
    if config_bytes.len() > DOCUMENT_MAX_BYTES {
        let text = format!("the cache says more than {DOCUMENT_MAX_BYTES} bytes hold");
        return Err(failure(FailureKind::Platform, text));
    }
    let layers = layers(&document, &origins);
    if layers.len() > LAYERS_MAX {
        let n_layers = layers.len();
        let text = format!("the cache has {n_layers} layers, at most {LAYERS_MAX} are possible");
        return Err(failure(FailureKind::Dockerfile, text));
    }
    let manifest = Manifest {
        schema_version: 2,
        media_type: media_type::OCI_MANIFEST.to_owned(),
        artifact_type: None,
        config: descriptor(MEDIA_TYPE, &config_bytes),
        layers: layers
            .iter()
            .map(|layer| layer.descriptor.clone())
            .collect(),
        subject: None,
        annotations: BTreeMap::new(),
    };
    let manifest_bytes = serde_json::to_vec(&manifest).map_err(encode)?;
    Ok(Image {
        digest: Digest::sha256(&manifest_bytes),
        media_type: media_type::OCI_MANIFEST.to_owned(),
        manifest_bytes,
        manifest,
        config_bytes,
        config_origin: None,
        layers,
    })
}

/// Returns the layers of a document, each once.
fn layers(document: &Document, origins: &HashMap<Digest, Option<Origin>>) -> Vec<LayerRef> {
    let mut layers: Vec<LayerRef> = Vec::new();
    for layer in document.steps.iter().filter_map(|step| step.layer.as_ref()) {
        if layers
            .iter()
            .any(|known| known.descriptor.digest == layer.digest)
        {
            continue;
        }
        let origin = match origins.get(&layer.digest) {
            Some(Some(Origin::Registry(reference))) => Some(reference.clone()),
            _ => None,
        };
        layers.push(LayerRef {
            diff_id: layer.diff_id.clone(),
            descriptor: Descriptor {
                media_type: layer.media_type.clone(),
                digest: layer.digest.clone(),
                size: layer.size_bytes,
                platform: None,
                annotations: BTreeMap::new(),
            },
            origin,
        });
    }
    layers
}

/// Returns the stages that the image consists of, as the Dockerfile counts them.
fn of_the_image(plan: &Plan) -> Vec<String> {
    let mut stages = Vec::new();
    let mut next = plan.stage(plan.target);
    while let Some(stage) = next {
        stages.push(stage.declared_index.to_string());
        next = match &stage.base {
            BaseRef::Stage(index) => plan.stage(*index),
            BaseRef::Scratch | BaseRef::Image(_) => None,
        };
    }
    stages
}
