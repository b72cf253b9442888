//! Rust text without what is not code.

/// Returns `text` with the content of comments, strings and characters turned into blanks; lines stay where they are.
pub(super) fn strip(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut before = ' ';
    while let Some(first) = rest.chars().next() {
        let skipped = if before.is_alphanumeric() || before == '_' {
            None
        } else {
            raw_string(rest)
        };
        let length = skipped
            .or_else(|| comment(rest))
            .or_else(|| quoted(rest))
            .or_else(|| character(rest));
        let (piece, tail) = rest.split_at(length.unwrap_or(first.len_utf8()));
        if length.is_some() {
            out.extend(piece.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            before = ' ';
        } else {
            out.push(first);
            before = first;
        }
        rest = tail;
    }
    out
}

/// Returns the length of the comment that `text` begins with.
fn comment(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    let mut depth = 0_usize;
    let mut at = 0;
    text.starts_with("/*").then(|| {
        while let Some(rest) = text.get(at..) {
            if rest.starts_with("/*") {
                depth += 1;
                at += 2;
            } else if rest.starts_with("*/") {
                depth -= 1;
                at += 2;
            } else {
                at += rest.chars().next().map_or(1, char::len_utf8);
            }
            if depth == 0 {
                break;
            }
        }
        at.min(text.len())
    })
}

/// Returns the length of the raw string that `text` begins with.
fn raw_string(text: &str) -> Option<usize> {
    let prefix = ["r", "br", "cr"].into_iter().find(|prefix| {
        text.strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with(['"', '#']))
    })?;
    let rest = text.get(prefix.len()..)?;
    let n_hashes = rest.len() - rest.trim_start_matches('#').len();
    let body = rest.get(n_hashes..)?.strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(n_hashes));
    let end = body
        .find(&close)
        .map_or(body.len(), |end| end + close.len());
    Some(prefix.len() + n_hashes + 1 + end)
}

/// Returns the length of the string that `text` begins with.
fn quoted(text: &str) -> Option<usize> {
    let body = text.strip_prefix('"')?;
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(at + 2),
            _ => {}
        }
    }
    Some(text.len())
}

/// Returns the length of the character that `text` begins with; a lifetime is none.
fn character(text: &str) -> Option<usize> {
    let body = text.strip_prefix('\'')?;
    let mut chars = body.char_indices();
    let (_, first) = chars.next()?;
    if first == '\\' {
        chars.next();
        return body.get(2..)?.find('\'').map(|end| end + 4);
    }
    let (at, second) = chars.next()?;
    (second == '\'').then_some(at + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_strings_and_characters_become_blanks() {
        for (text, expected) in [
            ("a // b\nc", "a     \nc"),
            ("a /* b /* c */ */ d", "a                 d"),
            (r#"x("a\"b", 'c', '\'', y)"#, "x(      ,    ,     , y)"),
            ("r#\"a\"b\"# c", "         c"),
            ("fn f<'a>(x: &'a str)", "fn f<'a>(x: &'a str)"),
            ("bar\"x\"", "bar   "),
            ("'\\u{1b}' x", "         x"),
        ] {
            assert_eq!(strip(text).trim_end(), expected.trim_end(), "{text:?}");
        }
    }

    #[test]
    fn unfinished_text_does_not_run_over_the_end() {
        for text in ["\"a", "r#\"a", "/* a", "'", "'\\", "'a", "//", "\"\\"] {
            assert_eq!(
                strip(text).chars().count(),
                text.chars().count(),
                "{text:?}"
            );
        }
    }
}
