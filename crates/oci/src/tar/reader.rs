//! Reads archives, entry by entry, from any byte stream.

use std::io::{self, Read};

use super::header::{self, Block, Dialect};
use super::pax::Records;
use super::{BLOCK_BYTES, Entry, Kind, Limits};

/// Largest size that eleven octal digits hold: a PAX record may only contradict the header above it.
const OCTAL_SIZE_MAX: u64 = 0o77_777_777_777;

/// Reads an archive. Between two calls of [`Reader::next`], it is an [`io::Read`] of the content of the last entry.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    limits: Limits,
    /// Content of the current entry not read yet, and the padding after it.
    data_bytes: u64,
    padding_bytes: u64,
    n_headers: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Entries,
    End,
    Failed,
}

/// Tells why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The stream below failed, or ended within an entry.
    #[error("failed to read the archive")]
    Io(#[source] io::Error),
    /// The stream ended within an entry.
    #[error("archive is truncated")]
    Truncated,
    /// The checksum of a header does not match: not a tar archive, or a damaged one.
    #[error("archive has a header with a wrong checksum")]
    Checksum,
    /// A field holds no number.
    #[error("archive has a header with a malformed {0}")]
    Number(&'static str),
    /// A field holds a number that nothing can have.
    #[error("entry {path:?} has a {field} that is out of range")]
    OutOfRange {
        /// The entry.
        path: String,
        /// The field.
        field: &'static str,
    },
    /// A PAX record that does not follow the standard.
    #[error("archive has a malformed PAX header: {0}")]
    Pax(&'static str),
    /// Something that widespread readers understand in different ways.
    #[error("archive is ambiguous: {0}")]
    Ambiguous(&'static str),
    /// An entry without a name, or a link without a target.
    #[error("archive has an entry without {0}")]
    Empty(&'static str),
    /// A kind of entry that is not supported.
    #[error("archive has an entry of unsupported type {0:?}")]
    UnsupportedType(char),
    /// A file in GNU's sparse format.
    #[error("entry {0:?} is a sparse file; archive it without --sparse")]
    Sparse(String),
    /// More bytes of headers in front of an entry than [`Limits::metadata_bytes`].
    #[error("archive has more than {0} bytes of metadata in front of one entry")]
    MetadataTooLarge(u64),
    /// A path longer than [`Limits::path_bytes`].
    #[error("archive has a path longer than {0} bytes")]
    PathTooLong(usize),
    /// More than [`Limits::headers`] headers.
    #[error("archive has more than {0} entries")]
    TooManyEntries(u64),
    /// Reading went on after an error.
    #[error("archive could not be read before")]
    Failed,
}

/// Headers that stand in front of an entry.
#[derive(Default)]
struct Prelude {
    pax: Option<Records>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    metadata_bytes: u64,
}

impl Prelude {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.long_name.is_none() && self.long_link.is_none()
    }
}

impl<R: Read> Reader<R> {
    /// Returns a reader of the archive that `input` holds. Wrap it in a buffer unless reads of 512 bytes are cheap.
    pub fn new(input: R, limits: Limits) -> Self {
        Self {
            input,
            limits,
            data_bytes: 0,
            padding_bytes: 0,
            n_headers: 0,
            state: State::Entries,
        }
    }

    /// Returns the stream below, positioned behind the end marker when all entries were read.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// Skips what is left of the current entry and returns the next one; `None` at the end.
    ///
    /// # Errors
    /// See [`ReadError`]. After an error, every further call fails.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator could not lend the content of the entry it returned"
    )]
    pub fn next(&mut self) -> Result<Option<Entry>, ReadError> {
        match self.state {
            State::End => return Ok(None),
            State::Failed => return Err(ReadError::Failed),
            State::Entries => {}
        }
        self.state = State::Failed;
        let entry = self.next_entry()?;
        self.state = match entry {
            Some(_) => State::Entries,
            None => State::End,
        };
        Ok(entry)
    }

    fn next_entry(&mut self) -> Result<Option<Entry>, ReadError> {
        self.skip_content()?;
        let mut prelude = Prelude::default();
        while let Some(block) = self.header()? {
            match block.type_flag() {
                b'x' => {
                    if prelude.pax.is_some() {
                        return Err(ReadError::Ambiguous("two PAX headers for one entry"));
                    }
                    let content = self.metadata(&block, &mut prelude)?;
                    prelude.pax = Some(Records::parse(&content).map_err(ReadError::Pax)?);
                }
                b'g' => self.global_header(&block, &mut prelude)?,
                b'L' => {
                    let name = self.long_text(&block, &mut prelude)?;
                    set_once(&mut prelude.long_name, name)?;
                }
                b'K' => {
                    let link = self.long_text(&block, &mut prelude)?;
                    set_once(&mut prelude.long_link, link)?;
                }
                _ => return self.entry(&block, prelude).map(Some),
            }
        }
        if prelude.is_empty() {
            Ok(None)
        } else {
            Err(ReadError::Truncated)
        }
    }

    /// Reads the next header; `None` at the end marker, or where the stream ends between two entries.
    fn header(&mut self) -> Result<Option<Block>, ReadError> {
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if block.is_zero() {
            return match self.block()? {
                Some(second) if !second.is_zero() => {
                    Err(ReadError::Ambiguous("a lone zero block between entries"))
                }
                _ => Ok(None),
            };
        }
        self.n_headers += 1;
        if self.n_headers > self.limits.headers {
            return Err(ReadError::TooManyEntries(self.limits.headers));
        }
        let stated = block.number(header::CHECKSUM).ok_or(ReadError::Checksum)?;
        let (unsigned, signed) = block.checksums();
        if stated != unsigned && stated != signed {
            return Err(ReadError::Checksum);
        }
        Ok(Some(block))
    }

    fn block(&mut self) -> Result<Option<Block>, ReadError> {
        let mut block = Block::empty();
        let mut n_filled = 0;
        while let Some(rest) = block.0.get_mut(n_filled..).filter(|rest| !rest.is_empty()) {
            match self.input.read(rest) {
                Ok(0) if n_filled == 0 => return Ok(None),
                Ok(0) => return Err(ReadError::Truncated),
                Ok(n) => n_filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ReadError::Io(error)),
            }
        }
        Ok(Some(block))
    }

    /// Reads the content of a header that describes the entry behind it.
    fn metadata(&mut self, block: &Block, prelude: &mut Prelude) -> Result<Vec<u8>, ReadError> {
        let too_large = ReadError::MetadataTooLarge(self.limits.metadata_bytes);
        let size = size_of(block)?;
        let total = prelude.metadata_bytes.checked_add(size);
        match total {
            Some(total) if total <= self.limits.metadata_bytes => prelude.metadata_bytes = total,
            _ => return Err(too_large),
        }
        let padded = size.next_multiple_of(BLOCK_BYTES as u64);
        let mut content = Vec::new();
        let n_read = (&mut self.input)
            .take(padded)
            .read_to_end(&mut content)
            .map_err(ReadError::Io)?;
        if n_read as u64 != padded {
            return Err(ReadError::Truncated);
        }
        content.truncate(usize::try_from(size).map_err(|_| too_large)?);
        Ok(content)
    }

    fn long_text(&mut self, block: &Block, prelude: &mut Prelude) -> Result<Vec<u8>, ReadError> {
        // Some readers apply a PAX size to the header that follows it, whatever that is.
        if prelude.pax.as_ref().is_some_and(|pax| pax.size.is_some()) {
            return Err(ReadError::Ambiguous(
                "a PAX size in front of a GNU long name",
            ));
        }
        let content = self.metadata(block, prelude)?;
        let text = header::until_nul(&content);
        if text.is_empty() {
            return Err(ReadError::Empty("a long name"));
        }
        Ok(text.into())
    }

    /// Global headers are ignored by some readers and obeyed by others, so that only those without consequence pass.
    fn global_header(&mut self, block: &Block, prelude: &mut Prelude) -> Result<(), ReadError> {
        if !prelude.is_empty() {
            return Err(ReadError::Ambiguous(
                "a global header between an entry and its own headers",
            ));
        }
        let content = self.metadata(block, prelude)?;
        // A run of global headers belongs to no entry: each has the whole allowance.
        prelude.metadata_bytes = 0;
        let records = Records::parse(&content).map_err(ReadError::Pax)?;
        if records.is_empty() {
            return Ok(());
        }
        Err(ReadError::Ambiguous(
            "a global header that changes the entries behind it",
        ))
    }

    fn entry(&mut self, block: &Block, prelude: Prelude) -> Result<Entry, ReadError> {
        let Prelude {
            pax,
            long_name,
            long_link,
            ..
        } = prelude;
        let pax = pax.unwrap_or_default();
        let own_path = match (pax.path, long_name) {
            (Some(_), Some(_)) => {
                return Err(ReadError::Ambiguous("two long names for one entry"));
            }
            (Some(path), None) | (None, Some(path)) => path,
            (None, None) => short_path(block)?,
        };
        let own_link = match (pax.link, long_link) {
            (Some(_), Some(_)) => {
                return Err(ReadError::Ambiguous("two long link targets for one entry"));
            }
            (Some(link), None) | (None, Some(link)) => link,
            (None, None) => block.text(header::LINK).into(),
        };
        let shown = || String::from_utf8_lossy(&own_path).into_owned();
        if pax.is_sparse || block.type_flag() == b'S' {
            return Err(ReadError::Sparse(shown()));
        }
        let kind = kind_of(block, &own_path)?;
        let size = content_size(block, kind, pax.size)?;
        let id = |stated: Option<u64>, field, name| -> Result<u32, ReadError> {
            let value = match stated {
                Some(value) => i64::try_from(value).unwrap_or(i64::MAX),
                None => block.number(field).ok_or(ReadError::Number(name))?,
            };
            // The highest id means "leave as it is" to chown.
            match u32::try_from(value) {
                Ok(id) if id != u32::MAX => Ok(id),
                _ => Err(ReadError::OutOfRange {
                    path: shown(),
                    field: name,
                }),
            }
        };
        let mut entry = Entry::new(self.path(&own_path)?, kind);
        entry.link = self.link(kind, own_link)?;
        entry.uid = id(pax.uid, header::UID, "owner")?;
        entry.gid = id(pax.gid, header::GID, "group")?;
        let mode = block
            .number(header::MODE)
            .ok_or(ReadError::Number("mode"))?;
        entry.mode = u32::try_from(mode & 0o7777).map_err(|_| ReadError::Number("mode"))?;
        entry.mtime = match pax.mtime {
            Some(mtime) => mtime,
            None => block
                .number(header::MTIME)
                .ok_or(ReadError::Number("time"))?,
        };
        if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
            entry.device_major = id(None, header::MAJOR, "device number")?;
            entry.device_minor = id(None, header::MINOR, "device number")?;
        }
        entry.size = size;
        entry.xattrs = pax.xattrs;
        self.data_bytes = size;
        self.padding_bytes = size.wrapping_neg() % BLOCK_BYTES as u64;
        Ok(entry)
    }

    fn path(&self, path: &[u8]) -> Result<Vec<u8>, ReadError> {
        if path.is_empty() {
            return Err(ReadError::Empty("a name"));
        }
        if path.len() > self.limits.path_bytes {
            return Err(ReadError::PathTooLong(self.limits.path_bytes));
        }
        let end = path
            .iter()
            .rposition(|byte| *byte != b'/')
            .map_or(1, |last| last + 1);
        Ok(path.get(..end).unwrap_or_default().into())
    }

    fn link(&self, kind: Kind, link: Vec<u8>) -> Result<Vec<u8>, ReadError> {
        match kind {
            Kind::HardLink | Kind::Symlink if link.is_empty() => {
                Err(ReadError::Empty("a link target"))
            }
            Kind::HardLink | Kind::Symlink if link.len() > self.limits.path_bytes => {
                Err(ReadError::PathTooLong(self.limits.path_bytes))
            }
            Kind::HardLink | Kind::Symlink => Ok(link),
            _ => Ok(Vec::new()),
        }
    }

    fn skip_content(&mut self) -> Result<(), ReadError> {
        let left = self.data_bytes + self.padding_bytes;
        if left > 0 {
            let skipped = io::copy(&mut (&mut self.input).take(left), &mut io::sink())
                .map_err(ReadError::Io)?;
            if skipped != left {
                return Err(ReadError::Truncated);
            }
        }
        self.data_bytes = 0;
        self.padding_bytes = 0;
        Ok(())
    }
}

