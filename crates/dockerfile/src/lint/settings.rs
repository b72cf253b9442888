//! Which rules count: `# check=skip=…;experimental=…;error=…`, at the top, above one instruction, or as a build argument.

use std::collections::{BTreeMap, BTreeSet};

use super::rules::{ALL, Rule, RuleKind};
use crate::ast::{Dockerfile, Instruction, Word};
use crate::diagnostic::{Diagnostic, Span};
use crate::suggest::did_you_mean;

/// The build argument that stands for `# check=`.
pub const CHECK_ARGUMENT: &str = "BUILDKIT_DOCKERFILE_CHECK";
/// Stands for every rule.
const EVERYTHING: &str = "all";

/// Which rules count, and what follows when one is broken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    skipped: Names,
    experimental: Names,
    /// Whether what breaks a rule is not built.
    pub is_error: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Names {
    all: bool,
    names: BTreeSet<String>,
}

impl Names {
    fn hold(&self, rule: &Rule) -> bool {
        self.all || self.names.contains(rule.name)
    }

    fn add(&mut self, other: &Self) {
        self.all |= other.all;
        self.names.extend(other.names.iter().cloned());
    }
}

impl Settings {
    /// Returns what `file` and the build argument say; the argument goes before the file. In words, too, which rules are unknown.
    pub fn of(
        file: &Dockerfile,
        arguments: &BTreeMap<String, String>,
    ) -> Result<(Self, Vec<Diagnostic>), Diagnostic> {
        let word = match arguments.get(CHECK_ARGUMENT) {
            Some(text) => Some(Word {
                text: text.clone(),
                span: Span::default(),
            }),
            None => file.check.clone(),
        };
        match word {
            Some(word) => Self::parse(&word),
            None => Ok((Self::default(), Vec::new())),
        }
    }

    fn parse(word: &Word) -> Result<(Self, Vec<Diagnostic>), Diagnostic> {
        let mut settings = Self::default();
        let mut unknown = Vec::new();
        let error = |message: String| {
            Diagnostic::error(word.span, message)
                .with_hint("check=skip=RULE,RULE;experimental=RULE;error=true")
        };
        for part in word.text.split(';').map(str::trim) {
            if part.is_empty() {
                continue;
            }
            let Some((key, value)) = part.split_once('=') else {
                return Err(error(format!("{part:?} is no option of check")));
            };
            let (key, value) = (key.trim(), value.trim());
            match key {
                "skip" | "experimental" => {
                    let names = names(word, value, &mut unknown);
                    let known = if key == "skip" {
                        &mut settings.skipped
                    } else {
                        &mut settings.experimental
                    };
                    known.add(&names);
                }
                "error" => {
                    settings.is_error = match value.to_ascii_lowercase().as_str() {
                        "true" | "t" | "1" => true,
                        "false" | "f" | "0" => false,
                        _ => return Err(error(format!("error={value} is neither true nor false"))),
                    };
                }
                _ => return Err(error(format!("{key:?} is no option of check"))),
            }
        }
        Ok((settings, unknown))
    }

    /// Tells whether a finding about `file` counts. What breaks no rule always does.
    pub fn keeps(&self, file: &Dockerfile, finding: &Diagnostic) -> bool {
        let Some(rule) = finding.rule else {
            return true;
        };
        let is_about = |instruction: &&Instruction| {
            let span = instruction.span;
            (span.line..=span.end_line).contains(&finding.span.line)
        };
        let own = file.instructions.iter().find(is_about);
        let own = own.and_then(|instruction| instruction.check.as_ref());
        match own.and_then(|word| Self::parse(word).ok()) {
            Some((own, _)) => {
                let mut merged = self.clone();
                merged.skipped.add(&own.skipped);
                merged.experimental.add(&own.experimental);
                merged.holds(rule)
            }
            None => self.holds(rule),
        }
    }

    fn holds(&self, rule: &Rule) -> bool {
        match rule.kind {
            RuleKind::Usual => !self.skipped.hold(rule),
            RuleKind::Experimental => self.experimental.hold(rule),
        }
    }
}

fn names(word: &Word, value: &str, unknown: &mut Vec<Diagnostic>) -> Names {
    let mut names = Names::default();
    if value == EVERYTHING {
        names.all = true;
        return names;
    }
    for name in value.split(',').map(str::trim).filter(|n| !n.is_empty()) {
        if !ALL.iter().any(|rule| rule.name == name) {
            let known = ALL.iter().map(|rule| rule.name);
            let warning = Diagnostic::warning(word.span, format!("there is no rule {name:?}"));
            unknown.push(warning.with_hint_if(did_you_mean(name, known)));
        }
        names.names.insert(name.to_owned());
    }
    names
}
