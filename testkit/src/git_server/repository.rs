//! Repositories made from lists of files, with `git fast-import`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::process;

/// Date of the first commit, in seconds since 1970; each further one is a minute later.
const FIRST_DATE: u64 = 1_700_000_000;

/// A bare repository that a [`GitServer`](super::GitServer) serves.
#[derive(Debug)]
pub struct Repository {
    path: PathBuf,
    n_commits: u64,
}

/// One file of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Where in the repository.
    pub path: String,
    /// The content; the target of a symbolic link, the commit of a submodule.
    pub content: Vec<u8>,
    /// What it is.
    pub mode: FileMode,
}

/// What an entry of a commit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileMode {
    /// An ordinary file.
    Regular,
    /// A file that may be run.
    Executable,
    /// A symbolic link.
    Symlink,
    /// A commit of another repository.
    Submodule,
}

impl File {
    /// Makes an ordinary file.
    pub fn new(path: &str, content: impl Into<Vec<u8>>) -> Self {
        Self {
            path: path.to_owned(),
            content: content.into(),
            mode: FileMode::Regular,
        }
    }

    /// Makes a file that may be run.
    pub fn executable(path: &str, content: impl Into<Vec<u8>>) -> Self {
        Self {
            mode: FileMode::Executable,
            ..Self::new(path, content)
        }
    }

    /// Makes a symbolic link.
    #[must_use]
    pub fn symlink(path: &str, target: &str) -> Self {
        Self {
            mode: FileMode::Symlink,
            ..Self::new(path, target)
        }
    }

    /// Makes a submodule at this commit of another repository.
    #[must_use]
    pub fn submodule(path: &str, commit: &str) -> Self {
        Self {
            mode: FileMode::Submodule,
            ..Self::new(path, commit)
        }
    }
}

impl Repository {
    /// Makes an empty bare repository at `path`.
    #[must_use]
    pub fn create(path: PathBuf) -> Self {
        process::run(
            git()
                .args([
                    "init",
                    "--quiet",
                    "--bare",
                    "--template=",
                    "--initial-branch=main",
                ])
                .arg(&path),
        );
        Self { path, n_commits: 0 }
    }

    /// Returns where the repository is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a commit that holds exactly `files` to `branch`, which is made when it is new, and returns the commit's name.
    pub fn commit(&mut self, branch: &str, files: &[File]) -> String {
        let reference = format!("refs/heads/{branch}");
        let exists =
            process::finish(
                self.git()
                    .args(["rev-parse", "--verify", "--quiet", &reference]),
            )
            .status
            .success();
        let date = FIRST_DATE + 60 * self.n_commits;
        self.n_commits += 1;
        let message = format!("commit {}\n", self.n_commits);
        let mut stream = format!("commit {reference}\ncommitter A U Thor <author@example.com> {date} +0000\ndata {}\n{message}", message.len()).into_bytes();
        if exists {
            stream.extend_from_slice(format!("from {reference}^0\n").as_bytes());
        }
        stream.extend_from_slice(b"deleteall\n");
        for file in files {
            let mode = match file.mode {
                FileMode::Regular => "100644",
                FileMode::Executable => "100755",
                FileMode::Symlink => "120000",
                FileMode::Submodule => {
                    let commit = String::from_utf8_lossy(&file.content);
                    let line = format!("M 160000 {commit} {}\n", quoted(&file.path));
                    stream.extend_from_slice(line.as_bytes());
                    continue;
                }
            };
            stream.extend_from_slice(
                format!(
                    "M {mode} inline {}\ndata {}\n",
                    quoted(&file.path),
                    file.content.len()
                )
                .as_bytes(),
            );
            stream.extend_from_slice(&file.content);
            stream.push(b'\n');
        }
        self.fast_import(&stream);
        process::run(self.git().args(["rev-parse", &reference]))
            .trim()
            .to_owned()
    }

    /// Makes a lightweight tag.
    pub fn tag(&self, name: &str, commit: &str) {
        process::run(
            self.git()
                .args(["update-ref", &format!("refs/tags/{name}"), commit]),
        );
    }

    /// Makes an annotated tag and returns the name of the tag object.
    pub fn annotated_tag(&self, name: &str, commit: &str) -> String {
        let text = format!(
            "tag {name}\nfrom {commit}\ntagger A U Thor <author@example.com> {FIRST_DATE} +0000\ndata 4\ntag\n"
        );
        self.fast_import(text.as_bytes());
        process::run(self.git().args(["rev-parse", &format!("refs/tags/{name}")]))
            .trim()
            .to_owned()
    }

    /// Points HEAD to `branch`.
    pub fn set_head(&self, branch: &str) {
        process::run(
            self.git()
                .args(["symbolic-ref", "HEAD", &format!("refs/heads/{branch}")]),
        );
    }

    /// Feeds a stream to `git fast-import`.
    pub fn fast_import(&self, stream: &[u8]) {
        let mut command = self.git();
        command
            .args(["fast-import", "--quiet", "--date-format=raw-permissive"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("start git fast-import: {error}"));
        if let Some(mut pipe) = child.stdin.take() {
            pipe.write_all(stream)
                .unwrap_or_else(|error| panic!("write to git fast-import: {error}"));
        }
        let output = child
            .wait_with_output()
            .unwrap_or_else(|error| panic!("wait for git fast-import: {error}"));
        assert!(
            output.status.success(),
            "git fast-import: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Returns git for this repository.
    #[must_use]
    pub fn git(&self) -> Command {
        let mut command = git();
        command.arg("--git-dir").arg(&self.path);
        command
    }
}

/// Returns git without this machine's settings.
fn git() -> Command {
    let mut command = process::clean_command(process::tool("git", "git"));
    command
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null");
    command
}

/// Returns a path as fast-import reads it.
fn quoted(path: &str) -> String {
    let mut text = String::from("\"");
    for byte in path.bytes() {
        match byte {
            b'"' | b'\\' => {
                text.push('\\');
                text.push(char::from(byte));
            }
            b' '..=b'~' => text.push(char::from(byte)),
            // Writing to a string cannot fail.
            _ => drop(write!(text, "\\{byte:03o}")),
        }
    }
    text.push('"');
    text
}
