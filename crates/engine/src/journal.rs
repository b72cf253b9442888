//! The journal of a build: one append-only file that is the only truth about it.
//!
//! The worker appends, in one `write` per record, before anyone is told; readers go by offset and never touch the writer. A record
//! is framed as `length: u32 | crc32: u32 | kind: u8 | unix milliseconds: u64 | payload`, little-endian; the checksum covers
//! what follows it. A torn tail, left by a power cut, ends reading at the last whole record. A record of which only a part could be
//! written, because the disk is full, is taken back, so that what follows it can be read.
//!
//! Beside a journal that has no end yet lies its *reserve*: room on the disk that is given up for the last record, so that a build
//! that fails because the disk is full can say so.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::event::{Event, StepId, Stream};

/// Version of the format, the first eight bytes of every journal.
pub const FORMAT_VERSION: &[u8; 8] = b"kilnjnl1";
/// Where the first record begins.
pub const FIRST_OFFSET: u64 = FORMAT_VERSION.len() as u64;
/// Longest payload of one record.
pub const RECORD_MAX_BYTES: usize = 1 << 20;
/// Most output bytes that one record holds.
pub const OUTPUT_MAX_BYTES: usize = 64 << 10;
/// Name of the file within a build's folder.
pub const FILE_NAME: &str = "journal";

/// Name of the file that keeps room for the last record, and how much.
pub const RESERVE: &str = "reserve";
const RESERVE_BYTES: u64 = 64 << 10;

/// How much of the file is read at a time: by who wants everything, and by who wants events only.
const READ_BYTES: usize = 128 << 10;
const SKIM_BYTES: usize = 4 << 10;
/// How much more is read each time, as long as there is more.
const GROWTH: usize = 4;

const FRAME_BYTES: usize = 8;
const PREFIX_BYTES: usize = 9;
const KIND_EVENT: u8 = 1;
const KIND_OUTPUT: u8 = 2;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// When it was written, in Unix milliseconds.
    pub at_ms: u64,
    /// What it says.
    pub body: Body,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Something happened.
    Event(Event),
    /// A step wrote something.
    Output {
        /// Which step.
        step: StepId,
        /// Where to.
        stream: Stream,
        /// What, secrets removed.
        bytes: Vec<u8>,
    },
}

/// Tells what went wrong with a journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file could not be opened or created.
    #[error("open journal {}", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not a journal of this version.
    #[error("{} is not a journal of this version", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
    },
    /// Reading failed.
    #[error("read journal")]
    Read(#[source] io::Error),
    /// Writing failed.
    #[error("append to journal")]
    Append(#[source] io::Error),
    /// A record that is whole by length but not by checksum or content.
    #[error("journal is damaged at offset {offset}")]
    Damaged {
        /// Where the record begins.
        offset: u64,
    },
    /// An event too large to record.
    #[error("record of {size_bytes} bytes is larger than {RECORD_MAX_BYTES}")]
    TooLarge {
        /// Size of its payload.
        size_bytes: usize,
    },
}

/// Opens a file itself, never what a link leads to: the folder may belong to a worker, and the reader or writer be the host's root.
fn plainly() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    options
}

/// Appends records. There is one writer of a journal at any time: the worker, or the server once the worker is dead.
#[derive(Debug)]
pub struct Writer {
    file: File,
    /// Where the next record begins.
    end: u64,
    /// Whether a part of a record that could not be written whole is left behind that place.
    is_torn: bool,
    /// The file that keeps room for the last one.
    reserve: PathBuf,
    before: Before,
}

/// What of a build was in its journal when it was resumed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Before {
    /// The highest number of a vertex.
    pub last_step: u32,
    /// How much its steps had written.
    pub output_bytes: u64,
}

