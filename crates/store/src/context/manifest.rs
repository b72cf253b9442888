//! The file that holds the entries of a context, and is believed only whole.
//!
//! ```text
//! "kiln-context 1\n"            what it is
//! entry…                        kind, mode, time, path, attributes, what belongs to the kind; lengths before bytes, little-endian
//! created_ms                    u64, Unix milliseconds
//! n_entries                     u64
//! sha256                        of everything before
//! ```
//!
//! Read, it goes through [`Sequence`] again: whoever gets an entry out of it need not check it.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

use oci::Hasher;

use super::content::ContentId;
use super::entry::{
    Entry, EntryError, EntryKind, PATH_MAX_BYTES, Sequence, XATTRS_MAX, XATTRS_MAX_BYTES,
};

const HEADER: &[u8] = b"kiln-context 1\n";
/// Time, number and hash at the end.
const TRAILER_BYTES: usize = 8 + 8 + 32;
/// What a manifest takes beside its entries.
pub(super) const FRAME_BYTES: u64 = (HEADER.len() + TRAILER_BYTES) as u64;
const READ_BYTES: usize = 1 << 18;

const FOLDER: u8 = 1;
const FILE: u8 = 2;
const SYMLINK: u8 = 3;
const HARD_LINK: u8 = 4;
const PIPE: u8 = 5;

/// Writes entries one after the other.
#[derive(Debug)]
pub(super) struct ManifestWriter<W: Write> {
    file: W,
    hasher: Hasher,
    n_entries: u64,
    /// The entry that is being written.
    bytes: Vec<u8>,
}

/// What the end of a manifest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trailer {
    /// When the context was complete, in Unix milliseconds.
    pub(super) created_ms: u64,
    /// How many entries it has.
    pub(super) n_entries: u64,
    sha256: [u8; 32],
}

impl<W: Write> ManifestWriter<W> {
    pub(super) fn begin(file: W) -> io::Result<Self> {
        let mut writer = Self {
            file,
            hasher: Hasher::sha256(),
            n_entries: 0,
            bytes: HEADER.to_vec(),
        };
        writer.flush_bytes()?;
        Ok(writer)
    }

    fn flush_bytes(&mut self) -> io::Result<()> {
        self.hasher.update(&self.bytes);
        self.file.write_all(&self.bytes)?;
        self.bytes.clear();
        Ok(())
    }

    /// Writes an admitted entry.
    pub(super) fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        let kind = match entry.kind {
            EntryKind::Folder => FOLDER,
            EntryKind::File { .. } => FILE,
            EntryKind::Symlink(_) => SYMLINK,
            EntryKind::HardLink(_) => HARD_LINK,
            EntryKind::Pipe => PIPE,
        };
        self.bytes.push(kind);
        self.number(entry.mode);
        self.bytes.extend(entry.modified_s.to_le_bytes());
        self.number(entry.modified_ns);
        self.text(&entry.path)?;
        self.number(u32::try_from(entry.xattrs.len()).map_err(io::Error::other)?);
        for (name, value) in &entry.xattrs {
            self.text(name)?;
            self.text(value)?;
        }
        match &entry.kind {
            EntryKind::Folder | EntryKind::Pipe => {}
            EntryKind::File { size, content } => {
                self.bytes.extend(size.to_le_bytes());
                self.bytes.extend(content.as_bytes());
            }
            EntryKind::Symlink(to) | EntryKind::HardLink(to) => self.text(to)?,
        }
        self.n_entries += 1;
        self.flush_bytes()
    }

    fn number(&mut self, number: u32) {
        self.bytes.extend(number.to_le_bytes());
    }

    fn text(&mut self, text: &[u8]) -> io::Result<()> {
        self.number(u32::try_from(text.len()).map_err(io::Error::other)?);
        self.bytes.extend(text);
        Ok(())
    }

    /// Writes the end and gives the file back.
    pub(super) fn finish(mut self, created_ms: u64) -> io::Result<W> {
        self.bytes.extend(created_ms.to_le_bytes());
        self.bytes.extend(self.n_entries.to_le_bytes());
        self.flush_bytes()?;
        let hash = ContentId::new(&self.hasher.finish());
        let hash = hash.ok_or_else(|| io::Error::other("the hash has another length"))?;
        self.file.write_all(hash.as_bytes())?;
        self.file.flush()?;
        Ok(self.file)
    }
}

