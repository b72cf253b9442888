//! What can be built but is probably not what was meant: the rules of the Dockerfile reference.
//!
//! What can be told from the text alone is found here ([`check`]); what depends on variables, bases or options is found while
//! planning. Which of it counts is decided once, by [`Settings`].

pub mod rules;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

pub use settings::{CHECK_ARGUMENT, Settings};

use crate::ast::{Body, Dockerfile, Instruction};
use crate::diagnostic::Diagnostic;
use crate::limits::LINTS_MAX;

/// Names that mean something else.
const RESERVED_STAGES: [&str; 2] = ["scratch", "context"];

/// Returns what breaks a rule in the text of `file`, in its order. Nothing is left out by settings here.
pub fn check(file: &Dockerfile) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let mut stages = BTreeSet::new();
    for instruction in &file.instructions {
        match &instruction.body {
            Body::From { name, .. } => {
                casing_of_from(instruction, &mut found);
                if let Some(name) = name {
                    stage_name(instruction, &name.text, &mut stages, &mut found);
                    description(instruction, "a stage", &[&name.text], &mut found);
                }
            }
            Body::Arg(arguments) => {
                let names: Vec<&str> = arguments.iter().map(|a| a.name.text.as_str()).collect();
                description(instruction, "an ARG", &names, &mut found);
            }
            Body::Maintainer(_) => {
                let message = "MAINTAINER is deprecated";
                let lint =
                    Diagnostic::lint(&rules::MAINTAINER_DEPRECATED, instruction.keyword, message);
                found.push(lint.with_hint("LABEL org.opencontainers.image.authors=…"));
            }
            _ => {}
        }
    }
    casing(file, &mut found);
    found.sort_by_key(|finding| finding.span.start);
    found.truncate(LINTS_MAX);
    found
}

fn stage_name<'f>(
    instruction: &Instruction,
    name: &'f str,
    stages: &mut BTreeSet<&'f str>,
    found: &mut Vec<Diagnostic>,
) {
    if RESERVED_STAGES.contains(&name) {
        let message = format!("a stage is called {name:?}, which means something else");
        let span = instruction.span;
        found.push(Diagnostic::lint(&rules::RESERVED_STAGE_NAME, span, message));
    }
    if !stages.insert(name) {
        let message = format!("another stage is called {name:?} too");
        let span = instruction.span;
        found.push(Diagnostic::lint(
            &rules::DUPLICATE_STAGE_NAME,
            span,
            message,
        ));
    }
}

/// Looks at the words of a FROM as they are written.
fn casing_of_from(instruction: &Instruction, found: &mut Vec<Diagnostic>) {
    let words: Vec<&str> = instruction.text.split_whitespace().collect();
    let [keyword, .., as_word, name] = words.as_slice() else {
        return;
    };
    if !as_word.eq_ignore_ascii_case("as") {
        return;
    }
    if name.chars().any(char::is_uppercase) {
        let message = format!("the name {name:?} of the stage is not in lower case");
        let span = instruction.span;
        found.push(Diagnostic::lint(&rules::STAGE_NAME_CASING, span, message));
    }
    let agrees = match Case::of(keyword) {
        Case::Lower => Case::of(as_word) == Case::Lower,
        Case::Upper => Case::of(as_word) == Case::Upper,
        // Told by the rule about instructions.
        Case::Mixed => true,
    };
    if !agrees {
        let message = format!("{as_word:?} and {keyword:?} are written in different case");
        let span = instruction.span;
        found.push(Diagnostic::lint(&rules::FROM_AS_CASING, span, message));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Lower,
    Upper,
    Mixed,
}

impl Case {
    fn of(word: &str) -> Self {
        if word.chars().all(char::is_lowercase) {
            Self::Lower
        } else if word.chars().all(char::is_uppercase) {
            Self::Upper
        } else {
            Self::Mixed
        }
    }
}

/// Holds all instructions to the case of most of them.
fn casing(file: &Dockerfile, found: &mut Vec<Diagnostic>) {
    let is_from = |instruction: &Instruction| matches!(instruction.body, Body::From { .. });
    let first = file.instructions.iter().position(is_from);
    // ARGs before the first FROM have no part in it.
    let instructions = file
        .instructions
        .get(first.unwrap_or(0)..)
        .unwrap_or_default();
    let word = |instruction: &'_ Instruction| -> String {
        let text = &instruction.text;
        text.split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let count = |case: Case| {
        let words = instructions.iter().map(word);
        words.filter(|word| Case::of(word) == case).count()
    };
    let (usual, name) = if count(Case::Lower) > count(Case::Upper) {
        (Case::Lower, "lower")
    } else {
        (Case::Upper, "upper")
    };
    for instruction in instructions {
        let word = word(instruction);
        if Case::of(&word) != usual {
            let message = format!("{word} is not in {name} case, as most instructions are");
            let span = instruction.keyword;
            found.push(Diagnostic::lint(
                &rules::CONSISTENT_INSTRUCTION_CASING,
                span,
                message,
            ));
        }
    }
}

/// Holds the comment above a definition to its form.
fn description(instruction: &Instruction, what: &str, names: &[&str], found: &mut Vec<Diagnostic>) {
    let (Some(comment), Some(first)) = (instruction.comments.last(), names.first()) else {
        return;
    };
    let begins = comment.split(' ').next().unwrap_or_default();
    if names.contains(&begins) {
        return;
    }
    let example = if names.len() > 1 { "NAME" } else { first };
    let message = format!("the comment above {what} does not begin with its name");
    let lint = Diagnostic::lint(
        &rules::INVALID_DEFINITION_DESCRIPTION,
        instruction.span,
        message,
    );
    found.push(lint.with_hint(format!(
        "# {example} description; an empty comment between makes it any comment"
    )));
}