impl Before {
    fn take(&mut self, record: &Record) {
        let step = match &record.body {
            Body::Output { step, bytes, .. } => {
                self.output_bytes += bytes.len() as u64;
                *step
            }
            Body::Event(Event::StepStarted { step, .. } | Event::StepCached { step, .. }) => *step,
            Body::Event(_) => return,
        };
        self.last_step = self.last_step.max(step.0);
    }
}

impl Writer {
    /// Creates the journal of a new build in its folder.
    pub fn create(folder: &Path) -> Result<Self, JournalError> {
        let path = folder.join(FILE_NAME);
        let open = |source| JournalError::Open {
            path: path.clone(),
            source,
        };
        let mut file = plainly()
            .append(true)
            .create_new(true)
            .open(&path)
            .map_err(open)?;
        file.write_all(FORMAT_VERSION)
            .map_err(JournalError::Append)?;
        Ok(Self {
            file,
            end: FORMAT_VERSION.len() as u64,
            is_torn: false,
            reserve: folder.join(RESERVE),
            before: Before::default(),
        })
    }

    /// Returns what was in the journal when it was resumed.
    pub fn before(&self) -> Before {
        self.before
    }

    /// Keeps room on the disk for the last record, for whoever will write it.
    ///
    /// # Errors
    /// When there is none.
    pub fn reserve(&self) -> Result<PathBuf, JournalError> {
        let failed = |source| JournalError::Open {
            path: self.reserve.clone(),
            source,
        };
        let mut file = plainly()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&self.reserve)
            .map_err(failed)?;
        let flags = rustix::fs::FallocateFlags::empty();
        match rustix::fs::fallocate(&file, flags, 0, RESERVE_BYTES) {
            Ok(()) => {}
            // A file system that cannot: what is written takes room.
            Err(rustix::io::Errno::OPNOTSUPP) => {
                let size = usize::try_from(RESERVE_BYTES).unwrap_or_default();
                file.write_all(&vec![0; size]).map_err(failed)?;
            }
            Err(error) => return Err(failed(error.into())),
        }
        Ok(self.reserve.clone())
    }

    /// Opens an existing journal to go on with it; a torn tail is cut off first.
    pub fn resume(folder: &Path) -> Result<Self, JournalError> {
        let path = folder.join(FILE_NAME);
        let open = |source| JournalError::Open {
            path: path.clone(),
            source,
        };
        let mut reader = Reader::open(folder)?;
        let mut before = Before::default();
        while let Some(record) = reader.next()? {
            before.take(&record);
        }
        let file = plainly().append(true).open(&path).map_err(open)?;
        if file.metadata().map_err(open)?.len() > reader.offset() {
            file.set_len(reader.offset())
                .map_err(JournalError::Append)?;
        }
        Ok(Self {
            file,
            end: reader.offset(),
            is_torn: false,
            reserve: folder.join(RESERVE),
            before,
        })
    }

    /// Appends one record in one write. What is appended after the last record of a build is appended without a reserve.
    ///
    /// # Errors
    /// When it could not be written. Nothing of it is left then.
    pub fn append(&mut self, record: &Record) -> Result<(), JournalError> {
        let frame = encode(record)?;
        if self.is_torn {
            self.file.set_len(self.end).map_err(JournalError::Append)?;
            self.is_torn = false;
        }
        if matches!(&record.body, Body::Event(event) if event.is_terminal()) {
            // One that cannot be removed keeps its room, which may not be needed.
            let _kept = std::fs::remove_file(&self.reserve);
        }
        match self.file.write_all(&frame) {
            Ok(()) => {
                self.end += frame.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Else the next record would follow a part of this one, and nobody could read on.
                self.is_torn = self.file.set_len(self.end).is_err();
                Err(JournalError::Append(error))
            }
        }
    }

    /// Appends the end of the build and makes it durable, but first all that comes before it: a machine that goes down never leaves an
    /// end on the disk without what has led to it.
    pub fn end(&mut self, record: &Record) -> Result<(), JournalError> {
        let before = self.sync();
        self.append(record)?;
        self.sync()?;
        before
    }

    /// Makes what was appended durable.
    pub fn sync(&self) -> Result<(), JournalError> {
        self.file.sync_data().map_err(JournalError::Append)
    }
}

