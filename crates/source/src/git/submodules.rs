//! The submodules of a commit: which of them are fetched, from where, and what is said of the others.
//!
//! For a commit that has submodules, in order:
//!
//! 1. read `.gitmodules` of that very commit, and only path, address and `update = none` of it;
//! 2. work out each address, relative ones against the repository's own;
//! 3. skip, with a line in the log, what [`Submodules`] or the egress policy does not allow, or what no commit can be had of;
//! 4. hand the others back, to be fetched like any repository: exactly the commit that is recorded, into its own folder.
//!
//! Git's own `submodule` command is never run: it would resolve names itself, and `.gitmodules` can name commands to it. What is
//! allowed and cannot be fetched is an error, so that a build never goes on with half of its files.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use url::Url;

use super::command::{Git, Reach};
use super::error::{FetchError, RequestError};
use super::remote::RemoteUrl;
use super::{GitAuth, GitSource, Session, TargetMode};
use crate::path::RelPath;

/// How deep submodules lie within submodules.
const MAX_DEPTH: usize = 4;

/// Most submodules of one fetch, those of submodules included.
const MAX_SUBMODULES: usize = 64;

/// Largest `.gitmodules` that is read, as git lists it.
const MAX_LISTING_BYTES: usize = 1 << 20;

/// Most skipped submodules that are named one by one in the log.
const MAX_NAMED: usize = 20;

/// Which submodules are fetched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Submodules {
    /// None; the log says which there are.
    #[default]
    Off,
    /// Those at the scheme, host and port of the repository that the request names.
    SameHost,
    /// Those at any host that may be connected to. Other hosts get no credential.
    All,
}

/// A commit of another repository, recorded in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    /// Where in the tree.
    pub(super) path: Vec<u8>,
    /// The commit.
    pub(super) commit: String,
}

/// How many more submodules a fetch may have, and how deep.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance {
    n_left: usize,
    depth_left: usize,
}

impl Default for Allowance {
    fn default() -> Self {
        Self {
            n_left: MAX_SUBMODULES,
            depth_left: MAX_DEPTH,
        }
    }
}

impl Allowance {
    /// Takes `n` submodules, one level further down.
    pub(super) fn take(&mut self, n: usize) -> Result<(), FetchError> {
        let limit = |limit: String| FetchError::Limit { limit };
        if n == 0 {
            return Ok(());
        }
        self.n_left = self
            .n_left
            .checked_sub(n)
            .ok_or_else(|| limit(format!("{MAX_SUBMODULES} submodules")))?;
        self.depth_left = self
            .depth_left
            .checked_sub(1)
            .ok_or_else(|| limit(format!("{MAX_DEPTH} levels of submodules")))?;
        Ok(())
    }

    /// Comes back up from the level that [`Self::take`] went down to.
    pub(super) fn come_up(&mut self, n: usize) {
        if n > 0 {
            self.depth_left += 1;
        }
    }
}

/// Why a submodule is skipped.
#[derive(Debug)]
enum Skip {
    Off,
    NoAddress,
    Path,
    NotWanted,
    Address,
    OtherHost(RemoteUrl),
    Refused(RequestError),
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("the configuration wants none (git.submodules)"),
            Self::NoAddress => f.write_str(".gitmodules has no address for it"),
            Self::Path => f.write_str("its path is not acceptable"),
            Self::NotWanted => f.write_str(".gitmodules says `update = none`"),
            Self::Address => f.write_str("its address is neither relative nor https:// or http://"),
            Self::OtherHost(url) => write!(
                f,
                "{} is another host than the repository's (git.submodules)",
                url.origin()
            ),
            Self::Refused(error) => error.fmt(f),
        }
    }
}

/// What `.gitmodules` says of one submodule.
#[derive(Debug, Default)]
struct Entry {
    path: Option<String>,
    url: Option<String>,
    update: Option<String>,
}

/// Returns what is to be fetched for `links`, the submodules of `commit`; says in the log what is not.
///
/// `top` is the repository that the request names, `parent` the one that has the submodules.
pub(super) async fn wanted(
    git: &Git<'_>,
    session: &Session<'_>,
    (top, parent): (&RemoteUrl, &GitSource),
    commit: &str,
    links: &[Link],
) -> Result<Vec<GitSource>, FetchError> {
    if links.is_empty() {
        return Ok(Vec::new());
    }
    let entries = match session.options.submodules {
        Submodules::Off => Vec::new(),
        Submodules::SameHost | Submodules::All => entries(git, commit).await?,
    };
    let mut wanted = Vec::new();
    let mut n_skipped = 0;
    for link in links {
        let why = match choose(session, (top, parent), &entries, link) {
            Ok(source) => {
                wanted.push(source);
                continue;
            }
            Err(why) => why,
        };
        n_skipped += 1;
        if n_skipped <= MAX_NAMED {
            let path = String::from_utf8_lossy(&link.path);
            git.remark(&format!("submodule {path:?} is not fetched: {why}"));
        }
    }
    if n_skipped > MAX_NAMED {
        let n_more = n_skipped - MAX_NAMED;
        git.remark(&format!("{n_more} more submodules are not fetched"));
    }
    Ok(wanted)
}

/// Returns the entries of the commit's `.gitmodules`; none when there is no such file, or one that git cannot read.
async fn entries(git: &Git<'_>, commit: &str) -> Result<Vec<Entry>, FetchError> {
    let blob = format!("{commit}:.gitmodules");
    let arguments = [
        "config",
        "--no-includes",
        "--blob",
        &blob,
        "--null",
        "--list",
    ];
    let listing = git
        .attempt(Reach::Local, &arguments, MAX_LISTING_BYTES)
        .await?;
    Ok(listing.map_or_else(|_| Vec::new(), |listing| parse(&listing)))
}

