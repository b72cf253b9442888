//! Go's `path.Match`: the patterns of COPY and ADD sources.
//!
//! `*` matches any run of characters but `/`, `?` any one character but `/`, `[a-z]` and `[^a-z]` one character of a class, and a backslash
//! takes the meaning from what follows. There is no `**`. Matching is by component of the path and never exponential.

use crate::limits::PATTERN_MAX_BYTES;

/// A parsed pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    tokens: Vec<Token>,
    has_wildcards: bool,
}

/// Tells why a text is not a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// `[` without `]`, an empty class, or a range without end.
    #[error("a character class is not complete")]
    Class,
    /// A backslash at the end.
    #[error("nothing follows the backslash at the end")]
    Escape,
    /// Longer than [`PATTERN_MAX_BYTES`].
    #[error("it is longer than {PATTERN_MAX_BYTES} bytes")]
    TooLong,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Literal(char),
    One,
    Many,
    Class(Class),
}

/// A character class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Class {
    negated: bool,
    ranges: Vec<(char, char)>,
}

impl Class {
    pub(crate) fn accepts(&self, c: char) -> bool {
        let inside = self
            .ranges
            .iter()
            .any(|(low, high)| (*low..=*high).contains(&c));
        inside != self.negated
    }
}

impl Token {
    fn accepts(&self, c: char) -> bool {
        match self {
            Self::Literal(literal) => *literal == c,
            Self::One => c != '/',
            Self::Many => false,
            // Go lets a negated class match a slash too.
            Self::Class(class) => class.accepts(c),
        }
    }
}

impl Pattern {
    /// Parses a pattern.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text.len() > PATTERN_MAX_BYTES {
            return Err(PatternError::TooLong);
        }
        let mut tokens = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '*' if tokens.last() == Some(&Token::Many) => {}
                '*' => tokens.push(Token::Many),
                '?' => tokens.push(Token::One),
                '[' => tokens.push(Token::Class(read_class(&mut chars)?)),
                '\\' => tokens.push(Token::Literal(chars.next().ok_or(PatternError::Escape)?)),
                c => tokens.push(Token::Literal(c)),
            }
        }
        let has_wildcards = tokens
            .iter()
            .any(|token| !matches!(token, Token::Literal(_)));
        Ok(Self {
            tokens,
            has_wildcards,
        })
    }

    /// Tells whether it can match anything but one path.
    pub fn has_wildcards(&self) -> bool {
        self.has_wildcards
    }

    /// Returns the one path that a pattern without wildcards matches, its escapes resolved.
    pub fn literal(&self) -> Option<String> {
        let one = |token: &Token| match token {
            Token::Literal(c) => Some(*c),
            _ => None,
        };
        self.tokens.iter().map(one).collect()
    }

    /// Returns how many components a path must have to match.
    pub fn n_components(&self) -> usize {
        let is_slash = |token: &&Token| **token == Token::Literal('/');
        self.tokens.iter().filter(is_slash).count() + 1
    }

    /// Tells whether all of `path` matches.
    pub fn matches(&self, path: &str) -> bool {
        self.run(path)
            .is_some_and(|states| states.last() == Some(&true))
    }

    /// Tells whether something below the directory `path` can match, so that a walk need not enter others.
    pub fn matches_below(&self, path: &str) -> bool {
        if path.is_empty() || path == "." {
            return true;
        }
        let Some(states) = self.run(path) else {
            return false;
        };
        let after = self.tokens.iter().zip(&states);
        after
            .into_iter()
            .any(|(token, reached)| *reached && token.accepts('/'))
    }

    /// Returns which prefixes of the pattern match all of `path`.
    fn run(&self, path: &str) -> Option<Vec<bool>> {
        let mut states = vec![false; self.tokens.len() + 1];
        let mut next = states.clone();
        self.enter(&mut states, 0);
        for c in path.chars() {
            next.fill(false);
            for (index, token) in self.tokens.iter().enumerate() {
                if states.get(index) != Some(&true) {
                    continue;
                }
                if *token == Token::Many {
                    if c != '/' {
                        self.enter(&mut next, index);
                    }
                } else if token.accepts(c) {
                    self.enter(&mut next, index + 1);
                }
            }
            std::mem::swap(&mut states, &mut next);
            if !states.contains(&true) {
                return None;
            }
        }
        Some(states)
    }

    fn enter(&self, states: &mut [bool], index: usize) {
        let mut index = index;
        while let Some(state) = states.get_mut(index) {
            *state = true;
            if self.tokens.get(index) != Some(&Token::Many) {
                return;
            }
            index += 1;
        }
    }
}

