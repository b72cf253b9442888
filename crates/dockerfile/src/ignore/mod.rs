//! `.dockerignore`, with the meaning that moby's pattern matcher gives it.
//!
//! Patterns are anchored at the root of the context, `*` and `?` stop at slashes, `**` does not, and `!` takes back what earlier
//! lines ignored: the last pattern that matches a path, or a directory that it is in, decides. This is not gitignore: `foo` does
//! not match `a/foo`, and something below an ignored directory can be taken back.
//!
//! A tree is walked with [`Walk`], which knows for each directory which patterns can still match in it; what all matching with one
//! file costs together is bounded, because both patterns and paths come from outside.

mod pattern;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits::{
    IGNORE_FILE_MAX_BYTES, IGNORE_PATTERNS_MAX, IGNORE_STEPS_MAX, PATTERN_MAX_BYTES,
};
use crate::{glob, path};

use pattern::Pattern;

/// Name of the ignore file of a context.
pub const FILE_NAME: &str = ".dockerignore";

/// A parsed ignore file.
#[derive(Debug)]
pub struct IgnoreFile {
    rules: Vec<Rule>,
    hides_everything: bool,
    steps_left: AtomicU64,
}

#[derive(Debug)]
struct Rule {
    /// `!`: takes paths back.
    includes: bool,
    pattern: Pattern,
}

/// Tells why an ignore file is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IgnoreError {
    /// Larger than [`IGNORE_FILE_MAX_BYTES`].
    #[error("the ignore file is larger than {IGNORE_FILE_MAX_BYTES} bytes")]
    TooLarge,
    /// More than [`IGNORE_PATTERNS_MAX`].
    #[error("the ignore file has more than {IGNORE_PATTERNS_MAX} patterns")]
    TooManyPatterns,
    /// `!` and nothing after it.
    #[error("line {line} of the ignore file has no pattern after the exclamation mark")]
    Empty {
        /// Counted from 1.
        line: usize,
    },
    /// Longer than [`PATTERN_MAX_BYTES`].
    #[error("line {line} of the ignore file is longer than {PATTERN_MAX_BYTES} bytes")]
    TooLong {
        /// Counted from 1.
        line: usize,
    },
    /// Not a pattern.
    #[error("line {line} of the ignore file is not a pattern")]
    Pattern {
        /// Counted from 1.
        line: usize,
        /// Why.
        #[source]
        source: glob::PatternError,
    },
    /// Matching took more than [`IGNORE_STEPS_MAX`] steps.
    #[error("matching the patterns of the ignore file takes too much work")]
    TooExpensive,
}

/// Returns the names under which the ignore file of `dockerfile` is looked for, the first one that exists counts.
pub fn file_names(dockerfile: &str) -> [String; 2] {
    [format!("{dockerfile}{FILE_NAME}"), FILE_NAME.to_owned()]
}

impl IgnoreFile {
    /// Returns one that ignores nothing.
    pub fn empty() -> Self {
        Self {
            rules: Vec::new(),
            hides_everything: false,
            steps_left: AtomicU64::new(IGNORE_STEPS_MAX),
        }
    }

    /// Parses an ignore file.
    pub fn parse(text: &[u8]) -> Result<Self, IgnoreError> {
        if text.len() > IGNORE_FILE_MAX_BYTES {
            return Err(IgnoreError::TooLarge);
        }
        let text = String::from_utf8_lossy(text);
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let mut file = Self::empty();
        for (index, line) in text.lines().enumerate() {
            if let Some(rule) = parse_line(line, index + 1)? {
                let cleaned = path::clean(line.trim());
                let cleaned = cleaned.trim_start_matches('/');
                file.hides_everything |= matches!(cleaned, "*" | "**" | "**/*");
                file.rules.push(rule);
            }
            if file.rules.len() > IGNORE_PATTERNS_MAX {
                return Err(IgnoreError::TooManyPatterns);
            }
        }
        Ok(file)
    }

    /// Makes one of single patterns, as `--exclude` has them: each may begin with `!`, and none is a comment. A pattern that begins with
    /// a slash matches nothing, as in `BuildKit`.
    pub fn of_patterns(patterns: &[String]) -> Result<Self, IgnoreError> {
        let mut file = Self::empty();
        for (index, text) in patterns.iter().enumerate() {
            let line = index + 1;
            let text = text.trim();
            if text.len() > PATTERN_MAX_BYTES {
                return Err(IgnoreError::TooLong { line });
            }
            if text.is_empty() {
                continue;
            }
            let cleaned = path::clean(text);
            let (text, includes) = match cleaned.strip_prefix('!') {
                Some("") => return Err(IgnoreError::Empty { line }),
                Some(rest) => (rest, true),
                None => (cleaned.as_str(), false),
            };
            let pattern = Pattern::parse(text);
            let pattern = pattern.map_err(|source| IgnoreError::Pattern { line, source })?;
            file.rules.push(Rule { includes, pattern });
        }
        if file.rules.len() > IGNORE_PATTERNS_MAX {
            return Err(IgnoreError::TooManyPatterns);
        }
        Ok(file)
    }

    /// Makes one that ignores everything but what `pattern` matches, and what is in directories that it matches.
    pub fn only(pattern: &str) -> Result<Self, IgnoreError> {
        let included = match pattern {
            // Nothing is left of the pattern of a source that is everything, and nothing matches.
            "" | "." => return Self::of_patterns(&["**".to_owned()]),
            pattern => pattern,
        };
        let mut file = Self::of_patterns(&["**".to_owned()])?;
        let parsed = Pattern::parse(included);
        let parsed = parsed.map_err(|source| IgnoreError::Pattern { line: 1, source })?;
        file.rules.push(Rule {
            includes: true,
            pattern: parsed,
        });
        Ok(file)
    }

