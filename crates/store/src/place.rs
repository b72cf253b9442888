//! Places for what only so much of may go on at a time, whoever does it: steps that run.
//!
//! A place is an exclusive `flock` on `locks/.step-N`, let go when it is dropped or its process dies. Who wants one stands in a line that the
//! system keeps: the lock of `locks/.steps`, which is had in the order in which it was asked for. Only the first of the line looks for a place.
//! The files stay: one that is removed would make two lines of one.

use std::fs::File;
use std::io;
use std::num::NonZeroU32;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::{Store, session};

/// What the names of all files of places and of their line begin with.
pub(crate) const PREFIX: &str = ".step";
const LINE: &str = ".steps";
/// Between two looks of the first of the line for a place.
const RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// A place that is held. Dropping it lets go.
#[derive(Debug)]
pub struct Place {
    _lock: File,
}

/// Tells why there is no place.
#[derive(Debug, thiserror::Error)]
#[error("take one of {n_places} places of the store")]
pub struct PlaceError {
    n_places: NonZeroU32,
    #[source]
    source: io::Error,
}

impl Store {
    /// Waits for one of so many places, in the order in which they are asked for. `None` when `give_up` returned true, which is asked only when
    /// it is the caller's turn: until then nothing but the end of the process ends the waiting.
    pub fn place(
        &self,
        n_places: NonZeroU32,
        give_up: &dyn Fn() -> bool,
    ) -> Result<Option<Place>, PlaceError> {
        self.place_io(n_places, give_up)
            .map_err(|source| PlaceError { n_places, source })
    }

    fn place_io(
        &self,
        n_places: NonZeroU32,
        give_up: &dyn Fn() -> bool,
    ) -> io::Result<Option<Place>> {
        let dir = self.root().sub("locks")?;
        let line = dir.open_or_create(LINE)?;
        session::lock(&line)?;
        let places = (0..n_places.get()).map(|n| dir.open_or_create(&format!("{PREFIX}-{n}")));
        let mut places = places.collect::<io::Result<Vec<File>>>()?;
        while !give_up() {
            for n in 0..places.len() {
                let Some(place) = places.get(n) else { break };
                match rustix::fs::flock(place, FlockOperation::NonBlockingLockExclusive) {
                    Ok(()) => {
                        let place = Place {
                            _lock: places.swap_remove(n),
                        };
                        return Ok(Some(place));
                    }
                    Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            std::thread::sleep(RETRY_INTERVAL);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    fn places(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).unwrap()
    }

    #[test]
    fn there_are_as_many_places_as_were_said_and_each_is_had_again() {
        let folder = tempfile::tempdir().unwrap();
        let stores: Vec<Store> = (0..4)
            .map(|_| Store::open(&folder.path().join("store"), None).unwrap())
            .collect();
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for n in 0..24 {
                let (store, now, most) = (&stores[n % 4], &now, &most);
                scope.spawn(move || {
                    let place = store.place(places(3), &|| false).unwrap().unwrap();
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(10));
                    now.fetch_sub(1, Ordering::SeqCst);
                    drop(place);
                });
            }
        });
        assert_eq!(most.into_inner(), 3);
    }

    #[test]
    fn places_are_had_in_the_order_in_which_they_are_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store"), None).unwrap();
        let first = store.place(places(1), &|| false).unwrap().unwrap();
        let (tell, told) = mpsc::channel();
        std::thread::scope(|scope| {
            for n in 0..8 {
                let (store, tell) = (store.clone(), tell.clone());
                let before = waiting(folder.path());
                scope.spawn(move || {
                    let place = store.place(places(1), &|| false).unwrap().unwrap();
                    tell.send(n).unwrap();
                    drop(place);
                });
                // The first of them holds the line; the others wait for that.
                while n > 0 && waiting(folder.path()) == before {
                    std::thread::sleep(Duration::from_millis(1));
                }
                while n == 0 && !is_held(folder.path()) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            drop(first);
        });
        let order: Vec<i32> = told.try_iter().collect();
        assert_eq!(order, (0..8).collect::<Vec<i32>>());
    }

    #[test]
    fn who_gives_up_stands_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store"), None).unwrap();
        let first = store.place(places(1), &|| false).unwrap();
        assert!(store.place(places(1), &|| true).unwrap().is_none());
        drop(first);
        assert!(store.place(places(1), &|| false).unwrap().is_some());
    }

    fn line(folder: &std::path::Path) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        let file = folder.join("store/locks").join(LINE);
        std::fs::metadata(file).unwrap().ino()
    }

    /// How many wait for the line, as the system tells it.
    fn waiting(folder: &std::path::Path) -> usize {
        let inode = format!(":{} ", line(folder));
        let text = std::fs::read_to_string("/proc/locks").unwrap();
        let lines = text.lines().filter(|line| line.contains(&inode));
        lines.filter(|line| line.contains("->")).count()
    }

    fn is_held(folder: &std::path::Path) -> bool {
        let inode = format!(":{} ", line(folder));
        let text = std::fs::read_to_string("/proc/locks").unwrap();
        text.lines().any(|line| line.contains(&inode))
    }
}
