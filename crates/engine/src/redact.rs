//! Removes secrets from bytes before they are stored.
//!
//! Works on a stream whose chunks may split a secret anywhere: what could be the beginning of one is held back until the next
//! chunk tells. Secrets shorter than [`SECRET_MIN_BYTES`] are not looked for: they would take ordinary words out of the log.

use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};

/// Shortest secret that is looked for.
pub const SECRET_MIN_BYTES: usize = 6;
/// What stands in a secret's place.
pub const MASK: &[u8] = b"***";

/// A set of secrets to remove. Cheap to clone.
#[derive(Clone, Default)]
pub struct Redactor {
    patterns: Arc<Vec<Vec<u8>>>,
    automaton: Option<Arc<AhoCorasick>>,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redactor({} patterns)", self.patterns.len())
    }
}

impl Redactor {
    /// Makes a redactor of `secrets`, each also in its JSON-escaped, percent-encoded and base64 forms.
    pub fn new(secrets: impl IntoIterator<Item = String>) -> Self {
        let mut patterns: Vec<Vec<u8>> = secrets
            .into_iter()
            .filter(|secret| secret.len() >= SECRET_MIN_BYTES)
            .flat_map(|secret| forms(&secret))
            .filter(|form| form.len() >= SECRET_MIN_BYTES)
            .collect();
        patterns.sort();
        patterns.dedup();
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&patterns)
            .ok();
        Self {
            automaton: automaton.filter(|_| !patterns.is_empty()).map(Arc::new),
            patterns: Arc::new(patterns),
        }
    }

    /// Returns `text` without secrets.
    pub fn text(&self, text: &str) -> String {
        String::from_utf8_lossy(&self.bytes(text.as_bytes())).into_owned()
    }

    /// Returns `bytes` without secrets.
    pub fn bytes(&self, bytes: &[u8]) -> Vec<u8> {
        match &self.automaton {
            Some(automaton) => automaton.replace_all_bytes(bytes, &vec![MASK; self.patterns.len()]),
            None => bytes.to_vec(),
        }
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
        let longest = self.patterns.iter().map(Vec::len).max().unwrap_or(0);
        let most = longest.saturating_sub(1).min(bytes.len());
        (1..=most)
            .rev()
            .find(|n| {
                let tail = bytes.get(bytes.len() - n..).unwrap_or_default();
                self.patterns
                    .iter()
                    .any(|pattern| pattern.len() > *n && pattern.starts_with(tail))
            })
            .unwrap_or(0)
    }
}

fn forms(secret: &str) -> Vec<Vec<u8>> {
    let json = serde_json::to_string(secret).unwrap_or_default();
    let json = json.trim_matches('"').to_owned();
    let mut forms = vec![
        secret.as_bytes().to_vec(),
        json.into_bytes(),
        percent_encoded(secret),
    ];
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
        if self.redactor.automaton.is_none() {
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
        let Some(automaton) = &self.redactor.automaton else {
            return cut;
        };
        automaton
            .find_iter(&self.held)
            .find(|found| found.start() < cut && cut < found.end())
            .map_or(cut, |found| found.start())
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

    #[test]
    fn without_secrets_nothing_is_held_back() {
        let mut stream = Redactor::default().stream();
        assert_eq!(stream.push(b"abc"), b"abc");
        assert_eq!(stream.finish(), b"");
    }
}
