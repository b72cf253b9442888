//! Removes secrets from bytes before they are stored.
//!
//! Works on a stream whose chunks may split a secret anywhere: what could be the beginning of one is held back until the next
//! chunk tells. Secrets shorter than [`SECRET_MIN_BYTES`] are not looked for: they would take ordinary words out of the log.
//!
//! Base64 is found also where it is broken into lines of any length, as `base64` and `openssl` do, indented or not, and where such lines are
//! within JSON: it is looked for in what is left without the breaks.

use std::ops::Range;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};

/// Shortest secret that is looked for.
pub const SECRET_MIN_BYTES: usize = 6;
/// What stands in a secret's place.
pub const MASK: &[u8] = b"***";

/// A set of secrets to remove. Cheap to clone.
#[derive(Clone, Default)]
pub struct Redactor {
    /// What is looked for as it stands.
    plain: Patterns,
    /// What may be broken into lines.
    broken: Patterns,
}

#[derive(Clone, Default)]
struct Patterns {
    all: Arc<Vec<Vec<u8>>>,
    automaton: Option<Arc<AhoCorasick>>,
}

impl Patterns {
    fn new(all: impl Iterator<Item = Vec<u8>>) -> Self {
        let mut all: Vec<Vec<u8>> = all.filter(|form| form.len() >= SECRET_MIN_BYTES).collect();
        all.sort();
        all.dedup();
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&all)
            .ok();
        Self {
            automaton: automaton.filter(|_| !all.is_empty()).map(Arc::new),
            all: Arc::new(all),
        }
    }

    fn find(&self, bytes: &[u8]) -> Vec<Range<usize>> {
        let found = self.automaton.iter().flat_map(|automaton| {
            let found = automaton.find_iter(bytes);
            found.map(|found| found.range())
        });
        found.collect()
    }

    /// Returns how many of the last bytes of `bytes` may be the beginning of a pattern.
    fn undecided(&self, bytes: &[u8]) -> usize {
        let longest = self.all.iter().map(Vec::len).max().unwrap_or(0);
        let most = longest.saturating_sub(1).min(bytes.len());
        (1..=most)
            .rev()
            .find(|n| {
                let tail = bytes.get(bytes.len() - n..).unwrap_or_default();
                self.all
                    .iter()
                    .any(|pattern| pattern.len() > *n && pattern.starts_with(tail))
            })
            .unwrap_or(0)
    }
}

/// Bytes without what breaks them into lines.
struct Joined {
    bytes: Vec<u8>,
    /// Where each of them was.
    places: Vec<usize>,
}

impl Joined {
    /// Joins the lines of `bytes`; `None` when it is one.
    fn of(bytes: &[u8]) -> Option<Self> {
        bytes
            .iter()
            .find(|byte| matches!(byte, b'\n' | b'\r' | b'\\'))?;
        let mut joined = Self {
            bytes: Vec::with_capacity(bytes.len()),
            places: Vec::with_capacity(bytes.len()),
        };
        let (mut at, mut after_break) = (0, false);
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            match rest {
                [b'\n' | b'\r', ..] => after_break = true,
                [b'\\', b'n' | b'r', ..] => {
                    after_break = true;
                    at += 1;
                }
                // What follows it is not there yet.
                [b'\\'] => {}
                [b' ' | b'\t', ..] if after_break => {}
                [byte, ..] => {
                    after_break = false;
                    joined.bytes.push(*byte);
                    joined.places.push(at);
                }
                [] => break,
            }
            at += 1;
        }
        Some(joined)
    }

    /// Returns where something was that was found.
    fn place(&self, found: &Range<usize>) -> Option<Range<usize>> {
        let first = self.places.get(found.start)?;
        let last = self.places.get(found.end.checked_sub(1)?)?;
        Some(*first..last + 1)
    }
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redactor({} patterns)", self.plain.all.len())
    }
}

impl Redactor {
    /// Makes a redactor of `secrets`, each also in its JSON-escaped, percent-encoded and base64 forms.
    pub fn new(secrets: impl IntoIterator<Item = String>) -> Self {
        let secrets: Vec<String> = secrets
            .into_iter()
            .filter(|secret| secret.len() >= SECRET_MIN_BYTES)
            .collect();
        let encoded = || secrets.iter().flat_map(|secret| base64(secret));
        let plain = secrets.iter().flat_map(|secret| forms(secret));
        Self {
            plain: Patterns::new(plain.chain(encoded())),
            broken: Patterns::new(encoded()),
        }
    }

    fn is_idle(&self) -> bool {
        self.plain.automaton.is_none()
    }

