//! The streams that calls answer with. Each is pulled by its client: nothing is queued, nothing is spawned.

use std::sync::Arc;

use api::builder as wire;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream, Stream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::convert;
use crate::builds::build::{Build, Progress};
use crate::builds::log::LogError;
use crate::failure::{Blame, Failure};
use crate::lifecycle::Names;

type Answer<T> = BoxStream<'static, Result<T, Status>>;

/// Returns the one message for an image that exists.
pub(super) fn exists(names: Names) -> Answer<wire::BuildResponse> {
    let message = wire::BuildResponse {
        r#ref: names.workspace,
        status: wire::BuildStatus::DoneSuccess.into(),
        message: String::new(),
        base_ref: names.base,
        info: None,
    };
    stream::iter([Ok(message)]).boxed()
}

enum Next {
    /// Say that it is running, whatever it is by now: clients wait for that message.
    First,
    /// Say what changes.
    Change,
    /// All was said.
    End,
}

struct Following {
    build: Arc<Build>,
    log_info: wire::LogInfo,
    progress: watch::Receiver<Progress>,
    shutdown: CancellationToken,
    next: Next,
    said: Option<engine::state::BuildState>,
}

/// Returns a message at once, one for each change, and a last one at the end of the build.
pub(super) fn follow(
    build: Arc<Build>,
    log_info: wire::LogInfo,
    shutdown: CancellationToken,
) -> Answer<wire::BuildResponse> {
    let following = Following {
        progress: build.watch(),
        build,
        log_info,
        shutdown,
        next: Next::First,
        said: None,
    };
    stream::unfold(following, |mut following| async move {
        let message = following.message().await?;
        Some((message, following))
    })
    .boxed()
}

impl Following {
    async fn message(&mut self) -> Option<Result<wire::BuildResponse, Status>> {
        let progress = match self.next {
            Next::End => return None,
            Next::First => {
                let mut progress = self.progress.borrow_and_update().clone();
                if progress.state.is_terminal() {
                    progress = Progress::default();
                }
                progress
            }
            Next::Change => match self.change().await {
                Ok(progress) => progress,
                Err(status) => {
                    self.next = Next::End;
                    return Some(Err(status));
                }
            },
        };
        self.next = if progress.state.is_terminal() {
            Next::End
        } else {
            Next::Change
        };
        let message = convert::build_response(&self.build, &progress, self.log_info.clone());
        self.said = Some(progress.state);
        Some(Ok(message))
    }

    /// Waits until the build stands somewhere else than was said last.
    async fn change(&mut self) -> Result<Progress, Status> {
        let said = self.said.clone();
        let changed = self
            .progress
            .wait_for(|progress| Some(&progress.state) != said.as_ref());
        tokio::select! {
            biased;
            progress = changed => match progress {
                Ok(progress) => Ok(progress.clone()),
                Err(_) => Err(shutting_down()),
            },
            () = self.shutdown.cancelled() => Err(shutting_down()),
        }
    }
}

/// Returns the messages that carry a log.
pub(super) fn log(
    text: impl Stream<Item = Result<Bytes, LogError>> + Send + 'static,
) -> Answer<wire::LogsResponse> {
    text.map(|chunk| match chunk {
        Ok(content) => Ok(wire::LogsResponse { content }),
        Err(error) => Err(log_error(error)),
    })
    .boxed()
}

/// Returns why a log has ended before its time.
pub(super) fn log_error(error: LogError) -> Status {
    match error {
        LogError::Shutdown => shutting_down(),
        error @ LogError::Journal(_) => {
            Failure::platform("the log of the build cannot be read", error).status()
        }
    }
}

pub(super) fn shutting_down() -> Status {
    Failure::new(Blame::Shutdown, "server is shutting down").status()
}
