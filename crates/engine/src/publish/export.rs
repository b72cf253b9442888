//! Images as files below the build's output folder: OCI layouts, `docker save` archives, root filesystems.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};

use oci::tar::{Entry, Kind, Writer};
use oci::{Digest, Reference};
use serde_json::json;
use store::Store;

use super::{Publisher, bring_all, root};
use crate::assemble::{Image, descriptor};
use crate::event::{Failure, FailureKind};
use crate::execute::layers::Layer;
use crate::failure::{failure, platform};
use crate::spec::ExportFormat;

/// Writes `image` in `format`; `what` is its name below the output folder and the references recorded inside.
pub(super) async fn export(
    publisher: &Publisher,
    image: &Image,
    format: ExportFormat,
    what: (&str, &[Reference]),
) -> Result<(), Failure> {
    let (name, references) = (what.0.to_owned(), what.1.to_vec());
    if name.is_empty() || name.starts_with('.') || name.contains('/') {
        return Err(failure(
            FailureKind::Platform,
            format!("{name:?} is not the name of an output"),
        ));
    }
    let path = publisher.folder.join("output").join(name);
    bring_all(&publisher.depot, image).await?;
    match format {
        ExportFormat::Oci | ExportFormat::Docker => {
            let (store, image) = (publisher.depot.store.clone(), image.clone());
            let written = tokio::task::spawn_blocking(move || {
                let file = File::create(&path)?;
                let mut tar = Writer::new(BufWriter::new(file));
                match format {
                    ExportFormat::Docker => docker_archive(&mut tar, &store, &image, &references)?,
                    _ => oci_layout(&mut tar, &store, &image, &references)?,
                }
                tar.finish().map_err(io::Error::other)?.flush()
            });
            let written: io::Result<()> =
                written.await.unwrap_or_else(|e| Err(io::Error::other(e)));
            written.map_err(|e| platform("export the image", &e))
        }
        ExportFormat::Tar | ExportFormat::Local => {
            let layers: Vec<_> = image
                .layers
                .iter()
                .map(|layer| Layer::known(Some(layer.clone()), None))
                .collect();
            let lowers = publisher.depot.directories(&layers).await?;
            let cancel = publisher.depot.cancel.clone();
            let written =
                tokio::task::spawn_blocking(move || root::write(&lowers, &path, format, &cancel))
                    .await;
            written.unwrap_or_else(|e| Err(platform("export the root filesystem", &e)))
        }
    }
}

fn oci_layout<W: Write>(
    tar: &mut Writer<W>,
    store: &Store,
    image: &Image,
    references: &[Reference],
) -> io::Result<()> {
    for name in ["blobs/", "blobs/sha256/"] {
        append(tar, &directory(name), &mut io::empty())?;
    }
    let mut seen = std::collections::BTreeSet::new();
    for layer in &image.manifest.layers {
        if seen.insert(layer.digest.clone()) {
            let name = format!("blobs/sha256/{}", layer.digest.hex());
            append_blob(tar, store, &layer.digest, &name)?;
        }
    }
    append_bytes(
        tar,
        &format!("blobs/sha256/{}", image.manifest.config.digest.hex()),
        &image.config_bytes,
    )?;
    append_bytes(
        tar,
        &format!("blobs/sha256/{}", image.digest.hex()),
        &image.manifest_bytes,
    )?;
    let mut manifests = Vec::new();
    let bare = descriptor(&image.media_type, &image.manifest_bytes);
    for reference in references {
        let mut entry = bare.clone();
        let annotations = &mut entry.annotations;
        annotations.insert("io.containerd.image.name".to_owned(), reference.to_string());
        annotations.insert(
            "org.opencontainers.image.ref.name".to_owned(),
            reference.tag_or_latest().to_owned(),
        );
        manifests.push(entry);
    }
    if manifests.is_empty() {
        manifests.push(bare);
    }
    let index = json!({"schemaVersion": 2, "mediaType": oci::media_type::OCI_INDEX, "manifests": manifests});
    append_bytes(tar, "index.json", index.to_string().as_bytes())?;
    append_bytes(tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
}

fn docker_archive<W: Write>(
    tar: &mut Writer<W>,
    store: &Store,
    image: &Image,
    references: &[Reference],
) -> io::Result<()> {
    let config = format!("{}.json", image.manifest.config.digest.hex());
    append_bytes(tar, &config, &image.config_bytes)?;
    let mut names = Vec::new();
    for layer in &image.manifest.layers {
        let name = format!("{}.tar.gz", layer.digest.hex());
        if !names.contains(&name) {
            append_blob(tar, store, &layer.digest, &name)?;
        }
        names.push(name);
    }
    let tags: Vec<String> = references
        .iter()
        .map(|reference| match reference.tag() {
            Some(_) => reference.familiar(),
            None => format!("{}:latest", reference.familiar()),
        })
        .collect();
    let manifest = json!([{"Config": config, "RepoTags": tags, "Layers": names}]);
    append_bytes(tar, "manifest.json", manifest.to_string().as_bytes())
}

fn append_blob<W: Write>(
    tar: &mut Writer<W>,
    store: &Store,
    digest: &Digest,
    name: &str,
) -> io::Result<()> {
    let blob = store.open_blob(digest).map_err(io::Error::other)?;
    let blob = blob
        .ok_or_else(|| io::Error::other(format!("blob {digest} is not in the store any more")))?;
    let size = blob.metadata()?.len();
    append(tar, &file(name, size), &mut BufReader::new(blob).take(size))
}

fn append<W: Write>(tar: &mut Writer<W>, entry: &Entry, content: &mut dyn Read) -> io::Result<()> {
    tar.append(entry, content).map_err(io::Error::other)
}

fn append_bytes<W: Write>(tar: &mut Writer<W>, name: &str, bytes: &[u8]) -> io::Result<()> {
    append(tar, &file(name, bytes.len() as u64), &mut &*bytes)
}

fn file(name: &str, size_bytes: u64) -> Entry {
    let mut entry = Entry::new(name.as_bytes(), Kind::File);
    entry.mode = 0o644;
    entry.size = size_bytes;
    entry
}

fn directory(name: &str) -> Entry {
    let mut entry = Entry::new(name.as_bytes(), Kind::Directory);
    entry.mode = 0o755;
    entry
}
