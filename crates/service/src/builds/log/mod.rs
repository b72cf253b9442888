//! The text of a build's journal, as a stream of chunks: from any offset, to the end of the build.
//!
//! Readers go at their own pace: nothing is queued for one, so a reader that does not read costs next to nothing, and two readers always get
//! the same bytes. Those who read the same at the same place share the work (`share`); the work itself is in `text`. Censoring takes
//! names out of the text before offsets are counted, so an offset means the same in every reading of the same kind.

mod share;
mod text;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use engine::event::Event;
use engine::excerpt::Selection;
use engine::journal::JournalError;
use engine::redact::Redactor;
use futures_util::Stream;
use oci::Reference;
use tokio_util::sync::CancellationToken;

pub(super) use self::share::Shelf;
use self::share::{Found, Member, View};
use self::text::Text;
use super::build::{Build, Progress};

/// How a log is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// As it is.
    Shown,
    /// Without the names of the base and the workspace image.
    Censored,
}

/// Whether more is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Until the build has ended.
    End,
    /// What is there is read.
    Now,
}

/// What is wanted of a log.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// How many bytes to leave out.
    pub offset: u64,
    /// How it is read.
    pub names: Names,
    /// Which part of it.
    pub selection: Selection,
    /// Whether more is waited for.
    pub until: Until,
}

impl Default for Wanted {
    /// All of it.
    fn default() -> Self {
        Self {
            offset: 0,
            names: Names::Shown,
            selection: Selection::default(),
            until: Until::End,
        }
    }
}

/// Tells why a log ended before its build did.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The service stops.
    #[error("server is shutting down")]
    Shutdown,
    /// The journal cannot be read.
    #[error("read the log of the build")]
    Journal(#[source] Arc<JournalError>),
}

/// Returns the text of the build's log. Ends when the build does, or when nothing more is there, or with an error when the service stops.
pub fn read(
    build: Arc<Build>,
    wanted: Wanted,
    shutdown: CancellationToken,
) -> impl Stream<Item = Result<Bytes, LogError>> + Send + 'static {
    let redactor = match wanted.names {
        Names::Shown => Redactor::default(),
        Names::Censored => Redactor::new(censored_words(&build)),
    };
    let reading = Reading {
        build,
        shutdown,
        view: View {
            names: wanted.names,
            selection: wanted.selection,
        },
        until: wanted.until,
        redactor,
        offset: wanted.offset,
        place: Place::Nowhere,
    };
    futures_util::stream::try_unfold(reading, |mut reading| async move {
        let shutdown = reading.shutdown.clone();
        let piece = tokio::select! {
            biased;
            piece = reading.next() => piece?,
            () = shutdown.cancelled() => return Err(LogError::Shutdown),
        };
        // A log on disk is always ready: without this, one reader of a long one would keep a thread to itself.
        tokio::task::yield_now().await;
        Ok(piece.map(|piece| (piece, reading)))
    })
}

struct Reading {
    build: Arc<Build>,
    shutdown: CancellationToken,
    view: View,
    until: Until,
    redactor: Redactor,
    /// Of the next byte.
    offset: u64,
    place: Place,
}

/// Where a reader gets its text from.
enum Place {
    /// It has not begun.
    Nowhere,
    /// With others, to the end of the build.
    Among(PathBuf, Member),
    /// Alone, of what is there.
    Alone(Box<Text>),
    /// It has got everything.
    End,
}

impl Reading {
    /// Returns the next piece of text; `None` at its end. May be dropped at any time only together with `self`.
    async fn next(&mut self) -> Result<Option<Bytes>, LogError> {
        loop {
            match &mut self.place {
                Place::End => return Ok(None),
                Place::Nowhere => {
                    if let Some(end) = self.begin().await? {
                        return Ok(Some(end));
                    }
                }
                Place::Alone(text) => {
                    let begins = text.offset();
                    match text.next_there().map_err(unreadable)? {
                        Some(piece) => {
                            self.build.logs.mark(self.view, text);
                            if let Some(piece) = after(self.offset, begins, &piece) {
                                return Ok(Some(piece));
                            }
                            tokio::task::yield_now().await;
                        }
                        None => self.place = Place::End,
                    }
                }
                Place::Among(..) => {
                    if let Some(piece) = self.next_among().await? {
                        self.offset += piece.len() as u64;
                        return Ok(Some(piece));
                    }
                }
            }
        }
    }

