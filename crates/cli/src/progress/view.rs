//! What a terminal shows of a build: finished steps scroll by in one line each, running ones stand below with their times and
//! their last lines. Pure: records and the time go in, lines come out.

use std::collections::{BTreeMap, VecDeque};

use console::{measure_text_width, truncate_str};
use engine::event::{Event, StepId};
use engine::journal::{Body, Record};
use engine::render::{begun_again, waiting};

use super::clean::{Colours, clean};

/// Lines of output that are shown under a running step.
const TAIL_LINES: usize = 4;
/// Longest line of output that is remembered.
const LINE_MAX_BYTES: usize = 4096;

/// The state of the picture.
#[derive(Debug)]
pub(crate) struct View {
    colours: Colours,
    started_ms: Option<u64>,
    n_done: usize,
    running: BTreeMap<StepId, Running>,
    printed: Vec<Line>,
}

/// How wide and high the terminal is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) columns: usize,
    pub(crate) rows: usize,
}

#[derive(Debug)]
struct Running {
    name: String,
    started_ms: u64,
    tail: VecDeque<String>,
    partial: Vec<u8>,
}

#[derive(Debug)]
struct Line {
    left: String,
    right: String,
    paint: Paint,
}

#[derive(Debug, Clone, Copy)]
enum Paint {
    Plain,
    Good,
    Bad,
    Warning,
    Dim,
}

impl View {
    /// Makes an empty picture.
    pub(crate) fn new(colours: Colours) -> Self {
        Self {
            colours,
            started_ms: None,
            n_done: 0,
            running: BTreeMap::new(),
            printed: Vec::new(),
        }
    }

    /// Takes note of a record.
    pub(crate) fn record(&mut self, record: &Record) {
        self.started_ms.get_or_insert(record.at_ms);
        match &record.body {
            Body::Event(event) => self.event(record.at_ms, event),
            Body::Output { step, bytes, .. } => {
                let colours = self.colours;
                if let Some(running) = self.running.get_mut(step) {
                    running.output(bytes, colours);
                }
            }
        }
    }

    fn event(&mut self, at_ms: u64, event: &Event) {
        match event {
            Event::StepStarted { step, name, .. } => {
                self.running.insert(*step, Running::new(name, at_ms));
            }
            Event::StepCached { name, .. } => {
                self.n_done += 1;
                self.print(format!(" = {}", one_line(name)), "cached", Paint::Dim);
            }
            Event::StepFinished { step, duration_ms } => {
                self.n_done += 1;
                if let Some(running) = self.running.remove(step) {
                    let time = seconds(*duration_ms);
                    self.print(format!(" + {}", running.name), &time, Paint::Good);
                }
            }
            Event::StepFailed { step, error } => {
                if let Some(running) = self.running.remove(step) {
                    let time = seconds(at_ms.saturating_sub(running.started_ms));
                    self.print(format!(" ! {}", running.name), &time, Paint::Bad);
                }
                self.print(format!("   {}", one_line(error)), "", Paint::Bad);
            }
            Event::Warning { text } => {
                for line in clean(text.as_bytes(), Colours::Drop).lines() {
                    self.print(format!(" warning: {line}"), "", Paint::Warning);
                }
            }
            Event::Published { reference, digest } => {
                self.print(
                    format!(" + published {reference} as {digest}"),
                    "",
                    Paint::Good,
                );
            }
            Event::Queued { ahead } => {
                self.print(format!(" {}", waiting(*ahead)), "", Paint::Dim);
            }
            Event::BegunAgain { attempt, reason } => {
                self.running.clear();
                let text = begun_again(*attempt, reason);
                self.print(format!(" warning: {text}"), "", Paint::Warning);
            }
            Event::Phase { .. }
            | Event::ContextReady { .. }
            | Event::BaseResolved { .. }
            | Event::LayerWritten { .. }
            | Event::OutputCut { .. }
            | Event::OutputResumed { .. }
            | Event::Succeeded { .. }
            | Event::Failed { .. }
            | Event::Cancelled => {}
        }
    }

    fn print(&mut self, left: String, right: &str, paint: Paint) {
        self.printed.push(Line {
            left,
            right: right.to_owned(),
            paint,
        });
    }

    /// Returns the lines that will not change any more, once.
    pub(crate) fn take_printed(&mut self, size: Size) -> Vec<String> {
        let lines = std::mem::take(&mut self.printed);
        lines
            .iter()
            .map(|line| self.draw(line, size.columns))
            .collect()
    }

    /// Returns the lines that are drawn again and again: no more than the terminal has.
    pub(crate) fn frame(&self, now_ms: u64, size: Size) -> Vec<String> {
        let since = |start: u64| seconds(now_ms.saturating_sub(start));
        let head = Line {
            left: format!(
                "building, {} done, {} running",
                self.n_done,
                self.running.len()
            ),
            right: self.started_ms.map(since).unwrap_or_default(),
            paint: Paint::Plain,
        };
        let mut lines = vec![self.draw(&head, size.columns)];
        let room = size.rows.saturating_sub(2);
        let n_tail = tail_lines(room.saturating_sub(1), self.running.len());
        for running in self.running.values() {
            let line = Line {
                left: format!(" > {}", running.name),
                right: since(running.started_ms),
                paint: Paint::Plain,
            };
            lines.push(self.draw(&line, size.columns));
            let skipped = running.tail.len().saturating_sub(n_tail);
            for text in running.tail.iter().skip(skipped) {
                let line = Line {
                    left: format!("     {text}"),
                    right: String::new(),
                    paint: Paint::Dim,
                };
                lines.push(self.draw(&line, size.columns));
            }
        }
        lines.truncate(room.max(1));
        lines
    }

