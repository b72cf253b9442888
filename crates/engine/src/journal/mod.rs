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
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::event::{Event, StepId, Stream};

mod reader;

pub use reader::Reader;

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
    /// What was written could not be made durable.
    #[error("make the journal durable")]
    Sync(#[source] io::Error),
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
        self.file.sync_data().map_err(JournalError::Sync)
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

#[cfg(test)]
mod tests;
