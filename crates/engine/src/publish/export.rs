//! Images as files below the build's output folder: OCI layouts, `docker save` archives, root filesystems.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use oci::tar::{Entry, Kind, Writer};
use oci::{Descriptor, Digest, Reference};
use serde_json::json;
use store::Store;

use super::{Publisher, bring_all, root};
use crate::assemble::{Image, descriptor};
use crate::event::{Failure, FailureKind};
use crate::execute::layers::Layer;
use crate::failure::{failure, platform};
use crate::spec::ExportFormat;

/// The file that makes a folder an OCI layout.
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Writes `image` in `format`; `what` is its name below the output folder and the references recorded inside.
pub(super) async fn export(
    publisher: &Publisher,
    image: &Image,
    format: ExportFormat,
    what: (&str, &[Reference]),
) -> Result<(), Failure> {
    let (name, references) = (checked(what.0)?, what.1.to_vec());
    let path = publisher.folder.join("output").join(name);
    bring_all(&publisher.depot, image).await?;
    let cap = Cap::new(publisher.export_bytes);
    let written = write(publisher, image, format, (&path, references, &cap)).await;
    let Err(refused) = written else {
        return Ok(());
    };
    // Nobody fetches half of one, and it may be large. If it cannot be removed it goes with everything else of the build.
    let _left = tokio::task::spawn_blocking(move || store::remove_tree(&path)).await;
    if cap.is_over() {
        let message = format!(
            "export the image: it is larger than {} bytes (limits.export_bytes)",
            cap.max_bytes
        );
        return Err(failure(FailureKind::Dockerfile, message));
    }
    Err(refused)
}

async fn write(
    publisher: &Publisher,
    image: &Image,
    format: ExportFormat,
    (path, references, cap): (&Path, Vec<Reference>, &Cap),
) -> Result<(), Failure> {
    let (path, cap) = (path.to_owned(), cap.clone());
    match format {
        ExportFormat::Oci | ExportFormat::Docker => {
            let (store, image) = (publisher.depot.store.clone(), image.clone());
            let written = tokio::task::spawn_blocking(move || {
                let file = Capped::new(File::create(&path)?, cap);
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
            let written = tokio::task::spawn_blocking(move || {
                root::write(&lowers, (&path, cap), format, &cancel)
            })
            .await;
            written.unwrap_or_else(|e| Err(platform("export the root filesystem", &e)))
        }
    }
}

/// How much an exported file may have, and whether it would have had more.
#[derive(Debug, Clone)]
pub(super) struct Cap {
    max_bytes: u64,
    is_over: Arc<AtomicBool>,
}

impl Cap {
    fn new(max_bytes: u64) -> Self {
        Self {
            max_bytes,
            is_over: Arc::default(),
        }
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

/// A file that takes so much and no more.
pub(super) struct Capped {
    file: File,
    cap: Cap,
    left: u64,
}

impl Capped {
    pub(super) fn new(file: File, cap: Cap) -> Self {
        Self {
            file,
            left: cap.max_bytes,
            cap,
        }
    }
}

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            self.cap.is_over.store(true, Ordering::Relaxed);
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let n = self.file.write(bytes)?;
        self.left -= n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes `image` as an OCI layout, to the folder `name` below the build's output folder.
pub(super) async fn to_folder(
    publisher: &Publisher,
    image: &Image,
    name: &str,
) -> Result<(), Failure> {
    let path = publisher.folder.join("output").join(checked(name)?);
    bring_all(&publisher.depot, image).await?;
    let (store, image) = (publisher.depot.store.clone(), image.clone());
    let written = tokio::task::spawn_blocking(move || folder_layout(&path, &store, &image)).await;
    let written: io::Result<()> = written.unwrap_or_else(|e| Err(io::Error::other(e)));
    written.map_err(|e| platform("write an OCI layout", &e))
}

fn folder_layout(path: &Path, store: &Store, image: &Image) -> io::Result<()> {
    let blobs = path.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    for layer in &image.manifest.layers {
        let mut blob = stored(store, &layer.digest)?;
        let mut file = File::create(blobs.join(layer.digest.hex()))?;
        io::copy(&mut blob, &mut file)?;
    }
    let config = image.manifest.config.digest.hex();
    std::fs::write(blobs.join(config), &image.config_bytes)?;
    std::fs::write(blobs.join(image.digest.hex()), &image.manifest_bytes)?;
    let bare = descriptor(&image.media_type, &image.manifest_bytes);
    std::fs::write(path.join("index.json"), index(&[bare]))?;
    std::fs::write(path.join("oci-layout"), LAYOUT)
}

/// Returns the index of a layout.
fn index(manifests: &[Descriptor]) -> String {
    let media_type = oci::media_type::OCI_INDEX;
    json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}).to_string()
}

fn checked(name: &str) -> Result<&str, Failure> {
    if name.is_empty() || name.starts_with('.') || name.contains('/') {
        let text = format!("{name:?} is not the name of an output");
        return Err(failure(FailureKind::Platform, text));
    }
    Ok(name)
}

fn stored(store: &Store, digest: &Digest) -> io::Result<File> {
    let blob = store.open_blob(digest).map_err(io::Error::other)?;
    blob.ok_or_else(|| io::Error::other(format!("blob {digest} is not in the store any more")))
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
    append_bytes(tar, "index.json", index(&manifests).as_bytes())?;
    append_bytes(tar, "oci-layout", LAYOUT)
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
    let blob = stored(store, digest)?;
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
