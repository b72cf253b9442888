//! The rules that no lint holds.
//!
//! | file | rules |
//! |---|---|
//! | `ranks` | which crate may name which; which stay without tokio; licence and publishing |
//! | `files` | sizes, module docs, white space, test names, `unsafe`, forbidden macros |
//! | `map` | what ARCHITECTURE.md says is there, and what is there is in ARCHITECTURE.md |
//! | `coverage` | each row of docs/seed-coverage.md and docs/hostile-inputs.md names tests that are there |
//!
//! Each check is a pure function from texts to findings; only this file reads.

mod code;
mod coverage;
mod files;
mod map;
mod ranks;

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use serde_json::Value;

/// Returns everything that is wrong in the repository at `root`, one line each.
pub(crate) fn check(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut findings = ranks::check(&metadata(root)?);
    let paths = tracked(root)?;
    for path in &paths {
        let absolute = root.join(path);
        // Links are somebody else's text; deleted and not yet committed is not there.
        if !files::is_text(path) || absolute.is_symlink() || !absolute.is_file() {
            continue;
        }
        let text = std::fs::read_to_string(&absolute).with_context(|| format!("read {path}"))?;
        findings.extend(files::check(path, &text));
    }
    match std::fs::read_to_string(root.join("ARCHITECTURE.md")) {
        Ok(text) => findings.extend(map::check(&text, &crates(&paths), |path| {
            root.join(path).exists()
        })),
        Err(_) => findings.push("ARCHITECTURE.md: missing".to_owned()),
    }
    let read = |path: &str| {
        let is_ours = paths.iter().any(|tracked| tracked == path);
        std::fs::read_to_string(root.join(path))
            .ok()
            .filter(|_| is_ours)
    };
    for name in coverage::DOCUMENTS {
        match read(name) {
            Some(text) => findings.extend(coverage::check(name, &text, read)),
            None => findings.push(format!("{name}: missing")),
        }
    }
    findings.sort();
    Ok(findings)
}

/// Returns what cargo knows about the workspace.
fn metadata(root: &Path) -> anyhow::Result<Value> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version=1", "--no-deps"])
        .current_dir(root)
        .output();
    let output = output.context("run cargo metadata")?;
    if !output.status.success() {
        bail!(
            "cargo metadata: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    serde_json::from_slice(&output.stdout).context("read the output of cargo metadata")
}

/// Returns every file that is in git or would be added to it.
fn tracked(root: &Path) -> anyhow::Result<Vec<String>> {
    let arguments = [
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ];
    let output = Command::new("git")
        .args(arguments)
        .current_dir(root)
        .output()
        .context("run git ls-files")?;
    if !output.status.success() {
        bail!(
            "git ls-files: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let names = String::from_utf8_lossy(&output.stdout);
    Ok(names
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect())
}

/// Returns the folders of the product's crates.
fn crates(paths: &[String]) -> Vec<String> {
    let manifests = paths
        .iter()
        .filter_map(|path| path.strip_suffix("/Cargo.toml"));
    manifests
        .filter(|folder| folder.starts_with("crates/"))
        .map(str::to_owned)
        .collect()
}