/// Reads a class up to its `]`; the `[` has been read.
pub(crate) fn read_class(chars: &mut std::str::Chars<'_>) -> Result<Class, PatternError> {
    let negated = chars.as_str().starts_with('^');
    if negated {
        chars.next();
    }
    let mut ranges = Vec::new();
    loop {
        let low = match chars.next() {
            Some(']') if !ranges.is_empty() => return Ok(Class { negated, ranges }),
            first => class_character(first, chars)?,
        };
        let mut high = low;
        if chars.as_str().starts_with('-') {
            chars.next();
            let end = chars.next();
            high = class_character(end, chars)?;
        }
        ranges.push((low, high));
    }
}

fn class_character(
    first: Option<char>,
    chars: &mut std::str::Chars<'_>,
) -> Result<char, PatternError> {
    match first {
        None | Some(']' | '-') => Err(PatternError::Class),
        Some('\\') => chars.next().ok_or(PatternError::Class),
        Some(c) => Ok(c),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_match_as_go_does() {
        for (pattern, path, expected) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "abc", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a[^a]b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("[a-ζ]*", "α", true),
            ("*[a-ζ]", "A", false),
            ("a?b", "a/b", false),
            ("a*b", "a/b", false),
            ("[\\]a]", "]", true),
            ("[\\-]", "-", true),
            ("[x\\-]", "-", true),
            ("[x\\-]", "z", false),
            ("", "", true),
            ("", "a", false),
            ("**", "a/b", false),
            ("*/**", "a/b", true),
        ] {
            let parsed = Pattern::parse(pattern).unwrap();
            assert_eq!(parsed.matches(path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn malformed_patterns_are_refused() {
        for bad in [
            "[", "[]", "[]a]", "[^", "[^]", "[a", "[a-", "[a-]", "[-x]", "[x-]", "[x", "\\", "a\\",
            "[^bc", "[\\",
        ] {
            assert!(Pattern::parse(bad).is_err(), "{bad} was accepted");
        }
        assert!(Pattern::parse(&"[".repeat(100_000)).is_err());
    }

    #[test]
    fn a_walk_can_skip_directories_that_cannot_match() {
        let pattern = Pattern::parse("src/*/main.?").unwrap();
        assert_eq!(pattern.n_components(), 3);
        assert!(pattern.matches_below("."));
        assert!(pattern.matches_below("src"));
        assert!(pattern.matches_below("src/x"));
        assert!(!pattern.matches_below("other"));
        assert!(!pattern.matches_below("src/x/y"));
        assert_eq!(
            Pattern::parse("a\\[b").unwrap().literal().as_deref(),
            Some("a[b")
        );
        assert_eq!(pattern.literal(), None);
    }

    proptest! {
        #[test]
        fn no_pattern_makes_it_panic(pattern in "[\\[\\]a-c*?^\\\\/-]{0,20}", path in "[a-c/\\[-]{0,20}") {
            if let Ok(pattern) = Pattern::parse(&pattern)
                && pattern.matches(&path)
                && let Some((directory, _)) = path.rsplit_once('/')
            {
                prop_assert!(pattern.matches_below(directory));
            }
        }
    }
}
