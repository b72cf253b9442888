//! Reading a journal, from any record on, while it grows.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::{
    Body, FILE_NAME, FIRST_OFFSET, FORMAT_VERSION, FRAME_BYTES, GROWTH, JournalError, KIND_EVENT,
    KIND_OUTPUT, PREFIX_BYTES, READ_BYTES, RECORD_MAX_BYTES, Record, SKIM_BYTES, plainly,
};
use crate::event::{Event, StepId, Stream};

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
    file: Arc<File>,
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
            file: Arc::new(file),
            offset,
            buffer: Vec::new(),
            start: 0,
            read_bytes: READ_BYTES,
            next_bytes: SKIM_BYTES,
        })
    }

    /// Returns what waits until everything that was written so far is durable, whoever wrote it.
    ///
    /// It fails with [`JournalError::Sync`] when the system has failed to write any of it since this reader was opened.
    pub fn syncing(&self) -> impl FnOnce() -> Result<(), JournalError> + Send + 'static {
        let file = Arc::clone(&self.file);
        move || file.sync_data().map_err(JournalError::Sync)
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
                let is_still_there = self.is_on_disk(&head.bytes)?;
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

    /// Tells whether the next record begins like this on the disk.
    fn is_on_disk(&self, beginning: &[u8]) -> Result<bool, JournalError> {
        let mut bytes = [0; FRAME_BYTES + 1];
        let bytes = bytes.get_mut(..beginning.len()).unwrap_or_default();
        match self.file.read_exact_at(bytes, self.offset) {
            Ok(()) => Ok(bytes == beginning),
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
            let n_before = have.min(FRAME_BYTES + 1);
            let beginning = self.buffer.get(..n_before).unwrap_or_default();
            if !self.is_on_disk(beginning)? {
                // It was taken back since it was read, and what was read now belongs to another record.
                self.forget();
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
