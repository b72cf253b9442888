//! Fetching from a real `git http-backend`, and from servers that lie.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod auth;
mod hostile;
mod lfs;
mod limits;
mod modes;
mod objects;
mod submodules;
mod tricks;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use source::git::{
    Checkout, Depth, FetchError, FetchOptions, GitAuth, GitSource, RemoteUrl, TargetMode, fetch,
};
use source::path::RelPath;
use testkit::scratch::Scratch;
use tokio_util::sync::CancellationToken;

/// Returns a shallow source of the remote's HEAD.
fn source_of(url: &str) -> GitSource {
    GitSource {
        remote: RemoteUrl::parse(url).unwrap(),
        upstream: None,
        target_mode: TargetMode::RemoteHead,
        target: String::new(),
        depth: Depth::Shallow,
        checkout_location: RelPath::default(),
        custom_config: BTreeMap::new(),
        auth: GitAuth::None,
    }
}

/// Returns a shallow source of `target`.
fn source_at(url: &str, target_mode: TargetMode, target: &str) -> GitSource {
    GitSource {
        target_mode,
        target: target.to_owned(),
        ..source_of(url)
    }
}

/// Returns options that do not make tests wait.
fn quick() -> FetchOptions {
    FetchOptions {
        timeout: Duration::from_secs(60),
        attempts: 2,
        retry_pause: Duration::from_millis(1),
        ..FetchOptions::default()
    }
}

/// One fetch: where it went, how it ended, what it said.
struct Fetched {
    scratch: Scratch,
    result: Result<Checkout, FetchError>,
    log: String,
}

impl Fetched {
    /// Returns the workspace.
    fn workspace(&self) -> PathBuf {
        self.scratch.join("workspace")
    }

    /// Returns the content of a file in the workspace.
    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.workspace().join(path)).unwrap()
    }

    /// Returns the commit.
    fn commit(&self) -> &str {
        &self.result.as_ref().unwrap().commit
    }

    /// Returns the error with all its causes, as a log would have it.
    fn error(&self) -> String {
        let mut text = String::new();
        let mut error: Option<&dyn std::error::Error> =
            self.result.as_ref().err().map(|error| error as _);
        while let Some(cause) = error {
            text.extend([cause.to_string(), ": ".to_owned(), format!("{cause:?}\n")]);
            error = cause.source();
        }
        text
    }

    /// Returns git's answer about the workspace.
    fn git(&self, arguments: &[&str]) -> String {
        let mut command = testkit::process::clean_command("git");
        command
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .current_dir(self.workspace());
        testkit::process::run(command.args(arguments))
            .trim()
            .to_owned()
    }
}

/// Fetches into a fresh workspace.
async fn run(source: &GitSource, options: &FetchOptions) -> Fetched {
    let scratch = Scratch::new();
    let workspace = scratch.join("workspace");
    std::fs::create_dir(&workspace).unwrap();
    let lines = Mutex::new(String::new());
    let log = |line: &str| {
        let mut lines = lines.lock().unwrap();
        lines.push_str(line);
        lines.push('\n');
    };
    let result = fetch(source, &workspace, options, &log, &CancellationToken::new()).await;
    let log = lines.into_inner().unwrap();
    Fetched {
        scratch,
        result,
        log,
    }
}

/// Returns every file below `directory` that holds one of `needles`.
fn files_with(directory: &Path, needles: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_path_buf()];
    while let Some(path) = pending.pop() {
        for entry in std::fs::read_dir(path).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                pending.push(entry.path());
            } else if let Ok(bytes) = std::fs::read(entry.path())
                && needles.iter().any(|needle| {
                    bytes
                        .windows(needle.len())
                        .any(|window| window == needle.as_bytes())
                })
            {
                found.push(entry.path());
            }
        }
    }
    found
}