    /// Returns `text` without secrets.
    pub fn text(&self, text: &str) -> String {
        String::from_utf8_lossy(&self.bytes(text.as_bytes())).into_owned()
    }

    /// Returns `bytes` without secrets.
    pub fn bytes(&self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        let mut at = 0;
        for found in self.find(bytes) {
            out.extend_from_slice(bytes.get(at..found.start).unwrap_or_default());
            out.extend_from_slice(MASK);
            at = found.end;
        }
        out.extend_from_slice(bytes.get(at..).unwrap_or_default());
        out
    }

    /// Returns where secrets are, in order; those that overlap are one.
    fn find(&self, bytes: &[u8]) -> Vec<Range<usize>> {
        let mut all = self.plain.find(bytes);
        if self.is_idle() {
            return all;
        }
        if let Some(joined) = Joined::of(bytes) {
            let found = self.broken.find(&joined.bytes);
            all.extend(found.iter().filter_map(|found| joined.place(found)));
            all.sort_by_key(|found| (found.start, found.end));
            all.dedup_by(|next, last| {
                let overlaps = next.start < last.end;
                if overlaps {
                    last.end = last.end.max(next.end);
                }
                overlaps
            });
        }
        all
    }

    /// Returns a redactor for one stream of chunks.
    pub fn stream(&self) -> StreamRedactor {
        StreamRedactor {
            redactor: self.clone(),
            held: Vec::new(),
        }
    }

    /// Returns how many of the last bytes of `bytes` may be the beginning of a secret.
    fn undecided(&self, bytes: &[u8]) -> usize {
        let plain = self.plain.undecided(bytes);
        let broken = Joined::of(bytes).and_then(|joined| {
            let n = self.broken.undecided(&joined.bytes);
            let first = joined.places.get(joined.places.len() - n)?;
            Some(bytes.len() - first)
        });
        plain.max(broken.unwrap_or(0))
    }
}

fn forms(secret: &str) -> Vec<Vec<u8>> {
    let json = serde_json::to_string(secret).unwrap_or_default();
    let json = json.trim_matches('"').to_owned();
    vec![
        secret.as_bytes().to_vec(),
        json.into_bytes(),
        percent_encoded(secret),
    ]
}

/// Returns what a secret is in base64, wherever it begins.
fn base64(secret: &str) -> Vec<Vec<u8>> {
    let mut forms = Vec::new();
    for alphabet in [STANDARD, URL_SAFE] {
        for shift in 0..3 {
            forms.push(base64_core(secret.as_bytes(), shift, alphabet));
        }
    }
    forms
}

fn percent_encoded(secret: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in secret.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(byte);
        } else {
            out.extend(format!("%{byte:02X}").into_bytes());
        }
    }
    out
}

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Returns the base64 characters that `secret` makes, whatever surrounds it, when it begins `shift` bytes into a group of three.
fn base64_core(secret: &[u8], shift: usize, alphabet: &[u8; 64]) -> Vec<u8> {
    let bits: Vec<u8> = std::iter::repeat_n(0, shift)
        .chain(secret.iter().copied())
        .flat_map(|byte| (0..8).rev().map(move |bit| (byte >> bit) & 1))
        .collect();
    let first = (shift * 8).div_ceil(6);
    let character = |group: &[u8]| {
        let index = group
            .iter()
            .fold(0_usize, |value, bit| value * 2 + usize::from(*bit));
        alphabet.get(index).copied()
    };
    bits.chunks_exact(6)
        .skip(first)
        .filter_map(character)
        .collect()
}

/// Redacts one stream, chunk by chunk.
#[derive(Debug, Clone)]
pub struct StreamRedactor {
    redactor: Redactor,
    held: Vec<u8>,
}

impl StreamRedactor {
    /// Takes the next chunk; returns what can be stored now.
    pub fn push(&mut self, chunk: &[u8]) -> Vec<u8> {
        if self.redactor.is_idle() {
            return chunk.to_vec();
        }
        self.held.extend_from_slice(chunk);
        // A secret may end right before another begins: decide on the redacted text, or a whole secret could be held in halves.
        let undecided = self.redactor.undecided(&self.held);
        let complete = self.cut_before_match_across(self.held.len() - undecided);
        let rest = self.held.split_off(complete);
        let ready = std::mem::replace(&mut self.held, rest);
        self.redactor.bytes(&ready)
    }

    /// Returns how many bytes are held back because they may be the beginning of a secret.
    pub fn held_bytes(&self) -> usize {
        self.held.len()
    }

