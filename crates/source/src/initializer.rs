//! What a workspace is filled with, checked: everything that [`contentservice`](https://github.com/gitpod-io/gitpod) calls an initializer.
//!
//! Types only; who carries them out is the engine, which has the folder. Nothing in here has been contacted or looked up yet.

use std::fmt;
use std::str::FromStr;

use oci::Digest;
use serde::{Deserialize, Serialize};

use crate::git::{FetchOptions, GitAuth, GitSource, RequestError};
use crate::http::{FileUrl, FileUrlError};
use crate::path::RelPath;

/// Deepest nesting of composites.
pub const DEPTH_MAX: usize = 8;
/// Most initializers in all.
pub const PARTS_MAX: usize = 64;
/// Most files of one download.
pub const FILES_MAX: usize = 1000;
/// Longest name of an archive in the store of snapshots.
const KEY_MAX_BYTES: usize = 1024;

/// What a workspace is filled with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Initializer {
    /// Nothing.
    Empty,
    /// A commit of a repository.
    Git(Box<GitSource>),
    /// Several, in their order; the first that fails ends it.
    Composite {
        /// Which ones.
        parts: Vec<Initializer>,
    },
    /// Files, each with the digest that it has to have.
    Download {
        /// Which ones.
        files: Vec<Download>,
        /// Folder of the workspace that they go to.
        target: RelPath,
    },
    /// An archive from the store of snapshots.
    Snapshot {
        /// Its name there.
        key: SnapshotKey,
    },
    /// An archive, or else repositories.
    Prebuild {
        /// Name of the archive.
        snapshot: SnapshotKey,
        /// What is fetched into an empty workspace when there is no such archive, or it is damaged.
        git: Vec<GitSource>,
    },
    /// The backup of the tenant, from the store of snapshots.
    Backup {
        /// Folder of the workspace that it goes to.
        location: RelPath,
    },
}

/// A file to download.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Download {
    /// Where from; may hold a secret.
    pub url: DownloadUrl,
    /// Path below the target.
    pub path: RelPath,
    /// What it has to be.
    pub digest: Digest,
}

/// The address of a file to download. Shown without what may be secret in it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DownloadUrl(String);

impl DownloadUrl {
    /// Parses an address.
    pub fn parse(text: &str) -> Result<Self, FileUrlError> {
        FileUrl::parse(text).map(|url| Self(url.expose().to_owned()))
    }

    /// Returns the address for who fetches it.
    pub fn file_url(&self) -> Result<FileUrl, FileUrlError> {
        FileUrl::parse(&self.0)
    }
}

impl TryFrom<String> for DownloadUrl {
    type Error = FileUrlError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<DownloadUrl> for String {
    fn from(url: DownloadUrl) -> Self {
        url.0
    }
}

impl fmt::Debug for DownloadUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.file_url() {
            Ok(url) => f.write_str(&url.shown()),
            Err(_) => f.write_str("…"),
        }
    }
}

/// The name of an archive: a clean relative path, never an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotKey(RelPath);

/// Tells that a text is no name of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a snapshot: a relative path of letters, digits and `.-_/@`")]
pub struct SnapshotKeyError(String);

impl SnapshotKey {
    /// Returns the path within the store.
    pub fn path(&self) -> &RelPath {
        &self.0
    }
}

impl FromStr for SnapshotKey {
    type Err = SnapshotKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || SnapshotKeyError(text.chars().take(128).collect());
        let is_plain = text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_/@".contains(&byte));
        let is_clean = !text.is_empty()
            && text.len() <= KEY_MAX_BYTES
            && !text.starts_with(['/', '-'])
            && is_plain;
        if !is_clean
            || text
                .split('/')
                .any(|part| part.is_empty() || part.starts_with('.'))
        {
            return Err(wrong());
        }
        RelPath::parse(text).map(Self).map_err(|_| wrong())
    }
}

