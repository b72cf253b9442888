//! The text of a build's journal, as a stream of chunks: from any offset, to the end of the build.
//!
//! Every reader folds the journal for itself, at its own pace: nothing is queued for it, so a reader that does not read costs a
//! file descriptor and no more, and two readers always get the same bytes. Censoring takes names out of the text before offsets
//! are counted, so an offset means the same in every reading of the same kind.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use engine::event::Event;
use engine::excerpt::{Excerpt, Selection};
use engine::follow::Follower;
use engine::journal::{Body, JournalError};
use engine::redact::{Redactor, StreamRedactor};
use engine::state::BuildState;
use futures_util::Stream;
use oci::Reference;
use tokio_util::sync::CancellationToken;

use super::build::{Build, Progress};

/// Chunks are at least this large when so much is there already.
const CHUNK_BYTES: usize = 64 << 10;

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
    Journal(#[source] JournalError),
}

struct Reading {
    build: Arc<Build>,
    shutdown: CancellationToken,
    journal: Option<Journal>,
    excerpt: Excerpt,
    until: Until,
    redactor: StreamRedactor,
    skip: u64,
    ended: bool,
}

struct Journal {
    follower: Follower,
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
        journal: None,
        excerpt: Excerpt::new(wanted.selection),
        until: wanted.until,
        redactor: redactor.stream(),
        skip: wanted.offset,
        ended: false,
    };
    futures_util::stream::try_unfold(reading, |mut reading| async move {
        let shutdown = reading.shutdown.clone();
        let chunk = tokio::select! {
            biased;
            chunk = reading.next_chunk() => chunk?,
            () = shutdown.cancelled() => return Err(LogError::Shutdown),
        };
        // A log on disk is always ready: without this, one reader of a long one would keep a thread to itself.
        tokio::task::yield_now().await;
        Ok(chunk.map(|chunk| (chunk, reading)))
    })
}

impl Reading {
    /// Returns the next piece of text; `None` at the end of the build. May be dropped at any time only together with `self`.
    async fn next_chunk(&mut self) -> Result<Option<Bytes>, LogError> {
        while !self.ended {
            let mut text = Vec::new();
            self.wait_for_text(&mut text).await?;
            let mut text = self.redactor.push(&text);
            if self.ended {
                text.extend(self.redactor.finish());
            }
            let text = self.skipped(text);
            if !text.is_empty() {
                return Ok(Some(text));
            }
        }
        Ok(None)
    }

    async fn wait_for_text(&mut self, text: &mut Vec<u8>) -> Result<(), LogError> {
        let until = self.until;
        let Some(follower) = self.open(text).await? else {
            return Ok(());
        };
        let next = match until {
            Until::End => follower.next().await,
            Until::Now => follower.try_next(),
        };
        let mut next = next.map_err(LogError::Journal)?;
        // Nothing is left, or nothing was ever to come.
        self.ended = next.is_none();
        while let Some(record) = next {
            self.ended = matches!(&record.body, Body::Event(event) if event.is_terminal());
            self.excerpt.take(&record, text);
            if self.ended || text.len() >= CHUNK_BYTES {
                break;
            }
            let Some(journal) = &mut self.journal else {
                break;
            };
            next = journal.follower.try_next().map_err(LogError::Journal)?;
        }
        Ok(())
    }

    /// Returns the journal once there is one. A build that ended before there was one tells its end in `text`.
    async fn open(&mut self, text: &mut Vec<u8>) -> Result<Option<&mut Follower>, LogError> {
        if self.journal.is_none() && self.until == Until::Now {
            let progress = self.build.progress();
            if progress.folder.is_none() && !progress.state.is_terminal() {
                self.ended = true;
                return Ok(None);
            }
        }
        if self.journal.is_none() {
            match folder_or_end(&self.build).await {
                Ok(folder) => {
                    let follower = Follower::open(&folder).map_err(LogError::Journal)?;
                    self.journal = Some(Journal { follower });
                }
                Err(end) => {
                    self.ended = true;
                    if let Some(event) = end {
                        let body = Body::Event(event);
                        let record = engine::journal::Record { at_ms: 0, body };
                        self.excerpt.take(&record, text);
                    }
                }
            }
        }
        Ok(self.journal.as_mut().map(|journal| &mut journal.follower))
    }

    fn skipped(&mut self, text: Vec<u8>) -> Bytes {
        let text = Bytes::from(text);
        let n = usize::try_from(self.skip)
            .unwrap_or(usize::MAX)
            .min(text.len());
        self.skip -= n as u64;
        text.slice(n..)
    }
}

/// Waits until the build has a folder. Else returns how it ended without one.
pub(crate) async fn folder_or_end(build: &Build) -> Result<PathBuf, Option<Event>> {
    let mut watch = build.watch();
    let known = |progress: &Progress| progress.folder.is_some() || progress.state.is_terminal();
    let Ok(progress) = watch.wait_for(known).await else {
        return Err(None);
    };
    match (&progress.folder, &progress.state) {
        (Some(folder), _) => Ok(folder.clone()),
        (None, BuildState::Failed { failure }) => Err(Some(Event::Failed {
            failure: failure.clone(),
        })),
        (None, _) => Err(Some(Event::Cancelled)),
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
