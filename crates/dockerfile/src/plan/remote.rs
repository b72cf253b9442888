//! Sources of ADD that are somewhere else: what is a git repository, what is a URL, and what is neither.
//!
//! `https://host/path.git` is a repository, any other address a file; `git@host:path`, `ssh://` and `git://` are repositories. What to
//! take of one stands behind `#` (`branch:folder`) or in its query (`?branch=…&subdir=…`), as in `BuildKit`.

use super::types::{GitFolder, RemoteFile};
use crate::path;

/// Name of a file whose address has none.
const UNNAMED: &str = "__unnamed__";
/// Name of a file whose own name cannot be one.
const UNSAFE_NAME: &str = "download";
/// Longest name of a file.
const NAME_MAX_BYTES: usize = 255;
/// Digits of a whole commit, by SHA-256.
const COMMIT_DIGITS_MAX: usize = 64;

/// What a source is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// A path in the context.
    Path,
    /// A file.
    File(RemoteFile),
    /// A git repository.
    Git(GitFolder),
}

/// Finds out what `source` is.
///
/// # Errors
/// What is wrong with the address.
pub(super) fn classify(source: &str) -> Result<Kind, String> {
    let Some((scheme, rest)) = scheme_of(source) else {
        if is_scp_address(source) {
            return Err(over_ssh());
        }
        return Ok(Kind::Path);
    };
    match scheme.as_str() {
        "http" | "https" => {}
        "ssh" => return Err(over_ssh()),
        "git" => {
            return Err(
                "repositories are fetched over https, not by git's own protocol".to_owned(),
            );
        }
        _ => return Ok(Kind::Path),
    }
    let host_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host, behind) = rest.split_at(host_end);
    if host.rsplit('@').next().is_none_or(str::is_empty) {
        return Err("the address has no host".to_owned());
    }
    if source.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("an address cannot hold blanks; write them as %20".to_owned());
    }
    let (behind, fragment) = split(behind, '#');
    let (path, query) = split(behind, '?');
    if path.strip_suffix(".git").is_some() {
        let remote = format!("{scheme}://{host}{path}");
        return git(remote, fragment, query).map(Kind::Git);
    }
    Ok(Kind::File(RemoteFile {
        url: source.to_owned(),
        name: file_name(path),
        checksum: None,
    }))
}

/// Tells whether `text` can be a commit or the beginning of one.
pub(super) fn is_commit(text: &str) -> bool {
    let is_hex = |byte: u8| byte.is_ascii_hexdigit();
    !text.is_empty() && text.len() <= COMMIT_DIGITS_MAX && text.bytes().all(is_hex)
}

fn over_ssh() -> String {
    "repositories are fetched over https, not over ssh".to_owned()
}

fn scheme_of(source: &str) -> Option<(String, &str)> {
    let (scheme, rest) = source.split_once("://")?;
    let is_scheme = !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric());
    is_scheme.then(|| (scheme.to_ascii_lowercase(), rest))
}

/// Tells whether this is `user@host:path`.
fn is_scp_address(source: &str) -> bool {
    let is_word = |text: &str| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !text.is_empty() && text.chars().all(is_plain)
    };
    let parts = source.split_once('@');
    let host = parts.and_then(|(user, rest)| Some((user, rest.split_once(':')?)));
    host.is_some_and(|(user, (host, path))| is_word(user) && is_word(host) && !path.is_empty())
}

fn split(text: &str, at: char) -> (&str, &str) {
    text.split_once(at).unwrap_or((text, ""))
}

/// Returns the name that a file gets when it is put into a directory.
fn file_name(path: &str) -> String {
    let decoded = decode(path);
    let base = decoded.trim_end_matches('/').rsplit('/').next();
    let base = base.unwrap_or_default();
    if matches!(base, "" | ".") {
        return UNNAMED.to_owned();
    }
    safe_name(base)
}

/// Returns `name`, unless it would be no name, or one that hides what it is.
fn safe_name(name: &str) -> String {
    let name = name.trim();
    let is_odd = |c: char| c.is_control() || c == '/';
    if matches!(name, "" | "." | "..") || name.contains(is_odd) || name.len() > NAME_MAX_BYTES {
        return UNSAFE_NAME.to_owned();
    }
    name.to_owned()
}

