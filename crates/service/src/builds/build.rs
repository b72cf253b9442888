//! One build, as the service sees it: what was asked, and where it stands.

use std::path::PathBuf;

use engine::event::Event;
use engine::spec::Record;
use engine::state::BuildState;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::log::Shelf;
use crate::agents::Agents;

/// Where a build stands.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// The fold of its journal.
    pub state: BuildState,
    /// Where its journal is, once somebody has begun to carry it out.
    pub folder: Option<PathBuf>,
    /// When it ended, in Unix milliseconds.
    pub ended_at_ms: Option<u64>,
}

impl Progress {
    /// Takes in one event of the journal. Tells whether the state is another one now.
    pub fn take(&mut self, event: &Event, at_ms: u64) -> bool {
        let next = match self.state.clone().next(event) {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(%error, "the journal says something that cannot be");
                return false;
            }
        };
        let changed = next != self.state;
        self.state = next;
        if self.state.is_terminal() && self.ended_at_ms.is_none() {
            self.ended_at_ms = Some(at_ms);
        }
        changed
    }
}

/// One build.
#[derive(Debug)]
pub struct Build {
    /// What was asked.
    pub record: Record,
    /// SSH agents that its steps may use.
    pub agents: Agents,
    /// What readers of its log share.
    pub(super) logs: Shelf,
    progress: watch::Sender<Progress>,
    /// Cancelled when somebody wants the build to end before it was started.
    pub(super) withdrawn: CancellationToken,
}

impl Build {
    /// Returns a build that stands where `progress` says.
    pub(super) fn new(record: Record, agents: Agents, progress: Progress) -> Self {
        Self {
            record,
            agents,
            logs: Shelf::default(),
            progress: watch::Sender::new(progress),
            withdrawn: CancellationToken::new(),
        }
    }

    /// Returns where it stands.
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Returns when it ended, in Unix milliseconds; `None` when it has not.
    pub(super) fn ended_at_ms(&self) -> Option<u64> {
        self.progress.borrow().ended_at_ms
    }

    /// Tells something of its state.
    pub(super) fn stands(&self, test: impl FnOnce(&BuildState) -> bool) -> bool {
        test(&self.progress.borrow().state)
    }

    /// Returns where it stands, and every change from now on.
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Waits until it has ended, or nobody follows it any more.
    pub async fn ended(&self) {
        let mut watch = self.watch();
        let _nobody_follows = watch
            .wait_for(|progress| progress.state.is_terminal())
            .await;
    }

    /// Returns how it ended, and when, in Unix milliseconds.
    pub(super) fn end(&self) -> Option<(Event, u64)> {
        let progress = self.progress.borrow();
        let end = progress.state.end()?;
        Some((end, progress.ended_at_ms.unwrap_or_default()))
    }

    /// Tells whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.progress.borrow().state.is_terminal()
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut Progress) -> bool) {
        self.progress.send_if_modified(change);
    }
}
