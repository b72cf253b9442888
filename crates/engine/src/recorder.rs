//! The writing end of a build's journal, shared by everything that works on it.
//!
//! Secrets are removed here, before the first byte is stored. An error of the journal does not stop the caller: it is remembered
//! and ends the build, because a build whose log is lost must not be called a success.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;

use crate::event::{Event, StepId, Stream};
use crate::journal::{Body, JournalError, OUTPUT_MAX_BYTES, Record, Writer};
use crate::redact::{Redactor, StreamRedactor};

/// How much of a step's last output is kept for the message of its failure.
const TAIL_BYTES: usize = 4 << 10;
/// Most of the end of a step's output that is kept of one that wrote too much; a quarter of what is kept when that is less.
const END_MAX_BYTES: u64 = 1 << 20;
/// What a piece of it counts beside its bytes, so that many small ones take no more memory.
const PIECE_BYTES: usize = 64;

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
    broken: CancellationToken,
}

#[derive(Debug)]
struct Inner {
    writer: Writer,
    error: Option<JournalError>,
    /// Whether something could not be written: nothing more is then, but the end.
    is_broken: bool,
    broken: CancellationToken,
    steps: HashMap<StepId, StepLog>,
    ended: bool,
}

#[derive(Debug, Default)]
struct StepLog {
    streams: HashMap<bool, StreamRedactor>,
    n_bytes: u64,
    end: End,
    tail: Vec<u8>,
}

/// The end, so far, of what a step wrote beyond what is kept of its beginning.
#[derive(Debug, Default)]
struct End {
    pieces: VecDeque<(Stream, Vec<u8>)>,
    /// Of the pieces: their bytes, and [`PIECE_BYTES`] for each.
    weight: usize,
    n_dropped: u64,
}

impl End {
    /// Takes in what was written; forgets what is not the end any more. Holds `room` bytes at least, and little more.
    fn push(&mut self, stream: Stream, bytes: &[u8], room: usize) {
        for chunk in bytes.chunks(OUTPUT_MAX_BYTES) {
            match self.pieces.back_mut() {
                Some((last, piece))
                    if *last == stream && piece.len() + chunk.len() <= OUTPUT_MAX_BYTES =>
                {
                    piece.extend_from_slice(chunk);
                }
                _ => {
                    self.pieces.push_back((stream, chunk.to_vec()));
                    self.weight += PIECE_BYTES;
                }
            }
            self.weight += chunk.len();
        }
        while let Some((_, first)) = self.pieces.front()
            && self.weight - first.len() - PIECE_BYTES >= room
        {
            self.weight -= first.len() + PIECE_BYTES;
            self.n_dropped += first.len() as u64;
            self.pieces.pop_front();
        }
    }

