//! Gzip on several threads: one member, made of pieces that are compressed independently.
//!
//! The input is cut into pieces of [`PIECE_BYTES`]. Each is deflated on its own, with the 32 KiB before it as dictionary, and
//! ended with a sync flush, so that the pieces can be laid end to end: any reader sees one ordinary gzip member. How many
//! threads do it decides nothing but the time. At most two pieces per thread are in memory.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use flate2::{Compress, FlushCompress, Status};

/// Input of one piece.
const PIECE_BYTES: usize = 1 << 20;
/// How far back deflate can refer.
const WINDOW_BYTES: usize = 32 << 10;
/// Most threads that are started.
const THREADS_MAX: usize = 64;

/// A member's header: deflate, no flags, no time, no extra flags, made on an unknown system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
/// An empty last block with fixed codes.
const LAST_BLOCK: [u8; 2] = [3, 0];

pub(super) struct GzipWriter<W: Write> {
    out: W,
    level: u32,
    piece: Vec<u8>,
    dictionary: Vec<u8>,
    crc: crc32fast::Hasher,
    size_bytes: u64,
    pool: Option<Pool>,
}

struct Pool {
    pieces: Option<Sender<Piece>>,
    deflated: Receiver<(u64, io::Result<Vec<u8>>)>,
    threads: Vec<JoinHandle<()>>,
    /// Pieces that came back before their turn.
    waiting: BTreeMap<u64, Vec<u8>>,
    n_sent: u64,
    n_written: u64,
}

struct Piece {
    number: u64,
    dictionary: Vec<u8>,
    input: Vec<u8>,
}

impl<W: Write> GzipWriter<W> {
    pub(super) fn new(mut out: W, level: u32, n_threads: usize) -> io::Result<Self> {
        out.write_all(&HEADER)?;
        let pool = match n_threads {
            0 | 1 => None,
            n => Some(Pool::start(level, n.min(THREADS_MAX))?),
        };
        Ok(Self {
            out,
            level,
            piece: Vec::with_capacity(PIECE_BYTES),
            dictionary: Vec::new(),
            crc: crc32fast::Hasher::new(),
            size_bytes: 0,
            pool,
        })
    }

    /// Takes as much of `bytes` as the current piece has room for.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PIECE_BYTES - self.piece.len();
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.piece.extend_from_slice(taken);
        self.crc.update(taken);
        self.size_bytes += taken.len() as u64;
        if self.piece.len() == PIECE_BYTES {
            self.end_piece()?;
        }
        Ok(taken.len())
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        if !self.piece.is_empty() {
            self.end_piece()?;
        }
        if let Some(mut pool) = self.pool.take() {
            while pool.n_written < pool.n_sent {
                pool.receive(&mut self.out)?;
            }
        }
        self.out.write_all(&LAST_BLOCK)?;
        let crc = std::mem::take(&mut self.crc).finalize();
        self.out.write_all(&crc.to_le_bytes())?;
        let size = u32::try_from(self.size_bytes & u64::from(u32::MAX)).unwrap_or(0);
        self.out.write_all(&size.to_le_bytes())?;
        Ok(self.out)
    }

    fn end_piece(&mut self) -> io::Result<()> {
        let next = Vec::with_capacity(PIECE_BYTES);
        let input = std::mem::replace(&mut self.piece, next);
        let window = input.len().saturating_sub(WINDOW_BYTES);
        let next = input.get(window..).unwrap_or_default().to_vec();
        let dictionary = std::mem::replace(&mut self.dictionary, next);
        let Some(pool) = &mut self.pool else {
            let deflated = deflate(self.level, &dictionary, &input)?;
            return self.out.write_all(&deflated);
        };
        pool.send(dictionary, input)?;
        while pool.n_sent - pool.n_written >= 2 * pool.threads.len() as u64 {
            pool.receive(&mut self.out)?;
        }
        Ok(())
    }
}

impl Pool {
    fn start(level: u32, n_threads: usize) -> io::Result<Self> {
        let (send_piece, receive_piece) = channel::<Piece>();
        let (send_deflated, deflated) = channel();
        let pieces = Arc::new(Mutex::new(receive_piece));
        // Dropping the pool half-way ends the threads that were started.
        let mut pool = Self {
            pieces: Some(send_piece),
            deflated,
            threads: Vec::new(),
            waiting: BTreeMap::new(),
            n_sent: 0,
            n_written: 0,
        };
        for _ in 0..n_threads {
            let pieces = Arc::clone(&pieces);
            let send_deflated = send_deflated.clone();
            let work = move || loop {
                let piece = pieces.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(piece) = piece else { return };
                let deflated = deflate(level, &piece.dictionary, &piece.input);
                if send_deflated.send((piece.number, deflated)).is_err() {
                    return;
                }
            };
            let builder = std::thread::Builder::new().name("gzip".to_owned());
            pool.threads.push(builder.spawn(work)?);
        }
        Ok(pool)
    }

    fn send(&mut self, dictionary: Vec<u8>, input: Vec<u8>) -> io::Result<()> {
        let piece = Piece {
            number: self.n_sent,
            dictionary,
            input,
        };
        let sender = self.pieces.as_ref().ok_or_else(died)?;
        sender.send(piece).map_err(|_| died())?;
        self.n_sent += 1;
        Ok(())
    }

    /// Waits for one piece, and writes those whose turn it is.
    fn receive(&mut self, out: &mut impl Write) -> io::Result<()> {
        let (number, deflated) = self.deflated.recv().map_err(|_| died())?;
        self.waiting.insert(number, deflated?);
        while let Some(deflated) = self.waiting.remove(&self.n_written) {
            out.write_all(&deflated)?;
            self.n_written += 1;
        }
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.pieces = None;
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so; there is nothing left to undo.
            let _ = thread.join();
        }
    }
}

fn died() -> io::Error {
    io::Error::other("a compressing thread died")
}

/// Compresses one piece. The state is made anew each time: after a reset, what it had seen before still shows in the output of
/// the lowest levels, and the output would depend on which thread did which piece.
fn deflate(level: u32, dictionary: &[u8], input: &[u8]) -> io::Result<Vec<u8>> {
    let mut state = Compress::new(flate2::Compression::new(level), false);
    if !dictionary.is_empty() {
        state.set_dictionary(dictionary)?;
    }
    let mut output = Vec::with_capacity(input.len() / 2 + 1024);
    loop {
        let n_read = usize::try_from(state.total_in()).unwrap_or(usize::MAX);
        let rest = input.get(n_read..).unwrap_or_default();
        let status = state.compress_vec(rest, &mut output, FlushCompress::Sync)?;
        if status == Status::BufError && output.len() < output.capacity() {
            return Err(io::Error::other("deflate made no progress"));
        }
        // Room left over means that everything, the flush included, was written.
        if state.total_in() == input.len() as u64 && output.len() < output.capacity() {
            return Ok(output);
        }
        output.reserve(input.len() / 2 + 1024);
    }
}