fn encode(record: &Record) -> Result<Vec<u8>, JournalError> {
    let mut frame = vec![0; FRAME_BYTES];
    match &record.body {
        Body::Event(event) => {
            frame.push(KIND_EVENT);
            frame.extend(record.at_ms.to_le_bytes());
            serde_json::to_writer(&mut frame, event).map_err(|e| JournalError::Append(e.into()))?;
        }
        Body::Output {
            step,
            stream,
            bytes,
        } => {
            frame.push(KIND_OUTPUT);
            frame.extend(record.at_ms.to_le_bytes());
            frame.extend(step.0.to_le_bytes());
            frame.push(match stream {
                Stream::Stdout => 1,
                Stream::Stderr => 2,
            });
            frame.extend(bytes);
        }
    }
    let size_bytes = frame.len() - FRAME_BYTES;
    let length = u32::try_from(size_bytes)
        .ok()
        .filter(|_| size_bytes <= RECORD_MAX_BYTES);
    let length = length.ok_or(JournalError::TooLarge { size_bytes })?;
    let crc = crc32fast::hash(frame.get(FRAME_BYTES..).unwrap_or_default());
    if let Some(head) = frame.first_chunk_mut::<FRAME_BYTES>() {
        let (l, c) = (length.to_le_bytes(), crc.to_le_bytes());
        *head = [l[0], l[1], l[2], l[3], c[0], c[1], c[2], c[3]];
    }
    Ok(frame)
}

/// The beginning of a record.
struct Head {
    bytes: [u8; FRAME_BYTES + 1],
    /// Length of what is behind the frame.
    length: usize,
    kind: u8,
}

/// Reads records from the start, and again whenever more may have been appended.
#[derive(Debug)]
pub struct Reader {
    file: File,
    offset: u64,
    buffer: Vec<u8>,
    start: usize,
    read_bytes: usize,
    /// How much is read next: little where there was no more, for a thousand readers may wait at the end of a journal.
    next_bytes: usize,
}

impl Reader {
    /// Opens the journal in a build's folder.
    pub fn open(folder: &Path) -> Result<Self, JournalError> {
        Self::open_at(folder, FIRST_OFFSET)
    }

    /// Opens the journal in a build's folder to read from `offset` on, where a record begins: what [`Self::offset`] has said.
    pub fn open_at(folder: &Path, offset: u64) -> Result<Self, JournalError> {
        let path = folder.join(FILE_NAME);
        let mut file = plainly()
            .read(true)
            .open(&path)
            .map_err(|source| JournalError::Open {
                path: path.clone(),
                source,
            })?;
        let mut magic = [0; FORMAT_VERSION.len()];
        file.read_exact(&mut magic).map_err(JournalError::Read)?;
        if &magic != FORMAT_VERSION {
            return Err(JournalError::Format { path });
        }
        Ok(Self {
            file,
            offset,
            buffer: Vec::new(),
            start: 0,
            read_bytes: READ_BYTES,
            next_bytes: SKIM_BYTES,
        })
    }

    /// Opens the journal in a build's folder for [`Self::next_event`].
    pub fn skim(folder: &Path) -> Result<Self, JournalError> {
        let mut reader = Self::open(folder)?;
        reader.read_bytes = SKIM_BYTES;
        Ok(reader)
    }