/// Returns how many bytes an entry takes in a manifest.
pub(super) fn size(entry: &Entry) -> u64 {
    let text = |text: &[u8]| 4 + text.len() as u64;
    let xattrs = entry.xattrs.iter();
    let xattrs = xattrs.map(|(name, value)| text(name) + text(value));
    let kind = match &entry.kind {
        EntryKind::Folder | EntryKind::Pipe => 0,
        EntryKind::File { .. } => 8 + 32,
        EntryKind::Symlink(to) | EntryKind::HardLink(to) => text(to),
    };
    // Kind, mode, time, number of attributes.
    1 + 4 + 8 + 4 + text(&entry.path) + 4 + xattrs.sum::<u64>() + kind
}

/// Tells why a manifest is not believed.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The system refused to read.
    #[error("read the list of entries")]
    Read(#[source] io::Error),
    /// It is not what was written.
    #[error("the list of entries is damaged")]
    Damaged,
    /// An entry is none that could have been written.
    #[error("the list of entries is damaged")]
    Entry(#[source] EntryError),
}

impl Trailer {
    /// Reads the end alone. Nothing vouches for it but the file system.
    pub(super) fn read(file: &mut (impl Read + Seek)) -> io::Result<Self> {
        let back = i64::try_from(TRAILER_BYTES).map_err(io::Error::other)?;
        file.seek(SeekFrom::End(-back))?;
        let mut bytes = [0; TRAILER_BYTES];
        file.read_exact(&mut bytes)?;
        Self::parse(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn parse(bytes: &[u8; TRAILER_BYTES]) -> Option<Self> {
        let (created_ms, rest) = bytes.split_first_chunk()?;
        let (n_entries, sha256) = rest.split_first_chunk()?;
        Some(Self {
            created_ms: u64::from_le_bytes(*created_ms),
            n_entries: u64::from_le_bytes(*n_entries),
            sha256: *sha256.first_chunk()?,
        })
    }
}

/// Hashes all of a manifest, and returns what its end says.
pub(crate) fn verify(file: &mut (impl Read + Seek)) -> Result<Trailer, ManifestError> {
    let read = ManifestError::Read;
    let trailer = Trailer::read(file).map_err(|error| match error.kind() {
        // Shorter than its end alone.
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            ManifestError::Damaged
        }
        _ => ManifestError::Read(error),
    })?;
    let size = file.stream_position().map_err(read)?;
    file.rewind().map_err(read)?;
    let mut body = file.take(size.saturating_sub(32));
    let mut hasher = Hasher::sha256();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hasher.update(buffer.get(..n).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ManifestError::Read(error)),
        }
    }
    let is_whole = ContentId::new(&hasher.finish()) == Some(ContentId::from_bytes(trailer.sha256));
    is_whole.then_some(trailer).ok_or(ManifestError::Damaged)
}

/// Reads the entries of a verified manifest.
#[derive(Debug)]
pub struct Entries<R> {
    file: R,
    left: u64,
    sequence: Sequence,
}

impl<R: Read> Entries<R> {
    /// Begins at the start of `file`, which was verified to have `trailer`.
    pub(crate) fn begin(mut file: R, trailer: Trailer) -> Result<Self, ManifestError> {
        let mut header = [0; HEADER.len()];
        file.read_exact(&mut header).map_err(ManifestError::Read)?;
        if header != HEADER {
            return Err(ManifestError::Damaged);
        }
        Ok(Self {
            file,
            left: trailer.n_entries,
            sequence: Sequence::default(),
        })
    }

