//! The journal as text: what `Logs`, the log URL and `--progress plain` show.
//!
//! A pure fold over records, so that every reader gets the same bytes and an offset means the same to everybody. Step output is
//! passed through untouched but for the `#7 1.234 ` before each line, which no step can forge: its own lines always carry one.

use std::collections::BTreeMap;

use crate::event::{Event, StepId};
use crate::journal::{Body, Record};

/// Longest piece of a line that waits for its end.
const LINE_MAX_BYTES: usize = 64 << 10;

/// Turns records into text.
#[derive(Debug, Clone, Default)]
pub struct Renderer {
    steps: BTreeMap<StepId, Running>,
}

#[derive(Debug, Clone)]
struct Running {
    started_ms: u64,
    line: Vec<u8>,
}

/// Returns what is told of a build that waits for its turn.
pub fn waiting(ahead: u32) -> String {
    match ahead {
        0 => "waiting for its turn: it is the next".to_owned(),
        1 => "waiting for its turn: 1 build comes before it".to_owned(),
        n => format!("waiting for its turn: {n} builds come before it"),
    }
}

/// Returns what is told of a build that another worker carries out from its beginning.
pub fn begun_again(attempt: u32, reason: &str) -> String {
    format!("{reason}; the build begins again (try {attempt})")
}

impl Renderer {
    /// Returns how many bytes are held back because the line that they are in has not ended.
    pub fn held_bytes(&self) -> usize {
        self.steps.values().map(|running| running.line.len()).sum()
    }

    /// Appends the text of `record` to `out`.
    pub fn render(&mut self, record: &Record, out: &mut Vec<u8>) {
        match &record.body {
            Body::Event(event) => self.event(record.at_ms, event, out),
            Body::Output { step, bytes, .. } => self.output(record.at_ms, *step, bytes, out),
        }
    }

    fn event(&mut self, at_ms: u64, event: &Event, out: &mut Vec<u8>) {
        match event {
            Event::StepStarted { step, name, reason } => {
                let running = Running {
                    started_ms: at_ms,
                    line: Vec::new(),
                };
                self.steps.insert(*step, running);
                line(out, &format!("#{} {name}", step.0));
                if let Some(reason) = reason {
                    line(out, &format!("#{} cache miss: {reason}", step.0));
                }
            }
            Event::StepCached { step, name } => {
                line(out, &format!("#{} {name}", step.0));
                line(out, &format!("#{} CACHED", step.0));
            }
            Event::StepFinished { step, duration_ms } => {
                self.flush(at_ms, *step, out);
                line(
                    out,
                    &format!("#{} DONE {}s", step.0, seconds(*duration_ms, 1)),
                );
            }
            Event::StepFailed { step, error } => {
                self.flush(at_ms, *step, out);
                line(out, &format!("#{} ERROR: {error}", step.0));
            }
            Event::OutputCut { step, kept_bytes } => {
                let text = format!(
                    "(more than {kept_bytes} bytes of output: the rest is left out, but for its end)"
                );
                self.interrupt(at_ms, *step, &text, out);
            }
            Event::OutputResumed {
                step,
                dropped_bytes,
            } => {
                let text = format!("({dropped_bytes} bytes of output left out)");
                self.interrupt(at_ms, *step, &text, out);
            }
            Event::BegunAgain { attempt, reason } => {
                for step in self.steps.keys().copied().collect::<Vec<_>>() {
                    self.flush(at_ms, step, out);
                }
                line(out, &begun_again(*attempt, reason));
            }
            Event::BaseResolved { reference, digest } => {
                line(out, &format!("{reference} is {digest}"));
            }
            Event::Queued { ahead } => line(out, &waiting(*ahead)),
            Event::Warning { text } => line(out, &format!("WARNING: {text}")),
            Event::Published { reference, digest } => {
                line(out, &format!("published {reference} with digest {digest}"));
            }
            Event::Succeeded { image } => line(
                out,
                &format!(
                    "built {}: {} steps run, {} cached",
                    image.digest, image.n_run, image.n_cached
                ),
            ),
            Event::Failed { failure } => line(out, &format!("build failed: {}", failure.message)),
            Event::Cancelled => line(out, "build was cancelled"),
            Event::ContextReady {
                commit: Some(commit),
            } => line(out, &format!("context is commit {commit}")),
            Event::ContextReady { commit: None }
            | Event::Phase { .. }
            | Event::LayerWritten { .. } => {}
        }
    }

