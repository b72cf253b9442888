//! What readers of the same build share: its text is read and rendered once for all who are at the same place.
//!
//! A *reel* is a reading that goes on: one task folds the journal and puts pieces into a ring of bounded size, from which every reader takes
//! them at its own pace. The task goes on when the reader that is furthest wants more, so that nothing is read ahead. A reader that does not
//! read holds nobody back and costs nothing but its place: what it has missed is gone from the ring, and when it reads again it joins another
//! reel there, or begins one. Readers of a reel that has come as far as an earlier one move over to that.
//!
//! Readers never carry the reel themselves, by turns say: one whose client does not read is not polled, and all others would wait for it.
//!
//! So that a reel can begin far back without going through the journal from its beginning, *marks* are kept: places in the text with all
//! that it depends on, at distances that double when there are too many.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use engine::excerpt::Selection;
use engine::journal::JournalError;
use engine::redact::Redactor;
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;

use super::Names;
use super::text::{Mark, PIECE_BYTES, Source, Text};

/// Most bytes that a ring holds when it has several readers. With one, it holds one piece.
const RING_BYTES: usize = 1 << 20;
/// Most pieces that it holds.
const RING_PIECES: usize = 256;
/// How long text may be held back at the end of a log for each reader: many small messages to each of many readers cost more than they tell.
const PAUSE_PER_READER: Duration = Duration::from_micros(50);
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// Shorter pauses are not worth a timer.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// Distance between the first marks, and how many there are at most.
const MARK_BYTES: u64 = 1 << 20;
const MARKS_MAX: usize = 64;
/// Most kinds of readings of one build whose marks are kept.
const VIEWS_MAX: usize = 8;

/// What one reader reads: readers of the same view get the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct View {
    pub(super) names: Names,
    pub(super) selection: Selection,
}

/// Everything that is shared of one build's log. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(in crate::builds) struct Shelf {
    views: Arc<Mutex<Vec<Shared>>>,
}

#[derive(Debug)]
struct Shared {
    view: View,
    /// The earlier, the nearer to the beginning of this list.
    reels: Vec<Weak<Reel>>,
    marks: Marks,
}

/// Marks, in the order of their places.
#[derive(Debug)]
struct Marks {
    all: Vec<Mark>,
    distance: u64,
}

impl Default for Marks {
    fn default() -> Self {
        Self {
            all: Vec::new(),
            distance: MARK_BYTES,
        }
    }
}

impl Marks {
    fn is_wanted(&self, offset: u64) -> bool {
        let last = self.all.last().map_or(0, Mark::offset);
        offset >= last.saturating_add(self.distance)
    }

    fn put(&mut self, mark: Mark) {
        self.all.push(mark);
        if self.all.len() >= MARKS_MAX {
            let mut n = 0;
            self.all.retain(|_| {
                n += 1;
                n % 2 == 0
            });
            self.distance = self.distance.saturating_mul(2);
        }
    }

    /// Returns the last mark that is not behind `offset`.
    fn before(&self, offset: u64) -> Option<&Mark> {
        let n = self.all.partition_point(|mark| mark.offset() <= offset);
        self.all.get(n.checked_sub(1)?)
    }
}

#[derive(Debug)]
struct Reel {
    inner: Arc<Inner>,
    _pump: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Inner {
    ring: Mutex<Ring>,
    /// Woken when somebody wants more than there is.
    wanted: Notify,
    /// Told when there is more.
    more: watch::Sender<()>,
}

#[derive(Debug)]
struct Ring {
    /// Each with where it begins.
    pieces: VecDeque<(u64, Bytes)>,
    n_bytes: usize,
    /// Where the first one begins, and where the last one ends.
    start: u64,
    end: u64,
    /// Somebody waits for what is before this.
    wanted: u64,
    n_readers: u32,
    finished: Option<Result<(), Arc<JournalError>>>,
}

impl Ring {
    fn put(&mut self, piece: Bytes) {
        let begins = self.end;
        self.end += piece.len() as u64;
        self.n_bytes += piece.len();
        self.pieces.push_back((begins, piece));
        let max_bytes = if self.n_readers > 1 { RING_BYTES } else { 0 };
        // The last one stays, whatever its size.
        while self.pieces.len() > 1 && (self.n_bytes > max_bytes || self.pieces.len() > RING_PIECES)
        {
            if let Some((_, piece)) = self.pieces.pop_front() {
                self.n_bytes -= piece.len();
            }
        }
        self.start = self.pieces.front().map_or(self.end, |(begins, _)| *begins);
    }

