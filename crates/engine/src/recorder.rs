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
use crate::spec::Limits;

/// How much of a step's last output is kept for the message of its failure.
const TAIL_BYTES: usize = 4 << 10;
/// Most of the end of a step's output that is kept of one that wrote too much; a quarter of what is kept when that is less.
const END_MAX_BYTES: u64 = 1 << 20;
/// The ends of steps that are kept of a build that wrote too much take a quarter of what is kept of it, and this at most; each a part of that,
/// and every further one as much as the message of a failure shows.
const ENDS_MAX_BYTES: u64 = 64 << 20;
const ENDS: u64 = 64;
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

/// How much of what steps write is kept, of a build's beginning and its end.
#[derive(Debug, Clone, Copy)]
pub struct LogLimits {
    /// Of one step, in bytes.
    pub step_bytes: u64,
    /// Of all steps together, in bytes.
    pub build_bytes: u64,
}

impl LogLimits {
    /// Returns those of a build.
    pub fn of(limits: &Limits) -> Self {
        Self {
            step_bytes: limits.step_log_bytes,
            build_bytes: limits.log_bytes,
        }
    }

    /// Returns how much is kept of the beginning of a step's output, and how much of its end.
    fn of_step(self) -> (u64, usize) {
        let end = (self.step_bytes / 4).min(END_MAX_BYTES);
        let begin = self.step_bytes - end;
        (begin, usize::try_from(end).unwrap_or(usize::MAX))
    }

    /// Returns how much is kept of the beginning of a build, of the ends of its steps after that, and of one of them.
    fn of_build(self) -> (u64, u64, usize) {
        let ends = (self.build_bytes / 4).min(ENDS_MAX_BYTES);
        let end = usize::try_from(ends / ENDS).unwrap_or(usize::MAX);
        (self.build_bytes - ends, ends, end.max(TAIL_BYTES))
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
    limits: LogLimits,
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
    /// What is still kept of the beginning of the build, and of the ends of its steps after that.
    room_bytes: u64,
    ends_bytes: u64,
    /// Whether it was said that the beginning is over.
    is_full: bool,
    ended: bool,
}

#[derive(Debug, Default)]
struct StepLog {
    streams: HashMap<bool, StreamRedactor>,
    n_bytes: u64,
    end: End,
    /// Whether the whole build has written too much for more of this step.
    of_full_build: bool,
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

    fn held_bytes(&self) -> usize {
        self.pieces.iter().map(|(_, piece)| piece.len()).sum()
    }

