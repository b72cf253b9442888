//! The writing end of a build's journal, shared by everything that works on it.
//!
//! Secrets are removed here, before the first byte is stored. An error of the journal does not stop the caller: it is remembered
//! and ends the build, because a build whose log is lost must not be called a success.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::event::{Event, StepId, Stream};
use crate::journal::{Body, JournalError, OUTPUT_MAX_BYTES, Record, Writer};
use crate::redact::{Redactor, StreamRedactor};

/// How much of a step's last output is kept for the message of its failure.
const TAIL_BYTES: usize = 4 << 10;

/// Time and randomness, given from outside so that tests decide them.
#[derive(Debug, Clone, Copy)]
pub struct Environment {
    /// Returns the time in Unix milliseconds.
    pub now_ms: fn() -> u64,
}

impl Environment {
    /// Returns the real one.
    pub fn real() -> Self {
        Self {
            now_ms: || {
                let since = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default();
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            },
        }
    }
}

/// Records events and output. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    environment: Environment,
    redactor: Redactor,
    step_log_bytes: u64,
    next_step: AtomicU32,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    writer: Writer,
    error: Option<JournalError>,
    steps: HashMap<StepId, StepLog>,
    ended: bool,
}

#[derive(Debug, Default)]
struct StepLog {
    streams: HashMap<bool, StreamRedactor>,
    n_bytes: u64,
    n_dropped: u64,
    tail: Vec<u8>,
}

/// One vertex of the build while it is worked on.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its number.
    pub id: StepId,
    recorder: Recorder,
    started: Instant,
}

impl Recorder {
    /// Takes over a build's journal.
    pub fn new(
        writer: Writer,
        redactor: Redactor,
        step_log_bytes: u64,
        environment: Environment,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                environment,
                redactor,
                step_log_bytes,
                next_step: AtomicU32::new(1),
                inner: Mutex::new(Inner {
                    writer,
                    error: None,
                    steps: HashMap::new(),
                    ended: false,
                }),
            }),
        }
    }

    /// Returns the time in Unix milliseconds.
    pub fn now_ms(&self) -> u64 {
        (self.shared.environment.now_ms)()
    }

    /// Records that something happened. Nothing is recorded after a terminal event.
    pub fn event(&self, event: &Event) {
        let event = self.redacted(event);
        let mut inner = self.lock();
        if inner.ended {
            return;
        }
        inner.ended = event.is_terminal();
        let record = Record {
            at_ms: self.now_ms(),
            body: Body::Event(event),
        };
        inner.append(&record);
        if inner.ended
            && let Err(error) = inner.writer.sync()
        {
            inner.error.get_or_insert(error);
        }
    }

    /// Records something to know that stops nothing.
    pub fn warn(&self, text: impl Into<String>) {
        self.event(&Event::Warning { text: text.into() });
    }

    /// Begins a vertex.
    pub fn begin(&self, name: &str, reason: Option<String>) -> Step {
        let step = self.step();
        self.event(&Event::StepStarted {
            step: step.id,
            name: name.to_owned(),
            reason,
        });
        step
    }

    /// Records a vertex that was not needed.
    pub fn cached(&self, name: &str) -> Step {
        let step = self.step();
        self.event(&Event::StepCached {
            step: step.id,
            name: name.to_owned(),
        });
        step
    }

    fn step(&self) -> Step {
        Step {
            id: StepId(self.shared.next_step.fetch_add(1, Ordering::Relaxed)),
            recorder: self.clone(),
            started: Instant::now(),
        }
    }

    /// Returns the first error that the journal gave, if it gave one.
    pub fn take_error(&self) -> Option<JournalError> {
        self.lock().error.take()
    }

    /// Returns `text` without secrets.
    pub fn redact(&self, text: &str) -> String {
        self.shared.redactor.text(text)
    }

    fn redacted(&self, event: &Event) -> Event {
        let Ok(json) = serde_json::to_vec(event) else {
            return event.clone();
        };
        // The mask holds no character that JSON escapes, so that what remains is JSON still.
        serde_json::from_slice(&self.shared.redactor.bytes(&json)).unwrap_or_else(|_| event.clone())
    }

    fn output(&self, step: StepId, stream: Stream, chunk: &[u8]) {
        let mut inner = self.lock();
        let log = inner.steps.entry(step).or_default();
        let redactor = log
            .streams
            .entry(stream == Stream::Stdout)
            .or_insert_with(|| self.shared.redactor.stream());
        let bytes = redactor.push(chunk);
        self.keep(&mut inner, step, stream, &bytes);
    }

    fn keep(&self, inner: &mut Inner, step: StepId, stream: Stream, bytes: &[u8]) {
        let log = inner.steps.entry(step).or_default();
        log.tail.extend_from_slice(bytes);
        let excess = log.tail.len().saturating_sub(TAIL_BYTES);
        log.tail.drain(..excess);
        let room = self.shared.step_log_bytes.saturating_sub(log.n_bytes);
        let n_kept = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
        log.n_bytes += n_kept as u64;
        log.n_dropped += (bytes.len() - n_kept) as u64;
        let kept = bytes.get(..n_kept).unwrap_or_default();
        for chunk in kept.chunks(OUTPUT_MAX_BYTES) {
            let body = Body::Output {
                step,
                stream,
                bytes: chunk.to_vec(),
            };
            let at_ms = self.now_ms();
            inner.append(&Record { at_ms, body });
        }
    }

    fn end(&self, step: StepId) -> Vec<u8> {
        let mut inner = self.lock();
        let streams = std::mem::take(&mut inner.steps.entry(step).or_default().streams);
        for (is_stdout, mut redactor) in streams {
            let stream = if is_stdout {
                Stream::Stdout
            } else {
                Stream::Stderr
            };
            let rest = redactor.finish();
            self.keep(&mut inner, step, stream, &rest);
        }
        let log = inner.steps.remove(&step).unwrap_or_default();
        drop(inner);
        if log.n_dropped > 0 {
            let limit = self.shared.step_log_bytes;
            self.warn(format!(
                "step #{} wrote more than {limit} bytes: the last {} were dropped",
                step.0, log.n_dropped
            ));
        }
        log.tail
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared
            .inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn append(&mut self, record: &Record) {
        if let Err(error) = self.writer.append(record) {
            self.error.get_or_insert(error);
        }
    }
}

