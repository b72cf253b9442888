//! Following a journal while it is written.
//!
//! One inotify instance and one thread serve every reader of this process: the number of instances a user may have is small
//! (128 by default), the number of readers is not. A reader goes through the file on its own; the thread only says "look again".

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::Stream;
use rustix::fs::inotify;
use tokio::sync::watch;

use crate::event::Event;
use crate::journal::{Body, FILE_NAME, FIRST_OFFSET, JournalError, Reader, Record};

/// Between two looks at what was told.
const PAUSE: Duration = Duration::from_millis(1);

/// Returns every record of the journal in `folder` from the first, waits for more, and ends after the terminal event.
pub fn follow(
    folder: PathBuf,
) -> impl Stream<Item = Result<Record, JournalError>> + Send + 'static {
    futures_util::stream::try_unfold(None, move |follower| {
        let folder = folder.clone();
        async move {
            let mut follower = match follower {
                Some(follower) => follower,
                None => Follower::open(&folder)?,
            };
            Ok(follower
                .next()
                .await?
                .map(|record| (record, Some(follower))))
        }
    })
}

/// Reads a journal to its end, waiting for what is not written yet.
#[derive(Debug)]
pub struct Follower {
    reader: Reader,
    subscription: Subscription,
    ended: bool,
}

impl Follower {
    /// Starts at the first record.
    pub fn open(folder: &Path) -> Result<Self, JournalError> {
        Self::open_at(folder, FIRST_OFFSET)
    }

    /// Starts at the first record, for [`Self::next_event`]: little is read of what is passed over.
    pub fn skim(folder: &Path) -> Result<Self, JournalError> {
        Self::of(folder, Reader::skim)
    }

    /// Starts at the record that begins at `offset`: at what [`Self::offset`] has said of another one.
    pub fn open_at(folder: &Path, offset: u64) -> Result<Self, JournalError> {
        Self::of(folder, |folder| Reader::open_at(folder, offset))
    }

    fn of(
        folder: &Path,
        open: impl FnOnce(&Path) -> Result<Reader, JournalError>,
    ) -> Result<Self, JournalError> {
        // Watch before reading: what is appended in between is then either read or told.
        let path = folder.join(FILE_NAME);
        let subscription = Hub::get()
            .and_then(|hub| hub.subscribe(&path))
            .map_err(|source| JournalError::Open { path, source })?;
        Ok(Self {
            reader: open(folder)?,
            subscription,
            ended: false,
        })
    }

    /// Returns where the next record begins in the file.
    pub fn offset(&self) -> u64 {
        self.reader.offset()
    }

    /// Returns the next record; `None` once the terminal event was returned. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Option<Record>, JournalError> {
        if self.ended {
            return Ok(None);
        }
        loop {
            self.subscription.changes.borrow_and_update();
            if let Some(record) = self.reader.next()? {
                self.ended = matches!(&record.body, Body::Event(event) if event.is_terminal());
                return Ok(Some(record));
            }
            self.subscription.changed().await?;
        }
    }

    /// Returns the next event and when it was written, and passes over what steps write before it: that is neither read nor checked. `None`
    /// once the terminal event was returned. Dropping the future loses nothing.
    pub async fn next_event(&mut self) -> Result<Option<(u64, Event)>, JournalError> {
        if self.ended {
            return Ok(None);
        }
        loop {
            self.subscription.changes.borrow_and_update();
            if let Some(event) = self.try_next_event()? {
                return Ok(Some(event));
            }
            self.subscription.changed().await?;
        }
    }

    /// Returns the next event that is already there, without waiting.
    pub fn try_next_event(&mut self) -> Result<Option<(u64, Event)>, JournalError> {
        if self.ended {
            return Ok(None);
        }
        let next = self.reader.next_event()?;
        self.ended = next.as_ref().is_some_and(|(_, event)| event.is_terminal());
        Ok(next)
    }

    /// Waits until everything that was written so far is durable, whoever wrote it.
    ///
    /// # Errors
    /// When the system has failed to write any of it since this follower was opened.
    pub async fn sync(&self) -> Result<(), JournalError> {
        let synced = tokio::task::spawn_blocking(self.reader.syncing()).await;
        synced.map_err(|error| JournalError::Sync(io::Error::other(error)))?
    }

    /// Returns the next record that is already there, without waiting.
    pub fn try_next(&mut self) -> Result<Option<Record>, JournalError> {
        if self.ended {
            return Ok(None);
        }
        let record = self.reader.next()?;
        self.ended = record.as_ref().is_some_and(
            |record| matches!(&record.body, Body::Event(event) if event.is_terminal()),
        );
        Ok(record)
    }
}

