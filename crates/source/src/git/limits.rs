//! Limits of one fetch, and the watcher that holds the working directory to them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::error::FetchError;

/// Shortest pause between two looks at the directory.
const MIN_PAUSE: Duration = Duration::from_millis(250);

/// How much longer to pause than the look itself took, so that watching stays cheap.
const PAUSE_FACTOR: u32 = 10;

/// How much one repository may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Bytes on disk, objects and checked-out files together; also the size of any single file.
    pub size_bytes: u64,
    /// Files and directories, objects included.
    pub n_files: u64,
    /// Length of a path inside the repository.
    pub path_bytes: usize,
    /// Address space of each git process.
    pub memory_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            size_bytes: 8 << 30,
            n_files: 1_000_000,
            path_bytes: 2048,
            memory_bytes: 8 << 30,
        }
    }
}

impl Limits {
    /// Returns the error for a repository that is too large.
    pub(super) fn too_large(&self) -> FetchError {
        FetchError::Limit {
            limit: format!("{} bytes", self.size_bytes),
        }
    }

    /// Returns the error for a repository with too many files.
    pub(super) fn too_many(&self) -> FetchError {
        FetchError::Limit {
            limit: format!("{} files", self.n_files),
        }
    }
}

/// Looks at `directory` again and again and returns when it has outgrown `limits`.
pub(super) async fn watch(directory: &Path, limits: &Limits) -> FetchError {
    loop {
        let started = Instant::now();
        let (directory, most) = (directory.to_path_buf(), limits.clone());
        // A failed look (the directory is changing under us) is as good as a small one: the next look counts.
        let found = tokio::task::spawn_blocking(move || measure(directory, &most))
            .await
            .unwrap_or_default();
        if found.size_bytes > limits.size_bytes {
            return limits.too_large();
        }
        if found.n_files > limits.n_files {
            return limits.too_many();
        }
        tokio::time::sleep(MIN_PAUSE.max(started.elapsed() * PAUSE_FACTOR)).await;
    }
}

/// What a directory holds.
#[derive(Default)]
struct Found {
    size_bytes: u64,
    n_files: u64,
}

/// Adds up what is below `directory`, following no link, and stops as soon as a limit is passed.
fn measure(directory: PathBuf, limits: &Limits) -> Found {
    use std::os::unix::fs::MetadataExt as _;
    let mut found = Found::default();
    let mut pending = vec![directory];
    while let Some(directory) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            found.n_files += 1;
            // Blocks, not length: a sparse file takes what it takes.
            found.size_bytes += metadata.blocks() * 512;
            if found.size_bytes > limits.size_bytes || found.n_files > limits.n_files {
                return found;
            }
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    found
}