    fn read(&mut self) -> Result<Entry, ManifestError> {
        let [kind] = self.bytes()?;
        let mode = self.number()?;
        let seconds = i64::from_le_bytes(self.bytes()?);
        let nanoseconds = self.number()?;
        let path = self.text(PATH_MAX_BYTES)?;
        let n_xattrs = self.number()?;
        let mut xattrs = BTreeMap::new();
        if usize::try_from(n_xattrs).unwrap_or(usize::MAX) > XATTRS_MAX {
            return Err(ManifestError::Damaged);
        }
        for _ in 0..n_xattrs {
            let name = self.text(XATTRS_MAX_BYTES)?;
            xattrs.insert(name, self.text(XATTRS_MAX_BYTES)?);
        }
        let kind = match kind {
            FOLDER => EntryKind::Folder,
            FILE => EntryKind::File {
                size: u64::from_le_bytes(self.bytes()?),
                content: ContentId::from_bytes(self.bytes()?),
            },
            SYMLINK => EntryKind::Symlink(self.text(PATH_MAX_BYTES)?),
            HARD_LINK => EntryKind::HardLink(self.text(PATH_MAX_BYTES)?),
            PIPE => EntryKind::Pipe,
            _ => return Err(ManifestError::Damaged),
        };
        let entry = Entry {
            path,
            mode,
            modified_s: seconds,
            modified_ns: nanoseconds,
            xattrs,
            kind,
        };
        self.sequence.admit(&entry).map_err(ManifestError::Entry)?;
        Ok(entry)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], ManifestError> {
        let mut bytes = [0; N];
        self.file
            .read_exact(&mut bytes)
            .map_err(ManifestError::Read)?;
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u32, ManifestError> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn text(&mut self, max_bytes: usize) -> Result<Vec<u8>, ManifestError> {
        let n = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        if n > max_bytes {
            return Err(ManifestError::Damaged);
        }
        let mut text = vec![0; n];
        self.file
            .read_exact(&mut text)
            .map_err(ManifestError::Read)?;
        Ok(text)
    }
}

impl<R: Read> Iterator for Entries<R> {
    type Item = Result<Entry, ManifestError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let entry = self.read();
        if entry.is_err() {
            self.left = 0;
        }
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn entries() -> Vec<Entry> {
        let entry = |path: &[u8], kind| Entry {
            path: path.to_vec(),
            mode: 0o4755,
            modified_s: -5,
            modified_ns: 7,
            xattrs: match kind {
                EntryKind::File { .. } => BTreeMap::from([(b"user.a".to_vec(), vec![0, 255])]),
                _ => BTreeMap::new(),
            },
            kind,
        };
        let content = ContentId::of(b"abc");
        vec![
            entry(b"a", EntryKind::Folder),
            entry(b"a/\xff", EntryKind::File { size: 3, content }),
            entry(b"b", EntryKind::HardLink(b"a/\xff".to_vec())),
            entry(b"c", EntryKind::Pipe),
            entry(b"d", EntryKind::Symlink(b"../x".to_vec())),
        ]
    }

    fn written(entries: &[Entry]) -> Vec<u8> {
        let mut writer = ManifestWriter::begin(Vec::new()).unwrap();
        for entry in entries {
            writer.entry(entry).unwrap();
        }
        writer.finish(42).unwrap()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut file = Cursor::new(written(&entries()));
        let trailer = verify(&mut file).unwrap();
        assert_eq!((trailer.created_ms, trailer.n_entries), (42, 5));
        file.rewind().unwrap();
        let read: Vec<Entry> = Entries::begin(file, trailer)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(read, entries());
    }

    #[test]
    fn what_an_entry_takes_is_known_before_it_is_written() {
        let empty = written(&[]).len() as u64;
        assert_eq!(empty, FRAME_BYTES);
        for entry in entries() {
            let bytes = written(std::slice::from_ref(&entry)).len() as u64 - empty;
            assert_eq!(size(&entry), bytes, "{entry:?}");
        }
    }

    #[test]
    fn a_damaged_manifest_is_not_believed() {
        let good = written(&entries());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(verify(&mut Cursor::new(bad)).is_err(), "byte {at}");
        }
        for end in [0, 1, 47, 48, good.len() - 1] {
            assert!(
                verify(&mut Cursor::new(&good[..end])).is_err(),
                "{end} bytes"
            );
        }
    }

    #[test]
    fn entries_that_may_not_be_are_not_read_even_with_the_right_hash() {
        let mut entries = entries();
        entries.swap(0, 1);
        let mut file = Cursor::new(written(&entries));
        let trailer = verify(&mut file).unwrap();
        file.rewind().unwrap();
        let mut read = Entries::begin(file, trailer).unwrap();
        assert!(matches!(read.next(), Some(Err(ManifestError::Entry(_)))));
        assert!(read.next().is_none());
    }
}