impl TryFrom<String> for SnapshotKey {
    type Error = SnapshotKeyError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SnapshotKey> for String {
    fn from(key: SnapshotKey) -> Self {
        key.0.as_str().to_owned()
    }
}

/// Tells why an initializer can never work.
#[derive(Debug, thiserror::Error)]
pub enum InitializerError {
    /// Composites within composites.
    #[error("initializers are nested deeper than {DEPTH_MAX}")]
    TooDeep,
    /// Too much at once.
    #[error("there are more than {PARTS_MAX} initializers")]
    TooMany,
    /// Too many files.
    #[error("there are more than {FILES_MAX} files to download")]
    TooManyFiles,
    /// A repository.
    #[error("git initializer")]
    Git(#[source] RequestError),
    /// A file that would go where git keeps its own.
    #[error("file path {0:?} lies within .git")]
    GitFolder(String),
    /// A file without a name.
    #[error("a file to download has no path")]
    NoPath,
    /// An address without TLS.
    #[error("plain http to {0} is not allowed; use https")]
    PlainHttp(String),
    /// An address that is not connected to.
    #[error(transparent)]
    Egress(egress::Refused),
    /// There is no store of snapshots.
    #[error("snapshots are not configured here (the operator's setting snapshots.folder)")]
    NoSnapshots,
}

impl Initializer {
    /// Returns its name in the published API.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Git(_) => "git",
            Self::Composite { .. } => "composite",
            Self::Download { .. } => "download",
            Self::Snapshot { .. } => "snapshot",
            Self::Prebuild { .. } => "prebuild",
            Self::Backup { .. } => "backup",
        }
    }

    /// Checks what can be checked without contacting anything.
    pub fn check(&self, options: &FetchOptions) -> Result<(), InitializerError> {
        let mut n_parts = 0;
        self.check_at(options, 0, &mut n_parts)
    }

    fn check_at(
        &self,
        options: &FetchOptions,
        depth: usize,
        n_parts: &mut usize,
    ) -> Result<(), InitializerError> {
        *n_parts += 1;
        if depth > DEPTH_MAX {
            return Err(InitializerError::TooDeep);
        }
        if *n_parts > PARTS_MAX {
            return Err(InitializerError::TooMany);
        }
        let has_store = || {
            options
                .snapshots
                .is_some()
                .then_some(())
                .ok_or(InitializerError::NoSnapshots)
        };
        match self {
            Self::Empty => Ok(()),
            Self::Git(git) => git.check(options).map_err(InitializerError::Git),
            Self::Composite { parts } => parts
                .iter()
                .try_for_each(|part| part.check_at(options, depth + 1, n_parts)),
            Self::Download { files, target } => check_files(files, target, options),
            Self::Snapshot { .. } | Self::Backup { .. } => has_store(),
            Self::Prebuild { git, .. } => {
                has_store()?;
                *n_parts += git.len();
                git.iter()
                    .try_for_each(|git| git.check(options).map_err(InitializerError::Git))
            }
        }
    }

    /// Returns every repository in it.
    pub fn repositories(&self) -> Vec<&GitSource> {
        match self {
            Self::Git(git) => vec![git],
            Self::Composite { parts } => parts.iter().flat_map(Self::repositories).collect(),
            Self::Prebuild { git, .. } => git.iter().collect(),
            Self::Empty | Self::Download { .. } | Self::Snapshot { .. } | Self::Backup { .. } => {
                Vec::new()
            }
        }
    }

    /// Returns every secret in it.
    pub fn secrets(&self) -> Vec<String> {
        let mut secrets: Vec<String> = self
            .repositories()
            .into_iter()
            .filter_map(GitSource::secret)
            .collect();
        self.add_download_secrets(&mut secrets);
        secrets
    }

    fn add_download_secrets(&self, secrets: &mut Vec<String>) {
        match self {
            Self::Composite { parts } => parts
                .iter()
                .for_each(|part| part.add_download_secrets(secrets)),
            Self::Download { files, .. } => {
                // What a presigned address is signed with stands behind the question mark.
                let queries = files.iter().filter_map(|file| file.url.0.split_once('?'));
                secrets.extend(queries.map(|(_, query)| query.to_owned()));
            }
            _ => {}
        }
    }

    /// Returns the same without credentials, and with files named by what they are: what decides what comes of it.
    #[must_use]
    pub fn identity(&self) -> Self {
        let plain = |git: &GitSource| GitSource {
            auth: GitAuth::None,
            ..git.clone()
        };
        match self {
            Self::Git(git) => Self::Git(Box::new(plain(git))),
            Self::Composite { parts } => Self::Composite {
                parts: parts.iter().map(Self::identity).collect(),
            },
            Self::Prebuild { snapshot, git } => Self::Prebuild {
                snapshot: snapshot.clone(),
                git: git.iter().map(plain).collect(),
            },
            Self::Download { files, target } => Self::Download {
                files: files
                    .iter()
                    .map(|file| Download {
                        url: DownloadUrl(String::new()),
                        ..file.clone()
                    })
                    .collect(),
                target: target.clone(),
            },
            Self::Empty | Self::Snapshot { .. } | Self::Backup { .. } => self.clone(),
        }
    }
}

