//! Downloads into the store: once for all who want a blob at the same time, verified before it is visible.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use oci::{Descriptor, Reference};
use store::{CommitError, Growth, Store};
use tokio::sync::mpsc;

use super::Client;
use super::blob::{BlobStream, Verify, attempt};
use super::error::{Error, Problem};
use super::pull::check_size;

/// Pieces that wait to be written to disk.
const WRITE_QUEUE_PIECES: usize = 16;

impl Client {
    /// Downloads a blob into `store`, unless it is there. Of several callers, in whatever process, one downloads and the others
    /// wait for it. `progress` is told the number of bytes that are there so far.
    pub async fn blob_to_store(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
        store: &Store,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), Error> {
        self.blob_to_store_growing(repository, descriptor, store, progress, &Growth::new())
            .await
    }

    /// The same, and whoever reads `growth` reads along. If the blob comes from elsewhere, or has to be downloaded a second time, reading
    /// along fails while this succeeds: the blob is then to be read from the store.
    pub async fn blob_to_store_growing(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
        store: &Store,
        progress: &(dyn Fn(u64) + Send + Sync),
        growth: &Arc<Growth>,
    ) -> Result<(), Error> {
        // However this ends, nobody waits for more.
        let _ended = GiveUp(growth);
        let in_error = |problem: Problem| {
            problem.into_error(attempt(repository, descriptor), repository.host())
        };
        if is_there(store, descriptor).await.map_err(in_error)? {
            return Ok(());
        }
        let _lock = lock(store, descriptor).await.map_err(in_error)?;
        if is_there(store, descriptor).await.map_err(in_error)? {
            return Ok(());
        }
        let mut stream = self.reader(repository, descriptor, Verify::ByCaller)?;
        let first = stream.download(store, progress, growth).await;
        let Err(Problem::DigestMismatch { .. }) = &first else {
            return first.map_err(|p| stream.in_error(p));
        };
        // Pieces of several answers, a mirror's, or bits that turned on the way: once more, all from the registry itself.
        let mut stream = self.reader(repository, descriptor, Verify::ByCaller)?;
        stream.skip_mirrors();
        let second = stream.download(store, progress, growth).await;
        second.map_err(|p| stream.in_error(p))
    }
}

struct GiveUp<'a>(&'a Growth);

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

enum Piece {
    Data(Bytes),
    End,
}

impl BlobStream {
    /// Reads everything into the store, which hashes and verifies it on a thread of its own.
    async fn download(
        &mut self,
        store: &Store,
        progress: &(dyn Fn(u64) + Send + Sync),
        growth: &Arc<Growth>,
    ) -> Result<(), Problem> {
        let (sender, receiver) = mpsc::channel(WRITE_QUEUE_PIECES);
        let (store, expected) = (store.clone(), self.descriptor().clone());
        let growth = Arc::clone(growth);
        let writer =
            tokio::task::spawn_blocking(move || write(&store, &expected, receiver, &growth));
        let mut failed = None;
        loop {
            let piece = match self.next().await {
                Ok(Some(chunk)) => Piece::Data(chunk),
                Ok(None) => Piece::End,
                Err(problem) => {
                    failed = Some(problem);
                    break;
                }
            };
            let is_last = matches!(piece, Piece::End);
            // A writer that is gone has something to say.
            if sender.send(piece).await.is_err() || is_last {
                break;
            }
            progress(self.offset());
        }
        drop(sender);
        let written = match writer.await {
            Ok(written) => written,
            Err(error) => Err(Problem::local("write a blob to the store", error)),
        };
        match failed {
            Some(problem) => Err(problem),
            None => written,
        }
    }
}

fn write(
    store: &Store,
    expected: &Descriptor,
    mut pieces: mpsc::Receiver<Piece>,
    growth: &Arc<Growth>,
) -> Result<(), Problem> {
    let local = "write a blob to the store";
    let algorithm = expected.digest.algorithm();
    let ingest = store.ingest_as(algorithm);
    let mut ingest = ingest.map_err(|error| Problem::local(local, error))?;
    let watched = ingest.read_along(growth);
    watched.map_err(|error| Problem::local(local, error))?;
    loop {
        match pieces.blocking_recv() {
            Some(Piece::Data(chunk)) => {
                let written = ingest.write_all(&chunk);
                written.map_err(|error| Problem::local(local, error))?;
            }
            Some(Piece::End) => break,
            // The download failed or was cancelled; what was written is thrown away.
            None => return Ok(()),
        }
    }
    check_size("the blob", expected.size, ingest.size_bytes())?;
    match ingest.commit(Some(&expected.digest)) {
        Ok(_) => Ok(()),
        Err(CommitError::DigestMismatch { actual, .. }) => Err(Problem::DigestMismatch {
            what: "the blob",
            expected: expected.digest.clone(),
            actual,
        }),
        Err(error) => Err(Problem::local(local, error)),
    }
}

async fn is_there(store: &Store, descriptor: &Descriptor) -> Result<bool, Problem> {
    let (store, digest) = (store.clone(), descriptor.digest.clone());
    let size = tokio::task::spawn_blocking(move || store.size_of(&digest)).await;
    let size = match size {
        Ok(Ok(size)) => size,
        Ok(Err(error)) => return Err(Problem::local("look into the store", error)),
        Err(error) => return Err(Problem::local("look into the store", error)),
    };
    match size {
        // What the store has was verified, so it is the descriptor that is wrong.
        Some(size) => check_size("the blob", descriptor.size, size).map(|()| true),
        None => Ok(false),
    }
}

/// Waits until nobody else downloads this blob. Dropping the future stops the waiting.
async fn lock(store: &Store, descriptor: &Descriptor) -> Result<store::LockGuard, Problem> {
    struct Waiting(Arc<AtomicBool>);
    impl Drop for Waiting {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let name = format!("pull {}", descriptor.digest);
    let is_over = Arc::new(AtomicBool::new(false));
    let _waiting = Waiting(Arc::clone(&is_over));
    let store = store.clone();
    let waited = tokio::task::spawn_blocking(move || {
        store.lock_unless(&name, &|| is_over.load(Ordering::Relaxed))
    });
    match waited.await {
        Ok(Ok(guard)) => Ok(guard),
        Ok(Err(error)) => Err(Problem::local("wait for a download", error)),
        Err(error) => Err(Problem::local("wait for a download", error)),
    }
}