    /// Returns the next event and when it was recorded, in Unix milliseconds; `None` when there is no whole one yet. What steps wrote is
    /// passed over: neither read nor checked.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn next_event(&mut self) -> Result<Option<(u64, Event)>, JournalError> {
        self.read_again(Self::next_event_as_read)
    }

    fn next_event_as_read(&mut self) -> Result<Option<(u64, Event)>, JournalError> {
        loop {
            let Some(head) = self.head()? else {
                return Ok(None);
            };
            if head.kind != KIND_OUTPUT {
                return Ok(self.next()?.and_then(|record| match record.body {
                    Body::Event(event) => Some((record.at_ms, event)),
                    Body::Output { .. } => None,
                }));
            }
            let size_bytes = FRAME_BYTES + head.length;
            if self.buffer.len() - self.start >= size_bytes {
                self.start += size_bytes;
            } else {
                let end = self.file.metadata().map_err(JournalError::Read)?.len();
                // What was read ahead may have been taken back, and something else follow: only what is still there is passed over.
                let is_still_there = self.is_on_disk(&head)?;
                self.forget();
                if !is_still_there {
                    continue;
                }
                if end < self.offset + size_bytes as u64 {
                    return Ok(None);
                }
            }
            self.offset += size_bytes as u64;
        }
    }

    /// Returns the beginning of the next record.
    fn head(&mut self) -> Result<Option<Head>, JournalError> {
        let offset = self.offset;
        let damaged = || JournalError::Damaged { offset };
        let Some(bytes) = self.peek(0, FRAME_BYTES + 1)? else {
            return Ok(None);
        };
        let bytes: [u8; FRAME_BYTES + 1] = bytes.try_into().map_err(|_| damaged())?;
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(damaged)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| damaged())?;
        if !(PREFIX_BYTES..=RECORD_MAX_BYTES).contains(&length) {
            return Err(damaged());
        }
        let kind = rest.last().copied().ok_or_else(damaged)?;
        Ok(Some(Head {
            bytes,
            length,
            kind,
        }))
    }

    fn is_on_disk(&self, head: &Head) -> Result<bool, JournalError> {
        let mut bytes = [0; FRAME_BYTES + 1];
        match self.file.read_exact_at(&mut bytes, self.offset) {
            Ok(()) => Ok(bytes == head.bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(JournalError::Read(error)),
        }
    }

    /// Returns the offset of the next record in the file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the next record, or `None` when there is no whole one yet.
    ///
    /// # Errors
    /// [`JournalError::Damaged`] when the record is whole but its checksum is not.
    #[expect(
        clippy::should_implement_trait,
        reason = "None is not the end here: more may come"
    )]
    pub fn next(&mut self) -> Result<Option<Record>, JournalError> {
        self.read_again(Self::next_as_read)
    }

    /// Reads, and once more from the file alone when what was read ahead may have been taken back since: the half of a record that came
    /// before and the half that came after are none, and the length of what is not there any more says nothing about what is.
    fn read_again<T>(
        &mut self,
        read: fn(&mut Self) -> Result<Option<T>, JournalError>,
    ) -> Result<Option<T>, JournalError> {
        let has_ahead = self.buffer.len() > self.start;
        match read(self) {
            Ok(None) if !has_ahead => Ok(None),
            Ok(None) | Err(JournalError::Damaged { .. }) => {
                self.forget();
                read(self)
            }
            next => next,
        }
    }

    /// Forgets what was read ahead.
    fn forget(&mut self) {
        self.buffer.clear();
        self.start = 0;
    }

    fn next_as_read(&mut self) -> Result<Option<Record>, JournalError> {
        let offset = self.offset;
        let damaged = || JournalError::Damaged { offset };
        let Some(frame) = self.peek(0, FRAME_BYTES)? else {
            return Ok(None);
        };
        let Some((length, crc)) = frame.split_first_chunk::<4>() else {
            return Err(damaged());
        };
        let crc = crc
            .first_chunk::<4>()
            .copied()
            .map_or(0, u32::from_le_bytes);
        let length = u32::from_le_bytes(*length);
        let length = usize::try_from(length).map_err(|_| damaged())?;
        if !(PREFIX_BYTES..=RECORD_MAX_BYTES).contains(&length) {
            return Err(damaged());
        }
        let Some(payload) = self.peek(FRAME_BYTES, length)? else {
            return Ok(None);
        };
        if crc32fast::hash(payload) != crc {
            return Err(damaged());
        }
        let record = decode(payload).ok_or_else(damaged)?;
        self.start += FRAME_BYTES + length;
        self.offset += (FRAME_BYTES + length) as u64;
        Ok(Some(record))
    }

    /// Returns `length` bytes at `skip` from the next record's beginning, reading more of the file if needed.
    fn peek(&mut self, skip: usize, length: usize) -> Result<Option<&[u8]>, JournalError> {
        let wanted = skip + length;
        while self.buffer.len() - self.start < wanted {
            if self.start > 0 {
                self.buffer.drain(..self.start);
                self.start = 0;
            }
            let have = self.buffer.len();
            let asked = wanted.max(self.next_bytes);
            self.buffer.resize(have + asked, 0);
            let room = self.buffer.get_mut(have..).unwrap_or_default();
            let n = self.file.read_at(room, self.offset + have as u64);
            self.buffer
                .truncate(have + n.as_ref().copied().unwrap_or(0));
            let n = n.map_err(JournalError::Read)?;
            if n == asked {
                self.next_bytes = (asked * GROWTH).min(self.read_bytes);
            } else {
                self.next_bytes = SKIM_BYTES;
                self.buffer.shrink_to(SKIM_BYTES);
            }
            if n == 0 {
                // The beginning of a record may be taken back: it is read again with the rest.
                self.forget();
                return Ok(None);
            }
        }
        Ok(self.buffer.get(self.start + skip..self.start + wanted))
    }
}

