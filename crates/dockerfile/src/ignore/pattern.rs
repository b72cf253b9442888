//! One pattern of an ignore file.
//!
//! Most are plain words or `**` at one end, and are compared as text. The others are matched by following all
//! possibilities at once, in time proportional to pattern times path.

use crate::glob::{Class, PatternError, read_class};

/// A parsed pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pattern {
    /// This path.
    Exact(String),
    /// Every path that starts so (`dir/**`).
    Prefix(String),
    /// Every path that ends so (`**/name` and `**name`).
    Suffix(String),
    /// Anything else.
    Tokens {
        /// What every match starts with.
        literal: String,
        tokens: Vec<Token>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    Literal(char),
    /// `?`
    One,
    /// `*`
    Many,
    /// `**/`: any directories, or none.
    Directories,
    /// `**` at the end.
    Everything,
    Class(Class),
}

impl Pattern {
    /// Parses a cleaned pattern.
    pub(super) fn parse(text: &str) -> Result<Self, PatternError> {
        let mut tokens = Vec::new();
        let mut chars = text.chars();
        // Whether the text of the pattern can be compared as it is.
        let mut is_plain = true;
        while let Some(c) = chars.next() {
            match c {
                '*' if chars.as_str().starts_with('*') => {
                    chars.next();
                    if chars.as_str().starts_with('/') {
                        chars.next();
                    }
                    let token = if chars.as_str().is_empty() {
                        Token::Everything
                    } else {
                        Token::Directories
                    };
                    if tokens.last() == Some(&Token::Directories) {
                        // `**/**` says nothing more than `**`.
                        tokens.pop();
                        is_plain = false;
                    }
                    tokens.push(token);
                }
                '*' => tokens.push(Token::Many),
                '?' => tokens.push(Token::One),
                '[' => tokens.push(Token::Class(read_class(&mut chars)?)),
                '\\' => {
                    is_plain = false;
                    let escaped = chars.next().ok_or(PatternError::Escape)?;
                    tokens.push(Token::Literal(escaped));
                }
                c => tokens.push(Token::Literal(c)),
            }
        }
        let simple = is_plain.then(|| Self::simple(text, &tokens)).flatten();
        Ok(simple.unwrap_or_else(|| Self::general(tokens)))
    }

    /// Returns the pattern as a comparison of text, if it is one.
    fn simple(text: &str, tokens: &[Token]) -> Option<Self> {
        let are_literals = |tokens: &[Token]| {
            tokens
                .iter()
                .all(|token| matches!(token, Token::Literal(_)))
        };
        match tokens {
            tokens if are_literals(tokens) => Some(Self::Exact(text.to_owned())),
            [Token::Everything] => Some(Self::Suffix(String::new())),
            [Token::Directories, rest @ ..] if are_literals(rest) => {
                // Without a slash it is a suffix of the last component too: `**foo` matches `xfoo`.
                text.strip_prefix("**")
                    .map(|text| Self::Suffix(text.to_owned()))
            }
            [rest @ .., Token::Everything] if are_literals(rest) => text
                .strip_suffix("**")
                .map(|text| Self::Prefix(text.to_owned())),
            _ => None,
        }
    }

    fn general(tokens: Vec<Token>) -> Self {
        let literals = tokens.iter().map_while(|token| match token {
            Token::Literal(c) => Some(*c),
            _ => None,
        });
        Self::Tokens {
            literal: literals.collect(),
            tokens,
        }
    }

    /// Returns how many steps comparing it with `path` can take.
    pub(super) fn cost(&self, path: &str) -> u64 {
        match self {
            Self::Tokens { literal, tokens } if path.starts_with(literal.as_str()) => {
                (path.len() * tokens.len()) as u64
            }
            _ => 1,
        }
    }

    /// Tells whether all of `path` matches.
    pub(super) fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => path.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => {
                path.ends_with(suffix.as_str()) || suffix.strip_prefix('/') == Some(path)
            }
            Self::Tokens { literal, tokens } => {
                path.starts_with(literal.as_str()) && run(tokens, path).last() == Some(&true)
            }
        }
    }

    /// Tells whether something below `directory`, which ends in a slash, can match.
    pub(super) fn matches_below(&self, directory: &str) -> bool {
        match self {
            Self::Exact(exact) => exact.starts_with(directory),
            Self::Prefix(prefix) => {
                prefix.starts_with(directory) || directory.starts_with(prefix.as_str())
            }
            Self::Suffix(_) => true,
            Self::Tokens { literal, tokens } => {
                let may_start =
                    literal.starts_with(directory) || directory.starts_with(literal.as_str());
                may_start && run(tokens, directory).contains(&true)
            }
        }
    }
}

/// Returns which beginnings of `tokens` match all of `path`.
fn run(tokens: &[Token], path: &str) -> Vec<bool> {
    let mut states = vec![false; tokens.len() + 1];
    let mut next = states.clone();
    enter(&mut states, tokens, 0);
    for c in path.chars() {
        next.fill(false);
        for ((index, token), _) in tokens
            .iter()
            .enumerate()
            .zip(&states)
            .filter(|(_, reached)| **reached)
        {
            match token {
                Token::Literal(literal) if *literal != c => {}
                Token::One | Token::Many if c == '/' => {}
                Token::Class(class) if !class.accepts(c) => {}
                Token::Literal(_) | Token::One | Token::Class(_) => {
                    enter(&mut next, tokens, index + 1);
                }
                Token::Many | Token::Everything => enter(&mut next, tokens, index),
                Token::Directories => {
                    if let Some(state) = next.get_mut(index) {
                        // Within a directory's name; what follows may start only after a slash.
                        *state = true;
                    }
                    if c == '/' {
                        enter(&mut next, tokens, index + 1);
                    }
                }
            }
        }
        std::mem::swap(&mut states, &mut next);
        if !states.contains(&true) {
            break;
        }
    }
    states
}

/// Marks `index`, and what is reached from there without reading.
fn enter(states: &mut [bool], tokens: &[Token], index: usize) {
    let mut index = index;
    while let Some(state) = states.get_mut(index) {
        *state = true;
        match tokens.get(index) {
            Some(Token::Many | Token::Directories | Token::Everything) => index += 1,
            _ => return,
        }
    }
}
