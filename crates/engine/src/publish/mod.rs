//! Publishes an image: into the embedded registry, to other registries, into files.
//!
//! In the embedded registry no byte moves: the blobs are in the store it shares, and a name is a link. To another registry only what
//! it has not got is sent, and "published" is said when it has answered for everything.

mod export;
mod remote;
mod root;

use std::path::PathBuf;

use oci::{Digest, Reference};
use registry::client::Client;
use store::Store;

use crate::assemble::Image;
use crate::event::{Event, Failure};
use crate::execute::ahead::{Ahead, Sent};
use crate::execute::depot::Depot;
use crate::failure::platform;
use crate::recorder::{Recorder, Step};
use crate::spec::{ExportFormat, Output};
use crate::subassembly;

/// Kind of the records that say which images were kept under a name.
pub(crate) const KEPT: &str = "kept";

/// Kinds of the records that are no cache: they say what somebody gave a name.
pub const NAMED_RECORDS: &[&str] = &[KEPT];

/// Returns the key under which an image kept as `reference` is recorded.
pub(crate) fn kept_key(reference: &Reference) -> String {
    let name = format!("{}:{}", reference.name(), reference.tag_or_latest());
    Digest::sha256(name.as_bytes()).hex().to_owned()
}

/// Returns the image that was kept in `store` under a name.
pub fn kept_image(store: &Store, reference: &Reference) -> Option<Digest> {
    let bytes = store.record(KEPT, &kept_key(reference)).ok()??;
    std::str::from_utf8(&bytes).ok()?.parse().ok()
}

/// What publishing needs.
#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    pub(crate) depot: Depot,
    /// Pushes, with the service's own credentials.
    pub(crate) client: Client,
    /// What is pushed already while steps run.
    pub(crate) ahead: Ahead,
    /// Hosts that mean the embedded registry.
    pub(crate) embedded: Vec<String>,
    /// The build's folder.
    pub(crate) folder: PathBuf,
    /// Most bytes of an exported file.
    pub(crate) export_bytes: u64,
}

/// Does everything that was asked to be done with `image`; returns the names under which it can be found.
pub(crate) async fn publish(
    publisher: &Publisher,
    image: &Image,
    outputs: &[Output],
    recorder: &Recorder,
) -> Result<Vec<Reference>, Failure> {
    let mut references = Vec::new();
    for output in outputs {
        let name = match output {
            Output::Publish { reference } => format!("[internal] publish {}", reference.familiar()),
            Output::Keep { reference } => format!("[internal] keep as {}", reference.familiar()),
            Output::Export { format, name, .. } => {
                format!("[internal] export {format:?} to {name}")
            }
            Output::Subassembly { format, .. } => {
                format!("[internal] make a subassembly ({format})")
            }
        };
        let step = recorder.begin(&name, None);
        let done = match output {
            Output::Publish { reference }
                if publisher
                    .embedded
                    .iter()
                    .any(|host| host == reference.host()) =>
            {
                to_store(publisher, image, reference, Keeping::Published).await
            }
            Output::Publish { reference } => {
                to_registry(publisher, image, (reference, &references), &step).await
            }
            Output::Keep { reference } => {
                to_store(publisher, image, reference, Keeping::Kept).await
            }
            Output::Export {
                format,
                name,
                references,
            } => export::export(publisher, image, *format, (name, references)).await,
            Output::Subassembly {
                format,
                tenant,
                bucket,
            } => {
                let wanted = subassembly::Wanted {
                    format: *format,
                    tenant,
                    bucket: bucket.as_deref(),
                };
                subassembly::make(publisher, image, wanted).await
            }
        };
        if let Err(failure) = done {
            step.fail(&failure.message);
            return Err(failure);
        }
        step.finish();
        if let Output::Publish { reference } | Output::Keep { reference } = output {
            references.push(reference.clone());
            recorder.event(&Event::Published {
                reference: reference.clone(),
                digest: image.digest.clone(),
            });
        }
    }
    Ok(references)
}

