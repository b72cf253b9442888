//! Build arguments that speak to the builder and not to the Dockerfile: `BUILDKIT_…`. Each is carried out, or answered.

use std::collections::BTreeMap;

use crate::ast::Word;
use crate::diagnostic::{Diagnostic, Span};
use crate::parse::check_syntax;
use crate::suggest::did_you_mean;

/// What such arguments begin with.
pub(super) const PREFIX: &str = "BUILDKIT_";
/// Those that are carried out, here or by whoever calls.
const CARRIED_OUT: [&str; 4] = [
    "BUILDKIT_SYNTAX",
    "BUILDKIT_DOCKERFILE_CHECK",
    "BUILDKIT_SANDBOX_HOSTNAME",
    "BUILDKIT_CONTEXT_KEEP_GIT_DIR",
];
/// Those that ask for something which is not made: what is built is the same without it.
const WITHOUT_EFFECT: [(&str, &str); 5] = [
    (
        "BUILDKIT_CACHE_MOUNT_NS",
        "cache mounts belong to a state directory and a tenant already",
    ),
    (
        "BUILDKIT_INLINE_CACHE",
        "images carry no cache for other builders",
    ),
    ("BUILDKIT_SBOM_SCAN_CONTEXT", "no list of packages is made"),
    ("BUILDKIT_SBOM_SCAN_STAGE", "no list of packages is made"),
    ("BUILDKIT_BUILD_NAME", "builds have ids, not names"),
];
/// Asks for an index around the image.
const MULTI_PLATFORM: &str = "BUILDKIT_MULTI_PLATFORM";

/// Tells whether `name` speaks to the builder.
pub(super) fn is_for_builder(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Returns what is to be said about the arguments.
pub(super) fn check(arguments: &BTreeMap<String, String>) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for (name, value) in arguments.iter().filter(|(name, _)| is_for_builder(name)) {
        found.extend(one(name, value));
    }
    found
}

fn one(name: &str, value: &str) -> Option<Diagnostic> {
    let nowhere = Span::default();
    let is_off = matches!(value, "" | "0" | "f" | "F" | "false" | "False" | "FALSE");
    if name == "BUILDKIT_SYNTAX" {
        let word = Word {
            text: value.to_owned(),
            span: nowhere,
        };
        return match check_syntax(&word) {
            Ok(note) => note,
            Err(error) => {
                let message = format!("build argument {name}: {}", error.message);
                Some(Diagnostic { message, ..error })
            }
        };
    }
    if name == MULTI_PLATFORM && !is_off {
        let message = format!("build argument {name}: an image is never put into an index here");
        return Some(Diagnostic::error(nowhere, message));
    }
    if let Some((_, why)) = WITHOUT_EFFECT.iter().find(|(known, _)| *known == name) {
        let message = format!("build argument {name} has no effect: {why}");
        return (!is_off).then(|| Diagnostic::warning(nowhere, message));
    }
    if CARRIED_OUT.contains(&name) || name == MULTI_PLATFORM {
        return None;
    }
    let known = CARRIED_OUT.iter().chain([&MULTI_PLATFORM]).copied();
    let message = format!("build argument {name} is not known");
    Some(Diagnostic::warning(nowhere, message).with_hint_if(did_you_mean(name, known)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_argument_for_the_builder_is_carried_out_or_answered() {
        for (name, value, expected) in [
            ("BUILDKIT_SYNTAX", "docker/dockerfile:1", None),
            ("BUILDKIT_SYNTAX", "example.com/other", Some("error")),
            ("BUILDKIT_DOCKERFILE_CHECK", "skip=all", None),
            ("BUILDKIT_MULTI_PLATFORM", "0", None),
            ("BUILDKIT_MULTI_PLATFORM", "1", Some("error")),
            ("BUILDKIT_INLINE_CACHE", "1", Some("warning")),
            ("BUILDKIT_INLINE_CACHE", "0", None),
            ("BUILDKIT_SANDBOX_HOSTNAME", "builder", None),
            ("BUILDKIT_SANDBOX_HOSTNAM", "builder", Some("warning")),
            ("OTHER", "x", None),
        ] {
            let arguments = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            let found = check(&arguments);
            let kind = |one: &Diagnostic| if one.is_error() { "error" } else { "warning" };
            assert_eq!(found.first().map(kind), expected, "{name}={value}");
        }
    }
}
