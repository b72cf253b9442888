//! A blob that is read while it is still being written.
//!
//! Whoever unpacks a layer need not wait until all of it is here: a [`GrowthReader`] reads what an [`Ingest`](crate::Ingest) has written
//! so far, and waits for more. The bytes go through the file, so that neither holds the other up and no memory is taken however far one
//! is ahead.
//!
//! * Reading reaches its end only once the whole was found to have the digest that was expected, or whoever wrote it and expected none says
//!   that this was all: until then nothing that was read counts.
//! * When writing is given up, or begun anew, reading fails, and goes on failing.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What a writer and the readers of one blob share.
#[derive(Debug, Default)]
pub struct Growth {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    file: Option<Arc<File>>,
    n_written: u64,
    end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// All of it is there, and what was expected.
    Whole,
    /// There will be no more of it.
    GivenUp,
}

impl Growth {
    /// Returns one that nobody writes to yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Returns a reader from the beginning.
    pub fn reader(self: &Arc<Self>) -> GrowthReader {
        GrowthReader {
            growth: Arc::clone(self),
            offset: 0,
        }
    }

    /// Says that nothing more is written, unless all was. Whoever made this has to see to it: readers wait until then.
    pub fn give_up(&self) {
        self.end(End::GivenUp);
    }

    /// Returns how many bytes were written so far.
    pub fn n_written(&self) -> u64 {
        self.lock().n_written
    }

    /// Waits until more than `n_bytes` were written; false when writing ended before.
    pub fn wait_for_more_than(&self, n_bytes: u64) -> bool {
        let is_to_wait = |state: &mut State| state.n_written <= n_bytes && state.end.is_none();
        let state = self.changed.wait_while(self.lock(), is_to_wait);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        state.n_written > n_bytes && state.end != Some(End::GivenUp)
    }

    /// Tells whether what was written is no use, whatever was read of it.
    pub fn is_given_up(&self) -> bool {
        self.lock().end == Some(End::GivenUp)
    }

    pub(crate) fn begin(&self, file: File) {
        let mut state = self.lock();
        if state.file.is_some() {
            // Others have read what was begun before.
            state.end.get_or_insert(End::GivenUp);
        } else {
            state.file = Some(Arc::new(file));
        }
        drop(state);
        self.changed.notify_all();
    }

    pub(crate) fn grow(&self, n_bytes: u64) {
        self.lock().n_written += n_bytes;
        self.changed.notify_all();
    }

    pub(crate) fn whole(&self) {
        self.end(End::Whole);
    }

    fn end(&self, end: End) {
        self.lock().end.get_or_insert(end);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something behind `offset`; `None` at the end.
    fn wait(&self, offset: u64) -> io::Result<Option<(Arc<File>, u64)>> {
        let mut state = self.lock();
        loop {
            match (state.end, &state.file) {
                (Some(End::GivenUp), _) => {
                    return Err(io::Error::other("writing the blob was given up"));
                }
                (_, Some(file)) if state.n_written > offset => {
                    return Ok(Some((Arc::clone(file), state.n_written)));
                }
                (Some(End::Whole), _) => return Ok(None),
                (None, _) => {}
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Reads a blob that grows.
#[derive(Debug)]
pub struct GrowthReader {
    growth: Arc<Growth>,
    offset: u64,
}

impl Read for GrowthReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some((file, n_written)) = self.growth.wait(self.offset)? else {
            return Ok(0);
        };
        let n_there = usize::try_from(n_written - self.offset).unwrap_or(usize::MAX);
        let n_wanted = buffer.len().min(n_there);
        let n = file.read_at(buffer.get_mut(..n_wanted).unwrap_or_default(), self.offset)?;
        self.offset += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use oci::Digest;

    use super::*;
    use crate::{Ingest, Store};

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store"), None).unwrap();
        (folder, store)
    }

    fn begin(store: &Store, growth: &Arc<Growth>) -> Ingest {
        let mut ingest = store.ingest().unwrap();
        ingest.read_along(growth).unwrap();
        ingest
    }

    fn read_all(growth: &Arc<Growth>) -> std::thread::JoinHandle<io::Result<Vec<u8>>> {
        let mut reader = growth.reader();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).map(|_| bytes)
        })
    }

    #[test]
    fn who_reads_along_gets_everything_and_the_end_once_it_is_verified() {
        let (_folder, store) = store();
        let growth = Growth::new();
        // Before there is anything: it waits.
        let reading = read_all(&growth);
        let mut ingest = begin(&store, &growth);
        let bytes: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
        for piece in bytes.chunks(10_000) {
            ingest.write_all(piece).unwrap();
        }
        assert!(!reading.is_finished());
        ingest.commit(Some(&Digest::sha256(&bytes))).unwrap();
        assert!(reading.join().unwrap().unwrap() == bytes);
        // Who comes late reads the same.
        assert!(read_all(&growth).join().unwrap().unwrap() == bytes);
    }

    #[test]
    fn what_turns_out_to_be_something_else_never_ends_well() {
        let (_folder, store) = store();
        let growth = Growth::new();
        let mut ingest = begin(&store, &growth);
        ingest.write_all(b"something").unwrap();
        let reading = read_all(&growth);
        ingest
            .commit(Some(&Digest::sha256(b"something else")))
            .unwrap_err();
        assert!(reading.join().unwrap().is_err());
        assert!(growth.is_given_up());
    }

    #[test]
    fn a_second_beginning_is_not_mixed_with_the_first() {
        let (_folder, store) = store();
        let growth = Growth::new();
        let mut first = begin(&store, &growth);
        first.write_all(b"wrong").unwrap();
        drop(first);
        let mut second = begin(&store, &growth);
        second.write_all(b"right").unwrap();
        second.commit(Some(&Digest::sha256(b"right"))).unwrap();
        assert!(read_all(&growth).join().unwrap().is_err());
    }

    #[test]
    fn who_wrote_something_of_his_own_says_that_it_was_all() {
        let (_folder, store) = store();
        let growth = Growth::new();
        let mut ingest = begin(&store, &growth);
        ingest.write_all(b"a layer").unwrap();
        let reading = read_all(&growth);
        assert!(!reading.is_finished());
        ingest.whole();
        assert_eq!(reading.join().unwrap().unwrap(), b"a layer");
        // Not becoming a blob takes nothing back: what was read is what was written.
        drop(ingest);
        assert!(!growth.is_given_up());
    }

    #[test]
    fn who_waits_for_more_than_comes_is_told() {
        let (_folder, store) = store();
        let growth = Growth::new();
        let mut ingest = begin(&store, &growth);
        ingest.write_all(b"12345").unwrap();
        assert!(growth.wait_for_more_than(4));
        let waiting = {
            let growth = Arc::clone(&growth);
            std::thread::spawn(move || growth.wait_for_more_than(5))
        };
        ingest.whole();
        assert!(!waiting.join().unwrap());
        assert!(growth.wait_for_more_than(4));

        let growth = Growth::new();
        let mut ingest = begin(&store, &growth);
        ingest.write_all(b"12345").unwrap();
        drop(ingest);
        assert!(!growth.wait_for_more_than(4));
    }

    #[test]
    fn nobody_waits_for_what_never_begins() {
        let growth = Growth::new();
        let reading = read_all(&growth);
        growth.give_up();
        assert!(reading.join().unwrap().is_err());
    }
}
