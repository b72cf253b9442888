//! From a finished stage to an image: configuration and manifest, the same bytes for the same inputs.

use std::collections::BTreeMap;

use oci::{Descriptor, Digest, History, ImageConfig, Manifest, Reference, media_type};
use serde::{Deserialize, Serialize};

use crate::event::{Failure, FailureKind};
use crate::failure::failure;
use crate::spec::MediaTypes;

/// A layer of an image, wherever its bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRef {
    pub(crate) diff_id: Digest,
    pub(crate) descriptor: Descriptor,
    /// Where it can be pulled from, or mounted from, when the store has not got it.
    pub(crate) origin: Option<Reference>,
}

/// An image that is ready to be published.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) manifest_bytes: Vec<u8>,
    pub(crate) manifest: Manifest,
    pub(crate) config_bytes: Vec<u8>,
    /// Where the configuration is already, when this is another name for an image that exists.
    pub(crate) config_origin: Option<Reference>,
    pub(crate) layers: Vec<LayerRef>,
}

/// Formats Unix seconds as RFC 3339, in UTC.
pub(crate) fn rfc3339(unix_s: i64) -> String {
    let (days, second) = (unix_s.div_euclid(86_400), unix_s.rem_euclid(86_400));
    // Howard Hinnant's civil_from_days: eras of 400 years, years that begin in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z",
        second % 60
    )
}

/// Makes the image of `config`, whose history has an entry for each layer, and `layers`.
pub(crate) fn assemble(
    mut config: ImageConfig,
    layers: Vec<LayerRef>,
    created_unix_s: Option<i64>,
    (media_types, annotations): (MediaTypes, &BTreeMap<String, String>),
) -> Result<Image, Failure> {
    if layers.len() > oci::manifest::LAYERS_MAX {
        let message = format!(
            "the image has {} layers, at most {} are possible",
            layers.len(),
            oci::manifest::LAYERS_MAX
        );
        return Err(failure(FailureKind::Dockerfile, message));
    }
    config.created = created_unix_s.map(rfc3339).or(config.created);
    config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    let encode = |error: serde_json::Error| {
        failure(FailureKind::Platform, format!("encode the image: {error}"))
    };
    let config_bytes = serde_json::to_vec(&config).map_err(encode)?;
    let (manifest_type, config_type) = match media_types {
        MediaTypes::Oci => (media_type::OCI_MANIFEST, media_type::OCI_CONFIG),
        MediaTypes::Docker => (media_type::DOCKER_MANIFEST, media_type::DOCKER_CONFIG),
    };
    let manifest = Manifest {
        schema_version: 2,
        media_type: manifest_type.to_owned(),
        artifact_type: None,
        config: descriptor(config_type, &config_bytes),
        layers: layers
            .iter()
            .map(|layer| layer_descriptor(layer, media_types))
            .collect(),
        subject: None,
        // Docker's manifests have no place for them.
        annotations: match media_types {
            MediaTypes::Oci => annotations.clone(),
            MediaTypes::Docker => BTreeMap::new(),
        },
    };
    let manifest_bytes = serde_json::to_vec(&manifest).map_err(encode)?;
    Ok(Image {
        digest: Digest::sha256(&manifest_bytes),
        media_type: manifest_type.to_owned(),
        manifest_bytes,
        manifest,
        config_bytes,
        config_origin: None,
        layers,
    })
}

/// Returns the descriptor of `bytes`.
pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::sha256(bytes),
        size: bytes.len() as u64,
        platform: None,
        annotations: BTreeMap::new(),
    }
}

/// Layers keep their bytes; only the name of the format follows the family.
fn layer_descriptor(layer: &LayerRef, media_types: MediaTypes) -> Descriptor {
    let known = layer.descriptor.media_type.as_str();
    let name = match (media_types, known) {
        (MediaTypes::Oci, media_type::DOCKER_LAYER_GZIP) => media_type::OCI_LAYER_GZIP,
        (MediaTypes::Oci, media_type::DOCKER_LAYER) => media_type::OCI_LAYER,
        (MediaTypes::Docker, media_type::OCI_LAYER_GZIP) => media_type::DOCKER_LAYER_GZIP,
        (MediaTypes::Docker, media_type::OCI_LAYER) => media_type::DOCKER_LAYER,
        (_, known) => known,
    };
    Descriptor {
        media_type: name.to_owned(),
        platform: None,
        annotations: BTreeMap::new(),
        ..layer.descriptor.clone()
    }
}

/// Marks the history entry at `index` as one without a layer.
pub(crate) fn mark_empty(history: &mut [History], index: usize) {
    if let Some(entry) = history.get_mut(index) {
        entry.empty_layer = Some(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci::Platform;

    #[test]
    fn times_are_written_as_everybody_writes_them() {
        for (unix_s, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(unix_s), text);
        }
    }

    #[test]
    fn the_same_inputs_give_the_same_bytes() {
        let layer = LayerRef {
            diff_id: Digest::sha256(b"tar"),
            descriptor: descriptor(media_type::DOCKER_LAYER_GZIP, b"gz"),
            origin: None,
        };
        let make = |types| {
            let config = ImageConfig::scratch(&Platform::linux_amd64());
            let form = (types, &BTreeMap::new());
            assemble(config, vec![layer.clone()], Some(7), form).unwrap()
        };
        assert_eq!(make(MediaTypes::Oci).digest, make(MediaTypes::Oci).digest);
        let oci = make(MediaTypes::Oci).manifest;
        assert_eq!(oci.layers[0].media_type, media_type::OCI_LAYER_GZIP);
        assert_eq!(oci.layers[0].digest, Digest::sha256(b"gz"));
    }
}
