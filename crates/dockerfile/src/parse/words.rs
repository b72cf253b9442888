//! Cutting an instruction's arguments: words with quotes, flags, JSON lists, heredoc openers.

use crate::ast::{CommandLine, Flag};
use crate::diagnostic::Diagnostic;
use crate::expand::{Budget, Escapes, Lexer, NoVariables, Quotes, Unset};

use super::source::Piece;

/// Cuts at blanks outside quotes; quotes and escapes stay in the words.
pub(super) fn split_quoted(piece: Piece<'_>, escape: char) -> Vec<Piece<'_>> {
    let mut words = Vec::new();
    let mut start = None;
    let mut quote = None;
    let mut chars = piece.text().char_indices();
    while let Some((at, c)) = chars.next() {
        match (start, quote) {
            (None, _) if c.is_whitespace() => continue,
            (Some(from), None) if c.is_whitespace() => {
                words.push(piece.part(from..at));
                start = None;
                continue;
            }
            (None, _) => start = Some(at),
            _ => {}
        }
        match quote {
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(open) if open == c => quote = None,
            _ => {}
        }
        if c == escape && quote != Some('\'') {
            chars.next();
        }
    }
    if let Some(from) = start {
        words.push(piece.part(from..piece.end - piece.start));
    }
    words
}

/// Takes the `--name=value` words off the front; quotes and escapes in them vanish.
pub(super) fn take_flags(piece: Piece<'_>, escape: char) -> (Vec<Flag>, Piece<'_>) {
    let mut flags = Vec::new();
    let mut rest = piece.trimmed();
    while rest.text().starts_with("--") {
        let text = rest.text();
        let (word, length) = unquote(text, escape);
        let this = rest.part(0..length);
        let after = rest.part(length..text.len()).trimmed();
        if word == "--" {
            return (flags, after);
        }
        let word = word.strip_prefix("--").unwrap_or_default();
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word, None),
        };
        flags.push(Flag {
            name: name.to_owned(),
            value,
            span: this.span(),
        });
        rest = after;
    }
    (flags, rest)
}

/// Returns the first word without its quotes and escapes, and how many bytes it takes.
fn unquote(text: &str, escape: char) -> (String, usize) {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match quote {
            None if c.is_whitespace() => return (word, at),
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(open) if open == c => quote = None,
            _ if c == escape => word.extend(chars.next().map(|(_, c)| c)),
            _ => word.push(c),
        }
    }
    (word, text.len())
}

/// Reads `["a", "b"]`. `None` when it is not such a list, hence to be read as plain text.
pub(super) fn json_list(piece: Piece<'_>) -> Result<Option<Vec<String>>, Diagnostic> {
    let text = piece.text().trim_start();
    if !text.starts_with('[') {
        return Ok(None);
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(text) else {
        return Ok(None);
    };
    let strings = values.into_iter().map(|value| match value {
        serde_json::Value::String(text) => Some(text),
        _ => None,
    });
    strings
        .collect::<Option<Vec<String>>>()
        .map(Some)
        .ok_or_else(|| {
            Diagnostic::error(piece.span(), "a list of arguments may hold only strings")
                .with_hint("put every element in double quotes")
        })
}

/// Reads a command: a JSON list of arguments, else a text for a shell.
pub(super) fn command_line(piece: Piece<'_>) -> Result<CommandLine, Diagnostic> {
    Ok(match json_list(piece)? {
        Some(args) => CommandLine::Exec {
            args,
            span: piece.span(),
        },
        None => CommandLine::Shell(piece.word()),
    })
}

/// `<<NAME`, the start of a heredoc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Opener {
    pub(crate) name: String,
    pub(crate) chomp: bool,
    pub(crate) expand: bool,
}

impl Opener {
    /// Parses a word such as `<<EOF`, `3<<-EOF` or `<<"EOF"`; `None` when it is something else.
    pub(crate) fn parse(word: &str) -> Option<Self> {
        let rest = word
            .trim_start_matches(|c: char| c.is_ascii_digit())
            .strip_prefix("<<")?;
        let (rest, chomp) = match rest.strip_prefix('-') {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        let rest = rest.trim_start();
        if rest.is_empty() || rest.contains('<') {
            return None;
        }
        let plain = Lexer {
            unset: Unset::Keep,
            ..Lexer::new('\\')
        };
        let raw = Lexer {
            quotes: Quotes::Keep,
            escapes: Escapes::Keep,
            ..plain
        };
        let single = |lexer: Lexer| {
            let words = lexer
                .expand(rest, &NoVariables, &Budget::default())
                .ok()?
                .words;
            match <[String; 1]>::try_from(words) {
                Ok([word]) => Some(word),
                Err(_) => None,
            }
        };
        let name = single(plain)?;
        // As BuildKit has it: quotes stop expansion, an escaped name does not.
        let quotes = |text: &str| text.matches(['\'', '"']).count();
        let expand = quotes(&single(raw)?) == quotes(&name);
        Some(Self {
            name,
            chomp,
            expand,
        })
    }
}

/// Returns the heredocs that a line opens, in their order.
pub(super) fn openers(line: &str) -> Vec<Opener> {
    if !line.contains("<<") {
        return Vec::new();
    }
    let lexer = Lexer {
        escape: '\\',
        quotes: Quotes::Keep,
        escapes: Escapes::Keep,
        unset: Unset::Keep,
    };
    let words = lexer.expand(line, &NoVariables, &Budget::default());
    // A line that a shell would read otherwise (an open quote) has no heredocs.
    let words = words.map(|expanded| expanded.words).unwrap_or_default();
    let mut openers = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        // The name may stand apart, as in a shell: `<< EOF`.
        let is_bare = word.trim_start_matches(|c: char| c.is_ascii_digit()) == "<<";
        let opener = match is_bare.then(|| words.next()).flatten() {
            Some(name) => Opener::parse(&format!("{word}{name}")),
            None => Opener::parse(word),
        };
        openers.extend(opener);
    }
    openers
}
