//! The few git settings that a request may set.
//!
//! Most of git's configuration can name a program to run, a file to read or a host to talk to. So this is a list of what
//! is known to be harmless, and everything else is an error that names the key.

use std::collections::BTreeMap;

/// Most settings in one request.
const MAX_SETTINGS: usize = 64;

/// Longest accepted value.
const MAX_VALUE_BYTES: usize = 256;

/// What values a setting takes.
#[derive(Clone, Copy)]
enum Values {
    /// One of these words.
    Words(&'static [&'static str]),
    /// A decimal number up to this, with an optional `k` or `m`.
    Number,
    /// One printable line.
    Text,
}

const BOOLEAN: Values = Values::Words(&["true", "false", "yes", "no", "on", "off", "1", "0"]);

/// Each harmless setting, in lower case, with its values.
const ALLOWED: &[(&str, Values)] = &[
    ("advice.detachedhead", BOOLEAN),
    (
        "checkout.defaultremote",
        Values::Words(&["origin", "upstream"]),
    ),
    ("core.autocrlf", Values::Words(&["true", "false", "input"])),
    ("core.eol", Values::Words(&["lf", "crlf", "native"])),
    ("core.filemode", BOOLEAN),
    ("core.ignorecase", BOOLEAN),
    ("core.longpaths", BOOLEAN),
    ("core.precomposeunicode", BOOLEAN),
    ("core.quotepath", BOOLEAN),
    ("core.safecrlf", Values::Words(&["true", "false", "warn"])),
    ("fetch.prune", BOOLEAN),
    ("http.postbuffer", Values::Number),
    ("http.version", Values::Words(&["HTTP/1.1", "HTTP/2"])),
    ("init.defaultbranch", Values::Text),
    ("pull.ff", Values::Words(&["true", "false", "only"])),
    ("pull.rebase", Values::Words(&["true", "false", "merges"])),
    (
        "push.default",
        Values::Words(&["nothing", "current", "upstream", "simple", "matching"]),
    ),
    ("user.email", Values::Text),
    ("user.name", Values::Text),
];

/// Why a request's git settings are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// There are more than 64 settings.
    #[error("too many git config entries ({0})")]
    TooMany(usize),
    /// The key is not on the list.
    #[error("git config key {0:?} is not allowed")]
    Key(String),
    /// The key is on the list, the value is not one that it takes.
    #[error("git config key {0:?} has a value that is not allowed")]
    Value(String),
}

/// Checks that every setting is harmless.
pub(super) fn check(settings: &BTreeMap<String, String>) -> Result<(), ConfigError> {
    if settings.len() > MAX_SETTINGS {
        return Err(ConfigError::TooMany(settings.len()));
    }
    for (key, value) in settings {
        let lower = key.to_ascii_lowercase();
        let Some((_, values)) = ALLOWED.iter().find(|(allowed, _)| *allowed == lower) else {
            return Err(ConfigError::Key(
                key.chars().take(MAX_VALUE_BYTES).collect(),
            ));
        };
        if !takes(*values, value) {
            return Err(ConfigError::Value(key.clone()));
        }
    }
    Ok(())
}

/// Returns whether `value` is among `values`.
fn takes(values: Values, value: &str) -> bool {
    match values {
        Values::Words(words) => words.contains(&value),
        Values::Number => {
            let digits = value.strip_suffix(['k', 'm']).unwrap_or(value);
            (1..=9).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit())
        }
        Values::Text => {
            value.len() <= MAX_VALUE_BYTES
                && !value.starts_with('-')
                && !value.chars().any(char::is_control)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(key: &str, value: &str) -> Result<(), ConfigError> {
        check(&BTreeMap::from([(key.to_owned(), value.to_owned())]))
    }

    #[test]
    fn harmless_settings_pass_in_any_case() {
        assert_eq!(one("core.autocrlf", "input"), Ok(()));
        assert_eq!(one("core.autoCRLF", "false"), Ok(()));
        assert_eq!(one("http.postBuffer", "512m"), Ok(()));
        assert_eq!(one("user.name", "A. U. Thor"), Ok(()));
    }

    #[test]
    fn settings_that_run_read_or_contact_something_are_named_in_the_error() {
        for key in [
            "core.fsmonitor",
            "core.sshCommand",
            "core.pager",
            "core.hooksPath",
            "core.gitProxy",
            "core.attributesFile",
            "core.worktree",
            "credential.helper",
            "credential.https://example.com.helper",
            "filter.x.smudge",
            "diff.external",
            "http.proxy",
            "http.sslVerify",
            "http.extraHeader",
            "http.https://example.com/.extraHeader",
            "url.https://evil/.insteadOf",
            "include.path",
            "includeIf.gitdir:/.path",
            "remote.origin.uploadpack",
            "remote.origin.url",
            "core.autocrlf\ncore.pager",
            "core.autocrlf=x",
            "--global",
            "-c",
            "alias.fetch",
            "protocol.ext.allow",
            "submodule.recurse",
            "",
        ] {
            assert_eq!(
                one(key, "true"),
                Err(ConfigError::Key(key.to_owned())),
                "{key:?}"
            );
        }
    }

    #[test]
    fn values_outside_the_list_are_refused() {
        for (key, value) in [
            ("core.autocrlf", "maybe"),
            ("http.postBuffer", "-1"),
            ("http.postBuffer", "99999999999g"),
            ("user.name", "a\nb"),
            ("user.name", "--x"),
        ] {
            assert_eq!(one(key, value), Err(ConfigError::Value(key.to_owned())));
        }
    }
}