/// Resolves `%20` and the like; what is not well-formed, or no UTF-8, stays.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|_| *first == b'%');
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let is_hex = |digits: &&str| digits.bytes().all(|b| b.is_ascii_hexdigit());
        let byte = digits.filter(is_hex);
        let byte = byte.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        if let Some(byte) = byte {
            bytes.push(byte);
            rest = after.get(2..).unwrap_or_default();
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

fn git(remote: String, fragment: &str, query: &str) -> Result<GitFolder, String> {
    let (reference, folder) = split(fragment, ':');
    let mut this = GitFolder {
        remote,
        reference: decode(reference),
        folder: clean_folder(&decode(folder)),
        commit: None,
        git_directory: None,
        submodules: None,
    };
    let mut named = None;
    let mut seen: Vec<String> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = split(pair, '=');
        let (key, value) = (decode(key), decode(&value.replace('+', " ")));
        if seen.contains(&key) {
            return Err(format!("{key:?} is given twice in the query"));
        }
        this.apply(&key, &value, &mut named)?;
        seen.push(key);
    }
    if let Some(named) = named {
        agree("ref", &mut this.reference, named)?;
    }
    Ok(this)
}

fn clean_folder(folder: &str) -> String {
    path::clean(&format!("/{folder}"))
        .trim_start_matches('/')
        .to_owned()
}

/// Sets `field`, unless it says something else already.
fn agree(what: &str, field: &mut String, value: String) -> Result<(), String> {
    if !field.is_empty() && *field != value {
        return Err(format!("two values for {what}: {field:?} and {value:?}"));
    }
    *field = value;
    Ok(())
}