#[derive(Debug)]
struct Hub {
    inotify: OwnedFd,
    watches: Mutex<HashMap<i32, Watch>>,
}

#[derive(Debug)]
struct Watch {
    changes: watch::Sender<()>,
    n_subscriptions: usize,
}

#[derive(Debug)]
struct Subscription {
    hub: Arc<Hub>,
    id: i32,
    changes: watch::Receiver<()>,
}

impl Hub {
    fn get() -> io::Result<Arc<Self>> {
        static HUB: OnceLock<io::Result<Arc<Hub>>> = OnceLock::new();
        match HUB.get_or_init(Self::start) {
            Ok(hub) => Ok(Arc::clone(hub)),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        }
    }

    fn start() -> io::Result<Arc<Self>> {
        let hub = Arc::new(Self {
            inotify: inotify::init(inotify::CreateFlags::CLOEXEC)?,
            watches: Mutex::default(),
        });
        let watcher = Arc::clone(&hub);
        std::thread::Builder::new()
            .name("journal-watch".to_owned())
            .spawn(move || watcher.run())?;
        Ok(hub)
    }

    fn run(&self) {
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut events = inotify::Reader::new(&self.inotify, &mut buffer);
        loop {
            // What is told meanwhile is told together: of a journal that grows fast, not with each record.
            if events.is_buffer_empty() {
                std::thread::sleep(PAUSE);
            }
            match events.next() {
                Ok(event) => {
                    let watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(watch) = watches.get(&event.wd()) {
                        watch.changes.send_modify(|()| ());
                    }
                    // The kernel dropped events: everybody looks again.
                    if event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) {
                        watches
                            .values()
                            .for_each(|watch| watch.changes.send_modify(|()| ()));
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    fn subscribe(self: Arc<Self>, path: &Path) -> io::Result<Subscription> {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let id = inotify::add_watch(&self.inotify, path, inotify::WatchFlags::MODIFY)?;
        let watch = watches.entry(id).or_insert_with(|| Watch {
            changes: watch::Sender::new(()),
            n_subscriptions: 0,
        });
        watch.n_subscriptions += 1;
        let changes = watch.changes.subscribe();
        drop(watches);
        Ok(Subscription {
            hub: self,
            id,
            changes,
        })
    }
}

impl Subscription {
    async fn changed(&mut self) -> Result<(), JournalError> {
        let changed = self.changes.changed().await;
        changed.map_err(|_| JournalError::Read(io::Error::other("the watch on the journal ended")))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut watches = self
            .hub
            .watches
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(watch) = watches.get_mut(&self.id) {
            watch.n_subscriptions -= 1;
            if watch.n_subscriptions == 0 {
                watches.remove(&self.id);
                // The file may be gone already, and its watch with it.
                let _gone = inotify::remove_watch(&self.hub.inotify, self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Phase, StepId, Stream as OutputStream};
    use crate::journal::Writer;

    fn record(n: u32) -> Record {
        Record {
            at_ms: 1,
            body: Body::Output {
                step: StepId(n),
                stream: OutputStream::Stdout,
                bytes: b"x".to_vec(),
            },
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_readers_see_every_record_and_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(folder.path()).unwrap();
        let readers: Vec<_> = (0..300)
            .map(|_| {
                let mut follower = Follower::open(folder.path()).unwrap();
                tokio::spawn(async move {
                    let mut n = 0_u32;
                    while let Some(record) = follower.next().await.unwrap() {
                        n += u32::from(matches!(record.body, Body::Output { .. }));
                    }
                    n
                })
            })
            .collect();
        for n in 0..500 {
            writer.append(&record(n)).unwrap();
            if n % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        for event in [
            Event::Phase {
                phase: Phase::Running,
            },
            Event::Cancelled,
        ] {
            let body = Body::Event(event);
            writer.append(&Record { at_ms: 2, body }).unwrap();
        }
        for reader in readers {
            assert_eq!(reader.await.unwrap(), 500);
        }
    }
}