    /// Returns the pieces of the last `room` bytes, and how many bytes there were before them.
    fn close(mut self, room: usize) -> (u64, VecDeque<(Stream, Vec<u8>)>) {
        let held: usize = self.pieces.iter().map(|(_, piece)| piece.len()).sum();
        let mut excess = held.saturating_sub(room);
        self.n_dropped += excess as u64;
        while let Some((_, first)) = self.pieces.front_mut()
            && excess > 0
        {
            let n = excess.min(first.len());
            first.drain(..n);
            excess -= n;
            if first.is_empty() {
                self.pieces.pop_front();
            }
        }
        (self.n_dropped, self.pieces)
    }
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
        let broken = CancellationToken::new();
        Self {
            shared: Arc::new(Shared {
                broken: broken.clone(),
                environment,
                redactor,
                step_log_bytes,
                next_step: AtomicU32::new(1),
                inner: Mutex::new(Inner {
                    writer,
                    error: None,
                    is_broken: false,
                    broken,
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

    /// Waits until something could not be written: a build whose log is lost had better end.
    pub async fn broken(&self) {
        self.shared.broken.cancelled().await;
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
        let (begin_bytes, end_bytes) = self.shared.kept();
        let room = begin_bytes.saturating_sub(log.n_bytes);
        let n_kept = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
        log.n_bytes += n_kept as u64;
        let (kept, rest) = bytes.split_at_checked(n_kept).unwrap_or((bytes, &[]));
        let was_cut = log.end.n_dropped > 0;
        log.end.push(stream, rest, end_bytes);
        let is_cut = log.end.n_dropped > 0;
        self.append(inner, step, stream, kept);
        if is_cut && !was_cut {
            self.cut(inner, step);
        }
    }

    fn append(&self, inner: &mut Inner, step: StepId, stream: Stream, bytes: &[u8]) {
        for chunk in bytes.chunks(OUTPUT_MAX_BYTES) {
            let body = Body::Output {
                step,
                stream,
                bytes: chunk.to_vec(),
            };
            let at_ms = self.now_ms();
            inner.append(&Record { at_ms, body });
        }
    }

    fn cut(&self, inner: &mut Inner, step: StepId) {
        let kept_bytes = self.shared.kept().0;
        let body = Body::Event(Event::OutputCut { step, kept_bytes });
        let at_ms = self.now_ms();
        inner.append(&Record { at_ms, body });
    }

    /// Records the end of what a step wrote beyond its beginning, with a mark where something is missing.
    fn close(&self, inner: &mut Inner, step: StepId, end: End) {
        let was_cut = end.n_dropped > 0;
        let (dropped_bytes, pieces) = end.close(self.shared.kept().1);
        if dropped_bytes > 0 {
            if !was_cut {
                self.cut(inner, step);
            }
            let body = Body::Event(Event::OutputResumed {
                step,
                dropped_bytes,
            });
            let at_ms = self.now_ms();
            inner.append(&Record { at_ms, body });
        }
        for (stream, piece) in pieces {
            self.append(inner, step, stream, &piece);
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
        self.close(&mut inner, step, log.end);
        log.tail
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared
            .inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Returns how much is kept of the beginning of a step's output, and how much of its end.
    fn kept(&self) -> (u64, usize) {
        let end = (self.step_log_bytes / 4).min(END_MAX_BYTES);
        let begin = self.step_log_bytes - end;
        (begin, usize::try_from(end).unwrap_or(usize::MAX))
    }
}

impl Inner {
    fn append(&mut self, record: &Record) {
        // Else it would take the room that the end needs, and a log with a hole would look whole.
        if self.is_broken && !self.ended {
            return;
        }
        if let Err(error) = self.writer.append(record) {
            self.is_broken = true;
            self.broken.cancel();
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
        let recorder = recorder(folder.path(), 8);
        let step = recorder.begin("RUN yes", None);
        step.output(Stream::Stdout, b"abcdefghijkl");
        step.output(Stream::Stderr, b"m\n");
        step.finish();
        assert_eq!(
            text(folder.path()),
            "#1 RUN yes\n#1 0.000 abcdef\n\
             #1 (more than 6 bytes of output: the rest is left out, but for its end)\n\
             #1 (6 bytes of output left out)\n#1 0.000 m\n#1 DONE 0.0s\n"
        );
    }

    #[test]
    fn output_at_the_limit_is_kept_whole() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = recorder(folder.path(), 8);
        let step = recorder.begin("RUN yes", None);
        for byte in b"abcdefg\n" {
            step.output(Stream::Stdout, &[*byte]);
        }
        step.finish();
        assert_eq!(
            text(folder.path()),
            "#1 RUN yes\n#1 0.000 abcdefg\n#1 DONE 0.0s\n"
        );
    }

    /// Returns what is in a journal of a step's output: before the mark, in it, and after it.
    fn around_the_mark(folder: &std::path::Path) -> (Vec<u8>, u64, Vec<u8>) {
        let mut reader = Reader::open(folder).unwrap();
        let (mut before, mut dropped, mut after) = (Vec::new(), 0, Vec::new());
        while let Some(record) = reader.next().unwrap() {
            match record.body {
                Body::Output { bytes, .. } if dropped == 0 => before.extend(bytes),
                Body::Output { bytes, .. } => after.extend(bytes),
                Body::Event(Event::OutputResumed { dropped_bytes, .. }) => dropped = dropped_bytes,
                Body::Event(_) => {}
            }
        }
        (before, dropped, after)
    }

    #[test]
    fn of_endless_output_beginning_and_end_are_kept_to_the_byte() {
        const LIMIT: u64 = 1 << 20;
        for piece_bytes in [5, 4096, 100_000, 3 << 20] {
            let folder = tempfile::tempdir().unwrap();
            let recorder = recorder(folder.path(), LIMIT);
            let step = recorder.begin("RUN yes", None);
            let all: Vec<u8> = (0..3_u32 << 20).map(|n| (n % 251) as u8).collect();
            for piece in all.chunks(piece_bytes) {
                step.output(Stream::Stdout, piece);
            }
            step.finish();
            let (before, dropped, after) = around_the_mark(folder.path());
            assert_eq!((before.len() + after.len()) as u64, LIMIT, "{piece_bytes}");
            assert_eq!(dropped, all.len() as u64 - LIMIT, "{piece_bytes}");
            assert!(
                all.starts_with(&before) && all.ends_with(&after),
                "{piece_bytes}"
            );
        }
    }

    #[test]
    fn many_small_pieces_take_no_more_memory_than_is_kept() {
        let mut end = End::default();
        for n in 0..100_000_u32 {
            let stream = if n % 2 == 0 {
                Stream::Stdout
            } else {
                Stream::Stderr
            };
            end.push(stream, b"x", 4096);
        }
        assert!(
            end.pieces.len() <= 4096 / PIECE_BYTES + 1,
            "{}",
            end.pieces.len()
        );
    }

    #[test]
    fn a_secret_that_ends_beyond_the_limit_is_removed_all_the_same() {
        for before in 0..30 {
            let folder = tempfile::tempdir().unwrap();
            let recorder = recorder(folder.path(), 32);
            let step = recorder.begin("RUN x", None);
            let text = format!("{}hunter2-secret{}", "a".repeat(before), "b".repeat(60));
            for byte in text.bytes() {
                step.output(Stream::Stdout, &[byte]);
            }
            step.output(Stream::Stdout, b"hunter2-sec");
            step.output(Stream::Stdout, b"ret");
            step.finish();
            let journal = std::fs::read(folder.path().join("journal")).unwrap();
            let journal = String::from_utf8_lossy(&journal).into_owned();
            for part in ["hunter2", "secret", "2-sec"] {
                assert!(!journal.contains(part), "{part} after {before}");
            }
        }
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
