//! Names of branches, tags and commits: `git check-ref-format`'s grammar, checked before git sees them.

/// Longest accepted name; file systems take no longer component, and servers no longer line.
const MAX_BYTES: usize = 255;

/// Shortest accepted abbreviation of a commit, git's own default.
const MIN_ABBREVIATION: usize = 7;

/// Length of a full SHA-1 commit name.
const FULL_COMMIT: usize = 40;

/// What a `REMOTE_COMMIT` target names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CommitName<'a> {
    /// A full commit: exactly this one or an error.
    Full(String),
    /// 7 to 39 hexadecimal digits, unique among everything reachable from branches and tags.
    Abbreviated(String),
    /// A full reference such as `refs/pull/1/head`.
    Reference(&'a str),
    /// A short name: a tag, else a branch.
    Short(&'a str),
}

/// Parses the target of `REMOTE_COMMIT`.
pub(super) fn parse_commit_name(text: &str) -> Option<CommitName<'_>> {
    let hexadecimal = text.bytes().all(|b| b.is_ascii_hexdigit());
    if hexadecimal && text.len() == FULL_COMMIT {
        return Some(CommitName::Full(text.to_ascii_lowercase()));
    }
    if hexadecimal && (MIN_ABBREVIATION..FULL_COMMIT).contains(&text.len()) {
        return Some(CommitName::Abbreviated(text.to_ascii_lowercase()));
    }
    if !is_valid(text) {
        return None;
    }
    Some(if text.starts_with("refs/") {
        CommitName::Reference(text)
    } else {
        CommitName::Short(text)
    })
}

/// Returns whether `text` is what git prints for a commit.
pub(super) fn is_full_commit(text: &str) -> bool {
    text.len() == FULL_COMMIT
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Returns whether `name` may follow `refs/heads/` or `refs/tags/`, and is no option and no revision expression.
pub(super) fn is_valid(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_BYTES
        && name != "@"
        && name != "HEAD"
        && !name.starts_with('-')
        && !name.ends_with('.')
        && !name.contains("..")
        && !name.contains("@{")
        && !name
            .chars()
            .any(|c| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c))
        && name.split('/').all(|part| {
            !part.is_empty() && !part.starts_with('.') && part.strip_suffix(".lock").is_none()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_are_accepted() {
        for name in [
            "main",
            "feature/x",
            "v1.0",
            "ünïcode",
            "a-b_c",
            "0123456789",
            "user@host",
        ] {
            assert!(is_valid(name), "{name}");
        }
    }

    #[test]
    fn options_expressions_and_broken_names_are_refused() {
        for name in [
            "",
            "-x",
            "--upload-pack=touch /x",
            "--template=",
            "--end-of-options",
            "a..b",
            "@{-1}",
            "@",
            "HEAD",
            ":/x",
            "a:b",
            "a^",
            "a~1",
            "a?",
            "a*",
            "a[b",
            "a\\b",
            "a b",
            "a\r",
            "a\n",
            "a\0b",
            "refs/heads/../x",
            "/a",
            "a/",
            "a//b",
            ".a",
            "a/.b",
            "a.lock",
            "a.lock/b",
            "a.",
        ] {
            assert!(!is_valid(name), "{name:?}");
        }
        assert!(!is_valid(&"a".repeat(65_536)));
    }

    #[test]
    fn the_shape_of_a_target_decides_how_it_is_looked_up() {
        let full = "A".repeat(40);
        assert_eq!(
            parse_commit_name(&full),
            Some(CommitName::Full("a".repeat(40)))
        );
        assert_eq!(
            parse_commit_name("deadbeef"),
            Some(CommitName::Abbreviated("deadbeef".to_owned()))
        );
        assert_eq!(parse_commit_name("v1.0"), Some(CommitName::Short("v1.0")));
        assert_eq!(
            parse_commit_name("refs/pull/1/head"),
            Some(CommitName::Reference("refs/pull/1/head"))
        );
        assert_eq!(parse_commit_name("--upload-pack=x"), None);
    }
}
