//! Where a build stands: a fold over its events, and nothing else.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::event::{BuiltImage, Event, Failure, Phase};
use crate::journal::{JournalError, Reader};

/// The state of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum BuildState {
    /// Accepted; its worker waits for its turn, or has not spoken yet.
    Queued {
        /// How many builds come before it, as far as that was said.
        #[serde(default)]
        ahead: Option<u32>,
    },
    /// On its way.
    Active {
        /// How far.
        phase: Phase,
    },
    /// Ended well.
    Succeeded {
        /// What was built.
        image: BuiltImage,
    },
    /// Ended otherwise.
    Failed {
        /// Why.
        failure: Failure,
    },
    /// Ended by request.
    Cancelled,
}

/// An event that cannot follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a build that is {state:?} cannot see {event:?}")]
pub struct IllegalEvent {
    state: Box<BuildState>,
    event: Box<Event>,
}

impl Default for BuildState {
    fn default() -> Self {
        Self::Queued { ahead: None }
    }
}

impl BuildState {
    /// Returns the state after `event`.
    pub fn next(self, event: &Event) -> Result<Self, IllegalEvent> {
        match (self, event) {
            (state, event) if state.is_terminal() => Err(IllegalEvent {
                state: Box::new(state),
                event: Box::new(event.clone()),
            }),
            (Self::Active { phase: now }, Event::Phase { phase }) if rank(*phase) < rank(now) => {
                Err(IllegalEvent {
                    state: Box::new(Self::Active { phase: now }),
                    event: Box::new(event.clone()),
                })
            }
            (Self::Queued { .. }, Event::Queued { ahead }) => Ok(Self::Queued {
                ahead: Some(*ahead),
            }),
            (Self::Active { .. }, Event::BegunAgain { .. }) => Ok(Self::Active {
                phase: Phase::Resolving,
            }),
            (_, Event::Phase { phase }) => Ok(Self::Active { phase: *phase }),
            (_, Event::Succeeded { image }) => Ok(Self::Succeeded {
                image: image.clone(),
            }),
            (_, Event::Failed { failure }) => Ok(Self::Failed {
                failure: failure.clone(),
            }),
            (_, Event::Cancelled) => Ok(Self::Cancelled),
            (state, _) => Ok(state),
        }
    }

    /// Returns the event that has ended the build.
    pub fn end(&self) -> Option<Event> {
        match self {
            Self::Queued { .. } | Self::Active { .. } => None,
            Self::Succeeded { image } => Some(Event::Succeeded {
                image: image.clone(),
            }),
            Self::Failed { failure } => Some(Event::Failed {
                failure: failure.clone(),
            }),
            Self::Cancelled => Some(Event::Cancelled),
        }
    }

    /// Tells whether the build has ended.
    pub fn is_terminal(&self) -> bool {
        match self {
            Self::Queued { .. } | Self::Active { .. } => false,
            Self::Succeeded { .. } | Self::Failed { .. } | Self::Cancelled => true,
        }
    }
}

/// Returns the state of the build in `folder`, and when it ended, in Unix milliseconds: the fold of the events in its journal, as far as
/// that can be read: behind a place that is damaged nothing is known.
///
/// # Errors
/// When the journal cannot be read at all.
pub fn of(folder: &Path) -> Result<(BuildState, Option<u64>), JournalError> {
    let mut reader = Reader::skim(folder)?;
    let (mut state, mut ended_at_ms) = (BuildState::default(), None);
    loop {
        let (at_ms, event) = match reader.next_event() {
            Ok(Some(next)) => next,
            Ok(None) => break,
            Err(error @ JournalError::Damaged { .. }) => {
                tracing::warn!(%error, folder = %folder.display(), "a log ends where it is damaged");
                break;
            }
            Err(error) => return Err(error),
        };
        state = match state.clone().next(&event) {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(%error, "the journal says something that cannot be");
                continue;
            }
        };
        if state.is_terminal() {
            ended_at_ms = Some(at_ms);
        }
    }
    Ok((state, ended_at_ms))
}

fn rank(phase: Phase) -> u8 {
    match phase {
        Phase::Resolving => 0,
        Phase::Planning => 1,
        Phase::Running => 2,
        Phase::Pushing => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::FailureKind;

    fn failed() -> Event {
        Event::Failed {
            failure: Failure {
                kind: FailureKind::Platform,
                message: "x".to_owned(),
                step: None,
                exit_code: None,
            },
        }
    }

    #[test]
    fn a_terminal_state_sees_nothing_more() {
        let state = BuildState::default().next(&failed()).unwrap();
        assert!(state.is_terminal());
        assert_eq!(state.end(), Some(failed()));
        assert!(state.clone().next(&Event::Cancelled).is_err());
        assert!(
            state
                .next(&Event::Phase {
                    phase: Phase::Pushing
                })
                .is_err()
        );
    }

    #[test]
    fn a_build_that_is_begun_again_goes_through_its_phases_again() {
        let again = Event::BegunAgain {
            attempt: 2,
            reason: "x".to_owned(),
        };
        let phase = |phase| Event::Phase { phase };
        let waits = BuildState::default().next(&again).unwrap();
        assert_eq!(waits, BuildState::default());
        let pushing = waits.next(&phase(Phase::Pushing)).unwrap();
        let resolving = pushing.next(&again).unwrap();
        assert!(resolving.clone().next(&phase(Phase::Resolving)).is_ok());
        let ended = resolving.next(&failed()).unwrap();
        assert!(ended.next(&again).is_err());
    }

    #[test]
    fn phases_only_go_forward() {
        let running = Event::Phase {
            phase: Phase::Running,
        };
        let state = BuildState::default().next(&running).unwrap();
        assert_eq!(state.clone().next(&running), Ok(state.clone()));
        assert!(
            state
                .next(&Event::Phase {
                    phase: Phase::Resolving
                })
                .is_err()
        );
    }
}
