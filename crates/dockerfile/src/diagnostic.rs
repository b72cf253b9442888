//! What is wrong with a Dockerfile, where, and how it is shown.
//!
//! A [`Diagnostic`] knows byte positions only; [`render`] puts the lines of the file around them. Text that comes from the
//! file is quoted with escapes in messages, so that it cannot write control sequences to anybody's terminal.

use std::fmt;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use crate::lint::rules::Rule;

/// Columns that a rendered diagnostic is laid out for.
const WIDTH: usize = 140;
/// Lines of source that a rendered diagnostic shows at most.
const LINES_SHOWN: u32 = 4;

/// A place in the Dockerfile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// The byte after the last one.
    pub end: usize,
    /// Line of the first byte, counted from 1.
    pub line: u32,
    /// Line of the last byte, counted from 1.
    pub end_line: u32,
}

impl Span {
    /// Returns the place from the start of `self` to the end of `other`.
    #[must_use]
    pub fn to(self, other: Self) -> Self {
        Self {
            start: self.start,
            line: self.line,
            end: other.end.max(self.end),
            end_line: other.end_line.max(self.end_line),
        }
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// It cannot be built.
    Error,
    /// It can be built, but is probably not what was meant.
    Warning,
}

/// One finding about a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Where.
    pub span: Span,
    /// What is wrong; a fragment in lower case, without full stop.
    pub message: String,
    /// What is written under the caret.
    pub label: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// The rule that it breaks.
    pub rule: Option<&'static Rule>,
}

impl Diagnostic {
    /// Returns an error at `span`.
    pub fn error(span: Span, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            span,
            message: message.into(),
            label: None,
            hint: None,
            rule: None,
        }
    }

    /// Returns a warning at `span`.
    pub fn warning(span: Span, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(span, message)
        }
    }

    /// Returns a warning at `span` that `rule` is broken.
    pub fn lint(rule: &'static Rule, span: Span, message: impl Into<String>) -> Self {
        Self {
            rule: Some(rule),
            ..Self::warning(span, message)
        }
    }

    /// Returns it with words under the caret.
    #[must_use]
    pub fn with_label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Returns it with advice.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Returns it with advice, where there is any.
    #[must_use]
    pub fn with_hint_if(mut self, hint: Option<String>) -> Self {
        self.hint = hint.or(self.hint);
        self
    }

    /// Tells whether it stops the build.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.span.line > 0 {
            write!(f, "line {}: ", self.span.line)?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Diagnostic {}

/// Returns `diagnostic` with the lines it is about, a caret and its hint, without colours.
///
/// `source` is the text that was parsed; when that was not UTF-8, its lossy form does.
pub fn render(diagnostic: &Diagnostic, source: &str, file_name: &str) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let mut title = level.primary_title(diagnostic.message.as_str());
    if let Some(rule) = diagnostic.rule {
        title = title.id(rule.name);
    }
    let span = diagnostic.span;
    let mut group = if span.line == 0 {
        title.elements(std::iter::empty::<annotate_snippets::Message<'_>>())
    } else {
        let (shown, range) = excerpt(source, span);
        let annotation = AnnotationKind::Primary
            .span(range)
            .label(diagnostic.label.as_deref().unwrap_or_default());
        title.element(
            Snippet::source(shown)
                .line_start(span.line as usize)
                .path(file_name)
                .annotation(annotation),
        )
    };
    if let Some(hint) = &diagnostic.hint {
        group = group.element(Level::HELP.with_name("hint").message(hint.as_str()));
    }
    if let Some(rule) = diagnostic.rule.filter(|rule| !rule.url.is_empty()) {
        group = group.element(Level::NOTE.with_name("see").message(rule.url));
    }
    Renderer::plain().term_width(WIDTH).render(&[group])
}

/// Returns the lines of `source` that `span` is in, and the span within them.
fn excerpt(source: &str, span: Span) -> (&str, std::ops::Range<usize>) {
    let at_boundary = |mut offset: usize| {
        offset = offset.min(source.len());
        while !source.is_char_boundary(offset) {
            offset -= 1;
        }
        offset
    };
    let start = at_boundary(span.start);
    let end = at_boundary(span.end).max(start);
    let text = |range: std::ops::Range<usize>| source.get(range).unwrap_or_default();
    let first = text(0..start).rfind('\n').map_or(0, |at| at + 1);
    let mut last = first;
    for _ in 0..LINES_SHOWN {
        let rest = text(last..source.len());
        last += rest.find('\n').map_or(rest.len(), |at| at + 1);
        if last >= end {
            break;
        }
    }
    let shown = text(first..last).trim_end_matches(['\n', '\r']);
    let clamp = |offset: usize| (offset - first).min(shown.len());
    (shown, clamp(start)..clamp(end.min(last).max(start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(source: &str, part: &str) -> Span {
        let start = source.find(part).unwrap();
        let line = u32::try_from(source[..start].matches('\n').count()).unwrap() + 1;
        Span {
            start,
            end: start + part.len(),
            line,
            end_line: line,
        }
    }

    #[test]
    fn a_diagnostic_shows_line_caret_and_hint() {
        let source = "FROM a\nRUM make\n";
        let text = render(
            &Diagnostic::error(span(source, "RUM"), "unknown instruction RUM")
                .with_hint("did you mean RUN?"),
            source,
            "Dockerfile",
        );
        insta::assert_snapshot!(text, @r"
        error: unknown instruction RUM
         --> Dockerfile:2:1
          |
        2 | RUM make
          | ^^^
          |
          = hint: did you mean RUN?
        ");
    }

    #[test]
    fn spans_outside_the_text_are_clamped() {
        let far = Span {
            start: 900,
            end: 1000,
            line: 1,
            end_line: 1,
        };
        assert!(render(&Diagnostic::error(far, "x"), "é", "D").contains("error: x"));
        let inside_a_character = Span {
            start: 1,
            end: 1,
            line: 1,
            end_line: 1,
        };
        assert!(render(&Diagnostic::error(inside_a_character, "x"), "é", "D").contains("D:1:1"));
        assert!(render(&Diagnostic::error(Span::default(), "x"), "é", "D").contains("error: x"));
    }
}
