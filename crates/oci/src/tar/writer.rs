//! Writes archives in one canonical form.

use std::io::{self, Read, Write};

use super::header::{self, Block, Field};
use super::pax::{push_record, push_xattr};
use super::{BLOCK_BYTES, Entry, Kind};

/// Content is copied in pieces of this size.
const COPY_BYTES: usize = 256 << 10;

/// Writes an archive.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
    buffer: Vec<u8>,
    n_entries: u64,
    size_bytes: u64,
}

/// Tells why an entry cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The stream below failed.
    #[error("failed to write the archive")]
    Output(#[source] io::Error),
    /// The content could not be read.
    #[error("failed to read the content of {path:?}")]
    Content {
        /// The entry.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The content is shorter than the entry says.
    #[error("content of {path:?} became shorter while it was read")]
    Short {
        /// The entry.
        path: String,
    },
    /// A value that no archive can hold.
    #[error("entry {path:?} has a {field} that no archive can hold")]
    Unrepresentable {
        /// The entry.
        path: String,
        /// The field.
        field: &'static str,
    },
}

impl<W: Write> Writer<W> {
    /// Returns a writer of an empty archive.
    pub fn new(output: W) -> Self {
        Self {
            output,
            buffer: Vec::new(),
            n_entries: 0,
            size_bytes: 0,
        }
    }

    /// Returns how many entries were written.
    pub fn n_entries(&self) -> u64 {
        self.n_entries
    }

    /// Returns how many bytes were written.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Writes `entry` and, of a file, the first [`Entry::size`] bytes of `content`.
    ///
    /// # Errors
    /// See [`WriteError`]; what was written is of no use afterwards.
    pub fn append(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<(), WriteError> {
        let (block, records) = encode(entry)?;
        if !records.is_empty() {
            let extension = extension_header(&entry.path, records.len() as u64);
            self.put(&extension.0)?;
            self.put(&records)?;
            self.pad(records.len() as u64)?;
        }
        self.put(&block.0)?;
        if entry.kind == Kind::File {
            self.copy(entry, content)?;
            self.pad(entry.size)?;
        }
        self.n_entries += 1;
        Ok(())
    }

    /// Writes the end marker and returns the stream.
    ///
    /// # Errors
    /// [`WriteError::Output`].
    pub fn finish(mut self) -> Result<W, WriteError> {
        self.put(&[0; 2 * BLOCK_BYTES])?;
        Ok(self.output)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.output.write_all(bytes).map_err(WriteError::Output)?;
        self.size_bytes += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self, size: u64) -> Result<(), WriteError> {
        let n = usize::try_from(size.wrapping_neg() % BLOCK_BYTES as u64).unwrap_or(0);
        self.put([0; BLOCK_BYTES].get(..n).unwrap_or_default())
    }

    fn copy(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<(), WriteError> {
        self.buffer.resize(COPY_BYTES, 0);
        let mut left = entry.size;
        while left > 0 {
            let wanted = usize::try_from(left)
                .unwrap_or(COPY_BYTES)
                .min(self.buffer.len());
            let piece = self.buffer.get_mut(..wanted).unwrap_or_default();
            let n = match content.read(piece) {
                Ok(0) => return Err(WriteError::Short { path: shown(entry) }),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    let path = shown(entry);
                    return Err(WriteError::Content { path, source });
                }
            };
            let piece = self.buffer.get(..n).unwrap_or_default();
            self.output.write_all(piece).map_err(WriteError::Output)?;
            self.size_bytes += n as u64;
            left -= n as u64;
        }
        Ok(())
    }
}

fn shown(entry: &Entry) -> String {
    String::from_utf8_lossy(&entry.path).into_owned()
}

/// Returns the header of `entry` and the PAX records that it needs in front.
fn encode(entry: &Entry) -> Result<(Block, Vec<u8>), WriteError> {
    let unrepresentable = |field| WriteError::Unrepresentable {
        path: shown(entry),
        field,
    };
    let mut block = Block::empty();
    let mut records = Vec::new();
    let mut path = entry.path.clone();
    if entry.kind == Kind::Directory && !path.ends_with(b"/") {
        path.push(b'/');
    }
    if path.is_empty() || path.contains(&0) || entry.link.contains(&0) {
        return Err(unrepresentable("name"));
    }
    put_path(&mut block, &mut records, &path);
    put_text(
        &mut block,
        &mut records,
        (header::LINK, b"linkpath"),
        &entry.link,
    );
    block.put_octal(header::MODE, u64::from(entry.mode & 0o7777));
    let size = match entry.kind {
        Kind::File => entry.size,
        _ => 0,
    };
    put_number(
        &mut block,
        &mut records,
        (header::UID, b"uid"),
        entry.uid.into(),
    );
    put_number(
        &mut block,
        &mut records,
        (header::GID, b"gid"),
        entry.gid.into(),
    );
    put_number(&mut block, &mut records, (header::SIZE, b"size"), size);
    if let Ok(mtime) = u64::try_from(entry.mtime) {
        put_number(&mut block, &mut records, (header::MTIME, b"mtime"), mtime);
    } else {
        block.put_octal(header::MTIME, 0);
        push_record(&mut records, b"mtime", entry.mtime.to_string().as_bytes());
    }
    let fits = block.put_octal(header::MAJOR, entry.device_major.into())
        && block.put_octal(header::MINOR, entry.device_minor.into());
    if !fits {
        return Err(unrepresentable("device number"));
    }
    for (name, value) in &entry.xattrs {
        if name.is_empty() || name.contains(&b'=') || name.contains(&0) {
            return Err(unrepresentable("extended attribute"));
        }
        push_xattr(&mut records, name, value);
    }
    let flag = match entry.kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::CharDevice => b'3',
        Kind::BlockDevice => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    };
    block.put((header::TYPE, 1), &[flag]);
    block.put(header::MAGIC, b"ustar\x0000");
    block.seal();
    Ok((block, records))
}

fn put_path(block: &mut Block, records: &mut Vec<u8>, path: &[u8]) {
    if path.is_ascii()
        && path.len() > header::NAME.1
        && let Some((prefix, name)) = split_path(path)
    {
        block.put(header::PREFIX, prefix);
        block.put(header::NAME, name);
        return;
    }
    put_text(block, records, (header::NAME, b"path"), path);
}

/// Splits at the last slash that lets both halves fit.
fn split_path(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name_max, prefix_max) = (header::NAME.1, header::PREFIX.1);
    let within = path.get(..path.len().min(prefix_max + 1))?;
    // A slash at the very end would leave an empty name.
    let within = within.get(..within.len().min(path.len() - 1))?;
    let slash = within.iter().rposition(|byte| *byte == b'/')?;
    let (prefix, name) = (path.get(..slash)?, path.get(slash + 1..)?);
    (!prefix.is_empty() && name.len() <= name_max).then_some((prefix, name))
}