/// Parses git's listing: `submodule.NAME.KEY<LF>VALUE<NUL>`. The last value of a key counts, as with git.
fn parse(listing: &[u8]) -> Vec<Entry> {
    let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
    for setting in String::from_utf8_lossy(listing).split('\0') {
        let Some((key, value)) = setting.split_once('\n') else {
            continue;
        };
        let named = key
            .strip_prefix("submodule.")
            .and_then(|rest| rest.rsplit_once('.'));
        let Some((name, key)) = named else { continue };
        let entry = entries.entry(name.to_owned()).or_default();
        match key {
            "path" => entry.path = Some(value.to_owned()),
            "url" => entry.url = Some(value.to_owned()),
            "update" => entry.update = Some(value.to_owned()),
            _ => {}
        }
    }
    entries.into_values().collect()
}

/// Returns how one submodule is fetched, or why it is not.
fn choose(
    session: &Session<'_>,
    (top, parent): (&RemoteUrl, &GitSource),
    entries: &[Entry],
    link: &Link,
) -> Result<GitSource, Skip> {
    let policy = session.options.submodules;
    if policy == Submodules::Off {
        return Err(Skip::Off);
    }
    let path = std::str::from_utf8(&link.path).map_err(|_| Skip::Path)?;
    let below = RelPath::parse(path).map_err(|_| Skip::Path)?;
    let entry = entries
        .iter()
        .find(|entry| entry.path.as_deref().map(trimmed) == Some(path))
        .ok_or(Skip::NoAddress)?;
    if entry.update.as_deref() == Some("none") {
        return Err(Skip::NotWanted);
    }
    let url = entry.url.as_deref().ok_or(Skip::NoAddress)?;
    let remote = address(&parent.remote, url).ok_or(Skip::Address)?;
    if policy == Submodules::SameHost && remote.origin() != top.origin() {
        return Err(Skip::OtherHost(remote));
    }
    let location = format!("{}/{below}", parent.checkout_location);
    let source = GitSource {
        remote,
        upstream: None,
        target_mode: TargetMode::RemoteCommit,
        target: link.commit.clone(),
        depth: parent.depth,
        checkout_location: RelPath::parse(&location).map_err(|_| Skip::Path)?,
        custom_config: parent.custom_config.clone(),
        // The credential is the session's, and goes to its own host only.
        auth: GitAuth::None,
    };
    source.check(session.options).map_err(Skip::Refused)?;
    Ok(source)
}

/// Returns a path as trees have it; `.gitmodules` may end it with a slash.
fn trimmed(path: &str) -> &str {
    path.trim_end_matches('/')
}

/// Returns the address that `text` stands for in a repository that is at `base`.
fn address(base: &RemoteUrl, text: &str) -> Option<RemoteUrl> {
    let mut rest = text;
    if !rest.starts_with("./") && !rest.starts_with("../") {
        return RemoteUrl::parse(text).ok();
    }
    let mut url: Url = base.url().clone();
    let mut path = base.url().path().trim_end_matches('/').to_owned();
    loop {
        if let Some(below) = rest.strip_prefix("./") {
            rest = below;
        } else if let Some(above) = rest.strip_prefix("../") {
            // Beyond the host's root, git would begin to take the host itself away.
            path.truncate(path.rfind('/')?);
            rest = above;
        } else {
            break;
        }
    }
    let below = RelPath::parse(rest).ok()?;
    url.set_path(&format!("{path}/{below}"));
    RemoteUrl::parse(url.as_str()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_addresses_are_taken_from_the_repository_s_own() {
        let base = RemoteUrl::parse("https://example.com/group/project.git").unwrap();
        for (text, expected) in [
            ("../other.git", Some("https://example.com/group/other.git")),
            ("../../a/b", Some("https://example.com/a/b")),
            (
                "./inner",
                Some("https://example.com/group/project.git/inner"),
            ),
            ("https://else.where/x", Some("https://else.where/x")),
            ("../../../x", None),
            ("../../../../evil.test/x", None),
            ("../a/../../x", None),
            ("..", None),
            ("/etc", None),
            ("file:///etc", None),
            ("ssh://git@example.com/x", None),
            ("git@example.com:x/y", None),
            ("-u./x", None),
            ("ext::sh -c x", None),
            ("https://user:pw@example.com/x", None),
            ("https://example.com/x\n", None),
            ("https://example.com%0a.evil/x", None),
            ("../x?y=z", Some("https://example.com/group/x%3Fy=z")),
        ] {
            let found = address(&base, text);
            assert_eq!(found.as_ref().map(RemoteUrl::as_str), expected, "{text}");
        }
    }

    #[test]
    fn only_three_keys_of_a_submodule_are_read_and_the_last_value_counts() {
        let listing = b"core.fsmonitor\nx\0submodule.a.b.path\nm\0submodule.a.b.url\n1\0submodule.a.b.url\n2\0submodule.a.b.update\n!touch x\0submodule.recurse\ntrue\0novalue\0";
        let entries = parse(listing);
        assert_eq!(entries.len(), 1, "{entries:?}");
        assert_eq!(entries[0].path.as_deref(), Some("m"));
        assert_eq!(entries[0].url.as_deref(), Some("2"));
    }

    #[test]
    fn an_allowance_counts_all_submodules_and_the_levels_separately() {
        let mut allowance = Allowance::default();
        for _ in 0..10 {
            allowance.take(6).unwrap();
            allowance.come_up(6);
        }
        assert!(allowance.take(5).is_err());
        let mut allowance = Allowance::default();
        for _ in 0..MAX_DEPTH {
            allowance.take(1).unwrap();
        }
        let error = allowance.take(1).unwrap_err().to_string();
        assert!(error.contains("4 levels of submodules"), "{error}");
    }
}
