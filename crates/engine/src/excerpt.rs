//! A part of a log: of one step, from a time on, as text or as what steps wrote.
//!
//! A pure fold over records like [`crate::render`], which it uses: every reader of the same part gets the same bytes, and an offset means the
//! same to everybody.

use crate::event::{Event, StepId};
use crate::journal::{Body, Record};
use crate::render::Renderer;

/// Which part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Selection {
    /// What belongs to this step; everything when not given.
    pub step: Option<StepId>,
    /// What was recorded at this time or later, in Unix milliseconds.
    pub since_ms: u64,
    /// How it is written.
    pub form: Form,
}

/// How a log is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Form {
    /// Lines with the numbers of their steps, and what the build says itself.
    #[default]
    Text,
    /// What steps wrote, and nothing else.
    Raw,
}

/// Turns records into the part of their text that is wanted.
#[derive(Debug, Clone, Default)]
pub struct Excerpt {
    selection: Selection,
    renderer: Renderer,
    unseen: Vec<u8>,
}

impl Excerpt {
    /// Returns an excerpt that has seen nothing yet.
    pub fn new(selection: Selection) -> Self {
        Self {
            selection,
            ..Self::default()
        }
    }

    /// Returns how many bytes are held back because the line that they are in has not ended.
    pub fn held_bytes(&self) -> usize {
        self.renderer.held_bytes()
    }

    /// Appends what `record` adds to `out`.
    pub fn take(&mut self, record: &Record, out: &mut Vec<u8>) {
        let Selection {
            step,
            since_ms,
            form,
        } = self.selection;
        let is_wanted = step.is_none() || step_of(&record.body) == step;
        match (form, &record.body) {
            _ if !is_wanted => {}
            (Form::Raw, Body::Output { bytes, .. }) => {
                if record.at_ms >= since_ms {
                    out.extend_from_slice(bytes);
                }
            }
            (Form::Raw, Body::Event(_)) => {}
            // Also what is not shown: a line knows how long its step has run, and may have begun before.
            (Form::Text, _) if record.at_ms < since_ms => {
                self.renderer.render(record, &mut self.unseen);
                self.unseen.clear();
            }
            (Form::Text, _) => self.renderer.render(record, out),
        }
    }
}

/// Returns the step that something is about.
fn step_of(body: &Body) -> Option<StepId> {
    match body {
        Body::Output { step, .. } => Some(*step),
        Body::Event(event) => match event {
            Event::StepStarted { step, .. }
            | Event::StepCached { step, .. }
            | Event::StepFinished { step, .. }
            | Event::StepFailed { step, .. }
            | Event::OutputCut { step, .. }
            | Event::OutputResumed { step, .. }
            | Event::LayerWritten { step, .. } => Some(*step),
            Event::Queued { .. }
            | Event::Phase { .. }
            | Event::BegunAgain { .. }
            | Event::ContextReady { .. }
            | Event::BaseResolved { .. }
            | Event::Warning { .. }
            | Event::Published { .. }
            | Event::Succeeded { .. }
            | Event::Failed { .. }
            | Event::Cancelled => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Stream;

    fn records() -> Vec<Record> {
        let event = |at_ms, event| Record {
            at_ms,
            body: Body::Event(event),
        };
        let started = |at_ms, step| {
            let name = format!("RUN {step}");
            event(
                at_ms,
                Event::StepStarted {
                    step: StepId(step),
                    name,
                    reason: None,
                },
            )
        };
        let output = |at_ms, step, text: &[u8]| Record {
            at_ms,
            body: Body::Output {
                step: StepId(step),
                stream: Stream::Stdout,
                bytes: text.to_vec(),
            },
        };
        vec![
            started(1000, 1),
            started(1000, 2),
            output(1100, 1, b"a\n\x1b[2Jb"),
            output(1200, 2, b"other\n"),
            output(1300, 1, b"c\xff\n"),
            event(1400, Event::Cancelled),
        ]
    }

    fn text(selection: Selection) -> Vec<u8> {
        let mut excerpt = Excerpt::new(selection);
        let mut out = Vec::new();
        for record in records() {
            excerpt.take(&record, &mut out);
        }
        out
    }

    #[test]
    fn everything_is_what_a_log_is() {
        let mut renderer = Renderer::default();
        let mut whole = Vec::new();
        for record in records() {
            renderer.render(&record, &mut whole);
        }
        assert_eq!(text(Selection::default()), whole);
    }

    #[test]
    fn of_one_step_there_is_nothing_of_others() {
        let of = |step, form| {
            text(Selection {
                step: Some(StepId(step)),
                form,
                ..Selection::default()
            })
        };
        assert_eq!(
            of(1, Form::Text),
            b"#1 RUN 1\n#1 0.100 a\n#1 0.300 \x1b[2Jbc\xff\n"
        );
        assert_eq!(of(1, Form::Raw), b"a\n\x1b[2Jbc\xff\n");
        assert_eq!(of(2, Form::Raw), b"other\n");
        assert!(of(3, Form::Text).is_empty());
    }

    #[test]
    fn what_is_older_is_left_out_and_times_are_right_all_the_same() {
        let since = |since_ms, form| {
            text(Selection {
                since_ms,
                form,
                ..Selection::default()
            })
        };
        assert_eq!(
            since(1200, Form::Text),
            b"#2 0.200 other\n#1 0.300 \x1b[2Jbc\xff\nbuild was cancelled\n"
        );
        assert_eq!(since(1200, Form::Raw), b"other\nc\xff\n");
        assert!(since(9999, Form::Text).is_empty());
    }
}