/// Pushes over the network, and says what was sent before and what could not be.
async fn to_registry(
    publisher: &Publisher,
    image: &Image,
    (reference, earlier): (&Reference, &[Reference]),
    step: &Step,
) -> Result<(), Failure> {
    let ahead = &publisher.ahead;
    let say_broken = || {
        for line in ahead.broken_off(reference) {
            step.say(&line);
        }
    };
    // What broke off while steps ran, before anybody waits for it; and what was still on its way.
    say_broken();
    let pushed = remote::push(publisher, image, reference, earlier).await;
    say_broken();
    let sent = ahead.sent(reference);
    if sent.n_layers > 0 {
        step.say(&told(sent));
    }
    pushed
}

fn told(sent: Sent) -> String {
    let (n_layers, n_bytes) = (sent.n_layers, sent.n_bytes);
    let layers = if n_layers == 1 { "layer" } else { "layers" };
    format!("sent while steps ran: {n_layers} {layers}, {n_bytes} bytes")
}

/// Publishes a cache, which is something like an image, as `reference`.
pub(crate) async fn cache_to_registry(
    publisher: &Publisher,
    cache: &Image,
    reference: &Reference,
) -> Result<(), Failure> {
    let is_ours = |host: &String| host == reference.host();
    if publisher.embedded.iter().any(is_ours) {
        return to_store(publisher, cache, reference, Keeping::Published).await;
    }
    remote::push(publisher, cache, reference, &[]).await
}

/// Writes a cache as an OCI layout, to the folder `name` below the build's output folder.
pub(crate) async fn cache_to_folder(
    publisher: &Publisher,
    cache: &Image,
    name: &str,
) -> Result<(), Failure> {
    export::to_folder(publisher, cache, name).await
}

/// The same as a tar archive.
pub(crate) async fn cache_to_archive(
    publisher: &Publisher,
    cache: &Image,
    name: &str,
) -> Result<(), Failure> {
    export::export(publisher, cache, ExportFormat::Oci, (name, &[])).await
}

/// Returns the names of exported files, below the build's output folder.
pub(crate) fn output_names(outputs: &[Output]) -> Vec<String> {
    let name = |output: &Output| match output {
        Output::Export { name, .. } => Some(name.clone()),
        Output::Publish { .. } | Output::Keep { .. } | Output::Subassembly { .. } => None,
    };
    outputs.iter().filter_map(name).collect()
}

/// Why an image gets a name in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeping {
    /// The embedded registry serves it.
    Published,
    /// Later builds of the same user may start from it by that name.
    Kept,
}

/// Brings every layer of `image` into the store.
pub(crate) async fn bring_all(depot: &Depot, image: &Image) -> Result<(), Failure> {
    let bring = image.layers.iter().map(|layer| depot.bring(layer));
    futures_util::future::try_join_all(bring).await.map(|_| ())
}

async fn to_store(
    publisher: &Publisher,
    image: &Image,
    reference: &Reference,
    keeping: Keeping,
) -> Result<(), Failure> {
    bring_all(&publisher.depot, image).await?;
    let (store, image, reference) = (
        publisher.depot.store.clone(),
        image.clone(),
        reference.clone(),
    );
    let linked =
        tokio::task::spawn_blocking(move || link(&store, &image, &reference, keeping)).await;
    linked.unwrap_or_else(|e| Err(platform("publish an image", &e)))
}

fn link(
    store: &Store,
    image: &Image,
    reference: &Reference,
    keeping: Keeping,
) -> Result<(), Failure> {
    let repository = reference.repository();
    let attempt = format!("publish {}", reference.familiar());
    store
        .put(&image.config_bytes)
        .map_err(|e| platform(&attempt, &e))?;
    store
        .link_blob(repository, &image.manifest.config.digest)
        .map_err(|e| platform(&attempt, &e))?;
    for layer in &image.manifest.layers {
        store
            .link_blob(repository, &layer.digest)
            .map_err(|e| platform(&attempt, &e))?;
    }
    store
        .put_manifest(
            repository,
            &image.manifest_bytes,
            Some(reference.tag_or_latest()),
        )
        .map_err(|e| platform(&attempt, &e))?;
    if keeping == Keeping::Kept {
        let digest = image.digest.to_string();
        store
            .put_record(KEPT, &kept_key(reference), digest.as_bytes())
            .map_err(|e| platform(&attempt, &e))?;
    }
    Ok(())
}