    /// Returns what was held back, at the end of the stream.
    pub fn finish(&mut self) -> Vec<u8> {
        let held = std::mem::take(&mut self.held);
        self.redactor.bytes(&held)
    }

    /// Moves `cut` back to the beginning of a secret that lies across it.
    fn cut_before_match_across(&self, cut: usize) -> usize {
        self.redactor
            .find(&self.held)
            .into_iter()
            .find(|found| found.start < cut && cut < found.end)
            .map_or(cut, |found| found.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "hunter2-and\"more";

    #[test]
    fn a_secret_is_removed_whatever_the_chunks() {
        let redactor = Redactor::new([SECRET.to_owned(), "aaaaaab".to_owned(), "short".to_owned()]);
        let text = format!("x{SECRET}y{SECRET}{SECRET} aaaaaaaaab short aaaaaa");
        let expected = "x***y****** aaa*** short aaaaaa";
        for first in 0..=text.len() {
            for second in first..=text.len() {
                let mut stream = redactor.stream();
                let mut out = Vec::new();
                for chunk in [&text[..first], &text[first..second], &text[second..]] {
                    out.extend(stream.push(chunk.as_bytes()));
                }
                out.extend(stream.finish());
                assert_eq!(
                    String::from_utf8_lossy(&out),
                    expected,
                    "split at {first} and {second}"
                );
            }
        }
    }

    #[test]
    fn encoded_forms_are_removed_too() {
        let redactor = Redactor::new([SECRET.to_owned()]);
        // "user:hunter2-and\"more", "a:hunter2-and\"more" and "ab:hunter2…" in base64: all three alignments.
        for text in [
            "dXNlcjpodW50ZXIyLWFuZCJtb3Jl",
            "YTpodW50ZXIyLWFuZCJtb3Jl",
            "YWI6aHVudGVyMi1hbmQibW9yZQ==",
            "hunter2-and%22more",
            "hunter2-and\\\"more",
        ] {
            let out = redactor.text(text);
            assert!(out.contains("***"), "{text} became {out}");
        }
    }

    /// Base64 of "user:" and 93 bytes of a secret and "\n".
    fn wrapped(width: usize, end: &str) -> (String, String) {
        let secret: String = ('!'..='~').filter(|c| *c != '\\').collect();
        let text = format!("user:{secret}\n");
        let mut encoded = String::new();
        for group in text.as_bytes().chunks(3) {
            let bits = group
                .iter()
                .fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
            let bits = bits << (8 * (3 - group.len()));
            for n in 0..=group.len() {
                let index = (bits >> (18 - 6 * n)) & 63;
                encoded.push(char::from(STANDARD[index as usize]));
            }
            encoded.extend(std::iter::repeat_n('=', 3 - group.len()));
        }
        let lines: Vec<&str> = encoded
            .as_bytes()
            .chunks(width)
            .map(|line| std::str::from_utf8(line).unwrap())
            .collect();
        (secret, format!("it is\n{}{end}so", lines.join(end)))
    }

    #[test]
    fn base64_in_lines_of_any_length_is_removed_whatever_the_chunks() {
        for (width, end) in [
            (76, "\n"),
            (64, "\r\n"),
            (76, "\n    "),
            (76, "\\n"),
            (1, "\n"),
            (7, "\n"),
        ] {
            let (secret, text) = wrapped(width, end);
            let redactor = Redactor::new([secret]);
            let whole = redactor.text(&text);
            assert!(
                whole.len() < 40 && whole.contains("***"),
                "{width}: {whole}"
            );
            assert!(
                whole.starts_with("it is\n") && whole.ends_with("so"),
                "{whole}"
            );
            for at in 0..=text.len() {
                let (first, second) = text.as_bytes().split_at(at);
                let mut stream = redactor.stream();
                let mut out = stream.push(first);
                out.extend(stream.push(second));
                out.extend(stream.finish());
                assert_eq!(
                    String::from_utf8_lossy(&out),
                    whole,
                    "{width}, split at {at}"
                );
            }
        }
    }

    #[test]
    fn text_in_lines_stays_as_it_is_but_for_secrets() {
        let redactor = Redactor::new([SECRET.to_owned()]);
        let text = format!("one\r\n  two \\n three {SECRET}\n\n{SECRET}\\");
        assert_eq!(redactor.text(&text), "one\r\n  two \\n three ***\n\n***\\");
    }

    #[test]
    fn without_secrets_nothing_is_held_back() {
        let mut stream = Redactor::default().stream();
        assert_eq!(stream.push(b"abc"), b"abc");
        assert_eq!(stream.finish(), b"");
    }
}