    fn draw(&self, line: &Line, columns: usize) -> String {
        // One column less than there is: a full line would wrap in some terminals, and the picture would climb.
        let columns = columns.saturating_sub(1).max(20);
        let right_width = measure_text_width(&line.right);
        let left = truncate_str(&line.left, columns.saturating_sub(right_width + 1), "…");
        let gap = columns
            .saturating_sub(measure_text_width(&left) + right_width)
            .max(1);
        let text = if line.right.is_empty() {
            left.into_owned()
        } else {
            format!("{left}{:gap$}{}", "", line.right)
        };
        match (self.colours, line.paint) {
            (Colours::Drop, _) | (_, Paint::Plain) => text,
            (_, Paint::Good) => format!("\u{1b}[32m{text}\u{1b}[0m"),
            (_, Paint::Bad) => format!("\u{1b}[31m{text}\u{1b}[0m"),
            (_, Paint::Warning) => format!("\u{1b}[33m{text}\u{1b}[0m"),
            (_, Paint::Dim) => format!("\u{1b}[2m{text}\u{1b}[0m"),
        }
    }
}

impl Running {
    fn new(name: &str, started_ms: u64) -> Self {
        Self {
            name: one_line(name),
            started_ms,
            tail: VecDeque::new(),
            partial: Vec::new(),
        }
    }

    fn output(&mut self, bytes: &[u8], colours: Colours) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_MAX_BYTES.saturating_sub(self.partial.len());
            self.partial
                .extend_from_slice(piece.get(..room).unwrap_or(piece));
            if piece.ends_with(b"\n") {
                let line = clean(&self.partial, colours);
                self.partial.clear();
                self.tail.push_back(line.trim_end().replace('\t', "    "));
                if self.tail.len() > TAIL_LINES {
                    self.tail.pop_front();
                }
            }
        }
    }
}

/// Shares what the terminal has left among the running steps.
fn tail_lines(room: usize, n_running: usize) -> usize {
    let left = room.saturating_sub(n_running);
    left.checked_div(n_running).unwrap_or(0).min(TAIL_LINES)
}

/// Returns the first line of a text of ours or of the Dockerfile's author.
fn one_line(text: &str) -> String {
    let text = clean(text.as_bytes(), Colours::Drop);
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default().to_owned();
    match lines.next() {
        Some(_) => format!("{first} …"),
        None => first,
    }
}

fn seconds(ms: u64) -> String {
    match ms {
        0..60_000 => format!("{}.{}s", ms / 1000, ms % 1000 / 100),
        60_000..3_600_000 => format!("{}m{:02}s", ms / 60_000, ms % 60_000 / 1000),
        _ => format!("{}h{:02}m", ms / 3_600_000, ms % 3_600_000 / 60_000),
    }
}

#[cfg(test)]
mod tests {
    use engine::event::Stream;

    use super::*;

    const SIZE: Size = Size {
        columns: 41,
        rows: 24,
    };

    fn event(at_ms: u64, event: Event) -> Record {
        let body = Body::Event(event);
        Record { at_ms, body }
    }

    fn started(at_ms: u64, step: u32, name: &str) -> Record {
        let (step, name, reason) = (StepId(step), name.to_owned(), None);
        event(at_ms, Event::StepStarted { step, name, reason })
    }

    fn output(at_ms: u64, step: u32, text: &str) -> Record {
        let body = Body::Output {
            step: StepId(step),
            stream: Stream::Stdout,
            bytes: text.as_bytes().to_vec(),
        };
        Record { at_ms, body }
    }

    #[test]
    fn running_steps_stand_below_finished_ones() {
        let mut view = View::new(Colours::Drop);
        view.record(&started(0, 1, "[a 1/2] RUN one"));
        view.record(&started(0, 2, "[b 1/1] RUN two"));
        view.record(&output(500, 2, "hello\x1b[2J\nwor"));
        let (step, duration_ms) = (StepId(1), 1234);
        view.record(&event(1234, Event::StepFinished { step, duration_ms }));
        assert_eq!(
            view.take_printed(SIZE),
            [" + [a 1/2] RUN one                  1.2s"]
        );
        assert!(view.take_printed(SIZE).is_empty());
        assert_eq!(
            view.frame(61_500, SIZE),
            [
                "building, 1 done, 1 running        1m01s",
                " > [b 1/1] RUN two                 1m01s",
                "     hello",
            ]
        );
    }

    #[test]
    fn the_picture_never_outgrows_the_terminal() {
        let mut view = View::new(Colours::Drop);
        for step in 0..50 {
            view.record(&started(0, step, &"x".repeat(300)));
            view.record(&output(0, step, "a\nb\nc\nd\ne\nf\n"));
        }
        let frame = view.frame(0, SIZE);
        assert!(frame.len() < SIZE.rows);
        assert!(
            frame
                .iter()
                .all(|line| measure_text_width(line) < SIZE.columns)
        );
    }
}
