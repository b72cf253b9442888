//! The journal of a build, record by record. Pulled by its client, like every stream: nothing is queued, nothing is spawned.

use std::sync::Arc;

use api::kiln::v1 as wire;
use engine::event::Event;
use engine::journal::{Body, JournalError, Record};
use futures_util::stream::{BoxStream, StreamExt as _, try_unfold};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::stream::shutting_down;
use crate::builds::build::Build;
use crate::builds::journal::Journal;
use crate::builds::log::folder_or_end;
use crate::failure::Failure;

enum Watching {
    /// Nothing was read yet; so many records are to be left out.
    Beginning(Arc<Build>, u64),
    Reading(Journal),
    Ended,
}

/// Returns the records of a build's journal but the first `skip`. Ends when the build does, or with an error when the service stops.
pub(super) fn records(
    build: Arc<Build>,
    skip: u64,
    shutdown: CancellationToken,
) -> BoxStream<'static, Result<wire::WatchBuildResponse, Status>> {
    try_unfold(Watching::Beginning(build, skip), move |watching| {
        let shutdown = shutdown.clone();
        async move {
            let next = tokio::select! {
                biased;
                next = next(watching) => next.map_err(unreadable)?,
                () = shutdown.cancelled() => return Err(shutting_down()),
            };
            // A journal on disk is always ready: without this, one reader of a long one would keep a thread to itself.
            tokio::task::yield_now().await;
            match next {
                Some((record, watching)) => Ok(Some((encode(record)?, watching))),
                None => Ok(None),
            }
        }
    })
    .boxed()
}

async fn next(watching: Watching) -> Result<Option<(Record, Watching)>, JournalError> {
    let mut journal = match watching {
        Watching::Ended => return Ok(None),
        Watching::Reading(journal) => journal,
        Watching::Beginning(build, skip) => match folder_or_end(&build).await {
            Ok(folder) => {
                let mut journal = Journal::open(&build, &folder)?;
                for _ in 0..skip {
                    if journal.next().await?.is_none() {
                        return Ok(None);
                    }
                    tokio::task::yield_now().await;
                }
                journal
            }
            // It ended before anybody had begun to carry it out: its end is all there is.
            Err(end) if skip == 0 => {
                let body = Body::Event(end.unwrap_or(Event::Cancelled));
                let at_ms = build.progress().ended_at_ms.unwrap_or_default();
                let record = Record { at_ms, body };
                return Ok(Some((record, Watching::Ended)));
            }
            Err(_) => return Ok(None),
        },
    };
    let record = journal.next().await?;
    Ok(record.map(|record| (record, Watching::Reading(journal))))
}

fn unreadable(error: JournalError) -> Status {
    Failure::platform("the journal of the build cannot be read", error).status()
}

fn encode(record: Record) -> Result<wire::WatchBuildResponse, Status> {
    let body = match record.body {
        Body::Event(event) => {
            let text = serde_json::to_string(&event).map_err(|error| {
                Failure::platform("an event of the build cannot be sent", error).status()
            })?;
            wire::watch_build_response::Body::Event(text)
        }
        Body::Output {
            step,
            stream,
            bytes,
        } => wire::watch_build_response::Body::Output(wire::StepOutput {
            step: step.0,
            stderr: stream == engine::event::Stream::Stderr,
            data: bytes,
        }),
    };
    Ok(wire::WatchBuildResponse {
        at_ms: i64::try_from(record.at_ms).unwrap_or(i64::MAX),
        body: Some(body),
    })
}
