//! The journal of a build as everybody is told it: its end comes when the service knows it, which is when it is durable, and it comes also
//! when nobody could write it.
//!
//! Who carries the build through ([`super::drive`]) reads the file itself; everybody else reads it here.

use std::path::Path;
use std::sync::Arc;

use engine::follow::Follower;
use engine::journal::{Body, JournalError, Record};

use super::build::Build;

/// Reads the journal of a build to its end, waiting for what is not written yet.
#[derive(Debug)]
pub(crate) struct Journal {
    build: Arc<Build>,
    follower: Follower,
    /// Where the end begins, which was read before it could be told.
    end_at: Option<u64>,
    ended: bool,
}

impl Journal {
    /// Starts at the first record of the journal in `folder`.
    pub(crate) fn open(build: &Arc<Build>, folder: &Path) -> Result<Self, JournalError> {
        Ok(Self::of(build, Follower::open(folder)?))
    }

    /// Starts at the record that begins at `offset`: at what [`Self::offset`] has said of another one.
    pub(crate) fn open_at(
        build: &Arc<Build>,
        folder: &Path,
        offset: u64,
    ) -> Result<Self, JournalError> {
        Ok(Self::of(build, Follower::open_at(folder, offset)?))
    }

    fn of(build: &Arc<Build>, follower: Follower) -> Self {
        Self {
            build: Arc::clone(build),
            follower,
            end_at: None,
            ended: false,
        }
    }

    /// Returns where the next record begins in the file.
    pub(crate) fn offset(&self) -> u64 {
        self.end_at.unwrap_or_else(|| self.follower.offset())
    }

    /// Returns the next record; `None` once the end of the build was returned. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Record>, JournalError> {
        while !self.ended && self.end_at.is_none() {
            let offset = self.follower.offset();
            let record = tokio::select! {
                biased;
                record = self.follower.next() => record?,
                // Nothing is there now, but something may have been written since we looked.
                () = self.build.ended() => return self.try_next(),
            };
            if let Some(record) = self.unless_end(record, offset) {
                return Ok(Some(record));
            }
        }
        self.build.ended().await;
        self.try_next()
    }

    /// Returns the next record that is already there, without waiting.
    pub(crate) fn try_next(&mut self) -> Result<Option<Record>, JournalError> {
        if self.ended {
            return Ok(None);
        }
        // Asked first: what is read after that is all there is.
        let has_ended = self.build.has_ended();
        if self.end_at.is_none() {
            let offset = self.follower.offset();
            let record = self.follower.try_next()?;
            if let Some(record) = self.unless_end(record, offset) {
                return Ok(Some(record));
            }
        }
        if !has_ended {
            return Ok(None);
        }
        self.ended = true;
        // As the service knows it, whatever the journal says: all are told the same.
        Ok(self.build.end().map(|(event, at_ms)| Record {
            at_ms,
            body: Body::Event(event),
        }))
    }

    /// Keeps an end back, which is told when the service knows it.
    fn unless_end(&mut self, record: Option<Record>, offset: u64) -> Option<Record> {
        let record = record?;
        if matches!(&record.body, Body::Event(event) if event.is_terminal()) {
            self.end_at = Some(offset);
            return None;
        }
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use engine::event::{Event, Failure, FailureKind, StepId, Stream};
    use engine::journal::Writer;

    use super::*;
    use crate::agents::Agents;
    use crate::builds::build::Progress;

    /// Longer than anything here takes that does not wait for ever.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn build() -> Arc<Build> {
        let text = r#"{"id":"aaaaaaaaaaaaaaaaaaaaaaaaaa","tenant":"default","reference":"r","base_reference":"b","started_at_ms":1}"#;
        let record = serde_json::from_str(text).unwrap();
        Arc::new(Build::new(record, Agents::default(), Progress::default()))
    }

    fn says(n: u8) -> Record {
        Record {
            at_ms: u64::from(n),
            body: Body::Output {
                step: StepId(1),
                stream: Stream::Stdout,
                bytes: vec![n],
            },
        }
    }

    fn end(event: Event) -> Record {
        Record {
            at_ms: 7,
            body: Body::Event(event),
        }
    }

    fn lost() -> Event {
        Event::Failed {
            failure: Failure {
                kind: FailureKind::WorkerLost,
                message: "gone".to_owned(),
                step: None,
                exit_code: None,
            },
        }
    }

    #[tokio::test]
    async fn an_end_is_told_when_the_service_knows_it_and_as_the_service_knows_it() {
        for (written, known) in [
            (Event::Cancelled, Event::Cancelled),
            (Event::Cancelled, lost()),
        ] {
            let (folder, build) = (tempfile::tempdir().unwrap(), build());
            let mut writer = Writer::create(folder.path()).unwrap();
            writer.append(&says(1)).unwrap();
            let mut journal = Journal::open(&build, folder.path()).unwrap();
            assert_eq!(journal.next().await.unwrap(), Some(says(1)));
            let before = journal.offset();
            writer.append(&end(written)).unwrap();
            let early = tokio::time::timeout(Duration::from_millis(50), journal.next()).await;
            assert!(early.is_err(), "{early:?}");
            assert_eq!(journal.try_next().unwrap(), None);
            assert_eq!(journal.offset(), before, "who goes on here finds the end");
            let mut other = Journal::open_at(&build, folder.path(), before).unwrap();
            assert_eq!(other.try_next().unwrap(), None);

            build.update(|progress| progress.take(&known, 7));
            for journal in [&mut journal, &mut other] {
                let told = tokio::time::timeout(PATIENCE, journal.next()).await;
                assert_eq!(told.unwrap().unwrap(), Some(end(known.clone())));
                assert_eq!(journal.next().await.unwrap(), None);
                assert_eq!(journal.try_next().unwrap(), None);
            }
        }
    }

    #[tokio::test]
    async fn an_end_that_nobody_could_write_is_told_after_everything_that_was_written() {
        let (folder, build) = (tempfile::tempdir().unwrap(), build());
        let mut writer = Writer::create(folder.path()).unwrap();
        let mut waits = Journal::open(&build, folder.path()).unwrap();
        let mut comes_late = Journal::open(&build, folder.path()).unwrap();
        let waiting = tokio::spawn(async move {
            let mut told = Vec::new();
            while let Some(record) = waits.next().await.unwrap() {
                told.push(record);
            }
            told
        });
        tokio::task::yield_now().await;
        writer.append(&says(1)).unwrap();
        writer.append(&says(2)).unwrap();
        build.update(|progress| progress.take(&lost(), 7));
        let all = vec![says(1), says(2), end(lost())];
        let told = tokio::time::timeout(PATIENCE, waiting).await;
        assert_eq!(told.unwrap().unwrap(), all);
        let mut told = Vec::new();
        while let Some(record) = comes_late.try_next().unwrap() {
            told.push(record);
        }
        assert_eq!(told, all);
    }
}