impl GitFolder {
    fn apply(&mut self, key: &str, value: &str, named: &mut Option<String>) -> Result<(), String> {
        let may_be_empty = matches!(key, "submodules" | "keep-git-dir" | "fetch-by-commit");
        if value.is_empty() && !may_be_empty {
            return Err(format!("{key:?} in the query has no value"));
        }
        let switch = || match value {
            "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            _ => Err(format!("{key:?} in the query is either true or false")),
        };
        let full = |prefix: &str| {
            let name = value.strip_prefix(prefix).unwrap_or(value);
            format!("{prefix}{name}")
        };
        match key {
            "ref" => agree("ref", &mut self.reference, value.to_owned()),
            "tag" | "branch" if named.is_some() => {
                Err("a branch and a tag in one query".to_owned())
            }
            "tag" => {
                *named = Some(full("refs/tags/"));
                Ok(())
            }
            "branch" => {
                *named = Some(full("refs/heads/"));
                Ok(())
            }
            "subdir" => agree("subdir", &mut self.folder, clean_folder(value)),
            "checksum" | "commit" if !is_commit(value) => {
                Err(format!("{value:?} is not (the beginning of) a commit"))
            }
            "checksum" | "commit" => {
                self.commit = Some(value.to_owned());
                Ok(())
            }
            "keep-git-dir" => {
                self.git_directory = Some(switch()?);
                Ok(())
            }
            "submodules" => {
                self.submodules = Some(switch()?);
                Ok(())
            }
            // Says only how to get there.
            "fetch-by-commit" => switch().map(drop),
            "mtime" if value == "commit" => Ok(()),
            "mtime" => {
                Err("files of a repository are as old as its commit: mtime=commit".to_owned())
            }
            _ => Err(format!("the query of a repository does not know {key:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(url: &str) -> String {
        match classify(url) {
            Ok(Kind::File(file)) => file.name,
            other => panic!("{url}: {other:?}"),
        }
    }

    #[test]
    fn s06_names_of_files_come_from_the_address_and_are_safe() {
        for (url, expected) in [
            ("https://a.b/c", "c"),
            ("https://a.b/c.tar.gz?x=/y#z", "c.tar.gz"),
            ("https://a.b/d/c/", "c"),
            ("https://a.b/a%20b", "a b"),
            ("https://a.b/%e8%b3%87.txt", "\u{8cc7}.txt"),
            ("https://a.b/%20x%20", "x"),
            ("https://a.b", "__unnamed__"),
            ("https://a.b/", "__unnamed__"),
            ("https://a.b/?q=c", "__unnamed__"),
            ("https://a.b/x/..", "download"),
            ("https://a.b/%2e%2e", "download"),
            ("https://a.b/a%00b", "download"),
            ("https://a.b/a%0ab", "download"),
            ("https://a.b/a%2f..%2f..%2fetc", "etc"),
            ("https://a.b/%ff", "%ff"),
            ("https://a.b/50%", "50%"),
            ("HTTP://u:p@a.b:1/c", "c"),
            ("https://a.b/c.git/", "c.git"),
            ("https://a.b/c.git.txt", "c.git.txt"),
        ] {
            assert_eq!(name(url), expected, "{url}");
        }
        let long = format!("https://a.b/{}", "x".repeat(256));
        assert_eq!(name(&long), "download");
    }

    #[test]
    fn repositories_are_told_from_files() {
        let parsed = |source: &str| match classify(source) {
            Ok(Kind::Git(git)) => (git.remote, git.reference, git.folder),
            other => panic!("{source}: {other:?}"),
        };
        let remote = "https://a.b/c.git";
        for (source, reference, folder) in [
            ("https://a.b/c.git", "", ""),
            ("https://a.b/c.git#v1", "v1", ""),
            ("https://a.b/c.git#release/1.2:x/y", "release/1.2", "x/y"),
            ("https://a.b/c.git#:x/../y/", "", "y"),
            ("https://a.b/c.git?ref=v1&subdir=/s", "v1", "s"),
            ("https://a.b/c.git?subdir=../../s#v1", "v1", "s"),
            ("https://a.b/c.git?tag=v1", "refs/tags/v1", ""),
            ("https://a.b/c.git?branch=refs/heads/m", "refs/heads/m", ""),
        ] {
            let expected = (remote.to_owned(), reference.to_owned(), folder.to_owned());
            assert_eq!(parsed(source), expected, "{source}");
        }
        let Ok(Kind::Git(git)) = classify("http://a.b/c.git?keep-git-dir&checksum=ab&submodules=0")
        else {
            panic!("is no repository");
        };
        assert_eq!(git.commit.as_deref(), Some("ab"));
        assert_eq!(
            (git.git_directory, git.submodules),
            (Some(true), Some(false))
        );
    }

    #[test]
    fn what_cannot_be_fetched_is_refused_with_words() {
        for (source, words) in [
            ("git@a.b:c/d.git", "not over ssh"),
            ("ssh://git@a.b/c.git", "not over ssh"),
            ("git://a.b/c.git", "git's own protocol"),
            ("https:///x", "has no host"),
            ("https://user@/x", "has no host"),
            ("https://a.b/x y", "blanks"),
            ("https://a.b/c.git?ref=a#b", "two values for ref"),
            ("https://a.b/c.git?ref=a&tag=b", "two values for ref"),
            ("https://a.b/c.git?tag=a&branch=b", "a branch and a tag"),
            ("https://a.b/c.git?invalid=1", "does not know \"invalid\""),
            ("https://a.b/c.git?ref=", "has no value"),
            ("https://a.b/c.git?commit=xyz", "a commit"),
            ("https://a.b/c.git?ref=a&ref=a", "given twice"),
            ("https://a.b/c.git?submodules=x", "true or false"),
            ("https://a.b/c.git?mtime=checkout", "as old as its commit"),
            ("https://a.b/c.git?keep-git-dir=maybe", "true or false"),
        ] {
            let error = classify(source).unwrap_err();
            assert!(error.contains(words), "{source}: {error}");
        }
        for path in [
            "x",
            "./a@b:c",
            "a/b@c:d",
            "@x:y",
            "a@b",
            "ftp://a/b",
            "github.com/a/b",
            ".git",
        ] {
            assert_eq!(classify(path), Ok(Kind::Path), "{path}");
        }
    }
}
