//! Named contexts: names that stand for something else than the stage or image that has them.
//!
//! A name is looked up normalised ([`context_name`]), first for the wanted platform alone, then for all of them. The names `scratch` and
//! `context` stand for themselves, always.

use oci::{Platform, Reference};

use super::origin::Origin;
use super::types::{BaseKey, GraphBase, NamedContext, PlanOptions};

/// Names that nothing can stand for.
const RESERVED: [&str; 2] = ["scratch", "context"];
/// Stands between a name and the platform that it is for.
const PLATFORM_MARK: &str = "::";
/// The tag that a name has without one.
const DEFAULT_TAG: &str = ":latest";

/// Tells why a text cannot be the name of a context.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContextNameError {
    /// It has a meaning that cannot be changed.
    #[error("{0:?} always stands for itself")]
    Reserved(String),
    /// Neither a stage nor an image can be called so.
    #[error("neither a stage nor an image can be called {0:?}")]
    Name(String, #[source] oci::reference::ReferenceError),
    /// What follows `::` is none.
    #[error("{0:?} does not end in a platform")]
    Platform(String, #[source] oci::platform::PlatformError),
}

/// Returns the name of a context as it is looked up: `docker.io/library/alpine:latest` is `alpine`.
pub fn context_name(text: &str) -> Result<String, ContextNameError> {
    let (name, platform) = match text.split_once(PLATFORM_MARK) {
        Some((name, platform)) => (name, Some(platform)),
        None => (text, None),
    };
    if is_reserved(name) {
        return Err(ContextNameError::Reserved(name.to_owned()));
    }
    let invalid = |error| ContextNameError::Name(name.to_owned(), error);
    let name = normalised(&name.parse().map_err(invalid)?);
    let Some(platform) = platform else {
        return Ok(name);
    };
    let invalid = |error| ContextNameError::Platform(text.to_owned(), error);
    let platform: Platform = platform.parse().map_err(invalid)?;
    Ok(format!("{name}{PLATFORM_MARK}{platform}"))
}

fn is_reserved(name: &str) -> bool {
    RESERVED
        .iter()
        .any(|reserved| reserved.eq_ignore_ascii_case(name))
}

fn normalised(reference: &Reference) -> String {
    let name = reference.familiar();
    name.strip_suffix(DEFAULT_TAG).unwrap_or(&name).to_owned()
}

/// Returns what stands for `name`, if something does, with the key that it was found under.
fn find<'o>(
    options: &'o PlanOptions,
    name: &str,
    platform: &Platform,
) -> Option<(&'o str, &'o NamedContext)> {
    if options.contexts.is_empty() || is_reserved(name) {
        return None;
    }
    let name = normalised(&name.parse().ok()?);
    let for_platform = format!("{name}{PLATFORM_MARK}{platform}");
    let found = options.contexts.get_key_value(&for_platform);
    let found = found.or_else(|| options.contexts.get_key_value(&name));
    found.map(|(key, context)| (key.as_str(), context))
}

fn image(key: &str, reference: &Reference, platform: &Platform) -> BaseKey {
    BaseKey {
        reference: reference.clone(),
        platform: platform.clone(),
        layout: (!key.is_empty()).then(|| key.into()),
    }
}

/// Returns what a stage called `name`, or one that starts from `name`, starts from instead.
pub(super) fn base(options: &PlanOptions, name: &str, platform: &Platform) -> Option<GraphBase> {
    let (key, context) = find(options, name, platform)?;
    Some(match context {
        NamedContext::Scratch => GraphBase::Scratch,
        NamedContext::Image(reference) => GraphBase::Image(image("", reference, platform)),
        NamedContext::Layout => GraphBase::Image(layout(key, name, platform)?),
        NamedContext::Files => GraphBase::Files(key.to_owned()),
    })
}

/// Returns where something that is said to come from `name` comes from instead.
pub(super) fn origin(options: &PlanOptions, name: &str) -> Option<Origin> {
    let platform = &options.platform;
    Some(match base(options, name, platform)? {
        GraphBase::Image(key) => Origin::Image(key),
        GraphBase::Files(key) => Origin::Named(key),
        GraphBase::Scratch | GraphBase::Stage(_) => Origin::Nothing,
    })
}

/// Names the image of a layout after its context: what is in there has no other name.
fn layout(key: &str, name: &str, platform: &Platform) -> Option<BaseKey> {
    let reference = name.parse().ok()?;
    Some(image(key, &reference, platform))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_and_what_has_a_meaning_of_its_own_is_refused() {
        for (text, expected) in [
            ("alpine", Some("alpine")),
            ("docker.io/library/alpine:latest", Some("alpine")),
            ("alpine:3", Some("alpine:3")),
            ("ghcr.io/a/b", Some("ghcr.io/a/b")),
            ("alpine::linux/arm64", Some("alpine::linux/arm64")),
            ("scratch", None),
            ("Context", None),
            ("UPPER", None),
            ("", None),
            ("a::b::c", None),
        ] {
            assert_eq!(context_name(text).ok().as_deref(), expected, "{text}");
        }
    }
}
