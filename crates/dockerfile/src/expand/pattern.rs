//! The patterns of `${x#p}`, `${x%p}` and `${x/p/r}`: literal characters, `?` and `*`, neither of which matches a line end.
//!
//! Matching simulates all possibilities at once, so that no pattern can make it exponential; what it costs is taken from the
//! [`Budget`].

use super::{Budget, ExpandError};
use crate::limits::VALUE_MAX_BYTES;

/// How much a pattern with `*` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// As little as possible.
    Shortest,
    /// As much as possible.
    Longest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Literal(char),
    One,
    Many,
}

/// A parsed pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    tokens: Vec<Token>,
}

impl Pattern {
    /// Parses a pattern; a backslash makes `*`, `?`, a backslash, `}` or `/` literal.
    pub(super) fn parse(text: &str) -> Result<Self, ExpandError> {
        let mut tokens = Vec::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '*' if tokens.last() == Some(&Token::Many) => {}
                '*' => tokens.push(Token::Many),
                '?' => tokens.push(Token::One),
                '\\' => match chars.next() {
                    Some(c @ ('}' | '/' | '*' | '?' | '\\')) => tokens.push(Token::Literal(c)),
                    other => {
                        let other = other.map(String::from).unwrap_or_default();
                        return Err(ExpandError::PatternEscape(format!("\\{other}")));
                    }
                },
                c => tokens.push(Token::Literal(c)),
            }
        }
        Ok(Self { tokens })
    }

    /// Returns `value` without the prefix that matches, or all of it.
    pub(super) fn without_prefix<'v>(
        &self,
        value: &'v str,
        reach: Reach,
        budget: &Budget,
    ) -> Result<&'v str, ExpandError> {
        let end = match_length(&self.tokens, value.chars(), reach, budget)?;
        Ok(value.get(end.unwrap_or(0)..).unwrap_or_default())
    }

    /// Returns `value` without the suffix that matches, or all of it.
    pub(super) fn without_suffix<'v>(
        &self,
        value: &'v str,
        reach: Reach,
        budget: &Budget,
    ) -> Result<&'v str, ExpandError> {
        let mut reversed = self.tokens.clone();
        reversed.reverse();
        let length = match_length(&reversed, value.chars().rev(), reach, budget)?;
        let keep = value.len() - length.unwrap_or(0);
        Ok(value.get(..keep).unwrap_or_default())
    }

    /// Returns `value` with the first `count` matches replaced, each as long as possible.
    pub(super) fn replace(
        &self,
        value: &str,
        replacement: &str,
        count: usize,
        budget: &Budget,
    ) -> Result<String, ExpandError> {
        let mut output = String::new();
        let mut rest = value;
        let mut left = count;
        let mut after_match = false;
        loop {
            let length = if left == 0 {
                None
            } else {
                match_length(&self.tokens, rest.chars(), Reach::Longest, budget)?
            };
            // An empty match directly after a match is none: "abc" with * replaced is one replacement, not two.
            let length = length.filter(|length| *length > 0 || !after_match);
            if let Some(length) = length {
                left -= 1;
                output.push_str(replacement);
                rest = rest.get(length..).unwrap_or_default();
            }
            after_match = length.is_some_and(|length| length > 0);
            if !after_match {
                let mut chars = rest.chars();
                match chars.next() {
                    Some(c) => output.push(c),
                    None => return Ok(output),
                }
                rest = chars.as_str();
            }
            if output.len() > VALUE_MAX_BYTES {
                return Err(ExpandError::TooLong);
            }
        }
    }
}

/// Returns how many bytes at the start of `chars` match, if any do.
fn match_length(
    tokens: &[Token],
    chars: impl Iterator<Item = char>,
    reach: Reach,
    budget: &Budget,
) -> Result<Option<usize>, ExpandError> {
    // states[i]: the first i tokens match what was read so far.
    let mut states = vec![false; tokens.len() + 1];
    let mut next = states.clone();
    enter(&mut states, tokens, 0);
    let is_final = |states: &[bool]| states.last().copied().unwrap_or(false);
    let mut best = is_final(&states).then_some(0);
    let mut length = 0;
    for c in chars {
        if reach == Reach::Shortest && best.is_some() {
            break;
        }
        budget.take_pattern_steps(states.len())?;
        next.fill(false);
        for (index, token) in tokens.iter().enumerate() {
            if !states.get(index).copied().unwrap_or(false) {
                continue;
            }
            match token {
                Token::Literal(literal) if *literal == c => enter(&mut next, tokens, index + 1),
                Token::One if c != '\n' => enter(&mut next, tokens, index + 1),
                Token::Many if c != '\n' => enter(&mut next, tokens, index),
                _ => {}
            }
        }
        std::mem::swap(&mut states, &mut next);
        length += c.len_utf8();
        if is_final(&states) {
            best = Some(length);
        }
        if !states.contains(&true) {
            break;
        }
    }
    Ok(best)
}

/// Marks `index`, and what is reached from there without reading: what follows a `*`.
fn enter(states: &mut [bool], tokens: &[Token], index: usize) {
    let mut index = index;
    while let Some(state) = states.get_mut(index) {
        *state = true;
        if tokens.get(index) != Some(&Token::Many) {
            return;
        }
        index += 1;
    }
}
