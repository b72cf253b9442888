//! Text → [`Dockerfile`]: lines, directives, comments, heredocs, and from each line a typed instruction.
//!
//! 1. the file is cut into lines; directives at its top choose the escape character;
//! 2. lines that end in the escape character are joined with the next, comments and empty lines between them dropped;
//! 3. the joined line becomes an [`Instruction`] (`instruction.rs`);
//! 4. the bodies of the heredocs that it opens are read from the following lines.
//!
//! Parsing goes on after an error, so that all of them are reported at once. Nothing is expanded here.

mod instruction;
mod source;
#[cfg(test)]
mod tests;
mod words;

use std::ops::Range;

use crate::ast::{Body, Dockerfile, Heredoc, Instruction, Word};
use crate::diagnostic::{Diagnostic, Span};
use crate::limits;
use crate::lint::rules::NO_EMPTY_CONTINUATION;

use source::{Joined, Physical, Piece, Source};
pub(crate) use words::Opener;

/// The newest minor version of the dialect whose instructions are all known here.
const SYNTAX_MINOR: u32 = 27;
/// The only dialect there is; newer minor versions of it only add to it.
const SYNTAX: [&str; 2] = ["docker/dockerfile", "docker.io/docker/dockerfile"];

/// Parses a Dockerfile and returns everything that could be read, with everything that is wrong with it.
///
/// The Dockerfile is only of use when no diagnostic [is an error](Diagnostic::is_error).
pub fn parse(text: &[u8]) -> (Dockerfile, Vec<Diagnostic>) {
    match check_text(text) {
        Ok(text) => {
            let source = Source::new(text, None);
            Parser::new(&source).run()
        }
        Err(error) => (empty(), vec![error]),
    }
}

/// Parses an ONBUILD trigger of a base; what is wrong with it is reported at `span`.
pub(crate) fn parse_trigger(text: &str, span: Span) -> Result<Instruction, Diagnostic> {
    let text = check_text(text.as_bytes()).map_err(|error| Diagnostic { span, ..error })?;
    let source = Source::new(text, Some(span));
    let (file, diagnostics) = Parser::new(&source).run();
    if let Some(error) = diagnostics.into_iter().find(Diagnostic::is_error) {
        let message = format!(
            "the base's ONBUILD trigger {text:?} is wrong: {}",
            error.message
        );
        return Err(Diagnostic { message, ..error });
    }
    match <[Instruction; 1]>::try_from(file.instructions) {
        Ok([instruction]) => Ok(instruction),
        Err(_) => Err(Diagnostic::error(
            span,
            format!("the base's ONBUILD trigger {text:?} is not one instruction"),
        )),
    }
}

fn empty() -> Dockerfile {
    Dockerfile {
        escape: '\\',
        syntax: None,
        check: None,
        instructions: Vec::new(),
    }
}

fn check_text(bytes: &[u8]) -> Result<&str, Diagnostic> {
    let at = |offset: usize| {
        let before = bytes.get(..offset).unwrap_or_default();
        let n_lines = before.split(|byte| *byte == b'\n').count();
        let line = u32::try_from(n_lines).unwrap_or(u32::MAX);
        Span {
            start: offset,
            end: offset + 1,
            line,
            end_line: line,
        }
    };
    if bytes.len() > limits::FILE_MAX_BYTES {
        return Err(Diagnostic::error(
            Span::default(),
            format!(
                "the Dockerfile is larger than {} bytes",
                limits::FILE_MAX_BYTES
            ),
        ));
    }
    if let Some(offset) = bytes.iter().position(|byte| *byte == 0) {
        return Err(Diagnostic::error(
            at(offset),
            "the Dockerfile holds a NUL byte",
        ));
    }
    std::str::from_utf8(bytes).map_err(|error| {
        Diagnostic::error(at(error.valid_up_to()), "the Dockerfile is not valid UTF-8")
    })
}

struct Parser<'a> {
    source: &'a Source<'a>,
    /// Start of the next line.
    at: usize,
    file: Dockerfile,
    seen_escape: bool,
    in_directives: bool,
    n_stages: usize,
    /// Comments since the last line that was none.
    comments: Vec<String>,
    check: Option<Word>,
    diagnostics: Vec<Diagnostic>,
}

impl<'a> Parser<'a> {
    fn new(source: &'a Source<'a>) -> Self {
        Self {
            source,
            at: if source.text.starts_with('\u{feff}') {
                3
            } else {
                0
            },
            file: empty(),
            seen_escape: false,
            in_directives: true,
            n_stages: 0,
            comments: Vec::new(),
            check: None,
            diagnostics: Vec::new(),
        }
    }

    fn run(mut self) -> (Dockerfile, Vec<Diagnostic>) {
        while let Some(line) = self.next_line() {
            if let Err(error) = self.line(line) {
                self.diagnostics.push(error);
            }
            if self.diagnostics.len() >= limits::DIAGNOSTICS_MAX {
                break;
            }
        }
        if self.file.instructions.is_empty() && self.diagnostics.is_empty() {
            let error = Diagnostic::error(Span::default(), "the Dockerfile has no instructions");
            self.diagnostics.push(error);
        }
        (self.file, self.diagnostics)
    }

