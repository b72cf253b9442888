//! Layers: an archive in compressed form, known by two digests.
//!
//! [`LayerWriter`] takes the bytes of an archive, compresses and hashes both forms in one pass; a [`Layer`] value exists only
//! for bytes that were written. What it writes depends on the input and the [`Compression`] alone, never on the number of
//! threads or on how the input was cut into calls.
//!
//! [`decompress`] is the way back, with limits against small blobs that unpack to huge archives.
//!
//! What an archive holds is the business of [`crate::tar`] and of whoever unpacks it.

mod decompress;
mod gzip;

#[cfg(test)]
mod tests;

use std::io::{self, Write};

use crate::{Descriptor, Digest, Hasher, media_type};

pub use decompress::{Decompressed, Limits, Packing, decompress, decompress_any};

/// A zstd-compressed layer of an image in Docker's formats. Not in Docker's specification, but what its tools write.
pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// Gzip, levels 1 to 9.
    Gzip {
        /// Higher is smaller and slower.
        level: u32,
    },
    /// Zstandard, levels 1 to 19.
    Zstd {
        /// Higher is smaller and slower.
        level: i32,
    },
}

impl Compression {
    /// Gzip at the lowest level whose layers are at most an eighth larger than those of zlib's own default, whatever is in them.
    pub const DEFAULT_GZIP: Self = Self::Gzip { level: 3 };
    /// Zstandard at its own default level.
    pub const DEFAULT_ZSTD: Self = Self::Zstd { level: 3 };
}

impl Default for Compression {
    fn default() -> Self {
        Self::DEFAULT_GZIP
    }
}

/// Whose names an image's parts are called by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flavour {
    /// The OCI image specification's.
    #[default]
    Oci,
    /// Docker's, schema 2.
    Docker,
}

/// A layer that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// How it is compressed.
    pub compression: Compression,
    /// Digest of the compressed bytes.
    pub digest: Digest,
    /// Number of compressed bytes.
    pub size_bytes: u64,
    /// Digest of the archive.
    pub diff_id: Digest,
    /// Number of bytes of the archive.
    pub uncompressed_size_bytes: u64,
}

impl Layer {
    /// Returns the media type of this layer in an image of `flavour`.
    pub fn media_type(&self, flavour: Flavour) -> &'static str {
        match (flavour, self.compression) {
            (Flavour::Oci, Compression::None) => media_type::OCI_LAYER,
            (Flavour::Oci, Compression::Gzip { .. }) => media_type::OCI_LAYER_GZIP,
            (Flavour::Oci, Compression::Zstd { .. }) => media_type::OCI_LAYER_ZSTD,
            (Flavour::Docker, Compression::None) => media_type::DOCKER_LAYER,
            (Flavour::Docker, Compression::Gzip { .. }) => media_type::DOCKER_LAYER_GZIP,
            (Flavour::Docker, Compression::Zstd { .. }) => DOCKER_LAYER_ZSTD,
        }
    }

    /// Returns the descriptor of this layer in an image of `flavour`.
    pub fn descriptor(&self, flavour: Flavour) -> Descriptor {
        Descriptor {
            media_type: self.media_type(flavour).to_owned(),
            digest: self.digest.clone(),
            size: self.size_bytes,
            platform: None,
            annotations: std::collections::BTreeMap::new(),
        }
    }
}

/// Writes a layer: takes the bytes of the archive, writes compressed ones.
#[derive(Debug)]
pub struct LayerWriter<W: Write> {
    compression: Compression,
    diff_id: Hasher,
    encoder: Encoder<W>,
}

enum Encoder<W: Write> {
    None(HashWriter<W>),
    Gzip(Box<gzip::GzipWriter<HashWriter<W>>>),
    Zstd(Box<zstd::stream::write::Encoder<'static, HashWriter<W>>>),
}

impl<W: Write> std::fmt::Debug for Encoder<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None(_) => "None",
            Self::Gzip(_) => "Gzip",
            Self::Zstd(_) => "Zstd",
        })
    }
}

impl<W: Write> LayerWriter<W> {
    /// Returns a writer of a layer into `out`, compressing on `n_threads` threads (at least one).
    ///
    /// # Errors
    /// When threads cannot be started, or the level is none.
    pub fn new(out: W, compression: Compression, n_threads: usize) -> io::Result<Self> {
        let out = HashWriter {
            out,
            hasher: Hasher::sha256(),
        };
        let bad_level = || io::Error::new(io::ErrorKind::InvalidInput, "no such level");
        let encoder = match compression {
            Compression::None => Encoder::None(out),
            Compression::Gzip { level } if (1..=9).contains(&level) => {
                Encoder::Gzip(Box::new(gzip::GzipWriter::new(out, level, n_threads)?))
            }
            Compression::Gzip { .. } => return Err(bad_level()),
            Compression::Zstd { level } if !(1..=19).contains(&level) => return Err(bad_level()),
            Compression::Zstd { level } => {
                let mut encoder = zstd::stream::write::Encoder::new(out, level)?;
                encoder.include_checksum(true)?;
                // Without workers the same input gives other bytes than with any number of them.
                let n_workers = u32::try_from(n_threads.max(1)).unwrap_or(1);
                encoder.multithread(n_workers)?;
                Encoder::Zstd(Box::new(encoder))
            }
        };
        Ok(Self {
            compression,
            diff_id: Hasher::sha256(),
            encoder,
        })
    }

    /// Writes what is left and returns the layer and the stream that it was written to (not flushed).
    ///
    /// # Errors
    /// When the stream fails.
    pub fn finish(self) -> io::Result<(Layer, W)> {
        let out = match self.encoder {
            Encoder::None(out) => out,
            Encoder::Gzip(encoder) => encoder.finish()?,
            Encoder::Zstd(encoder) => encoder.finish()?,
        };
        let layer = Layer {
            compression: self.compression,
            size_bytes: out.hasher.size_bytes(),
            digest: out.hasher.finish(),
            uncompressed_size_bytes: self.diff_id.size_bytes(),
            diff_id: self.diff_id.finish(),
        };
        Ok((layer, out.out))
    }
}

impl<W: Write> Write for LayerWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = match &mut self.encoder {
            Encoder::None(out) => out.write(bytes)?,
            Encoder::Gzip(encoder) => encoder.write(bytes)?,
            Encoder::Zstd(encoder) => encoder.write(bytes)?,
        };
        self.diff_id.update(bytes.get(..n).unwrap_or_default());
        Ok(n)
    }

    /// Does nothing: a flush in the middle would change what is written.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hashes what passes through.
#[derive(Debug)]
struct HashWriter<W> {
    out: W,
    hasher: Hasher,
}

impl<W: Write> Write for HashWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hasher.update(bytes.get(..n).unwrap_or_default());
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
