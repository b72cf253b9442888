//! What a journal tells of its build, folded into what people ask for: phases, steps, bases, warnings, names.
//!
//! A fold like [`crate::state`], stored nowhere. What a hostile Dockerfile can make long is cut: the journal has all of it.

use std::collections::HashMap;
use std::path::Path;

use oci::{Digest, Reference};

use crate::event::{Event, Phase, StepId};
use crate::journal::{JournalError, Reader};
use crate::render;
use crate::state::BuildState;

/// Most steps that are told.
pub const STEPS_MAX: usize = 10_000;
/// Most warnings that are told, and most bases and names.
pub const LINES_MAX: usize = 100;
/// Longest text of one thing.
pub const TEXT_MAX_BYTES: usize = 4 << 10;
/// Longest name of a step.
pub const NAME_MAX_BYTES: usize = 256;

/// What a journal tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Where the build stands.
    pub state: BuildState,
    /// When it ended, in Unix milliseconds.
    pub ended_at_ms: Option<u64>,
    /// The phases that it entered, and when.
    pub phases: Vec<(Phase, u64)>,
    /// Its steps, in the order in which they began.
    pub steps: Vec<StepSummary>,
    /// The bases that were pinned.
    pub bases: Vec<(String, Digest)>,
    /// The commit that was checked out.
    pub commit: Option<String>,
    /// What was said that stopped nothing.
    pub warnings: Vec<String>,
    /// The names that the image got.
    pub published: Vec<(Reference, Digest)>,
    /// Size of the journal.
    pub journal_bytes: u64,
    /// Where each step is in the list.
    places: HashMap<StepId, usize>,
}

/// A step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepSummary {
    /// Its number.
    pub step: StepId,
    /// What people see.
    pub name: String,
    /// How it stands.
    pub status: StepStatus,
    /// Why it was run.
    pub reason: Option<String>,
    /// When it began, in Unix milliseconds.
    pub started_at_ms: u64,
    /// How long it took.
    pub duration_ms: Option<u64>,
    /// Why it failed.
    pub error: Option<String>,
    /// Its layer: digest, compressed and uncompressed size.
    pub layer: Option<(Digest, u64, u64)>,
    /// How much of its output was left out.
    pub dropped_bytes: u64,
}

/// How a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepStatus {
    /// At work, or broken off with the build.
    Started,
    /// Its result was in the cache.
    Cached,
    /// Ended well.
    Done,
    /// Ended otherwise.
    Failed,
}

/// Returns what the journal in a build's folder tells.
///
/// # Errors
/// When the journal cannot be read.
pub fn of(folder: &Path) -> Result<Summary, JournalError> {
    let mut reader = Reader::skim(folder)?;
    let mut summary = Summary::default();
    while let Some((at_ms, event)) = reader.next_event()? {
        summary.take(at_ms, &event);
    }
    summary.journal_bytes = reader.offset();
    Ok(summary)
}

impl Summary {
    /// Takes in one event.
    pub fn take(&mut self, at_ms: u64, event: &Event) {
        if let Ok(next) = self.state.clone().next(event) {
            self.state = next;
        }
        if self.state.is_terminal() {
            self.ended_at_ms.get_or_insert(at_ms);
        }
        match event {
            Event::Phase { phase } => self.phases.push((*phase, at_ms)),
            Event::StepStarted { step, name, reason } => {
                let begun = begun(*step, name, StepStatus::Started, at_ms);
                self.add(StepSummary {
                    reason: reason.as_deref().map(|reason| cut(reason, TEXT_MAX_BYTES)),
                    ..begun
                });
            }
            Event::StepCached { step, name } => {
                self.add(begun(*step, name, StepStatus::Cached, at_ms));
            }
            Event::StepFinished { step, duration_ms } => self.change(*step, |step| {
                step.status = StepStatus::Done;
                step.duration_ms = Some(*duration_ms);
            }),
            Event::StepFailed { step, error } => self.change(*step, |step| {
                step.status = StepStatus::Failed;
                step.duration_ms = Some(at_ms.saturating_sub(step.started_at_ms));
                step.error = Some(cut(error, TEXT_MAX_BYTES));
            }),
            Event::OutputResumed {
                step,
                dropped_bytes,
            } => self.change(*step, |step| step.dropped_bytes = *dropped_bytes),
            Event::LayerWritten {
                step,
                digest,
                size_bytes,
                uncompressed_bytes,
            } => self.change(*step, |step| {
                step.layer = Some((digest.clone(), *size_bytes, *uncompressed_bytes));
            }),
            Event::BaseResolved { reference, digest } => {
                let base = (cut(reference, TEXT_MAX_BYTES), digest.clone());
                push(&mut self.bases, base);
            }
            Event::Warning { text } => push(&mut self.warnings, cut(text, TEXT_MAX_BYTES)),
            Event::Published { reference, digest } => {
                push(&mut self.published, (reference.clone(), digest.clone()));
            }
            Event::BegunAgain { attempt, reason } => {
                let text = render::begun_again(*attempt, reason);
                push(&mut self.warnings, cut(&text, TEXT_MAX_BYTES));
            }
            Event::ContextReady { commit } => self.commit.clone_from(commit),
            Event::Queued { .. }
            | Event::OutputCut { .. }
            | Event::Succeeded { .. }
            | Event::Failed { .. }
            | Event::Cancelled => {}
        }
    }

