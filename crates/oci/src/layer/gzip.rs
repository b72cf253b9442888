//! Gzip on several threads: as many members as there are pieces, each compressed for itself.
//!
//! The input is cut into pieces of [`PIECE_BYTES`], each of which becomes a gzip member; the format says that members laid end to end are
//! one file, and every reader of layers knows. How many threads do it decides nothing but the time. At most two pieces per thread are in memory.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use libdeflater::{CompressionLvl, Compressor};

/// Input of one piece.
const PIECE_BYTES: usize = 2 << 20;
/// Most threads that are started.
const THREADS_MAX: usize = 64;

pub(super) struct GzipWriter<W: Write> {
    out: W,
    level: u32,
    piece: Vec<u8>,
    /// Whether there is a member: of nothing there has to be one as well.
    has_begun: bool,
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
    input: Vec<u8>,
}

impl<W: Write> GzipWriter<W> {
    pub(super) fn new(out: W, level: u32, n_threads: usize) -> io::Result<Self> {
        let pool = match n_threads {
            0 | 1 => None,
            n => Some(Pool::start(level, n.min(THREADS_MAX))?),
        };
        Ok(Self {
            out,
            level,
            piece: Vec::with_capacity(PIECE_BYTES),
            has_begun: false,
            pool,
        })
    }

    /// Takes as much of `bytes` as the current piece has room for.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PIECE_BYTES - self.piece.len();
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.piece.extend_from_slice(taken);
        if self.piece.len() == PIECE_BYTES {
            self.end_piece()?;
        }
        Ok(taken.len())
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        if !self.piece.is_empty() || !self.has_begun {
            self.end_piece()?;
        }
        if let Some(mut pool) = self.pool.take() {
            while pool.n_written < pool.n_sent {
                pool.receive(&mut self.out)?;
            }
        }
        Ok(self.out)
    }

    fn end_piece(&mut self) -> io::Result<()> {
        self.has_begun = true;
        let next = Vec::with_capacity(PIECE_BYTES);
        let input = std::mem::replace(&mut self.piece, next);
        let Some(pool) = &mut self.pool else {
            return self.out.write_all(&compress(self.level, &input)?);
        };
        pool.send(input)?;
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
                let deflated = compress(level, &piece.input);
                if send_deflated.send((piece.number, deflated)).is_err() {
                    return;
                }
            };
            let builder = std::thread::Builder::new().name("gzip".to_owned());
            pool.threads.push(builder.spawn(work)?);
        }
        Ok(pool)
    }

    fn send(&mut self, input: Vec<u8>) -> io::Result<()> {
        let piece = Piece {
            number: self.n_sent,
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

/// Makes a member of one piece.
fn compress(level: u32, input: &[u8]) -> io::Result<Vec<u8>> {
    let level = i32::try_from(level).ok().map(CompressionLvl::new);
    let level = level.and_then(Result::ok);
    let level = level.ok_or_else(|| io::Error::other("there is no such level of compression"))?;
    let mut compressor = Compressor::new(level);
    let mut member = vec![0; compressor.gzip_compress_bound(input.len())];
    let n = compressor
        .gzip_compress(input, &mut member)
        .map_err(|_| io::Error::other("compressing made more than it can"))?;
    member.truncate(n);
    Ok(member)
}
