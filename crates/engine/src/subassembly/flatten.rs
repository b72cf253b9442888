//! Layers to one archive without whiteouts, in two passes over their blobs and without unpacking them.
//!
//! 1. read every entry of every layer, bottom first, into a [`Tree`]; compare each layer's digest with what the image says;
//! 2. write the directories, parents first and by name; then the files that are left, in the order in which the layers have them, each
//!    under the first of its names and then as hard links under the others.
//!
//! The same layers give the same bytes. Memory is for the names, not for what is in the files.

use std::io::{self, Read, Write};

use oci::layer::Limits as BlobLimits;
use oci::tar::{self, Entry, Kind, ReadError, Reader, WriteError, Writer};
use oci::{Digest, Hashed, Hasher};
use store::Store;
use tokio_util::sync::CancellationToken;

use super::tree::{Directory, Origin, Tree, TreeError, permitted};
use crate::assemble::LayerRef;

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Flattened {
    /// Bytes of all files, each counted once.
    pub(super) content_bytes: u64,
    /// Names of files and directories.
    pub(super) n_entries: u64,
    /// Device files that were left out.
    pub(super) n_devices: u64,
}

/// Tells why an image could not be flattened.
#[derive(Debug, thiserror::Error)]
pub(super) enum FlattenError {
    /// The store has not got the layer, or cannot read it.
    #[error("open layer {digest}")]
    Open {
        digest: Digest,
        #[source]
        source: io::Error,
    },
    /// The layer is damaged, or no archive, or one that is refused.
    #[error("read layer {digest}")]
    Read {
        digest: Digest,
        #[source]
        source: ReadError,
    },
    /// The layer is another one than the image says.
    #[error("layer {digest} unpacks to {actual}, the image says {expected}")]
    Content {
        digest: Digest,
        expected: Digest,
        actual: Digest,
    },
    /// The layers do not make a root filesystem.
    #[error("apply layer {digest}")]
    Apply {
        digest: Digest,
        #[source]
        source: TreeError,
    },
    /// The files are more than is allowed.
    #[error("image holds more than {0} bytes of files")]
    TooLarge(u64),
    /// The archive could not be written.
    #[error("write the archive")]
    Write(#[source] WriteError),
    /// The caller wanted no more of it.
    #[error("flattening was cancelled")]
    Cancelled,
}

impl FlattenError {
    /// Tells whether the image is to blame.
    pub(super) fn is_of_image(&self) -> bool {
        match self {
            Self::Read { source, .. } => {
                !matches!(source, ReadError::Io(error) if error.raw_os_error().is_some())
            }
            Self::Content { .. } | Self::Apply { .. } | Self::TooLarge(_) => true,
            Self::Open { .. } | Self::Write(_) | Self::Cancelled => false,
        }
    }
}

/// What may be written, and until when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds<'a> {
    /// Bytes of one layer's files.
    pub(super) layer_bytes: u64,
    pub(super) cancel: &'a CancellationToken,
}

/// Writes the root filesystem that `layers` make, as an archive.
pub(super) fn flatten(
    store: &Store,
    layers: &[LayerRef],
    out: &mut impl Write,
    bounds: Bounds<'_>,
) -> Result<Flattened, FlattenError> {
    let mut tree = Tree::new();
    for (number, layer) in (0..).zip(layers) {
        apply(store, layer, number, &mut tree, bounds)?;
    }
    let mut archive = Writer::new(out);
    let mut report = Flattened {
        n_devices: tree.n_devices,
        ..Flattened::default()
    };
    write_directories(&tree, &mut archive).map_err(FlattenError::Write)?;
    let mut wanted = tree.files().into_iter().peekable();
    drop(tree);
    for (number, layer) in (0..).zip(layers) {
        let mut of_layer =
            std::iter::from_fn(|| wanted.next_if(|(origin, _)| origin.layer == number)).peekable();
        if of_layer.peek().is_some() {
            report.content_bytes += write_files(store, layer, &mut of_layer, &mut archive, bounds)?;
        }
    }
    report.n_entries = archive.n_entries();
    archive.finish().map_err(FlattenError::Write)?;
    Ok(report)
}

