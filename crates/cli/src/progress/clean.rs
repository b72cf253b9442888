//! Makes what a step wrote safe to show in a terminal.
//!
//! The journal keeps every byte. A terminal gets text, tabs, newlines and, if wanted, colours: no cursor movement, titles, links,
//! clipboard writes, device queries, overwriting of earlier text, or reordering of it (bidirectional overrides). What is left
//! of a sequence after its introducer is gone too, so that nothing is shown that was not meant as text.

/// Whether colours survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colours {
    /// "Select graphic rendition" sequences are kept.
    Keep,
    /// Nothing but text is kept.
    Drop,
}

const ESCAPE: char = '\u{1b}';
const RESET: &str = "\u{1b}[0m";
/// Longest colour sequence that is believed to be one.
const COLOUR_MAX_CHARS: usize = 64;

/// Returns `bytes` as safe text. Lines are kept; a line that set a colour ends with a reset.
pub(crate) fn clean(bytes: &[u8], colours: Colours) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut is_coloured = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ESCAPE => match chars.next() {
                Some('[') => {
                    if let Some(sequence) = control_sequence(&mut chars)
                        && colours == Colours::Keep
                    {
                        is_coloured = true;
                        out.push_str(&sequence);
                    }
                }
                Some(']' | 'P' | 'X' | '^' | '_') => control_string(&mut chars),
                // Sequences with intermediate bytes, such as the choice of a character set: one final character follows.
                Some(' '..='/') => {
                    chars.next();
                }
                Some(_) | None => {}
            },
            '\u{9b}' => drop(control_sequence(&mut chars)),
            '\u{90}' | '\u{98}' | '\u{9d}' | '\u{9e}' | '\u{9f}' => control_string(&mut chars),
            '\n' => {
                if std::mem::take(&mut is_coloured) {
                    out.push_str(RESET);
                }
                out.push('\n');
            }
            '\t' => out.push('\t'),
            // A lone one would let a line overwrite itself.
            '\r' if chars.peek() != Some(&'\n') => out.push(' '),
            c if c.is_control() || is_reordering(c) => {}
            c => out.push(c),
        }
    }
    if is_coloured {
        out.push_str(RESET);
    }
    out
}

fn is_reordering(c: char) -> bool {
    matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

/// Reads the rest of a control sequence and returns the whole if it only sets colours.
fn control_sequence(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<String> {
    let mut parameters = String::new();
    while let Some(c) = chars.next_if(|c| ('\u{20}'..='\u{3f}').contains(c)) {
        if parameters.len() < COLOUR_MAX_CHARS {
            parameters.push(c);
        }
    }
    let last = chars.next_if(|c| ('\u{40}'..='\u{7e}').contains(c))?;
    let is_colour = last == 'm'
        && parameters.len() < COLOUR_MAX_CHARS
        && parameters
            .chars()
            .all(|c| c.is_ascii_digit() || c == ';' || c == ':');
    is_colour.then(|| format!("{ESCAPE}[{parameters}m"))
}

/// Skips a string that only the terminal itself would read: up to its terminator, or the end of the line.
fn control_string(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    while let Some(c) = chars.next_if(|c| *c != '\n') {
        match c {
            '\u{7}' | '\u{9c}' => return,
            ESCAPE => {
                chars.next_if_eq(&'\\');
                return;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_text_and_colours_reaches_the_terminal() {
        for (bytes, shown) in [
            (&b"plain\ttext\n"[..], "plain\ttext\n"),
            (b"\x1b[1;31mred\x1b[0m\n", "\x1b[1;31mred\x1b[0m\x1b[0m\n"),
            (b"\x1b[31mred", "\x1b[31mred\x1b[0m"),
            (b"a\x1b[2Jb\x1b[10;10Hc\x1b[?25ld", "abcd"),
            (b"a\x1b]0;title\x07b\x1b]52;c;eA==\x1b\\c", "abc"),
            (b"a\x1bP$qm\x1b\\b\x1b_x\x1b\\c", "abc"),
            (b"a\x1b]8;;http://x\x07link\x1b]8;;\x07", "alink"),
            (b"50%\r100%\r\n", "50% 100%\n"),
            (b"bell\x07\x08\x00\x7f", "bell"),
            (b"\xc2\x9b2Jx\xc2\x9d0;t\xc2\x9cy", "xy"),
            (b"\x9b2J", "\u{fffd}2J"),
            ("a\u{202e}b\u{2066}c".as_bytes(), "abc"),
            (b"\x1b(Bx\x1b", "x"),
            (b"\x1b]never ends\nnext", "\nnext"),
        ] {
            assert_eq!(clean(bytes, Colours::Keep), shown, "{bytes:?}");
        }
        assert_eq!(clean(b"\x1b[1;31mred\x1b[0m", Colours::Drop), "red");
    }
}