fn put_text(block: &mut Block, records: &mut Vec<u8>, (field, key): (Field, &[u8]), text: &[u8]) {
    if text.len() <= field.1 && text.is_ascii() {
        block.put(field, text);
        return;
    }
    push_record(records, key, text);
    // Readers without PAX see at least something alike.
    let ascii: Vec<u8> = text.iter().copied().filter(u8::is_ascii).collect();
    block.put(field, &ascii);
}

fn put_number(block: &mut Block, records: &mut Vec<u8>, (field, key): (Field, &[u8]), number: u64) {
    if !block.put_octal(field, number) {
        block.put_octal(field, 0);
        push_record(records, key, number.to_string().as_bytes());
    }
}

/// Returns the header that announces `size` bytes of PAX records for `path`.
fn extension_header(path: &[u8], size: u64) -> Block {
    let last = path
        .split(|byte| *byte == b'/')
        .rfind(|part| !part.is_empty());
    let last = last.unwrap_or_default().iter().copied();
    let mut name = b"PaxHeaders.0/".to_vec();
    name.extend(last.filter(u8::is_ascii).take(80));
    let mut block = Block::empty();
    block.put(header::NAME, &name);
    block.put_octal(header::MODE, 0o644);
    block.put_octal(header::UID, 0);
    block.put_octal(header::GID, 0);
    block.put_octal(header::SIZE, size);
    block.put_octal(header::MTIME, 0);
    block.put_octal(header::MAJOR, 0);
    block.put_octal(header::MINOR, 0);
    block.put((header::TYPE, 1), b"x");
    block.put(header::MAGIC, b"ustar\x0000");
    block.seal();
    block
}