    fn next_line(&mut self) -> Option<Physical> {
        let line = Physical::at(self.source.text, self.at)?;
        self.at = line.next;
        Some(line)
    }

    fn line_text(&self, line: Physical) -> &'a str {
        self.source
            .text
            .get(line.start..line.end)
            .unwrap_or_default()
    }

    /// Reads what begins with `line`: a directive, a comment, nothing, or an instruction.
    fn line(&mut self, line: Physical) -> Result<(), Diagnostic> {
        let text = self.line_text(line);
        let trimmed = text.trim_start();
        if self.in_directives {
            if let Some((key, value)) = directive(trimmed) {
                let offset = line.end - trimmed.len();
                return self.directive(&key, offset + value.start..offset + value.end);
            }
            self.in_directives = false;
        }
        if let Some(comment) = trimmed.strip_prefix('#') {
            self.comment(comment.trim(), line.end - trimmed.len()..line.end);
            return self.check_length(line);
        }
        if trimmed.is_empty() {
            return self.check_length(line);
        }
        let joined = self.join(line)?;
        let whole = Piece {
            source: self.source,
            joined: &joined,
            start: 0,
            end: joined.text.len(),
        }
        .trimmed();
        if whole.text().is_empty() {
            return Ok(());
        }
        self.instruction(whole)
    }

    /// Keeps a comment for the instruction that may follow it.
    fn comment(&mut self, text: &str, range: Range<usize>) {
        if text.is_empty() {
            // What stands above an empty comment is about something else.
            self.comments.clear();
            self.check = None;
        } else if self.comments.len() < limits::COMMENTS_MAX {
            self.comments.push(text.to_owned());
        }
        let check = text.split_once('=');
        let check = check.filter(|(key, _)| key.trim().eq_ignore_ascii_case("check"));
        if let Some((_, options)) = check {
            // Words after the options say why.
            let options = options.split_whitespace().next().unwrap_or_default();
            self.check = Some(Word {
                text: options.to_owned(),
                span: self.source.span(range),
            });
        }
    }

    fn check_length(&self, line: Physical) -> Result<(), Diagnostic> {
        if line.end - line.start <= limits::LINE_MAX_BYTES {
            return Ok(());
        }
        let start = self.source.span(line.start..line.start + 1);
        Err(Diagnostic::error(
            start,
            format!("this line is longer than {} bytes", limits::LINE_MAX_BYTES),
        ))
    }

    /// Joins `first` with the lines that continue it.
    fn join(&mut self, first: Physical) -> Result<Joined, Diagnostic> {
        let mut joined = Joined::default();
        let mut empty_line = None;
        let mut length_error = self.check_length(first).err();
        let trimmed = self.line_text(first).trim_start();
        let start = first.end - trimmed.len();
        let (end, mut goes_on) = self.continuation(start..first.end);
        joined.push(self.source, start..end);
        while goes_on {
            let Some(line) = self.next_line() else { break };
            length_error = length_error.or(self.check_length(line).err());
            let text = self.line_text(line).trim_start();
            if text.starts_with('#') {
                continue;
            }
            if text.is_empty() {
                empty_line.get_or_insert(line);
                continue;
            }
            let (end, more) = self.continuation(line.start..line.end);
            joined.push(self.source, line.start..end);
            goes_on = more;
        }
        if let Some(line) = empty_line {
            let span = self.source.span(line.start..line.start);
            let message = "empty line within an instruction";
            let warning = Diagnostic::lint(&NO_EMPTY_CONTINUATION, span, message)
                .with_hint("remove it, or make it a comment");
            self.diagnostics.push(warning);
        }
        length_error.map_or(Ok(joined), Err)
    }

    /// Returns where the text of a line ends, and whether the next line continues it: when it ends in a single escape character.
    fn continuation(&self, range: Range<usize>) -> (usize, bool) {
        let text = self.source.text.get(range.clone()).unwrap_or_default();
        let escape = self.file.escape;
        let text = text.trim_end_matches([' ', '\t']);
        match text.strip_suffix(escape) {
            Some(before) if !before.ends_with(escape) => (range.start + before.len(), true),
            _ => (range.end, false),
        }
    }

    fn instruction(&mut self, whole: Piece<'_>) -> Result<(), Diagnostic> {
        let parsed = instruction::parse(whole, self.file.escape);
        let bodies = match instruction::heredocs(whole, parsed.as_ref().ok()) {
            openers if openers.is_empty() => Vec::new(),
            openers if openers.len() > limits::HEREDOCS_MAX => {
                let message = format!(
                    "more than {} heredocs in one instruction",
                    limits::HEREDOCS_MAX
                );
                return Err(Diagnostic::error(whole.span(), message));
            }
            openers => {
                let mut bodies = Vec::new();
                for opener in openers {
                    bodies.push(self.heredoc(opener, whole.span())?);
                }
                bodies
            }
        };
        let (comments, check) = (std::mem::take(&mut self.comments), self.check.take());
        let mut parsed = parsed?;
        parsed.comments = comments;
        parsed.check = check;
        instruction::attach_heredocs(&mut parsed, bodies)?;
        if matches!(parsed.body, Body::From { .. }) {
            self.n_stages += 1;
        }
        if self.n_stages > limits::STAGES_MAX {
            self.at = self.source.text.len();
            let message = format!("more than {} stages", limits::STAGES_MAX);
            return Err(Diagnostic::error(parsed.keyword, message));
        }
        if self.file.instructions.len() >= limits::INSTRUCTIONS_MAX {
            self.at = self.source.text.len();
            let message = format!("more than {} instructions", limits::INSTRUCTIONS_MAX);
            return Err(Diagnostic::error(parsed.keyword, message));
        }
        self.file.instructions.push(parsed);
        Ok(())
    }

    /// Reads the lines of a heredoc.
    fn heredoc(&mut self, opener: Opener, opened_at: Span) -> Result<Heredoc, Diagnostic> {
        let start = self.at;
        let mut length_error = None;
        while let Some(line) = self.next_line() {
            let text = self.line_text(line);
            let text = if opener.chomp {
                text.trim_start_matches('\t')
            } else {
                text
            };
            if text == opener.name {
                let content = self.source.text.get(start..line.start).unwrap_or_default();
                return length_error.map_or_else(
                    || {
                        Ok(Heredoc {
                            name: opener.name,
                            content: content.to_owned(),
                            chomp: opener.chomp,
                            expand: opener.expand,
                            span: self.source.span(start..line.end),
                        })
                    },
                    Err,
                );
            }
            length_error = length_error.or(self.check_length(line).err());
        }
        let message = format!("the heredoc {:?} is not ended", opener.name);
        Err(Diagnostic::error(opened_at, message).with_hint(format!(
            "a line that is exactly {:?} is expected after its text",
            opener.name
        )))
    }

    fn directive(&mut self, key: &str, value: Range<usize>) -> Result<(), Diagnostic> {
        let span = self.source.span(value.clone());
        let word = Word {
            text: self.source.text.get(value).unwrap_or_default().to_owned(),
            span,
        };
        let twice = || {
            let message = format!("the directive {key:?} may be given once");
            Err(Diagnostic::error(span, message))
        };
        match key {
            "escape" => {
                if self.seen_escape {
                    return twice();
                }
                self.seen_escape = true;
                self.file.escape = match word.text.as_str() {
                    "\\" => '\\',
                    "`" => '`',
                    _ => {
                        let message = format!("invalid escape character {:?}", word.text);
                        return Err(Diagnostic::error(span, message)
                            .with_hint("it is a backslash or a backtick"));
                    }
                };
            }
            "syntax" => {
                if self.file.syntax.is_some() {
                    return twice();
                }
                let checked = check_syntax(&word);
                self.file.syntax = Some(word);
                self.diagnostics.extend(checked?);
            }
            _ => {
                if self.file.check.is_some() {
                    return twice();
                }
                self.file.check = Some(word);
            }
        }
        Ok(())
    }
}

