//! `kiln build --explain`: for each step of the Dockerfile whether it was in the cache, and if not, why, and what that cost.
//!
//! All of it is in the journal; here it is put side by side, after the build, however that ended.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::time::Duration;

use engine::event::{Event, StepId};
use engine::journal::{Body, Record};

use crate::failure::Outcome;
use crate::progress::clean::{Colours, clean};
use crate::terminal;

/// Longest text of a step that is shown.
const NAME_MAX_CHARS: usize = 60;

/// What was seen of the steps of a build.
#[derive(Debug, Default)]
pub(crate) struct Explained {
    steps: RefCell<Vec<Seen>>,
}

#[derive(Debug)]
struct Seen {
    step: StepId,
    name: String,
    became: Became,
}

#[derive(Debug)]
enum Became {
    Cached,
    Running { reason: String },
    Run { reason: String, took: Duration },
    Failed { reason: String },
}

impl Explained {
    /// Takes in one record of the journal.
    pub(crate) fn note(&self, record: &Record) {
        let Body::Event(event) = &record.body else {
            return;
        };
        let mut steps = self.steps.borrow_mut();
        let mut begin = |step: StepId, name: &str, became| {
            let name = name.to_owned();
            steps.push(Seen { step, name, became });
        };
        match event {
            Event::StepStarted {
                step,
                name,
                reason: Some(reason),
            } => {
                let reason = reason.clone();
                begin(*step, name, Became::Running { reason });
            }
            // A base is not made, and hence not made again.
            Event::StepCached { step, name } if !name.contains("] FROM ") => {
                begin(*step, name, Became::Cached);
            }
            Event::StepFinished { step, duration_ms } => {
                let took = Duration::from_millis(*duration_ms);
                let run = |reason| Became::Run { reason, took };
                end(&mut steps, *step, run);
            }
            Event::StepFailed { step, .. } => {
                end(&mut steps, *step, |reason| Became::Failed { reason });
            }
            _ => {}
        }
    }

    /// The same, of what came instead of one.
    pub(crate) fn note_if(&self, record: &Outcome<Record>) {
        if let Ok(record) = record {
            self.note(record);
        }
    }

    /// Tells it.
    pub(crate) fn tell(&self) {
        let text = self.text();
        terminal::say(&clean(text.trim_end().as_bytes(), Colours::Drop));
    }

    fn text(&self) -> String {
        let steps = self.steps.borrow();
        let n_cached = steps
            .iter()
            .filter(|seen| matches!(seen.became, Became::Cached));
        let n_cached = n_cached.count();
        let n_run = steps.len() - n_cached;
        let mut text = format!("cache: {n_cached} steps found, {n_run} not\n");
        let width = steps.iter().map(|seen| short(&seen.name).chars().count());
        let width = width.max().unwrap_or(0);
        for seen in steps.iter() {
            let (became, reason) = match &seen.became {
                Became::Cached => ("found".to_owned(), ""),
                Became::Running { reason } => ("not ended".to_owned(), reason.as_str()),
                Became::Run { reason, took } => {
                    (format!("{:.1} s", took.as_secs_f64()), reason.as_str())
                }
                Became::Failed { reason } => ("failed".to_owned(), reason.as_str()),
            };
            let name = short(&seen.name);
            let line = format!("  {name:width$}  {became:>9}  {reason}");
            // Writing to a text cannot fail.
            let _infallible = writeln!(text, "{}", line.trim_end());
        }
        text
    }
}

fn end(steps: &mut [Seen], step: StepId, became: impl FnOnce(String) -> Became) {
    let Some(seen) = steps.iter_mut().find(|seen| seen.step == step) else {
        return;
    };
    if let Became::Running { reason } = &mut seen.became {
        seen.became = became(std::mem::take(reason));
    }
}

/// Returns the first line of a step, not too long.
fn short(name: &str) -> String {
    let line = name.lines().next().unwrap_or_default();
    if line.chars().count() <= NAME_MAX_CHARS && line.len() == name.len() {
        return line.to_owned();
    }
    let start: String = line.chars().take(NAME_MAX_CHARS - 1).collect();
    format!("{start}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(event: Event) -> Record {
        Record {
            at_ms: 0,
            body: Body::Event(event),
        }
    }

    #[test]
    fn every_step_is_told_with_what_became_of_it_and_why() {
        let explained = Explained::default();
        let started = |step, name: &str, reason: Option<&str>| Event::StepStarted {
            step: StepId(step),
            name: name.to_owned(),
            reason: reason.map(str::to_owned),
        };
        let cached = |step, name: &str| Event::StepCached {
            step: StepId(step),
            name: name.to_owned(),
        };
        let finished = |step| Event::StepFinished {
            step: StepId(step),
            duration_ms: 1234,
        };
        for event in [
            started(1, "[internal] load build context", None),
            finished(1),
            cached(2, "[1/4] FROM busybox"),
            cached(3, "[2/4] RUN a"),
            started(4, "[3/4] COPY . /", Some("file x changed")),
            started(
                5,
                &format!("[b 1/1] RUN {}", "y".repeat(99)),
                Some("not built before"),
            ),
            finished(4),
        ] {
            explained.note(&record(event));
        }
        let long = format!("[b 1/1] RUN {}…", "y".repeat(47));
        let expected = format!(
            "cache: 1 steps found, 2 not\n  {:60}      found\n  {:60}      1.2 s  file x changed\n  {long}  not ended  not built before\n",
            "[2/4] RUN a", "[3/4] COPY . /"
        );
        assert_eq!(explained.text(), expected);
    }
}