impl<R: Read> Read for Reader<R> {
    /// Reads the content of the current entry. A stream that ends within it is an error.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.data_bytes).unwrap_or(usize::MAX);
        let wanted = wanted.min(buffer.len());
        let Some(buffer) = buffer.get_mut(..wanted).filter(|some| !some.is_empty()) else {
            return Ok(0);
        };
        match self.input.read(buffer)? {
            0 => {
                self.state = State::Failed;
                Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "archive is truncated",
                ))
            }
            n => {
                self.data_bytes -= n as u64;
                Ok(n)
            }
        }
    }
}

fn set_once(field: &mut Option<Vec<u8>>, value: Vec<u8>) -> Result<(), ReadError> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(ReadError::Ambiguous("two GNU long names for one entry")),
    }
}

fn size_of(block: &Block) -> Result<u64, ReadError> {
    let size = block
        .number(header::SIZE)
        .ok_or(ReadError::Number("size"))?;
    // Room is left so that sizes can be added up.
    u64::try_from(size)
        .ok()
        .filter(|size| *size < 1 << 62)
        .ok_or(ReadError::Number("size"))
}

fn short_path(block: &Block) -> Result<Vec<u8>, ReadError> {
    let name = block.text(header::NAME);
    let prefix = match block.dialect() {
        Dialect::Ustar => block.text(header::PREFIX),
        Dialect::Gnu | Dialect::V7 => b"",
    };
    if prefix.is_empty() {
        return Ok(name.into());
    }
    if block.field(header::STAR_TRAILER) == b"tar\0" {
        return Err(ReadError::Ambiguous(
            "a prefix in the header of the star dialect",
        ));
    }
    Ok([prefix, b"/", name].concat())
}

