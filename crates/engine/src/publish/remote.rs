//! Pushing to a registry that is not ours.

use bytes::Bytes;
use futures_util::future::try_join_all;
use oci::Reference;
use registry::client::{BlobSource, BlobToPush, ImageToPush, Presence};

use super::{Publisher, bring_all};
use crate::assemble::{Image, LayerRef};
use crate::event::Failure;
use crate::failure::registry as registry_failure;

/// Pushes `image` as `reference`; blobs are borrowed from `earlier` names on the same registry where it lends them.
pub(super) async fn push(
    publisher: &Publisher,
    image: &Image,
    reference: &Reference,
    earlier: &[Reference],
) -> Result<(), Failure> {
    try_join_all(
        image
            .layers
            .iter()
            .map(|layer| bring_if_needed(publisher, reference, layer)),
    )
    .await?;
    let attempt = format!("push {}", reference.familiar());
    let Err(error) = push_once(publisher, image, reference, earlier).await else {
        return Ok(());
    };
    // A layer that was to be mounted, and never pulled: pull it after all and send it.
    if image
        .layers
        .iter()
        .all(|layer| may_be_sent(publisher, layer))
    {
        return Err(registry_failure(&attempt, &error));
    }
    bring_all(&publisher.depot, image).await?;
    let to_push = image_to_push(publisher, image, reference, earlier);
    let pushed = publisher
        .client
        .push_image(reference, &to_push, &|_, _| ())
        .await;
    pushed.map(drop).map_err(|e| registry_failure(&attempt, &e))
}

/// Pushes what is not on its way already while the rest of that arrives, and then the image.
async fn push_once(
    publisher: &Publisher,
    image: &Image,
    reference: &Reference,
    earlier: &[Reference],
) -> Result<(), registry::client::Error> {
    let (ahead, client) = (&publisher.ahead, &publisher.client);
    let mut others = image_to_push(publisher, image, reference, earlier).blobs;
    others.retain(|blob| !ahead.was_begun(reference, &blob.descriptor.digest));
    let arriving = async {
        ahead.arrived(reference).await;
        Ok(())
    };
    tokio::try_join!(arriving, client.push_beforehand(reference, &others))?;
    let mut to_push = image_to_push(publisher, image, reference, earlier);
    for blob in &mut to_push.blobs {
        if others
            .iter()
            .any(|other| other.descriptor.digest == blob.descriptor.digest)
        {
            blob.presence = Presence::Told;
        }
    }
    let pushed = client.push_image(reference, &to_push, &|_, _| ());
    pushed.await.map(drop)
}

/// A layer of a base need not come here when the target has it, or can take it from its own repository.
async fn bring_if_needed(
    publisher: &Publisher,
    target: &Reference,
    layer: &LayerRef,
) -> Result<(), Failure> {
    let is_neighbour = layer
        .origin
        .as_ref()
        .is_some_and(|origin| origin.host() == target.host());
    if may_be_sent(publisher, layer) || is_neighbour {
        return Ok(());
    }
    match publisher
        .client
        .has_blob(target, &layer.descriptor.digest)
        .await
    {
        Ok(Some(_)) => Ok(()),
        // Whatever is wrong with the target is told when it is pushed to.
        Ok(None) | Err(_) => publisher.depot.bring(layer).await,
    }
}

/// Tells whether the bytes of `layer` are here, and this build's to send.
fn may_be_sent(publisher: &Publisher, layer: &LayerRef) -> bool {
    let size = publisher.depot.store.size_of(&layer.descriptor.digest);
    matches!(size, Ok(Some(_))) && publisher.depot.is_shown(layer)
}

fn image_to_push(
    publisher: &Publisher,
    image: &Image,
    reference: &Reference,
    earlier: &[Reference],
) -> ImageToPush {
    let store = &publisher.depot.store;
    let neighbours = earlier
        .iter()
        .filter(|name| name.host() == reference.host());
    let neighbours: Vec<Reference> = neighbours.cloned().collect();
    let layers = image
        .layers
        .iter()
        .zip(&image.manifest.layers)
        .map(|(layer, descriptor)| {
            let origin = layer
                .origin
                .iter()
                .filter(|origin| origin.host() == reference.host());
            // Whatever the target says of it: what this build was not shown is mounted or there already, or is not sent.
            let source = if publisher.depot.is_shown(layer) {
                BlobSource::Store(store.clone(), descriptor.digest.clone())
            } else {
                BlobSource::Elsewhere
            };
            BlobToPush {
                descriptor: descriptor.clone(),
                source,
                mount_from: origin.chain(&neighbours).cloned().collect(),
                presence: if publisher.ahead.has_sent(reference, &descriptor.digest) {
                    Presence::Told
                } else {
                    Presence::Unknown
                },
            }
        });
    let config_origin = image
        .config_origin
        .iter()
        .filter(|origin| origin.host() == reference.host());
    let config = BlobToPush {
        descriptor: image.manifest.config.clone(),
        source: BlobSource::Bytes(Bytes::from(image.config_bytes.clone())),
        mount_from: config_origin.cloned().collect(),
        presence: Presence::Unknown,
    };
    ImageToPush {
        manifest: Bytes::from(image.manifest_bytes.clone()),
        media_type: image.media_type.clone(),
        blobs: layers.chain(std::iter::once(config)).collect(),
    }
}