/// The first pass over one layer.
fn apply(
    store: &Store,
    layer: &LayerRef,
    number: u32,
    tree: &mut Tree,
    bounds: Bounds<'_>,
) -> Result<(), FlattenError> {
    let digest = || layer.descriptor.digest.clone();
    let read = |source| FlattenError::Read {
        digest: digest(),
        source,
    };
    let hashed = Hashed::new(open(store, layer)?, Hasher::sha256());
    let mut reader = Reader::new(
        io::BufReader::with_capacity(BUFFER_BYTES, hashed),
        tar::Limits::default(),
    );
    let (mut n, mut bytes) = (0, 0u64);
    while let Some(entry) = reader.next().map_err(read)? {
        if bounds.cancel.is_cancelled() {
            return Err(FlattenError::Cancelled);
        }
        bytes = bytes.saturating_add(entry.size);
        if bytes > bounds.layer_bytes {
            return Err(FlattenError::TooLarge(bounds.layer_bytes));
        }
        let origin = Origin {
            layer: number,
            entry: n,
        };
        tree.apply(&entry, origin)
            .map_err(|source| FlattenError::Apply {
                digest: digest(),
                source,
            })?;
        n += 1;
    }
    // The digest is of all of it, what follows the archive's end included.
    let mut rest = reader.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(|error| read(ReadError::Io(error)))?;
    let actual = rest.into_inner().into_hasher().finish();
    if actual == layer.diff_id {
        return Ok(());
    }
    Err(FlattenError::Content {
        digest: digest(),
        expected: layer.diff_id.clone(),
        actual,
    })
}

fn write_directories<W: Write>(tree: &Tree, archive: &mut Writer<W>) -> Result<(), WriteError> {
    let mut written = Ok(());
    tree.directories(|path, directory| {
        if written.is_ok() {
            written = archive.append(&entry_of(path, directory), &mut io::empty());
        }
    });
    written
}

fn entry_of(path: &[u8], directory: &Directory) -> Entry {
    // The root is part of it: its mode and owner are the image's.
    let path = if path.is_empty() { &b"."[..] } else { path };
    let mut entry = Entry::new(path, Kind::Directory);
    entry.mode = directory.mode;
    entry.uid = directory.uid;
    entry.gid = directory.gid;
    entry.mtime = directory.mtime;
    entry.xattrs.clone_from(&directory.xattrs);
    entry
}

/// The second pass over one layer; `wanted` are those of its entries that are left, in their order.
fn write_files<W: Write>(
    store: &Store,
    layer: &LayerRef,
    wanted: &mut dyn Iterator<Item = (Origin, Vec<Vec<u8>>)>,
    archive: &mut Writer<W>,
    bounds: Bounds<'_>,
) -> Result<u64, FlattenError> {
    let read = |source| FlattenError::Read {
        digest: layer.descriptor.digest.clone(),
        source,
    };
    let mut reader = Reader::new(
        io::BufReader::with_capacity(BUFFER_BYTES, open(store, layer)?),
        tar::Limits::default(),
    );
    let (mut number, mut content_bytes) = (0, 0);
    for (origin, names) in wanted {
        let mut entry = loop {
            let entry = reader
                .next()
                .map_err(read)?
                .ok_or_else(|| read(ReadError::Truncated))?;
            number += 1;
            if number == origin.entry + 1 {
                break entry;
            }
        };
        if bounds.cancel.is_cancelled() {
            return Err(FlattenError::Cancelled);
        }
        let Some((first, others)) = names.split_first() else {
            continue;
        };
        entry.path.clone_from(first);
        entry.xattrs = permitted(&entry);
        content_bytes += entry.size;
        archive
            .append(&entry, &mut reader)
            .map_err(FlattenError::Write)?;
        for name in others {
            let linked = Entry {
                path: name.clone(),
                kind: Kind::HardLink,
                link: first.clone(),
                size: 0,
                xattrs: std::collections::BTreeMap::new(),
                ..entry
            };
            archive
                .append(&linked, &mut io::empty())
                .map_err(FlattenError::Write)?;
        }
    }
    Ok(content_bytes)
}

const BUFFER_BYTES: usize = 256 << 10;

fn open(store: &Store, layer: &LayerRef) -> Result<impl Read + use<>, FlattenError> {
    let digest = &layer.descriptor.digest;
    let failed = |source| FlattenError::Open {
        digest: digest.clone(),
        source,
    };
    let blob = store
        .open_blob(digest)
        .map_err(|error| failed(io::Error::other(error)))?;
    let blob = blob.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    oci::layer::decompress(blob, BlobLimits::default()).map_err(failed)
}
