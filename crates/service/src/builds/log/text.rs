//! The journal of a build as the text of one reading: a fold that can be gone on with from a mark.
//!
//! Nothing is shared here and nothing is spawned: whoever has a [`Text`] goes through the journal with it.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use engine::event::Event;
use engine::excerpt::{Excerpt, Selection};
use engine::journal::{Body, JournalError, Record};
use engine::redact::{Redactor, StreamRedactor};

use crate::builds::build::Build;
use crate::builds::journal::Journal;

/// Pieces are at least this large when so much is there already.
pub(super) const PIECE_BYTES: usize = 64 << 10;
/// A mark that would have to hold more is not set: many steps are in the middle of long lines.
const MARK_MAX_BYTES: usize = 16 << 10;

/// A build and its folder.
pub(super) type Source<'a> = (&'a Arc<Build>, &'a Path);

/// Turns a journal into text, piece by piece.
#[derive(Debug)]
pub(super) struct Text {
    journal: Journal,
    fold: Fold,
    ended: bool,
}

/// What the text depends on so far.
#[derive(Debug, Clone)]
struct Fold {
    excerpt: Excerpt,
    redactor: StreamRedactor,
    /// How many bytes of text there were.
    offset: u64,
}

/// A place in a text, from which it can be gone on with.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    fold: Fold,
    journal_offset: u64,
}

impl Mark {
    /// Returns how many bytes of text are before it.
    pub(super) fn offset(&self) -> u64 {
        self.fold.offset
    }
}

/// Returns the text of one event, of a build that has no journal.
pub(super) fn of_event(event: Event, selection: Selection, redactor: &Redactor) -> Vec<u8> {
    let mut text = Vec::new();
    let body = Body::Event(event);
    Excerpt::new(selection).take(&Record { at_ms: 0, body }, &mut text);
    redactor.bytes(&text)
}

impl Text {
    /// Returns the text from its beginning.
    pub(super) fn open(
        (build, folder): Source<'_>,
        selection: Selection,
        redactor: &Redactor,
    ) -> Result<Self, JournalError> {
        Ok(Self {
            journal: Journal::open(build, folder)?,
            fold: Fold {
                excerpt: Excerpt::new(selection),
                redactor: redactor.stream(),
                offset: 0,
            },
            ended: false,
        })
    }

    /// Returns the text from a mark on.
    pub(super) fn go_on((build, folder): Source<'_>, mark: Mark) -> Result<Self, JournalError> {
        Ok(Self {
            journal: Journal::open_at(build, folder, mark.journal_offset)?,
            fold: mark.fold,
            ended: false,
        })
    }

    /// Returns how many bytes of text there were.
    pub(super) fn offset(&self) -> u64 {
        self.fold.offset
    }

    /// Returns this place, unless too much would have to be remembered of it.
    pub(super) fn mark(&self) -> Option<Mark> {
        let held = self.fold.excerpt.held_bytes() + self.fold.redactor.held_bytes();
        (held <= MARK_MAX_BYTES && !self.ended).then(|| Mark {
            fold: self.fold.clone(),
            journal_offset: self.journal.offset(),
        })
    }

    /// Returns the same as if so much text had been before.
    #[cfg(test)]
    pub(super) fn moved(mut self, offset: u64) -> Self {
        self.fold.offset = offset;
        self
    }

    /// Returns the next piece, waiting for it; `None` at the end of the build.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, JournalError> {
        while !self.ended {
            let first = self.journal.next().await?;
            let piece = self.take(first)?;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
            // A journal on disk is always ready: without this, one without text would keep a thread to itself.
            tokio::task::yield_now().await;
        }
        Ok(None)
    }

    /// Returns the next piece of what is there; `None` when nothing more is.
    pub(super) fn next_there(&mut self) -> Result<Option<Bytes>, JournalError> {
        while !self.ended {
            let first = self.journal.try_next()?;
            let piece = self.take(first)?;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// Takes in a record and those that are there after it. Without one, the text has ended.
    fn take(&mut self, first: Option<Record>) -> Result<Bytes, JournalError> {
        let (mut text, mut next) = (Vec::new(), first);
        self.ended = next.is_none();
        while let Some(record) = next {
            self.ended = matches!(&record.body, Body::Event(event) if event.is_terminal());
            self.fold.excerpt.take(&record, &mut text);
            if self.ended || text.len() >= PIECE_BYTES {
                break;
            }
            next = self.journal.try_next()?;
        }
        let mut text = self.fold.redactor.push(&text);
        if self.ended {
            text.extend(self.fold.redactor.finish());
        }
        self.fold.offset += text.len() as u64;
        Ok(text.into())
    }
}