fn kind_of(block: &Block, path: &[u8]) -> Result<Kind, ReadError> {
    let has_slash = path.ends_with(b"/");
    match block.type_flag() {
        0 if has_slash => Ok(Kind::Directory),
        b'0' | b'7' if has_slash => Err(ReadError::Ambiguous("a file whose name ends in a slash")),
        0 | b'0' | b'7' => Ok(Kind::File),
        b'1' => Ok(Kind::HardLink),
        b'2' => Ok(Kind::Symlink),
        b'3' => Ok(Kind::CharDevice),
        b'4' => Ok(Kind::BlockDevice),
        b'5' => Ok(Kind::Directory),
        b'6' => Ok(Kind::Fifo),
        other => Err(ReadError::UnsupportedType(other.into())),
    }
}

fn content_size(block: &Block, kind: Kind, pax: Option<u64>) -> Result<u64, ReadError> {
    let stated = size_of(block)?;
    let size = match pax {
        Some(size) if size == stated => size,
        // The reason for a PAX size: the header cannot hold it.
        Some(size) if size > OCTAL_SIZE_MAX && size < 1 << 62 => size,
        Some(_) => return Err(ReadError::Ambiguous("two sizes for one entry")),
        None => stated,
    };
    match kind {
        Kind::File => Ok(size),
        // Old programs wrote the size of the file into its links; no reader takes it for content.
        Kind::HardLink if pax.is_none() => Ok(0),
        _ if size == 0 => Ok(0),
        _ => Err(ReadError::Ambiguous(
            "an entry with content that is not a file",
        )),
    }
}