    /// Returns the pieces of the last `room` bytes, and how many bytes there were before them.
    fn close(mut self, room: usize) -> (u64, VecDeque<(Stream, Vec<u8>)>) {
        let mut excess = self.held_bytes().saturating_sub(room);
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
        limits: LogLimits,
        environment: Environment,
    ) -> Self {
        let before = writer.before();
        let (room_bytes, ends_bytes, _) = limits.of_build();
        let broken = CancellationToken::new();
        Self {
            shared: Arc::new(Shared {
                broken: broken.clone(),
                environment,
                redactor,
                limits,
                next_step: AtomicU32::new(before.last_step + 1),
                inner: Mutex::new(Inner {
                    writer,
                    error: None,
                    is_broken: false,
                    broken,
                    steps: HashMap::new(),
                    room_bytes: room_bytes.saturating_sub(before.output_bytes),
                    ends_bytes,
                    is_full: false,
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
        if !inner.ended {
            inner.append(&record);
        } else if let Err(error) = inner.writer.end(&record) {
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
        let (begin_bytes, end_bytes) = self.shared.limits.of_step();
        let of_step = begin_bytes.saturating_sub(log.n_bytes);
        let room = if log.of_full_build {
            0
        } else {
            of_step.min(inner.room_bytes)
        };
        let n_kept = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
        let (kept, rest) = bytes.split_at_checked(n_kept).unwrap_or((bytes, &[]));
        log.n_bytes += n_kept as u64;
        inner.room_bytes -= n_kept as u64;
        // From here on this step's end is what is kept, also if there should be room again.
        log.of_full_build |= !rest.is_empty() && room < of_step;
        let end_bytes = if log.of_full_build {
            end_bytes.min(self.shared.limits.of_build().2)
        } else {
            end_bytes
        };
        let was_cut = log.end.n_dropped > 0;
        log.end.push(stream, rest, end_bytes);
        let is_cut = log.end.n_dropped > 0;
        let (kept_bytes, of_full_build) = (log.n_bytes, log.of_full_build);
        self.append(inner, step, stream, kept);
        if of_full_build && !inner.is_full {
            inner.is_full = true;
            self.say_full(inner);
        }
        if is_cut && !was_cut {
            self.cut(inner, step, kept_bytes);
        }
    }

    /// Says that no more is kept of the build's beginning.
    fn say_full(&self, inner: &mut Inner) {
        let build_bytes = self.shared.limits.build_bytes;
        let text = format!(
            "the steps of this build have written more than is kept of them ({build_bytes} bytes): from here on only the end of what each writes is"
        );
        let body = Body::Event(Event::Warning { text });
        let at_ms = self.now_ms();
        inner.append(&Record { at_ms, body });
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

    fn cut(&self, inner: &mut Inner, step: StepId, kept_bytes: u64) {
        let body = Body::Event(Event::OutputCut { step, kept_bytes });
        let at_ms = self.now_ms();
        inner.append(&Record { at_ms, body });
    }

    /// Records the end of what a step wrote beyond its beginning, with a mark where something is missing.
    fn close(&self, inner: &mut Inner, step: StepId, log: StepLog) {
        let limits = self.shared.limits;
        let was_cut = log.end.n_dropped > 0;
        // What is kept of this end counts as well.
        let held = log.end.held_bytes().min(limits.of_step().1);
        let of_full_build = log.of_full_build || held as u64 > inner.room_bytes;
        if of_full_build && !inner.is_full {
            inner.is_full = true;
            self.say_full(inner);
        }
        let room = if of_full_build {
            let left = usize::try_from(inner.ends_bytes).unwrap_or(usize::MAX);
            let most = limits.of_step().1.min(limits.of_build().2);
            most.min(left.max(TAIL_BYTES))
        } else {
            limits.of_step().1
        };
        let (dropped_bytes, pieces) = log.end.close(room);
        let n_kept: usize = pieces.iter().map(|(_, piece)| piece.len()).sum();
        let rest = if of_full_build {
            &mut inner.ends_bytes
        } else {
            &mut inner.room_bytes
        };
        *rest = rest.saturating_sub(n_kept as u64);
        if dropped_bytes > 0 {
            if !was_cut {
                self.cut(inner, step, log.n_bytes);
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
        let mut log = inner.steps.remove(&step).unwrap_or_default();
        let tail = std::mem::take(&mut log.tail);
        self.close(&mut inner, step, log);
        tail
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
        // Else it would take the room that the end needs, and a log with a hole would look whole.
        if self.is_broken {
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
        let limits = LogLimits {
            step_bytes: limit,
            build_bytes: 1 << 30,
        };
        Recorder::new(writer, redactor, limits, Environment { now_ms: || 42 })
    }

    fn text(folder: &std::path::Path) -> String {
        String::from_utf8(rendered(folder)).unwrap()
    }

    fn text_lossy(folder: &std::path::Path) -> String {
        String::from_utf8_lossy(&rendered(folder)).into_owned()
    }

    fn rendered(folder: &std::path::Path) -> Vec<u8> {
        let mut reader = Reader::open(folder).unwrap();
        let mut renderer = crate::render::Renderer::default();
        let mut out = Vec::new();
        while let Some(record) = reader.next().unwrap() {
            renderer.render(&record, &mut out);
        }
        out
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

    /// Returns how much output is in a journal, and of each step what follows the gap.
    fn kept(folder: &std::path::Path) -> (u64, HashMap<StepId, Vec<u8>>) {
        let mut reader = Reader::open(folder).unwrap();
        let (mut n_bytes, mut ends) = (0, HashMap::new());
        while let Some(record) = reader.next().unwrap() {
            match record.body {
                Body::Output { bytes, step, .. } => {
                    n_bytes += bytes.len() as u64;
                    if let Some(end) = ends.get_mut(&step) {
                        Vec::extend(end, bytes);
                    }
                }
                Body::Event(Event::OutputResumed { step, .. }) => {
                    ends.insert(step, Vec::new());
                }
                Body::Event(_) => {}
            }
        }
        (n_bytes, ends)
    }

    #[test]
    fn of_a_build_with_endless_steps_the_beginning_and_the_ends_of_steps_are_kept() {
        const LIMITS: LogLimits = LogLimits {
            step_bytes: 1 << 20,
            build_bytes: 2 << 20,
        };
        const STEPS: u32 = 80;
        let folder = tempfile::tempdir().unwrap();
        let writer = Writer::create(folder.path()).unwrap();
        let environment = Environment { now_ms: || 42 };
        let recorder = Recorder::new(writer, Redactor::default(), LIMITS, environment);
        for n in 0..STEPS {
            let step = recorder.begin("RUN yes", None);
            let all: Vec<u8> = (0..3_u32 << 19).map(|m| ((m + n) % 251) as u8).collect();
            for piece in all.chunks(40_000) {
                step.output(Stream::Stdout, piece);
            }
            let id = step.id;
            let tail = step.fail("as always");
            assert!(all.ends_with(&tail));
            if n % 11 == 0 {
                let end = kept(folder.path()).1.remove(&id).unwrap();
                assert!(end.len() >= TAIL_BYTES && all.ends_with(&end), "{n}");
            }
        }
        let last = recorder.begin("RUN true", None);
        last.output(Stream::Stdout, b"few words\n");
        last.finish();
        recorder.event(&Event::Cancelled);
        let (n_bytes, ends) = kept(folder.path());
        assert_eq!(ends.len(), STEPS as usize);
        let most = LIMITS.build_bytes + u64::from(STEPS) * TAIL_BYTES as u64;
        assert!(n_bytes <= most, "{n_bytes}");
        assert!(n_bytes >= LIMITS.build_bytes * 3 / 4, "{n_bytes}");
        let text = text_lossy(folder.path());
        assert_eq!(text.matches("more than is kept of them").count(), 1);
        assert!(text.contains("few words\n"), "what fits is there");
        assert!(recorder.take_error().is_none());
    }

    #[test]
    fn who_goes_on_with_a_journal_counts_what_was_there() {
        const LIMITS: LogLimits = LogLimits {
            step_bytes: 1 << 20,
            build_bytes: 1 << 20,
        };
        let folder = tempfile::tempdir().unwrap();
        let environment = Environment { now_ms: || 42 };
        let writer = Writer::create(folder.path()).unwrap();
        let recorder = Recorder::new(writer, Redactor::default(), LIMITS, environment);
        let first = recorder.begin("RUN yes", None);
        first.output(Stream::Stdout, &vec![b'y'; 700 << 10]);
        drop((first, recorder));
        let writer = Writer::resume(folder.path()).unwrap();
        let recorder = Recorder::new(writer, Redactor::default(), LIMITS, environment);
        let second = recorder.begin("RUN yes", None);
        assert_eq!(second.id, StepId(2));
        second.output(Stream::Stdout, &vec![b'n'; 700 << 10]);
        second.finish();
        let (n_bytes, ends) = kept(folder.path());
        assert!(n_bytes < 1 << 20, "{n_bytes}");
        assert!(!ends[&StepId(2)].is_empty());
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
