//! `.dockerignore`, with the meaning that moby's pattern matcher gives it.
//!
//! Patterns are anchored at the root of the context, `*` and `?` stop at slashes, `**` does not, and `!` takes back what earlier
//! lines ignored. This is not gitignore: `foo` does not match `a/foo`, and something below an ignored directory can be taken back.
//!
//! The patterns are gone through in their order. One that has matched a directory holds for everything in it; and one is only asked when
//! it could change the answer so far: a pattern with `!` that met a directory which was not ignored has not matched it, and says nothing
//! about what is in there unless it matches that too. That is how `BuildKit` reads these files.
//!
//! A tree is walked with [`Walk`], which knows for each directory which patterns can still match in it; what all matching with one
//! file costs together is bounded, because both patterns and paths come from outside.

mod pattern;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

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
    /// The directories down to the one that was asked about last: whoever asks about one path asks about its neighbours next.
    last: Mutex<Vec<Place>>,
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
            last: Mutex::default(),
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
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        self.at(directory, |place| self.judge(place, &path, &mut Vec::new()))
    }

    /// Tells whether something in the directory `path` can be not ignored.
    pub fn may_include_below(&self, path: &str) -> Result<bool, IgnoreError> {
        let path = path::clean(path);
        let path = if path == "." { "" } else { path.as_str() };
        self.at(path, |place| Ok(self.may_include(place)))
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
            place: self.root(),
        }
    }

    fn root(&self) -> Place {
        let candidate = |index| Candidate {
            index,
            holds: false,
        };
        Place {
            path: String::new(),
            is_ignored: false,
            candidates: (0..self.rules.len()).map(candidate).collect(),
        }
    }

    /// Calls `look` with the directory `path`.
    fn at<T>(
        &self,
        path: &str,
        look: impl FnOnce(&Place) -> Result<T, IgnoreError>,
    ) -> Result<T, IgnoreError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let is_above = |place: &Place| {
            let rest = path.strip_prefix(place.path.trim_end_matches('/'));
            place.path.is_empty() || rest.is_some_and(|r| r.is_empty() || r.starts_with('/'))
        };
        let n_above = last.iter().take_while(|place| is_above(place)).count();
        last.truncate(n_above);
        if last.is_empty() {
            last.push(self.root());
        }
        loop {
            let Some(place) = last.last() else {
                return look(&self.root());
            };
            let rest = path.get(place.path.len()..).unwrap_or_default();
            let Some(name) = rest.split('/').next().filter(|name| !name.is_empty()) else {
                return look(place);
            };
            let next = self.enter(place, name)?;
            last.push(next);
        }
    }

    /// Decides about something in the directory `place`, and adds the rules that match it to `matched`.
    fn judge(
        &self,
        place: &Place,
        path: &str,
        matched: &mut Vec<usize>,
    ) -> Result<bool, IgnoreError> {
        let mut is_ignored = false;
        for candidate in &place.candidates {
            let Some(rule) = self.rules.get(candidate.index) else {
                continue;
            };
            if !candidate.holds && (rule.includes != is_ignored || !self.test(rule, path)?) {
                continue;
            }
            matched.push(candidate.index);
            is_ignored = !rule.includes;
        }
        Ok(is_ignored)
    }

    fn enter(&self, from: &Place, name: &str) -> Result<Place, IgnoreError> {
        let mut path = format!("{}{name}", from.path);
        let mut matched = Vec::new();
        let is_ignored = self.judge(from, &path, &mut matched)?;
        path.push('/');
        let mut candidates = Vec::new();
        for candidate in &from.candidates {
            let holds = matched.binary_search(&candidate.index).is_ok();
            let Some(rule) = self.rules.get(candidate.index) else {
                continue;
            };
            self.pay(rule.pattern.cost(&path))?;
            if holds || rule.pattern.matches_below(&path) {
                candidates.push(Candidate {
                    index: candidate.index,
                    holds,
                });
            }
        }
        Ok(Place {
            path,
            is_ignored,
            candidates,
        })
    }

    fn may_include(&self, place: &Place) -> bool {
        let rules = place.candidates.iter();
        let mut rules = rules.filter_map(|candidate| self.rules.get(candidate.index));
        !place.is_ignored || rules.any(|rule| rule.includes)
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
    place: Place,
}

/// What is known of a directory.
#[derive(Debug, Clone)]
struct Place {
    /// Relative to the context, with a slash at its end; empty for the root.
    path: String,
    is_ignored: bool,
    /// The rules that can matter in it, in their order.
    candidates: Vec<Candidate>,
}

/// A rule within a directory.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    index: usize,
    /// It has matched this directory, hence everything in it.
    holds: bool,
}

impl<'a> Walk<'a> {
    /// Tells whether this directory is ignored.
    pub fn is_ignored(&self) -> bool {
        self.place.is_ignored
    }

    /// Tells whether `name`, a file in this directory, is ignored.
    pub fn ignores(&self, name: &str) -> Result<bool, IgnoreError> {
        let path = format!("{}{name}", self.place.path);
        self.file.judge(&self.place, &path, &mut Vec::new())
    }

    /// Returns the walk of `name`, a directory in this one.
    pub fn enter(&self, name: &str) -> Result<Walk<'a>, IgnoreError> {
        Ok(Walk {
            file: self.file,
            place: self.file.enter(&self.place, name)?,
        })
    }

    /// Tells whether something in this directory can be not ignored. When it cannot, the directory need not be read.
    pub fn may_include_below(&self) -> bool {
        self.file.may_include(&self.place)
    }
}
