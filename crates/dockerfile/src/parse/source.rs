//! The text being parsed, and the way back from a joined line to its places in the text.

use std::ops::Range;

use crate::ast::Word;
use crate::diagnostic::Span;

/// The text of a Dockerfile.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    pub(crate) text: &'a str,
    line_starts: Vec<usize>,
    /// Set for text that does not stand in the Dockerfile (a base's trigger): everything is then reported here.
    stand_in: Option<Span>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(text: &'a str, stand_in: Option<Span>) -> Self {
        let ends = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            text,
            line_starts: std::iter::once(0).chain(ends).collect(),
            stand_in,
        }
    }

    pub(crate) fn span(&self, range: Range<usize>) -> Span {
        if let Some(span) = self.stand_in {
            return span;
        }
        let line = |offset: usize| {
            let n_before = self.line_starts.partition_point(|start| *start <= offset);
            u32::try_from(n_before).unwrap_or(u32::MAX)
        };
        Span {
            start: range.start,
            end: range.end,
            line: line(range.start),
            end_line: line(range.end.saturating_sub(1).max(range.start)),
        }
    }
}

/// A line as it stands in the file: where it starts, where its text ends, where the next one starts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Physical {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) next: usize,
}

impl Physical {
    /// Returns the line that starts at `start`, `None` at the end of the text.
    pub(crate) fn at(text: &str, start: usize) -> Option<Self> {
        let rest = text.get(start..).filter(|rest| !rest.is_empty())?;
        let next = start + rest.find('\n').map_or(rest.len(), |at| at + 1);
        let line = text.get(start..next)?;
        let end = start + line.trim_end_matches(['\n', '\r']).len();
        Some(Self { start, end, next })
    }
}

/// Continuation lines joined to one, with the way back.
#[derive(Debug, Default)]
pub(crate) struct Joined {
    pub(crate) text: String,
    /// (offset in `text`, offset in the source), ascending.
    pieces: Vec<(usize, usize)>,
}

impl Joined {
    /// Appends `source[range]`.
    pub(crate) fn push(&mut self, source: &Source<'_>, range: Range<usize>) {
        self.pieces.push((self.text.len(), range.start));
        self.text
            .push_str(source.text.get(range).unwrap_or_default());
    }

    fn to_source(&self, offset: usize) -> usize {
        let after = self.pieces.partition_point(|(at, _)| *at <= offset);
        let piece = after
            .checked_sub(1)
            .and_then(|index| self.pieces.get(index));
        piece.map_or(0, |(at, source)| source + (offset - at))
    }

    /// Returns where `text[range]` stands in the source.
    pub(crate) fn source_range(&self, range: Range<usize>) -> Range<usize> {
        let start = self.to_source(range.start);
        let end = match range.end.checked_sub(1) {
            Some(last) if range.end > range.start => self.to_source(last) + 1,
            _ => start,
        };
        start..end.max(start)
    }
}

/// A part of a joined line; everything that parses an instruction works on one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece<'a> {
    pub(crate) source: &'a Source<'a>,
    pub(crate) joined: &'a Joined,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl<'a> Piece<'a> {
    pub(crate) fn text(&self) -> &'a str {
        self.joined
            .text
            .get(self.start..self.end)
            .unwrap_or_default()
    }

    /// Returns the part `range` of it, counted from its start.
    pub(crate) fn part(&self, range: Range<usize>) -> Self {
        let end = self.end.min(self.start + range.end);
        Self {
            start: end.min(self.start + range.start),
            end,
            ..*self
        }
    }

    pub(crate) fn trimmed(&self) -> Self {
        let text = self.text();
        let start = text.len() - text.trim_start().len();
        self.part(start..text.trim_end().len().max(start))
    }

    pub(crate) fn span(&self) -> Span {
        self.source
            .span(self.joined.source_range(self.start..self.end))
    }

    pub(crate) fn word(&self) -> Word {
        Word {
            text: self.text().to_owned(),
            span: self.span(),
        }
    }

    /// Splits at the first run of blanks.
    pub(crate) fn split_first(&self) -> (Self, Self) {
        let text = self.text();
        let end = text.find(is_blank).unwrap_or(text.len());
        let rest = text.get(end..).unwrap_or_default();
        let next = end + rest.find(|c| !is_blank(c)).unwrap_or(rest.len());
        (self.part(0..end), self.part(next..text.len()))
    }

    /// Splits at runs of blanks, without regard for quotes.
    pub(crate) fn split_blanks(&self) -> Vec<Self> {
        let mut parts = Vec::new();
        let mut rest = self.trimmed();
        while rest.start < rest.end {
            let (first, after) = rest.split_first();
            parts.push(first);
            rest = after;
        }
        parts
    }
}

/// The blanks that separate words; a no-break space is not among them.
pub(crate) fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\x0b' | '\x0c' | '\r')
}
