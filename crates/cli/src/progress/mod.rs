//! Shows a build while it runs: reads its journal, tells the user, and returns where the build ended.
//!
//! Everything shown is made of the journal and goes to standard error; standard output is left to data.

pub(crate) mod clean;
mod rawjson;
mod view;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::journal::{Body, Record};
use engine::render::Renderer;
use engine::state::BuildState;
use futures_util::{Stream, StreamExt};

use self::clean::{Colours, clean};
use self::view::{Size, View};
use crate::args::Progress;
use crate::failure::{Exit, OrExit, Outcome};
use crate::terminal;

/// How often the picture is drawn again while nothing happens.
const REDRAW_INTERVAL: Duration = Duration::from_millis(100);

/// How a build is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Text, as it is.
    Plain,
    /// Text, made safe for a terminal.
    PlainTerminal(Colours),
    /// The picture.
    Tty(Colours),
    /// The journal as JSON.
    Rawjson,
    /// Nothing.
    Quiet,
}

impl Style {
    /// Decides how to show a build, given what was asked and what there is.
    pub(crate) fn choose(progress: Progress) -> Self {
        let colours = if terminal::is_coloured() {
            Colours::Keep
        } else {
            Colours::Drop
        };
        match (progress, terminal::is_interactive()) {
            (Progress::Rawjson, _) => Self::Rawjson,
            (Progress::Plain, true) => Self::PlainTerminal(colours),
            (Progress::Auto | Progress::Tty, true) => Self::Tty(colours),
            (Progress::Auto | Progress::Plain | Progress::Tty, false) => Self::Plain,
        }
    }

    /// Tells whether the text of a failure has been shown by the time a build has ended.
    pub(crate) fn shows_failures(self) -> bool {
        matches!(self, Self::Plain | Self::PlainTerminal(_))
    }

    /// Returns log text as this style shows it.
    pub(crate) fn text(self, text: Vec<u8>) -> Vec<u8> {
        match self {
            Self::Plain | Self::Rawjson => text,
            Self::PlainTerminal(colours) | Self::Tty(colours) => clean(&text, colours).into_bytes(),
            Self::Quiet => Vec::new(),
        }
    }
}

/// Shows `records` until the build ends, and returns its state then.
pub(crate) async fn show(
    style: Style,
    records: impl Stream<Item = Outcome<Record>>,
) -> Outcome<BuildState> {
    match style {
        Style::Tty(colours) => show_picture(colours, records).await,
        Style::Plain | Style::PlainTerminal(_) | Style::Rawjson | Style::Quiet => {
            show_lines(style, records).await
        }
    }
}

async fn show_lines(
    style: Style,
    records: impl Stream<Item = Outcome<Record>>,
) -> Outcome<BuildState> {
    let mut records = std::pin::pin!(records);
    let mut renderer = Renderer::default();
    let mut state = BuildState::default();
    while let Some(record) = records.next().await {
        let record = record?;
        if style == Style::Rawjson {
            terminal::say_bytes(rawjson::line(&record).as_bytes());
        } else {
            let mut text = Vec::new();
            renderer.render(&record, &mut text);
            terminal::say_bytes(&style.text(text));
        }
        state = fold(state, &record)?;
    }
    Ok(state)
}

async fn show_picture(
    colours: Colours,
    records: impl Stream<Item = Outcome<Record>>,
) -> Outcome<BuildState> {
    let mut records = std::pin::pin!(records);
    let mut view = View::new(colours);
    let mut state = BuildState::default();
    let mut picture = Picture::default();
    let mut redraw = tokio::time::interval(REDRAW_INTERVAL);
    loop {
        tokio::select! {
            record = records.next() => match record {
                Some(record) => {
                    let record = record?;
                    view.record(&record);
                    state = fold(state, &record)?;
                }
                None => break,
            },
            _ = redraw.tick() => picture.draw(&mut view),
        }
    }
    picture.finish(&mut view);
    Ok(state)
}

fn fold(state: BuildState, record: &Record) -> Outcome<BuildState> {
    match &record.body {
        Body::Event(event) => state.next(event).or_exit(Exit::Internal),
        Body::Output { .. } => Ok(state),
    }
}

/// What is on the screen below the finished lines.
#[derive(Debug, Default)]
struct Picture {
    n_lines: usize,
}

impl Picture {
    fn draw(&mut self, view: &mut View) {
        let size = size();
        let mut out = self.erased();
        let frame = view.frame(now_ms(), size);
        self.n_lines = frame.len();
        for line in view.take_printed(size).into_iter().chain(frame) {
            out.push_str(&line);
            out.push('\n');
        }
        terminal::say_bytes(out.as_bytes());
    }

    fn finish(&mut self, view: &mut View) {
        let mut out = self.erased();
        for line in view.take_printed(size()) {
            out.push_str(&line);
            out.push('\n');
        }
        self.n_lines = 0;
        terminal::say_bytes(out.as_bytes());
    }

    /// Goes up to where the picture begins and clears what is below.
    fn erased(&self) -> String {
        match self.n_lines {
            0 => String::new(),
            n => format!("\u{1b}[{n}A\r\u{1b}[J"),
        }
    }
}

fn size() -> Size {
    let (rows, columns) = console::Term::stderr().size();
    Size {
        columns: columns.into(),
        rows: rows.into(),
    }
}

/// Returns the time as the journal has it.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