impl Step {
    /// Records output of the vertex.
    pub fn output(&self, stream: Stream, bytes: &[u8]) {
        self.recorder.output(self.id, stream, bytes);
    }

    /// Records a line of our own about the vertex.
    pub fn say(&self, line: &str) {
        self.output(Stream::Stderr, format!("{line}\n").as_bytes());
    }

    /// Ends the vertex well.
    pub fn finish(self) {
        self.recorder.end(self.id);
        let duration_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.recorder.event(&Event::StepFinished {
            step: self.id,
            duration_ms,
        });
    }

    /// Ends the vertex with an error; returns the last bytes it wrote.
    pub fn fail(self, error: &str) -> Vec<u8> {
        let tail = self.recorder.end(self.id);
        self.recorder.event(&Event::StepFailed {
            step: self.id,
            error: error.to_owned(),
        });
        tail
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Reader;

    fn recorder(folder: &std::path::Path, limit: u64) -> Recorder {
        let writer = Writer::create(folder).unwrap();
        let redactor = Redactor::new(["hunter2-secret".to_owned()]);
        Recorder::new(writer, redactor, limit, Environment { now_ms: || 42 })
    }

    fn text(folder: &std::path::Path) -> String {
        let mut reader = Reader::open(folder).unwrap();
        let mut renderer = crate::render::Renderer::default();
        let mut out = Vec::new();
        while let Some(record) = reader.next().unwrap() {
            renderer.render(&record, &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn secrets_reach_neither_output_nor_events() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = recorder(folder.path(), 1000);
        let step = recorder.begin("RUN echo hunter2-secret", None);
        step.output(Stream::Stdout, b"it is hunter2-");
        step.output(Stream::Stdout, b"secret.\n");
        let tail = step.fail("no hunter2-secret");
        assert_eq!(tail, b"it is ***.\n");
        assert_eq!(
            text(folder.path()),
            "#1 RUN echo ***\n#1 0.000 it is ***.\n#1 ERROR: no ***\n"
        );
    }

    #[test]
    fn output_over_the_limit_is_dropped_with_a_mark() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = recorder(folder.path(), 4);
        let step = recorder.begin("RUN yes", None);
        step.output(Stream::Stdout, b"abcdef\n");
        step.finish();
        assert!(text(folder.path()).contains("#1 0.000 abcd\n"));
        assert!(
            text(folder.path())
                .contains("WARNING: step #1 wrote more than 4 bytes: the last 3 were dropped")
        );
    }

    #[test]
    fn nothing_is_recorded_after_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = recorder(folder.path(), 4);
        recorder.event(&Event::Cancelled);
        recorder.warn("too late");
        assert_eq!(text(folder.path()), "build was cancelled\n");
    }
}