fn decode(payload: &[u8]) -> Option<Record> {
    let (kind, rest) = payload.split_first()?;
    let (at_ms, rest) = rest.split_first_chunk::<8>()?;
    let body = match *kind {
        KIND_EVENT => Body::Event(serde_json::from_slice(rest).ok()?),
        KIND_OUTPUT => {
            let (step, rest) = rest.split_first_chunk::<4>()?;
            let (stream, bytes) = rest.split_first()?;
            Body::Output {
                step: StepId(u32::from_le_bytes(*step)),
                stream: match stream {
                    1 => Stream::Stdout,
                    2 => Stream::Stderr,
                    _ => return None,
                },
                bytes: bytes.to_vec(),
            }
        }
        _ => return None,
    };
    Some(Record {
        at_ms: u64::from_le_bytes(*at_ms),
        body,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Phase;

    fn records() -> Vec<Record> {
        let output = |n: u32| Record {
            at_ms: 7 + u64::from(n),
            body: Body::Output {
                step: StepId(n),
                stream: Stream::Stderr,
                bytes: vec![u8::try_from(n % 251).unwrap(); (n as usize * 97) % 5000],
            },
        };
        let event = Record {
            at_ms: 1,
            body: Body::Event(Event::Phase {
                phase: Phase::Running,
            }),
        };
        std::iter::once(event).chain((0..300).map(output)).collect()
    }

    fn read_all(folder: &Path) -> Vec<Record> {
        let mut reader = Reader::open(folder).unwrap();
        std::iter::from_fn(|| reader.next().unwrap()).collect()
    }

    #[test]
    fn what_was_appended_is_read_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(folder.path()).unwrap();
        let mut reader = Reader::open(folder.path()).unwrap();
        for record in records() {
            assert_eq!(reader.next().unwrap(), None);
            writer.append(&record).unwrap();
            assert_eq!(reader.next().unwrap().as_ref(), Some(&record));
        }
        assert_eq!(read_all(folder.path()), records());
    }

    #[test]
    fn who_wants_events_only_reads_no_output() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(folder.path()).unwrap();
        let mut reader = Reader::skim(folder.path()).unwrap();
        let event = |phase| Event::Phase { phase };
        let phases = [Phase::Resolving, Phase::Running, Phase::Pushing];
        for (at_ms, phase) in (0..).zip(phases) {
            assert_eq!(reader.next_event().unwrap(), None);
            for record in records().split_off(1) {
                writer.append(&record).unwrap();
            }
            assert_eq!(reader.next_event().unwrap(), None);
            let body = Body::Event(event(phase));
            writer.append(&Record { at_ms, body }).unwrap();
            assert_eq!(reader.next_event().unwrap(), Some((at_ms, event(phase))));
        }
        // Half a record of output is not passed over.
        let path = folder.path().join(FILE_NAME);
        let whole = std::fs::read(&path).unwrap();
        let output = encode(&records()[250]).unwrap();
        std::fs::write(&path, [&whole[..], &output[..output.len() - 1]].concat()).unwrap();
        assert_eq!(reader.next_event().unwrap(), None);
        let body = Body::Event(event(Phase::Pushing));
        let last = encode(&Record { at_ms: 9, body }).unwrap();
        std::fs::write(&path, [&whole[..], &output, &last].concat()).unwrap();
        assert_eq!(
            reader.next_event().unwrap(),
            Some((9, event(Phase::Pushing)))
        );
    }

    #[test]
    fn a_torn_tail_is_cut_at_every_length_and_writing_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let (first, last) = (&records()[0], &records()[3]);
        let mut writer = Writer::create(folder.path()).unwrap();
        writer.append(first).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let tail = encode(last).unwrap();
        for cut in 0..tail.len() {
            std::fs::write(&path, [&whole[..], &tail[..cut]].concat()).unwrap();
            let mut writer = Writer::resume(folder.path()).unwrap();
            writer.append(last).unwrap();
            assert_eq!(
                read_all(folder.path()),
                [first.clone(), last.clone()],
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn a_record_that_could_not_be_written_whole_is_taken_back_and_readers_go_on() {
        // Whoever reads sees the beginning of the record, then the one that is written in its place.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let mut writer = Writer::create(folder.path()).unwrap();
        writer.append(&records()[0]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let (large, small) = (&records()[200], &records()[3]);
        for cut in [1, 7, 8, 9, 20, 1000] {
            std::fs::write(&path, &whole).unwrap();
            let mut reader = Reader::open(folder.path()).unwrap();
            assert_eq!(reader.next().unwrap().as_ref(), Some(&records()[0]));
            let begun = encode(large).unwrap();
            std::fs::write(&path, [&whole[..], &begun[..cut]].concat()).unwrap();
            assert_eq!(reader.next().unwrap(), None, "cut at {cut}");
            std::fs::write(&path, [&whole[..], &encode(small).unwrap()].concat()).unwrap();
            assert_eq!(reader.next().unwrap().as_ref(), Some(small), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_reserved_is_given_up_for_the_last_record() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(folder.path()).unwrap();
        let reserve = writer.reserve().unwrap();
        assert!(reserve.metadata().unwrap().len() >= 64 << 10);
        writer.append(&records()[0]).unwrap();
        assert!(reserve.exists());
        let body = Body::Event(Event::Cancelled);
        writer.append(&Record { at_ms: 1, body }).unwrap();
        assert!(!reserve.exists());
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let mut writer = Writer::create(folder.path()).unwrap();
        writer.append(&records()[5]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for at in FORMAT_VERSION.len() + 4..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 1;
            std::fs::write(&path, bad).unwrap();
            let read = Reader::open(folder.path()).unwrap().next();
            assert!(
                matches!(read, Err(JournalError::Damaged { .. })),
                "bit at {at}"
            );
        }
    }

    #[test]
    fn a_file_of_another_kind_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE_NAME), b"something else").unwrap();
        assert!(matches!(
            Reader::open(folder.path()),
            Err(JournalError::Format { .. })
        ));
    }
}