    fn output(&mut self, at_ms: u64, step: StepId, bytes: &[u8], out: &mut Vec<u8>) {
        let running = self.steps.entry(step).or_insert_with(|| Running {
            started_ms: at_ms,
            line: Vec::new(),
        });
        let since_ms = at_ms.saturating_sub(running.started_ms);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            running.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") || running.line.len() >= LINE_MAX_BYTES {
                prefixed(out, step, since_ms, &running.line);
                running.line.clear();
            }
        }
    }

    /// Ends the line that a step is in, and says something about the step. No output of the step looks like it: that has a time.
    fn interrupt(&mut self, at_ms: u64, step: StepId, text: &str, out: &mut Vec<u8>) {
        if let Some(running) = self.steps.get_mut(&step)
            && !running.line.is_empty()
        {
            let since_ms = at_ms.saturating_sub(running.started_ms);
            prefixed(out, step, since_ms, &running.line);
            running.line.clear();
        }
        line(out, &format!("#{} {text}", step.0));
    }

    fn flush(&mut self, at_ms: u64, step: StepId, out: &mut Vec<u8>) {
        if let Some(running) = self.steps.remove(&step)
            && !running.line.is_empty()
        {
            prefixed(
                out,
                step,
                at_ms.saturating_sub(running.started_ms),
                &running.line,
            );
        }
    }
}

fn line(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
    out.push(b'\n');
}

fn prefixed(out: &mut Vec<u8>, step: StepId, since_ms: u64, text: &[u8]) {
    out.extend_from_slice(format!("#{} {} ", step.0, seconds(since_ms, 3)).as_bytes());
    out.extend_from_slice(text);
    if !text.ends_with(b"\n") {
        out.push(b'\n');
    }
}

fn seconds(ms: u64, n_digits: usize) -> String {
    let text = format!("{}.{:03}", ms / 1000, ms % 1000);
    text.get(..text.len() + n_digits - 3)
        .unwrap_or(&text)
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Stream;

    fn output(at_ms: u64, step: u32, text: &str) -> Record {
        Record {
            at_ms,
            body: Body::Output {
                step: StepId(step),
                stream: Stream::Stdout,
                bytes: text.as_bytes().to_vec(),
            },
        }
    }

    fn event(at_ms: u64, event: Event) -> Record {
        Record {
            at_ms,
            body: Body::Event(event),
        }
    }

    #[test]
    fn lines_of_parallel_steps_are_kept_apart() {
        let started = |step, name: &str| Event::StepStarted {
            step: StepId(step),
            name: name.to_owned(),
            reason: None,
        };
        let finished = |step| Event::StepFinished {
            step: StepId(step),
            duration_ms: 1999,
        };
        let records = [
            event(0, started(1, "[a 1/1] RUN x")),
            event(0, started(2, "[b 1/1] RUN y")),
            output(10, 1, "one"),
            output(20, 2, "other\n#1 DONE"),
            output(1234, 1, " line\n"),
            event(1999, finished(2)),
            event(1999, finished(1)),
        ];
        let mut renderer = Renderer::default();
        let mut out = Vec::new();
        for record in &records {
            renderer.render(record, &mut out);
        }
        let expected = "#1 [a 1/1] RUN x\n#2 [b 1/1] RUN y\n#2 0.020 other\n#1 1.234 one line\n#2 1.999 #1 DONE\n#2 DONE 1.9s\n#1 DONE 1.9s\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