    /// Returns what is there from `offset` on, at most to the end of a piece.
    fn at(&self, offset: u64) -> Option<Bytes> {
        let n = self.pieces.partition_point(|(begins, _)| *begins <= offset);
        let (begins, piece) = self.pieces.get(n.checked_sub(1)?)?;
        let skip = usize::try_from(offset - begins).ok()?;
        (skip < piece.len()).then(|| piece.slice(skip..))
    }
}

impl Inner {
    fn is_wanted(&self) -> bool {
        let ring = self.ring();
        ring.wanted > ring.end
    }

    /// Takes in what came next. Returns how long to wait before there is to be more; `None` when nothing comes any more.
    fn put(&self, next: Result<Option<Bytes>, JournalError>) -> Option<Duration> {
        let mut ring = self.ring();
        let pause = match next {
            Ok(Some(piece)) => {
                let is_full = piece.len() >= PIECE_BYTES;
                ring.put(piece);
                // Less than a full piece: that was all there is, and what comes next comes when it is written.
                Some(if is_full {
                    Duration::ZERO
                } else {
                    pause_of(ring.n_readers)
                })
            }
            Ok(None) => {
                ring.finished = Some(Ok(()));
                None
            }
            Err(error) => {
                ring.finished = Some(Err(Arc::new(error)));
                None
            }
        };
        drop(ring);
        self.more.send_replace(());
        pause
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a reader finds at its place.
#[derive(Debug)]
pub(super) enum Found {
    /// Text.
    Piece(Bytes),
    /// Nothing yet.
    Nothing,
    /// Nothing any more: it was too slow.
    Gone,
    /// The end of the build, or why it is not known.
    End(Result<(), Arc<JournalError>>),
}

/// A reader's part in a reel.
#[derive(Debug)]
pub(super) struct Member {
    reel: Arc<Reel>,
    more: watch::Receiver<()>,
}

impl Member {
    fn of(reel: Arc<Reel>) -> Self {
        reel.inner.ring().n_readers += 1;
        let more = reel.inner.more.subscribe();
        Self { reel, more }
    }

    /// Returns what is at `offset`, and asks for more when that is nothing.
    pub(super) fn take(&mut self, offset: u64) -> Found {
        self.more.borrow_and_update();
        let mut ring = self.reel.inner.ring();
        if offset < ring.start {
            return Found::Gone;
        }
        if let Some(piece) = ring.at(offset) {
            return Found::Piece(piece);
        }
        if let Some(finished) = &ring.finished {
            return Found::End(finished.clone());
        }
        ring.wanted = ring.wanted.max(offset.saturating_add(1));
        drop(ring);
        self.reel.inner.wanted.notify_one();
        Found::Nothing
    }

    /// Waits until there is more, or may be.
    pub(super) async fn more(&mut self) {
        // The sender is as old as the reel, which we hold.
        let _never = self.more.changed().await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.reel.inner.ring().n_readers -= 1;
    }
}

impl Shelf {
    /// Returns a part in a reel from which the text at `offset` comes, sooner or later.
    pub(super) fn join(
        &self,
        source: Source<'_>,
        view: View,
        redactor: &Redactor,
        offset: u64,
    ) -> Result<Member, JournalError> {
        let mut views = self.views();
        let shared = shared(&mut views, view);
        let mark = shared.marks.before(offset).cloned();
        let from = mark.as_ref().map_or(0, Mark::offset);
        if let Some(reel) = shared.reel_at(offset, from) {
            return Ok(Member::of(reel));
        }
        let text = match mark {
            Some(mark) => Text::go_on(source, mark)?,
            None => Text::open(source, view.selection, redactor)?,
        };
        let reel = Arc::new(reel(text, view, self.clone()));
        shared.reels.push(Arc::downgrade(&reel));
        Ok(Member::of(reel))
    }

    /// Returns a part in an earlier reel that has come to `offset` as well, if there is one.
    pub(super) fn earlier(&self, view: View, member: &Member, offset: u64) -> Option<Member> {
        let mut views = self.views();
        let shared = views.iter_mut().find(|shared| shared.view == view)?;
        if shared.reels.len() < 2 {
            return None;
        }
        let reel = shared.reel_at(offset, offset)?;
        (!Arc::ptr_eq(&reel, &member.reel)).then(|| Member::of(reel))
    }

    /// Returns the text from the last mark before `offset` on, for who reads alone.
    pub(super) fn alone(
        &self,
        source: Source<'_>,
        view: View,
        redactor: &Redactor,
        offset: u64,
    ) -> Result<Text, JournalError> {
        let mark = shared(&mut self.views(), view)
            .marks
            .before(offset)
            .cloned();
        match mark {
            Some(mark) => Text::go_on(source, mark),
            None => Text::open(source, view.selection, redactor),
        }
    }

    /// Sets a mark where `text` is, if one is wanted there.
    pub(super) fn mark(&self, view: View, text: &Text) {
        let mut views = self.views();
        let Some(shared) = views.iter_mut().find(|shared| shared.view == view) else {
            return;
        };
        if shared.marks.is_wanted(text.offset())
            && let Some(mark) = text.mark()
        {
            shared.marks.put(mark);
        }
    }

    fn views(&self) -> MutexGuard<'_, Vec<Shared>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Returns the earliest reel that has the text at `offset`, or comes there from `from` or later.
    fn reel_at(&mut self, offset: u64, from: u64) -> Option<Arc<Reel>> {
        self.reels.retain(|reel| reel.strong_count() > 0);
        self.reels.iter().filter_map(Weak::upgrade).find(|reel| {
            let ring = reel.inner.ring();
            ring.start <= offset && ring.end >= from
        })
    }
}

/// Returns what is shared of a view.
fn shared(views: &mut Vec<Shared>, view: View) -> &mut Shared {
    let at = views.iter().position(|shared| shared.view == view);
    let at = at.unwrap_or_else(|| {
        let is_read = |shared: &Shared| shared.reels.iter().any(|reel| reel.strong_count() > 0);
        if views.len() >= VIEWS_MAX
            && let Some(unread) = views.iter().position(|shared| !is_read(shared))
        {
            views.remove(unread);
        }
        views.push(Shared {
            view,
            reels: Vec::new(),
            marks: Marks::default(),
        });
        views.len() - 1
    });
    #[expect(clippy::indexing_slicing, reason = "it was found, or pushed, just now")]
    &mut views[at]
}

fn reel(text: Text, view: View, shelf: Shelf) -> Reel {
    let inner = Arc::new(Inner {
        ring: Mutex::new(Ring {
            pieces: VecDeque::new(),
            n_bytes: 0,
            start: text.offset(),
            end: text.offset(),
            wanted: 0,
            n_readers: 0,
            finished: None,
        }),
        wanted: Notify::new(),
        more: watch::Sender::new(()),
    });
    let pump = tokio::spawn(pump(Arc::clone(&inner), text, view, shelf));
    Reel {
        inner,
        _pump: AbortOnDropHandle::new(pump),
    }
}

/// Puts pieces into the ring as long as somebody wants them.
async fn pump(inner: Arc<Inner>, mut text: Text, view: View, shelf: Shelf) {
    loop {
        while !inner.is_wanted() {
            inner.wanted.notified().await;
        }
        let next = text.next().await;
        let Some(pause) = inner.put(next) else {
            return;
        };
        shelf.mark(view, &text);
        if pause < PAUSE_MIN {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(pause).await;
        }
    }
}

fn pause_of(n_readers: u32) -> Duration {
    PAUSE_PER_READER.saturating_mul(n_readers).min(PAUSE_MAX)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
