//! Variables and quotes in the words of instructions, with the rules of `BuildKit`'s shell lexer.
//!
//! Understood are `$x`, `${x}`, `${x:-w}`, `${x-w}`, `${x:+w}`, `${x+w}`, `${x:?w}`, `${x?w}`, `${x#p}`, `${x##p}`, `${x%p}`,
//! `${x%%p}`, `${x/p/r}` and `${x//p/r}`, where `w` is itself expanded; single quotes, double quotes, and the escape character
//! that the Dockerfile chose. This is not a shell: there are no commands, no arithmetic, no globs.
//!
//! Invariants: no input makes it recurse deeper than [`EXPANSION_DEPTH_MAX`] or give more than [`VALUE_MAX_BYTES`]; what all
//! words of one plan cost together is bounded by their [`Budget`].

mod lexer;
mod pattern;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use crate::limits::{EXPANSION_BYTES_MAX, EXPANSION_DEPTH_MAX, PATTERN_STEPS_MAX, VALUE_MAX_BYTES};

/// Where the values of variables come from.
pub trait Variables {
    /// Returns the value of `name`; `None` when it is not set.
    fn value(&self, name: &str) -> Option<&str>;
}

impl Variables for BTreeMap<String, String> {
    fn value(&self, name: &str) -> Option<&str> {
        self.get(name).map(String::as_str)
    }
}

/// No variable is set.
#[derive(Debug, Clone, Copy)]
pub struct NoVariables;

impl Variables for NoVariables {
    fn value(&self, _: &str) -> Option<&str> {
        None
    }
}

/// What becomes of quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quotes {
    /// They hold words together and vanish.
    Remove,
    /// They hold words together and stay.
    Keep,
    /// They are characters like any other.
    Ordinary,
}

/// What becomes of escape characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escapes {
    /// They vanish.
    Remove,
    /// They stay before what they escape.
    Keep,
}

/// What a variable becomes that is not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unset {
    /// Nothing.
    Empty,
    /// What was written.
    Keep,
}

/// How words are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lexer {
    /// The escape character.
    pub escape: char,
    /// What becomes of quotes.
    pub quotes: Quotes,
    /// What becomes of escape characters.
    pub escapes: Escapes,
    /// What a variable becomes that is not set.
    pub unset: Unset,
}

/// What a word became.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expanded {
    /// As one word: blanks stay.
    pub text: String,
    /// As several words: split at blanks outside quotes, those that came from variables included.
    pub words: Vec<String>,
    /// Variables that were asked for and set.
    pub used: BTreeSet<String>,
    /// Variables that were asked for and not set.
    pub unset: BTreeSet<String>,
}

/// What is left of the work that one plan may cause.
#[derive(Debug)]
pub struct Budget {
    pattern_steps: Cell<u64>,
    bytes: Cell<u64>,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            pattern_steps: Cell::new(PATTERN_STEPS_MAX),
            bytes: Cell::new(EXPANSION_BYTES_MAX),
        }
    }
}

impl Budget {
    fn take(left: &Cell<u64>, amount: usize) -> Result<(), ExpandError> {
        let rest = left.get().checked_sub(amount as u64);
        left.set(rest.unwrap_or(0));
        rest.map(drop).ok_or(ExpandError::TooExpensive)
    }

    fn take_pattern_steps(&self, amount: usize) -> Result<(), ExpandError> {
        Self::take(&self.pattern_steps, amount)
    }

    fn take_bytes(&self, amount: usize) -> Result<(), ExpandError> {
        Self::take(&self.bytes, amount)
    }
}

/// Tells why a word cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// A quote or brace is not closed.
    #[error("{0} is not closed")]
    Unclosed(&'static str),
    /// `${}`, `${:x}` and the like.
    #[error("bad substitution: a variable name is expected after ${{")]
    BadSubstitution,
    /// Neither of the known operators follows the name.
    #[error("unsupported modifier {0:?} in a substitution")]
    Modifier(String),
    /// `${x/p` without a replacement.
    #[error("a / is missing after the pattern of a substitution")]
    MissingReplacement,
    /// `${x?message}` and `x` is not set.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// The Dockerfile's words, or ours.
        message: String,
    },
    /// A backslash in a pattern before something that needs none.
    #[error("invalid escape {0:?} in a pattern")]
    PatternEscape(String),
    /// Deeper than [`EXPANSION_DEPTH_MAX`].
    #[error("substitutions are nested deeper than {EXPANSION_DEPTH_MAX}")]
    TooDeep,
    /// Longer than [`VALUE_MAX_BYTES`].
    #[error("the value is longer than {VALUE_MAX_BYTES} bytes")]
    TooLong,
    /// The plan's [`Budget`] is used up.
    #[error("expanding the variables of this Dockerfile takes too much work")]
    TooExpensive,
}

impl Lexer {
    /// Returns the lexer of instructions: quotes and escapes vanish, what is not set is empty.
    pub fn new(escape: char) -> Self {
        Self {
            escape,
            quotes: Quotes::Remove,
            escapes: Escapes::Remove,
            unset: Unset::Empty,
        }
    }

    /// Returns what `text` becomes.
    pub fn expand(
        &self,
        text: &str,
        variables: &dyn Variables,
        budget: &Budget,
    ) -> Result<Expanded, ExpandError> {
        lexer::expand(*self, text, variables, budget)
    }
}