fn check_files(
    files: &[Download],
    target: &RelPath,
    options: &FetchOptions,
) -> Result<(), InitializerError> {
    if files.len() > FILES_MAX {
        return Err(InitializerError::TooManyFiles);
    }
    for file in files {
        if file.path.is_root() {
            return Err(InitializerError::NoPath);
        }
        let whole = target.join(&file.path);
        if whole
            .components()
            .any(|part| part.eq_ignore_ascii_case(".git"))
        {
            return Err(InitializerError::GitFolder(whole.as_str().to_owned()));
        }
        let Ok(url) = url::Url::parse(&file.url.0) else {
            continue;
        };
        if url.scheme() == "http" && !options.allows_plain_http(&url) {
            let host = url.host_str().unwrap_or_default().to_owned();
            return Err(InitializerError::PlainHttp(host));
        }
        options
            .egress
            .check_url(&url)
            .map_err(InitializerError::Egress)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, url: &str) -> Download {
        Download {
            url: DownloadUrl::parse(url).unwrap(),
            path: RelPath::parse(path).unwrap(),
            digest: Digest::sha256(b"x"),
        }
    }

    fn download(files: Vec<Download>) -> Initializer {
        Initializer::Download {
            files,
            target: RelPath::default(),
        }
    }

    #[test]
    fn nesting_and_numbers_have_limits() {
        let options = FetchOptions::default();
        let nest = |depth| {
            (0..depth).fold(Initializer::Empty, |inner, _| Initializer::Composite {
                parts: vec![inner],
            })
        };
        nest(DEPTH_MAX).check(&options).unwrap();
        assert!(matches!(
            nest(DEPTH_MAX + 1).check(&options),
            Err(InitializerError::TooDeep)
        ));
        let wide = |n| Initializer::Composite {
            parts: vec![Initializer::Empty; n],
        };
        wide(PARTS_MAX - 1).check(&options).unwrap();
        assert!(matches!(
            wide(PARTS_MAX).check(&options),
            Err(InitializerError::TooMany)
        ));
        let many = download(vec![file("a", "https://example.com/a"); FILES_MAX + 1]);
        assert!(matches!(
            many.check(&options),
            Err(InitializerError::TooManyFiles)
        ));
    }

    #[test]
    fn names_of_snapshots_are_clean_paths() {
        for text in ["a", "workspaces/1/snapshot-2.tar", "snapshot.tar@bucket"] {
            text.parse::<SnapshotKey>().unwrap();
        }
        for text in [
            "",
            "/etc/shadow",
            "../x",
            "a/../../x",
            "a//b",
            "./a",
            ".hidden",
            "https://x/y",
            "file:a",
            "-o",
            "a b",
            "a\0b",
            "ä",
            "a/",
        ] {
            assert!(text.parse::<SnapshotKey>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn files_go_neither_into_git_nor_come_from_where_nothing_may() {
        let mut options = FetchOptions {
            egress: egress::Policy::public(),
            ..FetchOptions::default()
        };
        for path in [".git/hooks/post-checkout", "a/.GIT/config"] {
            let error = download(vec![file(path, "https://example.com/a")]).check(&options);
            assert!(
                matches!(error, Err(InitializerError::GitFolder(_))),
                "{path}"
            );
        }
        let inner = download(vec![file("a", "https://169.254.169.254/a")]).check(&options);
        assert!(matches!(inner, Err(InitializerError::Egress(_))));
        let plain = download(vec![file("a", "http://example.com/a")]).check(&options);
        assert!(matches!(plain, Err(InitializerError::PlainHttp(_))));
        options.http_hosts = vec!["example.com".to_owned()];
        download(vec![file("a", "http://example.com/a")])
            .check(&options)
            .unwrap();
        for text in [
            "file:///etc/passwd",
            "ftp://x/y",
            "data:,x",
            "unix:/x",
            "/etc/passwd",
            "",
        ] {
            assert!(DownloadUrl::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_identity_holds_no_secret_and_the_secrets_are_all_found() {
        let git: GitSource = serde_json::from_value(serde_json::json!({
            "remote": "https://example.com/a.git", "target_mode": "remote_head",
            "auth": { "basic": { "user": "u", "password": "s3cret-one" } },
        }))
        .unwrap();
        let all = Initializer::Composite {
            parts: vec![
                Initializer::Git(Box::new(git)),
                download(vec![file(
                    "a",
                    "https://example.com/a?signature=s3cret-two",
                )]),
            ],
        };
        let secrets = all.secrets().join(" ");
        assert!(
            secrets.contains("s3cret-one") && secrets.contains("s3cret-two"),
            "{secrets}"
        );
        for shown in [
            serde_json::to_string(&all.identity()).unwrap(),
            format!("{all:?}"),
        ] {
            assert!(!shown.contains("s3cret"), "{shown}");
        }
    }
}