    /// Finds a place to read at. Of a build that ended before it had a journal, returns its end.
    async fn begin(&mut self) -> Result<Option<Bytes>, LogError> {
        if self.until == Until::Now {
            let progress = self.build.progress();
            if progress.folder.is_none() && !progress.state.is_terminal() {
                self.place = Place::End;
                return Ok(None);
            }
        }
        let logs = &self.build.logs;
        self.place = match (folder_or_end(&self.build).await, self.until) {
            (Ok(folder), Until::Now) => {
                let source = (&self.build, &*folder);
                let text = logs.alone(source, self.view, &self.redactor, self.offset);
                Place::Alone(Box::new(text.map_err(unreadable)?))
            }
            (Ok(folder), Until::End) => {
                let source = (&self.build, &*folder);
                let member = logs.join(source, self.view, &self.redactor, self.offset);
                Place::Among(folder, member.map_err(unreadable)?)
            }
            (Err(end), _) => {
                self.place = Place::End;
                let text = end.map(|end| text::of_event(end, self.view.selection, &self.redactor));
                let text = Bytes::from(text.unwrap_or_default());
                return Ok(after(self.offset, 0, &text));
            }
        };
        Ok(None)
    }

    /// Returns the next piece that is shared; `None` when it has to be looked for once more.
    async fn next_among(&mut self) -> Result<Option<Bytes>, LogError> {
        let Place::Among(folder, member) = &mut self.place else {
            return Ok(None);
        };
        match member.take(self.offset) {
            Found::Piece(piece) => return Ok(Some(piece)),
            Found::End(end) => {
                self.place = Place::End;
                end.map_err(LogError::Journal)?;
            }
            Found::Gone => {
                let logs = &self.build.logs;
                let source = (&self.build, &**folder);
                let joined = logs.join(source, self.view, &self.redactor, self.offset);
                *member = joined.map_err(unreadable)?;
            }
            Found::Nothing => {
                let earlier = self.build.logs.earlier(self.view, member, self.offset);
                match earlier {
                    Some(earlier) => *member = earlier,
                    None => member.more().await,
                }
            }
        }
        Ok(None)
    }
}

fn unreadable(error: JournalError) -> LogError {
    LogError::Journal(Arc::new(error))
}

/// Returns what of a piece that begins at `begins` is not before `offset`.
fn after(offset: u64, begins: u64, piece: &Bytes) -> Option<Bytes> {
    let skip = usize::try_from(offset.saturating_sub(begins)).unwrap_or(usize::MAX);
    (skip < piece.len()).then(|| piece.slice(skip..))
}

/// Waits until the build has a folder. Else returns how it ended without one.
pub(crate) async fn folder_or_end(build: &Build) -> Result<PathBuf, Option<Event>> {
    let mut watch = build.watch();
    let known = |progress: &Progress| progress.folder.is_some() || progress.state.is_terminal();
    let Ok(progress) = watch.wait_for(known).await else {
        return Err(None);
    };
    match &progress.folder {
        Some(folder) => Ok(folder.clone()),
        None => Err(progress.state.end()),
    }
}

/// Returns what is taken out of a censored log: both names, also without tag and digest, also in docker's short form.
fn censored_words(build: &Build) -> Vec<String> {
    let names = [&build.record.reference, &build.record.base_reference];
    let mut words = Vec::new();
    for name in names {
        words.push(name.clone());
        if let Ok(reference) = name.parse::<Reference>() {
            words.push(reference.name());
            words.push(reference.familiar());
        }
    }
    words
}
