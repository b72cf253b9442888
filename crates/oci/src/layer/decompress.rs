//! Layers and packed archives back into plain ones, with limits.
//!
//! A layer of an image may be packed with gzip or zstd and nothing else ([`decompress`]); archives that a build is given come in other
//! packings too ([`decompress_any`]).

use std::io::{self, BufRead, BufReader, Read};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;

/// Compressed bytes are read in pieces of this size.
const BUFFER_BYTES: usize = 128 << 10;
/// Log2 of the largest zstd window that is accepted: 128 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Most memory that unpacking xz may take, in KiB: what `xz -9` needs, and some.
const XZ_MEMORY_MAX_KIB: u32 = 130 << 10;

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const BZIP2_MAGIC: &[u8] = b"BZh";
const XZ_MAGIC: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];

/// How bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not at all, as far as we can tell.
    None,
    /// Gzip, one or more members.
    Gzip,
    /// Zstandard, one or more frames.
    Zstd,
    /// Bzip2, one or more streams; not for layers.
    Bzip2,
    /// Xz, one or more streams; not for layers.
    Xz,
}

impl Packing {
    /// Returns what the first bytes of something say.
    pub fn of_magic(start: &[u8]) -> Self {
        let is_skippable = matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]);
        match start {
            _ if start.starts_with(GZIP_MAGIC) => Self::Gzip,
            _ if start.starts_with(ZSTD_MAGIC) || is_skippable => Self::Zstd,
            _ if start.starts_with(BZIP2_MAGIC) => Self::Bzip2,
            _ if start.starts_with(XZ_MAGIC) => Self::Xz,
            _ => Self::None,
        }
    }
}

/// How far a blob may unpack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the archive.
    pub archive_bytes: u64,
    /// Bytes of the archive per compressed byte, once [`Limits::ratio_floor_bytes`] were unpacked.
    pub ratio: u64,
    /// Archives up to this size may have any ratio: there are honest layers of zeros.
    pub ratio_floor_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            archive_bytes: 64 << 30,
            ratio: 200,
            ratio_floor_bytes: 1 << 30,
        }
    }
}

/// The archive inside a blob. Reading fails on damage, on bytes behind the end, and where a limit is reached.
pub struct Decompressed<R: Read> {
    inner: Inner<R>,
    limits: Limits,
    n_out: u64,
    packing: Packing,
    /// What it is called in errors.
    noun: &'static str,
}

type Input<R> = BufReader<Counted<R>>;

enum Inner<R: Read> {
    None(Input<R>),
    Gzip(Box<MultiGzDecoder<Input<R>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Input<R>>>),
    Bzip2(Box<MultiBzDecoder<Input<R>>>),
    Xz(Box<XzReader<Input<R>>>),
}

impl<R: Read> std::fmt::Debug for Decompressed<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decompressed")
            .field("packing", &self.packing)
            .field("limits", &self.limits)
            .field("n_out", &self.n_out)
            .finish_non_exhaustive()
    }
}

/// Returns the archive inside `blob`, a layer. How it is packed is told by its first bytes, not by its media type, which registries
/// and tools get wrong.
///
/// # Errors
/// When the first bytes cannot be read, or are of a packing that layers do not have.
pub fn decompress<R: Read>(blob: R, limits: Limits) -> io::Result<Decompressed<R>> {
    let mut unpacked = decompress_any(blob, limits)?;
    unpacked.noun = "layer";
    match unpacked.packing {
        Packing::Bzip2 => Err(unsupported("layers are not packed with bzip2")),
        Packing::Xz => Err(unsupported("layers are not packed with xz")),
        Packing::None | Packing::Gzip | Packing::Zstd => Ok(unpacked),
    }
}

/// Returns what is inside `packed`, in any packing that we know.
///
/// # Errors
/// When the first bytes cannot be read.
pub fn decompress_any<R: Read>(packed: R, limits: Limits) -> io::Result<Decompressed<R>> {
    let counted = Counted {
        inner: packed,
        n_read: 0,
    };
    let mut input = BufReader::with_capacity(BUFFER_BYTES, counted);
    let packing = Packing::of_magic(fill(&mut input)?);
    let inner = match packing {
        Packing::None => Inner::None(input),
        Packing::Gzip => Inner::Gzip(Box::new(MultiGzDecoder::new(input))),
        Packing::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Inner::Zstd(Box::new(decoder))
        }
        Packing::Bzip2 => Inner::Bzip2(Box::new(MultiBzDecoder::new(input))),
        Packing::Xz => {
            let decoder = XzReader::new_mem_limit(input, true, XZ_MEMORY_MAX_KIB);
            Inner::Xz(Box::new(decoder))
        }
    };
    Ok(Decompressed {
        inner,
        limits,
        n_out: 0,
        packing,
        noun: "archive",
    })
}

fn unsupported(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, what)
}

/// Returns the first bytes. A stream that gives fewer than four at once is no archive of ours, and is taken as it is.
fn fill<R: Read>(input: &mut Input<R>) -> io::Result<&[u8]> {
    loop {
        match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(input.buffer()),
        }
    }
}

impl<R: Read> Decompressed<R> {
    /// Returns how the blob is packed.
    pub fn packing(&self) -> Packing {
        self.packing
    }

    fn n_in(&self) -> u64 {
        match &self.inner {
            Inner::None(input) => input.get_ref().n_read,
            Inner::Gzip(decoder) => decoder.get_ref().get_ref().n_read,
            Inner::Zstd(decoder) => decoder.get_ref().get_ref().n_read,
            Inner::Bzip2(decoder) => decoder.get_ref().get_ref().n_read,
            Inner::Xz(decoder) => decoder.inner().get_ref().n_read,
        }
    }

    fn check(&self) -> io::Result<()> {
        let Limits {
            archive_bytes,
            ratio,
            ratio_floor_bytes,
        } = self.limits;
        if self.n_out > archive_bytes {
            let text = format!("{} unpacks to more than {archive_bytes} bytes", self.noun);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        let is_bomb = self.n_out > ratio_floor_bytes
            && self.n_out > self.n_in().saturating_mul(ratio)
            && self.packing != Packing::None;
        if is_bomb {
            let text = format!("{} unpacks to more than {ratio} times its size", self.noun);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        Ok(())
    }
}

impl<R: Read> Read for Decompressed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = match &mut self.inner {
            Inner::None(input) => input.read(buffer)?,
            Inner::Gzip(decoder) => decoder.read(buffer)?,
            Inner::Zstd(decoder) => decoder.read(buffer)?,
            Inner::Bzip2(decoder) => decoder.read(buffer)?,
            Inner::Xz(decoder) => decoder.read(buffer)?,
        };
        self.n_out += n as u64;
        self.check()?;
        Ok(n)
    }
}

struct Counted<R> {
    inner: R,
    n_read: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.n_read += n as u64;
        Ok(n)
    }
}