    fn add(&mut self, step: StepSummary) {
        if self.steps.len() < STEPS_MAX {
            self.places.insert(step.step, self.steps.len());
            self.steps.push(step);
        }
    }

    fn change(&mut self, step: StepId, change: impl FnOnce(&mut StepSummary)) {
        let place = self.places.get(&step);
        if let Some(step) = place.and_then(|place| self.steps.get_mut(*place)) {
            change(step);
        }
    }
}

fn begun(step: StepId, name: &str, status: StepStatus, at_ms: u64) -> StepSummary {
    StepSummary {
        step,
        name: cut(name, NAME_MAX_BYTES),
        status,
        reason: None,
        started_at_ms: at_ms,
        duration_ms: None,
        error: None,
        layer: None,
        dropped_bytes: 0,
    }
}

fn push<T>(list: &mut Vec<T>, item: T) {
    if list.len() < LINES_MAX {
        list.push(item);
    }
}

fn cut(text: &str, max_bytes: usize) -> String {
    let mut end = text.len().min(max_bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_told_with_what_became_of_it() {
        let mut summary = Summary::default();
        let (one, two) = (StepId(1), StepId(2));
        for (at_ms, event) in [
            (
                10,
                Event::Phase {
                    phase: Phase::Running,
                },
            ),
            (
                20,
                Event::StepStarted {
                    step: one,
                    name: "é".repeat(NAME_MAX_BYTES),
                    reason: Some("new".to_owned()),
                },
            ),
            (
                21,
                Event::StepCached {
                    step: two,
                    name: "COPY".to_owned(),
                },
            ),
            (
                30,
                Event::OutputResumed {
                    step: one,
                    dropped_bytes: 7,
                },
            ),
            (
                50,
                Event::StepFailed {
                    step: one,
                    error: "exit code: 1".to_owned(),
                },
            ),
            // Of a step that nobody knows.
            (
                51,
                Event::StepFinished {
                    step: StepId(9),
                    duration_ms: 1,
                },
            ),
            (60, Event::Cancelled),
        ] {
            summary.take(at_ms, &event);
        }
        assert_eq!(summary.phases, [(Phase::Running, 10)]);
        assert_eq!(summary.ended_at_ms, Some(60));
        assert_eq!(summary.steps.len(), 2);
        let step = &summary.steps[0];
        assert_eq!(step.status, StepStatus::Failed);
        assert_eq!((step.duration_ms, step.dropped_bytes), (Some(30), 7));
        assert_eq!(step.name.len(), NAME_MAX_BYTES);
        assert_eq!(summary.steps[1].status, StepStatus::Cached);
    }

    #[test]
    fn what_a_build_makes_many_of_is_bounded() {
        let mut summary = Summary::default();
        for n in 0..20_000 {
            summary.take(
                n,
                &Event::StepCached {
                    step: StepId(u32::try_from(n).unwrap()),
                    name: String::new(),
                },
            );
            summary.take(
                n,
                &Event::Warning {
                    text: "w".repeat(10 * TEXT_MAX_BYTES),
                },
            );
        }
        assert_eq!(summary.steps.len(), STEPS_MAX);
        assert_eq!(summary.warnings.len(), LINES_MAX);
        assert_eq!(summary.warnings[0].len(), TEXT_MAX_BYTES);
    }
}