/// Returns the key of a directive in lower case, and where its value stands in `line`.
fn directive(line: &str) -> Option<(String, Range<usize>)> {
    let body = line.strip_prefix('#')?;
    let (key, value) = body.split_once('=')?;
    let key = key.trim().to_ascii_lowercase();
    let value_start = line.len() - value.trim_start().len();
    let value_end = line.trim_end().len();
    let known = matches!(key.as_str(), "escape" | "syntax" | "check");
    (known && value_start < value_end).then_some((key, value_start..value_end))
}

/// Refuses every frontend but the standard one, which is what this crate implements; says so when a newer version of it is asked for.
pub(crate) fn check_syntax(word: &Word) -> Result<Option<Diagnostic>, Diagnostic> {
    let (name, digest) = match word.text.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (word.text.as_str(), None),
    };
    // What follows the name is meant for people, as with docker.
    let name = name.split_whitespace().next().unwrap_or_default();
    let (name, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
    let mut version = tag.split(['.', '-']);
    let major = version.next().unwrap_or_default();
    let minor = version.next().and_then(|minor| minor.parse::<u32>().ok());
    let is_known = SYNTAX.contains(&name)
        && matches!(major, "1" | "latest" | "labs" | "master" | "experimental");
    if !is_known || !digest.is_none_or(|digest| digest.starts_with("sha256:")) {
        let message = format!("the syntax {:?} is not supported", word.text);
        return Err(Diagnostic::error(word.span, message)
            .with_hint("docker/dockerfile:1 is built in; other frontends cannot be loaded"));
    }
    let is_newer = minor.is_some_and(|minor| minor > SYNTAX_MINOR);
    Ok(is_newer.then(|| {
        let message = format!("the syntax {tag} is newer than 1.{SYNTAX_MINOR}, which is built in");
        Diagnostic::warning(word.span, message)
            .with_hint("what it adds, if this file uses it, is an error where it stands")
    }))
}