    /// Tells whether `path`, relative to the context, is ignored. A tree is walked faster with [`Self::walk`].
    pub fn matches(&self, path: &str) -> Result<bool, IgnoreError> {
        let path = path::clean(path);
        if path == "." {
            return Ok(false);
        }
        for rule in self.rules.iter().rev() {
            self.pay(rule.pattern.cost(&path))?;
            if rule.pattern.matches_or_parent(&path) {
                return Ok(!rule.includes);
            }
        }
        Ok(false)
    }

    /// Tells whether some patterns take back what others ignore.
    pub fn has_exceptions(&self) -> bool {
        self.rules.iter().any(|rule| rule.includes)
    }

    /// Tells whether one of its patterns ignores all there is.
    pub fn hides_everything(&self) -> bool {
        self.hides_everything
    }

    /// Starts at the root of the context.
    pub fn walk(&self) -> Walk<'_> {
        Walk {
            file: self,
            path: String::new(),
            decided: None,
            candidates: (0..self.rules.len()).collect(),
        }
    }

    fn test(&self, rule: &Rule, path: &str) -> Result<bool, IgnoreError> {
        self.pay(rule.pattern.cost(path))?;
        Ok(rule.pattern.matches(path))
    }

    fn pay(&self, amount: u64) -> Result<(), IgnoreError> {
        let left = self.steps_left.fetch_sub(amount, Ordering::Relaxed);
        if left < amount {
            self.steps_left.store(0, Ordering::Relaxed);
            return Err(IgnoreError::TooExpensive);
        }
        Ok(())
    }
}

fn parse_line(line: &str, number: usize) -> Result<Option<Rule>, IgnoreError> {
    if line.starts_with('#') {
        return Ok(None);
    }
    let empty = Err(IgnoreError::Empty { line: number });
    let text = line.trim();
    let (text, includes) = match text.strip_prefix('!') {
        Some(rest) => (rest.trim(), true),
        None => (text, false),
    };
    if text.is_empty() {
        return if includes { empty } else { Ok(None) };
    }
    if text.len() > PATTERN_MAX_BYTES {
        return Err(IgnoreError::TooLong { line: number });
    }
    let cleaned = path::clean(text);
    let cleaned = match cleaned.strip_prefix('/') {
        Some(rest) if !rest.is_empty() => rest,
        _ => cleaned.as_str(),
    };
    // moby reads what is left a second time, so that `/ !a` takes back, and `! /` is nothing.
    let mark = if includes { "!" } else { "" };
    let again = path::clean(format!("{mark}{cleaned}").trim());
    let (cleaned, includes) = match again.strip_prefix('!') {
        Some("") => return empty,
        Some(rest) => (rest, true),
        None => (again.as_str(), false),
    };
    let pattern = Pattern::parse(cleaned).map_err(|source| IgnoreError::Pattern {
        line: number,
        source,
    })?;
    Ok(Some(Rule { includes, pattern }))
}

/// A directory of the context that is being walked.
#[derive(Debug, Clone)]
pub struct Walk<'a> {
    file: &'a IgnoreFile,
    /// Relative to the context, with a slash at its end; empty for the root.
    path: String,
    /// The last rule that matches this directory or one that it is in.
    decided: Option<usize>,
    /// The later rules that can match something in this directory.
    candidates: Vec<usize>,
}

impl<'a> Walk<'a> {
    /// Tells whether this directory is ignored.
    pub fn is_ignored(&self) -> bool {
        self.verdict(self.decided)
    }

    /// Tells whether `name`, a file in this directory, is ignored.
    pub fn ignores(&self, name: &str) -> Result<bool, IgnoreError> {
        let path = format!("{}{name}", self.path);
        Ok(self.verdict(self.decide(&path)?))
    }

    /// Returns the walk of `name`, a directory in this one.
    pub fn enter(&self, name: &str) -> Result<Walk<'a>, IgnoreError> {
        let mut path = format!("{}{name}", self.path);
        let decided = self.decide(&path)?;
        path.push('/');
        let mut candidates = Vec::new();
        for index in &self.candidates {
            let Some(rule) = self.file.rules.get(*index) else {
                continue;
            };
            self.file.pay(rule.pattern.cost(&path))?;
            if Some(*index) > decided && rule.pattern.matches_below(&path) {
                candidates.push(*index);
            }
        }
        Ok(Walk {
            file: self.file,
            path,
            decided,
            candidates,
        })
    }

    /// Tells whether something in this directory can be not ignored. When it cannot, the directory need not be read.
    pub fn may_include_below(&self) -> bool {
        let rules = self.candidates.iter();
        let mut rules = rules.filter_map(|index| self.file.rules.get(*index));
        !self.is_ignored() || rules.any(|rule| rule.includes)
    }

    fn decide(&self, path: &str) -> Result<Option<usize>, IgnoreError> {
        for index in self.candidates.iter().rev() {
            if let Some(rule) = self.file.rules.get(*index)
                && self.file.test(rule, path)?
            {
                return Ok(Some(*index));
            }
        }
        Ok(self.decided)
    }

    fn verdict(&self, decided: Option<usize>) -> bool {
        let rule = decided.and_then(|index| self.file.rules.get(index));
        rule.is_some_and(|rule| !rule.includes)
    }
}
